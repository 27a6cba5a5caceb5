//! Answering: `/metrics`, `/healthz`, `/readyz`, `/status`.

use std::collections::HashSet;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use super::Observer;

/// Connections at a time.
const CONNECTIONS: usize = 8;
/// How long a client may take to say what it wants, and a connection may wait for more.
const HEADERS: Duration = Duration::from_secs(10);

/// Where the daemon answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A socket in the file system.
    Socket(PathBuf),
    /// A port of loopback.
    Port(SocketAddr),
}

impl Endpoint {
    /// Reads `127.0.0.1:9101` or `unix:/PATH`; `None` for what is neither.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("unix:") {
            Some(path) => Some(Self::Socket(path.into())),
            None => text.parse().ok().map(Self::Port),
        }
    }
}

/// Who may ask there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The daemon's user: everything, the names of repositories among it.
    Private,
    /// Whoever is on this host: metrics and health.
    Public,
}

enum Listener {
    Socket(UnixListener),
    Port(TcpListener),
}

/// Listens, and answers until the daemon leaves. Must be called within its runtime; gives the port that was taken.
///
/// # Errors
/// When it cannot be listened there.
pub fn serve(endpoint: &Endpoint, access: Access, observer: Observer) -> io::Result<Option<SocketAddr>> {
    let (listener, address) = match endpoint {
        Endpoint::Socket(path) => (Listener::Socket(bind(path, access)?), None),
        Endpoint::Port(address) => {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            (Listener::Port(TcpListener::from_std(listener)?), Some(address))
        }
    };
    tokio::spawn(accept(listener, access, observer));
    Ok(address)
}

fn bind(path: &Path, access: Access) -> io::Result<UnixListener> {
    // Whoever holds the state directory's lock is the only daemon here; what is left is of one that was killed.
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(io::Error::from(io::ErrorKind::AddrInUse)),
        Err(_) => _ = std::fs::remove_file(path),
    }
    let listener = UnixListener::bind(path)?;
    let mode = if access == Access::Private { 0o600 } else { 0o666 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

async fn accept(listener: Listener, access: Access, observer: Observer) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match &listener {
            Listener::Socket(listener) => match listener.accept().await {
                Ok((stream, _)) => converse(stream, access, observer.clone(), slot),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            Listener::Port(listener) => match listener.accept().await {
                Ok((stream, _)) => converse(stream, access, observer.clone(), slot),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
        }
    }
}

fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    access: Access,
    observer: Observer,
    slot: tokio::sync::OwnedSemaphorePermit,
) {
    tokio::spawn(async move {
        let service = service_fn(move |request| {
            let answer = answer(&observer, access, &request);
            async move { Ok::<_, Infallible>(answer) }
        });
        // A client that goes away is its own affair.
        let _ = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS)
            .max_buf_size(16 * 1024)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        drop(slot);
    });
}

fn answer(observer: &Observer, access: Access, request: &Request<Incoming>) -> Response<Body> {
    const TEXT: &str = "text/plain; charset=utf-8";
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") if wants_openmetrics(request) => {
            (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", observer.metrics())
        }
        (&Method::GET | &Method::HEAD, "/metrics") => {
            (StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", older(&observer.metrics()))
        }
        (&Method::GET | &Method::HEAD, "/healthz") => (StatusCode::OK, TEXT, "ok\n".to_owned()),
        (&Method::GET | &Method::HEAD, "/readyz") => match observer.not_ready() {
            None => (StatusCode::OK, TEXT, "ready\n".to_owned()),
            Some(why) => (StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("not ready: {why}\n")),
        },
        (&Method::GET | &Method::HEAD, "/status") if access == Access::Private => {
            match serde_json::to_string(&observer.status()) {
                Ok(text) => (StatusCode::OK, "application/json", text),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, TEXT, error.to_string()),
            }
        }
        (&Method::GET | &Method::HEAD, _) => {
            (StatusCode::NOT_FOUND, TEXT, "there is /metrics, /healthz and /readyz\n".to_owned())
        }
        _ => (StatusCode::METHOD_NOT_ALLOWED, TEXT, "this can only be read\n".to_owned()),
    };
    let text = if request.method() == Method::HEAD { None } else { Some(Bytes::from(text)) };
    let mut response = Response::new(Body(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Prometheus asks for it; others may know the older form only.
fn wants_openmetrics(request: &Request<Incoming>) -> bool {
    let accepted = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
    accepted.is_some_and(|accept| accept.contains("application/openmetrics-text"))
}

/// The older form: counters are called by their whole name, and there are neither units nor an end.
fn older(text: &str) -> String {
    let counters: HashSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut older = String::with_capacity(text.len());
    for line in text.lines().filter(|line| !line.starts_with("# UNIT ") && *line != "# EOF") {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(word), Some(name), Some(rest)) => {
                let end = if counters.contains(name) { "_total" } else { "" };
                let (end, rest) = if rest == "info" { ("_info", "gauge") } else { (end, rest) };
                let end = if name == "sower_build" { "_info" } else { end };
                older.push_str(&format!("# {word} {name}{end} {rest}\n"));
            }
            _ => {
                older.push_str(line);
                older.push('\n');
            }
        }
    }
    older
}

/// A body of one piece.
struct Body(Option<Bytes>);

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        std::task::Poll::Ready(self.get_mut().0.take().map(|text| Ok(Frame::data(text))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |text| text.len() as u64))
    }
}

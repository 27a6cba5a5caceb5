//! The server: accepts, routes, and can be taken down and brought up again at the same address.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::forge::{PASSWORD, USER};
use crate::state::Shared;
use crate::{artifacts, git, registry, rest, rpc};

/// Most bytes of a body that is kept in memory.
pub(crate) const MAX_BODY: u64 = 256 * 1024 * 1024;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Body = BoxBody<Bytes, BoxError>;

/// Close the connection without an answer.
#[derive(Debug)]
pub(crate) struct Abort;

impl fmt::Display for Abort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("closed on purpose")
    }
}

impl std::error::Error for Abort {}

/// What every request may need.
pub(crate) struct Site {
    pub(crate) shared: Arc<Shared>,
    /// Folder of the repositories.
    pub(crate) repositories: PathBuf,
    /// Access token of the only user.
    pub(crate) token: String,
    pub(crate) prefix: String,
    pub(crate) pushes: tokio::sync::Mutex<()>,
    pub(crate) artifacts: artifacts::Artifacts,
}

/// A body that breaks off.
pub(crate) fn torn() -> Body {
    Torn(Some(Bytes::from_static(b"\x0a"))).boxed()
}

struct Torn(Option<Bytes>);

impl hyper::body::Body for Torn {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, BoxError>>> {
        std::task::Poll::Ready(Some(match self.0.take() {
            Some(bytes) => Ok(hyper::body::Frame::data(bytes)),
            None => Err(Box::new(Abort)),
        }))
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Nobody in particular.
    Anonymous,
    /// The user, or a job by its token.
    Known,
    /// Somebody with a wrong password or token.
    Wrong,
}

impl Site {
    /// Reads Basic, `token` and `Bearer`; as password a token will do.
    pub(crate) fn caller(&self, headers: &HeaderMap) -> Caller {
        let Some(value) = headers.get(AUTHORIZATION) else { return Caller::Anonymous };
        let known =
            value.to_str().ok().and_then(|value| value.split_once(' ')).is_some_and(|(scheme, rest)| {
                match scheme.to_ascii_lowercase().as_str() {
                    "basic" => basic(rest).is_some_and(|(user, password)| {
                        (user == USER && password == PASSWORD)
                            || self.is_token(&password)
                            || (password.is_empty() || password == "x-oauth-basic") && self.is_token(&user)
                    }),
                    "token" | "bearer" => self.is_token(rest.trim()),
                    _ => false,
                }
            });
        if known { Caller::Known } else { Caller::Wrong }
    }

    fn is_token(&self, token: &str) -> bool {
        token == self.token || self.shared.lock().task_of_token(token).is_some()
    }
}

/// User and password of Basic authentication.
pub(crate) fn basic(encoded: &str) -> Option<(String, String)> {
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// Serves until `up` is dropped; while it says `false`, the address refuses connections.
pub(crate) async fn run(site: Arc<Site>, first: TcpListener, mut up: watch::Receiver<bool>) {
    let Ok(address) = first.local_addr() else { return };
    let mut listener = Some(first);
    loop {
        let current = match listener.take() {
            Some(listener) => listener,
            None => match bind(address).await {
                Ok(listener) => listener,
                Err(_) => return,
            },
        };
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = current.accept() => {
                    if let Ok((stream, _)) = accepted {
                        let _ = stream.set_nodelay(true);
                        let site = Arc::clone(&site);
                        connections.spawn(async move {
                            let service = service_fn(move |request| {
                                let site = Arc::clone(&site);
                                async move { route(&site, request).await }
                            });
                            // A client that goes away is its own affair.
                            let _ = hyper::server::conn::http1::Builder::new()
                                .serve_connection(TokioIo::new(stream), service)
                                .await;
                        });
                    }
                    while connections.try_join_next().is_some() {}
                }
                changed = up.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if !*up.borrow() {
                        break;
                    }
                }
            }
        }
        drop(current);
        connections.shutdown().await;
        if up.wait_for(|up| *up).await.is_err() {
            return;
        }
    }
}

async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let mut last = None;
    for _ in 0..100 {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    Err(last.unwrap_or_else(|| io::Error::other("no attempt")))
}

async fn route(site: &Arc<Site>, request: Request<Incoming>) -> Result<Response<Body>, Abort> {
    let path = request.uri().path().to_owned();
    // The registry lies at the root whatever the path of the instance.
    if path == "/v2" || path.starts_with("/v2/") {
        return Ok(registry::serve(site, request).await);
    }
    let Some(path) = path.strip_prefix(site.prefix.as_str()).map(str::to_owned) else {
        return Ok(not_found());
    };
    if let Some(method) = path.strip_prefix("/api/actions/") {
        let method = method.to_owned();
        return rpc::serve(&site.shared, &method, request).await;
    }
    if let Some(method) = path.strip_prefix(artifacts::TWIRP) {
        let method = method.to_owned();
        return artifacts::twirp(site, &method, request).await;
    }
    if let Some(rest) = path.strip_prefix(artifacts::PIPELINES)
        && rest.contains("/artifacts")
    {
        let rest = rest.to_owned();
        return artifacts::pipelines(site, &rest, request).await;
    }
    if path.starts_with("/api/") {
        return rest::serve(site, &path, request).await;
    }
    if path == "/" {
        return Ok(text(StatusCode::OK, "A stand-in for Gitea.\n"));
    }
    match git::route(&path) {
        Some(target) => git::serve(site, target, request).await,
        None => Ok(not_found()),
    }
}

/// The page that Gitea shows for what is not there.
pub(crate) fn not_found() -> Response<Body> {
    let page = "<!DOCTYPE html>\n<html><head><title>Page Not Found</title></head><body>404</body></html>\n";
    header(bytes(StatusCode::NOT_FOUND, page), "content-type", "text/html; charset=utf-8")
}

/// Reads a body whole.
pub(crate) async fn collect(body: Incoming) -> Result<Vec<u8>, Abort> {
    let limit = usize::try_from(MAX_BODY).unwrap_or(usize::MAX);
    Ok(Limited::new(body, limit).collect().await.map_err(|_| Abort)?.to_bytes().to_vec())
}

/// A body that is there already.
pub(crate) fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).map_err(|never: Infallible| match never {}).boxed()
}

/// A response without a content type.
pub(crate) fn bytes(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    response
}

/// A response in plain text.
pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    header(bytes(status, body), "content-type", "text/plain; charset=utf-8")
}

/// A response in JSON.
pub(crate) fn json(status: StatusCode, body: &serde_json::Value) -> Response<Body> {
    header(bytes(status, body.to_string()), "content-type", "application/json;charset=utf-8")
}

/// The response with one more header; what cannot be a header is left out.
pub(crate) fn header(mut response: Response<Body>, name: &str, value: &str) -> Response<Body> {
    if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
        response.headers_mut().insert(name, value);
    }
    response
}

/// The value of a parameter of the query, percent-decoded.
pub(crate) fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    query?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then(|| percent_decode(value))
    })
}

/// Undoes percent encoding.
pub(crate) fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = tail
            .get(..2)
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (first, code) {
            (b'%', Some(code)) => {
                bytes.push(code);
                rest = &tail[2..];
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = tail;
            }
            (byte, _) => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

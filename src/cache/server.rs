//! The server: who may ask, and which protocol a path belongs to.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use sha2::{Digest, Sha256};

use super::artifacts::{self, Artifacts};
use super::relay::Relay;
use super::reply::{self, Answer, Body, Refusal, bearer, parameter};
use super::sign::Signer;
use super::store::{Entry, Grant, Store};
use super::{v1, v2};

/// What clients of the results service put before each method's name.
const TWIRP: &str = "/twirp/github.actions.results.api.v1.";
/// How long a connection may take to say what it wants.
const HEADERS: Duration = Duration::from_secs(60);

/// What a server serves, and where.
#[derive(Debug)]
pub struct Options {
    /// Where it listens. With port 0 it takes any.
    pub address: SocketAddr,
    /// The entries; `None` serves no cache.
    pub store: Option<Store>,
    /// Artifacts of a local run; `None` keeps none.
    pub artifacts: Option<Artifacts>,
    /// Who is asked for artifacts that are not kept here.
    pub relay: Option<Relay>,
    /// Signs addresses.
    pub signer: Signer,
}

/// A server that runs in a thread of its own until the process ends.
#[derive(Debug, Clone)]
pub struct Server {
    site: Arc<Site>,
    address: SocketAddr,
}

/// What every request may need.
#[derive(Debug)]
pub(super) struct Site {
    url: String,
    store: Option<Store>,
    artifacts: Option<Artifacts>,
    relay: Option<Relay>,
    signer: Signer,
    grants: Mutex<HashMap<[u8; 32], Grant>>,
}

impl Site {
    pub(super) fn store(&self) -> Result<&Store, Refusal> {
        self.store.as_ref().ok_or_else(Refusal::not_found)
    }

    /// Where an entry's archive can be had.
    pub(super) fn download_url(&self, entry: &Entry) -> String {
        // A folder's name may hold percent signs of its own.
        let folder = entry.folder.replace('%', "%25");
        self.signed(&format!("/download/{folder}/{}", entry.id))
    }

    /// Where an archive can be sent.
    pub(super) fn upload_url(&self, id: u64) -> String {
        self.signed(&format!("/upload/{id}"))
    }

    pub(super) fn signed(&self, path: &str) -> String {
        format!("{}{}", self.url, self.signer.sign(path))
    }

    /// A path as an address.
    pub(super) fn address(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    fn grant(&self, request: &Request<Incoming>) -> Result<Grant, Refusal> {
        let token = bearer(request.headers()).unwrap_or_default();
        let grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        grants.get(&digest(token)).cloned().ok_or_else(|| {
            Refusal::new(
                StatusCode::UNAUTHORIZED,
                "no job that runs here has this token (ACTIONS_RUNTIME_TOKEN)",
            )
        })
    }

    fn check_signature(&self, request: &Request<Incoming>) -> Result<(), Refusal> {
        let query = request.uri().query();
        if self.signer.verifies(request.uri().path(), &parameter(query, "exp"), &parameter(query, "sig")) {
            return Ok(());
        }
        Err(Refusal::new(StatusCode::FORBIDDEN, "the address has expired, or is not one that was given out"))
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let path = request.uri().path().to_owned();
        if let Some(rest) = path.strip_prefix("/_apis/artifactcache/") {
            let grant = self.grant(&request)?;
            return v1::serve(self, &grant, rest, request).await;
        }
        if let Some(method) = path.strip_prefix(TWIRP) {
            if request.method() != Method::POST {
                return Err(Refusal::not_found());
            }
            if let (Some(name), None, Some(relay)) =
                (method.strip_prefix("ArtifactService/"), &self.artifacts, &self.relay)
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
            {
                // Who may ask is Gitea's to say.
                return relay.serve(request).await;
            }
            let grant = self.grant(&request)?;
            return match method.split_once('/') {
                Some(("CacheService", method)) => v2::serve(self, &grant, method, request.into_body()).await,
                Some(("ArtifactService", method)) => {
                    let artifacts = self.artifacts.as_ref().ok_or_else(Refusal::not_found)?;
                    artifacts::serve(self, artifacts, method, request.into_body()).await
                }
                _ => Err(Refusal::not_found()),
            };
        }
        if let Some(rest) = path.strip_prefix("/_apis/pipelines/workflows/") {
            self.grant(&request)?;
            let artifacts = self.artifacts.as_ref().ok_or_else(Refusal::not_found)?;
            return artifacts::serve_v3(self, artifacts, rest, request).await;
        }
        self.check_signature(&request)?;
        let head = request.method() == Method::HEAD;
        let mut parts = path.trim_start_matches('/').splitn(3, '/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some("download"), Some(folder), Some(id)) if head || request.method() == Method::GET => {
                let file = self.store()?.blob(&reply::decode(folder), id).ok_or_else(Refusal::not_found)?;
                reply::file(&file, request.headers(), head)
            }
            (Some("upload"), Some(id), None) => v2::upload(self.store()?, id, request).await,
            (Some("artifact"), Some(id), None) => {
                let artifacts = self.artifacts.as_ref().ok_or_else(Refusal::not_found)?;
                artifacts::blob(artifacts, id, request).await
            }
            _ => Err(Refusal::not_found()),
        }
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

impl Server {
    /// Listens and serves.
    ///
    /// # Errors
    /// When the address cannot be listened at, or no thread can be started.
    pub fn start(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(options.address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let site = Arc::new(Site {
            url: format!("http://{address}"),
            store: options.store,
            artifacts: options.artifacts,
            relay: options.relay,
            signer: options.signer,
            grants: Mutex::default(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let served = Arc::clone(&site);
        // Not the daemon's own thread: a large file that goes to a slow disk must not hold up reports.
        std::thread::Builder::new().name("cache".to_owned()).spawn(move || {
            if let Err(error) = runtime.block_on(serve(served, listener)) {
                tracing::error!("the cache server has stopped: {error}");
            }
        })?;
        Ok(Self { site, address })
    }

    /// Where it is reached, such as `http://127.0.0.1:40321`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.site.url
    }

    /// Its port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.address.port()
    }

    /// Lets who has this token ask, until it is revoked.
    pub fn admit(&self, token: &str, grant: Grant) {
        if !token.is_empty() {
            let mut grants = self.site.grants.lock().unwrap_or_else(PoisonError::into_inner);
            grants.insert(digest(token), grant);
        }
    }

    /// The job has ended.
    pub fn revoke(&self, token: &str) {
        self.site.grants.lock().unwrap_or_else(PoisonError::into_inner).remove(&digest(token));
    }
}

async fn serve(site: Arc<Site>, listener: TcpListener) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // No file descriptor is left; one will be.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let site = Arc::clone(&site);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let site = Arc::clone(&site);
                async move { Ok::<_, std::convert::Infallible>(respond(&site, request).await) }
            });
            // A client that goes away is its own affair.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS)
                .max_buf_size(128 * 1024)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn respond(site: &Site, request: Request<Incoming>) -> Response<Body> {
    site.answer(request).await.unwrap_or_else(|refusal| refusal.response())
}

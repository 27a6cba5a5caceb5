//! A client for one repository on one registry: the OCI distribution protocol as docker-registry and Gitea speak it.
//!
//! Every request goes through [`Registry::send`]: credentials for the registry's own origin only, one new token on
//! 401, retries with back-off on 429, 5xx and broken connections. How it is let in is in [`login`], what is
//! read in [`content`], uploads are in [`upload`].

mod answer;
mod auth;
mod content;
mod credentials;
mod location;
mod login;
mod packages;
mod probe;
mod upload;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderName, LOCATION, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode, Url};

use self::auth::Challenge;
use self::location::{Target, shown};
use self::login::Authorization;
use super::chunks::Room;
use super::{Error, Repository};
use crate::http;

pub use self::credentials::{Credentials, PASSWORD, TOKEN, USERNAME};
pub use self::packages::{Packages, Version};
pub use self::probe::{Greeting, Probe, Service};
pub use self::upload::Sent;

/// How to talk to a registry.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// HTTP instead of HTTPS.
    pub plain_http: bool,
    /// Accept any certificate.
    pub insecure: bool,
    /// Ask here for tokens, whatever the registry says. Credentials are sent there.
    pub token_url: Option<String>,
    /// A file with certificates (PEM) of authorities to trust besides the system's.
    pub ca: Option<PathBuf>,
    /// Other repositories of this registry from which blobs may be mounted: the token should hold for them, too.
    pub also_read: Vec<String>,
    /// Ask through this SOCKS proxy of this host: a tunnel to where the registry is seen from.
    pub socks: Option<std::net::SocketAddr>,
}

/// What is to be done there; asked for with the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read.
    Pull,
    /// Read and write.
    Push,
    /// Read and delete.
    Delete,
}

/// Time limit of a request without a body.
const SMALL: Duration = Duration::from_secs(60);
/// Bytes of a body that a line is expected to take in a second, however slow it is.
const SLOWEST: u64 = 8 * 1024;
const MAX_REDIRECTS: u32 = 5;
/// How often something is tried.
const TRIES: u32 = 5;

/// Takes what is to be told to the user once.
pub type Note = Box<dyn Fn(&str)>;

/// A repository, opened.
pub struct Registry {
    http: reqwest::Client,
    base: Url,
    repository: Repository,
    credentials: Option<Credentials>,
    token_url: Option<Url>,
    access: Access,
    authorization: Mutex<Authorization>,
    also_read: Vec<String>,
    /// For short layers on their way.
    room: Room,
    note: Note,
    noted: Mutex<HashSet<String>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("repository", &self.repository).finish_non_exhaustive()
    }
}

/// One request, which can be made again.
struct Request<'a> {
    /// What it is for, as errors say it.
    what: &'a str,
    method: Method,
    target: Target,
    headers: Vec<(HeaderName, String)>,
    body: Bytes,
    /// How often it is made before a broken connection or a registry in trouble is the answer.
    tries: u32,
}

impl<'a> Request<'a> {
    fn new(what: &'a str, method: Method, target: Target) -> Self {
        Self { what, method, target, headers: Vec::new(), body: Bytes::new(), tries: TRIES }
    }

    fn header(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// How often and how long to wait between tries.
struct Backoff {
    left: u32,
    wait: Duration,
}

impl Backoff {
    fn new(tries: u32) -> Self {
        Self { left: tries.saturating_sub(1), wait: Duration::from_millis(300) }
    }

    /// Waits, as long as it was asked for if it was, or says that it was enough.
    async fn again(&mut self, asked: Option<Duration>) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        let mut jitter = [0];
        let _ = getrandom::fill(&mut jitter);
        let wait = self.wait.mul_f64(0.75 + f64::from(jitter[0]) / 512.0);
        self.wait *= 2;
        tokio::time::sleep(asked.unwrap_or(wait)).await;
        true
    }
}

/// How long to wait before the next try, as the registry asks for it: a minute at most.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.min(60)))
}

fn is_passing(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS
        || (status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED)
}

impl Registry {
    /// Asks the registry for its challenge and logs in.
    ///
    /// # Errors
    /// When it does not answer, is no registry, or refuses the credentials.
    pub async fn open(
        repository: &Repository,
        access: Access,
        credentials: Option<Credentials>,
        options: &Options,
        note: Note,
    ) -> Result<Self, Error> {
        let registry = Self::unasked(repository, access, credentials, options, note)?;
        registry.greet().await?;
        Ok(registry)
    }

    /// A client that has not spoken to the registry yet: for Gitea's REST API, which knows no challenge.
    fn unasked(
        repository: &Repository,
        access: Access,
        credentials: Option<Credentials>,
        options: &Options,
        note: Note,
    ) -> Result<Self, Error> {
        let scheme = if options.plain_http { "http" } else { "https" };
        let parse = |text: &str| {
            Url::parse(text)
                .map_err(|error| Error::Argument { given: text.to_owned(), why: error.to_string() })
        };
        Ok(Self {
            http: http::client(&http::Options {
                no_proxy: false,
                socks: options.socks,
                insecure: options.insecure,
                timeout: None,
                follow_redirects: false,
                ca: options.ca.as_deref().map(certificates).transpose()?.unwrap_or_default(),
            })?,
            base: parse(&format!("{scheme}://{}/", repository.host))?,
            repository: repository.clone(),
            credentials,
            token_url: options.token_url.as_deref().map(parse).transpose()?,
            access,
            authorization: Mutex::new(Authorization::None),
            also_read: options.also_read.clone(),
            room: Room::default(),
            note,
            noted: Mutex::default(),
        })
    }

    /// Tells it once.
    fn note(&self, text: &str) {
        if self.noted.lock().unwrap_or_else(PoisonError::into_inner).insert(text.to_owned()) {
            (self.note)(text);
        }
    }

    /// The repository this is for.
    #[must_use]
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The URL of something in this repository: `blobs/…`, `manifests/…`, `tags/list`.
    fn own(&self, rest: &str) -> Target {
        let mut url = self.base.clone();
        url.set_path(&format!("/v2/{}/{rest}", self.repository.name));
        Target { url, own: true }
    }

    /// Sends a request until there is an answer to go on with: anything but 401, 429, 5xx and redirects of reads.
    async fn send(&self, request: Request<'_>) -> Result<Response, Error> {
        self.send_with(request, true).await
    }

    /// Like [`send`](Self::send), but a 401 is an answer, too.
    async fn send_once(&self, request: Request<'_>) -> Result<Response, Error> {
        self.send_with(request, false).await
    }

    async fn send_with(&self, request: Request<'_>, log_in: bool) -> Result<Response, Error> {
        let Request { what, method, mut target, headers, body, tries } = request;
        let mut backoff = Backoff::new(tries);
        let mut renewed = self.renew_if_old(what).await?;
        let mut redirects = 0;
        loop {
            let patience = SMALL + Duration::from_secs(body.len() as u64 / SLOWEST);
            let mut builder = self.http.request(method.clone(), target.url.clone()).timeout(patience);
            for (name, value) in &headers {
                builder = builder.header(name, value);
            }
            if target.own {
                builder = self.authorize(builder);
            }
            if !body.is_empty() || matches!(method, Method::PUT | Method::POST) {
                builder = builder.body(body.clone());
            }
            let answer = match builder.send().await {
                Ok(answer) => answer,
                Err(error) => {
                    if backoff.again(None).await {
                        continue;
                    }
                    return Err(self.unreachable(what, &target.url, &error));
                }
            };
            let status = answer.status();
            if log_in && status == StatusCode::UNAUTHORIZED && target.own {
                let challenge = Challenge::read(answer.headers());
                if renewed || !self.is_worth_a_login(challenge.as_ref()) {
                    return Err(self.refused(what, &target.url, answer).await);
                }
                renewed = true;
                self.log_in(what, &target.url, challenge.as_ref()).await?;
                continue;
            }
            if is_passing(status) && backoff.again(retry_after(answer.headers())).await {
                continue;
            }
            if matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
                && matches!(method, Method::GET | Method::HEAD)
                && redirects < MAX_REDIRECTS
            {
                redirects += 1;
                let next = self.follow(what, &target, &answer)?;
                // What once left the registry does not come back with credentials.
                target = Target { own: next.own && target.own, ..next };
                continue;
            }
            return Ok(answer);
        }
    }

    /// Where an answer's `Location` leads.
    fn follow(&self, what: &str, from: &Target, answer: &Response) -> Result<Target, Error> {
        let header = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let resolved = match header {
            Some(header) => {
                // Only the registry itself may say where the registry is.
                let base = if from.own { &self.base } else { &from.url };
                let absolute = from.url.join(header).map(String::from).unwrap_or_else(|_| header.to_owned());
                location::resolve(base, &absolute)
            }
            None => Err("the answer has no Location".to_owned()),
        };
        resolved.map_err(|why| Error::Answer {
            what: what.to_owned(),
            url: shown(&from.url),
            why,
            status: answer.status().as_u16(),
        })
    }
}

/// The certificates of a PEM file.
fn certificates(path: &std::path::Path) -> Result<Vec<reqwest::Certificate>, Error> {
    let pem = std::fs::read(path).map_err(|error| Error::io(path, error))?;
    let found = reqwest::Certificate::from_pem_bundle(&pem).unwrap_or_default();
    if found.is_empty() {
        return Err(Error::Argument {
            given: path.display().to_string(),
            why: "holds no certificate in PEM form".to_owned(),
        });
    }
    Ok(found)
}

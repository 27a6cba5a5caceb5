//! A client for one repository on one registry: the OCI distribution protocol as docker-registry and Gitea speak it.
//!
//! Every request goes through [`Registry::send`]: credentials for the registry's own origin only, one new token on
//! 401, retries with back-off on 429, 5xx and broken connections. Uploads are in [`upload`].

mod auth;
mod credentials;
mod location;
mod packages;
mod probe;
mod upload;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode, Url};

use self::auth::{Challenge, TokenAnswer};
use self::location::{Target, same_origin, shown};
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

/// Time limit of a request without a large body.
const SMALL: Duration = Duration::from_secs(60);
/// The most that is read of an answer that is no manifest, in bytes.
const MAX_ANSWER: usize = 64 * 1024;
const MAX_REDIRECTS: u32 = 5;

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
    note: Note,
    noted: Mutex<HashSet<String>>,
}

#[derive(Clone)]
enum Authorization {
    None,
    Basic,
    Bearer {
        token: String,
        renew: Option<Instant>,
    },
    /// A token that was given, and that cannot be renewed.
    Given,
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
    body: Vec<u8>,
}

impl<'a> Request<'a> {
    fn new(what: &'a str, method: Method, target: Target) -> Self {
        Self { what, method, target, headers: Vec::new(), body: Vec::new() }
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

    /// Waits, or says that it was enough. `Retry-After` is followed up to a minute.
    async fn again(&mut self, answer: Option<&HeaderMap>) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        let asked = answer
            .and_then(|headers| headers.get(RETRY_AFTER))
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(|seconds: u64| Duration::from_secs(seconds.min(60)));
        let mut jitter = [0];
        let _ = getrandom::fill(&mut jitter);
        let wait = self.wait.mul_f64(0.75 + f64::from(jitter[0]) / 512.0);
        self.wait *= 2;
        tokio::time::sleep(asked.unwrap_or(wait)).await;
        true
    }
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

    async fn greet(&self) -> Result<(), Error> {
        let what = "asking the registry";
        let url = self.base.join("/v2/").unwrap_or_else(|_| self.base.clone());
        let mut backoff = Backoff::new(3);
        let answer = loop {
            match self.http.get(url.clone()).timeout(SMALL).send().await {
                Ok(answer) if is_passing(answer.status()) && backoff.again(Some(answer.headers())).await => {}
                Ok(answer) => break answer,
                Err(error) if !backoff.again(None).await => return Err(self.unreachable(what, &url, &error)),
                Err(_) => {}
            }
        };
        match answer.status() {
            StatusCode::OK => Ok(()),
            StatusCode::UNAUTHORIZED => {
                let challenge = Challenge::read(answer.headers());
                self.log_in(what, &url, challenge.as_ref()).await
            }
            status if status.is_redirection() => {
                let to = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
                let to = to.and_then(|to| url.join(to).ok());
                let is_tls = to.as_ref().is_some_and(|to| to.scheme() == "https" && url.scheme() == "http");
                let to = to.map_or("nowhere".to_owned(), |to| shown(&to));
                let advice =
                    if is_tls { "leave --plain-http out" } else { "name that address, if it is right" };
                let why = format!("HTTP {}: leads to {to}; {advice}", status.as_u16());
                let what = what.to_owned();
                Err(Error::Answer { what, url: shown(&url), why, status: status.as_u16() })
            }
            status if status.is_success() || status == StatusCode::NOT_FOUND => Err(Error::Answer {
                what: what.to_owned(),
                url: shown(&url),
                why: format!("HTTP {}: no registry answers here; check host and port", status.as_u16()),
                status: status.as_u16(),
            }),
            _ => Err(self.failure(what, &url, answer).await),
        }
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
        let Request { what, method, mut target, headers, body } = request;
        let mut backoff = Backoff::new(5);
        let mut renewed = self.renew_if_old(what).await?;
        let mut redirects = 0;
        loop {
            let mut builder = self.http.request(method.clone(), target.url.clone()).timeout(SMALL);
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
            if is_passing(status) && backoff.again(Some(answer.headers())).await {
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

    fn authorize(&self, builder: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        let authorization = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match (authorization, &self.credentials) {
            (Authorization::Bearer { token, .. }, _) => with_secret(builder, &format!("Bearer {token}")),
            (Authorization::Basic, Some(credentials)) => with_secret(builder, &credentials.basic()),
            (Authorization::Given, Some(credentials)) => with_secret(builder, &credentials.bearer()),
            _ => builder,
        }
    }

    /// Whether the answer to a 401 is a login, as against "you may not".
    fn is_worth_a_login(&self, challenge: Option<&Challenge>) -> bool {
        let now = self.authorization.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*now, challenge) {
            (Authorization::Given, _) => false,
            (_, Some(Challenge::Bearer { .. })) => true,
            (Authorization::None, Some(Challenge::Basic { .. })) => self.credentials.is_some(),
            _ => false,
        }
    }

    /// Gets a new token shortly before the old one ends. True when it did.
    async fn renew_if_old(&self, what: &str) -> Result<bool, Error> {
        let old = match &*self.authorization.lock().unwrap_or_else(PoisonError::into_inner) {
            Authorization::Bearer { renew: Some(renew), .. } => *renew <= Instant::now(),
            _ => false,
        };
        if old {
            let url = self.base.join("/v2/").unwrap_or_else(|_| self.base.clone());
            let answer = self.http.get(url.clone()).timeout(SMALL).send().await;
            let answer = answer.map_err(|error| self.unreachable(what, &url, &error))?;
            if let Some(challenge) = Challenge::read(answer.headers()) {
                self.log_in(what, &url, Some(&challenge)).await?;
            }
        }
        Ok(old)
    }

    async fn log_in(&self, what: &str, url: &Url, challenge: Option<&Challenge>) -> Result<(), Error> {
        let authorization = match challenge {
            _ if self.credentials.as_ref().is_some_and(Credentials::is_token) => Authorization::Given,
            Some(Challenge::Bearer { realm, service, .. }) => self.token(realm, service.as_deref()).await?,
            Some(Challenge::Basic { .. }) if self.credentials.is_some() => Authorization::Basic,
            _ => {
                let why = auth::explain(401, challenge, self.credentials.as_ref(), "");
                return Err(Error::Refused { what: what.to_owned(), url: shown(url), why });
            }
        };
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = authorization;
        Ok(())
    }

    /// Gets a token: where `--token-url` says, else at the realm if that is the registry's own origin, else at the
    /// registry's own `/v2/token`. A realm elsewhere is asked last and without credentials.
    async fn token(&self, realm: &str, service: Option<&str>) -> Result<Authorization, Error> {
        let what = "asking for a token";
        if let Some(url) = &self.token_url {
            return match self.ask_for_token(url, service, true, 3).await? {
                Ok(token) => Ok(token),
                Err(why) => Err(Error::Unreachable { what: what.to_owned(), url: shown(url), why }),
            };
        }
        let own = auth::own_token_service(&self.base).unwrap_or_else(|| self.base.clone());
        // A relative realm is not allowed by the protocol, but plain enough.
        let realm = self.base.join(realm).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let mut why_not = "names no token service that can be asked".to_owned();
        if let Some(realm) = realm.as_ref() {
            if same_origin(realm, &self.base) {
                match self.ask_for_token(realm, service, true, 3).await? {
                    Ok(token) => return Ok(token),
                    Err(why) if *realm == own => {
                        return self.basic_instead(&own, &why);
                    }
                    Err(why) => {
                        why_not =
                            format!("names {} for tokens, which does not give any ({why})", shown(realm))
                    }
                }
            } else {
                why_not = format!("names {} for tokens, which is not its own address", shown(realm));
            }
        }
        let own_why = match self.ask_for_token(&own, service, true, 3).await? {
            Ok(token) => {
                self.note(&format!(
                    "the registry {why_not}; asked {} instead. Pulls by other programs fail until that is mended (Gitea: \
                     ROOT_URL or PUBLIC_URL_DETECTION = auto in app.ini)",
                    shown(&own)
                ));
                return Ok(token);
            }
            Err(why) => why,
        };
        if self.credentials.is_some() {
            self.note(&format!(
                "the registry {why_not}, and {} gives no token ({own_why}); going on with user and password in each \
                 request. If the token service elsewhere is right, name it with --token-url",
                shown(&own)
            ));
            return Ok(Authorization::Basic);
        }
        match realm {
            Some(realm) => match self.ask_for_token(&realm, service, false, 1).await? {
                Ok(token) => Ok(token),
                Err(why) => Err(Error::Unreachable { what: what.to_owned(), url: shown(&realm), why }),
            },
            None => Err(Error::Unreachable { what: what.to_owned(), url: shown(&own), why: own_why }),
        }
    }

    /// The token service of a registry failed and there is no other.
    fn basic_instead(&self, own: &Url, why: &str) -> Result<Authorization, Error> {
        if self.credentials.is_none() {
            let (what, url) = ("asking for a token".to_owned(), shown(own));
            return Err(Error::Unreachable { what, url, why: why.to_owned() });
        }
        self.note(&format!(
            "{} gives no token ({why}); going on with user and password in each request",
            shown(own)
        ));
        Ok(Authorization::Basic)
    }

    /// Asks one token service. The inner error says why this service is of no use; the outer one is final.
    async fn ask_for_token(
        &self,
        service_url: &Url,
        service: Option<&str>,
        with_credentials: bool,
        tries: u32,
    ) -> Result<Result<Authorization, String>, Error> {
        let mut url = service_url.clone();
        let actions = match self.access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
            Access::Delete => "pull,delete",
        };
        url.query_pairs_mut()
            .append_pair("service", service.unwrap_or("container_registry"))
            .append_pair("scope", &format!("repository:{}:{actions}", self.repository.name));
        for other in &self.also_read {
            url.query_pairs_mut().append_pair("scope", &format!("repository:{other}:pull"));
        }
        let mut backoff = Backoff::new(tries);
        let answer = loop {
            let mut builder = self.http.get(url.clone()).timeout(SMALL);
            if let Some(credentials) = self.credentials.as_ref().filter(|_| with_credentials) {
                builder = with_secret(builder, &credentials.basic());
            }
            match builder.send().await {
                Ok(answer) if is_passing(answer.status()) && backoff.again(Some(answer.headers())).await => {}
                Ok(answer) => break answer,
                Err(error) if !backoff.again(None).await => return Ok(Err(reason(&error))),
                Err(_) => {}
            }
        };
        let status = answer.status();
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            let challenge = Challenge::read(answer.headers());
            let words = words(answer).await;
            let with = self.credentials.as_ref().filter(|_| with_credentials);
            return Err(Error::Refused {
                what: "asking for a token".to_owned(),
                url: shown(&url),
                why: auth::explain(status.as_u16(), challenge.as_ref(), with, &words),
            });
        }
        if status != StatusCode::OK {
            return Ok(Err(format!("HTTP {}", status.as_u16())));
        }
        let body = read(answer, MAX_ANSWER).await.map_err(|why| Error::Answer {
            what: "asking for a token".to_owned(),
            url: shown(&url),
            why,
            status: 200,
        })?;
        let token = serde_json::from_slice::<TokenAnswer>(&body).ok().and_then(TokenAnswer::into_token);
        Ok(token.ok_or_else(|| "the answer holds no token".to_owned()).map(|(token, expires_in)| {
            // Ten seconds early; a shorter life is left to the 401.
            let renew = expires_in.filter(|seconds| *seconds > 20);
            let renew =
                renew.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds - 10)));
            Authorization::Bearer { token, renew }
        }))
    }

    fn unreachable(&self, what: &str, url: &Url, error: &reqwest::Error) -> Error {
        let mut why = reason(error);
        if url.scheme() == "https" && error.is_connect() {
            why.push_str("; if this registry speaks plain HTTP, say so with --plain-http");
        }
        Error::Unreachable { what: what.to_owned(), url: shown(url), why }
    }

    async fn refused(&self, what: &str, url: &Url, answer: Response) -> Error {
        let status = answer.status().as_u16();
        let challenge = Challenge::read(answer.headers());
        let words = words(answer).await;
        let why = auth::explain(status, challenge.as_ref(), self.credentials.as_ref(), &words);
        Error::Refused { what: what.to_owned(), url: shown(url), why }
    }

    /// An answer that cannot be gone on with, as an error.
    async fn failure(&self, what: &str, url: &Url, answer: Response) -> Error {
        let status = answer.status();
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return self.refused(what, url, answer).await;
        }
        let words = words(answer).await;
        let words = if words.is_empty() { status.canonical_reason().unwrap_or("").to_owned() } else { words };
        let mut why = format!("HTTP {}: {words}", status.as_u16());
        if matches!(status, StatusCode::INTERNAL_SERVER_ERROR | StatusCode::INSUFFICIENT_STORAGE) {
            why.push_str("; the registry's own log says more (a full disk looks like this)");
        }
        Error::Answer { what: what.to_owned(), url: shown(url), why, status: status.as_u16() }
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

/// Adds an `Authorization` header that the HTTP library will not show either.
fn with_secret(builder: reqwest::RequestBuilder, value: &str) -> reqwest::RequestBuilder {
    match HeaderValue::from_str(value) {
        Ok(mut value) => {
            value.set_sensitive(true);
            builder.header(AUTHORIZATION, value)
        }
        // A token with a line break in it; without it the registry answers 401, which is then explained.
        Err(_) => builder,
    }
}

/// The innermost reason of a network error, without URL.
fn reason(error: &reqwest::Error) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    if error.is_timeout() { format!("timed out ({inner})") } else { inner.to_string() }
}

/// Reads a body up to a limit.
async fn read(mut answer: Response, limit: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| reason(&error))? {
        if body.len() + chunk.len() > limit {
            return Err(format!("the answer is longer than {limit} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[derive(serde::Deserialize)]
struct Errors {
    errors: Vec<OneError>,
}

/// How Gitea's REST API says it.
#[derive(serde::Deserialize)]
struct Message {
    message: String,
}

#[derive(serde::Deserialize)]
struct OneError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// What the registry itself says is wrong, on one line, at most 200 characters.
async fn words(answer: Response) -> String {
    let Ok(body) = read(answer, MAX_ANSWER).await else { return String::new() };
    let text = match serde_json::from_slice::<Errors>(&body) {
        Ok(errors) => {
            let each = errors.errors.iter().map(|e| format!("{} {}", e.code, e.message).trim().to_owned());
            each.collect::<Vec<_>>().join("; ")
        }
        Err(_) => match serde_json::from_slice::<Message>(&body) {
            Ok(Message { message }) => message,
            Err(_) => String::from_utf8_lossy(&body).into_owned(),
        },
    };
    if text.trim_start().starts_with('<') {
        return String::new();
    }
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}

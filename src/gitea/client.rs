//! Calls to Gitea: unary Connect with binary protobuf.

use std::error::Error as _;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use prost::Message;
use reqwest::header::{CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER};
use sower_wire::ping::{PingRequest, PingResponse};
use sower_wire::runner::{
    DeclareRequest, DeclareResponse, FetchTaskRequest, FetchTaskResponse, RegisterRequest, RegisterResponse,
    UpdateLogRequest, UpdateLogResponse, UpdateTaskRequest, UpdateTaskResponse,
};

use super::error::{Code, Error};
use crate::http;
use crate::observe::Observer;

/// A reply larger than this is none. Tasks carry the webhook's event and all secrets and may be large.
const MAX_REPLY: usize = 64 * 1024 * 1024;
/// Time limit of a call, its reply included.
const TIMEOUT: Duration = Duration::from_secs(60);
const NO_ANSWER: &str = "no answer within the time limit";
/// A summary must not keep the rest of the report waiting for long.
const SUMMARY_TIMEOUT: Duration = Duration::from_secs(10);
/// Most of an error's body that is read.
const MAX_ERROR: usize = 64 * 1024;

/// The address of an instance: `http(s)://host[:port][/path]`, without a slash at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address(String);

/// Why an address cannot be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It is no address of the kind.
    #[error("{0:?} is not the address of a Gitea; write it as https://git.example.org")]
    NoAddress(String),
    /// It has a user or a password in it.
    #[error("the address has a user name or a password in it; leave them out, runners use a token")]
    Credentials,
    /// It has a query or a fragment.
    #[error("{0:?}: an address has no ? and no # in it")]
    Query(String),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let text = text.trim();
        let url = reqwest::Url::parse(text).map_err(|_| AddressError::NoAddress(text.to_owned()))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(AddressError::Credentials);
        }
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(AddressError::NoAddress(text.to_owned()));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(AddressError::Query(text.to_owned()));
        }
        Ok(Self(url.as_str().trim_end_matches('/').to_owned()))
    }
}

impl Address {
    /// The address, without a slash at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a runner proves that it is itself.
#[derive(Clone)]
pub struct Credentials {
    uuid: HeaderValue,
    token: HeaderValue,
}

impl Credentials {
    /// From what the registration says; `None` when that cannot stand in a header.
    #[must_use]
    pub fn new(uuid: &str, token: &str) -> Option<Self> {
        let mut token = HeaderValue::from_str(token).ok()?;
        token.set_sensitive(true);
        Some(Self { uuid: HeaderValue::from_str(uuid).ok()?, token })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("uuid", &self.uuid).finish_non_exhaustive()
    }
}

/// Where a summary belongs, in the instance's numbers.
#[derive(Debug, Clone, Copy)]
pub struct SummaryPlace {
    /// The run.
    pub run: i64,
    /// The job.
    pub job: i64,
    /// Index of the step, from 0.
    pub step: usize,
}

/// One instance as one runner speaks to it.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    address: Address,
    credentials: Option<Credentials>,
    /// What the reply to Declare said of job summaries; until there is one they are tried.
    summaries: Arc<AtomicBool>,
    observer: Option<Observer>,
}

/// Header of the reply to Declare, from 1.27 on: what the server can do.
const SERVER_CAPABILITIES: &str = "x-gitea-actions-capabilities";

impl Client {
    /// A client without credentials, which can ping and register.
    ///
    /// # Errors
    /// When the HTTP client cannot be set up, such as for a proxy in the environment that is no address.
    pub fn new(address: Address, insecure: bool) -> Result<Self, Error> {
        let http = http::client(&http::Options { insecure, timeout: None, ..http::Options::default() })
            .map_err(|error| unreachable(&address, &error))?;
        Ok(Self {
            http,
            address,
            credentials: None,
            summaries: Arc::new(AtomicBool::new(true)),
            observer: None,
        })
    }

    /// The same for a registered runner.
    #[must_use]
    pub fn with_credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = Some(credentials);
        self
    }

    /// The same where each call is counted.
    #[must_use]
    pub fn observed_by(mut self, observer: Observer) -> Self {
        self.observer = Some(observer);
        self
    }

    /// The instance.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Asks whether this is a Gitea with Actions.
    ///
    /// # Errors
    /// When it is not, or does not answer.
    pub async fn ping(&self, text: &str) -> Result<PingResponse, Error> {
        self.call("ping.v1.PingService", "Ping", &PingRequest { data: text.to_owned() }, Some(TIMEOUT)).await
    }

    /// Makes a runner of a registration token.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn register(&self, request: &RegisterRequest) -> Result<RegisterResponse, Error> {
        self.runner("Register", request, Some(TIMEOUT)).await
    }

    /// Says which labels and capabilities this runner has.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn declare(&self, request: &DeclareRequest) -> Result<DeclareResponse, Error> {
        self.runner("Declare", request, Some(TIMEOUT)).await
    }

    /// Asks for a task, without a time limit: a task is handed out before the reply arrives, so it is the caller who
    /// knows when to give up (see [`Client::no_answer`]).
    ///
    /// # Errors
    /// When the server refuses or the connection breaks.
    pub async fn fetch_task(&self, tasks_version: i64) -> Result<FetchTaskResponse, Error> {
        self.runner("FetchTask", &FetchTaskRequest { tasks_version }, None).await
    }

    /// The error of a call that the caller has given up.
    #[must_use]
    pub fn no_answer(&self) -> Error {
        Error::Unreachable { address: self.address.to_string(), reason: NO_ANSWER.to_owned() }
    }

    /// Tells how a task stands.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn update_task(&self, request: &UpdateTaskRequest) -> Result<UpdateTaskResponse, Error> {
        self.runner("UpdateTask", request, Some(TIMEOUT)).await
    }

    /// Sends rows of a task's log.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn update_log(&self, request: &UpdateLogRequest) -> Result<UpdateLogResponse, Error> {
        self.runner("UpdateLog", request, Some(TIMEOUT)).await
    }

    /// Whether the server knows this runner. It is asked for the log of a task that cannot be, so nothing changes.
    ///
    /// # Errors
    /// When it does not ([`super::Meaning::Unregistered`]), or does not answer.
    pub async fn knows_us(&self) -> Result<(), Error> {
        let nothing = UpdateLogRequest { task_id: -1, ..UpdateLogRequest::default() };
        match self.update_log(&nothing).await {
            Ok(_) => Ok(()),
            Err(error) if error.meaning() == super::Meaning::TaskLost => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether the server shows job summaries, as far as it has said.
    #[must_use]
    pub fn shows_summaries(&self) -> bool {
        self.summaries.load(Ordering::Relaxed)
    }

    /// Sends the summary of a step, with the task's own token.
    ///
    /// # Errors
    /// When the server refuses (those before 1.27 do not know summaries) or does not answer.
    pub async fn put_summary(&self, place: SummaryPlace, token: &str, markdown: String) -> Result<(), Error> {
        let SummaryPlace { run, job, step } = place;
        let path = format!("_apis/pipelines/workflows/{run}/jobs/{job}/steps/{step}/summary");
        let mut response = self
            .http
            .put(format!("{}/api/actions_pipeline/{path}", self.address))
            .header(CONTENT_TYPE, HeaderValue::from_static("text/markdown; charset=utf-8"))
            .bearer_auth(token)
            .timeout(SUMMARY_TIMEOUT)
            .body(markdown)
            .send()
            .await
            .map_err(|error| unreachable(&self.address, &error))?;
        let status = response.status();
        let body = response.chunk().await.map_err(|error| unreachable(&self.address, &error))?;
        if status.is_success() {
            return Ok(());
        }
        Err(Error::refused("summary", status.as_u16(), &body.unwrap_or_default(), None))
    }

    async fn runner<Q: Message, R: Message + Default>(
        &self,
        method: &'static str,
        request: &Q,
        timeout: Option<Duration>,
    ) -> Result<R, Error> {
        self.call("runner.v1.RunnerService", method, request, timeout).await
    }

    async fn call<Q: Message, R: Message + Default>(
        &self,
        service: &str,
        method: &'static str,
        request: &Q,
        timeout: Option<Duration>,
    ) -> Result<R, Error> {
        let begun = Instant::now();
        let result = self.ask(service, method, request, timeout).await;
        if let Some(observer) = &self.observer {
            let trouble = result.as_ref().err().map(ToString::to_string);
            observer.called(method, begun.elapsed(), trouble.as_deref());
        }
        result
    }

    async fn ask<Q: Message, R: Message + Default>(
        &self,
        service: &str,
        method: &'static str,
        request: &Q,
        timeout: Option<Duration>,
    ) -> Result<R, Error> {
        let mut builder = self
            .http
            .post(format!("{}/api/actions/{service}/{method}", self.address))
            .header(CONTENT_TYPE, HeaderValue::from_static("application/proto"))
            .header("connect-protocol-version", HeaderValue::from_static("1"))
            .body(request.encode_to_vec());
        if let Some(credentials) = &self.credentials {
            builder = builder
                .header("x-runner-uuid", credentials.uuid.clone())
                .header("x-runner-token", credentials.token.clone());
        }
        if let Some(timeout) = timeout {
            builder = builder.timeout(timeout);
        }
        let mut response = builder.send().await.map_err(|error| unreachable(&self.address, &error))?;
        let status = response.status();
        let proto = response
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/proto"));
        let limit = if status.is_success() { MAX_REPLY } else { MAX_ERROR };
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(&self.address, &error))? {
            if body.len() + chunk.len() > limit {
                if status.is_success() {
                    let message = format!("it is larger than {limit} bytes");
                    return Err(Error::Nonsense { method, message });
                }
                break;
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() && proto {
            if method == "Declare" {
                let said = response.headers().get(SERVER_CAPABILITIES).and_then(|value| value.to_str().ok());
                let words = said.unwrap_or_default().split([',', ' ']).filter(|word| !word.is_empty());
                let words: Vec<String> = words.take(64).map(str::to_owned).collect();
                self.summaries.store(words.iter().any(|word| word == "job-summary"), Ordering::Relaxed);
                if let Some(observer) = &self.observer {
                    observer.declared(words);
                }
            }
            return R::decode(body.as_slice())
                .map_err(|error| Error::Nonsense { method, message: error.to_string() });
        }
        let header = |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        if status.is_redirection()
            && let Some(target) = header(LOCATION)
        {
            let message =
                format!("the server sends us to {target}; register with the address that it really has");
            return Err(Error::Refused {
                method,
                status: status.as_u16(),
                code: Code::Unimplemented,
                message,
                genuine: false,
                retry_after: None,
            });
        }
        let wait = header(RETRY_AFTER).and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        Err(Error::refused(method, status.as_u16(), &body, wait))
    }
}

/// The innermost causes of a failure in transport, without the URL.
fn unreachable(address: &Address, error: &reqwest::Error) -> Error {
    let reason = if error.is_timeout() {
        if error.is_connect() {
            "no connection within the time limit".to_owned()
        } else {
            NO_ANSWER.to_owned()
        }
    } else {
        let mut reasons: Vec<String> = Vec::new();
        let mut cause = error.source();
        while let Some(inner) = cause {
            let text = inner.to_string();
            // Layers repeat what the one below says.
            if reasons.last().is_none_or(|last| !last.contains(&text)) {
                reasons.push(text);
            }
            cause = inner.source();
        }
        match reasons.len() {
            0 if error.is_builder() => "the request cannot be made".to_owned(),
            0 => "the connection broke".to_owned(),
            _ if reasons.iter().any(|reason| reason.contains("no records found")) => {
                "no such host name is known".to_owned()
            }
            _ if http::speaks_no_tls(error) => {
                "what answers there speaks no TLS; is its address one with http://?".to_owned()
            }
            length => reasons[length.saturating_sub(2)..].join(": "),
        }
    };
    Error::Unreachable { address: address.to_string(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_made_uniform() {
        for (text, address) in [
            ("https://git.example.org/", "https://git.example.org"),
            (" http://127.0.0.1:3000 ", "http://127.0.0.1:3000"),
            ("https://example.org/git//", "https://example.org/git"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().as_str(), address);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_and_a_password_is_not_repeated() {
        for text in
            ["", "git.example.org", "ftp://x", "localhost:3000", "https://x/?a=b", "https://x/#y", "http://"]
        {
            text.parse::<Address>().unwrap_err();
        }
        let error = "https://me:hunter2@x".parse::<Address>().unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
    }

    #[test]
    fn credentials_do_not_show() {
        let credentials = Credentials::new("some-uuid", "hunter2").unwrap();
        assert!(!format!("{credentials:?}").contains("hunter2"));
        assert!(Credentials::new("a\nb", "x").is_none());
    }

    #[test]
    fn recorded_replies_are_read() {
        let read = |name: &str| {
            let root = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/recorded/gitea-1.27-like/");
            std::fs::read(format!("{root}{name}")).unwrap()
        };
        let ping = PingResponse::decode(read("001-Ping.res").as_slice()).unwrap();
        assert!(ping.data.contains("recorded"));
        let runner = RegisterResponse::decode(read("002-Register.res").as_slice()).unwrap().runner.unwrap();
        assert_eq!((runner.name.as_str(), runner.token.len()), ("recorded", 40));
        let idle = FetchTaskResponse::decode(read("036-FetchTask.res").as_slice()).unwrap();
        assert!(idle.task.is_none() && idle.tasks_version > 0);
        let ack = UpdateLogResponse::decode(read("e05-log-final-again.res").as_slice()).unwrap();
        assert_eq!(ack.ack_index, 23);
        let state =
            UpdateTaskResponse::decode(read("e10-task-after-end.res").as_slice()).unwrap().state.unwrap();
        assert_eq!((state.id, state.result), (6, 1));
    }
}

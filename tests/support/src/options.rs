//! How a stand-in is to behave: which server it plays and how strict it is.

use std::net::SocketAddr;
use std::time::Duration;

/// The server whose behaviour is played. They differ in the seal of the log, in cancelling and in summaries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 1.26.1 and older: `no_more` without a new row is ignored, cancelling is immediate.
    V1_26_1,
    /// 1.26.2: a final batch that is sent again after the seal is an error.
    V1_26_2,
    /// 1.27: sealing is idempotent, runners with the capability `cancelling` are cancelled gently, jobs have summaries.
    V1_27,
}

impl Version {
    /// As `/api/v1/version` says it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V1_26_1 => "1.26.1",
            Self::V1_26_2 => "1.26.2",
            Self::V1_27 => "1.27.0",
        }
    }
}

/// The form in which refusals of the runner protocol arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorStyle {
    /// HTTP 500 with code `unknown`; the real code is only in the text, as servers up to July 2026 have it.
    Grpc,
    /// The Connect code with the HTTP status that belongs to it.
    Genuine,
}

/// The container registry that stands behind `/v2/`.
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// Where a registry without authentication listens, such as Debian's `docker-registry`.
    pub upstream: SocketAddr,
    /// The address that the challenge names as token realm, such as `http://127.0.0.1:1`; without it the right one.
    pub realm: Option<String>,
}

/// What a [`Forge`](crate::Forge) is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server to play.
    pub version: Version,
    /// The form of refusals.
    pub errors: ErrorStyle,
    /// Path below which everything is served, such as `/git`; empty for none.
    pub path_prefix: String,
    /// Reading a repository needs authentication too.
    pub private: bool,
    /// Longest time between two UpdateTask of a running task.
    pub heartbeat: Duration,
    /// Most bytes that the body of one UpdateLog may have.
    pub max_batch: usize,
    /// The registry behind `/v2/`; without it the path is not there.
    pub registry: Option<RegistryOptions>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            version: Version::V1_26_1,
            errors: ErrorStyle::Grpc,
            path_prefix: String::new(),
            private: false,
            heartbeat: Duration::from_secs(60),
            max_batch: 1024 * 1024,
            registry: None,
        }
    }
}

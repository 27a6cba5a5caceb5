//! What can go wrong with a call, and what it means.
//!
//! Servers up to mid-2026 make errors of a library that Connect does not know: they arrive as code `unknown` with
//! the real code in the text, `rpc error: code = Unauthenticated desc = unregistered runner`. Later ones send real
//! codes. A proxy in between answers with HTML. All of them are read here.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No answer arrived.
    #[error("{address}: {reason}")]
    Unreachable {
        /// The instance.
        address: String,
        /// What happened, such as "connection refused".
        reason: String,
    },
    /// The server, or something in front of it, said no.
    #[error("{method}: {code}{}: {message}", if *.status == 0 { String::new() } else { format!(" (HTTP {})", .status) })]
    Refused {
        /// The method called.
        method: &'static str,
        /// Status of the HTTP reply.
        status: u16,
        /// The code of the error.
        code: Code,
        /// What it says.
        message: String,
        /// The reply came from Gitea's Actions, not from a proxy or another page.
        genuine: bool,
        /// How long to wait before the next try, if the server says so.
        retry_after: Option<Duration>,
    },
    /// The reply is none.
    #[error("{method}: the reply makes no sense: {message}")]
    Nonsense {
        /// The method called.
        method: &'static str,
        /// What is wrong with it.
        message: String,
    },
}

/// What an error asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// Try again, later.
    TryAgain,
    /// The server does not know this runner (any more).
    Unregistered,
    /// The log is sealed; it takes no more rows.
    LogSealed,
    /// The task is not this runner's, or is no more.
    TaskLost,
    /// The request is larger than something on the way allows.
    TooLarge,
}

/// Error codes of Connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are Connect's")]
pub enum Code {
    Canceled,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
    #[serde(other)]
    Unknown,
}

const NAMES: [(Code, &str); 16] = [
    (Code::Canceled, "canceled"),
    (Code::Unknown, "unknown"),
    (Code::InvalidArgument, "invalid_argument"),
    (Code::DeadlineExceeded, "deadline_exceeded"),
    (Code::NotFound, "not_found"),
    (Code::AlreadyExists, "already_exists"),
    (Code::PermissionDenied, "permission_denied"),
    (Code::ResourceExhausted, "resource_exhausted"),
    (Code::FailedPrecondition, "failed_precondition"),
    (Code::Aborted, "aborted"),
    (Code::OutOfRange, "out_of_range"),
    (Code::Unimplemented, "unimplemented"),
    (Code::Internal, "internal"),
    (Code::Unavailable, "unavailable"),
    (Code::DataLoss, "data_loss"),
    (Code::Unauthenticated, "unauthenticated"),
];

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(code, _)| code == self).map_or("unknown", |(_, name)| name);
        f.write_str(name)
    }
}

impl Code {
    /// By its name in Connect (`already_exists`) or in gRPC for Go (`AlreadyExists`).
    fn named(name: &str) -> Option<Self> {
        let plain = name.replace('_', "");
        NAMES
            .iter()
            .find(|(_, known)| known.replace('_', "").eq_ignore_ascii_case(&plain))
            .map(|(code, _)| *code)
    }

    /// What a client makes of an HTTP status when the body is no error of Connect.
    fn of_status(status: u16) -> Self {
        match status {
            400 => Self::Internal,
            401 => Self::Unauthenticated,
            403 => Self::PermissionDenied,
            404 => Self::Unimplemented,
            429 | 502 | 503 | 504 => Self::Unavailable,
            _ => Self::Unknown,
        }
    }
}

#[derive(Deserialize)]
struct Body {
    code: Code,
    #[serde(default)]
    message: String,
}

impl Error {
    /// Reads the reply to a call that was refused.
    pub(super) fn refused(
        method: &'static str,
        status: u16,
        body: &[u8],
        retry_after: Option<Duration>,
    ) -> Self {
        let (code, message, genuine) = match serde_json::from_slice::<Body>(body) {
            Ok(Body { code, message }) => {
                let (code, message) = unwrap_grpc(code, message);
                (code, message, true)
            }
            Err(_) => (Code::of_status(status), first_words(body, status), false),
        };
        Self::Refused { method, status, code, message, genuine, retry_after }
    }

    /// What is to be done about it.
    #[must_use]
    pub fn meaning(&self) -> Meaning {
        let Self::Refused { status, code, message, genuine, .. } = self else { return Meaning::TryAgain };
        let says = |text: &str| *genuine && message.contains(text);
        if says("unregistered runner")
            || says("runner has been removed")
            || *genuine && *code == Code::Unauthenticated
        {
            Meaning::Unregistered
        } else if says("log file has been archived") {
            Meaning::LogSealed
        } else if says("invalid runner for task") || says("resource does not exist") {
            Meaning::TaskLost
        } else if *genuine && *code == Code::AlreadyExists {
            Meaning::LogSealed
        } else if *status == 413 {
            Meaning::TooLarge
        } else {
            Meaning::TryAgain
        }
    }

    /// How long the server wants to be left alone, at most a minute.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => retry_after.map(|wait| wait.min(Duration::from_secs(60))),
            _ => None,
        }
    }
}

/// Takes `rpc error: code = AlreadyExists desc = log file has been archived` apart.
fn unwrap_grpc(code: Code, message: String) -> (Code, String) {
    let Some(behind) = message.strip_prefix("rpc error: code = ") else { return (code, message) };
    let Some((name, text)) = behind.split_once(" desc = ") else { return (code, message) };
    match Code::named(name) {
        Some(real) => (real, text.to_owned()),
        None => (code, message),
    }
}

/// What a page that is no error of Connect says, in a few words.
fn first_words(body: &[u8], status: u16) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(4096)]);
    if text.trim_start().starts_with('<') {
        let title = text.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>"));
        return match title {
            Some((title, _)) => format!("a page titled {:?}", title.trim()),
            None => "a page of HTML".to_owned(),
        };
    }
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    if line.is_empty() { format!("no text, HTTP status {status}") } else { line.chars().take(200).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(server: &str, name: &str) -> Vec<u8> {
        let path = format!("{}/tests/data/recorded/{server}/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn refused(status: u16, body: &[u8]) -> Error {
        Error::refused("UpdateLog", status, body, None)
    }

    #[test]
    fn what_real_servers_said_is_understood() {
        for (server, name, meaning) in [
            ("gitea-1.26-dev", "e01-fetch-unregistered.res", Meaning::Unregistered),
            ("gitea-1.26-dev", "e02-fetch-wrong-token.res", Meaning::Unregistered),
            ("gitea-1.27-like", "e01-fetch-unregistered.res", Meaning::Unregistered),
            ("gitea-1.27-like", "e02-fetch-wrong-token.res", Meaning::Unregistered),
            ("gitea-1.27-like", "e07-log-new-row-after-seal.res", Meaning::LogSealed),
            ("gitea-1.27-like", "e08-log-unknown-task.res", Meaning::TaskLost),
            ("gitea-1.27-like", "e09-task-unknown.res", Meaning::TaskLost),
            ("gitea-1.27-like", "e11-task-empty.res", Meaning::TryAgain),
        ] {
            assert_eq!(refused(500, &recorded(server, name)).meaning(), meaning, "{server}/{name}");
        }
    }

    #[test]
    fn genuine_codes_are_understood_as_well() {
        let error = refused(401, br#"{"code":"unauthenticated","message":"unregistered runner"}"#);
        assert_eq!(error.meaning(), Meaning::Unregistered);
        let error = refused(409, br#"{"code":"already_exists","message":"log file has been archived"}"#);
        assert_eq!(error.meaning(), Meaning::LogSealed);
        let error = refused(
            500,
            br#"{"code":"unknown","message":"rpc error: code = Internal desc = invalid runner for task"}"#,
        );
        assert_eq!(error.meaning(), Meaning::TaskLost);
        assert_eq!(error.to_string(), "UpdateLog: internal (HTTP 500): invalid runner for task");
        let error = refused(500, br#"{"code":"made_up","message":"x"}"#);
        assert_eq!(error.meaning(), Meaning::TryAgain);
    }

    #[test]
    fn a_proxy_in_front_is_no_verdict_of_gitea() {
        let page = b"<html><head><title>502 Bad Gateway</title></head></html>";
        let error = refused(502, page);
        assert_eq!(error.meaning(), Meaning::TryAgain);
        assert!(error.to_string().contains("502 Bad Gateway"), "{error}");
        assert_eq!(refused(401, b"<html>log in</html>").meaning(), Meaning::TryAgain);
        assert_eq!(refused(413, page).meaning(), Meaning::TooLarge);
        assert_eq!(
            refused(404, &recorded("gitea-1.27-like", "e14-unknown-method.res")).meaning(),
            Meaning::TryAgain
        );
        assert_eq!(
            refused(503, b"").to_string(),
            "UpdateLog: unavailable (HTTP 503): no text, HTTP status 503"
        );
    }
}

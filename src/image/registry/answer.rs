//! What a registry answers, read up to a limit, and as an error where it cannot be gone on with.

use reqwest::{Response, StatusCode, Url};

use super::auth::{self, Challenge};
use super::location::shown;
use super::{Error, Registry};
use crate::http;
use crate::image::source::MAX_DOCUMENT;

/// The most that is read of an answer that is no manifest, in bytes.
pub(super) const MAX_ANSWER: usize = 64 * 1024;

impl Registry {
    pub(super) fn unreachable(&self, what: &str, url: &Url, error: &reqwest::Error) -> Error {
        let mut why = reason(error);
        if url.scheme() == "https" && error.is_connect() {
            why.push_str("; if this registry speaks plain HTTP, say so with --plain-http");
        }
        Error::Unreachable { what: what.to_owned(), url: shown(url), why }
    }

    pub(super) async fn refused(&self, what: &str, url: &Url, answer: Response) -> Error {
        let status = answer.status().as_u16();
        let challenge = Challenge::read(answer.headers());
        let words = words(answer).await;
        let why = auth::explain(status, challenge.as_ref(), self.credentials.as_ref(), &words);
        Error::Refused { what: what.to_owned(), url: shown(url), why }
    }

    /// An answer that cannot be gone on with, as an error.
    pub(super) async fn failure(&self, what: &str, url: &Url, answer: Response) -> Error {
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

/// The innermost reason of a network error, without URL.
pub(super) fn reason(error: &reqwest::Error) -> String {
    let inner = http::innermost(error);
    if error.is_timeout() { format!("timed out ({inner})") } else { inner }
}

/// What is wrong with the body of an answer.
pub(super) fn at_fault(what: &str, url: &Url, why: String) -> Error {
    Error::Answer { what: what.to_owned(), url: shown(url), why, status: 0 }
}

/// Reads a document of at most [`MAX_DOCUMENT`] bytes.
pub(super) async fn document(what: &str, url: &Url, answer: Response) -> Result<Vec<u8>, Error> {
    let limit = usize::try_from(MAX_DOCUMENT).unwrap_or(usize::MAX);
    read(answer, limit).await.map_err(|why| at_fault(what, url, why))
}

/// The same of a document in JSON.
pub(super) async fn json<T: serde::de::DeserializeOwned>(
    what: &str,
    url: &Url,
    answer: Response,
) -> Result<T, Error> {
    let document = document(what, url, answer).await?;
    serde_json::from_slice(&document).map_err(|error| at_fault(what, url, error.to_string()))
}

/// Reads a body up to a limit.
pub(super) async fn read(answer: Response, limit: usize) -> Result<Vec<u8>, String> {
    http::body(answer, limit, reason).await
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
pub(super) async fn words(answer: Response) -> String {
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

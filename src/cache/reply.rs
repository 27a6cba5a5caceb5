//! Requests and responses: bodies that are files, JSON, and queries.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body as _, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{
    ACCEPT_RANGES, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE,
};
use hyper::{Response, StatusCode};
use serde_json::Value;

use super::store;

/// The most that is read of a question, in bytes.
const MAX_QUESTION: usize = 1 << 20;
/// How much of a file is held at a time, in bytes.
const PIECE: usize = 128 * 1024;

/// A body of a response.
pub(super) enum Body {
    Text(Option<Bytes>),
    File { file: File, left: u64 },
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Poll::Ready(match self.get_mut() {
            Self::Text(text) => text.take().map(|text| Ok(Frame::data(text))),
            Self::File { left: 0, .. } => None,
            Self::File { file, left } => {
                let mut piece = vec![0; PIECE.min(usize::try_from(*left).unwrap_or(PIECE))];
                Some(file.read_exact(&mut piece).map(|()| {
                    *left -= piece.len() as u64;
                    Frame::data(Bytes::from(piece))
                }))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Text(None) | Self::File { left: 0, .. })
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Self::File { left, .. } => SizeHint::with_exact(*left),
        }
    }
}

/// Why a request gets no other answer.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub(super) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "there is nothing here")
    }

    /// In the form that both the REST clients and the Twirp clients read.
    pub(super) fn response(&self) -> Response<Body> {
        let code = match self.status {
            StatusCode::UNAUTHORIZED => "unauthenticated",
            StatusCode::FORBIDDEN => "permission_denied",
            StatusCode::NOT_FOUND => "not_found",
            StatusCode::CONFLICT => "already_exists",
            status if status.is_client_error() => "invalid_argument",
            _ => "internal",
        };
        json(self.status, &serde_json::json!({"code": code, "msg": self.message, "message": self.message}))
    }
}

impl From<store::Error> for Refusal {
    fn from(error: store::Error) -> Self {
        let status = match &error {
            store::Error::Exists { .. } => StatusCode::CONFLICT,
            store::Error::Wrong(_) | store::Error::TooLarge { .. } => StatusCode::BAD_REQUEST,
            store::Error::NoUpload(_) => StatusCode::NOT_FOUND,
            store::Error::Io { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!("cache: {error}");
        }
        Self::new(status, error.to_string())
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        tracing::error!("cache: {error}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

pub(super) type Answer = Result<Response<Body>, Refusal>;

/// A response without a body.
pub(super) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::Text(None));
    *response.status_mut() = status;
    response
}

/// A response in JSON.
pub(super) fn json(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::Text(Some(Bytes::from(value.to_string()))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    response
}

/// A file, or the part of it that `Range` asks for.
pub(super) fn file(path: &Path, headers: &HeaderMap, head: bool) -> Answer {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Refusal::not_found()),
        other => other?,
    };
    let length = file.metadata()?.len();
    let range = headers.get(RANGE).and_then(|value| value.to_str().ok()).and_then(|text| range(text, length));
    let (start, end) = range.unwrap_or((0, length));
    file.seek(SeekFrom::Start(start))?;
    let left = end - start;
    let mut response = Response::new(if head { Body::Text(None) } else { Body::File { file, left } });
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(left));
    if range.is_some() {
        if let Ok(value) = HeaderValue::from_str(&format!("bytes {start}-{}/{length}", end - 1)) {
            headers.insert(CONTENT_RANGE, value);
        }
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// First byte and the one behind the last, of `bytes=A-B`; what cannot be understood is not followed.
fn range(text: &str, length: u64) -> Option<(u64, u64)> {
    let (start, end) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (start, end) = if start.is_empty() {
        (length.saturating_sub(end.parse().ok()?), length)
    } else {
        let end = if end.is_empty() { length } else { end.parse::<u64>().ok()?.saturating_add(1) };
        (start.parse().ok()?, end.min(length))
    };
    (start < end).then_some((start, end))
}

/// The next piece of a body.
pub(super) async fn next(body: &mut Incoming) -> Option<Result<Bytes, Refusal>> {
    loop {
        let frame = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await?;
        match frame.map(Frame::into_data) {
            Ok(Ok(bytes)) => return Some(Ok(bytes)),
            // Trailers.
            Ok(Err(_)) => {}
            Err(error) => return Some(Err(Refusal::new(StatusCode::BAD_REQUEST, error.to_string()))),
        }
    }
}

/// A body that is a question in JSON; an empty one is an empty object.
pub(super) async fn question(body: &mut Incoming) -> Result<Value, Refusal> {
    let text = text(body).await?;
    if text.is_empty() {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    serde_json::from_slice(&text)
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, format!("no JSON: {error}")))
}

/// A small body.
pub(super) async fn text(body: &mut Incoming) -> Result<Vec<u8>, Refusal> {
    let mut text = Vec::new();
    while let Some(piece) = next(body).await {
        text.extend_from_slice(&piece?);
        if text.len() > MAX_QUESTION {
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "the question is too long"));
        }
    }
    Ok(text)
}

/// A field of a question in the spelling of its protocol (`restore_keys`) or of JSON (`restoreKeys`).
pub(super) fn field<'q>(question: &'q Value, name: &str) -> Option<&'q Value> {
    if let Some(value) = question.get(name) {
        return Some(value);
    }
    let mut camel = String::new();
    for part in name.split('_') {
        let mut letters = part.chars();
        match letters.next() {
            Some(first) if !camel.is_empty() => camel.extend(first.to_uppercase()),
            Some(first) => camel.push(first),
            None => {}
        }
        camel.push_str(letters.as_str());
    }
    question.get(camel)
}

/// A text of a question; empty where there is none.
pub(super) fn text_field<'q>(question: &'q Value, name: &str) -> &'q str {
    field(question, name).and_then(Value::as_str).unwrap_or_default()
}

/// A number of a question, which may be written as a text.
pub(super) fn number_field(question: &Value, name: &str) -> Option<u64> {
    let value = field(question, name)?;
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// The token of `Authorization: Bearer`.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The value of a parameter of the query, percent-decoded; empty where there is none.
pub(super) fn parameter(query: Option<&str>, name: &str) -> String {
    let pairs = query.unwrap_or_default().split('&');
    let found = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).find(|(key, _)| *key == name);
    found.map_or_else(String::new, |(_, value)| decode(&value.replace('+', " ")))
}

/// A text as part of an address.
pub(crate) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Undoes percent encoding.
pub(crate) fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = (*first == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(range("bytes=0-3", 10), Some((0, 4)));
        assert_eq!(range("bytes=4-", 10), Some((4, 10)));
        assert_eq!(range("bytes=-3", 10), Some((7, 10)));
        assert_eq!(range("bytes=8-100", 10), Some((8, 10)));
        for wrong in ["bytes=10-", "bytes=3-2", "0-3", "bytes=x-"] {
            assert_eq!(range(wrong, 10), None, "{wrong}");
        }
    }

    #[test]
    fn parameters_and_fields() {
        assert_eq!(parameter(Some("keys=a%2Cb%20c+d&version=v"), "keys"), "a,b c d");
        assert_eq!(parameter(Some("a=1"), "b"), "");
        let question = serde_json::json!({"restoreKeys": ["a"], "size_bytes": "12"});
        assert!(field(&question, "restore_keys").is_some());
        assert_eq!(number_field(&question, "size_bytes"), Some(12));
    }
}

//! Talking to the services of a job: JSON, and files that are streamed both ways.

use std::fs::File;
use std::future::Future;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Bytes;
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;

use crate::http;

use super::{STOPPED, Stop};

/// How much of a file is held at a time, in bytes.
const PIECE: usize = 128 * 1024;
/// How often a question is asked before it is given up.
const TRIES: u32 = 5;
/// The most that is read of an answer which is no file, in bytes.
const MAX_ANSWER: usize = 16 << 20;
/// How long a service may say nothing.
const SILENCE: Duration = Duration::from_secs(120);

/// A client that waits for its answers.
#[derive(Debug)]
pub(super) struct Http {
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
    stop: Stop,
}

/// An answer to a question.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) const fn is_success(&self) -> bool {
        self.status >= 200 && self.status < 300
    }

    /// The body as JSON; null where it is none.
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// What the service says of a failure.
    pub(super) fn reason(&self) -> String {
        let json = self.json();
        let said = ["message", "msg"].into_iter().find_map(|key| json[key].as_str().map(str::to_owned));
        let text = said.unwrap_or_else(|| String::from_utf8_lossy(&self.body).into_owned());
        let text: String = text.trim().chars().take(300).collect();
        format!("{}{}{text}", self.status, if text.is_empty() { "" } else { ": " })
    }
}

/// A file that was downloaded.
#[derive(Debug)]
pub(super) struct Came {
    /// Bytes.
    pub(super) size: u64,
    /// Its type, as the service says.
    pub(super) kind: Option<String>,
    /// Its name, as the service says; without folders.
    pub(super) name: Option<String>,
    /// The path of the address that it came from in the end.
    pub(super) path: String,
}

/// A part of a file as a body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'p> {
    pub(super) path: &'p Path,
    pub(super) start: u64,
    pub(super) length: u64,
}

/// A question, which can be asked again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question<'q> {
    pub(super) method: &'q Method,
    pub(super) url: &'q str,
    /// Sent as `Authorization: Bearer`; empty for none.
    pub(super) token: &'q str,
    pub(super) headers: &'q [(&'static str, String)],
    /// A body, and its type.
    pub(super) text: Option<(&'static str, &'q str)>,
    pub(super) part: Option<Part<'q>>,
    /// An internal error of the server is no last word.
    pub(super) patient: bool,
}

impl<'q> Question<'q> {
    pub(super) const fn new(method: &'q Method, url: &'q str, token: &'q str) -> Self {
        Self { method, url, token, headers: &[], text: None, part: None, patient: false }
    }

    /// Asked again after an internal error, too.
    pub(super) const fn patient(self) -> Self {
        Self { patient: true, ..self }
    }

    /// With a body in JSON.
    pub(super) const fn json(self, text: &'q str) -> Self {
        Self { text: Some(("application/json", text)), ..self }
    }
}

impl Http {
    /// A client for this service. What is on this host is never asked by a proxy.
    pub(super) fn new(base: &str, insecure: bool, stop: &Stop) -> Result<Self, String> {
        let no_proxy = reqwest::Url::parse(base).is_ok_and(|url| {
            let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
        });
        let options = http::Options {
            insecure,
            timeout: None,
            follow_redirects: true,
            no_proxy,
            ca: Vec::new(),
            socks: None,
        };
        let client = http::client(&options).map_err(|error| format!("no HTTP client: {error}"))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("no HTTP client: {error}"))?;
        Ok(Self { runtime, client, stop: stop.clone() })
    }

    fn wait<T>(&self, future: impl Future<Output = Result<T, String>>) -> Result<T, String> {
        self.runtime.block_on(async {
            tokio::select! {
                done = future => done,
                () = self.stop.wait() => Err(STOPPED.to_owned()),
            }
        })
    }

    /// Asks, and again where the service cannot answer now.
    pub(super) fn ask(&self, question: &Question<'_>) -> Result<Answer, String> {
        self.wait(async {
            let response = self.send(question).await?;
            let status = response.status().as_u16();
            Ok(Answer { status, body: read(response).await? })
        })
    }

    async fn send(&self, question: &Question<'_>) -> Result<Response, String> {
        let mut wait = Duration::from_millis(500);
        let mut tries = TRIES;
        loop {
            tries -= 1;
            let request = self.request(question)?;
            // A body of many megabytes takes as long as it takes.
            let request = if question.part.is_none() { request.timeout(SILENCE) } else { request };
            match request.send().await {
                Ok(response) if tries == 0 || !is_passing(response.status(), question.patient) => {
                    return Ok(response);
                }
                Err(error) if tries == 0 => return Err(explain(question.url, &error)),
                Ok(_) | Err(_) => {}
            }
            tokio::time::sleep(wait).await;
            wait = wait.saturating_mul(2);
        }
    }

    fn request(&self, question: &Question<'_>) -> Result<RequestBuilder, String> {
        let mut request = self.client.request(question.method.clone(), question.url);
        if !question.token.is_empty() {
            request = request.bearer_auth(question.token);
        }
        for (name, value) in question.headers {
            request = request.header(*name, value);
        }
        if let Some((kind, text)) = question.text {
            request = request.header("content-type", kind).body(text.to_owned());
        }
        if let Some(part) = question.part {
            let stream = Stream::open(part).map_err(|error| format!("{}: {error}", part.path.display()))?;
            request = request.header("content-length", part.length).body(Body::wrap_stream(stream));
        }
        Ok(request)
    }

    /// Writes the answer to a file; gives how many bytes came. What is not there, or cannot be had, is an error.
    pub(super) fn download(&self, question: &Question<'_>, file: &Path) -> Result<Came, String> {
        let mut tries = 3;
        loop {
            tries -= 1;
            match self.wait(self.download_once(question, file)) {
                Err(_) if tries > 0 && !self.stop.is_due() => {
                    std::thread::sleep(Duration::from_millis(300));
                }
                done => return done,
            }
        }
    }

    async fn download_once(&self, question: &Question<'_>, path: &Path) -> Result<Came, String> {
        // Whole, however long it takes: silence is what ends it.
        let mut response =
            self.request(question)?.send().await.map_err(|error| explain(question.url, &error))?;
        if !response.status().is_success() {
            let answer = Answer { status: response.status().as_u16(), body: read(response).await? };
            return Err(format!("the service answered {}", answer.reason()));
        }
        let named = |error: io::Error| format!("{}: {error}", path.display());
        let mut file = File::create(path).map_err(named)?;
        let expected = response.content_length();
        let header = |name: &str| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let kind = header("content-type");
        let file_name = header("content-disposition").and_then(|text| file_name(&text));
        let url_path = response.url().path().to_owned();
        let mut count = 0;
        loop {
            let piece = tokio::time::timeout(SILENCE, response.chunk());
            let piece = piece.await.map_err(|_| "the service fell silent".to_owned())?;
            let Some(piece) = piece.map_err(|error| explain(question.url, &error))? else { break };
            file.write_all(&piece).map_err(named)?;
            count += piece.len() as u64;
        }
        match expected {
            Some(expected) if expected != count => Err(format!("{count} of {expected} bytes have come")),
            _ => Ok(Came { size: count, kind, name: file_name, path: url_path }),
        }
    }
}

fn is_passing(status: StatusCode, patient: bool) -> bool {
    (patient && status == StatusCode::INTERNAL_SERVER_ERROR)
        || matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT
        )
}

/// The name of a file in `Content-Disposition`, without folders.
fn file_name(text: &str) -> Option<String> {
    let parameter = |wanted: &str| {
        text.split(';').skip(1).find_map(|part| {
            let (name, value) = part.split_once('=')?;
            name.trim()
                .eq_ignore_ascii_case(wanted)
                .then(|| value.trim().trim_matches(['"', '\'']).to_owned())
        })
    };
    let full = parameter("filename*").and_then(|value| {
        let encoded = value.get(..7).filter(|head| head.eq_ignore_ascii_case("utf-8''"))?;
        Some(crate::cache::decode(&value[encoded.len()..]))
    });
    let name = full.or_else(|| parameter("filename"))?;
    let name = name.rsplit(['/', '\\']).next().unwrap_or_default();
    (!name.is_empty() && name != "." && name != "..").then(|| name.to_owned())
}

/// What went wrong at an address, whose query may hold a signature and is left out.
fn at(url: &str, words: &str) -> String {
    format!("{}: {words}", url.split('?').next().unwrap_or(url))
}

fn explain(url: &str, error: &reqwest::Error) -> String {
    at(url, &words(error))
}

fn words(error: &reqwest::Error) -> String {
    if error.is_timeout() { "no answer in time".to_owned() } else { http::innermost(error) }
}

async fn read(response: Response) -> Result<Vec<u8>, String> {
    let url = response.url().as_str().to_owned();
    http::body(response, MAX_ANSWER, words).await.map_err(|why| at(&url, &why))
}

/// A part of a file, read piece by piece.
struct Stream {
    file: File,
    left: u64,
}

impl Stream {
    fn open(part: Part<'_>) -> io::Result<Self> {
        let mut file = File::open(part.path)?;
        file.seek(SeekFrom::Start(part.start))?;
        Ok(Self { file, left: part.length })
    }
}

impl futures_core::Stream for Stream {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let mut piece = vec![0; PIECE.min(usize::try_from(self.left).unwrap_or(PIECE))];
        let read = self.file.read_exact(&mut piece);
        self.left -= piece.len() as u64;
        Poll::Ready(Some(read.map(|()| Bytes::from(piece))))
    }
}

/// A text as part of a query.
pub(super) use crate::cache::encode;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_are_had_without_folders() {
        let name = |text: &str| file_name(text).unwrap_or_default();
        assert_eq!(name("attachment; filename=\"a b.txt\""), "a b.txt");
        assert_eq!(name("attachment; filename=x; filename*=UTF-8''%C3%B6.txt"), "ö.txt");
        assert_eq!(name("attachment; filename=../../etc/passwd"), "passwd");
        assert_eq!(name("attachment; filename=.."), "");
        assert_eq!(name("inline"), "");
    }
}

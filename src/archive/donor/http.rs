//! Files on HTTP servers, by ranges: of 289 MB only the missing two are fetched.

use std::io::{self, Read, Write};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, RANGE};
use reqwest::{Response, StatusCode};

use super::{Donor, Parts, Stream, odd};
use crate::http;

/// How long a server may say nothing.
const SILENCE: Duration = Duration::from_secs(60);
/// How often a connection that broke is made again within one part.
const ATTEMPTS: u32 = 4;
/// The first part that is asked for, in bytes.
const PROBE: u64 = 16 * 1024;

/// A client with its runtime, for code that blocks.
#[derive(Clone)]
pub(super) struct Client {
    runtime: Rc<tokio::runtime::Runtime>,
    client: reqwest::Client,
}

impl Client {
    pub(super) fn new() -> Result<Self, String> {
        let options = http::Options { timeout: None, follow_redirects: true, ..Default::default() };
        let client = http::client(&options).map_err(|error| http::innermost(&error))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| format!("a runtime for HTTP: {error}"))?;
        Ok(Self { runtime: Rc::new(runtime), client })
    }

    fn wait<T>(&self, work: impl Future<Output = reqwest::Result<T>>) -> Result<T, String> {
        self.runtime.block_on(async {
            match tokio::time::timeout(SILENCE, work).await {
                Ok(result) => result.map_err(|error| http::innermost(&error)),
                Err(_) => Err(format!("nothing came for {} s", SILENCE.as_secs())),
            }
        })
    }

    /// Asks for a whole resource as it is stored, or for a part of it.
    pub(super) fn get(&self, url: &str, part: Option<(u64, u64)>) -> Result<Response, String> {
        let request = self.client.get(url);
        let request = match part {
            Some((from, length)) => request.header(RANGE, format!("bytes={from}-{}", from + length - 1)),
            None => request.header(ACCEPT_ENCODING, "identity"),
        };
        self.wait(request.send())
    }

    pub(super) fn body(&self, response: Response) -> Body {
        Body { client: self.clone(), response, held: Bytes::new() }
    }
}

/// The URL as it is shown: without what follows the path.
pub(super) fn shown(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or(url)
}

/// A response's body, for code that blocks.
pub(super) struct Body {
    client: Client,
    response: Response,
    held: Bytes,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.held.is_empty() {
            match self.client.wait(self.response.chunk()).map_err(odd)? {
                Some(bytes) => self.held = bytes,
                None => return Ok(0),
            }
        }
        let take = self.held.len().min(buffer.len());
        let taken = self.held.split_to(take);
        if let Some(room) = buffer.get_mut(..take) {
            room.copy_from_slice(&taken);
        }
        Ok(take)
    }
}

pub(super) fn open(client: Client, url: &str) -> Result<Donor, String> {
    let because = |why: String| format!("{}: {why}", shown(url));
    let response = client.get(url, Some((0, PROBE))).map_err(because)?;
    let headers = response.headers();
    match response.status() {
        StatusCode::PARTIAL_CONTENT => {
            let size =
                total(headers).ok_or_else(|| because("it does not say how large the file is".to_owned()))?;
            let etag = headers.get(ETAG).cloned();
            Ok(Donor::Parts(Box::new(Http { client, url: url.to_owned(), size, etag })))
        }
        StatusCode::OK => {
            let size = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
            let size = size.ok_or_else(|| because("it does not say how large the file is".to_owned()))?;
            let body = client.body(response);
            Ok(Donor::Stream(Box::new(Sequential {
                name: format!("{} (as a whole: it knows no ranges)", shown(url)),
                size,
                body,
            })))
        }
        status => Err(because(format!("the server says {status}"))),
    }
}

/// The size in `bytes 0-99/12345`.
fn total(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_RANGE)?.to_str().ok()?.rsplit_once('/')?.1.trim().parse().ok()
}

struct Http {
    client: Client,
    url: String,
    size: u64,
    etag: Option<reqwest::header::HeaderValue>,
}

impl Http {
    /// Writes what one request gives; how much that was, and what ended it.
    fn once(&self, from: u64, length: u64, sink: &mut dyn Write) -> (u64, Result<(), Ended>) {
        let response = match self.client.get(&self.url, Some((from, length))) {
            Ok(response) => response,
            Err(why) => return (0, Err(Ended::Broken(why))),
        };
        let begins = response.headers().get(CONTENT_RANGE).and_then(|value| {
            value.to_str().ok()?.trim().strip_prefix("bytes ")?.split_once('-')?.0.parse::<u64>().ok()
        });
        if response.status().is_server_error() {
            return (0, Err(Ended::Broken(format!("the server says {}", response.status()))));
        }
        if response.status() != StatusCode::PARTIAL_CONTENT || begins != Some(from) {
            let why =
                format!("the server says {} instead of the range that was asked for", response.status());
            return (0, Err(Ended::Wrong(why)));
        }
        if total(response.headers()) != Some(self.size) || response.headers().get(ETAG) != self.etag.as_ref()
        {
            return (0, Err(Ended::Wrong("the file changed while it was fetched".to_owned())));
        }
        let mut body = self.client.body(response).take(length);
        let mut buffer = vec![0; 64 * 1024];
        let mut done = 0;
        while done < length {
            let read = match body.read(&mut buffer) {
                Ok(0) => return (done, Err(Ended::Broken("the connection ended too early".to_owned()))),
                Ok(read) => read,
                Err(error) => return (done, Err(Ended::Broken(error.to_string()))),
            };
            if let Err(error) = sink.write_all(buffer.get(..read).unwrap_or_default()) {
                return (done, Err(Ended::Wrong(error.to_string())));
            }
            done += read as u64;
        }
        (done, Ok(()))
    }
}

enum Ended {
    /// Another try may do.
    Broken(String),
    /// It will not.
    Wrong(String),
}

impl Parts for Http {
    fn name(&self) -> String {
        shown(&self.url).to_owned()
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn copy(&mut self, mut from: u64, mut length: u64, sink: &mut dyn Write) -> Result<(), String> {
        let mut attempt = 0;
        while length > 0 {
            let (done, ended) = self.once(from, length, sink);
            from += done;
            length -= done;
            attempt = if done > 0 { 0 } else { attempt + 1 };
            match ended {
                Ok(()) => {}
                Err(Ended::Broken(why)) if attempt >= ATTEMPTS => {
                    return Err(format!("{}: {why}", self.name()));
                }
                Err(Ended::Broken(_)) => std::thread::sleep(Duration::from_millis(250) * attempt),
                Err(Ended::Wrong(why)) => return Err(format!("{}: {why}", self.name())),
            }
        }
        Ok(())
    }
}

struct Sequential {
    name: String,
    size: u64,
    body: Body,
}

impl Read for Sequential {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.body.read(buffer)
    }
}

impl Stream for Sequential {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn finish(&mut self) -> Result<(), String> {
        Ok(())
    }
}

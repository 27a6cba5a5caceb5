//! A small HTTP front before a registry: answers some requests itself, passes the rest on, breaks on demand, and
//! remembers what it saw. One request per connection, which keeps it simple.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request as it came in, body left out.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    /// Of the body, as far as the head tells it.
    pub(crate) length: usize,
    /// Only where there is no registry behind.
    pub(crate) body: Vec<u8>,
}

impl Seen {
    /// Whether it carries bytes of a layer: some of a long one, or all of a short one. Configurations here are shorter.
    pub(crate) fn carries_layer(&self) -> bool {
        let is_whole = self.method == "PUT" && self.path.contains("/uploads/") && self.length > 1000;
        self.method == "PATCH" || is_whole
    }
}

/// What to do with a request.
pub(crate) enum Do {
    /// Hand it to the registry behind.
    Pass,
    /// Hand it on and cut the connection after so many bytes of its body.
    CutAfter(usize),
    /// Hand it on and replace this in the head of the answer.
    Rewrite(String, String),
    /// Hand it on, the body only after so long.
    PassSlowly(Duration),
    /// Hand it on with one byte of the body changed.
    Damage,
    /// Take it and end the connection without an answer.
    Hang,
    /// Answer: status line, headers, body.
    Answer(u16, Vec<(&'static str, String)>, Vec<u8>),
}

/// Decides by request.
pub(crate) type Rule = dyn Fn(&Seen) -> Do + Send + Sync;

/// The front, listening until the test process ends.
pub(crate) struct Front {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Front {
    /// Starts it before `behind`, or before nothing.
    pub(crate) fn start(
        behind: Option<SocketAddr>,
        rule: impl Fn(&Seen) -> Do + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let rule: Arc<Rule> = Arc::new(rule);
        let remembered = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (rule, seen) = (Arc::clone(&rule), Arc::clone(&remembered));
                std::thread::spawn(move || {
                    let Ok(client) = stream.try_clone() else { return };
                    // A client or a registry that goes away is part of the tests. What still reads from the client
                    // must not keep the connection open then.
                    if serve(stream, behind, &*rule, &seen).is_err() {
                        let _ = client.shutdown(std::net::Shutdown::Both);
                    }
                });
            }
        });
        Self { address, seen }
    }

    /// Everything that came in so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// How many requests had this method and a path with this in it.
    pub(crate) fn count(&self, method: &str, part: &str) -> usize {
        self.seen().iter().filter(|seen| seen.method == method && seen.path.contains(part)).count()
    }

    /// How many requests carried bytes of layers.
    pub(crate) fn carried(&self) -> usize {
        self.seen().iter().filter(|seen| seen.carries_layer()).count()
    }
}

fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(head)
}

/// The head with `Connection: close` instead of what it says.
fn close_after(head: &[u8]) -> String {
    let text = String::from_utf8_lossy(head);
    let mut lines: VecDeque<&str> = text
        .trim_end()
        .split("\r\n")
        .filter(|line| !line.to_ascii_lowercase().starts_with("connection:"))
        .collect();
    lines.push_back("Connection: close");
    lines.make_contiguous().join("\r\n") + "\r\n\r\n"
}

fn serve(
    mut client: TcpStream,
    behind: Option<SocketAddr>,
    rule: &Rule,
    all: &Mutex<Vec<Seen>>,
) -> io::Result<()> {
    let head = read_head(&mut client)?;
    let text = String::from_utf8_lossy(&head).into_owned();
    let mut words = text.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut seen = Seen {
        method: method.to_owned(),
        path: path.to_owned(),
        authorization: header(&text, "authorization").map(str::to_owned),
        length: header(&text, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0),
        body: Vec::new(),
    };
    if behind.is_none() {
        seen.body = drain(&mut client, &text);
    }
    all.lock().unwrap().push(seen.clone());
    let act = rule(&seen);
    let damage = matches!(act, Do::Damage);
    let wait = if let Do::PassSlowly(wait) = act { wait } else { Duration::ZERO };
    let (limit, rewrite) = match act {
        Do::Answer(status, headers, body) => {
            // The body of the request is read to its end, or the close would reset the connection.
            if behind.is_some() {
                drain(&mut client, &text);
            }
            let mut answer = format!(
                "HTTP/1.1 {status} Status\r\nConnection: close\r\nContent-Length: {}\r\n",
                body.len()
            );
            for (name, value) in headers {
                answer.push_str(&format!("{name}: {value}\r\n"));
            }
            client.write_all(format!("{answer}\r\n").as_bytes())?;
            if seen.method != "HEAD" {
                client.write_all(&body)?;
            }
            return client.shutdown(std::net::Shutdown::Write);
        }
        Do::Pass | Do::Damage => (usize::MAX, None),
        Do::PassSlowly(_) => (usize::MAX, None),
        Do::Hang => return client.shutdown(std::net::Shutdown::Both),
        Do::CutAfter(limit) => (limit, None),
        Do::Rewrite(from, to) => (usize::MAX, Some((from, to))),
    };
    let mut server =
        TcpStream::connect(behind.expect("a request for the registry, and there is none behind"))?;
    server.write_all(close_after(&head).as_bytes())?;
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    let up = std::thread::spawn(move || {
        std::thread::sleep(wait);
        let mut left = limit;
        let mut buffer = [0; 16 * 1024];
        while left > 0 {
            match from.read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(count) => {
                    let count = count.min(left);
                    left -= count;
                    if damage && count > 5000 {
                        // Well inside of a chunk.
                        buffer[count / 2] ^= 1;
                    }
                    if to.write_all(&buffer[..count]).is_err() {
                        return;
                    }
                }
            }
        }
        let _ = (from.shutdown(std::net::Shutdown::Both), to.shutdown(std::net::Shutdown::Both));
    });
    let head = String::from_utf8_lossy(&read_head(&mut server)?).into_owned();
    let head = match &rewrite {
        Some((from, to)) => head.replace(from, to),
        None => head,
    };
    client.write_all(head.as_bytes())?;
    io::copy(&mut server, &mut client)?;
    client.shutdown(std::net::Shutdown::Write)?;
    let _ = up.join();
    Ok(())
}

fn header<'h>(head: &'h str, wanted: &str) -> Option<&'h str> {
    head.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case(wanted).then(|| value.trim())
    })
}

/// Reads a body, of known length or in chunks, which are put together.
fn drain(client: &mut TcpStream, head: &str) -> Vec<u8> {
    let length = header(head, "content-length").and_then(|length| length.parse::<usize>().ok());
    let mut body = Vec::new();
    if let Some(length) = length {
        // A client that goes away is part of the tests.
        let _ = client.take(length as u64).read_to_end(&mut body);
    } else if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        while let Some(size) = chunk_size(client) {
            let before = body.len();
            if client.take(size as u64).read_to_end(&mut body).is_err() || body.len() - before < size {
                break;
            }
            let mut end = [0; 2];
            if client.read_exact(&mut end).is_err() || size == 0 {
                break;
            }
        }
    }
    body
}

fn chunk_size(client: &mut TcpStream) -> Option<usize> {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\r\n") {
        client.read_exact(&mut byte).ok()?;
        line.push(byte[0]);
    }
    usize::from_str_radix(std::str::from_utf8(&line).ok()?.trim(), 16).ok()
}

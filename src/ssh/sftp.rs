//! Files on the far side: SFTP version 3 (draft-ietf-secsh-filexfer-02), as every sshd speaks it.
//!
//! Reads and writes keep many requests on their way, so that a slow line costs its delay once and not for each piece.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use russh::ChannelStream;
use russh::client::Msg;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::Error;

/// How much is asked for at once, in bytes: what every server must take.
const PIECE: u32 = 32 << 10;
/// How many requests are on their way.
const REQUESTS: usize = 32;
/// The largest answer that is read, in bytes.
const LARGEST: u32 = 512 << 10;

const INIT: u8 = 1;
const VERSION: u8 = 2;
const OPEN: u8 = 3;
const CLOSE: u8 = 4;
const READ: u8 = 5;
const WRITE: u8 = 6;
const REMOVE: u8 = 13;
const MKDIR: u8 = 14;
const RMDIR: u8 = 15;
const REALPATH: u8 = 16;
const STAT: u8 = 17;
const RENAME: u8 = 18;
const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
const NAME: u8 = 104;
const ATTRS: u8 = 105;

const FOR_READING: u32 = 0x01;
const FOR_WRITING: u32 = 0x02 | 0x08 | 0x10;
const HAS_SIZE: u32 = 0x01;
const HAS_OWNER: u32 = 0x02;
const HAS_MODE: u32 = 0x04;
const HAS_TIMES: u32 = 0x08;

const OK: u32 = 0;
const END_OF_FILE: u32 = 1;
const NO_SUCH_FILE: u32 = 2;

/// An SFTP session. One thing at a time; a method that was not waited for to its end leaves it unusable.
pub struct Sftp {
    stream: ChannelStream<Msg>,
    host: String,
    last_id: u32,
}

/// What kind of file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// Something else.
    Other,
}

/// What the far side says of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// In bytes.
    pub size: u64,
    /// What it is.
    pub kind: FileKind,
    /// When it was last changed, in seconds since 1970.
    pub modified: u32,
}

struct Answer {
    kind: u8,
    id: u32,
    body: Vec<u8>,
}

impl Sftp {
    pub(super) async fn start(stream: ChannelStream<Msg>, host: String) -> Result<Self, Error> {
        let mut sftp = Self { stream, host, last_id: 0 };
        sftp.send(INIT, &3_u32.to_be_bytes()).await?;
        let answer = sftp.answer().await?;
        // Version 3 servers of all kinds answer 3 or more, and then speak 3.
        if answer.kind != VERSION || answer.id < 3 {
            return Err(sftp.odd("the session"));
        }
        Ok(sftp)
    }

    /// Reads `length` bytes from `offset` on, fewer if the file ends before that, all if `length` is `None`. `sink` gets
    /// them in order, in pieces of at most 32 KiB. Returns how many there were.
    ///
    /// # Errors
    /// If the file cannot be read, or with what `sink` says.
    pub async fn read(
        &mut self,
        path: &str,
        offset: u64,
        length: Option<u64>,
        mut sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<u64, Error> {
        let handle = self.open(path, FOR_READING, 0o600).await?;
        let read = self.read_open(path, &handle, offset, length, &mut sink).await;
        let closed = self.close(path, &handle).await;
        let read = read?;
        closed?;
        Ok(read)
    }

    async fn read_open(
        &mut self,
        path: &str,
        handle: &[u8],
        offset: u64,
        length: Option<u64>,
        sink: &mut impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<u64, Error> {
        let end = length.map_or(u64::MAX, |length| offset.saturating_add(length));
        let mut next = offset;
        let mut given = offset;
        let mut over = false;
        // In the order in which the file wants them; answers may come in any.
        let mut waiting: VecDeque<(u32, u64, u32)> = VecDeque::new();
        let mut come: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        let mut failed: Option<Error> = None;
        loop {
            while !over && failed.is_none() && waiting.len() < REQUESTS && next < end {
                let want = u32::try_from(end - next).unwrap_or(PIECE).min(PIECE);
                let id = self.ask_read(handle, next, want).await?;
                waiting.push_back((id, next, want));
                next += u64::from(want);
            }
            if waiting.is_empty() {
                break;
            }
            let answer = self.answer().await?;
            if !waiting.iter().any(|(id, ..)| *id == answer.id) {
                return Err(self.odd(path));
            }
            match answer.kind {
                DATA => drop(come.insert(answer.id, self.string(path, &answer.body)?.to_vec())),
                STATUS if self.status(path, &answer.body)? == END_OF_FILE => {
                    over = true;
                    come.insert(answer.id, Vec::new());
                }
                // The rest of what is on its way must be taken, or the session is of no use any more.
                STATUS => {
                    failed = self.check(path, &answer.body).err().or(failed);
                    come.insert(answer.id, Vec::new());
                }
                _ => return Err(self.odd(path)),
            }
            while let Some(&(id, at, want)) = waiting.front() {
                let Some(bytes) = come.remove(&id) else { break };
                waiting.pop_front();
                if bytes.len() > want as usize {
                    return Err(self.odd(path));
                }
                if bytes.is_empty() || failed.is_some() {
                    over = true;
                    continue;
                }
                // A gap: what comes after it was read too far.
                if at != given {
                    continue;
                }
                if let Err(source) = sink(&bytes) {
                    failed = Some(Error::Local { what: "what was read cannot be written", source });
                    continue;
                }
                given += bytes.len() as u64;
                let missing = want - bytes.len() as u32;
                if missing > 0 {
                    // Fewer than asked for: ask for the rest, before all others.
                    let id = self.ask_read(handle, given, missing).await?;
                    waiting.push_front((id, given, missing));
                    break;
                }
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(given - offset),
        }
    }

    async fn ask_read(&mut self, handle: &[u8], offset: u64, length: u32) -> Result<u32, Error> {
        let mut body = Vec::with_capacity(handle.len() + 16);
        put(&mut body, handle);
        body.extend(offset.to_be_bytes());
        body.extend(length.to_be_bytes());
        self.request(READ, &body).await
    }

    /// Writes a file: made if it is not there (with these permissions), emptied if it is. `source` fills the buffer and
    /// says how much it put there; 0 is the end. Returns how many bytes were written.
    ///
    /// # Errors
    /// If the file cannot be written, or with what `source` says.
    pub async fn write(
        &mut self,
        path: &str,
        mode: u32,
        mut source: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> Result<u64, Error> {
        let handle = self.open(path, FOR_WRITING, mode).await?;
        let written = self.write_open(path, &handle, &mut source).await;
        let closed = self.close(path, &handle).await;
        let written = written?;
        closed?;
        Ok(written)
    }

    async fn write_open(
        &mut self,
        path: &str,
        handle: &[u8],
        source: &mut impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> Result<u64, Error> {
        let mut buffer = vec![0; PIECE as usize];
        let (mut offset, mut under_way, mut over) = (0_u64, 0_usize, false);
        let mut failed = None;
        loop {
            while !over && failed.is_none() && under_way < REQUESTS {
                match source(&mut buffer) {
                    Ok(0) => over = true,
                    Ok(count) => {
                        let mut body = Vec::with_capacity(handle.len() + count + 16);
                        put(&mut body, handle);
                        body.extend(offset.to_be_bytes());
                        put(&mut body, &buffer[..count]);
                        self.request(WRITE, &body).await?;
                        offset += count as u64;
                        under_way += 1;
                    }
                    Err(source) => {
                        failed = Some(Error::Local { what: "what is to be sent cannot be read", source })
                    }
                }
            }
            if under_way == 0 {
                break;
            }
            let answer = self.answer().await?;
            under_way -= 1;
            if answer.kind != STATUS {
                return Err(self.odd(path));
            }
            if let Err(error) = self.check(path, &answer.body) {
                failed.get_or_insert(error);
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(offset),
        }
    }

    /// What the far side says of a file; links are followed.
    ///
    /// # Errors
    /// If it is not there ([`Error::is_missing`]) or cannot be looked at.
    pub async fn status_of(&mut self, path: &str) -> Result<Status, Error> {
        let answer = self.simple(STAT, path, &[]).await?;
        if answer.kind != ATTRS {
            return Err(self.unwanted(path, &answer));
        }
        let mut body = answer.body.as_slice();
        let mut attributes = || {
            let flags = take_u32(&mut body)?;
            let size = if flags & HAS_SIZE != 0 { take_u64(&mut body)? } else { 0 };
            if flags & HAS_OWNER != 0 {
                take_u64(&mut body)?;
            }
            let mode = if flags & HAS_MODE != 0 { take_u32(&mut body)? } else { 0 };
            let modified = if flags & HAS_TIMES != 0 {
                take_u32(&mut body)?;
                take_u32(&mut body)?
            } else {
                0
            };
            let kind = match mode & 0o170_000 {
                0o100_000 => FileKind::File,
                0o040_000 => FileKind::Directory,
                _ => FileKind::Other,
            };
            Some(Status { size, kind, modified })
        };
        attributes().ok_or_else(|| self.odd(path))
    }

    /// The absolute form of a path there; `.` is the user's home directory.
    ///
    /// # Errors
    /// If the far side cannot tell.
    pub async fn absolute(&mut self, path: &str) -> Result<String, Error> {
        let answer = self.simple(REALPATH, path, &[]).await?;
        if answer.kind != NAME {
            return Err(self.unwanted(path, &answer));
        }
        let mut body = answer.body.as_slice();
        let name = take_u32(&mut body).filter(|count| *count > 0).and_then(|_| take(&mut body));
        name.map(|name| String::from_utf8_lossy(name).into_owned()).ok_or_else(|| self.odd(path))
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// If it is there already or cannot be made.
    pub async fn make_directory(&mut self, path: &str, mode: u32) -> Result<(), Error> {
        let mut attributes = HAS_MODE.to_be_bytes().to_vec();
        attributes.extend(mode.to_be_bytes());
        let answer = self.simple(MKDIR, path, &attributes).await?;
        self.done(path, &answer)
    }

    /// Removes a file.
    ///
    /// # Errors
    /// If it is not there or may not be removed.
    pub async fn remove(&mut self, path: &str) -> Result<(), Error> {
        let answer = self.simple(REMOVE, path, &[]).await?;
        self.done(path, &answer)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// If it is not there, not empty, or may not be removed.
    pub async fn remove_directory(&mut self, path: &str) -> Result<(), Error> {
        let answer = self.simple(RMDIR, path, &[]).await?;
        self.done(path, &answer)
    }

    /// Gives a file another name. In version 3 the new name must be free.
    ///
    /// # Errors
    /// If the far side cannot or will not.
    pub async fn rename(&mut self, from: &str, to: &str) -> Result<(), Error> {
        let mut second = Vec::new();
        put(&mut second, to.as_bytes());
        let answer = self.simple(RENAME, from, &second).await?;
        self.done(from, &answer)
    }

    async fn open(&mut self, path: &str, how: u32, mode: u32) -> Result<Vec<u8>, Error> {
        let mut rest = how.to_be_bytes().to_vec();
        rest.extend(HAS_MODE.to_be_bytes());
        rest.extend(mode.to_be_bytes());
        let answer = self.simple(OPEN, path, &rest).await?;
        match answer.kind {
            HANDLE => Ok(self.string(path, &answer.body)?.to_vec()),
            _ => Err(self.unwanted(path, &answer)),
        }
    }

    async fn close(&mut self, path: &str, handle: &[u8]) -> Result<(), Error> {
        let mut body = Vec::new();
        put(&mut body, handle);
        self.request(CLOSE, &body).await?;
        let answer = self.answer().await?;
        self.done(path, &answer)
    }

    /// A request about one path, and its answer.
    async fn simple(&mut self, kind: u8, path: &str, rest: &[u8]) -> Result<Answer, Error> {
        let mut body = Vec::with_capacity(path.len() + rest.len() + 4);
        put(&mut body, path.as_bytes());
        body.extend(rest);
        let id = self.request(kind, &body).await?;
        let answer = self.answer().await?;
        if answer.id == id { Ok(answer) } else { Err(self.odd(path)) }
    }

    async fn request(&mut self, kind: u8, body: &[u8]) -> Result<u32, Error> {
        self.last_id = self.last_id.wrapping_add(1);
        let id = self.last_id;
        let mut all = Vec::with_capacity(body.len() + 4);
        all.extend(id.to_be_bytes());
        all.extend(body);
        self.send(kind, &all).await?;
        Ok(id)
    }

    async fn send(&mut self, kind: u8, body: &[u8]) -> Result<(), Error> {
        let length = u32::try_from(body.len() + 1).map_err(|_| self.odd("a request"))?;
        let mut packet = Vec::with_capacity(body.len() + 5);
        packet.extend(length.to_be_bytes());
        packet.push(kind);
        packet.extend(body);
        let sent = async {
            self.stream.write_all(&packet).await?;
            self.stream.flush().await
        };
        sent.await.map_err(|error| self.lost(&error))
    }

    async fn answer(&mut self) -> Result<Answer, Error> {
        let length = self.stream.read_u32().await.map_err(|error| self.lost(&error))?;
        if !(5..=LARGEST).contains(&length) {
            return Err(self.odd("an answer"));
        }
        let mut packet = vec![0; length as usize];
        self.stream.read_exact(&mut packet).await.map_err(|error| self.lost(&error))?;
        let mut rest = &packet[1..];
        let id = take_u32(&mut rest).unwrap_or(0);
        Ok(Answer { kind: packet[0], id, body: packet.split_off(5) })
    }

    fn string<'a>(&self, path: &str, mut body: &'a [u8]) -> Result<&'a [u8], Error> {
        take(&mut body).ok_or_else(|| self.odd(path))
    }

    fn status(&self, path: &str, mut body: &[u8]) -> Result<u32, Error> {
        take_u32(&mut body).ok_or_else(|| self.odd(path))
    }

    /// An answer that can only be a status.
    fn done(&self, path: &str, answer: &Answer) -> Result<(), Error> {
        if answer.kind == STATUS { self.check(path, &answer.body) } else { Err(self.odd(path)) }
    }

    /// A status in the place of what was asked for.
    fn unwanted(&self, path: &str, answer: &Answer) -> Error {
        self.done(path, answer).err().unwrap_or_else(|| self.odd(path))
    }

    fn check(&self, path: &str, mut body: &[u8]) -> Result<(), Error> {
        let code = self.status(path, body)?;
        if code == OK {
            return Ok(());
        }
        let _ = take_u32(&mut body);
        let said = take(&mut body).map(|text| String::from_utf8_lossy(text).into_owned()).unwrap_or_default();
        let message = match code {
            NO_SUCH_FILE => "there is no such file".to_owned(),
            3 => "permission denied".to_owned(),
            code if said.is_empty() => format!("SFTP error {code}"),
            _ => said,
        };
        Err(Error::Remote {
            host: self.host.clone(),
            path: path.to_owned(),
            message,
            missing: code == NO_SUCH_FILE,
        })
    }

    fn odd(&self, path: &str) -> Error {
        Error::Remote {
            host: self.host.clone(),
            path: path.to_owned(),
            message: "the answer is not that of an SFTP server (does the login shell print something?)"
                .to_owned(),
            missing: false,
        }
    }

    fn lost(&self, error: &io::Error) -> Error {
        Error::Lost { host: self.host.clone(), message: format!("SFTP: {error}") }
    }
}

fn put(body: &mut Vec<u8>, text: &[u8]) {
    // Paths and pieces are far below 4 GiB.
    body.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    body.extend(text);
}

fn take_u32(body: &mut &[u8]) -> Option<u32> {
    let (head, rest) = body.split_first_chunk::<4>()?;
    *body = rest;
    Some(u32::from_be_bytes(*head))
}

fn take_u64(body: &mut &[u8]) -> Option<u64> {
    let (head, rest) = body.split_first_chunk::<8>()?;
    *body = rest;
    Some(u64::from_be_bytes(*head))
}

fn take<'a>(body: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take_u32(body)? as usize;
    let (head, rest) = body.split_at_checked(length)?;
    *body = rest;
    Some(head)
}

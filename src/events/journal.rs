//! The journal: a job's events on disk, appended by the job process and read while it is written.
//!
//! # Format
//!
//! The file begins with the eight bytes `SOWERJNL` and the format's version as a little-endian `u32` (now 1). Records
//! follow: length of the body (`u32`), CRC-32 of the body (`u32`), body. The body's first byte is its kind: 1 is a
//! row (microseconds as `i64`, then its text in UTF-8), 2 is any other event as JSON. All integers are little-endian.
//!
//! A record is there when its length and checksum say so. What a power cut leaves behind the last whole record is
//! no record; [`Writer::resume`] cuts it off.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{Event, Sink, Timestamp};

/// The version of the format that this program writes. It reads this version only.
pub const VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"SOWERJNL";
const FILE_HEADER: usize = MAGIC.len() + 4;
const RECORD_HEADER: usize = 8;
/// No event is larger: summaries and outputs are limited to 1 MiB, which JSON may escape sixfold.
const MAX_BODY: usize = 8 * 1024 * 1024;
const KIND_ROW: u8 = 1;
const KIND_JSON: u8 = 2;
/// How much is written, and read, at once.
const CHUNK: usize = 64 * 1024;

/// Why a journal could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system said no.
    #[error("{}: {source}", path.display())]
    Io {
        /// The journal.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not a journal.
    #[error("{}: not a journal of sower", path.display())]
    NotAJournal {
        /// The file.
        path: PathBuf,
    },
    /// Another version of sower wrote it.
    #[error("{}: the journal has format {found}, this sower ({}) reads format {VERSION}; use the version that wrote it", path.display(), crate::VERSION)]
    Version {
        /// The journal.
        path: PathBuf,
        /// The version found.
        found: u32,
    },
    /// A record is damaged.
    #[error("{}: damaged at byte {offset}", path.display())]
    Damaged {
        /// The journal.
        path: PathBuf,
        /// Where the damaged record begins.
        offset: u64,
    },
}

/// Appends events to a journal. Dropping it writes what is still buffered.
#[derive(Debug)]
pub struct Writer {
    file: File,
    buffer: Vec<u8>,
}

impl Writer {
    /// Begins a journal in a file that must not exist yet; mode 0600.
    ///
    /// # Errors
    /// When the file exists or cannot be written.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let mut file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path).map_err(io)?;
        let mut header = Vec::with_capacity(FILE_HEADER);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        file.write_all(&header).map_err(io)?;
        Ok(Self { file, buffer: Vec::with_capacity(CHUNK) })
    }

    /// Goes on with a journal whose writer is gone: cuts off what is behind the last whole record and appends.
    ///
    /// # Errors
    /// When the file is no journal of this version or cannot be written.
    pub fn resume(path: &Path) -> Result<Self, Error> {
        let mut reader = Reader::open(path)?;
        loop {
            match reader.next_event() {
                Ok(Some(_)) => {}
                Ok(None) | Err(Error::Damaged { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        let io = |source| Error::Io { path: path.to_owned(), source };
        let file = OpenOptions::new().append(true).open(path).map_err(io)?;
        file.set_len(reader.position()).map_err(io)?;
        Ok(Self { file, buffer: Vec::with_capacity(CHUNK) })
    }

    /// Waits until everything written so far is on the disk.
    ///
    /// # Errors
    /// When the disk says no.
    pub fn sync(&mut self) -> io::Result<()> {
        self.flush()?;
        self.file.sync_data()
    }

    /// A second handle on the file, for a thread that syncs it while this one writes.
    ///
    /// # Errors
    /// When no file descriptor is left.
    pub fn sync_handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

impl Sink for Writer {
    fn emit(&mut self, event: &Event) -> io::Result<()> {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0; RECORD_HEADER]);
        if let Event::Row { time, text } = event {
            self.buffer.push(KIND_ROW);
            self.buffer.extend_from_slice(&time.as_micros().to_le_bytes());
            self.buffer.extend_from_slice(text.as_bytes());
        } else {
            self.buffer.push(KIND_JSON);
            serde_json::to_writer(&mut self.buffer, event)?;
        }
        let body = start + RECORD_HEADER;
        let length = self.buffer.len() - body;
        if length > MAX_BODY {
            self.buffer.truncate(start);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an event of more than 8 MiB"));
        }
        let checksum = crc32fast::hash(&self.buffer[body..]);
        #[expect(clippy::cast_possible_truncation, reason = "at most MAX_BODY")]
        let length = (length as u32).to_le_bytes();
        self.buffer[start..start + 4].copy_from_slice(&length);
        self.buffer[start + 4..body].copy_from_slice(&checksum.to_le_bytes());
        if self.buffer.len() >= CHUNK { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        // A short write (full disk) leaves a torn record behind; the bytes not written stay here for the next try.
        while !self.buffer.is_empty() {
            match self.file.write(&self.buffer) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.buffer.drain(..written);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Whoever needs to know has called `flush` or `sync` before.
        let _ = self.flush();
    }
}

/// Reads the events of a journal, also while it is being written.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
    /// How much of the buffer has been given out.
    used: usize,
    /// Where in the file the buffer's unused part begins.
    position: u64,
}

impl Reader {
    /// Opens a journal at its first event.
    ///
    /// # Errors
    /// When the file cannot be read, is no journal, or has another version. A file that ends inside its first 12
    /// bytes is [`Error::NotAJournal`]; a writer that has just begun may still be on its way there.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(io)?;
        let mut header = [0; FILE_HEADER];
        match file.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(Error::NotAJournal { path: path.to_owned() });
            }
            Err(error) => return Err(io(error)),
        }
        if !header.starts_with(MAGIC) {
            return Err(Error::NotAJournal { path: path.to_owned() });
        }
        let found = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        if found != VERSION {
            return Err(Error::Version { path: path.to_owned(), found });
        }
        Ok(Self { path: path.to_owned(), file, buffer: Vec::new(), used: 0, position: FILE_HEADER as u64 })
    }

    /// The byte at which the next event begins; [`Reader::seek`] takes it.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// Goes back to the first event.
    ///
    /// # Errors
    /// When the file cannot be positioned.
    pub fn rewind(&mut self) -> Result<(), Error> {
        self.seek(FILE_HEADER as u64)
    }

    /// Goes to a position that [`Reader::position`] gave, now or in an earlier process.
    ///
    /// # Errors
    /// When the file cannot be positioned.
    pub fn seek(&mut self, position: u64) -> Result<(), Error> {
        self.file
            .seek(SeekFrom::Start(position))
            .map_err(|source| Error::Io { path: self.path.clone(), source })?;
        self.buffer.clear();
        self.used = 0;
        self.position = position;
        Ok(())
    }

    /// The next event, or `None` when no whole one is there (yet): call again later.
    ///
    /// # Errors
    /// When the file cannot be read or the record is damaged. A damaged record is damaged at every further call.
    pub fn next_event(&mut self) -> Result<Option<Event>, Error> {
        if !self.fill(RECORD_HEADER)? {
            return Ok(None);
        }
        let header = &self.buffer[self.used..self.used + RECORD_HEADER];
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let checksum = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        if length == 0 || length > MAX_BODY {
            return Err(self.damaged());
        }
        if !self.fill(RECORD_HEADER + length)? {
            return Ok(None);
        }
        let body = &self.buffer[self.used + RECORD_HEADER..self.used + RECORD_HEADER + length];
        if crc32fast::hash(body) != checksum {
            return Err(self.damaged());
        }
        let Some(event) = decode(body) else { return Err(self.damaged()) };
        self.used += RECORD_HEADER + length;
        self.position += (RECORD_HEADER + length) as u64;
        Ok(Some(event))
    }

    fn damaged(&self) -> Error {
        Error::Damaged { path: self.path.clone(), offset: self.position }
    }

    /// Sees that `wanted` unused bytes are in the buffer; false when the file does not have them.
    fn fill(&mut self, wanted: usize) -> Result<bool, Error> {
        while self.buffer.len() - self.used < wanted {
            self.buffer.drain(..self.used);
            self.used = 0;
            let before = self.buffer.len();
            self.buffer.resize(before + CHUNK.max(wanted - before), 0);
            let read = loop {
                match self.file.read(&mut self.buffer[before..]) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    other => break other,
                }
            };
            self.buffer.truncate(before + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => {
                    // A large event is over: give its memory back.
                    if self.buffer.is_empty() {
                        self.buffer.shrink_to(CHUNK);
                    }
                    return Ok(false);
                }
                Ok(_) => {}
                Err(source) => return Err(Error::Io { path: self.path.clone(), source }),
            }
        }
        Ok(true)
    }
}

fn decode(body: &[u8]) -> Option<Event> {
    let (&kind, rest) = body.split_first()?;
    match kind {
        KIND_ROW => {
            let (time, text) = rest.split_first_chunk::<8>()?;
            let text = std::str::from_utf8(text).ok()?.to_owned();
            Some(Event::Row { time: Timestamp::from_micros(i64::from_le_bytes(*time)), text })
        }
        KIND_JSON => serde_json::from_slice(rest).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Conclusion, StepInfo};

    fn row(text: &str) -> Event {
        Event::Row { time: Timestamp::from_micros(1_700_000_000_123_456), text: text.to_owned() }
    }

    fn all() -> Vec<Event> {
        let time = Timestamp::from_micros(5);
        vec![
            Event::JobStarted {
                time,
                version: "1".to_owned(),
                steps: vec![StepInfo { id: "0".to_owned(), name: "one".to_owned() }],
            },
            row("before"),
            Event::StepStarted { time, step: 0 },
            row(""),
            row("Grüße 🌱"),
            Event::StepEnded { time, step: 0, outcome: Conclusion::Failure, conclusion: Conclusion::Success },
            Event::Summary { step: 0, markdown: "# x".to_owned() },
            Event::Output { name: "a".to_owned(), value: "b\nc".to_owned() },
            Event::JobEnded { time, conclusion: Conclusion::Success },
        ]
    }

    fn read_all(path: &Path) -> Vec<Event> {
        let mut reader = Reader::open(path).unwrap();
        std::iter::from_fn(|| reader.next_event().unwrap()).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut writer = Writer::create(&path).unwrap();
        for event in all() {
            writer.emit(&event).unwrap();
        }
        writer.sync().unwrap();
        assert_eq!(read_all(&path), all());
    }

    #[test]
    fn it_can_be_read_while_it_is_written_at_any_byte() {
        let dir = tempfile::tempdir().unwrap();
        let whole = dir.path().join("whole");
        let mut writer = Writer::create(&whole).unwrap();
        for event in all() {
            writer.emit(&event).unwrap();
        }
        drop(writer);
        let bytes = std::fs::read(&whole).unwrap();

        let growing = dir.path().join("growing");
        std::fs::write(&growing, &bytes[..FILE_HEADER]).unwrap();
        let mut reader = Reader::open(&growing).unwrap();
        let mut file = OpenOptions::new().append(true).open(&growing).unwrap();
        let mut seen = Vec::new();
        for byte in &bytes[FILE_HEADER..] {
            file.write_all(&[*byte]).unwrap();
            while let Some(event) = reader.next_event().unwrap() {
                seen.push(event);
            }
        }
        assert_eq!(seen, all());
    }

    #[test]
    fn a_torn_end_is_no_event_and_is_cut_off_on_resume() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut writer = Writer::create(&path).unwrap();
        writer.emit(&row("whole")).unwrap();
        writer.emit(&row("torn by a power cut")).unwrap();
        drop(writer);
        let length = std::fs::metadata(&path).unwrap().len();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 3).unwrap();
        assert_eq!(read_all(&path), vec![row("whole")]);

        let mut writer = Writer::resume(&path).unwrap();
        writer.emit(&row("after")).unwrap();
        drop(writer);
        assert_eq!(read_all(&path), vec![row("whole"), row("after")]);
    }

    #[test]
    fn a_flipped_bit_is_found_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut writer = Writer::create(&path).unwrap();
        writer.emit(&row("first")).unwrap();
        writer.flush().unwrap();
        let second = std::fs::metadata(&path).unwrap().len();
        writer.emit(&row("second")).unwrap();
        drop(writer);
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let mut reader = Reader::open(&path).unwrap();
        assert_eq!(reader.next_event().unwrap(), Some(row("first")));
        assert!(matches!(reader.next_event(), Err(Error::Damaged { offset, .. }) if offset == second));
    }

    #[test]
    fn other_files_and_other_versions_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        std::fs::write(&path, b"#!/bin/sh\nexit 0\n").unwrap();
        assert!(matches!(Reader::open(&path), Err(Error::NotAJournal { .. })));
        std::fs::write(&path, b"SOWERJNL\x02\0\0\0").unwrap();
        let error = Reader::open(&path).unwrap_err().to_string();
        assert!(error.contains("format 2"), "{error}");
    }

    #[test]
    fn reading_goes_on_where_it_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut writer = Writer::create(&path).unwrap();
        for number in 0..10_000 {
            writer.emit(&row(&format!("row {number}"))).unwrap();
        }
        drop(writer);
        let mut reader = Reader::open(&path).unwrap();
        for _ in 0..7000 {
            reader.next_event().unwrap().unwrap();
        }
        let mut later = Reader::open(&path).unwrap();
        later.seek(reader.position()).unwrap();
        assert_eq!(later.next_event().unwrap(), Some(row("row 7000")));
    }
}

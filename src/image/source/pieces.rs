//! Readers of a part of a source.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Take};
use std::ops::Range;
use std::sync::Arc;

use super::unpack;

/// What pieces are read from.
pub(super) enum Reel {
    File(File),
    Packed(Box<unpack::Reel>),
}

/// Pieces of a tar, one after the other.
pub(super) struct Pieces {
    reel: Reel,
    /// Where the tar begins.
    base: u64,
    ranges: Arc<[Range<u64>]>,
    next: usize,
    left: u64,
}

impl Pieces {
    /// The ranges count from `base`, where the tar begins.
    pub(super) fn new(reel: Reel, base: u64, ranges: Arc<[Range<u64>]>) -> Self {
        Self { reel, base, ranges, next: 0, left: 0 }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 {
            let Some(range) = self.ranges.get(self.next) else { return Ok(0) };
            self.next += 1;
            self.left = range.end - range.start;
            match &mut self.reel {
                Reel::File(file) => {
                    file.seek(SeekFrom::Start(self.base + range.start))?;
                }
                Reel::Packed(reel) => reel.go_to(self.base + range.start)?,
            }
        }
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = match &mut self.reel {
            Reel::File(file) => file.read(&mut buffer[..want])?,
            Reel::Packed(reel) => reel.read(&mut buffer[..want])?,
        };
        if count == 0 && want > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// Exactly so many bytes, or `UnexpectedEof`.
pub(super) struct Exact<R> {
    inner: Take<R>,
}

impl<R: Read> Exact<R> {
    pub(super) fn new(inner: R, size: u64) -> Self {
        Self { inner: inner.take(size) }
    }
}

impl<R: Read> Read for Exact<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if count == 0 && !buffer.is_empty() && self.inner.limit() > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(count)
    }
}

//! Compressed archives: gzip and zstd, read from the front as often as needed.
//!
//! A decompressor cannot go back, but several can stand at different places: what was left off by one reader is
//! taken up by the next that wants something further on.

use std::fs::File;
use std::io::{self, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::bufread::MultiGzDecoder;

use super::tape::skip_by_reading;
use crate::image::digest::Hasher;

/// The largest zstd window that is followed: 2^25 bytes. What `zstd -19` writes needs 2^23.
const MAX_WINDOW_LOG: u32 = 25;
/// Readers that wait to be taken up again.
const MAX_PARKED: usize = 3;

/// How an archive or a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// gzip, of one member or several.
    Gzip,
    /// zstd, of one frame or several.
    Zstd,
}

impl Codec {
    /// By its first bytes.
    pub(crate) fn of(magic: &[u8]) -> Option<Self> {
        match magic {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            _ => None,
        }
    }

    /// As people say it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// A decompressor over any source.
pub(super) enum Decoder<R: Read> {
    Gzip(Box<MultiGzDecoder<BufReader<R>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, BufReader<R>>>),
}

impl<R: Read> Decoder<R> {
    pub(super) fn new(codec: Codec, source: R) -> io::Result<Self> {
        let buffered = BufReader::with_capacity(128 * 1024, source);
        Ok(match codec {
            Codec::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(buffered))),
            Codec::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered)?;
                decoder.window_log_max(MAX_WINDOW_LOG)?;
                Self::Zstd(Box::new(decoder))
            }
        })
    }
}

/// A decompressor that is given the compressed bytes, of one layer, and hashes the plain ones.
pub(crate) enum Unpacker {
    Gzip(Box<flate2::write::MultiGzDecoder<Hasher>>),
    Zstd(Box<zstd::stream::write::Decoder<'static, Hasher>>),
}

impl Unpacker {
    pub(crate) fn new(codec: Codec, plain: Hasher) -> io::Result<Self> {
        Ok(match codec {
            Codec::Gzip => Self::Gzip(Box::new(flate2::write::MultiGzDecoder::new(plain))),
            Codec::Zstd => {
                let mut decoder = zstd::stream::write::Decoder::new(plain)?;
                decoder.window_log_max(MAX_WINDOW_LOG)?;
                Self::Zstd(Box::new(decoder))
            }
        })
    }

    pub(crate) fn write(&mut self, packed: &[u8]) -> io::Result<()> {
        match self {
            Self::Gzip(decoder) => decoder.write_all(packed),
            Self::Zstd(decoder) => decoder.write_all(packed),
        }
    }

    /// What hashed the plain bytes, once all are there.
    pub(crate) fn finish(self) -> io::Result<Hasher> {
        match self {
            Self::Gzip(decoder) => decoder.finish(),
            Self::Zstd(mut decoder) => {
                decoder.flush()?;
                Ok(decoder.into_inner())
            }
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// A decompressor that stands at some byte of the plain tar.
struct Cursor {
    decoder: Decoder<File>,
    position: u64,
}

/// A compressed archive whose plain bytes can be read from any place on.
#[derive(Debug, Clone)]
pub(super) struct Packed {
    path: PathBuf,
    pub(super) codec: Codec,
    parked: Arc<Parked>,
}

#[derive(Default)]
struct Parked(Mutex<Vec<Cursor>>);

impl std::fmt::Debug for Parked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Parked")
    }
}

impl Packed {
    pub(super) fn new(path: &Path, codec: Codec) -> Self {
        Self { path: path.to_owned(), codec, parked: Arc::default() }
    }

    /// A reader that stands at `offset` of the plain bytes.
    pub(super) fn at(&self, offset: u64) -> io::Result<Reel> {
        let mut cursor = {
            let mut parked = self.parked.0.lock().unwrap_or_else(PoisonError::into_inner);
            let best = (0..parked.len())
                .filter(|at| parked[*at].position <= offset)
                .max_by_key(|at| parked[*at].position);
            best.map(|at| parked.swap_remove(at))
        };
        if cursor.is_none() {
            let decoder = Decoder::new(self.codec, File::open(&self.path)?)?;
            cursor = Some(Cursor { decoder, position: 0 });
        }
        let mut reel = Reel { cursor, parked: Arc::clone(&self.parked) };
        reel.go_to(offset)?;
        Ok(reel)
    }
}

/// A reader of plain bytes. Gives its decompressor back when dropped, so that the next one goes on there.
pub(super) struct Reel {
    cursor: Option<Cursor>,
    parked: Arc<Parked>,
}

impl Reel {
    /// Goes forward.
    pub(super) fn go_to(&mut self, offset: u64) -> io::Result<()> {
        let Some(cursor) = &mut self.cursor else { return Ok(()) };
        let ahead = offset.checked_sub(cursor.position).ok_or(io::ErrorKind::InvalidInput)?;
        skip_by_reading(&mut cursor.decoder, ahead)?;
        cursor.position = offset;
        Ok(())
    }
}

impl Read for Reel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(cursor) = &mut self.cursor else { return Ok(0) };
        let count = cursor.decoder.read(buffer)?;
        cursor.position += count as u64;
        Ok(count)
    }
}

impl Drop for Reel {
    fn drop(&mut self) {
        let mut parked = self.parked.0.lock().unwrap_or_else(PoisonError::into_inner);
        if parked.len() < MAX_PARKED {
            parked.extend(self.cursor.take());
        }
    }
}

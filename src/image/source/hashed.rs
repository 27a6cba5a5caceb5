//! A tape that hashes what is read of it, in pieces whose borders are found while it is read.
//!
//! To which piece an entry of a tar belongs is known when its headers have been read, and BLAKE3 is quick where it gets
//! long runs of bytes: a layer has thousands of short entries. So bytes stay in the reader's buffer until it is used up or a
//! piece ends, and are hashed together.

use std::io::{self, BufRead, Read};

use super::tape::Tape;

/// See the module's text. Each entry is announced with [`begin`](Self::begin) and then given to a piece with
/// [`keep`](Self::keep).
pub(super) struct HashedTape<R> {
    inner: R,
    /// Bytes of the buffer that were read.
    taken: usize,
    /// Bytes of it that were hashed, or are not to be.
    hashed: usize,
    /// Where in it the entry begins whose piece is not known yet.
    entry: Entry,
    piece: blake3::Hasher,
}

#[derive(Clone, Copy)]
enum Entry {
    /// The piece is known.
    Known,
    /// So many bytes after the buffer's begin.
    At(usize),
    /// In a buffer that is gone; what is before it was hashed.
    Before,
}

impl<R: BufRead> HashedTape<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, taken: 0, hashed: 0, entry: Entry::Known, piece: blake3::Hasher::new() }
    }

    /// What is read next are an entry's headers.
    pub(super) fn begin(&mut self) {
        self.entry = Entry::At(self.taken);
    }

    /// Gives the entry to the piece, its headers and what follows.
    pub(super) fn keep(&mut self, headers: &[u8]) {
        if let Entry::Before = self.entry {
            self.piece.update(headers);
            self.hashed = self.taken;
        }
        self.entry = Entry::Known;
    }

    /// The hash of what the piece has so far: all that was read, but for an entry that is not given to it.
    pub(super) fn so_far(&mut self) -> io::Result<blake3::Hash> {
        self.hash()?;
        Ok(self.piece.finalize())
    }

    /// Ends the piece before the entry and begins another one.
    pub(super) fn cut(&mut self) -> io::Result<blake3::Hash> {
        let hash = self.so_far()?;
        self.piece.reset();
        Ok(hash)
    }

    fn hash(&mut self) -> io::Result<()> {
        let end = match self.entry {
            Entry::Known => self.taken,
            Entry::At(at) => at,
            Entry::Before => return Ok(()),
        };
        // What is in the buffer is there without reading.
        self.piece.update(&self.inner.fill_buf()?[self.hashed..end]);
        self.hashed = end;
        Ok(())
    }

    /// Makes room for what comes next.
    fn turn(&mut self) -> io::Result<()> {
        self.hash()?;
        if let Entry::At(_) = self.entry {
            self.entry = Entry::Before;
        }
        self.inner.consume(self.taken);
        (self.taken, self.hashed) = (0, 0);
        Ok(())
    }
}

impl<R: BufRead> BufRead for HashedTape<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.taken > 0 && self.inner.fill_buf()?.len() == self.taken {
            self.turn()?;
        }
        Ok(&self.inner.fill_buf()?[self.taken..])
    }

    fn consume(&mut self, count: usize) {
        self.taken += count;
    }
}

impl<R: BufRead> Read for HashedTape<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl<R: BufRead> Tape for HashedTape<R> {
    fn skip(&mut self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            let there = match self.fill_buf() {
                Ok([]) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(there) => there.len(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let step = there.min(usize::try_from(count).unwrap_or(usize::MAX));
            self.consume(step);
            count -= step as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        /// However the buffer falls, a piece's hash is that of its bytes.
        #[test]
        fn pieces_are_hashed_as_if_each_stood_alone(
            capacity in 1usize..40,
            entries in proptest::collection::vec((1usize..20, 0usize..60, proptest::bool::ANY), 1..30),
        ) {
            let bytes: Vec<u8> = (0..=255u8).cycle().take(entries.iter().map(|(a, b, _)| a + b).sum()).collect();
            let mut tape = HashedTape::new(io::BufReader::with_capacity(capacity, &bytes[..]));
            let (mut at, mut from) = (0, 0);
            for (headers, body, cut) in entries {
                tape.begin();
                let mut read = vec![0; headers];
                tape.read_exact(&mut read).unwrap();
                proptest::prop_assert_eq!(tape.so_far().unwrap(), blake3::hash(&bytes[from..at]));
                if cut {
                    proptest::prop_assert_eq!(tape.cut().unwrap(), blake3::hash(&bytes[from..at]));
                    from = at;
                }
                tape.keep(&read);
                tape.skip(body as u64 / 2).unwrap();
                let end = at + headers + body / 2;
                proptest::prop_assert_eq!(tape.so_far().unwrap(), blake3::hash(&bytes[from..end]));
                tape.skip((body - body / 2) as u64).unwrap();
                at += headers + body;
            }
            tape.begin();
            proptest::prop_assert_eq!(tape.cut().unwrap(), blake3::hash(&bytes[from..]));
            proptest::prop_assert_eq!(tape.read(&mut [0]).unwrap(), 0);
        }
    }
}

//! Bytes that are hashed on another thread while they are looked into.
//!
//! What is read stands in a few blocks that both threads see, and that are filled again when both are done with
//! them: nothing is copied for the second reader.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use crate::image::Digest;
use crate::image::digest::Hasher;

/// Bytes in a block.
const BLOCK: usize = 128 * 1024;
/// Blocks that wait to be hashed.
const WAITING: usize = 3;
/// With the one that is hashed and the one that is looked into.
const BLOCKS: usize = WAITING + 2;

/// Lets `look` read `bytes` and hashes all of them, also what it left unread.
///
/// # Errors
/// When `bytes` cannot be read to their end, whatever `look` says.
pub(super) fn hashed_beside<T>(
    bytes: &mut dyn Read,
    look: impl FnOnce(&mut Shared<'_>) -> T,
) -> io::Result<(T, Digest)> {
    std::thread::scope(|scope| {
        let (hasher, blocks) = sync_channel::<Arc<Block>>(WAITING);
        let hashed = scope.spawn(move || {
            let mut hasher = Hasher::default();
            for block in blocks {
                hasher.update(block.bytes());
            }
            hasher.finish()
        });
        let mut shared = Shared { inner: bytes, hasher, blocks: VecDeque::new(), taken: 0 };
        let seen = look(&mut shared);
        let rest = shared.drain();
        drop(shared);
        let digest = hashed.join().map_err(|_| io::Error::other("the hashing stopped"))?;
        rest?;
        Ok((seen, digest))
    })
}

struct Block {
    room: Box<[u8]>,
    length: usize,
}

impl Block {
    fn bytes(&self) -> &[u8] {
        &self.room[..self.length]
    }

    /// As much as there is room for, or less at the end.
    fn fill(&mut self, source: &mut dyn Read) -> io::Result<()> {
        self.length = 0;
        while self.length < self.room.len() {
            match source.read(&mut self.room[self.length..]) {
                Ok(0) => break,
                Ok(count) => self.length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The reader's end.
pub(super) struct Shared<'a> {
    inner: &'a mut dyn Read,
    hasher: SyncSender<Arc<Block>>,
    /// The last one is looked into; the first one is the oldest.
    blocks: VecDeque<Arc<Block>>,
    /// How much of the last one was taken.
    taken: usize,
}

impl Shared<'_> {
    fn left(&self) -> &[u8] {
        self.blocks.back().map_or(&[], |block| &block.bytes()[self.taken..])
    }

    fn next(&mut self) -> io::Result<()> {
        // A block that the other thread is not done with is left to it.
        let oldest = if self.blocks.len() < BLOCKS { None } else { self.blocks.pop_front() };
        let mut block = oldest
            .and_then(Arc::into_inner)
            .unwrap_or_else(|| Block { room: vec![0; BLOCK].into_boxed_slice(), length: 0 });
        block.fill(self.inner)?;
        let block = Arc::new(block);
        // The other thread ends only when this end is dropped; if it stopped, joining it tells.
        let _ = self.hasher.send(Arc::clone(&block));
        self.blocks.push_back(block);
        self.taken = 0;
        Ok(())
    }

    fn drain(&mut self) -> io::Result<()> {
        loop {
            match self.fill_buf()?.len() {
                0 => return Ok(()),
                count => self.consume(count),
            }
        }
    }
}

impl BufRead for Shared<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left().is_empty() {
            self.next()?;
        }
        Ok(self.left())
    }

    fn consume(&mut self, count: usize) {
        self.taken += count.min(self.left().len());
    }
}

impl Read for Shared<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a few bytes at a time, then fails or ends.
    struct Drops {
        left: Vec<u8>,
        fails: bool,
    }

    impl Read for Drops {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.left.is_empty() && self.fails {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let count = self.left.len().min(buffer.len()).min(5003);
            buffer[..count].copy_from_slice(&self.left[..count]);
            self.left.drain(..count);
            Ok(count)
        }
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at * at / 7) as u8).collect()
    }

    #[test]
    fn both_see_all_bytes_and_what_is_left_unread_is_hashed() {
        for length in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 9 * BLOCK + 17] {
            for looked in [0, length / 2, length] {
                let mut source = Drops { left: bytes(length), fails: false };
                let look = |shared: &mut Shared<'_>| {
                    let mut seen = Vec::new();
                    shared.take(looked as u64).read_to_end(&mut seen).map(|_| seen)
                };
                let (seen, digest) = hashed_beside(&mut source, look).unwrap();
                assert!(seen.unwrap() == bytes(length)[..looked], "{length} {looked}");
                assert_eq!(digest, Digest::of(&bytes(length)), "{length} {looked}");
            }
        }
    }

    #[test]
    fn bytes_that_cannot_be_read_to_the_end_have_no_digest() {
        let mut source = Drops { left: bytes(3 * BLOCK), fails: true };
        assert!(hashed_beside(&mut source, |_| ()).is_err());
    }
}

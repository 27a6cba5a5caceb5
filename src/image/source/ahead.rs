//! Bytes that a thread of its own reads, some blocks ahead of whoever wants them: a decompressor keeps a core busy while
//! what it gave is hashed and looked into on another.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};

use crate::image::block::fill;

/// Bytes in a block.
const BLOCK: usize = 128 * 1024;
/// Blocks that wait to be looked into. One more is being filled, one is looked into.
const WAITING: usize = 3;

/// The looker's end. The thread stops when this is dropped.
pub(super) struct Ahead {
    /// An empty block is the end.
    filled: Receiver<io::Result<Vec<u8>>>,
    spent: Sender<Vec<u8>>,
    block: Vec<u8>,
    /// How much of the block was taken.
    taken: usize,
    is_over: bool,
    /// What was wrong with the source, which every further question is told, too.
    failed: Option<(io::ErrorKind, String)>,
}

impl Ahead {
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start(mut source: impl Read + Send + 'static) -> io::Result<Self> {
        let (give, filled) = sync_channel(WAITING);
        let (spent, empty) = channel::<Vec<u8>>();
        let run = move || {
            loop {
                let mut block = empty.try_recv().unwrap_or_default();
                let read = fill(&mut block, BLOCK, &mut source);
                let is_over = read.is_err() || block.is_empty();
                // What came before a fault comes first.
                let is_wanted =
                    block.is_empty() || read.is_ok() || give.send(Ok(std::mem::take(&mut block))).is_ok();
                if !is_wanted || give.send(read.map(|()| block)).is_err() || is_over {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("ahead".to_owned()).spawn(run)?;
        Ok(Self { filled, spent, block: Vec::new(), taken: 0, is_over: false, failed: None })
    }
}

impl BufRead for Ahead {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.taken == self.block.len() && !self.is_over {
            // The thread may be done.
            let _ = self.spent.send(std::mem::take(&mut self.block));
            self.taken = 0;
            if let Some((kind, why)) = &self.failed {
                return Err(io::Error::new(*kind, why.clone()));
            }
            let next = self.filled.recv().unwrap_or_else(|_| Err(io::Error::other("the reader stopped")));
            self.block = next.inspect_err(|error| self.failed = Some((error.kind(), error.to_string())))?;
            self.is_over = self.block.is_empty();
        }
        Ok(&self.block[self.taken..])
    }

    fn consume(&mut self, count: usize) {
        self.taken = (self.taken + count).min(self.block.len());
    }
}

impl Read for Ahead {
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
                return Err(io::ErrorKind::InvalidData.into());
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
    fn all_bytes_come_in_their_order_and_the_end_stays_the_end() {
        for length in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 9 * BLOCK + 17] {
            let mut ahead = Ahead::start(Drops { left: bytes(length), fails: false }).unwrap();
            let mut seen = Vec::new();
            ahead.read_to_end(&mut seen).unwrap();
            assert!(seen == bytes(length), "{length}");
            assert_eq!(ahead.read(&mut [0]).unwrap(), 0, "{length}");
        }
    }

    #[test]
    fn a_source_that_fails_is_no_end() {
        let mut ahead = Ahead::start(Drops { left: bytes(3 * BLOCK + 5), fails: true }).unwrap();
        let mut seen = Vec::new();
        for _ in 0..2 {
            let error = ahead.read_to_end(&mut seen).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        assert!(seen == bytes(3 * BLOCK + 5));
    }

    #[test]
    fn who_wants_no_more_stops_it() {
        struct Endless(std::sync::mpsc::Sender<()>);
        impl Read for Endless {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                Ok(buffer.len())
            }
        }
        impl Drop for Endless {
            fn drop(&mut self) {
                self.0.send(()).unwrap();
            }
        }
        let (tell, stopped) = channel();
        let mut ahead = Ahead::start(Endless(tell)).unwrap();
        ahead.read_exact(&mut [0; 10]).unwrap();
        drop(ahead);
        stopped.recv().unwrap();
    }
}

//! Reading a file here and there through one small buffer.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes read at a time where one thing after another is read.
const BUFFER: usize = 64 * 1024;
/// Bytes read at a time where the reader jumps from header to header.
const HOP: usize = 512;

/// A read-only view of a file of known size; holds at most one buffer of it.
#[derive(Debug)]
pub(super) struct Window<'a> {
    file: &'a File,
    size: u64,
    start: u64,
    held: Vec<u8>,
}

impl<'a> Window<'a> {
    pub(super) fn new(file: &'a File, size: u64) -> Self {
        Self { file, size, start: 0, held: Vec::new() }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Up to `want` bytes (at most a buffer) at `position`, for a reader that jumps; short at the file's end.
    pub(super) fn hop(&mut self, position: u64, want: usize) -> io::Result<&[u8]> {
        self.bytes(position, want, HOP)
    }

    /// Up to `want` bytes (at most a buffer) at `position`, for a reader that goes on behind them.
    pub(super) fn run(&mut self, position: u64, want: usize) -> io::Result<&[u8]> {
        self.bytes(position, want, BUFFER)
    }

    fn bytes(&mut self, position: u64, want: usize, ahead: usize) -> io::Result<&[u8]> {
        let there = self.size.saturating_sub(position).min(want.min(BUFFER) as u64) as usize;
        let held_end = self.start + self.held.len() as u64;
        if position < self.start || position + there as u64 > held_end {
            let fill = self.size.saturating_sub(position).min(there.max(ahead) as u64) as usize;
            self.held.clear();
            self.held.resize(fill, 0);
            self.start = position;
            if let Err(error) = self.file.read_exact_at(&mut self.held, position) {
                self.held.clear();
                return Err(match error.kind() {
                    io::ErrorKind::UnexpectedEof => {
                        io::Error::new(error.kind(), "it became shorter while it was read")
                    }
                    _ => error,
                });
            }
        }
        let from = (position - self.start) as usize;
        // The file's end may lie before `position`: then nothing is there.
        Ok(self.held.get(from..from + there).unwrap_or_default())
    }
}

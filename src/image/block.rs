//! Blocks of bytes out of a reader.

use std::io::{self, Read};

/// Fills `block` anew, with less than `size` bytes only at the end of the source. What it held is overwritten, and its room
/// used again. The source is asked for all that there is room for, since a decompressor copies its window with each answer.
///
/// # Errors
/// When the source fails; `block` has what came before.
pub(super) fn fill(block: &mut Vec<u8>, size: usize, source: &mut (impl Read + ?Sized)) -> io::Result<()> {
    block.resize(size, 0);
    let mut length = 0;
    let result = loop {
        match source.read(&mut block[length..]) {
            Ok(0) => break Ok(()),
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
        if length == size {
            break Ok(());
        }
    };
    block.truncate(length);
    result
}

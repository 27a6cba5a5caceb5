//! Bytes that processes print become rows: lines of valid UTF-8 of bounded length.
//!
//! Holds at most one unfinished line, and of that at most a little more than a row may have, whatever is printed.

use std::borrow::Cow;

use crate::events::MAX_ROW_BYTES;

use super::mask::Masker;

/// A line that begins like a workflow command is kept whole up to this many bytes, since it may carry a value.
const MAX_COMMAND_BYTES: usize = 1024 * 1024;

/// Splits output into rows.
#[derive(Debug, Default)]
pub struct Splitter {
    pending: Vec<u8>,
    /// The line's beginning has been given out already.
    continued: bool,
}

/// A row on its way out: not masked yet.
#[derive(Debug, PartialEq, Eq)]
pub struct RawRow<'a> {
    /// Its text.
    pub text: Cow<'a, str>,
    /// It is a whole line, so it may be a workflow command; a piece of a long line is not.
    pub whole: bool,
}

impl Splitter {
    /// Takes output and gives every row that it completes to `each`.
    pub fn push(
        &mut self,
        mut bytes: &[u8],
        masker: &mut Masker,
        each: &mut dyn FnMut(RawRow<'_>, &mut Masker),
    ) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at(end);
            bytes = &rest[1..];
            let fresh = self.pending.is_empty() && !self.continued && line.len() <= MAX_ROW_BYTES;
            let text = if fresh { String::from_utf8_lossy(without_cr(line)) } else { Cow::Borrowed("") };
            // The lossy form of rubbish is up to three times as long as the rubbish.
            if fresh && text.len() <= MAX_ROW_BYTES {
                each(RawRow { text, whole: true }, masker);
            } else {
                // A line that comes in one large piece must not be held whole either.
                for piece in line.chunks(MAX_ROW_BYTES) {
                    self.pending.extend_from_slice(piece);
                    self.shed(masker, each);
                }
                self.finish(masker, each);
            }
        }
        for piece in bytes.chunks(MAX_ROW_BYTES) {
            self.pending.extend_from_slice(piece);
            self.shed(masker, each);
        }
    }

    /// Ends the line that was begun, if one was: what was printed last without a newline is a row too.
    pub fn finish(&mut self, masker: &mut Masker, each: &mut dyn FnMut(RawRow<'_>, &mut Masker)) {
        let whole = !self.continued;
        self.continued = false;
        if self.pending.is_empty() {
            return;
        }
        let mut pending = std::mem::take(&mut self.pending);
        let text = String::from_utf8_lossy(without_cr(&pending));
        if text.len() <= MAX_ROW_BYTES || whole && text.starts_with("::") {
            each(RawRow { text, whole }, masker);
        } else {
            let mut rest = text.as_ref();
            while !rest.is_empty() {
                let (row, behind) = rest.split_at(masker.cut(rest, MAX_ROW_BYTES));
                each(RawRow { text: row.into(), whole: false }, masker);
                rest = behind;
            }
        }
        pending.clear();
        pending.shrink_to(MAX_ROW_BYTES);
        self.pending = pending;
    }

    /// Gives out the beginning of a line that has become too long to wait for its end.
    fn shed(&mut self, masker: &mut Masker, each: &mut dyn FnMut(RawRow<'_>, &mut Masker)) {
        let command = !self.continued && self.pending.starts_with(b"::");
        if command && self.pending.len() <= MAX_COMMAND_BYTES {
            return;
        }
        while self.pending.len() > MAX_ROW_BYTES + masker.longest() + 4 {
            let text = String::from_utf8_lossy(&self.pending);
            let cut = masker.cut(&text, MAX_ROW_BYTES);
            // Where a replacement character stands for invalid bytes, lengths differ: measure in the source.
            let consumed = source_length(&self.pending, &text, cut);
            each(RawRow { text: text[..cut].into(), whole: false }, masker);
            self.pending.drain(..consumed);
            self.continued = true;
        }
    }
}

/// How many bytes of `source` the first `cut` bytes of its lossy form stand for.
fn source_length(source: &[u8], text: &str, cut: usize) -> usize {
    if text.len() == source.len() && std::str::from_utf8(source).is_ok() {
        return cut;
    }
    let mut consumed = 0;
    let mut produced = 0;
    for chunk in source.utf8_chunks() {
        let valid = chunk.valid().len();
        if produced + valid >= cut {
            return consumed + (cut - produced);
        }
        produced += valid;
        consumed += valid;
        if !chunk.invalid().is_empty() {
            produced += char::REPLACEMENT_CHARACTER.len_utf8();
            consumed += chunk.invalid().len();
            if produced >= cut {
                return consumed;
            }
        }
    }
    source.len()
}

fn without_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(chunks: &[&[u8]], masker: &mut Masker) -> Vec<String> {
        let mut splitter = Splitter::default();
        let mut rows = Vec::new();
        let mut each = |row: RawRow<'_>, masker: &mut Masker| rows.push(masker.mask(&row.text));
        for chunk in chunks {
            splitter.push(chunk, masker, &mut each);
        }
        splitter.finish(masker, &mut each);
        rows
    }

    #[test]
    fn lines_become_rows_whatever_the_chunks() {
        let text = b"one\n\ntwo\r\nlast without end";
        for size in 1..text.len() {
            let chunks: Vec<&[u8]> = text.chunks(size).collect();
            assert_eq!(rows(&chunks, &mut Masker::default()), ["one", "", "two", "last without end"]);
        }
    }

    #[test]
    fn what_is_not_utf8_is_replaced_and_characters_in_two_chunks_are_whole() {
        assert_eq!(rows(&[b"a\xffb\n", b"\xc3", b"\xa4\n"], &mut Masker::default()), ["a\u{fffd}b", "ä"]);
    }

    #[test]
    fn a_huge_line_becomes_rows_that_fit_and_loses_nothing() {
        let line = "0123456789ä".repeat(1_000_000);
        let chunks: Vec<&[u8]> = line.as_bytes().chunks(65_521).collect();
        let rows = rows(&chunks, &mut Masker::default());
        assert!(rows.iter().all(|row| row.len() <= MAX_ROW_BYTES));
        assert_eq!(rows.concat(), line);
    }

    #[test]
    fn a_huge_line_of_rubbish_loses_nothing_either() {
        let line = b"ab\xff\xfec\xe2\x82".repeat(100_000);
        let chunks: Vec<&[u8]> = line.chunks(4096).collect();
        let rows = rows(&chunks, &mut Masker::default());
        assert!(rows.iter().all(|row| row.len() <= MAX_ROW_BYTES));
        let expected = String::from_utf8_lossy(&line).into_owned();
        assert_eq!(rows.concat().matches('c').count(), expected.matches('c').count());
        assert_eq!(rows.concat().matches("ab").count(), 100_000);
    }

    #[test]
    fn a_secret_that_falls_on_the_cut_of_a_huge_line_is_masked() {
        let secret = "correct-horse-battery-staple";
        for shift in 0..secret.len() + 2 {
            let line = format!("{}{secret}{}", "x".repeat(MAX_ROW_BYTES - shift), "y".repeat(MAX_ROW_BYTES));
            let chunks: Vec<&[u8]> = line.as_bytes().chunks(1000).collect();
            let text = rows(&chunks, &mut Masker::new([secret])).concat();
            assert_eq!(text.matches("***").count(), 1, "shift {shift}");
            assert!(!text.contains("horse"), "shift {shift}");
        }
    }

    #[test]
    fn a_long_command_stays_whole() {
        let line = format!("::set-output name=x::{}\n", "v".repeat(200_000));
        let mut splitter = Splitter::default();
        let mut seen = Vec::new();
        let mut each = |row: RawRow<'_>, _: &mut Masker| seen.push((row.text.len(), row.whole));
        for chunk in line.as_bytes().chunks(4096) {
            splitter.push(chunk, &mut Masker::default(), &mut each);
        }
        assert_eq!(seen, [(line.len() - 1, true)]);
    }
}

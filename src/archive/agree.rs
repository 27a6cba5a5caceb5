//! What of a damaged file a copy must have, byte for byte, and the comparison.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use super::donor::Parts;
use super::fault::Area;

/// Bytes at the end of a range that a distant donor must agree with: where the file was cut, those before the cut.
const COMPARED: u64 = 1 << 20;
/// Bytes at its beginning: magic, the symbol table's header and its first offsets.
const COMPARED_FIRST: u64 = 64 << 10;
/// Pieces of what lies between that it must agree with, and their size.
const SAMPLES: u64 = 16;
const SAMPLE: u64 = 4 << 10;
/// Bytes that any archive may have: magic and one header. They vouch for nothing.
const NOTHING: u64 = 68;

/// Ranges of the old file that are whole, ascending.
#[derive(Debug, Clone, Default)]
pub(super) struct Agreed(Vec<Area>);

impl Agreed {
    /// Everything before `until`.
    pub(super) fn before(until: u64) -> Self {
        Self(vec![(0, until)])
    }

    /// Everything in a file of `size` bytes but `areas`.
    pub(super) fn outside(areas: &[Area], size: u64) -> Self {
        let mut areas = areas.to_vec();
        areas.sort_unstable();
        let (mut ranges, mut at) = (Vec::new(), 0);
        for (from, until) in areas {
            if from > at {
                ranges.push((at, from.min(size)));
            }
            at = at.max(until);
        }
        if at < size {
            ranges.push((at, size));
        }
        Self(ranges)
    }

    /// Bytes in them.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|(from, until)| until - from).sum()
    }

    /// Whether they are enough to tell one archive from another.
    pub(super) fn vouches(&self) -> bool {
        self.bytes() > NOTHING
    }

    /// The ranges: from, until.
    pub(super) fn ranges(&self) -> &[Area] {
        &self.0
    }

    /// What a copy of `size` bytes must bring: from, until.
    pub(super) fn missing(&self, size: u64) -> Vec<Area> {
        Self::outside(&self.0, size).0
    }

    /// Which parts of the ranges a distant donor must agree with: position and length, ascending.
    pub(super) fn samples(&self) -> Vec<(u64, u64)> {
        let mut parts = Vec::new();
        for &(from, until) in &self.0 {
            let length = until - from;
            if length <= COMPARED_FIRST + SAMPLES * SAMPLE + COMPARED {
                parts.push((from, length));
                continue;
            }
            parts.push((from, COMPARED_FIRST));
            let between = length - COMPARED - COMPARED_FIRST;
            let sample = |index| (from + COMPARED_FIRST + between / SAMPLES * index, SAMPLE);
            parts.extend((0..SAMPLES).map(sample));
            parts.push((until - COMPARED, COMPARED));
        }
        parts
    }
}

/// Compares what is written to it with the old file, as far as that is whole.
pub(super) struct Compare<'a> {
    old: &'a File,
    agreed: &'a Agreed,
    at: u64,
    held: Vec<u8>,
    /// Position of the first difference.
    pub(super) difference: Option<u64>,
}

impl<'a> Compare<'a> {
    /// What is written stands at `from` and behind it.
    pub(super) fn new(old: &'a File, agreed: &'a Agreed, from: u64) -> Self {
        Self { old, agreed, at: from, held: Vec::new(), difference: None }
    }
}

impl Write for Compare<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let end = self.at + bytes.len() as u64;
        for &(from, until) in self.agreed.ranges() {
            let (from, until) = (from.max(self.at), until.min(end));
            if from >= until {
                continue;
            }
            let some = bytes.get((from - self.at) as usize..(until - self.at) as usize).unwrap_or_default();
            self.held.resize(some.len(), 0);
            self.old.read_exact_at(&mut self.held, from)?;
            if let Some(index) = self.held.iter().zip(some).position(|(a, b)| a != b) {
                self.difference = Some(from + index as u64);
                return Err(io::Error::other("it is another archive"));
            }
        }
        self.at = end;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file of this machine as a donor.
pub(super) struct LocalFile {
    pub(super) file: File,
    pub(super) shown: String,
    pub(super) size: u64,
}

impl Parts for LocalFile {
    fn name(&self) -> String {
        self.shown.clone()
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn copy(&mut self, from: u64, length: u64, sink: &mut dyn Write) -> Result<(), String> {
        let words = |error: io::Error| format!("{}: {error}", self.shown);
        let mut buffer = vec![0; 256 * 1024];
        let mut at = from;
        while at < from + length {
            let want = (from + length - at).min(buffer.len() as u64) as usize;
            let read = self.file.read_at(buffer.get_mut(..want).unwrap_or_default(), at).map_err(words)?;
            if read == 0 {
                return Err(format!("{}: it changed while it was copied", self.shown));
            }
            sink.write_all(buffer.get(..read).unwrap_or_default()).map_err(words)?;
            at += read as u64;
        }
        Ok(())
    }
}

/// Copies a part of the old file.
pub(super) fn copy_old(old: &File, (from, until): Area, out: &mut File) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut at = from;
    while at < until {
        let take = (until - at).min(buffer.len() as u64) as usize;
        let some = buffer.get_mut(..take).unwrap_or_default();
        old.read_exact_at(some, at)?;
        out.write_all(some)?;
        at += take as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_outside_of_the_damage_must_agree() {
        let agreed = Agreed::outside(&[(500, 600), (100, 200), (550, 700)], 1000);
        assert_eq!(agreed.ranges(), [(0, 100), (200, 500), (700, 1000)]);
        assert_eq!((agreed.bytes(), agreed.missing(1000)), (700, vec![(100, 200), (500, 700)]));
        assert_eq!(Agreed::before(70).missing(100), [(70, 100)]);
        assert!(Agreed::outside(&[(0, 9)], 5).ranges().is_empty() && !Agreed::default().vouches());
        let samples = Agreed::before(10 << 20).samples();
        assert_eq!(samples.first(), Some(&(0, COMPARED_FIRST)));
        assert_eq!(samples.last(), Some(&(9 << 20, 1 << 20)));
    }
}

//! Places in a layer at which the hashing of the whole of it may begin, because what stands before them was hashed in
//! an earlier push.
//!
//! SHA-256 goes from a layer's begin to its end on one core, and a push of a small change takes about as long as that. What
//! it has come to at some place depends on nothing but the bytes before, and up to the first path that changed these are the
//! same as in the image of the last push. That they are is seen only when all of them have been read, which is done at the
//! same time; so where to begin is guessed from samples of the layer, which take a millisecond. A path that comes, goes or
//! grows moves all that follows, and samples with it. A guess that what was read does not bear out costs the time of hashing
//! the layer again, from its begin.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::image::Digest;
use crate::image::digest::Hasher;

/// From one place to the next, in bytes. SHA-256's blocks and tar's are parts of it.
const STEP: u64 = 16 << 20;
/// From one sample to the next.
const SAMPLE_STEP: u64 = 256 << 10;
/// The length of a sample.
const SAMPLE: usize = 512;
/// The most places in a layer; one takes some hundred bytes in the cache.
const MAX_PLACES: usize = 256;

/// What is known of a layer up to a place: the first stands at [`STEP`], the next at twice that, and so on.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mark {
    /// Names the samples since the place before.
    samples: String,
    /// Names all bytes before it. Empty where that cannot be told.
    content: String,
    /// What SHA-256 has come to, as [`Hasher::state`] writes it.
    state: String,
}

/// The hashing of a whole layer.
#[derive(Debug, Default)]
pub struct WholeHash {
    /// One for each place in the layer.
    samples: Vec<String>,
    /// Marks of an earlier layer, at the last of which it began.
    earlier: Vec<Mark>,
    /// What SHA-256 has come to at the places behind.
    states: Vec<String>,
    sha256: Hasher,
}

impl WholeHash {
    /// Begins at the last place up to which the layer, which stands in a file, seems to be one that has these marks.
    pub(super) fn begin(file: &File, offset: u64, size: u64, marks: &[Mark]) -> io::Result<Self> {
        let samples = samples(file, offset, size)?;
        let alike = samples.iter().zip(marks).take_while(|(samples, mark)| **samples == mark.samples).count();
        let resumed = (1..=alike).rev().find_map(|count| {
            let mark = &marks[count - 1];
            let sha256 = Hasher::resume(&mark.state, count as u64 * STEP)?;
            (!mark.content.is_empty()).then_some((count, sha256))
        });
        let (begun, sha256) = resumed.unwrap_or_default();
        Ok(Self { samples, earlier: marks[..begun].to_vec(), states: Vec::new(), sha256 })
    }

    /// How many bytes are done.
    pub(super) fn length(&self) -> u64 {
        self.sha256.length()
    }

    /// Takes in the next bytes.
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        loop {
            let ahead = STEP - self.length() % STEP;
            if (bytes.len() as u64) < ahead {
                return self.sha256.update(bytes);
            }
            // No longer than the bytes, as was just seen.
            let (before, behind) = bytes.split_at(ahead as usize);
            self.sha256.update(before);
            if self.earlier.len() + self.states.len() < self.samples.len() {
                self.states.push(self.sha256.state());
            }
            bytes = behind;
        }
    }

    /// Whether it took an earlier layer's word for anything.
    pub(super) fn is_resumed(&self) -> bool {
        !self.earlier.is_empty()
    }

    /// The digest of all bytes.
    pub(super) fn digest(&self) -> Digest {
        self.sha256.clone().finish()
    }

    /// The layer's own marks, once all of it was read. `None`: it is not the same as the earlier layer up to where its hashing
    /// began.
    #[must_use]
    pub(crate) fn marks(&self, names: &Names) -> Option<Vec<Mark>> {
        if let Some(mark) = self.earlier.last()
            && names.found.get(self.earlier.len() - 1) != Some(&mark.content)
        {
            return None;
        }
        let states = self.earlier.iter().map(|mark| &mark.state).chain(&self.states);
        let marks = self.samples.iter().zip(&names.found).zip(states).map(|((samples, content), state)| {
            Mark { samples: samples.clone(), content: content.clone(), state: state.clone() }
        });
        Some(marks.collect())
    }
}

fn samples(file: &File, offset: u64, size: u64) -> io::Result<Vec<String>> {
    let places = (size / STEP).min(MAX_PLACES as u64);
    let of_place = |place: u64| {
        let mut hasher = blake3::Hasher::new();
        let mut sample = [0; SAMPLE];
        for at in 0..STEP / SAMPLE_STEP {
            file.read_exact_at(&mut sample, offset + place * STEP + at * SAMPLE_STEP)?;
            hasher.update(&sample);
        }
        Ok(hasher.finalize().to_string())
    };
    (0..places).map(of_place).collect()
}

/// Names what stands before each place of a layer, while all of it is read.
#[derive(Debug, Default)]
pub struct Names {
    found: Vec<String>,
    /// The pieces that were read.
    pieces: blake3::Hasher,
}

impl Names {
    /// A piece of the layer has ended.
    pub(super) fn piece(&mut self, hash: &blake3::Hash) {
        self.pieces.update(hash.as_bytes());
    }

    /// The next place, if that is before `end`.
    pub(super) fn next_before(&self, end: u64) -> Option<u64> {
        let place = (self.found.len() as u64 + 1) * STEP;
        (place < end && self.found.len() < MAX_PLACES).then_some(place)
    }

    /// Names the next place: it is in a piece of which so much came before.
    pub(super) fn name(&mut self, piece: &blake3::Hash) {
        self.found.push(self.pieces.clone().update(piece.as_bytes()).finalize().to_string());
    }

    /// Leaves out the next place.
    pub(super) fn leave_out(&mut self) {
        self.found.push(String::new());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// Bytes that differ from place to place.
    fn layer(length: usize) -> Vec<u8> {
        (0..length as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before").unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// As whoever looks into the layer names its places.
    fn names(bytes: &[u8]) -> Names {
        let mut names = Names::default();
        while let Some(place) = names.next_before(bytes.len() as u64) {
            names.name(&blake3::hash(&bytes[..place as usize]));
        }
        names
    }

    /// Hashes a layer. Where it began, and its marks.
    fn hash(bytes: &[u8], earlier: &[Mark]) -> (u64, Option<Vec<Mark>>) {
        let mut whole = WholeHash::begin(&file(bytes), 6, bytes.len() as u64, earlier).unwrap();
        let began = whole.length();
        for piece in bytes[began as usize..].chunks(100_003) {
            whole.update(piece);
        }
        let marks = whole.marks(&names(bytes));
        assert_eq!(whole.digest() == Digest::of(bytes), marks.is_some());
        (began, marks)
    }

    #[test]
    fn hashing_begins_at_the_last_place_before_a_change() {
        let one = layer(3 * STEP as usize + 5000);
        let (began, marks) = hash(&one, &[]);
        assert_eq!(began, 0);
        let marks = marks.unwrap();
        assert_eq!(marks.len(), 3);
        assert_eq!(hash(&one, &marks), (3 * STEP, Some(marks.clone())));

        // Some bytes more in the third part move what follows.
        let mut two = one.clone();
        two.splice(2 * STEP as usize + 9000..2 * STEP as usize + 9000, [7; 512]);
        let (began, changed) = hash(&two, &marks);
        assert_eq!(began, 2 * STEP);
        let changed = changed.unwrap();
        assert_eq!(changed[..2], marks[..2]);
        assert_eq!((3 * STEP, Some(changed.clone())), hash(&two, &changed));

        let mut other = one.clone();
        other[0] ^= 1;
        assert_eq!(hash(&other, &marks).0, 0);
        assert_eq!(hash(&one[..STEP as usize - 1], &marks), (0, Some(Vec::new())));
    }

    #[test]
    fn a_change_that_no_sample_sees_is_not_borne_out() {
        let one = layer(2 * STEP as usize + 5000);
        let marks = hash(&one, &[]).1.unwrap();
        let mut two = one;
        two[SAMPLE + 1] ^= 1;
        assert_eq!(hash(&two, &marks), (2 * STEP, None));
    }

    #[test]
    fn marks_that_are_damaged_or_name_nothing_are_passed_over() {
        let one = layer(2 * STEP as usize + 5000);
        let marks = hash(&one, &[]).1.unwrap();
        let mut damaged = marks.clone();
        damaged[1].state = "noise".to_owned();
        assert_eq!(hash(&one, &damaged), (STEP, Some(marks.clone())));
        damaged[0].content = String::new();
        assert_eq!(hash(&one, &damaged), (0, Some(marks)));
    }
}

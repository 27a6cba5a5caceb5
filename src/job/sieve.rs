//! Says where in a text a secret may be, so that the rest is not searched.
//!
//! Holds pieces of a few bytes from the beginning of every pattern, hashed into a table of bits. Of a text only every
//! so many bytes a piece is looked up: a pattern that occurs has one of its pieces there. (The idea is that of Wu and
//! Manber's search for many patterns; the table is a Bloom filter.)

/// How much of the beginning of a pattern is looked at, in bytes, where the shortest pattern has so much.
const REACH: usize = 12;
/// The longest piece, in bytes.
const PIECE: usize = 4;
/// Bits of the table for each piece, two of which it sets.
const BITS_A_PIECE: usize = 16;
/// The table has at least and at most so many bits (as powers of two): 4 and 256 KiB.
const SIZES: std::ops::RangeInclusive<u32> = 15..=21;

/// A table of the pieces of all patterns.
#[derive(Debug)]
pub(super) struct Sieve {
    /// How much of each pattern is looked at.
    reach: usize,
    /// The length of a piece.
    piece: usize,
    /// What is kept of four bytes.
    mask: u32,
    bits: Vec<u64>,
    /// How many bits there are, as a power of two.
    size: u32,
    pieces: usize,
}

impl Default for Sieve {
    fn default() -> Self {
        Self::empty(REACH, *SIZES.start())
    }
}

impl Sieve {
    fn empty(reach: usize, size: u32) -> Self {
        // Short pieces are in many texts, but the shorter they are the fewer have to be looked up.
        let piece = if reach > PIECE + 1 { PIECE } else { reach.min(PIECE - 1) };
        let mask = u32::MAX >> (32 - 8 * piece);
        Self { reach, piece, mask, bits: vec![0; 1 << (size - 6)], size, pieces: 0 }
    }

    /// Adds a pattern of at least two bytes. False when the table has to be made anew, with [`Sieve::of`].
    pub(super) fn add(&mut self, pattern: &[u8]) -> bool {
        let grown = self.pieces + self.step();
        if pattern.len() < self.reach || self.size < *SIZES.end() && grown * BITS_A_PIECE > 1 << self.size {
            return false;
        }
        for at in 0..self.step() {
            for bit in self.places(self.piece_at(pattern, at)) {
                self.bits[bit >> 6] |= 1 << (bit & 63);
            }
        }
        self.pieces = grown;
        true
    }

    /// A table of these patterns.
    pub(super) fn of<'p>(patterns: impl Iterator<Item = &'p [u8]> + Clone) -> Self {
        let reach = patterns.clone().map(<[u8]>::len).min().unwrap_or(REACH).min(REACH);
        let mut sieve = Self::empty(reach, *SIZES.start());
        // Room for as many again.
        let wanted = 2 * patterns.clone().count() * sieve.step() * BITS_A_PIECE;
        let size = wanted.next_power_of_two().ilog2().clamp(*SIZES.start(), *SIZES.end());
        if size > sieve.size {
            sieve = Self::empty(reach, size);
        }
        for pattern in patterns {
            sieve.add(pattern);
        }
        sieve
    }

    /// Whether it holds so many pieces that it would let nearly everything through.
    pub(super) const fn is_clogged(&self) -> bool {
        self.pieces * 8 > 1 << self.size
    }

    /// How far the places are apart at which pieces are looked up.
    const fn step(&self) -> usize {
        self.reach - self.piece + 1
    }

    /// How far before a place that [`Sieve::next`] gives a pattern may begin.
    pub(super) const fn lead(&self) -> usize {
        self.reach - self.piece
    }

    /// The next place at which there is a piece of a pattern. A pattern that begins at or after `from` begins
    /// at most [`Sieve::lead`] bytes before such a place, and not behind it.
    #[inline]
    pub(super) fn next(&self, text: &[u8], from: usize) -> Option<usize> {
        let last = text.len().checked_sub(self.piece)?;
        let mut at = from;
        while at <= last {
            let [one, other] = self.places(self.piece_at(text, at));
            if self.has(one) && self.has(other) {
                return Some(at);
            }
            at += self.step();
        }
        None
    }

    #[inline]
    fn has(&self, bit: usize) -> bool {
        self.bits.get(bit >> 6).is_some_and(|bits| bits >> (bit & 63) & 1 == 1)
    }

    /// The bits of a piece.
    #[inline]
    fn places(&self, piece: u32) -> [usize; 2] {
        let hash = u64::from(piece).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let one = hash >> (64 - self.size);
        let other = hash >> (64 - 2 * self.size) & ((1 << self.size) - 1);
        [one, other].map(|bit| usize::try_from(bit).unwrap_or(0))
    }

    #[inline]
    fn piece_at(&self, text: &[u8], at: usize) -> u32 {
        let rest = &text[at..];
        match rest.first_chunk::<4>() {
            Some(bytes) => u32::from_le_bytes(*bytes) & self.mask,
            None => {
                let bytes = rest.iter().take(self.piece).rev();
                bytes.fold(0, |piece, byte| piece << 8 | u32::from(*byte))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_pattern_gets_past(
            patterns in prop::collection::vec("[a-d]{2,16}", 1..30),
            before in "[a-e]{0,20}",
            behind in "[a-e]{0,20}",
            from in 0_usize..20,
        ) {
            let sieve = Sieve::of(patterns.iter().map(String::as_bytes));
            for pattern in &patterns {
                let text = format!("{before}{pattern}{behind}");
                let from = from.min(before.len());
                let mut at = from;
                let mut covered = false;
                while let Some(place) = sieve.next(text.as_bytes(), at) {
                    covered |= (place.saturating_sub(sieve.lead())..=place).contains(&before.len());
                    at = place + 1;
                }
                prop_assert!(covered, "{pattern} in {text} from {from}");
            }
        }
    }

    #[test]
    fn it_grows_and_what_is_not_there_does_not_pass() {
        let mut patterns: Vec<String> = Vec::new();
        let mut sieve = Sieve::default();
        for number in 0..2000_u32 {
            let pattern = format!("{:x}-{number}-secret", number.wrapping_mul(0x9e37_79b1));
            patterns.push(pattern);
            if !sieve.add(patterns[patterns.len() - 1].as_bytes()) {
                sieve = Sieve::of(patterns.iter().map(String::as_bytes));
            }
        }
        assert!(!sieve.is_clogged());
        assert!(patterns.iter().all(|pattern| sieve.next(pattern.as_bytes(), 0).is_some()));
        let passed = (0..1000).filter(|row| {
            let row = format!("[{row} of 1000] Compiling Data.Module (interpreted)");
            sieve.next(row.as_bytes(), 0).is_some()
        });
        assert!(passed.count() < 200);
        assert!(sieve.next(b"abc", 0).is_none() && sieve.next(b"", 0).is_none());
    }
}

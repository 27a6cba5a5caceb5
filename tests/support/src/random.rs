//! Tokens and identifiers that cannot be guessed and never repeat.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};

/// `count` random bytes in hexadecimal.
pub(crate) fn hex(count: usize) -> io::Result<String> {
    let mut bytes = vec![0_u8; count];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().fold(String::with_capacity(count * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

/// A random UUID of version 4.
pub(crate) fn uuid() -> io::Result<String> {
    let hex = hex(16)?;
    Ok(format!("{}-{}-4{}-a{}-{}", &hex[0..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32]))
}

/// Numbers that look random and can be had again: the same seed gives the same numbers.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// From a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// From the seed in a variable of the environment, or a new one. The seed is said, for the test to be run again.
    #[must_use]
    pub fn from_env(variable: &str) -> Self {
        let given = std::env::var(variable).ok().and_then(|text| text.parse().ok());
        let fresh = || {
            let since =
                std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            since.as_nanos() as u64 ^ u64::from(std::process::id()).rotate_left(40)
        };
        let seed = given.unwrap_or_else(fresh) & 0xffff_ffff;
        println!("{variable}={seed}");
        Self(seed)
    }

    /// A number below `end`; 0 when that is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        // SplitMix64, public domain, by Sebastiano Vigna.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).checked_rem(end).unwrap_or(0)
    }

    /// One of several.
    pub fn pick<'t, T>(&mut self, of: &'t [T]) -> &'t T {
        #[expect(clippy::cast_possible_truncation, reason = "below a length")]
        &of[self.below(of.len() as u64) as usize]
    }
}

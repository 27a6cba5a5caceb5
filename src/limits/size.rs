//! Sizes as GHC's run-time system reads them: a number and `k`, `m` or `g` (powers of 1024).

use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Size(pub u64);

/// Why a text is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a size as GHC reads it: a number and k, m or g, such as 2g, 2000m or 1.5g")]
pub struct NotASize(String);

impl FromStr for Size {
    type Err = NotASize;

    /// Reads what the run-time system reads (`decodeSize` in its `RtsFlags.c`: `atof`, then the last letter),
    /// and nothing that it would misread: `2gb` is 2 bytes to it.
    fn from_str(text: &str) -> Result<Self, NotASize> {
        let bad = || NotASize(text.to_owned());
        let (number, unit) = match text.as_bytes().last() {
            Some(b'k' | b'K') => (&text[..text.len() - 1], 1 << 10),
            Some(b'm' | b'M') => (&text[..text.len() - 1], 1 << 20),
            Some(b'g' | b'G') => (&text[..text.len() - 1], 1 << 30),
            _ => (text, 1),
        };
        let plain = |c: char| c.is_ascii_digit() || c == '.';
        if !number.chars().all(plain) || !number.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(bad());
        }
        let bytes = number.parse::<f64>().map_err(|_| bad())? * f64::from(unit);
        // 2^63 and more is no memory that there is.
        if bytes >= 9.2e18 { Err(bad()) } else { Ok(Self(bytes as u64)) }
    }
}

impl Size {
    /// What the run-time system makes of the value of `-M` or `-A`, which is more than people write: `atof`, then the last
    /// letter as the unit (`w` are words), whatever stands between. `None` for what it refuses: less than a block of 4 KiB.
    #[must_use]
    pub fn as_the_run_time_system_reads(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?.trim_start();
        let unit: u64 = match text.as_bytes().last()? {
            b'g' | b'G' => 1 << 30,
            b'm' | b'M' => 1 << 20,
            b'k' | b'K' => 1 << 10,
            b'w' | b'W' => 8,
            _ => 1,
        };
        let bytes = leading_number(text) * unit as f64;
        (4096.0..9.2e18).contains(&bytes).then_some(Self(bytes as u64))
    }

    /// The size as an option's value: exact, in the largest unit that holds it.
    #[must_use]
    pub fn option(self) -> String {
        for (shift, unit) in [(30, "g"), (20, "m"), (10, "k")] {
            if self.0 >= 1 << shift && self.0.is_multiple_of(1 << shift) {
                return format!("{}{unit}", self.0 >> shift);
            }
        }
        self.0.to_string()
    }
}

/// The number that a text begins with, as C's `atof` reads it; 0 when it begins with none.
fn leading_number(text: &str) -> f64 {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let digits = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
        return u64::from_str_radix(&hex[..digits], 16).map_or(0.0, |number| number as f64);
    }
    // The longest begin that is a number; none has more letters than this.
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-')))
        .unwrap_or(text.len());
    (1..=end.min(40)).rev().find_map(|end| text[..end].parse().ok()).unwrap_or(0.0)
}

impl fmt::Display for Size {
    /// For people: `2 GiB`, `1.5 GiB`, `512 KiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >= 1 << shift {
                let whole = self.0 as f64 / f64::from(1 << shift);
                // Two digits, and none that say nothing.
                let text = format!("{whole:.2}");
                return write!(f, "{} {unit}", text.trim_end_matches('0').trim_end_matches('.'));
            }
        }
        write!(f, "{} B", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_run_time_system_reads() {
        for (text, bytes) in [
            ("2g", 2 << 30),
            ("2G", 2 << 30),
            ("2000m", 2000 << 20),
            ("1.5g", 3 << 29),
            ("8k", 8192),
            ("4096", 4096),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in
            ["", "g", "2gb", "2 g", "-2g", "50%", "1t", "1e9", "0x10m", ".5g", "1.2.3m", "99999999999g"]
        {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn says_sizes_to_people_and_to_ghc() {
        assert_eq!(Size(2 << 30).to_string(), "2 GiB");
        assert_eq!(Size(2000 << 20).to_string(), "1.95 GiB");
        assert_eq!(Size(100).to_string(), "100 B");
        assert_eq!(Size(2000 << 20).option(), "2000m");
        assert_eq!(Size(3 << 29).option(), "1536m");
        assert_eq!(Size(8193).option(), "8193");
    }
}

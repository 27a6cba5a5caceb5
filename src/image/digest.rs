//! SHA-256 digests as registries write them: `sha256:` and 64 hexadecimal digits.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::Digest as _;
use sha2::digest::common::hazmat::SerializableState as _;

/// The digest of a blob or manifest. Only SHA-256: no registry or writer in the field uses another.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(String);

impl Digest {
    const PREFIX: &'static str = "sha256:";

    /// Reads `sha256:<64 lower-case hex digits>`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix(Self::PREFIX)?;
        let well = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        well.then(|| Self(text.to_owned()))
    }

    /// The digest of bytes in memory.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::default();
        hasher.update(bytes);
        hasher.finish()
    }

    /// `sha256:…`
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The digits without the algorithm's name.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0[Self::PREFIX.len()..]
    }

    /// Twelve digits, for people.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a sha256 digest")))
    }
}

/// Computes a [`Digest`] piece by piece and counts the bytes.
#[derive(Debug, Clone, Default)]
pub struct Hasher {
    state: sha2::Sha256,
    length: u64,
}

impl Hasher {
    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
        self.length += bytes.len() as u64;
    }

    /// How many bytes were taken in.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// What the bytes so far have come to, for [`resume`](Self::resume).
    #[must_use]
    pub fn state(&self) -> String {
        STANDARD.encode(self.state.serialize())
    }

    /// Goes on after `length` bytes, which came to this. `None` when it is no such state.
    #[must_use]
    pub fn resume(state: &str, length: u64) -> Option<Self> {
        let bytes = STANDARD.decode(state).ok()?;
        let state = sha2::Sha256::deserialize(bytes.as_slice().try_into().ok()?).ok()?;
        Some(Self { state, length })
    }

    /// The digest of all bytes.
    #[must_use]
    pub fn finish(self) -> Digest {
        use std::fmt::Write as _;
        let mut text = String::with_capacity(71);
        text.push_str(Digest::PREFIX);
        for byte in self.state.finalize() {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Digest(text)
    }
}

impl std::io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_of_nothing_is_the_known_one() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").as_str(), empty);
        assert_eq!(Digest::parse(empty), Some(Digest::of(b"")));
    }

    #[test]
    fn hashing_goes_on_where_it_was() {
        let mut hasher = Hasher::default();
        hasher.update(&[7; 1000]);
        let mut resumed = Hasher::resume(&hasher.state(), 1000).unwrap();
        resumed.update(&[8; 1000]);
        assert_eq!(resumed.length(), 2000);
        assert_eq!(resumed.finish(), Digest::of(&[[7; 1000], [8; 1000]].concat()));
        for bad in ["", "????", "AAAA", &hasher.state()[4..], &STANDARD.encode([255; 105])] {
            assert!(Hasher::resume(bad, 1000).is_none(), "{bad}");
        }
    }

    #[test]
    fn other_algorithms_and_shapes_are_refused() {
        for bad in ["", "sha256:", "sha512:00", &format!("sha256:{}", "G".repeat(64)), &"a".repeat(71)] {
            assert_eq!(Digest::parse(bad), None, "{bad}");
        }
    }
}

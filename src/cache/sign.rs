//! Signed addresses: who has one may read or write what it names until it expires, without a token.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

/// Block size of SHA-256, in bytes.
const BLOCK: usize = 64;
/// How long a signed address is good for, in seconds.
const LIFE: u64 = 6 * 3600;

/// The secret of one directory.
#[derive(Clone)]
pub struct Signer {
    key: [u8; 32],
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer")
    }
}

impl Signer {
    /// The secret in this file (mode 0600), which is made if it is not there: addresses outlive a restart.
    ///
    /// # Errors
    /// When the file can neither be read nor made.
    pub fn open(file: &Path) -> io::Result<Self> {
        for _ in 0..2 {
            match fs::read(file) {
                Ok(bytes) => {
                    if let Ok(key) = bytes.try_into() {
                        return Ok(Self { key });
                    }
                    fs::remove_file(file)?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            let mut key = [0; 32];
            getrandom::fill(&mut key).map_err(io::Error::other)?;
            // Another program may make it at the same time: a link fails where there is one already.
            let fresh = file.with_extension(format!("{}", std::process::id()));
            let mut options = fs::OpenOptions::new();
            let mut out = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            io::Write::write_all(&mut out, &key)?;
            let linked = fs::hard_link(&fresh, file);
            fs::remove_file(&fresh)?;
            match linked {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Err(io::Error::other("the secret cannot be kept"))
    }

    /// Adds `exp` and `sig` to a path (without a query).
    #[must_use]
    pub fn sign(&self, path: &str) -> String {
        let expires = now().saturating_add(LIFE);
        format!("{path}?exp={expires}&sig={}", self.signature(path, expires))
    }

    /// Whether the query's `exp` and `sig` are those of this path, and still good.
    #[must_use]
    pub fn verifies(&self, path: &str, expires: &str, signature: &str) -> bool {
        let Ok(expires) = expires.parse::<u64>() else { return false };
        let wanted = self.signature(path, expires);
        let same = wanted.len() == signature.len()
            && wanted.bytes().zip(signature.bytes()).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0;
        same && now() <= expires
    }

    /// HMAC-SHA-256 (RFC 2104) over path and time.
    fn signature(&self, path: &str, expires: u64) -> String {
        let mut inner = [0x36; BLOCK];
        let mut outer = [0x5c; BLOCK];
        for (index, byte) in self.key.iter().enumerate() {
            inner[index] ^= byte;
            outer[index] ^= byte;
        }
        let hash = Sha256::new().chain_update(inner).chain_update(format!("{path}\n{expires}")).finalize();
        URL_SAFE_NO_PAD.encode(Sha256::new().chain_update(outer).chain_update(hash).finalize())
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_good_for_its_path_and_time_only() {
        let folder = tempfile::tempdir().unwrap();
        let signer = Signer::open(&folder.path().join("secret")).unwrap();
        let again = Signer::open(&folder.path().join("secret")).unwrap();
        let signed = signer.sign("/download/a/1");
        let (path, query) = signed.split_once('?').unwrap();
        let (expires, signature) = query.split_once('&').unwrap();
        let (expires, signature) = (&expires[4..], &signature[4..]);
        assert!(again.verifies(path, expires, signature));
        assert!(!again.verifies("/download/a/2", expires, signature));
        assert!(!again.verifies(path, "99999999999", signature));
        assert!(!again.verifies(path, expires, ""));
        let past = again.signature(path, 1);
        assert!(!again.verifies(path, "1", &past));
    }
}

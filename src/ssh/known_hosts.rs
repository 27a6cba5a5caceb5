//! Which host keys are accepted: those in known_hosts, as sshd(8) describes the file.
//!
//! Plain and hashed names, patterns, `[host]:port`, `@revoked`. Keys of authorities (`@cert-authority`) are passed
//! over, because host certificates are not asked for.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use russh::keys::ssh_key::{Algorithm, EcdsaCurve, HashAlg, PublicKey};

use super::Error;
use super::config::fits;

/// The largest known_hosts that is read, in bytes.
const LARGEST: u64 = 16 << 20;

/// What is known about one host's keys.
#[derive(Debug)]
pub(super) struct Known {
    /// Name and port, as known_hosts writes them.
    name: String,
    accepted: Vec<(PublicKey, String)>,
    revoked: Vec<(PublicKey, String)>,
    /// Given instead of known_hosts.
    fingerprint: Option<String>,
    looked_in: Vec<PathBuf>,
}

impl Known {
    /// Reads what the files say about a host. Files that are not there say nothing.
    pub(super) fn load(
        host: &str,
        port: u16,
        files: &[PathBuf],
        fingerprint: Option<&str>,
    ) -> Result<Self, Error> {
        let name = if port == 22 { host.to_owned() } else { format!("[{host}]:{port}") };
        let mut known = Self {
            name,
            accepted: Vec::new(),
            revoked: Vec::new(),
            fingerprint: fingerprint.map(str::to_owned),
            looked_in: files.to_vec(),
        };
        let mut elsewhere = Vec::new();
        for path in files {
            known.read(path, host, &mut elsewhere)?;
        }
        // As ssh does: a key that is known for the host's usual port will do, if there is none for this one.
        if known.accepted.is_empty() && port != 22 {
            known.accepted = elsewhere;
        }
        Ok(known)
    }

    fn read(
        &mut self,
        path: &Path,
        host: &str,
        elsewhere: &mut Vec<(PublicKey, String)>,
    ) -> Result<(), Error> {
        let failed = |source| Error::File { path: path.to_owned(), source };
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.len() > LARGEST => {
                return Err(failed(std::io::Error::other("larger than 16 MiB: this is no known_hosts")));
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        }
        let bytes = std::fs::read(path).map_err(failed)?;
        for (index, line) in String::from_utf8_lossy(&bytes).lines().enumerate() {
            let Some(entry) = Entry::parse(line) else { continue };
            let place = || format!("{}:{}", path.display(), index + 1);
            if entry.names(&self.name) {
                match entry.marker {
                    None => self.accepted.push((entry.key, place())),
                    Some("@revoked") => self.revoked.push((entry.key, place())),
                    Some(_) => {}
                }
            } else if entry.marker.is_none() && entry.names(host) {
                elsewhere.push((entry.key, place()));
            }
        }
        Ok(())
    }

    /// The kinds of keys to ask for, known ones first: a host has several, and shows the one that is asked for.
    pub(super) fn algorithms(&self) -> Vec<Algorithm> {
        let mut all = vec![
            Algorithm::Ed25519,
            Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
            Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
            Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
            Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
            Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
        ];
        let known = |algorithm: &Algorithm| {
            self.accepted.iter().any(|(key, _)| match (key.algorithm(), algorithm) {
                (Algorithm::Rsa { .. }, Algorithm::Rsa { .. }) => true,
                (has, wanted) => has == *wanted,
            })
        };
        // Stable: within the known and the unknown ones the order stays.
        all.sort_by_key(|algorithm| !known(algorithm));
        all
    }

    /// Whether this key may be trusted.
    pub(super) fn check(&self, key: &PublicKey) -> Result<(), Error> {
        let same = |(known, _): &&(PublicKey, String)| known.key_data() == key.key_data();
        let shown = key.fingerprint(HashAlg::Sha256).to_string();
        let host = self.name.clone();
        if let Some((_, place)) = self.revoked.iter().find(same) {
            return Err(Error::RevokedHost { host, shown, place: place.clone() });
        }
        if let Some(expected) = &self.fingerprint {
            // `ssh-keygen -lf` prints it without padding; some programs pad.
            if expected.trim_end_matches('=') == shown {
                return Ok(());
            }
            let place = "the fingerprint that was given".to_owned();
            return Err(Error::ChangedHost { host, shown, expected: expected.clone(), place });
        }
        if self.accepted.iter().any(|entry| same(&entry)) {
            return Ok(());
        }
        let algorithm = key.algorithm().to_string();
        if self.accepted.is_empty() {
            let files: Vec<String> = self.looked_in.iter().map(|path| path.display().to_string()).collect();
            let encoded = key.to_bytes().map(|bytes| BASE64.encode(bytes)).unwrap_or_default();
            let line = format!("{host} {algorithm} {encoded}");
            return Err(Error::UnknownHost { host, shown, algorithm, looked_in: files.join(", "), line });
        }
        let expected: Vec<String> =
            self.accepted.iter().map(|(known, _)| known.fingerprint(HashAlg::Sha256).to_string()).collect();
        let places: Vec<&str> = self.accepted.iter().map(|(_, place)| place.as_str()).collect();
        Err(Error::ChangedHost { host, shown, expected: expected.join(" or "), place: places.join(", ") })
    }
}

/// One line.
struct Entry<'a> {
    marker: Option<&'a str>,
    names: &'a str,
    key: PublicKey,
}

impl<'a> Entry<'a> {
    /// `None` for comments, and for keys of kinds that are not known here.
    fn parse(line: &'a str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let mut names = words.next().filter(|word| !word.starts_with('#'))?;
        let marker = names.starts_with('@').then_some(names);
        if marker.is_some() {
            names = words.next()?;
        }
        let (_, key) = (words.next()?, words.next()?);
        let key = PublicKey::from_bytes(&BASE64.decode(key).ok()?).ok()?;
        Some(Self { marker, names, key })
    }

    fn names(&self, name: &str) -> bool {
        if let Some(hashed) = self.names.strip_prefix("|1|") {
            return is_hash_of(hashed, name).unwrap_or(false);
        }
        let mut found = false;
        for pattern in self.names.split(',') {
            match pattern.strip_prefix('!') {
                Some(not) if fits(not, name) => return false,
                Some(_) => {}
                None => found |= fits(pattern, name),
            }
        }
        found
    }
}

/// `salt|hash`, both in base64: HMAC-SHA1 of the name in lower case with the salt as key.
fn is_hash_of(hashed: &str, name: &str) -> Option<bool> {
    let (salt, hash) = hashed.split_once('|')?;
    let (salt, hash) = (BASE64.decode(salt).ok()?, BASE64.decode(hash).ok()?);
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
    Some(ring::hmac::verify(&key, name.to_lowercase().as_bytes(), &hash).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPzkr7qQKgyoPANvORIoMwBqZ61XZYfsZSGX7qYSRQLq";
    const TWO: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAoEprErJCz3pFE3ufjtFyW8oaaujXbyAYKsWfh1uW5b";

    fn key(line: &str) -> PublicKey {
        PublicKey::from_openssh(line).unwrap()
    }

    fn known(text: &str, host: &str, port: u16) -> Known {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("known_hosts");
        std::fs::write(&path, text).unwrap();
        Known::load(host, port, &[path, dir.path().join("missing")], None).unwrap()
    }

    #[test]
    fn a_known_key_is_accepted_and_another_is_a_change() {
        let text = format!("# mine\nother.test,h.test {ONE} comment\n");
        let known = known(&text, "h.test", 22);
        known.check(&key(ONE)).unwrap();
        let error = known.check(&key(TWO)).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::ChangedHost { .. }));
        for shown in [key(ONE), key(TWO)] {
            assert!(text.contains(&shown.fingerprint(HashAlg::Sha256).to_string()), "{text}");
        }
        assert!(text.contains("known_hosts:2"), "{text}");
    }

    #[test]
    fn an_unknown_host_is_not_accepted() {
        let error = known(&format!("h.test {ONE}\n"), "i.test", 22).check(&key(ONE)).unwrap_err();
        assert!(matches!(&error, Error::UnknownHost { .. }));
        assert!(error.to_string().contains(&format!("i.test {ONE}")), "{error}");
    }

    #[test]
    fn names_with_ports_patterns_and_hashes() {
        known(&format!("[h.test]:2222 {ONE}\n"), "h.test", 2222).check(&key(ONE)).unwrap();
        assert!(known(&format!("[h.test]:2222 {ONE}\n"), "h.test", 22).check(&key(ONE)).is_err());
        known(&format!("*.test,!x.test {ONE}\n"), "h.test", 22).check(&key(ONE)).unwrap();
        assert!(known(&format!("*.test,!x.test {ONE}\n"), "x.test", 22).check(&key(ONE)).is_err());
        // The key of the usual port will do; the one of this port goes before it.
        known(&format!("h.test {ONE}\n"), "h.test", 2222).check(&key(ONE)).unwrap();
        assert!(
            known(&format!("h.test {ONE}\n[h.test]:2222 {TWO}\n"), "h.test", 2222).check(&key(ONE)).is_err()
        );
        let salt = [7_u8; 20];
        let hash = ring::hmac::sign(
            &ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt),
            b"h.test",
        );
        let line = format!("|1|{}|{} {ONE}\n", BASE64.encode(salt), BASE64.encode(hash.as_ref()));
        known(&line, "h.test", 22).check(&key(ONE)).unwrap();
        assert!(known(&line, "i.test", 22).check(&key(ONE)).is_err());
    }

    #[test]
    fn a_revoked_key_is_refused_even_if_it_is_known() {
        let known = known(&format!("h.test {ONE}\n@revoked * {ONE}\n"), "h.test", 22);
        assert!(matches!(known.check(&key(ONE)), Err(Error::RevokedHost { .. })));
    }

    #[test]
    fn a_given_fingerprint_decides() {
        let fingerprint = key(TWO).fingerprint(HashAlg::Sha256).to_string();
        let mut known = known(&format!("h.test {ONE}\n"), "h.test", 22);
        known.fingerprint = Some(fingerprint);
        known.check(&key(TWO)).unwrap();
        assert!(matches!(known.check(&key(ONE)), Err(Error::ChangedHost { .. })));
    }

    #[test]
    fn rubbish_is_passed_over() {
        let known = known("h.test\n@x\nh.test ssh-rsa !!!\n|1|x h\n\u{0}\n", "h.test", 22);
        assert!(matches!(known.check(&key(ONE)), Err(Error::UnknownHost { .. })));
        assert_eq!(known.algorithms().len(), 6);
    }
}

//! What Nix knows of a store path: `nix path-info --json`, in the shapes that its versions give it.
//!
//! | Versions | Shape |
//! | --- | --- |
//! | Nix 2.8 to 2.18, Lix | `[{"path": …, "narHash": "sha256-…", "narSize": …}]` |
//! | Nix 2.19 and newer | `{"/nix/store/…": {…} or null}` |
//! | Nix 2.33 and newer | `{"version": 2, "info": {"<hash>-<name>": {…, "narHash": {"algorithm", "format", "hash"}}}}` |

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde_json::Value;

use crate::archive::nar::{Hash, Sum};

/// Store paths that are asked about at once; a command line has its limits.
const AT_ONCE: usize = 500;

/// Asks Nix for size and hash of store paths. Paths that Nix does not know are missing in the answer.
///
/// # Errors
/// What Nix said.
pub fn ask(paths: &[PathBuf]) -> Result<BTreeMap<PathBuf, Sum>, String> {
    let mut known = BTreeMap::new();
    for some in paths.chunks(AT_ONCE) {
        let answer = super::ask(super::command(&["path-info", "--json"]).args(some))?;
        known.extend(read(&answer)?);
    }
    Ok(known)
}

/// Asks Nix for one store path.
///
/// # Errors
/// What Nix said.
pub fn ask_one(path: &Path) -> Result<Sum, String> {
    let known = ask(&[path.to_owned()])?;
    known.get(path).copied().ok_or_else(|| "Nix does not know this path".to_owned())
}

fn read(answer: &[u8]) -> Result<BTreeMap<PathBuf, Sum>, String> {
    let answer: Value =
        serde_json::from_slice(answer).map_err(|error| format!("nix's answer is no JSON: {error}"))?;
    let mut known = BTreeMap::new();
    let mut note = |path: &str, entry: &Value| {
        let path = if path.starts_with('/') { path.into() } else { super::store_directory().join(path) };
        let size = entry.get("narSize").and_then(Value::as_u64);
        let hash = entry.get("narHash").and_then(hash_of);
        if let (Some(size), Some(hash)) = (size, hash) {
            known.insert(path, Sum { size, hash });
        }
    };
    match answer.get("info").unwrap_or(&answer) {
        Value::Array(entries) => {
            for entry in entries {
                note(entry.get("path").and_then(Value::as_str).unwrap_or_default(), entry);
            }
        }
        Value::Object(entries) => {
            for (path, entry) in entries {
                note(path, entry);
            }
        }
        _ => return Err("nix's answer has a shape that is not known here".to_owned()),
    }
    Ok(known)
}

fn hash_of(value: &Value) -> Option<Hash> {
    if let Some(text) = value.as_str() {
        return parse_hash(text);
    }
    let part = |name| value.get(name).and_then(Value::as_str);
    (part("algorithm") == Some("sha256")).then(|| digest(part("hash")?))?
}

/// Reads a SHA-256 hash in any form that Nix writes: `sha256-<base 64>`, `sha256:<base 32, 16 or 64>`.
#[must_use]
pub fn parse_hash(text: &str) -> Option<Hash> {
    digest(text.strip_prefix("sha256-").or_else(|| text.strip_prefix("sha256:"))?)
}

fn digest(text: &str) -> Option<Hash> {
    match text.len() {
        64 => {
            let mut hash = [0; 32];
            for (byte, pair) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
                *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
            }
            Some(hash)
        }
        52 => from_base32(text),
        43 | 44 => {
            let engine = base64::engine::general_purpose::STANDARD_NO_PAD;
            engine.decode(text.trim_end_matches('=')).ok()?.try_into().ok()
        }
        _ => None,
    }
}

/// Nix's base 32: least significant digit last, without `e`, `o`, `t` and `u`.
fn from_base32(text: &str) -> Option<Hash> {
    let digits = b"0123456789abcdfghijklmnpqrsvwxyz";
    let mut hash = [0_u8; 32];
    for (index, c) in text.bytes().rev().enumerate() {
        let digit = digits.iter().position(|&digit| digit == c)? as u16;
        let (byte, bit) = (index * 5 / 8, index * 5 % 8);
        let wide = digit << bit;
        *hash.get_mut(byte)? |= (wide & 0xff) as u8;
        match hash.get_mut(byte + 1) {
            Some(next) => *next |= (wide >> 8) as u8,
            None if wide >> 8 != 0 => return None,
            None => {}
        }
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::nar;

    #[test]
    fn every_shape_of_the_answer_is_read() {
        let path = "/nix/store/8mryvpwrv3hx4d52rw4hsrk7q3p60miw-ghc-9.0.2";
        let sri = "sha256-/pynywCV/vHopY8m6jHNCkS7RHv2rUyn+n9b9qDLTm0=";
        let hash = parse_hash(sri).unwrap();
        let entry = serde_json::json!({"path": path, "narHash": sri, "narSize": 30_841_904});
        let hexadecimal =
            serde_json::json!({"algorithm": "sha256", "format": "base16", "hash": nar::hex(&hash)});
        let newest = serde_json::json!({"narHash": hexadecimal, "narSize": 30_841_904});
        let expected = BTreeMap::from([(PathBuf::from(path), Sum { size: 30_841_904, hash })]);
        for answer in [
            serde_json::json!([entry]),
            serde_json::json!({path: entry, "/nix/store/gone": null}),
            serde_json::json!({"version": 2, "info": {path: newest}}),
        ] {
            assert_eq!(read(answer.to_string().as_bytes()).unwrap(), expected, "{answer}");
        }
        assert!(read(b"7").is_err() && read(b"{").is_err());
    }

    #[test]
    fn hashes_are_read_in_every_base() {
        let hash = std::array::from_fn(|index| (index * 37 % 256) as u8);
        assert_eq!(parse_hash(&format!("sha256:{}", nar::hex(&hash))), Some(hash));
        assert_eq!(parse_hash(&format!("sha256:{}", nar::base32(&hash))), Some(hash));
        let base64 = base64::engine::general_purpose::STANDARD.encode(hash);
        assert_eq!(parse_hash(&format!("sha256-{base64}")), Some(hash));
        for text in ["", "sha1-x", "sha256:zz", &format!("sha256:{}", "z".repeat(52)), "sha256:äöü"] {
            assert_eq!(parse_hash(text), None, "{text}");
        }
    }
}

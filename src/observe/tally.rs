//! What the tools that steps call did. They run in processes of their own and know no daemon, so each notes a line in a
//! file of the job, which the daemon reads when the job is over. Whatever a step writes there can be read as no more than
//! numbers.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The variable that names the file.
pub const VARIABLE: &str = "SOWER_TALLY";
/// The most that is read of it, in bytes.
const LIMIT: u64 = 256 << 10;

/// One thing that was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "did", rename_all = "lowercase")]
pub enum Entry {
    /// An image was pushed, or not.
    Push {
        /// It is in the registry.
        ok: bool,
        /// Bytes that were sent.
        sent: u64,
        /// Bytes of layers that the registry had.
        skipped: u64,
    },
    /// A release was deployed, or not.
    Deploy {
        /// Its pods are well.
        ok: bool,
    },
}

/// Notes something in the file that the environment names. A job goes on without.
pub fn note(entry: &Entry) {
    let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) else { return };
    let Ok(mut line) = serde_json::to_vec(entry) else { return };
    line.push(b'\n');
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    let _ = file.and_then(|mut file| file.write_all(&line));
}

/// Reads what was noted; nothing where there is no such file.
#[must_use]
pub fn read(path: &Path) -> Vec<Entry> {
    let mut text = String::new();
    let file = File::open(path);
    if file.and_then(|file| file.take(LIMIT).read_to_string(&mut text)).is_err() {
        return Vec::new();
    }
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_entry_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tally");
        std::fs::write(
            &path,
            "{\"did\":\"push\",\"ok\":true,\"sent\":5,\"skipped\":7}\nnonsense\n{\"did\":\"deploy\",\"ok\":false}\n{\"did\":\"fly\"}\n",
        )
        .unwrap();
        assert_eq!(read(&path), [Entry::Push { ok: true, sent: 5, skipped: 7 }, Entry::Deploy { ok: false }]);
        assert_eq!(read(&folder.path().join("none")), []);
    }
}

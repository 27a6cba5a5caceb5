//! A store path against Nix's own book: its size by metadata alone, its hash where bodies are read as well.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::nar::{self, Sum};

/// What a store path is, and what Nix says that it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct View {
    /// The store path.
    #[serde(serialize_with = "super::check::lossy")]
    pub store_path: PathBuf,
    /// Whether all that was compared agrees.
    pub agrees: bool,
    /// Bytes of its NAR by Nix's book.
    pub size_expected: u64,
    /// Bytes of its NAR as it is.
    pub size_found: u64,
    /// SHA-256 of its NAR by Nix's book, in hexadecimal.
    pub hash_expected: String,
    /// SHA-256 of its NAR as it is; not there if bodies were not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash_found: Option<String>,
}

impl View {
    /// Whether the hash was compared and is right.
    #[must_use]
    pub fn hash_agrees(&self) -> bool {
        self.hash_found.as_ref() == Some(&self.hash_expected)
    }

    /// One sentence about it.
    #[must_use]
    pub fn text(&self) -> String {
        let grouped = super::words::grouped;
        if self.size_expected != self.size_found {
            return format!(
                "Nix's book has {} bytes for this store path and {} are there",
                grouped(self.size_expected),
                grouped(self.size_found)
            );
        }
        match &self.hash_found {
            None => format!("{} bytes, as Nix's book says", grouped(self.size_found)),
            Some(found) if *found == self.hash_expected => {
                format!("{} bytes and the hash, as Nix's book says", grouped(self.size_found))
            }
            Some(found) => format!(
                "the size is right and the content is not: sha256 {} by Nix's book, {found} found",
                self.hash_expected
            ),
        }
    }
}

/// Compares a store path with Nix's book; with `hash` every file in it is read.
///
/// # Errors
/// What cannot be read, with its path.
pub fn compare(store_path: &Path, known: &Sum, hash: bool) -> io::Result<View> {
    let size_found = nar::size(store_path)?;
    // A wrong size says it all; reading would take long and add nothing.
    let hash_found = (hash && size_found == known.size)
        .then(|| nar::sum(store_path, None))
        .transpose()?
        .map(|sum| nar::hex(&sum.hash));
    let hash_expected = nar::hex(&known.hash);
    let agrees = size_found == known.size && hash_found.as_ref().is_none_or(|found| *found == hash_expected);
    Ok(View {
        store_path: store_path.to_owned(),
        agrees,
        size_expected: known.size,
        size_found,
        hash_expected,
        hash_found,
    })
}

//! `hashFiles`: one digest over the files that match a list of patterns.

use std::path::Path;

/// The digest of all files under `root` that match `patterns`, as 64 hexadecimal digits: SHA-256 over the
/// binary SHA-256 of each file, in the order of their names. Empty when no file matches.
///
/// # Errors
/// A pattern that cannot be read, or a file that cannot (with its path).
pub fn hash_files(root: &Path, patterns: &[String]) -> Result<String, String> {
    let _ = (root, patterns);
    Ok(String::new())
}

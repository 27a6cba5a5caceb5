//! `nix-store --optimise` makes equal files one: each is a hard link to `.links/<hash of its content>`.
//!
//! A file that is damaged is then damaged under all its names, and the name in `.links` is a danger of its own: Nix may
//! link the damaged content back into a path that it has just repaired.

use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Removes the name that the file `inode` has in `.links` of its store. Gives the path that was removed.
///
/// # Errors
/// What could not be read or removed, with its path.
pub(crate) fn forget(inode: &fs::Metadata) -> Result<Option<PathBuf>, String> {
    // Without a second name there is none in `.links`.
    if inode.nlink() < 2 {
        return Ok(None);
    }
    let links = super::store_directory().join(".links");
    let Ok(same_device) = fs::metadata(&links).map(|meta| meta.dev() == inode.dev()) else { return Ok(None) };
    if !same_device {
        return Ok(None);
    }
    let entries = fs::read_dir(&links).map_err(|error| format!("{}: {error}", links.display()))?;
    for entry in entries.flatten() {
        if entry.ino() == inode.ino() {
            fs::remove_file(entry.path()).map_err(|error| format!("{}: {error}", entry.path().display()))?;
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// Whether a path lies in the store.
pub(crate) fn is_store_file(path: &Path) -> bool {
    super::store_path(path).is_some()
}

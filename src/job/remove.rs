//! Removing what a job leaves on disk, read-only directories included, and never through a symbolic link.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Removes a directory tree; one that is not there is fine.
///
/// # Errors
/// With the first thing that could not be removed.
pub fn tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            // Go's module cache makes its directories read-only.
            make_writable(path);
            fs::remove_dir_all(path)
        }
        other => other,
    }
}

fn make_writable(directory: &Path) {
    let Ok(meta) = fs::symlink_metadata(directory) else { return };
    if !meta.is_dir() {
        return;
    }
    let mode = meta.permissions().mode() | 0o700;
    // What cannot be changed shows in the error of the removal.
    let _ = fs::set_permissions(directory, fs::Permissions::from_mode(mode));
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            make_writable(&entry.path());
        }
    }
}

//! The archives below a directory: every file whose name ends in `.a` or `.rlib`, and what ends in `.lib` and begins as an
//! archive does (import libraries; others use that ending for something else).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// What was found below a directory.
#[derive(Debug, Default)]
pub struct Found {
    /// The archives, sorted by path.
    pub archives: Vec<PathBuf>,
    /// Folders that could not be read, with the system's word.
    pub unreadable: Vec<String>,
}

/// Looks below `directory`. Links to files are followed, links to directories are not: they may lead in circles.
#[must_use]
pub fn archives_below(directory: &Path) -> Found {
    let mut found = Found::default();
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) => {
                found.unreadable.push(format!("{}: {error}", folder.display()));
                continue;
            }
        };
        for entry in entries.flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            let path = entry.path();
            if kind.is_dir() {
                folders.push(path);
            } else if is_archive(&path) && (kind.is_file() || path.is_file()) {
                // A link to nothing is no archive; nobody can link with it either way.
                found.archives.push(path);
            }
        }
    }
    found.archives.sort();
    found
}

/// Whether a file goes by the name of an archive.
#[must_use]
pub fn is_archive(path: &Path) -> bool {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("a" | "rlib") => true,
        Some("lib") => {
            let mut magic = [0; 8];
            path.is_file()
                && File::open(path).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok())
                && matches!(&magic, b"!<arch>\n" | b"!<thin>\n")
        }
        _ => false,
    }
}

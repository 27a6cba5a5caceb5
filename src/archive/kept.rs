//! Old files that a mend kept (`--keep-old`), outside the directory they were in, and putting them back (`--undo`).
//!
//! In `$SOWER_STATE_DIR/archives` (else `$XDG_STATE_HOME/sower`, `/var/lib/sower` for root, `~/.local/state/sower`): the
//! file, and beside it a record of where it belongs. A store path must not hold anything that Nix did not put there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::nar;
use super::replace::{Failed, Replacement, failed};

/// What is written beside an old file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The archive.
    pub path: PathBuf,
    /// The old file.
    pub old: PathBuf,
    /// SHA-256 of the old file.
    pub before: String,
    /// SHA-256 of what took its place.
    pub after: String,
    /// Where that came from.
    pub source: String,
    /// When, in seconds since 1970.
    pub time: u64,
}

/// Why an old file was not put back.
#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    /// No old file of it was kept.
    #[error("{}: no old file of it was kept (--keep-old keeps one)", path.display())]
    NothingKept {
        /// The archive.
        path: PathBuf,
    },
    /// It is not what the mend made of it.
    #[error("{}: it was changed after the mend, so nothing is put back; the old file is {}", path.display(), old.display())]
    ChangedSince {
        /// The archive.
        path: PathBuf,
        /// The old file.
        old: PathBuf,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    Failed(#[from] Failed),
}

fn directory() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("SOWER_STATE_DIR")
        .or_else(|| set("XDG_STATE_HOME").map(|dir| dir.join("sower")))
        .or_else(|| rustix::process::geteuid().is_root().then(|| "/var/lib/sower".into()))
        .or_else(|| set("HOME").map(|dir| dir.join(".local/state/sower")))
        .unwrap_or_else(|| ".".into())
        .join("archives")
}

/// Keeps another name of the old file, or a copy where there can be none.
///
/// # Errors
/// Whatever the file system says.
pub(super) fn keep(real: &Path) -> Result<PathBuf, Failed> {
    let directory = directory();
    fs::create_dir_all(&directory).map_err(failed(&directory, "making the directory for old files"))?;
    let name = real.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let old = (0..10_000_u32)
        .map(|number| directory.join(format!("{name}.{number}")))
        .find(|path| path.symlink_metadata().is_err())
        .unwrap_or_else(|| directory.join(&name));
    if fs::hard_link(real, &old).is_err() {
        fs::copy(real, &old).map_err(failed(&old, "keeping the old file"))?;
        File::open(&old).and_then(|file| file.sync_all()).map_err(failed(&old, "keeping the old file"))?;
    }
    Ok(old)
}

/// Writes down what became of the file whose old content is `old`.
///
/// # Errors
/// Whatever the file system says.
pub(super) fn record(record: &Record) -> Result<(), Failed> {
    let path = beside(&record.old);
    let text = serde_json::to_vec_pretty(record).map_err(|error| failed(&path, "writing")(error.into()))?;
    let mut file = File::create(&path).map_err(failed(&path, "writing"))?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed(&path, "writing"))
}

fn beside(old: &Path) -> PathBuf {
    let mut name = old.as_os_str().to_owned();
    name.push(".json");
    name.into()
}

/// Puts the old file of the last mend of `path` back, in one step and with the marks of the file that is there.
///
/// # Errors
/// See [`UndoError`]; whatever fails, the file is as it was.
pub fn undo(path: &Path) -> Result<Record, UndoError> {
    let real = fs::canonicalize(path).map_err(failed(path, "looking at it"))?;
    let entries = fs::read_dir(directory()).into_iter().flatten().flatten();
    let records = entries
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "json"))
        .filter_map(|entry| serde_json::from_slice::<Record>(&fs::read(entry.path()).ok()?).ok());
    let last = records.filter(|record| record.path == real).max_by_key(|record| record.time);
    let record = last.ok_or_else(|| UndoError::NothingKept { path: path.to_owned() })?;
    let now = File::open(&real).map_err(failed(&real, "opening it"))?;
    let hash = nar::file_hash(&now).map_err(failed(&real, "reading it"))?;
    if nar::hex(&hash) != record.after {
        return Err(UndoError::ChangedSince { path: path.to_owned(), old: record.old });
    }
    let meta = now.metadata().map_err(failed(&real, "looking at it"))?;
    let mut old = File::open(&record.old).map_err(failed(&record.old, "opening the old file"))?;
    let size = old.metadata().map_err(failed(&record.old, "looking at the old file"))?.size();
    let mut replacement = Replacement::new(&real, size)?;
    io::copy(&mut old, replacement.file()).map_err(failed(&record.old, "copying the old file"))?;
    replacement.finish(&meta)?;
    replacement.put()?;
    for gone in [beside(&record.old), record.old.clone()] {
        fs::remove_file(&gone).map_err(failed(&gone, "removing what is not needed any more"))?;
    }
    Ok(record)
}

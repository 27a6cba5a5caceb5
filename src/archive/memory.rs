//! What was found sound is remembered, so that asking again costs a look at the file's metadata.
//!
//! An archive is known by path, size, times, inode and device; a store path by its name, which Nix never uses twice for
//! something else. What cannot be read counts as forgotten, what cannot be written costs only time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::check::{Kind, Report};
use super::nar;
use super::nix::joins::Joins;

/// Things that are remembered at most; with more, those that are gone are forgotten first.
const ENTRIES_AT_MOST: usize = 50_000;
/// A larger file is not ours, in bytes.
const SIZE_AT_MOST: u64 = 64 << 20;
/// Changes with the meaning of what is written, and with what counts as sound.
const VERSION: u32 = 2;

/// What is remembered.
#[derive(Debug, Default)]
pub struct Memory {
    file: Option<PathBuf>,
    content: Content,
    changed: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    version: u32,
    archives: BTreeMap<PathBuf, Sound>,
    /// Store paths and the archives in them.
    store_paths: BTreeMap<PathBuf, Vec<PathBuf>>,
    /// What an installable needed.
    closures: BTreeMap<String, Closure>,
}

/// A sound archive.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Sound {
    size: u64,
    device: u64,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    kind: Kind,
    thin: bool,
    members: u64,
    symbols: u64,
    /// The hash of its store path, if that was compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nar_hash: Option<String>,
}

/// What an installable needed when Nix was asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closure {
    /// Store paths that were there.
    pub there: BTreeSet<PathBuf>,
    /// Outputs that were not there: when one is, Nix is to be asked again.
    pub missing: BTreeSet<PathBuf>,
    /// Derivations that are about to be built and join static libraries.
    #[serde(default)]
    pub joins: Vec<Joins>,
}

impl Memory {
    /// What is remembered in `archives.json` of `$SOWER_CACHE_DIR`, else `$XDG_CACHE_HOME/sower`, else `~/.cache/sower`.
    #[must_use]
    pub fn from_environment() -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let directory = set("SOWER_CACHE_DIR")
            .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("sower")))
            .or_else(|| set("HOME").map(|dir| dir.join(".cache/sower")));
        directory.map_or_else(Self::default, |directory| Self::at(&directory.join("archives.json")))
    }

    /// What is remembered in this file.
    #[must_use]
    pub fn at(file: &Path) -> Self {
        let small = fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.len() <= SIZE_AT_MOST);
        let content = small.then(|| fs::read(file).ok()).flatten();
        let content = content.and_then(|bytes| serde_json::from_slice::<Content>(&bytes).ok());
        let content = content.filter(|content| content.version == VERSION).unwrap_or_default();
        Self { file: Some(file.to_owned()), content, changed: false }
    }

    /// Forgets everything.
    pub fn forget(&mut self) {
        self.content = Content::default();
        self.changed = true;
    }

    /// The report on an archive that was sound, if it is still the same file. With `hashed` only if the hash of its store
    /// path was found right as well: Nix gives no other content the same path.
    #[must_use]
    pub fn sound(&self, path: &Path, hashed: bool) -> Option<Report> {
        let known = self.content.archives.get(path)?;
        if hashed && known.nar_hash.is_none() {
            return None;
        }
        let meta = fs::metadata(path).ok()?;
        (known.same(&meta)).then(|| known.report(path))
    }

    /// Remembers a sound archive. `meta` is its metadata from before it was read.
    pub fn remember(&mut self, report: &Report, meta: &fs::Metadata, hash: Option<&nar::Hash>) {
        // A thin archive is as whole as files elsewhere.
        if !report.sound || !report.faults.is_empty() || report.thin {
            return;
        }
        self.content.archives.insert(report.path.clone(), Sound::new(report, meta, hash));
        self.changed = true;
    }

    /// The archives in a store path, if it was looked through.
    #[must_use]
    pub fn archives_of(&self, store_path: &Path) -> Option<&[PathBuf]> {
        self.content.store_paths.get(store_path).map(Vec::as_slice)
    }

    /// Remembers the archives in a store path.
    pub fn remember_archives_of(&mut self, store_path: &Path, archives: &[PathBuf]) {
        self.content.store_paths.insert(store_path.to_owned(), archives.to_vec());
        self.changed = true;
    }

    /// What an installable needed, if nothing that was missing has come and nothing that was there has gone.
    #[must_use]
    pub fn closure(&self, key: &str) -> Option<&Closure> {
        let known = self.content.closures.get(key)?;
        let same = known.there.iter().all(|path| path.symlink_metadata().is_ok())
            && known.missing.iter().all(|path| path.symlink_metadata().is_err());
        same.then_some(known)
    }

    /// Remembers what an installable needs. An earlier answer under another key stays.
    pub fn remember_closure(&mut self, key: &str, closure: Closure) {
        self.content.closures.insert(key.to_owned(), closure);
        self.changed = true;
    }

    /// Writes what is to be remembered, if there is anything new.
    ///
    /// # Errors
    /// Whatever the file system says; nothing is lost by it but time.
    pub fn write(&mut self) -> std::io::Result<()> {
        let Some(file) = self.file.clone().filter(|_| self.changed) else { return Ok(()) };
        self.content.version = VERSION;
        if self.content.archives.len() + self.content.store_paths.len() > ENTRIES_AT_MOST {
            self.content.archives.retain(|path, _| path.exists());
            self.content.store_paths.retain(|path, _| path.exists());
        }
        while self.content.closures.len() > 64 {
            self.content.closures.pop_first();
        }
        let directory = file.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(directory)?;
        let mut beside = tempfile::NamedTempFile::new_in(directory)?;
        beside.write_all(&serde_json::to_vec(&self.content)?)?;
        beside.persist(&file).map_err(|error| error.error)?;
        self.changed = false;
        Ok(())
    }
}

impl Sound {
    fn new(report: &Report, meta: &fs::Metadata, hash: Option<&nar::Hash>) -> Self {
        Self {
            size: meta.len(),
            device: meta.dev(),
            inode: meta.ino(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
            kind: report.kind,
            thin: report.thin,
            members: report.members,
            symbols: report.symbols,
            nar_hash: hash.map(nar::hex),
        }
    }

    fn same(&self, meta: &fs::Metadata) -> bool {
        (self.size, self.device, self.inode) == (meta.len(), meta.dev(), meta.ino())
            && self.modified == (meta.mtime(), meta.mtime_nsec())
            && self.changed == (meta.ctime(), meta.ctime_nsec())
    }

    fn report(&self, path: &Path) -> Report {
        Report {
            path: path.to_owned(),
            sound: true,
            size: self.size,
            kind: self.kind,
            thin: self.thin,
            members: self.members,
            symbols: self.symbols,
            wide_table: None,
            faults: Vec::new(),
            more_faults: 0,
            lost: None,
            whole_until: self.size,
            nix: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_not_remembered() {
        let directory = tempfile::TempDir::new().unwrap();
        let archive = directory.path().join("liba.a");
        fs::write(&archive, "!<arch>\n").unwrap();
        let file = directory.path().join("cache/archives.json");
        let mut memory = Memory::at(&file);
        assert!(memory.sound(&archive, false).is_none());
        let report = crate::archive::check(&archive).unwrap();
        memory.remember(&report, &fs::metadata(&archive).unwrap(), None);
        memory.write().unwrap();
        let mut memory = Memory::at(&file);
        assert_eq!(memory.sound(&archive, false), Some(report));
        // Structure alone was looked at: it says nothing of the content.
        assert!(memory.sound(&archive, true).is_none());
        fs::write(&archive, "!<arch>\n").unwrap();
        assert!(memory.sound(&archive, false).is_none(), "written anew, with the same size");
        memory.forget();
        memory.write().unwrap();
        fs::write(&file, "rubbish").unwrap();
        assert!(Memory::at(&file).sound(&archive, false).is_none());
    }

    #[test]
    fn a_closure_is_asked_for_anew_when_something_was_built() {
        let directory = tempfile::TempDir::new().unwrap();
        let (there, built) = (directory.path().join("there"), directory.path().join("built"));
        fs::write(&there, "").unwrap();
        let mut memory = Memory::default();
        let closure =
            Closure { there: [there.clone()].into(), missing: [built.clone()].into(), joins: Vec::new() };
        memory.remember_closure("x.drv", closure.clone());
        assert_eq!(memory.closure("x.drv"), Some(&closure));
        fs::write(&built, "").unwrap();
        assert_eq!(memory.closure("x.drv"), None);
        fs::remove_file(&built).unwrap();
        fs::remove_file(&there).unwrap();
        assert_eq!(memory.closure("x.drv"), None);
    }
}

//! What was learned from earlier pushes.
//!
//! In one file, `facts`:
//!
//! - `layer`: what a plain layer became when it was compressed: diffID to digest and size. With it an unchanged layer is
//!   neither compressed nor sent again: a look at the registry is enough.
//! - `part`: the content of a group of store paths to its diffID: the group is found by reading the layer that it is a
//!   part of, and need not be put together to be known.
//! - `place`: digest to repositories that have it, from which other repositories of the registry can mount it.
//! - `repositories`: those that were pushed to.
//!
//! And in `sources`, one file each: a source, by its inode, length and times, to the image it became, so that a push
//! again opens no archive; in `last` a repository to the image that was pushed there last, so that one question tells of
//! all its blobs; and in `marks` a repository to what SHA-256 came to on its way through the layer that was split for it
//! last.
//!
//! What cannot be read counts as absent; a cache that cannot be written costs only time.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;

use super::facts::Facts;
use super::layer::Packed;
use super::report::Layer as LayerReport;
use super::source::Mark;
use super::{Digest, Repository};

/// The cache directory, or none where no place for it is known.
#[derive(Debug)]
pub struct Cache {
    directory: Option<PathBuf>,
    facts: Option<Facts>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Entry {
    digest: Digest,
    size: u64,
}

/// What an image became in a registry.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Remembered {
    /// The configuration.
    pub config: String,
    /// The manifest.
    pub manifest: String,
    /// Its media type.
    pub media_type: String,
    /// The layers, lowest first.
    pub layers: Vec<LayerReport>,
}

/// The image that was pushed to a repository last.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Last {
    /// Its manifest.
    pub manifest: Digest,
    /// Layers and configuration.
    pub blobs: Vec<Digest>,
}

/// Folders of the cache.
const SOURCES: &str = "sources";
const LAST: &str = "last";
const MARKS: &str = "marks";
/// The longest source that is read, in bytes. An image of 100 layers takes about 60 KB, and a fifth of it on disk.
const MAX_SOURCE: u64 = 8 << 20;
/// A source's zstd window is no longer than the source.
const MAX_WINDOW_LOG: u32 = 23;
/// zstd's own default.
const LEVEL: i32 = 3;
/// Above this number the older half of a folder goes.
const MAX_SOURCES: usize = 400;
/// Repositories that are remembered for a blob.
const MAX_PLACES: usize = 4;
/// A file that changed so shortly before may change again without its times showing it.
const SETTLED: Duration = Duration::from_secs(2);

impl Cache {
    /// `$SOWER_CACHE_DIR`, else `$XDG_CACHE_HOME/sower`, else `~/.cache/sower`, else none.
    #[must_use]
    pub fn from_environment() -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let directory = set("SOWER_CACHE_DIR")
            .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("sower")))
            .or_else(|| set("HOME").map(|dir| dir.join(".cache/sower")));
        Self::at(directory)
    }

    /// A cache that forgets.
    #[must_use]
    pub fn none() -> Self {
        Self::at(None)
    }

    fn at(directory: Option<PathBuf>) -> Self {
        let facts = directory.as_ref().map(|directory| Facts::at(directory.join("facts")));
        Self { directory, facts }
    }

    /// What the layer with this diffID was compressed to, by this scheme (see [`super::compress::Method::scheme`]).
    #[must_use]
    pub fn get(&self, diff_id: &Digest, scheme: &str) -> Option<Packed> {
        let entry: Entry = self.fact(&format!("layer {} {scheme}", diff_id.hex()))?;
        Some(Packed { digest: entry.digest, size: entry.size })
    }

    /// Remembers it.
    pub fn put(&self, diff_id: &Digest, scheme: &str, packed: &Packed) {
        let entry = Entry { digest: packed.digest.clone(), size: packed.size };
        self.note(&format!("layer {} {scheme}", diff_id.hex()), &entry);
    }

    /// The diffID of a group of store paths with this content (see [`super::relayer::Part::content`]).
    #[must_use]
    pub fn part(&self, content: &Digest) -> Option<Digest> {
        self.fact(&format!("part {}", content.hex()))
    }

    /// Remembers it.
    pub fn put_part(&self, content: &Digest, diff_id: &Digest) {
        self.note(&format!("part {}", content.hex()), diff_id);
    }

    /// What a source became.
    #[must_use]
    pub fn source(&self, key: &Digest) -> Option<Remembered> {
        self.read(SOURCES, key)
    }

    /// Remembers it.
    pub fn put_source(&self, key: &Digest, remembered: &Remembered) {
        self.write(SOURCES, key, remembered);
    }

    /// What was pushed to a repository last.
    #[must_use]
    pub fn last(&self, repository: &Repository) -> Option<Last> {
        self.read(LAST, &name_of(repository))
    }

    /// Remembers it.
    pub fn put_last(&self, repository: &Repository, last: &Last) {
        if self.last(repository).as_ref() != Some(last) {
            self.write(LAST, &name_of(repository), last);
        }
    }

    /// The marks of the layer that was split for a repository last; none if it was none.
    #[must_use]
    pub fn marks(&self, repository: &Repository) -> Vec<Mark> {
        self.read(MARKS, &name_of(repository)).unwrap_or_default()
    }

    /// Remembers them.
    pub fn put_marks(&self, repository: &Repository, marks: &[Mark]) {
        if !marks.is_empty() && self.marks(repository) != marks {
            self.write(MARKS, &name_of(repository), &marks);
        }
    }

    fn read<T: DeserializeOwned>(&self, folder: &str, key: &Digest) -> Option<T> {
        let file = std::fs::File::open(self.directory.as_ref()?.join(folder).join(key.hex())).ok()?;
        let mut file = zstd::stream::read::Decoder::new(file).ok()?;
        file.window_log_max(MAX_WINDOW_LOG).ok()?;
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_SOURCE), &mut bytes).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Two pushes at once are no matter: the file is put in place whole.
    fn write(&self, folder: &str, key: &Digest, value: &impl serde::Serialize) {
        let Some(directory) = self.directory.as_ref().map(|directory| directory.join(folder)) else {
            return;
        };
        let written = (|| {
            std::fs::create_dir_all(&directory)?;
            let mut file = tempfile::NamedTempFile::new_in(&directory)?;
            // The same digests stand in it several times.
            file.write_all(&zstd::bulk::compress(&serde_json::to_vec(value)?, LEVEL)?)?;
            file.persist(directory.join(key.hex()))?;
            trim(&directory);
            Ok::<(), std::io::Error>(())
        })();
        if let Err(error) = written {
            tracing::debug!(path = %directory.display(), %error, "cache not written");
        }
    }

    /// Other repositories of the same registry that have a blob.
    #[must_use]
    pub fn places(&self, digest: &Digest, repository: &Repository) -> Vec<String> {
        let all: Vec<(String, String)> = self.fact(&format!("place {}", digest.hex())).unwrap_or_default();
        let here = |(host, name): &(String, String)| *host == repository.host && *name != repository.name;
        all.into_iter().filter(here).map(|(_, name)| name).collect()
    }

    /// Remembers that a repository has a blob.
    pub fn put_place(&self, digest: &Digest, repository: &Repository) {
        let mut all: Vec<(String, String)> =
            self.fact(&format!("place {}", digest.hex())).unwrap_or_default();
        let this = (repository.host.clone(), repository.name.clone());
        if !all.contains(&this) {
            all.insert(0, this);
            all.truncate(MAX_PLACES);
            self.note(&format!("place {}", digest.hex()), &all);
        }
    }

    /// Repositories of the same registry from which blobs may be mounted.
    #[must_use]
    pub fn repositories(&self, repository: &Repository) -> Vec<String> {
        let all: Vec<(String, String)> = self.fact("repositories").unwrap_or_default();
        let here = |(host, name): &(String, String)| *host == repository.host && *name != repository.name;
        all.into_iter().filter(here).map(|(_, name)| name).take(MAX_PLACES).collect()
    }

    /// Remembers that a repository was pushed to.
    pub fn put_repository(&self, repository: &Repository) {
        let mut all: Vec<(String, String)> = self.fact("repositories").unwrap_or_default();
        let this = (repository.host.clone(), repository.name.clone());
        if !all.contains(&this) {
            all.insert(0, this);
            all.truncate(4 * MAX_PLACES);
            self.note("repositories", &all);
        }
    }

    fn fact<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        self.facts.as_ref()?.get(key)
    }

    fn note(&self, key: &str, value: &impl serde::Serialize) {
        if let Some(facts) = &self.facts {
            facts.put(key, value);
        }
    }
}

/// A repository's file in a folder.
fn name_of(repository: &Repository) -> Digest {
    Digest::of(repository.to_string().as_bytes())
}

/// Forgets the older half where there are too many.
fn trim(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    let mut entries: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    if entries.len() <= MAX_SOURCES {
        return;
    }
    let age = |path: &PathBuf| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    entries.sort_by_cached_key(age);
    for path in &entries[..entries.len() / 2] {
        // Another push may be at it, too.
        let _ = std::fs::remove_file(path);
    }
}

/// Names a file and what is to be made of it. `None` where its times do not tell one state from the next: it is no
/// plain file, or has just changed.
#[must_use]
pub fn source_key(path: &Path, settings: &str) -> Option<Digest> {
    let path = path.canonicalize().ok()?;
    let metadata = std::fs::metadata(&path).ok().filter(std::fs::Metadata::is_file)?;
    let changed = u64::try_from(metadata.ctime()).ok()?;
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(changed);
    if changed + SETTLED > SystemTime::now() {
        return None;
    }
    let facts = format!(
        "{:?} {} {} {} {}.{} {}.{} {settings}",
        path,
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec()
    );
    Some(Digest::of(facts.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_got_and_garbage_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(Some(directory.path().to_owned()));
        let diff_id = Digest::of(b"plain");
        let packed = Packed { digest: Digest::of(b"packed"), size: 7 };
        assert_eq!(cache.get(&diff_id, "s"), None);
        cache.put(&diff_id, "s", &packed);
        assert_eq!(cache.get(&diff_id, "s"), Some(packed));
        assert_eq!(cache.get(&diff_id, "t"), None);
        drop(cache);
        assert_eq!(Cache::at(Some(directory.path().to_owned())).get(&diff_id, "s").unwrap().size, 7);
        std::fs::write(directory.path().join("facts"), format!("layer {} s\t{{", diff_id.hex())).unwrap();
        assert_eq!(Cache::at(Some(directory.path().to_owned())).get(&diff_id, "s"), None);
    }

    #[test]
    fn a_source_is_known_by_its_key_until_there_are_too_many() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(Some(directory.path().to_owned()));
        let remembered = Remembered {
            config: "{}".to_owned(),
            manifest: "m".repeat(5000),
            media_type: "t".to_owned(),
            layers: Vec::new(),
        };
        for at in 0..=MAX_SOURCES {
            cache.put_source(&Digest::of(&at.to_le_bytes()), &remembered);
        }
        let last = Digest::of(&MAX_SOURCES.to_le_bytes());
        let sources = directory.path().join("sources");
        assert!(std::fs::read_dir(&sources).unwrap().count() <= MAX_SOURCES);
        assert_eq!(cache.source(&last).unwrap().manifest, remembered.manifest);
        std::fs::write(sources.join(last.hex()), "noise").unwrap();
        assert!(cache.source(&last).is_none());
    }

    #[test]
    fn a_blob_is_mounted_from_other_repositories_of_its_registry_only() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(Some(directory.path().to_owned()));
        let blob = Digest::of(b"x");
        let at = |host: &str, name: &str| Repository { host: host.to_owned(), name: name.to_owned() };
        for (host, name) in [("a", "one"), ("a", "two"), ("b", "one")] {
            cache.put_place(&blob, &at(host, name));
        }
        assert_eq!(cache.places(&blob, &at("a", "one")), ["two"]);
        assert_eq!(cache.places(&blob, &at("b", "three")), ["one"]);
        assert_eq!(cache.places(&blob, &at("c", "three")), [""; 0]);
    }

    #[test]
    fn a_file_that_has_just_changed_is_not_known_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image.tar");
        std::fs::write(&path, b"one").unwrap();
        assert_eq!(source_key(&path, ""), None);
        assert_eq!(source_key(directory.path(), ""), None);
    }
}

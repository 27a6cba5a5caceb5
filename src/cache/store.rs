//! Cache entries on disk.
//!
//! ```text
//! DIR/secret                           signs addresses
//! DIR/entries/REPOSITORY/ID.json       key, version, scope, size; there is an entry once this file is there
//! DIR/entries/REPOSITORY/ID.blob       its archive; the time of the .json is when it was last asked for
//! DIR/uploads/ID.json, ID.part, ID.b-… an archive that is being sent
//! ```

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The longest key that GitHub takes, in characters.
pub const MAX_KEY: usize = 512;
/// An upload to which nothing was written for so long is given up.
const STALE: Duration = Duration::from_secs(3600);
/// An upload that was written to within this time holds its key.
const BUSY: Duration = Duration::from_secs(60);
/// An entry that nobody asked for in so long is removed, as on GitHub.
const UNUSED: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a job may read and write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// `owner/name`. Entries of other repositories do not exist for it.
    pub repository: String,
    /// The ref under which it saves.
    pub scope: String,
    /// The refs whose entries it sees, in the order in which they are looked through: its own, that of the pull
    /// request's base, the default branch.
    pub reads: Vec<String>,
}

impl Grant {
    /// The grant of a job whose `github` context this is.
    #[must_use]
    pub fn of_context(github: &serde_json::Map<String, serde_json::Value>) -> Self {
        let text = |key: &str| github.get(key).and_then(|value| value.as_str()).unwrap_or_default();
        let default = github
            .get("event")
            .and_then(|event| event.pointer("/repository/default_branch"))
            .and_then(|value| value.as_str());
        let scope = text("ref").to_owned();
        let mut reads = vec![scope.clone()];
        for branch in [text("base_ref"), default.unwrap_or_default()] {
            let branch = format!("refs/heads/{}", branch.trim_start_matches("refs/heads/"));
            if branch != "refs/heads/" && !reads.contains(&branch) {
                reads.push(branch);
            }
        }
        Self { repository: text("repository").to_lowercase(), scope, reads }
    }
}

/// What is known of an entry, and of an upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The key under which it was saved.
    pub key: String,
    /// A hash over paths and compression; an entry is found only by the same one.
    pub version: String,
    /// The ref that saved it.
    pub scope: String,
    /// Bytes of the archive; of an upload, what was announced.
    pub size: u64,
    /// Milliseconds since 1970.
    pub created: u64,
    /// Of an upload: the folder of the repository.
    #[serde(default)]
    pub folder: String,
}

/// An entry that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The folder of its repository.
    pub folder: String,
    /// Its name there.
    pub id: String,
    /// What is known of it.
    pub meta: Meta,
}

/// Why something cannot be stored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is one already, or somebody is saving it now.
    #[error("Cache already exists. Scope: {scope}, Key: {key}, Version: {version}")]
    Exists {
        /// The ref.
        scope: String,
        /// The key.
        key: String,
        /// The version.
        version: String,
    },
    /// What was asked for cannot be.
    #[error("{0}")]
    Wrong(String),
    /// There is no such upload.
    #[error("there is no upload {0}; it was finished or given up")]
    NoUpload(String),
    /// It is larger than everything that is to be kept.
    #[error("{size} bytes are more than this cache keeps (quota {quota} bytes)")]
    TooLarge {
        /// Bytes of the archive.
        size: u64,
        /// Bytes that may be kept.
        quota: u64,
    },
    /// The disk.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A directory of entries.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
    quota: u64,
    counts: Arc<Counts>,
}

/// How often something was found, for the metrics.
#[derive(Debug, Default)]
pub struct Counts {
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Counts {
    /// Hits and misses.
    #[must_use]
    pub fn read(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }
}

/// What a sweep has removed, or would remove.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Entries and uploads.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
}

impl Store {
    /// Opens a directory, which is made if it is not there. `quota` is the most that is kept, in bytes.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(directory: &Path, quota: u64) -> Result<Self, Error> {
        for folder in [directory.join("entries"), directory.join("uploads")] {
            fs::create_dir_all(&folder).map_err(io_at(&folder))?;
        }
        Ok(Self { directory: directory.to_owned(), quota, counts: Arc::default() })
    }

    /// How often something was found.
    #[must_use]
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    fn entries(&self) -> PathBuf {
        self.directory.join("entries")
    }

    fn upload(&self, id: &str, end: &str) -> PathBuf {
        self.directory.join("uploads").join(format!("{id}.{end}"))
    }

    /// The archive of an entry.
    #[must_use]
    pub fn blob(&self, folder: &str, id: &str) -> Option<PathBuf> {
        let plain = |name: &str| !name.is_empty() && !name.contains(['/', '\\']) && !name.starts_with('.');
        (plain(folder) && plain(id)).then(|| self.entries().join(folder).join(format!("{id}.blob")))
    }

    /// The entry that these keys stand for: in each scope that may be read, each key in turn, first as it is, then
    /// as the beginning of a key, of which the newest counts.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn find(&self, grant: &Grant, keys: &[String], version: &str) -> Result<Option<Entry>, Error> {
        let entries = self.list(&folder_name(&grant.repository))?;
        for scope in &grant.reads {
            for key in keys {
                let fits = |entry: &&Entry| entry.meta.scope == *scope && entry.meta.version == version;
                let mine = || entries.iter().filter(fits);
                let newest = |entry: &&Entry| entry.meta.created;
                let exact = mine().filter(|entry| entry.meta.key == *key).max_by_key(newest);
                let found = exact
                    .or_else(|| mine().filter(|entry| entry.meta.key.starts_with(key)).max_by_key(newest));
                if let Some(found) = found {
                    self.touch(found);
                    self.counts.hits.fetch_add(1, Ordering::Relaxed);
                    return Ok(Some(found.clone()));
                }
            }
        }
        self.counts.misses.fetch_add(1, Ordering::Relaxed);
        Ok(None)
    }

    /// The entries of a grant's scopes whose key begins so, for diagnosis.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn similar(&self, grant: &Grant, key: &str) -> Result<Vec<Entry>, Error> {
        let mut entries = self.list(&folder_name(&grant.repository))?;
        entries.retain(|entry| grant.reads.contains(&entry.meta.scope) && entry.meta.key.starts_with(key));
        Ok(entries)
    }

    /// Whether the grant could read this entry's archive.
    fn touch(&self, entry: &Entry) {
        let file = self.entries().join(&entry.folder).join(format!("{}.json", entry.id));
        // When it was used last decides what goes first; that it cannot be noted is no reason to fail.
        if let Ok(file) = File::options().append(true).open(file) {
            let _ = file.set_modified(SystemTime::now());
        }
    }

    fn list(&self, folder: &str) -> Result<Vec<Entry>, Error> {
        let path = self.entries().join(folder);
        let mut found = Vec::new();
        let listing = match fs::read_dir(&path) {
            Ok(listing) => listing,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            Err(error) => return Err(io_at(&path)(error)),
        };
        for file in listing {
            let file = file.map_err(io_at(&path))?.path();
            let Some(id) = file_id(&file, "json") else { continue };
            let Some(meta) = read_meta(&file) else { continue };
            // Without its archive, whole, it is none.
            let whole =
                fs::metadata(path.join(format!("{id}.blob"))).is_ok_and(|blob| blob.len() == meta.size);
            if whole {
                found.push(Entry { folder: folder.to_owned(), id, meta });
            }
        }
        Ok(found)
    }

    /// Begins an upload; gives its id.
    ///
    /// # Errors
    /// When the key cannot be, or the entry exists already.
    pub fn reserve(&self, grant: &Grant, key: &str, version: &str, size: u64) -> Result<u64, Error> {
        if key.is_empty() || key.chars().count() > MAX_KEY || key.contains(',') {
            return Err(Error::Wrong(format!(
                "Key Validation Error: {key} must have 1 to {MAX_KEY} characters and no comma"
            )));
        }
        if size > self.quota {
            return Err(Error::TooLarge { size, quota: self.quota });
        }
        if grant.scope.is_empty() || version.is_empty() {
            return Err(Error::Wrong(
                "a job without a ref, or a cache without a version, cannot be kept".to_owned(),
            ));
        }
        let folder = folder_name(&grant.repository);
        let same = |meta: &Meta| meta.key == key && meta.version == version && meta.scope == grant.scope;
        let taken = self.list(&folder)?.iter().any(|entry| same(&entry.meta))
            || self.uploads(BUSY)?.iter().any(|(_, meta)| meta.folder == folder && same(meta));
        if taken {
            return Err(Error::Exists {
                scope: grant.scope.clone(),
                key: key.to_owned(),
                version: version.to_owned(),
            });
        }
        let meta = Meta {
            key: key.to_owned(),
            version: version.to_owned(),
            scope: grant.scope.clone(),
            size,
            created: millis(),
            folder,
        };
        // JavaScript's numbers are exact up to 2^53.
        let id = random()? >> 12;
        let part = self.upload(&id.to_string(), "part");
        File::create_new(&part).map_err(io_at(&part))?;
        write_json(&self.upload(&id.to_string(), "json"), &meta)?;
        Ok(id)
    }

    /// Uploads to which something was written within this time.
    fn uploads(&self, within: Duration) -> Result<Vec<(String, Meta)>, Error> {
        let path = self.directory.join("uploads");
        let mut found = Vec::new();
        for file in fs::read_dir(&path).map_err(io_at(&path))? {
            let file = file.map_err(io_at(&path))?.path();
            let Some(id) = file_id(&file, "json") else { continue };
            let fresh = age(&self.upload(&id, "part")).is_some_and(|age| age < within);
            if let (true, Some(meta)) = (fresh, read_meta(&file)) {
                found.push((id, meta));
            }
        }
        Ok(found)
    }

    /// The upload with this id, if it is the grant's own.
    fn own_upload(&self, grant: &Grant, id: &str) -> Result<Meta, Error> {
        let known = id.bytes().all(|byte| byte.is_ascii_digit()) && !id.is_empty() && id.len() < 20;
        let meta = known.then(|| read_meta(&self.upload(id, "json"))).flatten();
        meta.filter(|meta| meta.folder == folder_name(&grant.repository) && meta.scope == grant.scope)
            .ok_or_else(|| Error::NoUpload(id.to_owned()))
    }

    /// The newest upload of this key and version.
    ///
    /// # Errors
    /// When there is none.
    pub fn find_upload(&self, grant: &Grant, key: &str, version: &str) -> Result<String, Error> {
        let folder = folder_name(&grant.repository);
        self.uploads(STALE)?
            .into_iter()
            .filter(|(_, meta)| {
                meta.folder == folder
                    && meta.scope == grant.scope
                    && meta.key == key
                    && meta.version == version
            })
            .max_by_key(|(_, meta)| meta.created)
            .map(|(id, _)| id)
            .ok_or_else(|| Error::NoUpload(key.to_owned()))
    }

    /// Opens an upload of this grant for writing at a place.
    ///
    /// # Errors
    /// When there is no such upload.
    pub fn write_at(&self, grant: &Grant, id: &str, offset: u64) -> Result<Writer, Error> {
        self.own_upload(grant, id)?;
        self.writer(&self.upload(id, "part"), offset, false)
    }

    /// Opens an upload whose signed address was shown: its block of this name, or all of it.
    ///
    /// # Errors
    /// When there is no such upload.
    pub fn write_block(&self, id: &str, block: Option<&str>) -> Result<Writer, Error> {
        if read_meta(&self.upload(id, "json")).is_none() {
            return Err(Error::NoUpload(id.to_owned()));
        }
        let end = block.map_or_else(|| "part".to_owned(), block_end);
        self.writer(&self.upload(id, &end), 0, true)
    }

    fn writer(&self, path: &Path, offset: u64, fresh: bool) -> Result<Writer, Error> {
        let mut options = File::options();
        let options = options.write(true).create(fresh).truncate(fresh);
        let mut file = options.open(path).map_err(io_at(path))?;
        file.seek(SeekFrom::Start(offset)).map_err(io_at(path))?;
        Ok(Writer { file, path: path.to_owned(), left: self.quota.saturating_sub(offset), quota: self.quota })
    }

    /// Puts the blocks of an upload together, in this order.
    ///
    /// # Errors
    /// When a block was never sent.
    pub fn join_blocks(&self, id: &str, blocks: &[String]) -> Result<(), Error> {
        if read_meta(&self.upload(id, "json")).is_none() {
            return Err(Error::NoUpload(id.to_owned()));
        }
        let path = self.upload(id, "part");
        let mut out = File::create(&path).map_err(io_at(&path))?;
        for block in blocks {
            let from = self.upload(id, &block_end(block));
            let mut file =
                File::open(&from).map_err(|_| Error::Wrong(format!("block {block:?} was not sent")))?;
            io::copy(&mut file, &mut out).map_err(io_at(&from))?;
            fs::remove_file(&from).map_err(io_at(&from))?;
        }
        Ok(())
    }

    /// Makes an upload an entry. `size` is what the client says that it sent.
    ///
    /// # Errors
    /// When there is no such upload, or not all of it has come.
    pub fn commit(&self, grant: &Grant, id: &str, size: Option<u64>) -> Result<Entry, Error> {
        let mut meta = self.own_upload(grant, id)?;
        let part = self.upload(id, "part");
        let file = File::open(&part).map_err(io_at(&part))?;
        let length = file.metadata().map_err(io_at(&part))?.len();
        if let Some(size) = size
            && size != length
        {
            return Err(Error::Wrong(format!(
                "{length} bytes have come, not {size}; the cache is not saved"
            )));
        }
        meta.size = length;
        meta.created = millis();
        file.sync_data().map_err(io_at(&part))?;
        let folder = self.entries().join(&meta.folder);
        fs::create_dir_all(&folder).map_err(io_at(&folder))?;
        let blob = folder.join(format!("{id}.blob"));
        fs::rename(&part, &blob).map_err(io_at(&blob))?;
        // From here on it is there, and only whole.
        write_json(&folder.join(format!("{id}.json")), &meta)?;
        let _ = fs::remove_file(self.upload(id, "json"));
        let entry = Entry { folder: meta.folder.clone(), id: id.to_owned(), meta };
        self.sweep()?;
        Ok(entry)
    }

    /// Removes what is no use any more: uploads that were given up, entries that nobody asks for, and, until the rest
    /// fits the quota, what was asked for longest ago.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn sweep(&self) -> Result<Swept, Error> {
        self.sweep_as(false)
    }

    /// What [`Store::sweep`] would remove.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn would_sweep(&self) -> Result<Swept, Error> {
        self.sweep_as(true)
    }

    fn sweep_as(&self, dry: bool) -> Result<Swept, Error> {
        let mut swept = Swept::default();
        let mut remove = |files: &[&Path], bytes: u64| {
            swept.files += 1;
            swept.bytes += bytes;
            for file in files.iter().filter(|_| !dry) {
                let _ = fs::remove_file(file);
            }
        };
        let size = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
        let uploads = self.directory.join("uploads");
        for file in fs::read_dir(&uploads).map_err(io_at(&uploads))?.flatten() {
            if age(&file.path()).is_some_and(|age| age > STALE) {
                remove(&[&file.path()], size(&file.path()));
            }
        }
        let mut all = Vec::new();
        let entries = self.entries();
        for folder in fs::read_dir(&entries).map_err(io_at(&entries))?.flatten() {
            for file in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
                let path = file.path();
                let Ok(meta) = file.metadata() else { continue };
                let used = meta.modified().unwrap_or(UNIX_EPOCH);
                if file_id(&path, "json").is_some() {
                    all.push((used, size(&path.with_extension("blob")), path));
                } else if file_id(&path, "blob").is_none_or(|_| !path.with_extension("json").exists())
                    && age(&path).is_some_and(|age| age > STALE)
                {
                    // An archive whose entry was never written.
                    remove(&[&path], meta.len());
                }
            }
        }
        all.sort();
        let mut total: u64 = all.iter().map(|(_, size, _)| size).sum();
        let now = SystemTime::now();
        for (used, size, path) in all {
            let unused = now.duration_since(used).is_ok_and(|age| age > UNUSED);
            if unused || total > self.quota {
                // The entry goes first, so that nobody finds one without its archive.
                remove(&[&path, &path.with_extension("blob")], size);
                total = total.saturating_sub(size);
            }
        }
        Ok(swept)
    }
}

/// A part of an upload that is being written.
#[derive(Debug)]
pub struct Writer {
    file: File,
    path: PathBuf,
    left: u64,
    quota: u64,
}

impl Writer {
    /// Writes the next bytes.
    ///
    /// # Errors
    /// When the disk is full, or the upload larger than everything that is kept.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let count = bytes.len() as u64;
        let written = match self.left.checked_sub(count) {
            Some(left) => {
                self.left = left;
                self.file.write_all(bytes).map_err(io_at(&self.path))
            }
            None => Err(Error::TooLarge { size: self.quota.saturating_add(count), quota: self.quota }),
        };
        if written.is_err() {
            // It will never be whole: what has come must not keep the disk full until it is given up.
            let _ = self.file.set_len(0);
        }
        written
    }
}

/// A repository's name as that of one folder.
fn folder_name(repository: &str) -> String {
    let mut name = String::with_capacity(repository.len() + 2);
    for byte in repository.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(char::from(byte)),
            b'.' if !name.is_empty() => name.push('.'),
            _ => name.push_str(&format!("%{byte:02x}")),
        }
    }
    if name.is_empty() { "%".to_owned() } else { name }
}

fn block_end(block: &str) -> String {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(block.as_bytes());
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("b-{hex}")
}

fn file_id(path: &Path, extension: &str) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    name.strip_suffix(extension)?.strip_suffix('.').map(str::to_owned)
}

fn read_meta(path: &Path) -> Option<Meta> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(64 * 1024).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn write_json(path: &Path, meta: &Meta) -> Result<(), Error> {
    let text = serde_json::to_vec(meta).map_err(|error| Error::Wrong(error.to_string()))?;
    let fresh = path.with_extension("tmp");
    fs::write(&fresh, text).map_err(io_at(&fresh))?;
    fs::rename(&fresh, path).map_err(io_at(path))
}

fn age(path: &Path) -> Option<Duration> {
    fs::metadata(path).ok()?.modified().ok()?.elapsed().ok().or(Some(Duration::ZERO))
}

fn millis() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn random() -> Result<u64, Error> {
    getrandom::u64().map_err(|error| Error::Wrong(format!("no random number: {error}")))
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(reference: &str) -> Grant {
        let mut reads = vec![reference.to_owned()];
        if reference != "refs/heads/main" {
            reads.push("refs/heads/main".to_owned());
        }
        Grant { repository: "dev/app".to_owned(), scope: reference.to_owned(), reads }
    }

    fn save(store: &Store, grant: &Grant, key: &str, bytes: &[u8]) -> Result<Entry, Error> {
        let id = store.reserve(grant, key, "v", bytes.len() as u64)?.to_string();
        store.write_at(grant, &id, 0)?.write(bytes)?;
        store.commit(grant, &id, Some(bytes.len() as u64))
    }

    fn key(store: &Store, grant: &Grant, keys: &[&str]) -> Option<String> {
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        store.find(grant, &keys, "v").unwrap().map(|entry| entry.meta.key)
    }

    #[test]
    fn keys_are_looked_for_as_github_does() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), 1 << 20).unwrap();
        let (main, topic) = (grant("refs/heads/main"), grant("refs/heads/topic"));
        for name in ["ghc-1", "ghc-2", "node-1"] {
            save(&store, &main, name, b"x").unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        save(&store, &topic, "ghc-0", b"x").unwrap();
        assert_eq!(key(&store, &main, &["ghc-1"]).as_deref(), Some("ghc-1"));
        assert_eq!(key(&store, &main, &["ghc-9", "ghc-"]).as_deref(), Some("ghc-2"), "the newest");
        assert_eq!(key(&store, &main, &["ghc-0"]), None, "another branch's");
        assert_eq!(key(&store, &topic, &["ghc-"]).as_deref(), Some("ghc-0"), "the own branch first");
        assert_eq!(key(&store, &topic, &["node-"]).as_deref(), Some("node-1"), "then the default branch");
        let other = Grant { repository: "dev/other".to_owned(), ..grant("refs/heads/main") };
        assert_eq!(key(&store, &other, &["ghc-"]), None, "another repository's");
        assert!(store.find(&main, &["ghc-1".to_owned()], "w").unwrap().is_none(), "another version");
    }

    #[test]
    fn an_entry_is_written_once_and_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), 1 << 20).unwrap();
        let main = grant("refs/heads/main");
        let id = store.reserve(&main, "k", "v", 4).unwrap().to_string();
        assert!(matches!(store.reserve(&main, "k", "v", 4), Err(Error::Exists { .. })), "somebody saves it");
        store.write_at(&main, &id, 2).unwrap().write(b"cd").unwrap();
        assert!(key(&store, &main, &["k"]).is_none());
        assert!(store.commit(&main, &id, Some(5)).is_err());
        assert!(store.commit(&grant("refs/heads/topic"), &id, Some(4)).is_err(), "another job's");
        store.write_at(&main, &id, 0).unwrap().write(b"ab").unwrap();
        let entry = store.commit(&main, &id, Some(4)).unwrap();
        let blob = store.blob(&entry.folder, &entry.id).unwrap();
        assert_eq!(fs::read(&blob).unwrap(), b"abcd");
        assert!(matches!(save(&store, &main, "k", b"z"), Err(Error::Exists { .. })));
        assert!(store.blob("..", "x").is_none() && store.blob("a/b", "x").is_none());
        // What a power cut leaves of an archive is no entry.
        fs::write(&blob, b"ab").unwrap();
        assert!(key(&store, &main, &["k"]).is_none());
        assert!(store.reserve(&main, "a,b", "v", 1).is_err());
    }

    #[test]
    fn blocks_come_in_any_order() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), 1 << 20).unwrap();
        let main = grant("refs/heads/main");
        let id = store.reserve(&main, "k", "v", 0).unwrap().to_string();
        store.write_block(&id, Some("two/=")).unwrap().write(b"cd").unwrap();
        store.write_block(&id, Some("one/=")).unwrap().write(b"ab").unwrap();
        assert!(store.join_blocks(&id, &["none".to_owned()]).is_err());
        store.join_blocks(&id, &["one/=".to_owned(), "two/=".to_owned()]).unwrap();
        assert_eq!(store.find_upload(&main, "k", "v").unwrap(), id);
        let entry = store.commit(&main, &id, Some(4)).unwrap();
        assert_eq!(fs::read(store.blob(&entry.folder, &entry.id).unwrap()).unwrap(), b"abcd");
    }

    #[test]
    fn what_was_used_longest_ago_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), 25).unwrap();
        let main = grant("refs/heads/main");
        for name in ["a", "b"] {
            save(&store, &main, name, &[0; 10]).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(key(&store, &main, &["a"]).is_some());
        std::thread::sleep(Duration::from_millis(5));
        save(&store, &main, "c", &[0; 10]).unwrap();
        assert!(key(&store, &main, &["b"]).is_none());
        assert!(key(&store, &main, &["a"]).is_some() && key(&store, &main, &["c"]).is_some());
        assert!(matches!(save(&store, &main, "d", &[0; 26]), Err(Error::TooLarge { .. })));
        let id = store.reserve(&main, "e", "v", 0).unwrap().to_string();
        assert!(store.write_at(&main, &id, 20).unwrap().write(&[0; 6]).is_err(), "more than was announced");
    }
}

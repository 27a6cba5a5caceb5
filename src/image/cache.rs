//! What a layer became when it was compressed: diffID → digest and size, one small file per layer.
//!
//! With it an unchanged layer is neither compressed nor sent again: a look at the registry is enough. A file that
//! cannot be read counts as absent; a cache that cannot be written costs only time.

use std::io::Write as _;
use std::path::PathBuf;

use super::Digest;
use super::layer::Packed;

/// The cache directory, or none where no place for it is known.
#[derive(Debug, Clone)]
pub struct Cache {
    directory: Option<PathBuf>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Entry {
    digest: Digest,
    size: u64,
}

/// Entries are about 100 bytes.
const MAX_ENTRY: u64 = 4096;

impl Cache {
    /// `$SOWER_CACHE_DIR`, else `$XDG_CACHE_HOME/sower`, else `~/.cache/sower`, else none.
    #[must_use]
    pub fn from_environment() -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let directory = set("SOWER_CACHE_DIR")
            .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("sower")))
            .or_else(|| set("HOME").map(|dir| dir.join(".cache/sower")));
        Self { directory: directory.map(|dir| dir.join("layers")) }
    }

    /// A cache that forgets.
    #[must_use]
    pub fn none() -> Self {
        Self { directory: None }
    }

    /// What the layer with this diffID was compressed to, by this scheme (see [`super::gzip::SCHEME`]).
    #[must_use]
    pub fn get(&self, diff_id: &Digest, scheme: &str) -> Option<Packed> {
        let file = std::fs::File::open(self.path(diff_id, scheme)?).ok()?;
        let entry: Entry = serde_json::from_reader(std::io::Read::take(file, MAX_ENTRY)).ok()?;
        Some(Packed { digest: entry.digest, size: entry.size })
    }

    /// Remembers it. Two pushes at once are no matter: each file is put in place whole.
    pub fn put(&self, diff_id: &Digest, scheme: &str, packed: &Packed) {
        let Some(path) = self.path(diff_id, scheme) else { return };
        let written = (|| {
            let directory = path.parent().unwrap_or(&path);
            std::fs::create_dir_all(directory)?;
            let mut file = tempfile::NamedTempFile::new_in(directory)?;
            let entry = Entry { digest: packed.digest.clone(), size: packed.size };
            file.write_all(&serde_json::to_vec(&entry)?)?;
            file.persist(&path)?;
            Ok::<(), std::io::Error>(())
        })();
        if let Err(error) = written {
            tracing::debug!(path = %path.display(), %error, "layer cache not written");
        }
    }

    fn path(&self, diff_id: &Digest, scheme: &str) -> Option<PathBuf> {
        Some(self.directory.as_ref()?.join(format!("{}.{scheme}", diff_id.hex())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_got_and_garbage_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache { directory: Some(directory.path().join("layers")) };
        let diff_id = Digest::of(b"plain");
        let packed = Packed { digest: Digest::of(b"packed"), size: 7 };
        assert_eq!(cache.get(&diff_id, "s"), None);
        cache.put(&diff_id, "s", &packed);
        assert_eq!(cache.get(&diff_id, "s"), Some(packed));
        assert_eq!(cache.get(&diff_id, "t"), None);
        std::fs::write(directory.path().join("layers").join(format!("{}.s", diff_id.hex())), "{").unwrap();
        assert_eq!(cache.get(&diff_id, "s"), None);
    }
}

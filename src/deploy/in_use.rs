//! Which images deployments from this host run, and would go back to. Whoever prunes tags must leave them alone, and
//! knows neither the cluster nor its releases.

use std::fs;
use std::io::{Read as _, Write as _};

use serde::{Deserialize, Serialize};

use super::claim::{state_directory, state_file};
use super::{Request, Rollout};

/// What the names of the notes end in.
const ENDING: &str = ".images";
/// The most that is read of a note, in bytes.
const LARGEST: u64 = 1 << 20;

/// The images of one release.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Note {
    release: String,
    namespace: String,
    /// Those that run.
    images: Vec<String>,
    /// Those that ran before, to which a rollback leads.
    before: Vec<String>,
}

/// Notes what a release runs now. Without the note a prune knows less; that is no reason to fail.
pub(super) fn note(request: &Request, rollout: &Rollout) {
    let Some(path) = state_file(request).map(|path| path.with_added_extension(&ENDING[1..])) else { return };
    let old = read(&path).unwrap_or_default();
    let images = rollout.images();
    if images == old.images {
        return;
    }
    let note = Note {
        release: request.release.clone(),
        namespace: request.namespace.clone(),
        images,
        before: old.images,
    };
    let Some(directory) = path.parent() else { return };
    // Renamed into place, so that nobody reads half of it.
    let Ok(mut file) = tempfile::NamedTempFile::new_in(directory) else { return };
    let written = serde_json::to_vec(&note).is_ok_and(|bytes| file.write_all(&bytes).is_ok());
    if written {
        let _ = file.persist(path);
    }
}

/// The images that releases run which were deployed from this host, and those that they ran before.
#[must_use]
pub fn images() -> Vec<String> {
    let Some(entries) = state_directory().and_then(|directory| fs::read_dir(directory).ok()) else {
        return Vec::new();
    };
    let notes = entries.flatten().map(|entry| entry.path());
    let notes = notes.filter(|path| path.to_string_lossy().ends_with(ENDING)).filter_map(|path| read(&path));
    let mut images: Vec<String> = notes.flat_map(|note| [note.images, note.before].concat()).collect();
    images.sort();
    images.dedup();
    images
}

fn read(path: &std::path::Path) -> Option<Note> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(LARGEST).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

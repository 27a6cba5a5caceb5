//! Facts in one small file, a line each: a key, a tab, a value as JSON. Of equal keys the last one counts.
//!
//! New facts are appended together with one write, so that a push of a hundred layers costs the disk a few pages and
//! not a few hundred files, and two pushes at once do not undo each other. A line that was cut has no whole value and counts
//! as absent. When the file has grown long, its older half goes.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Above this length the file is made half as long, in bytes. A layer takes about 400.
const LONG: u64 = 512 * 1024;
/// New facts wait so long for others before they are written.
const WAIT: Duration = Duration::from_secs(2);

/// What a file says. Nothing is read before the first question; what is new is written when it is
/// dropped, and now and then before.
#[derive(Debug)]
pub(super) struct Facts {
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    known: Option<HashMap<String, String>>,
    new: String,
    written: Option<Instant>,
}

impl Facts {
    /// The file need not be there.
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path, inner: Mutex::default() }
    }

    /// What is known under a key.
    pub(super) fn get<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        serde_json::from_str(self.inner().known(&self.path).get(key)?).ok()
    }

    /// Notes a fact. Keys are words without control characters.
    pub(super) fn put(&self, key: &str, value: &impl Serialize) {
        let Ok(value) = serde_json::to_string(value) else { return };
        let mut inner = self.inner();
        if inner.known(&self.path).get(key) == Some(&value) {
            return;
        }
        for part in [key, "\t", &value, "\n"] {
            inner.new.push_str(part);
        }
        inner.known(&self.path).insert(key.to_owned(), value);
        if inner.written.get_or_insert_with(Instant::now).elapsed() > WAIT {
            inner.save(&self.path);
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Facts {
    fn drop(&mut self) {
        self.inner().save(&self.path);
    }
}

impl Inner {
    fn known(&mut self, path: &Path) -> &mut HashMap<String, String> {
        self.known.get_or_insert_with(|| {
            let text = end_of(path, 2 * LONG).unwrap_or_default();
            facts(&text).map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
        })
    }

    fn save(&mut self, path: &Path) {
        self.written = Some(Instant::now());
        let new = std::mem::take(&mut self.new);
        if new.is_empty() {
            return;
        }
        if let Err(error) = append(path, &new) {
            tracing::debug!(path = %path.display(), %error, "cache not written");
        }
    }
}

fn facts(text: &str) -> impl DoubleEndedIterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| line.split_once('\t'))
}

fn append(path: &Path, new: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = File::options().append(true).create(true).mode(0o600).open(path)?;
    // The line before may have been cut.
    file.write_all(format!("\n{new}").as_bytes())?;
    if file.metadata()?.len() > LONG {
        shorten(path, folder)?;
    }
    Ok(())
}

/// Keeps what was noted last. What another push appends meanwhile is lost, which costs that it is learned again.
fn shorten(path: &Path, folder: &Path) -> io::Result<()> {
    let text = end_of(path, LONG)?;
    let mut seen = std::collections::HashSet::new();
    let mut kept = Vec::new();
    let mut length = 0;
    for (key, value) in facts(&text).rev() {
        length += (key.len() + value.len() + 2) as u64;
        if length > LONG / 2 {
            break;
        }
        if seen.insert(key) {
            kept.push((key, value));
        }
    }
    let lines: String = kept.iter().rev().map(|(key, value)| format!("{key}\t{value}\n")).collect();
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(lines.as_bytes())?;
    file.persist(path)?;
    Ok(())
}

/// The last bytes of a file, from the begin of a line on where it is longer.
fn end_of(path: &Path, most: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let before = file.metadata()?.len().saturating_sub(most);
    file.seek(SeekFrom::Start(before))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    match text.split_once('\n').filter(|_| before > 0) {
        Some((_, rest)) => Ok(rest.to_owned()),
        None => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_known_later_and_the_last_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("not/yet/facts");
        let facts = Facts::at(path.clone());
        facts.put("a", &vec![1]);
        facts.put("a", &vec![2]);
        facts.put("b", &"x\ty\nz");
        drop(facts);
        let facts = Facts::at(path);
        assert_eq!(facts.get::<Vec<u8>>("a"), Some(vec![2]));
        assert_eq!(facts.get::<String>("b").as_deref(), Some("x\ty\nz"));
        assert_eq!(facts.get::<String>("a"), None, "of another kind");
    }

    #[test]
    fn two_at_once_both_leave_what_they_learned() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("facts");
        let (one, two) = (Facts::at(path.clone()), Facts::at(path.clone()));
        one.put("one", &[1]);
        two.put("two", &[2]);
        drop((one, two));
        let facts = Facts::at(path);
        assert_eq!((facts.get("one"), facts.get("two")), (Some([1]), Some([2])));
    }

    #[test]
    fn a_cut_line_and_noise_are_absent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("facts");
        std::fs::write(&path, b"\xff\x00noise\na\t{\"size\":12").unwrap();
        let facts = Facts::at(path.clone());
        assert_eq!(facts.get::<serde_json::Value>("a"), None);
        facts.put("b", &[1]);
        drop(facts);
        assert_eq!(Facts::at(path).get("b"), Some([1]));
    }

    #[test]
    fn a_long_file_forgets_what_is_old() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("facts");
        let many = LONG as usize / 100;
        for round in 0..4 {
            let facts = Facts::at(path.clone());
            (0..many).for_each(|at| facts.put(&format!("{round}-{at}"), &["v".repeat(80)]));
            drop(facts);
            assert!(std::fs::metadata(&path).unwrap().len() <= LONG);
        }
        let facts = Facts::at(path);
        assert!(facts.get::<Vec<String>>("0-0").is_none());
        assert!(facts.get::<Vec<String>>(&format!("3-{}", many - 1)).is_some());
    }
}

//! What is kept of jobs that have ended: their logs, their memory, and the peaks by which later jobs are admitted.
//!
//! ```text
//! STATE/history/peaks.json         see crate::limits::admission
//! STATE/history/TASK/entry.json    how it went, in short
//! STATE/history/TASK/journal       what happened
//! STATE/history/TASK/memory.json   what it used
//! STATE/history/TASK/memory.svg    the same as a picture
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{Error, JobDir, StateDir};
use crate::config;
use crate::events::journal::Reader;
use crate::events::{Conclusion, Event, Timestamp};
use crate::job::remove;
use crate::limits::admission::Peaks;
use crate::limits::profile::Profile;
use crate::limits::svg;

/// A job, in short.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entry {
    /// The number of the task.
    pub task: i64,
    /// The repository, such as `owner/name`.
    pub repository: String,
    /// The workflow's file.
    pub workflow: String,
    /// The id of the job in it.
    pub job: String,
    /// When it began.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// How it ended; `None` while it runs.
    pub conclusion: Option<Conclusion>,
    /// The most memory that it had resident, in bytes.
    pub peak: Option<u64>,
    /// Rows of its log.
    pub rows: u64,
}

impl Entry {
    /// How long it took or has taken so far, in milliseconds.
    #[must_use]
    pub fn millis(&self) -> Option<u64> {
        Some(self.ended.unwrap_or_else(Timestamp::now).millis_since(self.started?))
    }

    /// Reads what a directory with a journal says.
    fn of(dir: &JobDir) -> Self {
        let meta = dir.read_meta();
        let mut entry = Self {
            task: dir.task(),
            repository: meta.repository,
            workflow: meta.workflow,
            job: meta.job,
            peak: Profile::read(&memory(dir.path())).ok().map(|profile| profile.peak),
            ..Self::default()
        };
        let Ok(mut reader) = Reader::open(&dir.journal()) else { return entry };
        while let Ok(Some(event)) = reader.next_event() {
            match event {
                Event::JobStarted { time, .. } => entry.started = Some(time),
                Event::Row { .. } => entry.rows += 1,
                Event::JobEnded { time, conclusion } => {
                    (entry.ended, entry.conclusion) = (Some(time), Some(conclusion));
                }
                _ => {}
            }
        }
        entry
    }

    /// The name by which its peaks are remembered.
    #[must_use]
    pub fn key(&self) -> String {
        key(&self.repository, &self.workflow, &self.job)
    }
}

/// The name by which a job's peaks are remembered.
#[must_use]
pub fn key(repository: &str, workflow: &str, job: &str) -> String {
    format!("{repository} / {workflow} / {job}")
}

/// Where the peaks of jobs are.
#[must_use]
pub fn peaks(state: &Path) -> PathBuf {
    state.join("history/peaks.json")
}

/// Where the memory of a job is, in its directory or in the history.
#[must_use]
pub fn memory(directory: &Path) -> PathBuf {
    directory.join("memory.json")
}

fn folder(state: &Path) -> PathBuf {
    state.join("history")
}

/// Keeps what is to be kept of a job whose end was reported, and removes what is too old or too much.
///
/// # Errors
/// When the disk says no. The job's own directory can be removed in any case.
pub fn keep(state: &StateDir, dir: &JobDir, rules: &config::History) -> Result<(), Error> {
    // A crash between this and the removal of the directory: it is kept already.
    if !dir.journal().exists() {
        return Ok(());
    }
    let entry = Entry::of(dir);
    if let (Some(peak), Some(millis), Some(Conclusion::Success)) =
        (entry.peak, entry.millis(), entry.conclusion)
    {
        let path = peaks(state.path());
        fs::create_dir_all(folder(state.path())).map_err(Error::io(&path))?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        Peaks::add(&path, &entry.key(), peak, millis, now).map_err(Error::io(&path))?;
    }
    // What filled the disk is not kept on it.
    let size = fs::metadata(dir.journal()).map_or(0, |meta| meta.len());
    if free(state.path()).is_some_and(|free| size > free / 2) || size > rules.size || rules.jobs == 0 {
        return Ok(());
    }
    let folder = folder(state.path());
    let place = folder.join(dir.task().to_string());
    fs::create_dir_all(&place).map_err(Error::io(&place))?;
    let path = place.join("entry.json");
    let text = serde_json::to_vec(&entry).unwrap_or_default();
    fs::write(&path, text).map_err(Error::io(&path))?;
    if let Ok(profile) = Profile::read(&memory(dir.path())) {
        let title = format!("{} · {} · task {}", entry.repository, entry.job, entry.task);
        let path = place.join("memory.svg");
        fs::write(&path, svg::draw(&profile, &title)).map_err(Error::io(&path))?;
        fs::rename(memory(dir.path()), memory(&place)).map_err(Error::io(&place))?;
    }
    fs::rename(dir.journal(), place.join("journal")).map_err(Error::io(&place))?;
    rotate(&folder, rules);
    Ok(())
}

/// Room on the disk of a directory in bytes.
fn free(path: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(path).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Removes the oldest until the rest is within the rules.
fn rotate(folder: &Path, rules: &config::History) {
    for path in over(folder, rules) {
        // What cannot be removed now may be at the next turn.
        let _ = remove::tree(&path);
    }
}

/// What is kept in a state directory and is too old or too much by the rules.
#[must_use]
pub fn too_much(state: &Path, rules: &config::History) -> Vec<PathBuf> {
    over(&folder(state), rules)
}

fn over(folder: &Path, rules: &config::History) -> Vec<PathBuf> {
    let mut kept: Vec<(SystemTime, u64, PathBuf)> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<i64>().is_ok()))
        .map(|entry| {
            let files = fs::read_dir(entry.path()).into_iter().flatten().flatten();
            let metas: Vec<fs::Metadata> = files.filter_map(|file| file.metadata().ok()).collect();
            let size = metas.iter().map(fs::Metadata::len).sum();
            let time = metas.iter().filter_map(|meta| meta.modified().ok()).max();
            (time.unwrap_or(SystemTime::UNIX_EPOCH), size, entry.path())
        })
        .collect();
    kept.sort_by_key(|(time, ..)| std::cmp::Reverse(*time));
    let now = SystemTime::now();
    let mut bytes = 0;
    let mut over = Vec::new();
    for (index, (time, size, path)) in kept.into_iter().enumerate() {
        bytes += size;
        let age = now.duration_since(time).unwrap_or(Duration::ZERO);
        if index >= rules.jobs as usize || age > rules.age || bytes > rules.size {
            over.push(path);
        }
    }
    over
}

/// Where the journal and the memory of a task are: in its job directory, or in the history.
#[must_use]
pub fn place(state: &Path, task: i64) -> Option<PathBuf> {
    [state.join("jobs"), folder(state)]
        .into_iter()
        .map(|parent| parent.join(task.to_string()))
        .find(|place| place.join("journal").exists())
}

/// The jobs that run and those that are kept, the latest first.
#[must_use]
pub fn entries(state: &Path) -> Vec<Entry> {
    let tasks = |folder: PathBuf| {
        fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<i64>().is_ok()))
            .map(|entry| entry.path())
            .collect::<Vec<_>>()
    };
    let mut entries: Vec<Entry> =
        tasks(state.join("jobs")).iter().map(|path| Entry::of(&JobDir::at(path))).collect();
    for path in tasks(folder(state)) {
        let read = fs::read(path.join("entry.json")).ok();
        if let Some(entry) = read.and_then(|bytes| serde_json::from_slice::<Entry>(&bytes).ok())
            && !entries.iter().any(|known| known.task == entry.task)
        {
            entries.push(entry);
        }
    }
    entries.sort_by_key(|entry| std::cmp::Reverse((entry.started, entry.task)));
    entries
}

//! Admission: a job begins only when the memory that it is known to need fits beside the jobs that run.
//!
//! Each job that was admitted holds a lock on a file with its expected peak, so that a job whose process is gone counts
//! no more, however it went. What a job needs is known from the last times that it ran.
//!
//! ```text
//! STATE/admission/lock     held while one job looks
//! STATE/admission/TASK     expected peak in bytes; locked while the job runs
//! STATE/history/peaks.json peaks by job; may be deleted
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::size::Size;

/// Jobs whose peaks are remembered.
const JOBS_AT_MOST: usize = 1000;
/// Runs of each of them.
const RUNS_AT_MOST: usize = 10;

/// What is remembered of a job's runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Runs {
    /// Peaks in bytes, the latest last.
    pub peaks: Vec<u64>,
    /// Times in milliseconds, the latest last.
    pub millis: Vec<u64>,
    /// When it ran last, in seconds since 1970.
    pub last: u64,
}

/// The peaks by job (`repository / workflow / job`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Peaks(pub BTreeMap<String, Runs>);

impl Peaks {
    /// Reads the file; a file that is not there or is damaged is as good as empty.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        let bytes =
            fs::metadata(path).ok().filter(|meta| meta.len() < 16 << 20).and_then(|_| fs::read(path).ok());
        bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// Adds a run and writes the file, whole or not at all.
    ///
    /// # Errors
    /// When the disk says no.
    pub fn add(path: &Path, job: &str, peak: u64, millis: u64, now: u64) -> io::Result<()> {
        let mut peaks = Self::read(path);
        let runs = peaks.0.entry(job.to_owned()).or_default();
        runs.peaks.push(peak);
        runs.millis.push(millis);
        runs.last = now;
        for list in [&mut runs.peaks, &mut runs.millis] {
            let surplus = list.len().saturating_sub(RUNS_AT_MOST);
            list.drain(..surplus);
        }
        while peaks.0.len() > JOBS_AT_MOST {
            let Some(oldest) = peaks.0.iter().min_by_key(|(_, runs)| runs.last).map(|(job, _)| job.clone())
            else {
                break;
            };
            peaks.0.remove(&oldest);
        }
        let unfinished = path.with_extension("new");
        fs::write(&unfinished, serde_json::to_vec(&peaks)?)?;
        fs::rename(&unfinished, path)
    }

    /// What a job is expected to need: the most of its last runs.
    #[must_use]
    pub fn expected(&self, job: &str) -> Option<u64> {
        self.0.get(job)?.peaks.iter().copied().max()
    }
}

/// A job that asks to begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// `STATE/admission`.
    pub directory: PathBuf,
    /// `STATE/history/peaks.json`.
    pub peaks: PathBuf,
    /// The job, as [`Peaks`] names it.
    pub job: String,
    /// The number of the task.
    pub task: i64,
}

/// The right to run, until it is dropped.
#[derive(Debug)]
pub struct Admitted {
    path: PathBuf,
    _file: File,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// What came of asking.
#[derive(Debug)]
pub enum Answer {
    /// The job may begin.
    Begin(Admitted),
    /// It has to wait, for this reason.
    Wait(String),
}

impl Request {
    /// Asks whether the job may begin on a host with this memory. The first job always may.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub fn ask(&self, host: u64) -> io::Result<Answer> {
        fs::create_dir_all(&self.directory)?;
        let door =
            OpenOptions::new().create(true).append(true).mode(0o600).open(self.directory.join("lock"))?;
        door.lock()?;
        let need = Peaks::read(&self.peaks).expected(&self.job).unwrap_or(0);
        let mut running = Vec::new();
        for entry in fs::read_dir(&self.directory)?.flatten() {
            let Some(task) = entry.file_name().to_str().and_then(|name| name.parse::<i64>().ok()) else {
                continue;
            };
            let Ok(file) = File::open(entry.path()) else { continue };
            match file.try_lock_shared() {
                Err(TryLockError::WouldBlock) => {
                    let mut text = String::new();
                    let _ = file.take(40).read_to_string(&mut text);
                    running.push((task, text.trim().parse::<u64>().unwrap_or(0)));
                }
                // Nobody holds it: its job is gone.
                _ => drop(fs::remove_file(entry.path())),
            }
        }
        let used: u64 = running.iter().map(|(_, peak)| peak).sum();
        // The system and the runner want to live as well.
        let budget = host - host / 10;
        if !running.is_empty() && need > 0 && used.saturating_add(need) > budget {
            let others: Vec<String> = running
                .iter()
                .map(|(task, peak)| format!("task {task} with up to {}", Size(*peak)))
                .collect();
            return Ok(Answer::Wait(format!(
                "Waiting for memory: this job has used up to {} and beside it run {}; together that is more than 90 % of \
                 this host's {}",
                Size(need),
                others.join(", "),
                Size(host)
            )));
        }
        let path = self.directory.join(self.task.to_string());
        let mut file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path)?;
        file.try_lock().map_err(|error| io::Error::other(error.to_string()))?;
        file.set_len(0)?;
        file.rewind()?;
        write!(file, "{need}")?;
        Ok(Answer::Begin(Admitted { path, _file: file }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_wait_until_they_fit_and_a_dead_one_holds_nobody() {
        let state = tempfile::tempdir().unwrap();
        let peaks = state.path().join("peaks.json");
        for (job, gibibytes) in [("big", 3_u64), ("small", 1)] {
            for less in [1_u64 << 20, 0] {
                Peaks::add(&peaks, job, (gibibytes << 30) - less, 1000, 7).unwrap();
            }
        }
        let request = |job: &str, task| Request {
            directory: state.path().join("admission"),
            peaks: peaks.clone(),
            job: job.to_owned(),
            task,
        };
        let host = 4_u64 << 30;
        let Answer::Begin(first) = request("big", 1).ask(host).unwrap() else { panic!("the first may") };
        let Answer::Wait(reason) = request("small", 2).ask(host).unwrap() else {
            panic!("3 + 1 do not fit into 3.6")
        };
        assert!(reason.contains("used up to 1 GiB and beside it run task 1 with up to 3 GiB"), "{reason}");
        assert!(matches!(request("never seen", 3).ask(host).unwrap(), Answer::Begin(_)));
        drop(first);
        let Answer::Begin(_second) = request("small", 2).ask(host).unwrap() else {
            panic!("nothing runs now")
        };
        // What a job left that was killed.
        fs::write(state.path().join("admission/9"), (3_u64 << 30).to_string()).unwrap();
        assert!(matches!(request("small", 4).ask(host).unwrap(), Answer::Begin(_)));
        fs::write(&peaks, "{").unwrap();
        assert_eq!(Peaks::read(&peaks), Peaks::default());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("peaks.json");
        for run in 0..30 {
            Peaks::add(&path, "same", run, run, run).unwrap();
        }
        assert_eq!(Peaks::read(&path).0["same"].peaks.len(), RUNS_AT_MOST);
        assert_eq!(Peaks::read(&path).expected("same"), Some(29));
    }
}

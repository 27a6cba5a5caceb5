//! Keeping the host clean: what jobs have left, logs, cache, and the Nix store. And what stays there: the results of
//! the last successful jobs, with all that they were built from.
//!
//! ```text
//! STATE/gc.lock                   held shared by each job that runs, alone by whoever collects garbage
//! STATE/results/OWNER/NAME/TASK/  links that are roots of Nix
//! ```

mod results;
mod store;
mod sweep;

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

pub use results::keep;
pub use store::Collected;

use crate::config::Config;

/// The file that keeps garbage collection and jobs apart.
#[must_use]
pub fn lock_file(state: &Path) -> PathBuf {
    state.join("gc.lock")
}

/// The folder of all repositories' results.
#[must_use]
pub fn roots(state: &Path) -> PathBuf {
    state.join("results")
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)
}

/// Holds the lock as a job does: beside other jobs. Waits for a collector, in short pauses in which `go_on` is asked.
/// The lock is held until the file is dropped.
///
/// # Errors
/// When the file cannot be made or locked.
pub fn hold_for_job(path: &Path, mut go_on: impl FnMut() -> bool) -> io::Result<Option<File>> {
    let file = open_lock(path)?;
    loop {
        match file.try_lock_shared() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if go_on() => std::thread::sleep(Duration::from_millis(200)),
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Only say what would be done.
    pub dry_run: bool,
    /// The most bytes that are collected in the Nix store, whatever room there is.
    pub max_freed: Option<u64>,
    /// Whoever calls is the daemon, which looks after the directories of jobs itself.
    pub daemon: bool,
}

/// Something that was removed, or would be.
#[derive(Debug, Clone, Serialize)]
pub struct Item {
    /// What it was.
    pub what: &'static str,
    /// Where.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: u64,
    /// Why it is still there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What a turn of housekeeping has done, or would do.
#[derive(Debug, Clone, Serialize)]
pub struct Turn {
    /// Nothing was done.
    pub dry_run: bool,
    /// What was removed.
    pub items: Vec<Item>,
    /// What became of the Nix store.
    pub store: Collected,
}

impl Turn {
    /// Bytes that are free now and were not before.
    #[must_use]
    pub fn freed(&self) -> u64 {
        let items = self.items.iter().filter(|item| item.problem.is_none());
        let store = if let Collected::Done { freed, .. } = self.store { freed } else { 0 };
        items.map(|item| item.bytes).sum::<u64>() + store
    }

    /// Whether all of it could be done.
    #[must_use]
    pub fn is_well(&self) -> bool {
        !matches!(self.store, Collected::Failed { .. })
            && self.items.iter().all(|item| item.problem.is_none())
    }
}

/// Does, or says, what is to be done. May take long; nothing in it needs the daemon.
#[must_use]
pub fn run(config: &Config, options: Options) -> Turn {
    let mut items = sweep::jobs(config, options);
    items.extend(sweep::workspaces(config, options.dry_run));
    items.extend(sweep::history(config, options.dry_run));
    items.extend(sweep::cache(config, options.dry_run));
    items.extend(sweep::actions(config, options.dry_run));
    items.extend(results::rotate_all(
        &roots(config.state_dir()),
        config.housekeeping.results,
        options.dry_run,
    ));
    let store = store::collect(config, options);
    Turn { dry_run: options.dry_run, items, store }
}

//! Garbage collection in the Nix store, with a bound, and never while a job runs.

use std::fs::TryLockError;
use std::process::Command;

use serde::Serialize;

use super::{Options, lock_file, open_lock};
use crate::archive::nix;
use crate::config::Config;
use crate::limits::size::Size;
use crate::supervisor::{JobProcess, State, StateDir};

/// What became of the Nix store.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "lowercase", tag = "store")]
pub enum Collected {
    /// Nothing was to be done, or could be.
    Left {
        /// Why.
        why: String,
    },
    /// This would be done.
    Would {
        /// Bytes that are wanted at most.
        wanted: u64,
        /// Store paths that no root keeps.
        dead: usize,
    },
    /// Garbage was collected.
    Done {
        /// Bytes that were wanted at most.
        wanted: u64,
        /// Bytes that are free now and were not before.
        freed: u64,
    },
    /// Nix did not do it.
    Failed {
        /// What it said.
        why: String,
    },
}

/// Keeps what the derivations of kept results were built from.
const KEEP: [&str; 6] = ["--option", "keep-outputs", "true", "--option", "keep-derivations", "true"];

pub(super) fn collect(config: &Config, options: Options) -> Collected {
    let left = |why: &str| Collected::Left { why: why.to_owned() };
    let store = nix::store_directory();
    let Some(free) = free(&store) else { return left("there is none") };
    if which::which("nix-store").is_err() {
        return left("nix-store is not on PATH");
    }
    let floor = config.housekeeping.store_min_free;
    let wanted = match options.max_freed {
        Some(most) => most,
        None if floor == 0 => return left("housekeeping.store_min_free is 0"),
        None if free >= floor => {
            return left(&format!("{} are free, {} are wanted", Size(free), Size(floor)));
        }
        None => floor - free,
    };
    if wanted == 0 {
        return left("nothing is wanted");
    }
    let file = match open_lock(&lock_file(config.state_dir())) {
        Ok(file) => file,
        Err(error) => return Collected::Failed { why: error.to_string() },
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return left("a job runs"),
        Err(TryLockError::Error(error)) => return Collected::Failed { why: error.to_string() },
    }
    // A job of a version that holds no lock.
    if jobs_run(config) {
        return left("a job runs");
    }
    if options.dry_run {
        let dead = nix::ask(Command::new("nix-store").args(["--gc", "--print-dead"]).args(KEEP));
        return match dead {
            Ok(said) => {
                let dead =
                    String::from_utf8_lossy(&said).lines().filter(|line| line.starts_with('/')).count();
                Collected::Would { wanted, dead }
            }
            Err(why) => Collected::Failed { why },
        };
    }
    let mut command = nix::command(&["store", "gc", "--max", &wanted.to_string()]);
    match nix::ask(command.args(KEEP)) {
        Ok(_) => {
            let now = self::free(&store).unwrap_or(free);
            Collected::Done { wanted, freed: now.saturating_sub(free) }
        }
        Err(why) => Collected::Failed { why },
    }
}

fn jobs_run(config: &Config) -> bool {
    let jobs = config.state_dir().join("jobs");
    if !jobs.is_dir() {
        return false;
    }
    let found = StateDir::open(config.state_dir()).and_then(|state| state.running());
    // What cannot be looked at may run.
    found.is_err()
        || found.is_ok_and(|jobs| {
            jobs.into_iter().any(|dir| JobProcess::find(dir).is_ok_and(|mut job| job.state() == State::Alive))
        })
}

fn free(place: &std::path::Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(place).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

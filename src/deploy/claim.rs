//! One deployment of a release at a time on this host, and who left one unfinished.
//!
//! A small file for each release is locked (flock) by the deployment and by the helm that it starts. Who gets the lock
//! knows that both are gone, whatever became of them; what the file then still says was left by one that did not end in
//! order.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_setfd};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Request;

/// How often a lock that somebody holds is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The most that is read of a note, in bytes.
const LARGEST: u64 = 64 << 10;

/// What a deployment notes of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) process: u32,
    /// Date and time.
    pub(super) began: String,
    /// The newest revision before it; none until something is about to be changed.
    pub(super) before: Option<u64>,
}

/// The right of this process to deploy a release.
pub(super) struct Claim {
    file: Option<File>,
    /// What a deployment left that did not end in order.
    pub(super) left: Option<Note>,
}

/// Why there is no claim.
pub(super) enum Refused {
    /// Somebody on this host deploys the release, and did not end in time.
    Held(String),
    /// A signal came while it was waited for.
    Interrupted,
}

impl Claim {
    /// Waits at most `patience` for the one that holds it. Where no file can be had there is a claim without one: the
    /// cluster's own lock is still there.
    pub(super) fn take(
        request: &Request,
        patience: Duration,
        interrupted: &AtomicBool,
        say: &mut dyn FnMut(&str),
    ) -> Result<Self, Refused> {
        let path = state_file(request);
        let Some(mut file) = path.as_ref().and_then(|path| open(path)) else {
            return Ok(Self { file: None, left: None });
        };
        let began = Instant::now();
        let mut said = false;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {}
                // A file system without locks.
                Err(TryLockError::Error(_)) => return Ok(Self { file: None, left: None }),
            }
            let holder = read(&mut file).map_or_else(
                || "another deployment on this host".to_owned(),
                |note| format!("the deployment of process {} (since {})", note.process, note.began),
            );
            if began.elapsed() >= patience {
                return Err(Refused::Held(holder));
            }
            if !said {
                say(&format!("release {} is held by {holder}: waiting for it", request.release));
                said = true;
            }
            if interrupted.swap(false, Ordering::SeqCst) {
                return Err(Refused::Interrupted);
            }
            thread::sleep(LOOK_EVERY);
        }
        let left = read(&mut file);
        let mut claim = Self { file: Some(file), left };
        // For those who wait now. What an earlier one left stays true until it is put in order.
        claim.note(claim.left.as_ref().and_then(|note| note.before));
        Ok(claim)
    }

    /// Notes that a deployment begins, before anything is changed.
    pub(super) fn begin(&mut self, before: u64) {
        self.note(Some(before));
    }

    fn note(&mut self, before: Option<u64>) {
        let note = Note { process: std::process::id(), began: jiff::Timestamp::now().to_string(), before };
        let Some(file) = &mut self.file else { return };
        // Without the note a later deployment finds out less; that is no reason to stop this one.
        let _ = serde_json::to_vec(&note).map_err(std::io::Error::from).and_then(|bytes| {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(&bytes)?;
            file.sync_data()
        });
    }

    /// Starts something that shall hold the lock as well, as long as it lives.
    pub(super) fn shared<T>(&self, start: impl FnOnce() -> T) -> T {
        let Some(file) = &self.file else { return start() };
        // No other program is started meanwhile: the watchers come later.
        let _ = fcntl_setfd(file, FdFlags::empty());
        let started = start();
        let _ = fcntl_setfd(file, FdFlags::CLOEXEC);
        started
    }

    /// Notes that the deployment has ended in order: helm is gone, and the release is in a state of which it is known
    /// that it does not lock.
    pub(super) fn end(&mut self) {
        if let Some(file) = &mut self.file {
            let _ = file.set_len(0);
        }
    }
}

/// Beside what else this program keeps: `SOWER_STATE_DIR`, else `/var/lib/sower` for root, else below the user's state.
pub(super) fn state_directory() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let directory = set("SOWER_STATE_DIR")
        .or_else(|| rustix::process::geteuid().is_root().then(|| PathBuf::from("/var/lib/sower")))
        .or_else(|| set("XDG_STATE_HOME").map(|dir| dir.join("sower")))
        .or_else(|| set("HOME").map(|dir| dir.join(".local/state/sower")))?;
    Some(directory.join("deploy"))
}

/// A short name for all of these together, such as can be one of a file.
pub(super) fn name_of(parts: &[&str]) -> String {
    Sha256::digest(parts.join("\0")).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The release's own file in [`state_directory`].
pub(super) fn state_file(request: &Request) -> Option<PathBuf> {
    let name = name_of(&[&request.access.identity, &request.namespace, &request.release]);
    Some(state_directory()?.join(format!("{}-{name}", request.release)))
}

fn open(path: &std::path::Path) -> Option<File> {
    let directory = path.parent()?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).ok()?;
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path).ok()
}

fn read(file: &mut File) -> Option<Note> {
    file.rewind().ok()?;
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

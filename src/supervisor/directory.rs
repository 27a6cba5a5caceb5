//! The state directory and the directories of jobs in it.
//!
//! ```text
//! STATE/daemon.lock            held by the daemon
//! STATE/jobs/TASK/meta.json    what the reporter must know; no secrets
//! STATE/jobs/TASK/spec.json    what is to be run, with secrets; the job removes it once it has read it
//! STATE/jobs/TASK/token        what summaries are sent with; a secret
//! STATE/jobs/TASK/process.json the job's process
//! STATE/jobs/TASK/trace.json   by what the processes that it starts are known
//! STATE/jobs/TASK/reserve      room for the end, should the disk be full
//! STATE/jobs/TASK/journal      what happened
//! STATE/jobs/TASK/job.log      what the job process itself printed; locked while it lives
//! STATE/jobs/TASK/cancelled    the job was told to stop
//! STATE/jobs/TASK/reported     Gitea has acknowledged the end
//! ```
//!
//! A job's directory is written under another name first, so that it is whole or not there.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Error;
use super::process::Identity;
use super::trace::Trace;
use crate::events::{StepInfo, Timestamp};
use crate::job::remove;
use crate::job::spec::JobSpec;

const NEW: &str = ".new-";
const SPEC_UNFINISHED: &str = "spec.json.new";
/// A disk with less room than this, in bytes, or fewer files, is full.
const LEAST_ROOM: u64 = 1024 * 1024;
const LEAST_FILES: u64 = 32;
/// How long a lock is waited for whose holder is gone.
const HANDED_ON: Duration = Duration::from_secs(5);
/// Room for the last rows and events of a job, in bytes.
const RESERVE: usize = 64 * 1024;

/// A runner's state directory.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
    /// Something could not be written. Copies share it.
    doubt: Arc<AtomicBool>,
}

/// The right to work in a state directory, until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// What the reporter must know of a job, beside its journal. Holds no secrets.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Meta {
    /// When the task was received.
    pub received: Option<Timestamp>,
    /// The runner that received it.
    pub runner: String,
    /// The repository, such as `owner/name`.
    pub repository: String,
    /// The id of the job in its workflow.
    pub job: String,
    /// The workflow's file.
    #[serde(default)]
    pub workflow: String,
    /// The number of the run on the instance, where job summaries go.
    #[serde(default)]
    pub run_number: Option<i64>,
    /// The number of the job on the instance.
    #[serde(default)]
    pub job_number: Option<i64>,
    /// The steps that Gitea knows, for a job that dies before it names them.
    pub steps: Vec<StepInfo>,
    /// A directory outside of the job's own that is removed with it.
    pub work: Option<PathBuf>,
    /// The refs whose cache entries the job sees, the first of which it saves under.
    #[serde(default)]
    pub cache_refs: Vec<String>,
}

/// The directory of one job.
#[derive(Debug, Clone)]
pub struct JobDir {
    task: i64,
    path: PathBuf,
}

impl StateDir {
    /// Opens a state directory, which is made when it is not there, for this user only.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let jobs = path.join("jobs");
        DirBuilder::new().recursive(true).mode(0o700).create(&jobs).map_err(Error::io(&jobs))?;
        Ok(Self { path: path.to_owned(), doubt: Arc::default() })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the right to work here. One whose holder is gone comes free in a moment and is waited for: a process that
    /// a killed daemon was just starting has the lock until it has become its program.
    ///
    /// # Errors
    /// [`Error::Held`] when another daemon has it.
    pub fn lock(&self) -> Result<Lock, Error> {
        let until = Instant::now() + HANDED_ON;
        loop {
            match self.try_lock() {
                Err(Error::Held { pid, .. })
                    if !pid.is_some_and(is_another_that_lives) && Instant::now() < until =>
                {
                    std::thread::sleep(Duration::from_millis(20));
                }
                other => return other,
            }
        }
    }

    fn try_lock(&self) -> Result<Lock, Error> {
        let path = self.path.join("daemon.lock");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(Error::io(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = file.take(200).read_to_string(&mut text);
                let pid = text.trim().parse().ok();
                let holder =
                    pid.map_or_else(|| "process unknown".to_owned(), |pid: u32| format!("process {pid}"));
                return Err(Error::Held { path, holder, pid });
            }
            Err(TryLockError::Error(source)) => return Err(Error::Io { path, source }),
        }
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(Error::io(&path))?;
        Ok(Lock { _file: file })
    }

    /// Something in here could not be written: [`StateDir::check_room`] is to try it. Not every file system that takes
    /// nothing says so when it is asked.
    pub fn doubt(&self) {
        self.doubt.store(true, Ordering::Relaxed);
    }

    /// Sees that a task could be written down here: a job that is taken without that would only fail.
    ///
    /// # Errors
    /// [`Error::NoRoom`] when the disk is full, has no file left, or can be read only.
    pub fn check_room(&self) -> Result<(), Error> {
        let Ok(disk) = rustix::fs::statvfs(&self.path) else { return Ok(()) };
        let what = if disk.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
            "can only be read".to_owned()
        } else if disk.f_bavail.saturating_mul(disk.f_frsize) < LEAST_ROOM {
            format!("has less than {} KiB left", LEAST_ROOM >> 10)
        } else if disk.f_files > 0 && disk.f_favail < LEAST_FILES {
            format!("has less than {LEAST_FILES} files left")
        } else if !self.doubt.load(Ordering::Relaxed) {
            return Ok(());
        } else if let Err(error) = self.try_to_write() {
            format!("takes no file ({error})")
        } else {
            self.doubt.store(false, Ordering::Relaxed);
            return Ok(());
        };
        Err(Error::NoRoom { path: self.path.clone(), what })
    }

    /// Costs the disk a write, so it is not done before each task.
    fn try_to_write(&self) -> io::Result<()> {
        let path = self.path.join(".room");
        let written = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(b"?").and_then(|()| file.sync_all()));
        let removed = std::fs::remove_file(&path);
        written.and(removed)
    }

    /// Where the directory of a task is, or would be.
    #[must_use]
    pub fn job(&self, task: i64) -> PathBuf {
        self.path.join("jobs").join(task.to_string())
    }

    /// Writes a job down, synced to disk. `token` is what its summaries are sent with.
    ///
    /// # Errors
    /// When the disk says no, or the task is here already.
    pub fn create(&self, task: i64, meta: &Meta, spec: &JobSpec, token: &str) -> Result<JobDir, Error> {
        let jobs = self.path.join("jobs");
        let new = jobs.join(format!("{NEW}{task}"));
        let path = self.job(task);
        if path.exists() {
            return Err(Error::Present { path });
        }
        if let Err(error) = DirBuilder::new().mode(0o700).recursive(true).create(&new) {
            self.doubt();
            return Err(Error::Io { path: new, source: error });
        }
        let unfinished = JobDir { task, path: new.clone() };
        let write = || {
            // First all of it, the spec last, then the disk: who dies meanwhile has lost the task only if it dies in the
            // first of these moments.
            let files = [
                write_file(&unfinished.meta(), meta)?,
                write_file(&unfinished.token(), &token)?,
                write_file(&new.join(SPEC_UNFINISHED), spec)?,
            ];
            std::fs::rename(new.join(SPEC_UNFINISHED), unfinished.spec()).map_err(Error::io(&new))?;
            for file in files {
                file.sync_all().map_err(Error::io(&new))?;
            }
            sync_directory(&new)?;
            std::fs::rename(&new, &path).map_err(Error::io(&path))
        };
        if let Err(error) = write() {
            self.doubt();
            // The task is given back as failed; nothing of it is for the next daemon.
            let _ = remove::tree(&new);
            return Err(error);
        }
        sync_directory(&jobs)?;
        Ok(JobDir { task, path })
    }

    /// The jobs that are here, whoever looks after them; nothing is put right.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn running(&self) -> Result<Vec<JobDir>, Error> {
        let folder = self.path.join("jobs");
        let entries = std::fs::read_dir(&folder).map_err(Error::io(&folder))?.flatten();
        let jobs = entries.filter_map(|entry| {
            let task = entry.file_name().to_str()?.parse().ok()?;
            Some(JobDir { task, path: entry.path() })
        });
        Ok(jobs.collect())
    }

    /// The jobs that earlier daemons left, oldest task first. What a crash left half written is among them, without
    /// a spec; what was only not yet in its place is whole.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn jobs(&self) -> Result<Vec<JobDir>, Error> {
        let folder = self.path.join("jobs");
        let mut jobs = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(Error::io(&folder))? {
            let entry = entry.map_err(Error::io(&folder))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let mut path = entry.path();
            let number = name.strip_prefix(NEW).unwrap_or(name);
            let Ok(task) = number.parse::<i64>() else { continue };
            if number.len() != name.len() {
                let whole = folder.join(number);
                let unfinished = JobDir { task, path: path.clone() };
                if !unfinished.is_whole() {
                    remove_file(&unfinished.spec())?;
                }
                std::fs::rename(&path, &whole).map_err(Error::io(&whole))?;
                path = whole;
            }
            jobs.push(JobDir { task, path });
        }
        jobs.sort_by_key(JobDir::task);
        Ok(jobs)
    }
}

impl JobDir {
    /// A job's directory by its path, as `sower job` gets it.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        let task = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        Self { task: task.unwrap_or_default(), path: path.to_owned() }
    }

    /// The number of the task.
    #[must_use]
    pub fn task(&self) -> i64 {
        self.task
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is to be run ([`JobSpec`] as JSON).
    #[must_use]
    pub fn spec(&self) -> PathBuf {
        self.path.join("spec.json")
    }

    /// What happened ([`crate::events::journal`]).
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }

    /// What the job process itself printed.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.path.join("job.log")
    }

    /// Adds a line to what the job process printed, where the end of the job is told from.
    pub fn note(&self, text: &str) {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(self.log());
        // What cannot be written here is in the daemon's own log.
        let _ = file.and_then(|mut file| writeln!(file, "{text}"));
    }

    pub(super) fn process(&self) -> PathBuf {
        self.path.join("process.json")
    }

    fn token(&self) -> PathBuf {
        self.path.join("token")
    }

    /// What summaries are sent with; empty when there is none.
    #[must_use]
    pub fn read_token(&self) -> String {
        std::fs::read(self.token())
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }

    fn meta(&self) -> PathBuf {
        self.path.join("meta.json")
    }

    /// What the reporter must know; empty when it was lost.
    #[must_use]
    pub fn read_meta(&self) -> Meta {
        std::fs::read(self.meta())
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }

    /// Whether all is there that was to be written before the job could begin.
    fn is_whole(&self) -> bool {
        let reads = |path: &Path| {
            std::fs::read(path)
                .is_ok_and(|text| serde_json::from_slice::<serde::de::IgnoredAny>(&text).is_ok())
        };
        reads(&self.meta()) && reads(&self.token()) && reads(&self.spec())
    }

    /// True when nobody has ever begun to run this job, and it can be run.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn may_start(&self) -> Result<bool, Error> {
        let begun = self.process().exists() || self.journal().exists() || self.is_locked()?;
        Ok(!begun && self.spec().exists())
    }

    /// True when a process that was started for this job lives.
    pub(super) fn is_locked(&self) -> Result<bool, Error> {
        let path = self.log();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(Error::Io { path, source }),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(source)) => Err(Error::Io { path, source }),
        }
    }

    pub(super) fn write_identity(&self, identity: &Identity) -> Result<(), Error> {
        let unfinished = self.path.join("process.json.new");
        write_json(&unfinished, identity)?;
        let path = self.process();
        std::fs::rename(&unfinished, &path).map_err(Error::io(&path))
    }

    pub(super) fn read_identity(&self) -> Result<Option<Identity>, Error> {
        let path = self.process();
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|error| Error::Damaged { path, message: error.to_string() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Io { path, source }),
        }
    }

    pub(super) fn write_trace(&self, trace: &Trace) -> Result<(), Error> {
        write_json(&self.path.join("trace.json"), trace)
    }

    /// By what the job's processes are known; `None` when it never had any.
    #[must_use]
    pub fn read_trace(&self) -> Option<Trace> {
        serde_json::from_slice(&std::fs::read(self.path.join("trace.json")).ok()?).ok()
    }

    /// Takes room on the disk that [`JobDir::release`] gives back, so that a job can be ended on a full one.
    ///
    /// # Errors
    /// When there is none.
    pub fn reserve(&self) -> Result<(), Error> {
        let path = self.path.join("reserve");
        std::fs::write(&path, vec![0; RESERVE]).map_err(Error::io(&path))
    }

    /// Gives the room of [`JobDir::reserve`] back.
    pub fn release(&self) {
        let _ = std::fs::remove_file(self.path.join("reserve"));
    }

    /// Waits until the directory's entries are on the disk.
    ///
    /// # Errors
    /// When the disk says no.
    pub fn sync(&self) -> Result<(), Error> {
        sync_directory(&self.path)
    }

    /// Whether the job was told to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.path.join("cancelled").exists()
    }

    /// Remembers that the job was told to stop.
    ///
    /// # Errors
    /// When the disk says no.
    pub fn mark_cancelled(&self) -> Result<(), Error> {
        self.mark("cancelled")
    }

    /// Whether Gitea has acknowledged the end.
    #[must_use]
    pub fn is_reported(&self) -> bool {
        self.path.join("reported").exists()
    }

    /// Remembers that Gitea has acknowledged the end.
    ///
    /// # Errors
    /// When the disk says no.
    pub fn mark_reported(&self) -> Result<(), Error> {
        self.mark("reported")?;
        sync_directory(&self.path)
    }

    fn mark(&self, name: &str) -> Result<(), Error> {
        let path = self.path.join(name);
        File::create(&path).map(drop).map_err(Error::io(&path))
    }

    /// Removes the directory and what belongs to it. The mark that it was reported goes last.
    ///
    /// # Errors
    /// When something in it cannot be removed.
    pub fn remove(&self) -> Result<(), Error> {
        let work = self.read_meta().work;
        for path in work.iter().filter(|path| path.exists()) {
            remove::tree(path).map_err(Error::io(path))?;
        }
        for entry in std::fs::read_dir(&self.path).map_err(Error::io(&self.path))? {
            let entry = entry.map_err(Error::io(&self.path))?;
            let path = entry.path();
            if entry.file_name() == "reported" {
                continue;
            }
            let directory = entry.file_type().map_err(Error::io(&path))?.is_dir();
            let result = if directory { remove::tree(&path) } else { std::fs::remove_file(&path) };
            result.map_err(Error::io(&path))?;
        }
        remove::tree(&self.path).map_err(Error::io(&self.path))
    }
}

/// Whether there is such a process, and it is not this one.
fn is_another_that_lives(pid: u32) -> bool {
    pid != std::process::id() && Identity::of(pid).is_some_and(|holder| holder.is_alive())
}

/// Writes a file for this user only and waits until it is on the disk.
fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    write_file(path, value)?.sync_all().map_err(Error::io(path))
}

/// Writes a file for this user only.
fn write_file(path: &Path, value: &impl Serialize) -> Result<File, Error> {
    let write = || {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
        let mut buffer = io::BufWriter::new(&mut file);
        serde_json::to_writer(&mut buffer, value)?;
        buffer.flush()?;
        drop(buffer);
        Ok(file)
    };
    write().map_err(Error::io(path))
}

fn sync_directory(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(Error::io(path))
}

fn remove_file(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::Io { path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

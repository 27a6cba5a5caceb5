//! How the daemon stands, and asking a daemon that runs.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::events::Timestamp;

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most that is read of its answer, in bytes.
const LIMIT: u64 = 4 << 20;

/// How a daemon stands.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Since when it runs.
    pub started: Option<Timestamp>,
    /// The instance.
    pub address: String,
    /// The runner's name there.
    pub runner: String,
    /// Labels in force.
    pub labels: Vec<String>,
    /// Jobs that may run at a time.
    pub capacity: u32,
    /// It takes no more tasks.
    pub draining: bool,
    /// It would take a task now.
    pub ready: bool,
    /// Why not.
    pub not_ready: Option<String>,
    /// When Gitea answered last.
    pub contact: Option<Timestamp>,
    /// What was wrong at the last call, if something was.
    pub trouble: Option<String>,
    /// When Gitea was told the labels.
    pub declared: Option<Timestamp>,
    /// What Gitea has said it can do.
    pub server_capabilities: Vec<String>,
    /// When housekeeping had its last turn.
    pub housekeeping: Option<Timestamp>,
    /// Fewest free bytes with which a task is fetched.
    pub min_free: u64,
    /// Room on the disks that matter.
    pub disks: Vec<Disk>,
    /// The jobs that it looks after.
    pub jobs: Vec<Job>,
}

/// Room on a disk.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Disk {
    /// What is kept there.
    pub place: String,
    /// Where.
    pub path: PathBuf,
    /// Free bytes.
    pub free: u64,
    /// All bytes.
    pub size: u64,
}

impl Disk {
    /// As it is now; `None` for a place that is not there.
    #[must_use]
    pub fn of(place: &str, path: &Path) -> Option<Self> {
        let disk = rustix::fs::statvfs(path).ok()?;
        Some(Self {
            place: place.to_owned(),
            path: path.to_owned(),
            free: disk.f_bavail.saturating_mul(disk.f_frsize),
            size: disk.f_blocks.saturating_mul(disk.f_frsize),
        })
    }
}

/// How far a job is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Its first step has not begun: it starts, or waits for memory or for the Nix store.
    #[default]
    Waiting,
    /// Its steps run.
    Running,
    /// It has ended, and Gitea does not have all of it yet.
    Reporting,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Waiting, Self::Running, Self::Reporting];

    /// In one word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Reporting => "reporting",
        }
    }
}

/// A job that is looked after.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Job {
    /// The number of its task.
    pub task: i64,
    /// The repository.
    pub repository: String,
    /// The workflow's file.
    pub workflow: String,
    /// The id of the job in it.
    pub job: String,
    /// How far it is.
    pub state: Stage,
    /// When its task was received.
    pub received: Option<Timestamp>,
    /// Rows that have arrived at Gitea since this daemon looks after it.
    pub rows: u64,
}

/// Why a daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// None runs here.
    #[error("no daemon runs in {}", state.display())]
    NotRunning {
        /// The state directory.
        state: PathBuf,
    },
    /// It runs and does not answer.
    #[error("{}: the daemon does not answer: {reason}", socket.display())]
    Silent {
        /// Its socket.
        socket: PathBuf,
        /// What happened.
        reason: String,
    },
}

/// The socket of the daemon in a state directory.
#[must_use]
pub fn socket(state: &Path) -> PathBuf {
    state.join("daemon.sock")
}

/// Asks the daemon that runs in a state directory.
///
/// # Errors
/// When none runs, or it does not answer.
pub fn ask(state: &Path) -> Result<Status, AskError> {
    let path = socket(state);
    let silent = |reason: String| AskError::Silent { socket: path.clone(), reason };
    let mut stream =
        UnixStream::connect(&path).map_err(|_| AskError::NotRunning { state: state.to_owned() })?;
    let mut talk = || -> std::io::Result<String> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /status HTTP/1.0\r\nhost: sower\r\n\r\n")?;
        let mut answer = String::new();
        (&stream).take(LIMIT).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = talk().map_err(|error| silent(error.to_string()))?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).map_err(|error| silent(error.to_string()))
}

//! The runner's configuration: typed, defaulted and checked.
//!
//! The keys are act_runner's, so that its file is read as it is, and a few of our own. Every key is documented in
//! `runner-config/config.yaml`, which holds the defaults; a test compares the two.

mod bytes;
mod duration;
mod env_file;
mod keys;
mod label;
mod migrate;
mod section;
mod settings;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use bytes::{format_bytes, parse_bytes};
pub use duration::{format_duration, parse_duration};
pub use env_file::EnvFileError;
pub use keys::ROOMS;
pub use label::{Label, LabelError, Schema};
pub use migrate::{Fate, Migrated, Moved, migrate, split_labels};
pub use settings::{Setting, settings};

use serde::{Deserialize, Serialize};

use crate::yaml::Place;

/// Where the configuration is looked for when the command line names none.
pub const DEFAULT_PATH: &str = "/etc/sower/config.yaml";

/// The configuration of a runner.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// `log`: what the daemon says of itself.
    pub log: Log,
    /// `runner`: tasks, time limits, how often Gitea is asked.
    pub runner: Runner,
    /// `cache`: where fetched actions and tools are kept; act_runner's cache server keys are read.
    pub cache: Cache,
    /// `container`: act_runner's keys. Jobs run on the host, so they have no effect.
    pub container: Container,
    /// `host`: where jobs work.
    pub host: Host,
    /// `actions`: where actions come from.
    pub actions: Actions,
    /// `ghc`: the heap ceiling of GHC in every job.
    pub ghc: Ghc,
    /// `housekeeping`: room on the disk.
    pub housekeeping: Housekeeping,
    /// `metrics`: what monitoring may read.
    pub metrics: Metrics,
    /// `hooks`: programs of the operator around each job.
    pub hooks: Hooks,
    /// `notify`: who is told of jobs that fail.
    pub notify: Notify,
    /// `limits`: what a job may use.
    pub limits: HostLimits,
    /// `history`: what is kept of jobs that have ended.
    pub history: History,
    /// `images`: how registries are spoken to.
    pub images: Images,
    /// `diagnose`: own patterns by which the cause of a failed step is told.
    pub diagnose: Vec<OwnCause>,
}

/// `log`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Log {
    /// The least important message that is written.
    pub level: Level,
    /// How messages are written.
    pub format: LogFormat,
    /// The same for single rooms of the program, by name, such as `gitea`.
    pub rooms: BTreeMap<String, Level>,
}

/// How log messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Lines for people, in colour on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// How important a log message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Level {
    /// Everything.
    Trace,
    /// Each call and decision.
    Debug,
    /// Tasks begun and ended, connections lost and found.
    #[default]
    Info,
    /// What somebody should look at.
    Warn,
    /// What does not work.
    Error,
}

/// `runner`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runner {
    /// The registration; its folder is the state directory. Absolute after [`Config::load`].
    pub file: PathBuf,
    /// How many tasks run at the same time, at least 1.
    pub capacity: u32,
    /// Variables for every step.
    pub envs: BTreeMap<String, String>,
    /// A file with more of them, `KEY=value` a line; [`Runner::envs`] wins.
    pub env_file: Option<PathBuf>,
    /// Time limit of a job that names none.
    pub timeout: Duration,
    /// How long a daemon that is told to stop waits for its jobs. They go on without it after that.
    pub shutdown_timeout: Duration,
    /// Accept any certificate from Gitea.
    pub insecure: bool,
    /// Time limit of one question for a task; values below 30 s count as 30 s, since a reply that comes too late
    /// is a task that nobody runs.
    pub fetch_timeout: Duration,
    /// Time between two questions for a task while there is none.
    pub fetch_interval: Duration,
    /// A row that a step printed is in Gitea within this time.
    pub report_interval: Duration,
    /// Most bytes of rows that the journal of one job may have.
    pub journal_limit: u64,
    /// How long a process that is to stop has from SIGINT to SIGTERM.
    pub interrupt_grace: Duration,
    /// How long it has from SIGTERM to SIGKILL.
    pub terminate_grace: Duration,
    /// How long the steps that run after a cancel or a time-out, and the clean-up of actions, may take together.
    pub cleanup_timeout: Duration,
    /// Replaces `https://github.com` as the source of actions.
    pub github_mirror: Option<String>,
    /// Labels of this runner; when empty, those of the registration hold.
    pub labels: Vec<Label>,
}

impl Default for Runner {
    fn default() -> Self {
        Self {
            file: PathBuf::from("/var/lib/sower/.runner"),
            capacity: 1,
            envs: BTreeMap::new(),
            env_file: None,
            timeout: Duration::from_secs(3 * 3600),
            shutdown_timeout: Duration::ZERO,
            insecure: false,
            fetch_timeout: Duration::from_secs(60),
            fetch_interval: Duration::from_secs(1),
            report_interval: Duration::from_secs(1),
            journal_limit: 1 << 30,
            interrupt_grace: Duration::from_millis(7500),
            terminate_grace: Duration::from_millis(2500),
            cleanup_timeout: Duration::from_secs(5 * 60),
            github_mirror: None,
            labels: Vec::new(),
        }
    }
}

/// `cache`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// Serve the cache protocol to jobs.
    pub enabled: bool,
    /// Where fetched actions, tools and cache entries are kept; `None` is `cache` in the state directory.
    pub dir: Option<PathBuf>,
    /// The address that jobs reach the cache server at.
    pub host: Option<String>,
    /// Its port; 0 for any.
    pub port: u16,
    /// A cache server elsewhere.
    pub external_server: Option<String>,
    /// Never fetch an action again that is there already.
    pub offline_mode: bool,
    /// How much is kept of what jobs save, in bytes.
    pub quota: u64,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            enabled: true,
            dir: None,
            host: None,
            port: 0,
            external_server: None,
            offline_mode: false,
            quota: 10 << 30,
        }
    }
}

/// `container`: read so that act_runner's file is accepted as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Container {
    /// Network of job containers.
    pub network: Option<String>,
    /// Whether job containers are privileged.
    pub privileged: bool,
    /// Options for `docker create`.
    pub options: Option<String>,
    /// Parent of the workspace inside of containers.
    pub workdir_parent: Option<String>,
    /// Volumes that jobs may mount.
    pub valid_volumes: Vec<String>,
    /// The Docker socket.
    pub docker_host: Option<String>,
    /// Pull images that are there.
    pub force_pull: bool,
    /// Build images that are there.
    pub force_rebuild: bool,
    /// Do not start without Docker.
    pub require_docker: bool,
    /// How long to wait for Docker.
    pub docker_timeout: Duration,
    /// Mount the workspace instead of copying it.
    pub bind_workdir: bool,
}

/// `host`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Host {
    /// Where workspaces are made, a folder for each task; `None` is the job's own directory in the state directory.
    pub workdir_parent: Option<PathBuf>,
    /// `HOME` of the steps; `None` is that of the daemon.
    pub home: Option<PathBuf>,
}

/// `actions`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actions {
    /// Resolve `sower/…` in this program.
    pub embedded: bool,
    /// Addresses that stand in for others: what the URL of an action begins with, and what it begins with instead.
    pub mirrors: BTreeMap<String, String>,
    /// When the built-in checkout, cache and artifact actions are used instead of the originals.
    pub native: Native,
}

/// When built-in actions are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Native {
    /// Where there is no node, or the original cannot be fetched, or refuses the server.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Default for Actions {
    fn default() -> Self {
        Self { embedded: true, mirrors: BTreeMap::new(), native: Native::Auto }
    }
}

/// `ghc`: the heap ceiling that every GHC of every job gets. Without `heap` there is none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Ghc {
    /// Heap ceiling, as GHC's `-M` takes it, such as `2500m`.
    pub heap: Option<String>,
    /// Allocation area, as GHC's `-A` takes it, such as `64m`.
    pub allocation_area: Option<String>,
    /// How many modules GHC compiles at the same time.
    pub jobs: Option<u32>,
    /// The ceiling stands last on GHC's command line, where it beats what a build passes itself.
    pub enforce: bool,
    /// A job fails when a GHC ran without the ceiling.
    pub require: bool,
}

/// What a job may use. `None` is no limit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes from which on the kernel slows the job down and takes memory back; `None` is 90 % of `memory`.
    pub memory_high: Option<u64>,
    /// Bytes of swap.
    pub swap: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Thousandths of a processor.
    pub cpu: Option<u64>,
    /// The runner itself ends a step that uses more than `memory`, where the kernel does not.
    pub watchdog: bool,
}

impl Limits {
    /// These limits, where they say nothing those of `other`.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        Self {
            memory: self.memory.or(other.memory),
            memory_high: self.memory_high.or(other.memory_high.filter(|_| self.memory.is_none())),
            swap: self.swap.or(other.swap),
            pids: self.pids.or(other.pids),
            cpu: self.cpu.or(other.cpu),
            watchdog: self.watchdog || other.watchdog,
        }
    }

    /// Whether there is a limit at all.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self { watchdog: self.watchdog, ..Self::default() }
    }
}

/// `limits`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HostLimits {
    /// For every job.
    pub job: Limits,
    /// For jobs that ask for this label; what is not said here is as for every job.
    pub labels: BTreeMap<String, Limits>,
}

/// `history`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// How many jobs' logs are kept.
    pub jobs: u32,
    /// For how long.
    pub age: Duration,
    /// Most bytes of them together.
    pub size: u64,
    /// With a capacity above 1, start a job only where its known peak fits beside those that run.
    pub admission: bool,
}

impl Default for History {
    fn default() -> Self {
        Self { jobs: 100, age: Duration::from_secs(30 * 24 * 3600), size: 1 << 30, admission: true }
    }
}

/// `images`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Images {
    /// By `host` or `host:port`, as it stands in the names of images.
    pub registries: BTreeMap<String, RegistryAccess>,
}

/// How a registry is spoken to, where `sower image` is not told otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistryAccess {
    /// HTTP instead of HTTPS.
    pub plain_http: bool,
    /// Accept any certificate.
    pub insecure: bool,
    /// A file with certificates of authorities to trust besides the system's.
    pub ca: Option<PathBuf>,
    /// Where tokens are asked for, whatever the registry says.
    pub token_url: Option<String>,
}

/// A pattern of the operator's own, and what it means.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OwnCause {
    /// Text that a row of a failed step holds; `*` stands for anything.
    pub pattern: String,
    /// What happened.
    pub cause: String,
    /// What to do.
    pub advice: String,
}

/// `housekeeping`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Housekeeping {
    /// Fewest free bytes where jobs are kept and work; with fewer no task is fetched. 0 fetches always.
    pub min_free: u64,
    /// Time between two turns while no job runs; zero for none.
    pub interval: Duration,
    /// Of how many successful jobs of each repository the results stay in the Nix store, with all that they were built
    /// from.
    pub results: u32,
    /// Free bytes on the disk of the Nix store that garbage is collected for; 0 leaves the store alone.
    pub store_min_free: u64,
}

impl Default for Housekeeping {
    fn default() -> Self {
        Self { min_free: 0, interval: Duration::from_secs(24 * 3600), results: 3, store_min_free: 0 }
    }
}

/// `metrics`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    /// Serve them.
    pub enabled: bool,
    /// Where: `127.0.0.1:9101`, or `unix:/run/sower.sock`.
    pub addr: String,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { enabled: false, addr: "127.0.0.1:9101".to_owned() }
    }
}

/// `hooks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hooks {
    /// Runs before the first step; a failure is the job's.
    pub job_started: Option<PathBuf>,
    /// Runs after the last step.
    pub job_completed: Option<PathBuf>,
    /// How long each may take.
    pub timeout: Duration,
}

impl Default for Hooks {
    fn default() -> Self {
        Self { job_started: None, job_completed: None, timeout: Duration::from_secs(60) }
    }
}

/// `notify`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Notify {
    /// Where the message is posted. It may hold a secret.
    pub url: Option<String>,
    /// A file with that address.
    pub url_file: Option<PathBuf>,
    /// A file with the secret that messages are signed with.
    pub secret_file: Option<PathBuf>,
}

impl fmt::Debug for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notify").field("url_file", &self.url_file).finish_non_exhaustive()
    }
}

/// Something in a configuration file that is wrong or odd, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file.
    pub file: PathBuf,
    /// Where in it.
    pub place: Place,
    /// The key, such as `runner.capacity`; empty when the file is no YAML.
    pub key: String,
    /// What is the matter, and what would be right.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file.display(), self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// Why a configuration could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is wrong; every error in it, one a line.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Wrong(Vec<Finding>),
}

impl Config {
    /// The documented configuration: every key with its default.
    pub const EXAMPLE: &str = include_str!("../../runner-config/config.yaml");

    /// Reads a configuration file, or takes the defaults where `path` is `None` and [`DEFAULT_PATH`] is not there.
    /// Relative paths in it are relative to the working directory, as act_runner has it. The findings are warnings,
    /// such as unknown keys.
    ///
    /// # Errors
    /// When the file cannot be read or is wrong.
    pub fn load(path: Option<&Path>) -> Result<(Self, Vec<Finding>), Error> {
        let default = Path::new(DEFAULT_PATH);
        let (mut config, warnings) = match path {
            Some(path) => Self::read(path)?,
            None if default.exists() => Self::read(default)?,
            None => (Self::default(), Vec::new()),
        };
        let absolute = |path: &mut PathBuf| -> Result<(), Error> {
            *path = std::path::absolute(&*path).map_err(|source| Error::Io { path: path.clone(), source })?;
            Ok(())
        };
        absolute(&mut config.runner.file)?;
        let optional = [
            &mut config.runner.env_file,
            &mut config.cache.dir,
            &mut config.host.workdir_parent,
            &mut config.host.home,
            &mut config.hooks.job_started,
            &mut config.hooks.job_completed,
            &mut config.notify.url_file,
            &mut config.notify.secret_file,
        ];
        for path in optional.into_iter().flatten() {
            absolute(path)?;
        }
        Ok((config, warnings))
    }

    /// Reads one file; paths stay as they are written.
    ///
    /// # Errors
    /// When the file cannot be read or is wrong.
    pub fn read(path: &Path) -> Result<(Self, Vec<Finding>), Error> {
        let text = std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Reads the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// When the text is wrong.
    pub fn parse(path: &Path, text: &[u8]) -> Result<(Self, Vec<Finding>), Error> {
        keys::read(path, text)
    }

    /// Every key that is known, such as `runner.capacity`.
    #[must_use]
    pub fn known_keys() -> Vec<String> {
        keys::known()
    }

    /// The state directory: the folder of the registration.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        match self.runner.file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        }
    }

    /// The variables for every step: those of `runner.env_file`, then those of `runner.envs`.
    ///
    /// # Errors
    /// When the file cannot be read or has a line that is no assignment.
    pub fn step_env(&self) -> Result<BTreeMap<String, String>, EnvFileError> {
        let mut env = match &self.runner.env_file {
            Some(path) => env_file::read(path)?,
            None => BTreeMap::new(),
        };
        env.extend(self.runner.envs.clone());
        Ok(env)
    }
}

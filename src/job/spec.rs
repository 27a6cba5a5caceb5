//! What is to be run: everything that a job needs to know, in the form in which it waits on disk.
//!
//! Whoever has a job to run (the daemon for Gitea, `exec` for the working directory) writes one of these; the
//! executor reads nothing else, so it has never heard of Gitea.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{Ghc, Hooks, HostLimits, OwnCause};
use crate::events::Conclusion;
use crate::limits::admission::Request;

/// A job to run. The file that holds it contains secrets: mode 0600, removed once the job has read it.
#[derive(Clone, Serialize, Deserialize)]
pub struct JobSpec {
    /// The workflow, as YAML.
    pub workflow: String,
    /// How diagnostics name the workflow, such as `deploy.yaml`.
    pub workflow_file: String,
    /// Id of the job to run; `None` when the workflow must hold exactly one.
    pub job: Option<String>,
    /// The combination of the matrix; `None` to take it from `strategy.matrix`, whose keys then hold one value each.
    pub matrix: Option<Map<String, Value>>,
    /// The `github` context as the server gave it; the executor fills in what is the runner's to know.
    pub github: Map<String, Value>,
    /// The `inputs` context.
    pub inputs: Map<String, Value>,
    /// The `secrets` context.
    pub secrets: BTreeMap<String, String>,
    /// The `vars` context.
    pub vars: BTreeMap<String, String>,
    /// The `needs` context.
    pub needs: IndexMap<String, Need>,
    /// Values that are masked beside the secrets, such as the runtime token.
    pub masks: Vec<String>,
    /// Variables that the runner's configuration and the server add to every step.
    pub env: BTreeMap<String, String>,
    /// The runner that runs it.
    pub runner: RunnerInfo,
    /// Where the job's files live.
    pub places: Places,
    /// Where actions come from.
    pub actions: ActionSources,
    /// Rows for the head of the log that only the caller can know, such as "task 42 of https://…".
    pub head: Vec<String>,
    /// Time limit of the job when the workflow names none, in seconds.
    pub timeout_seconds: u64,
    /// The `strategy` context, when whoever expanded the matrix knows it; otherwise the workflow says it.
    #[serde(default)]
    pub strategy: Option<Map<String, Value>>,
    /// The job is part of another one, whose log has its head.
    #[serde(default)]
    pub nested: bool,
    /// How many workflows have called one another to get to this one.
    #[serde(default)]
    pub calls: usize,
    /// The files of the repository that holds the workflow, when that is not the repository of the event.
    #[serde(default)]
    pub origin: Option<PathBuf>,
    /// How long what is to stop is given.
    #[serde(default)]
    pub patience: Patience,
    /// Most bytes of rows that the journal may have.
    #[serde(default = "unbounded")]
    pub journal_limit: u64,
    /// Limits, GHC's ceiling, and what is told about memory.
    #[serde(default)]
    pub memory: MemorySpec,
    /// What the operator of the host wants with each job.
    #[serde(default)]
    pub operator: OperatorSpec,
}

/// What the operator of the host wants with each job.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OperatorSpec {
    /// The number of the task, where a server has given it.
    pub task: Option<i64>,
    /// Programs around the job.
    pub hooks: Hooks,
    /// Where `sower image` and `sower deploy` note what they did, for the metrics.
    pub tally: Option<PathBuf>,
    /// Where the results of the job are kept as roots of the Nix store, and how many.
    pub results: Option<Results>,
    /// The job waits until nobody who collects garbage holds this file, and holds it itself while it runs.
    pub gc_lock: Option<PathBuf>,
}

/// Where the results of a job are kept.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Results {
    /// The folder of all repositories' results.
    pub folder: PathBuf,
    /// The number of the task.
    pub task: i64,
    /// Of how many jobs of a repository they are kept.
    pub keep: u32,
}

/// What the runner's configuration says about memory.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MemorySpec {
    /// Limits of jobs.
    pub limits: HostLimits,
    /// The heap ceiling of GHC.
    pub ghc: Ghc,
    /// The operator's own causes.
    pub causes: Vec<OwnCause>,
    /// Where the memory of the job is written down.
    pub record: Option<PathBuf>,
    /// What is asked before the job begins; `None` where it need not ask.
    pub admission: Option<Request>,
}

/// How long what is to stop is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patience {
    /// From SIGINT to SIGTERM, in milliseconds.
    pub interrupt_millis: u64,
    /// From SIGTERM to SIGKILL, in milliseconds.
    pub terminate_millis: u64,
    /// For the steps that run after a cancel or a time-out, and the clean-up of actions, together, in seconds.
    pub cleanup_seconds: u64,
}

impl Default for Patience {
    /// GitHub's for the signals.
    fn default() -> Self {
        Self { interrupt_millis: 7500, terminate_millis: 2500, cleanup_seconds: 5 * 60 }
    }
}

/// Of a specification from before there was a limit.
fn unbounded() -> u64 {
    u64::MAX
}

/// A job that this one needs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Need {
    /// How it ended.
    pub result: Option<Conclusion>,
    /// Its outputs.
    pub outputs: BTreeMap<String, String>,
    /// How the jobs ended that it needed itself, and those before them; a server does not tell.
    #[serde(default)]
    pub before: Vec<Conclusion>,
}

/// The runner as jobs see it in the `runner` context.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RunnerInfo {
    /// The registered name.
    pub name: String,
    /// Label names, without `:host`.
    pub labels: Vec<String>,
}

/// Directories and files of one job. All paths are absolute.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Places {
    /// `GITHUB_WORKSPACE`; created empty when it is not there.
    pub workspace: PathBuf,
    /// Scripts, environment files, `event.json` and `RUNNER_TEMP`; removed when the job has ended.
    pub scratch: PathBuf,
    /// `RUNNER_TOOL_CACHE`.
    pub tool_cache: PathBuf,
    /// Fetched actions, shared between jobs.
    pub action_cache: PathBuf,
    /// `HOME` of the steps.
    pub home: PathBuf,
    /// Remove the workspace when the job has ended.
    pub remove_workspace: bool,
}

/// Where actions come from.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ActionSources {
    /// What `owner/repo@ref` is relative to, such as `https://github.com`.
    pub default_url: String,
    /// The instance whose clone URLs get the job's token; empty for none.
    pub instance_url: String,
    /// Replaces `https://github.com` when set.
    pub github_mirror: Option<String>,
    /// Resolve `sower/…` in the binary.
    pub embedded: bool,
    /// A working tree that satisfies `actions/checkout` of this very repository (`exec`).
    pub checkout_from: Option<PathBuf>,
    /// Ask no server for what is cached already.
    #[serde(default)]
    pub offline: bool,
    /// Addresses that stand in for others: what a URL begins with, and what it begins with instead.
    #[serde(default)]
    pub mirrors: BTreeMap<String, String>,
    /// The actions that are built in.
    #[serde(default)]
    pub native: NativeActions,
}

/// The actions that are built in: `actions/checkout`, `actions/cache`, `actions/upload-artifact` and
/// `actions/download-artifact`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct NativeActions {
    /// When they are used instead of the originals.
    pub policy: NativePolicy,
    /// Accept any certificate from the artifact service, as the configuration says for the instance.
    pub insecure: bool,
    /// Where the artifact service is, if other programs are told another address.
    #[serde(default)]
    pub artifacts: Option<Detour>,
}

/// A service that other programs find at an address of ours, from which they are handed on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Detour {
    /// What the variable says.
    pub announced: String,
    /// Where the service is.
    pub direct: String,
}

/// When built-in actions are used instead of the originals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NativePolicy {
    /// Where there is no node, or the original cannot be fetched, or refuses the server.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl fmt::Debug for JobSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobSpec")
            .field("workflow_file", &self.workflow_file)
            .field("job", &self.job)
            .field("runner", &self.runner)
            .field("places", &self.places)
            .finish_non_exhaustive()
    }
}

impl Places {
    /// No places at all, for evaluating what does not depend on them.
    #[must_use]
    pub fn none() -> Self {
        Self {
            workspace: PathBuf::new(),
            scratch: PathBuf::new(),
            tool_cache: PathBuf::new(),
            action_cache: PathBuf::new(),
            home: PathBuf::new(),
            remove_workspace: false,
        }
    }
}

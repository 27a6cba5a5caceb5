//! The tables of the stand-in: runners, runs, jobs, tasks with their rows, and how one change leads to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use sower_wire::runner::Result as WireResult;

use crate::fault::{Faults, Method};
use crate::options::Options;
use crate::random;
use crate::registry::Packages;
use crate::rules::Watch;

/// The state of a run, a job, a task or a step, as Gitea has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// It did what it should.
    Success,
    /// It failed.
    Failure,
    /// It was stopped.
    Cancelled,
    /// It was not run.
    Skipped,
    /// It waits for a runner, or for its turn.
    Waiting,
    /// A runner has it.
    Running,
    /// It waits for the jobs that it needs.
    Blocked,
    /// It is to stop, and may clean up.
    Cancelling,
}

impl Status {
    /// Whether nothing more can happen.
    #[must_use]
    pub const fn is_done(self) -> bool {
        matches!(self, Self::Success | Self::Failure | Self::Cancelled | Self::Skipped)
    }

    /// The word for it, in lower case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Cancelled => "cancelled",
            Self::Skipped => "skipped",
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Blocked => "blocked",
            Self::Cancelling => "cancelling",
        }
    }

    pub(crate) const fn from_result(result: WireResult) -> Option<Self> {
        match result {
            WireResult::Unspecified => None,
            WireResult::Success => Some(Self::Success),
            WireResult::Failure => Some(Self::Failure),
            WireResult::Cancelled => Some(Self::Cancelled),
            WireResult::Skipped => Some(Self::Skipped),
        }
    }

    /// What the runner is told.
    pub(crate) const fn to_result(self) -> WireResult {
        match self {
            Self::Success => WireResult::Success,
            Self::Failure => WireResult::Failure,
            Self::Cancelled | Self::Cancelling => WireResult::Cancelled,
            Self::Skipped => WireResult::Skipped,
            Self::Waiting | Self::Running | Self::Blocked => WireResult::Unspecified,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One row of a log as the server keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// When the job printed it.
    pub time: SystemTime,
    /// The line, without its end.
    pub text: String,
}

pub(crate) struct Runner {
    pub(crate) id: i64,
    pub(crate) uuid: String,
    pub(crate) token: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) labels: Vec<String>,
    pub(crate) capabilities: Vec<String>,
    pub(crate) ephemeral: bool,
    /// Ephemeral runners get one task.
    pub(crate) had_task: bool,
    /// FetchTask requests that are being answered.
    pub(crate) fetching: usize,
}

pub(crate) struct Run {
    pub(crate) id: i64,
    pub(crate) number: i64,
    pub(crate) repository: String,
    pub(crate) workflow: String,
    pub(crate) title: String,
    pub(crate) event_name: String,
    pub(crate) reference: String,
    pub(crate) sha: String,
    pub(crate) created: SystemTime,
    pub(crate) event: serde_json::Value,
    pub(crate) jobs: Vec<i64>,
}

pub(crate) struct Job {
    pub(crate) id: i64,
    pub(crate) run: i64,
    pub(crate) key: String,
    pub(crate) name: String,
    pub(crate) runs_on: Vec<String>,
    pub(crate) needs: Vec<String>,
    pub(crate) has_if: bool,
    pub(crate) payload: Vec<u8>,
    pub(crate) step_names: Vec<String>,
    pub(crate) status: Status,
    pub(crate) task: Option<i64>,
    /// For payloads that are enqueued by hand: what the runner is told beside the results of real jobs.
    pub(crate) extra: Extra,
}

/// What a payload that is enqueued by hand adds to its task.
#[derive(Debug, Clone, Default)]
pub(crate) struct Extra {
    pub(crate) secrets: BTreeMap<String, String>,
    pub(crate) vars: BTreeMap<String, String>,
    pub(crate) needs: BTreeMap<String, (Status, BTreeMap<String, String>)>,
    pub(crate) context: serde_json::Map<String, serde_json::Value>,
}

pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) status: Status,
    pub(crate) started: Option<SystemTime>,
    pub(crate) stopped: Option<SystemTime>,
    pub(crate) log_index: i64,
    pub(crate) log_length: i64,
}

pub(crate) struct Task {
    pub(crate) id: i64,
    pub(crate) job: i64,
    pub(crate) runner: i64,
    pub(crate) status: Status,
    pub(crate) token: String,
    pub(crate) runtime_token: String,
    pub(crate) started: SystemTime,
    pub(crate) stopped: Option<SystemTime>,
    pub(crate) steps: Vec<Step>,
    pub(crate) rows: Vec<Row>,
    pub(crate) sealed: bool,
    pub(crate) outputs: BTreeMap<String, String>,
    pub(crate) summaries: BTreeMap<usize, String>,
    pub(crate) watch: Watch,
}

pub(crate) struct State {
    pub(crate) options: Options,
    /// Address of the instance without a slash at its end.
    pub(crate) base: String,
    pub(crate) registration_token: String,
    pub(crate) runners: Vec<Runner>,
    pub(crate) runs: BTreeMap<i64, Run>,
    pub(crate) jobs: BTreeMap<i64, Job>,
    pub(crate) tasks: BTreeMap<i64, Task>,
    pub(crate) secrets: BTreeMap<String, String>,
    pub(crate) vars: BTreeMap<String, String>,
    pub(crate) tasks_version: i64,
    pub(crate) faults: Faults,
    pub(crate) violations: Vec<String>,
    /// Kinds of violation that a test provokes on purpose.
    pub(crate) allowed: BTreeSet<crate::rules::Rule>,
    pub(crate) requests: BTreeMap<Method, u64>,
    pub(crate) packages: Packages,
    /// Workflows that a push brought and that could not be read.
    pub(crate) rejected: Vec<String>,
    next_runner: i64,
}

impl State {
    pub(crate) fn new(options: Options, base: String) -> io::Result<Self> {
        Ok(Self {
            options,
            base,
            registration_token: random::hex(20)?,
            runners: Vec::new(),
            runs: BTreeMap::new(),
            jobs: BTreeMap::new(),
            tasks: BTreeMap::new(),
            secrets: BTreeMap::new(),
            vars: BTreeMap::new(),
            tasks_version: 1,
            faults: Faults::default(),
            violations: Vec::new(),
            allowed: BTreeSet::new(),
            requests: BTreeMap::new(),
            packages: Packages::default(),
            rejected: Vec::new(),
            next_runner: 1,
        })
    }

    pub(crate) fn next_runner(&mut self) -> i64 {
        let id = self.next_runner;
        self.next_runner += 1;
        id
    }

    pub(crate) fn next_job(&self) -> i64 {
        self.jobs.last_key_value().map_or(1, |(id, _)| id + 1)
    }

    pub(crate) fn next_run(&self) -> i64 {
        self.runs.last_key_value().map_or(1, |(id, _)| id + 1)
    }

    pub(crate) fn next_task(&self) -> i64 {
        self.tasks.last_key_value().map_or(1, |(id, _)| id + 1)
    }

    /// The next number in the sequence that all workflows of a repository share.
    pub(crate) fn next_number(&self, repository: &str) -> i64 {
        self.runs.values().filter(|run| run.repository == repository).map(|run| run.number).max().unwrap_or(0)
            + 1
    }

    /// The state of a run, from those of its jobs.
    pub(crate) fn run_status(&self, run: &Run) -> Status {
        let states: Vec<Status> =
            run.jobs.iter().filter_map(|id| self.jobs.get(id)).map(|job| job.status).collect();
        let any = |status| states.contains(&status);
        if states.iter().all(|status| status.is_done()) {
            if any(Status::Failure) {
                Status::Failure
            } else if any(Status::Cancelled) {
                Status::Cancelled
            } else if !states.is_empty() && states.iter().all(|status| *status == Status::Skipped) {
                Status::Skipped
            } else {
                Status::Success
            }
        } else if any(Status::Cancelling) {
            Status::Cancelling
        } else if any(Status::Running) || states.iter().any(|status| status.is_done()) {
            Status::Running
        } else if any(Status::Waiting) {
            Status::Waiting
        } else {
            Status::Blocked
        }
    }

    /// Lets the jobs of a run go whose needs are done. Like servers up to 1.26 it evaluates no `if`: a job that has
    /// one starts whatever became of its needs, and the runner decides.
    pub(crate) fn unblock(&mut self, run: i64) {
        loop {
            let Some(jobs) = self.runs.get(&run).map(|run| run.jobs.clone()) else { return };
            let mut next = None;
            for id in &jobs {
                let Some(job) = self.jobs.get(id).filter(|job| job.status == Status::Blocked) else {
                    continue;
                };
                let needed: Vec<Status> = jobs
                    .iter()
                    .filter_map(|id| self.jobs.get(id))
                    .filter(|other| job.needs.contains(&other.key))
                    .map(|other| other.status)
                    .collect();
                if needed.iter().all(|status| status.is_done()) {
                    let go = job.has_if || needed.iter().all(|status| *status == Status::Success);
                    next = Some((*id, if go { Status::Waiting } else { Status::Skipped }));
                    break;
                }
            }
            let Some((id, status)) = next else { return };
            if let Some(job) = self.jobs.get_mut(&id) {
                job.status = status;
            }
            if status == Status::Waiting {
                self.tasks_version += 1;
            }
        }
    }

    /// Ends a task, with everything that follows from it.
    pub(crate) fn finish(&mut self, task: i64, status: Status, stopped: SystemTime) {
        let Some(task) = self.tasks.get_mut(&task) else { return };
        task.status = status;
        task.stopped = Some(stopped);
        let (job, runner) = (task.job, task.runner);
        let mut run = None;
        if let Some(job) = self.jobs.get_mut(&job) {
            job.status = status;
            run = Some(job.run);
        }
        // An ephemeral runner is gone with its only task.
        self.runners.retain(|candidate| candidate.id != runner || !candidate.ephemeral);
        if let Some(run) = run {
            self.unblock(run);
        }
    }

    /// Cancels one job, as a click in the web interface does.
    pub(crate) fn cancel_job(&mut self, id: i64) {
        let gentle_server = self.options.version >= crate::options::Version::V1_27;
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.status.is_done() {
            return;
        }
        let Some(task) = job.task.and_then(|task| self.tasks.get_mut(&task)) else {
            job.status = Status::Cancelled;
            let run = job.run;
            self.unblock(run);
            return;
        };
        let gentle_runner = self
            .runners
            .iter()
            .any(|runner| runner.id == task.runner && runner.capabilities.iter().any(|c| c == "cancelling"));
        if gentle_server && gentle_runner {
            task.status = Status::Cancelling;
            job.status = Status::Cancelling;
            return;
        }
        let now = SystemTime::now();
        for step in &mut task.steps {
            if !step.status.is_done() {
                step.status = Status::Cancelled;
                step.stopped = Some(now);
            }
        }
        let task = task.id;
        self.finish(task, Status::Cancelled, now);
    }

    pub(crate) fn task_of_token(&self, token: &str) -> Option<&Task> {
        self.tasks
            .values()
            .find(|task| task.token == token && matches!(task.status, Status::Running | Status::Cancelling))
    }
}

/// The state, for the threads that serve and the threads that test.
pub(crate) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    revision: Mutex<u64>,
}

impl Shared {
    pub(crate) fn new(state: State) -> Self {
        Self { state: Mutex::new(state), changed: Condvar::new(), revision: Mutex::new(0) }
    }

    /// Looks at the state.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes everyone who waits for a change.
    pub(crate) fn change<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let result = act(&mut self.lock());
        *self.revision.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_all();
        result
    }

    /// How often the state has changed.
    pub(crate) fn revision(&self) -> u64 {
        *self.revision.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the state has changed since `seen`, at most until `deadline`; answers the present revision.
    pub(crate) fn wait(&self, seen: u64, deadline: Instant) -> u64 {
        let mut revision = self.revision.lock().unwrap_or_else(PoisonError::into_inner);
        while *revision == seen {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                break;
            }
            revision = self.changed.wait_timeout(revision, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *revision
    }
}

//! What the pages of Gitea would show: runs, their jobs, the steps with the rows that belong to each.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use crate::state::{Job, Run, State, Status, Task};

/// A run: one workflow on one commit.
#[derive(Debug, Clone)]
pub struct RunView {
    /// Identifies the run on this server.
    pub id: i64,
    /// Its number in the repository.
    pub number: i64,
    /// `owner/name`.
    pub repository: String,
    /// File name of the workflow.
    pub workflow: String,
    /// What the list of runs shows: `run-name`, else the first line of the commit.
    pub title: String,
    /// Full ref.
    pub reference: String,
    /// Commit.
    pub sha: String,
    /// `push`, `workflow_dispatch`.
    pub event: String,
    /// When the run came to be.
    pub created: SystemTime,
    /// State of the whole, from its jobs.
    pub status: Status,
    /// In the order of the workflow.
    pub jobs: Vec<JobView>,
}

impl RunView {
    /// The first job of that name or key.
    #[must_use]
    pub fn job(&self, name: &str) -> Option<&JobView> {
        self.jobs.iter().find(|job| job.name == name).or_else(|| self.jobs.iter().find(|job| job.key == name))
    }
}

/// A job of a run.
#[derive(Debug, Clone)]
pub struct JobView {
    /// Identifies the job on this server.
    pub id: i64,
    /// The key in the workflow; jobs of one matrix share it.
    pub key: String,
    /// The name to show.
    pub name: String,
    /// State.
    pub status: Status,
    /// The task that a runner has or had for it.
    pub task: Option<i64>,
    /// Name of the runner, while it is registered.
    pub runner: Option<String>,
    /// When a runner took it.
    pub started: Option<SystemTime>,
    /// When it ended.
    pub stopped: Option<SystemTime>,
    /// As the page lists them: "Set up job", the steps, "Complete job". Empty before a runner took the job.
    pub steps: Vec<StepView>,
    /// How many rows the log has.
    pub rows: usize,
    /// The log is complete.
    pub sealed: bool,
    /// Outputs that the runner has reported.
    pub outputs: BTreeMap<String, String>,
    /// Markdown of the job's summary, by index of the step.
    pub summaries: BTreeMap<usize, String>,
}

impl JobView {
    /// The first step of that name.
    #[must_use]
    pub fn step(&self, name: &str) -> Option<&StepView> {
        self.steps.iter().find(|step| step.name == name)
    }

    /// Time that the job took, or has taken until now.
    #[must_use]
    pub fn duration(&self) -> Option<Duration> {
        duration(self.started, self.stopped)
    }
}

/// A line in the list of a job's steps.
#[derive(Debug, Clone)]
pub struct StepView {
    /// Index in the workflow; none for "Set up job" and "Complete job".
    pub index: Option<usize>,
    /// Name to show.
    pub name: String,
    /// State.
    pub status: Status,
    /// When it began.
    pub started: Option<SystemTime>,
    /// When it ended.
    pub stopped: Option<SystemTime>,
    /// The rows of the job's log that are shown below it.
    pub rows: Range<usize>,
}

impl StepView {
    /// Time that the step took, or has taken until now.
    #[must_use]
    pub fn duration(&self) -> Option<Duration> {
        duration(self.started, self.stopped)
    }
}

/// A registered runner.
#[derive(Debug, Clone)]
pub struct RunnerView {
    /// Identifies the runner on this server.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// The version that it declared.
    pub version: String,
    /// Label names.
    pub labels: Vec<String>,
    /// What it can beyond the ordinary.
    pub capabilities: Vec<String>,
    /// It takes one task only.
    pub ephemeral: bool,
}

fn duration(started: Option<SystemTime>, stopped: Option<SystemTime>) -> Option<Duration> {
    let end = stopped.unwrap_or_else(SystemTime::now);
    Some(end.duration_since(started?).unwrap_or_default())
}

impl State {
    pub(crate) fn view_run(&self, run: &Run) -> RunView {
        RunView {
            id: run.id,
            number: run.number,
            repository: run.repository.clone(),
            workflow: run.workflow.clone(),
            title: run.title.clone(),
            reference: run.reference.clone(),
            sha: run.sha.clone(),
            event: run.event_name.clone(),
            created: run.created,
            status: self.run_status(run),
            jobs: run.jobs.iter().filter_map(|id| self.jobs.get(id)).map(|job| self.view_job(job)).collect(),
        }
    }

    fn view_job(&self, job: &Job) -> JobView {
        let task = job.task.and_then(|task| self.tasks.get(&task));
        JobView {
            id: job.id,
            key: job.key.clone(),
            name: job.name.clone(),
            status: job.status,
            task: job.task,
            runner: task
                .and_then(|task| self.runners.iter().find(|runner| runner.id == task.runner))
                .map(|runner| runner.name.clone()),
            started: task.map(|task| task.started),
            stopped: task.and_then(|task| task.stopped),
            steps: task.map(slice).unwrap_or_default(),
            rows: task.map_or(0, |task| task.rows.len()),
            sealed: task.is_some_and(|task| task.sealed),
            outputs: task.map(|task| task.outputs.clone()).unwrap_or_default(),
            summaries: task.map(|task| task.summaries.clone()).unwrap_or_default(),
        }
    }

    pub(crate) fn view_runners(&self) -> Vec<RunnerView> {
        self.runners
            .iter()
            .map(|runner| RunnerView {
                id: runner.id,
                name: runner.name.clone(),
                version: runner.version.clone(),
                labels: runner.labels.clone(),
                capabilities: runner.capabilities.clone(),
                ephemeral: runner.ephemeral,
            })
            .collect()
    }
}

/// The steps as the page has them. "Set up job" ends where the first step that has run begins; "Complete job" begins
/// after the rows of all steps together and comes to life when the last step has run, or one has failed for good.
fn slice(task: &Task) -> Vec<StepView> {
    let held = task.rows.len();
    let index = |value: i64| usize::try_from(value).unwrap_or(0);
    let has_run = |status| matches!(status, Status::Running | Status::Success | Status::Failure);
    let first = task.steps.iter().find(|step| has_run(step.status));
    let setup_end = first.map_or(held, |step| index(step.log_index).min(held));
    let setup_status = if first.is_some() { Status::Success } else { task.status };
    let mut steps = vec![StepView {
        index: None,
        name: "Set up job".to_owned(),
        status: setup_status,
        started: Some(task.started),
        stopped: first.and_then(|step| step.started).or(task.stopped),
        rows: 0..setup_end,
    }];
    let mut total = setup_end;
    let mut complete_from = None;
    for (position, step) in task.steps.iter().enumerate() {
        let start = index(step.log_index).min(held);
        let length = index(step.log_length);
        total += length;
        steps.push(StepView {
            index: Some(position),
            name: step.name.clone(),
            status: step.status,
            started: step.started,
            stopped: step.stopped,
            rows: start..start.saturating_add(length).min(held),
        });
        if has_run(step.status) {
            complete_from = step.stopped;
        }
    }
    let last_done =
        task.steps.last().is_some_and(|step| matches!(step.status, Status::Success | Status::Failure));
    let last_failed = task
        .steps
        .iter()
        .rev()
        .find(|step| has_run(step.status))
        .is_some_and(|step| step.status == Status::Failure);
    let alive = last_done || last_failed || task.status.is_done();
    steps.push(StepView {
        index: None,
        name: "Complete job".to_owned(),
        status: if !alive { Status::Waiting } else { task.status },
        started: if alive { complete_from } else { None },
        stopped: task.stopped,
        rows: if first.is_some() { total.min(held)..held } else { held..held },
    });
    steps
}

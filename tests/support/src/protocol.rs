//! The five calls of a runner, as the server carries them out.

use std::time::SystemTime;

use sower_wire::Timestamp;
use sower_wire::runner::{
    DeclareRequest, DeclareResponse, FetchTaskRequest, FetchTaskResponse, RegisterRequest, RegisterResponse,
    Runner as WireRunner, Task as WireTask, TaskState, UpdateLogRequest, UpdateLogResponse,
    UpdateTaskRequest, UpdateTaskResponse,
};

use crate::options::Version;
use crate::random;
use crate::rules::{MAX_OUTPUT_NAME, MAX_OUTPUT_VALUE, Rule, Watch, count};
use crate::state::{Row, Runner, State, Status, Step, Task};

/// Why a call was refused.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// With a code of the gRPC status package, such as `Internal`.
    Status(&'static str, String),
    /// A plain error, which arrives as `unknown`.
    Plain(String),
    /// The handler crashed.
    Crash,
}

impl Refusal {
    fn internal(text: impl Into<String>) -> Self {
        Self::Status("Internal", text.into())
    }

    pub(crate) fn unregistered() -> Self {
        Self::Status("Unauthenticated", "unregistered runner".to_owned())
    }
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        Self::internal(error.to_string())
    }
}

impl State {
    /// The runner that these headers belong to.
    pub(crate) fn authenticate(&self, uuid: &str, token: &str) -> Result<i64, Refusal> {
        self.runners
            .iter()
            .find(|runner| runner.uuid == uuid && runner.token == token)
            .map(|runner| runner.id)
            .ok_or_else(Refusal::unregistered)
    }

    pub(crate) fn register(&mut self, request: RegisterRequest) -> Result<RegisterResponse, Refusal> {
        if request.token.is_empty() || request.name.is_empty() {
            return Err(Refusal::Plain("missing runner token, name".to_owned()));
        }
        if request.token != self.registration_token {
            return Err(Refusal::Plain("runner registration token not found".to_owned()));
        }
        let labels =
            if request.labels.is_empty() { request.agent_labels.clone() } else { request.labels.clone() };
        let runner = Runner {
            id: self.next_runner(),
            uuid: random::uuid()?,
            token: random::hex(20)?,
            name: request.name.chars().take(255).collect(),
            version: request.version,
            labels,
            capabilities: request.capabilities,
            ephemeral: request.ephemeral,
            had_task: false,
            fetching: 0,
        };
        let reply = WireRunner {
            id: runner.id,
            uuid: runner.uuid.clone(),
            token: runner.token.clone(),
            name: runner.name.clone(),
            version: runner.version.clone(),
            labels: runner.labels.clone(),
            ephemeral: runner.ephemeral,
            ..WireRunner::default()
        };
        self.runners.push(runner);
        Ok(RegisterResponse { runner: Some(reply) })
    }

    pub(crate) fn declare(
        &mut self,
        runner: i64,
        request: DeclareRequest,
    ) -> Result<DeclareResponse, Refusal> {
        let runner =
            self.runners.iter_mut().find(|known| known.id == runner).ok_or_else(Refusal::unregistered)?;
        runner.version = request.version;
        runner.labels = request.labels;
        runner.capabilities = request.capabilities;
        Ok(DeclareResponse {
            runner: Some(WireRunner {
                id: runner.id,
                uuid: runner.uuid.clone(),
                name: runner.name.clone(),
                version: runner.version.clone(),
                labels: runner.labels.clone(),
                ..WireRunner::default()
            }),
        })
    }

    pub(crate) fn fetch(
        &mut self,
        runner: i64,
        request: FetchTaskRequest,
    ) -> Result<FetchTaskResponse, Refusal> {
        let known = self.runners.iter().find(|known| known.id == runner).ok_or_else(Refusal::unregistered)?;
        let version = self.tasks_version;
        let nothing = FetchTaskResponse { task: None, tasks_version: version };
        if request.tasks_version == version || (known.ephemeral && known.had_task) {
            return Ok(nothing);
        }
        let labels = known.labels.clone();
        let candidate = self
            .jobs
            .values()
            .find(|job| {
                job.status == Status::Waiting && job.runs_on.iter().all(|label| labels.contains(label))
            })
            .map(|job| job.id);
        match candidate {
            Some(job) => {
                Ok(FetchTaskResponse { task: Some(self.claim(runner, job)?), tasks_version: version })
            }
            None => Ok(nothing),
        }
    }

    fn claim(&mut self, runner: i64, job: i64) -> Result<WireTask, Refusal> {
        let id = self.next_task();
        let token = random::hex(20)?;
        let job = self.jobs.get_mut(&job).ok_or_else(|| Refusal::internal("pick task: no job"))?;
        job.status = Status::Running;
        job.task = Some(id);
        let (job, run) = (job.id, job.run);
        let steps = self.jobs[&job]
            .step_names
            .iter()
            .map(|name| Step {
                name: name.clone(),
                status: Status::Waiting,
                started: None,
                stopped: None,
                log_index: 0,
                log_length: 0,
            })
            .collect();
        let runtime_token = crate::context::runtime_token(run, job, id)?;
        self.tasks.insert(
            id,
            Task {
                id,
                job,
                runner,
                status: Status::Running,
                token,
                runtime_token,
                started: SystemTime::now(),
                stopped: None,
                steps,
                rows: Vec::new(),
                sealed: false,
                outputs: std::collections::BTreeMap::new(),
                summaries: std::collections::BTreeMap::new(),
                watch: Watch::default(),
            },
        );
        if let Some(runner) = self.runners.iter_mut().find(|known| known.id == runner) {
            runner.had_task = true;
        }
        self.task_message(id).ok_or_else(|| Refusal::internal("pick task: no run"))
    }

    pub(crate) fn update_task(
        &mut self,
        runner: i64,
        request: UpdateTaskRequest,
    ) -> Result<UpdateTaskResponse, Refusal> {
        // The real server reads a field of the missing message and crashes.
        let Some(state) = request.state.clone() else { return Err(Refusal::Crash) };
        let Some(task) = self.tasks.get(&state.id) else {
            self.violated(Rule::Owner, format_args!("task {}: there is no such task", state.id));
            return Err(Refusal::internal("update task: resource does not exist"));
        };
        if task.runner != runner {
            self.violated(Rule::Owner, format_args!("task {} is another runner's", state.id));
            return Err(Refusal::internal("update task: invalid runner for task"));
        }
        self.check_state(&request, &state);
        let Some(task) = self.tasks.get_mut(&state.id) else { return Err(Refusal::Crash) };
        for (name, value) in request.outputs {
            if name.len() <= MAX_OUTPUT_NAME && value.len() <= MAX_OUTPUT_VALUE {
                task.outputs.entry(name).or_insert(value);
            }
        }
        if !task.status.is_done() {
            copy_steps(task, &state);
            if let Some(status) = Status::from_result(state.result()) {
                let status = if task.status == Status::Cancelling { Status::Cancelled } else { status };
                let stopped = time(state.stopped_at.as_ref()).unwrap_or(SystemTime::UNIX_EPOCH);
                self.finish(state.id, status, stopped);
            }
        }
        let Some(task) = self.tasks.get(&state.id) else { return Err(Refusal::Crash) };
        Ok(UpdateTaskResponse {
            state: Some(TaskState {
                id: task.id,
                result: task.status.to_result().into(),
                ..TaskState::default()
            }),
            sent_outputs: task.outputs.keys().cloned().collect(),
        })
    }

    pub(crate) fn update_log(
        &mut self,
        runner: i64,
        request: UpdateLogRequest,
        bytes: usize,
    ) -> Result<UpdateLogResponse, Refusal> {
        let id = request.task_id;
        let Some(task) = self.tasks.get(&id) else {
            self.violated(Rule::Owner, format_args!("task {id}: there is no such task"));
            return Err(Refusal::internal(format!("get task: task with id {id}: resource does not exist")));
        };
        if task.runner != runner {
            self.violated(Rule::Owner, format_args!("task {id} is another runner's"));
            return Err(Refusal::internal("invalid runner for task"));
        }
        self.check_log(&request, bytes);
        let version = self.options.version;
        let Some(task) = self.tasks.get_mut(&id) else { return Err(Refusal::Crash) };
        let held = count(task.rows.len());
        let archived = || Refusal::Status("AlreadyExists", "log file has been archived".to_owned());
        let reply = |task: &Task| UpdateLogResponse { ack_index: count(task.rows.len()) };
        if request.index > held {
            return Ok(reply(task));
        }
        let known = usize::try_from(held - request.index).unwrap_or(usize::MAX);
        let fresh = request.rows.len() > known;
        if !fresh && (version == Version::V1_26_1 || !request.no_more) {
            return Ok(reply(task));
        }
        if task.sealed {
            return if fresh || version == Version::V1_26_2 { Err(archived()) } else { Ok(reply(task)) };
        }
        for row in request.rows.into_iter().skip(known) {
            task.rows.push(Row {
                time: time(row.time.as_ref()).unwrap_or(SystemTime::UNIX_EPOCH),
                text: stored(&row.content),
            });
        }
        task.sealed = request.no_more;
        Ok(reply(task))
    }

    /// Remembers what a reply told the runner.
    pub(crate) fn told(&mut self, task: i64, ack: i64) {
        if let Some(task) = self.tasks.get_mut(&task) {
            task.watch.told = task.watch.told.max(ack);
        }
    }

    /// Loses the last rows of a log that is not sealed.
    pub(crate) fn forget_rows(&mut self, task: i64, rows: usize) {
        if let Some(task) = self.tasks.get_mut(&task).filter(|task| !task.sealed) {
            let keep = task.rows.len().saturating_sub(rows);
            task.rows.truncate(keep);
            task.watch.forgot = true;
        }
    }

    /// Seals a log without having been asked.
    pub(crate) fn seal_early(&mut self, task: i64) {
        if let Some(task) = self.tasks.get_mut(&task) {
            task.sealed = true;
            task.watch.sealed_by_fault = true;
        }
    }
}

/// Takes over what the runner says of its steps. Values that are zero change nothing, a step that is not in the list
/// but has started is running again.
fn copy_steps(task: &mut Task, state: &TaskState) {
    for (index, step) in task.steps.iter_mut().enumerate() {
        let Some(news) = state.steps.iter().find(|news| news.id == count(index)) else {
            if step.started.is_some() {
                step.status = Status::Running;
            }
            continue;
        };
        if news.log_index != 0 {
            step.log_index = news.log_index;
        }
        if news.log_length != 0 {
            step.log_length = news.log_length;
        }
        step.started = time(news.started_at.as_ref()).or(step.started);
        step.stopped = time(news.stopped_at.as_ref()).or(step.stopped);
        match Status::from_result(news.result()) {
            Some(status) => step.status = status,
            None if step.started.is_some() => step.status = Status::Running,
            None => {}
        }
    }
}

fn time(time: Option<&Timestamp>) -> Option<SystemTime> {
    time.filter(|time| time.seconds != 0).and_then(|time| SystemTime::try_from(*time).ok())
}

/// A row as it is kept: one line, cut at 65,536 bytes.
fn stored(content: &str) -> String {
    let mut end = content.len().min(65_536);
    while !content.is_char_boundary(end) {
        end -= 1;
    }
    content[..end].replace('\n', "\\n")
}

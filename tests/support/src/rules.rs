//! What a runner must not do although a real server takes it: the server suffers in silence, the stand-in complains.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Instant;

use sower_wire::Timestamp;
use sower_wire::runner::{Result as WireResult, TaskState, UpdateLogRequest, UpdateTaskRequest};

use crate::state::{State, Status};

/// A rule that a request can break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// Rows start behind the last acknowledged one.
    Gap,
    /// A result came before the log was sealed.
    ResultBeforeSeal,
    /// New rows came after the seal.
    RowsAfterSeal,
    /// The log was sealed without a new row, which old servers ignore.
    EmptySeal,
    /// A step is missing in the list, is there twice, or is not in the payload.
    Steps,
    /// The first row or the number of rows of a step went back.
    LogLength,
    /// A step claims rows that the server does not have yet.
    StateBeforeLog,
    /// Rows between the first and the last step belong to none.
    Uncovered,
    /// A row is too long or has a line end in it.
    Row,
    /// A request is too large.
    Batch,
    /// The encoding is not the protocol's.
    Encoding,
    /// A result without its time, or a step that ran without its start.
    Times,
    /// The task was silent for too long.
    Heartbeat,
    /// An output that the server drops.
    Output,
    /// Two FetchTask of one runner at a time.
    Fetch,
    /// A task of another runner, or of none.
    Owner,
    /// The result changed after it was given.
    Result,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What was seen of one task, to judge the next request by.
#[derive(Debug)]
pub(crate) struct Watch {
    /// The most rows that a reply has acknowledged.
    pub(crate) told: i64,
    /// The last UpdateTask.
    pub(crate) beat: Instant,
    /// The server has lost rows.
    pub(crate) forgot: bool,
    /// The server sealed the log of its own accord.
    pub(crate) sealed_by_fault: bool,
    /// The result that the runner gave.
    pub(crate) result: Option<WireResult>,
}

impl Default for Watch {
    fn default() -> Self {
        Self { told: 0, beat: Instant::now(), forgot: false, sealed_by_fault: false, result: None }
    }
}

/// Longest row: the server cuts at this many bytes.
const MAX_ROW: usize = 65_536;
/// Longest name of an output in bytes.
pub(crate) const MAX_OUTPUT_NAME: usize = 255;
/// Longest value of an output in bytes.
pub(crate) const MAX_OUTPUT_VALUE: usize = 1024 * 1024;

impl State {
    /// Records that a rule was broken, unless the test does it on purpose.
    pub(crate) fn violated(&mut self, rule: Rule, what: fmt::Arguments<'_>) {
        if !self.allowed.contains(&rule) {
            self.violations.push(format!("{rule}: {what}"));
        }
    }

    /// Looks at an UpdateLog before it is carried out.
    pub(crate) fn check_log(&mut self, request: &UpdateLogRequest, bytes: usize) {
        let id = request.task_id;
        if bytes > self.options.max_batch {
            let most = self.options.max_batch;
            self.violated(
                Rule::Batch,
                format_args!("task {id}: an UpdateLog of {bytes} bytes, most is {most}"),
            );
        }
        let mut complaints = Vec::new();
        if let Some(task) = self.tasks.get(&id) {
            let held = count(task.rows.len());
            let end = request.index + count(request.rows.len());
            if request.index > held && request.index > task.watch.told {
                complaints.push((Rule::Gap, format!("rows from {} while {held} are held", request.index)));
            }
            let fresh = request.index <= held && end > held;
            if task.sealed && fresh && !task.watch.sealed_by_fault {
                complaints.push((Rule::RowsAfterSeal, format!("rows {held} to {end} after the seal")));
            }
            if request.no_more && !task.sealed && !fresh && request.index <= held {
                complaints.push((Rule::EmptySeal, format!("no_more at row {end} without a new row")));
            }
            for (offset, row) in request.rows.iter().enumerate() {
                let index = request.index + count(offset);
                if row.content.len() >= MAX_ROW {
                    complaints.push((Rule::Row, format!("row {index} has {} bytes", row.content.len())));
                }
                if row.content.contains(['\n', '\r']) {
                    complaints.push((Rule::Row, format!("row {index} holds a line end")));
                }
                if row.time.is_none() {
                    complaints.push((Rule::Times, format!("row {index} has no time")));
                }
            }
        }
        for (rule, what) in complaints {
            self.violated(rule, format_args!("task {id}: {what}"));
        }
    }

    /// Looks at an UpdateTask before it is carried out.
    pub(crate) fn check_state(&mut self, request: &UpdateTaskRequest, state: &TaskState) {
        let id = state.id;
        let heartbeat = self.options.heartbeat;
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let mut complaints: Vec<(Rule, String)> = Vec::new();
        let silent = task.watch.beat.elapsed();
        task.watch.beat = Instant::now();
        if silent > heartbeat && !task.status.is_done() {
            complaints.push((Rule::Heartbeat, format!("silent for {} s", silent.as_secs())));
        }

        let seen: Vec<i64> = state.steps.iter().map(|step| step.id).collect();
        let distinct: BTreeSet<i64> = seen.iter().copied().collect();
        if distinct.len() != seen.len() {
            complaints.push((Rule::Steps, format!("a step is there twice in {seen:?}")));
        }
        for (index, step) in task.steps.iter().enumerate() {
            if !distinct.contains(&count(index)) {
                let state = if step.started.is_some() { "has started and" } else { "" };
                complaints.push((Rule::Steps, format!("step {index} {state} is missing in {seen:?}")));
            }
        }
        if seen.iter().any(|id| *id < 0 || *id >= count(task.steps.len())) {
            complaints.push((Rule::Steps, format!("{seen:?} of {} steps", task.steps.len())));
        }

        let held = count(task.rows.len()).max(task.watch.told);
        for step in &state.steps {
            let Some(before) = usize::try_from(step.id).ok().and_then(|id| task.steps.get(id)) else {
                continue;
            };
            let n = step.id;
            // A server that has lost rows has a state that is ahead of them.
            let forgot = task.watch.forgot;
            if step.log_length < before.log_length && !forgot {
                let (old, new) = (before.log_length, step.log_length);
                complaints.push((Rule::LogLength, format!("step {n} went from {old} rows to {new}")));
            }
            if before.started.is_some() && step.log_index != before.log_index && !forgot {
                let (old, new) = (before.log_index, step.log_index);
                complaints.push((Rule::LogLength, format!("step {n} moved from row {old} to {new}")));
            }
            // Rows for which the server closed the log cannot come before the state.
            if step.log_index + step.log_length > held && !task.watch.sealed_by_fault {
                let end = step.log_index + step.log_length;
                complaints.push((Rule::StateBeforeLog, format!("step {n} ends at row {end} of {held}")));
            }
            let result = step.result();
            if before.status.is_done()
                && Status::from_result(result) != Some(before.status)
                && !task.status.is_done()
                && !forgot
            {
                complaints.push((Rule::Steps, format!("step {n} was {}, now {result:?}", before.status)));
            }
            // A skipped step has no times of its own.
            if !matches!(result, WireResult::Unspecified | WireResult::Skipped)
                && missing(step.stopped_at.as_ref())
            {
                complaints.push((Rule::Times, format!("step {n} ended without a time")));
            }
            if matches!(result, WireResult::Success | WireResult::Failure)
                && missing(step.started_at.as_ref())
            {
                complaints.push((Rule::Times, format!("step {n} ended without having started")));
            }
        }
        // The page slices the log by these ranges: what lies between two steps is shown in neither.
        let mut end = None;
        for step in state.steps.iter().filter(|step| {
            step.started_at.is_some() && !matches!(step.result(), WireResult::Skipped | WireResult::Cancelled)
        }) {
            if let Some(end) = end.filter(|end| *end != step.log_index) {
                let (n, start) = (step.id, step.log_index);
                complaints.push((
                    Rule::Uncovered,
                    format!("step {n} starts at row {start}, the last one ended at {end}"),
                ));
            }
            end = Some(step.log_index + step.log_length);
        }

        if state.result() != WireResult::Unspecified {
            if missing(state.stopped_at.as_ref()) {
                complaints.push((Rule::Times, "a result without its time".to_owned()));
            }
            if !task.sealed {
                complaints
                    .push((Rule::ResultBeforeSeal, format!("{:?}, but the log is open", state.result())));
            }
            if let Some(open) = state.steps.iter().find(|step| step.result() == WireResult::Unspecified) {
                complaints.push((Rule::Steps, format!("a result while step {} has none", open.id)));
            }
            if task.watch.result.is_some_and(|before| before != state.result()) {
                complaints
                    .push((Rule::Result, format!("{:?}, then {:?}", task.watch.result, state.result())));
            }
            task.watch.result = Some(state.result());
        } else if let Some(before) = task.watch.result {
            complaints.push((Rule::Result, format!("a heartbeat after {before:?}")));
        }
        for (name, value) in &request.outputs {
            if name.len() > MAX_OUTPUT_NAME || value.len() > MAX_OUTPUT_VALUE {
                let (name_bytes, bytes) = (name.len(), value.len());
                complaints.push((
                    Rule::Output,
                    format!("an output with {name_bytes} bytes of name, {bytes} of value"),
                ));
            }
        }
        for (rule, what) in complaints {
            self.violated(rule, format_args!("task {id}: {what}"));
        }
    }

    /// Complaints that only the end of a test shows: tasks without a seal, and silence.
    pub(crate) fn check_end(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        for task in self.tasks.values() {
            if task.watch.result.is_some() && !task.sealed && !self.allowed.contains(&Rule::ResultBeforeSeal)
            {
                complaints.push(format!("task {}: over, and its log was never sealed", task.id));
            }
        }
        complaints
    }
}

/// Whether a time is absent or the epoch, which servers store as such.
fn missing(time: Option<&Timestamp>) -> bool {
    time.is_none_or(|time| time.seconds <= 0)
}

/// A length as the protocol counts.
pub(crate) fn count(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

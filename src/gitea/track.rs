//! What a job's events mean to Gitea: rows with their place in the log, and the state of each step.
//!
//! Gitea shows a step's rows by index and length, and everything behind all steps as the end of the job. Ranges
//! must therefore follow each other without gaps, and each report must name all steps.

use std::collections::BTreeMap;

use sower_wire::Timestamp as WireTime;
use sower_wire::runner::{LogRow, Result as WireResult, StepState, TaskState};

use crate::events::{Conclusion, Event, Timestamp};

/// Longest name of an output that Gitea takes, in bytes.
const MAX_OUTPUT_NAME: usize = 255;
/// Longest value of an output that Gitea takes, in bytes.
const MAX_OUTPUT_VALUE: usize = 1024 * 1024;

#[derive(Debug, Clone, Default)]
struct Step {
    started: Option<Timestamp>,
    stopped: Option<Timestamp>,
    result: Option<Conclusion>,
    log_index: u64,
    log_length: u64,
}

/// Follows the events of one job. The same events lead to the same rows, each time they are read.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    started: Option<Timestamp>,
    steps: Vec<Step>,
    running: Option<usize>,
    rows: u64,
    outputs: BTreeMap<String, String>,
    output_bytes: usize,
    ended: Option<(Timestamp, Conclusion)>,
}

/// One row of the log and its index.
#[derive(Debug, PartialEq)]
pub(super) struct Row {
    pub(super) index: u64,
    pub(super) row: LogRow,
}

impl Tracker {
    /// For a job that Gitea knows this many steps of.
    pub(super) fn new(steps: usize) -> Self {
        Self { steps: vec![Step::default(); steps], ..Self::default() }
    }

    /// Takes the next event; gives the row that it adds to the log.
    pub(super) fn take(&mut self, event: Event) -> Option<Row> {
        match event {
            Event::JobStarted { time, steps, .. } => {
                self.started = Some(time);
                // A payload that cannot be run has no steps, and Gitea may have made some of it all the same.
                let known = self.steps.len().max(steps.len());
                self.steps = vec![Step::default(); known];
                None
            }
            Event::StepStarted { time, step } => {
                let rows = self.rows;
                if let Some(state) = self.steps.get_mut(step) {
                    state.started = Some(time);
                    state.log_index = rows;
                    self.running = Some(step);
                }
                None
            }
            Event::StepEnded { time, step, outcome, .. } => {
                let rows = self.rows;
                if let Some(state) = self.steps.get_mut(step) {
                    // The clock may have been set back meanwhile.
                    state.stopped = Some(state.started.map_or(time, |started| started.max(time)));
                    state.result = Some(outcome);
                    if state.started.is_none() {
                        state.log_index = rows;
                    }
                }
                if self.running == Some(step) {
                    self.running = None;
                }
                None
            }
            Event::Row { time, text } => Some(self.row(time, text)),
            Event::Summary { .. } => None,
            Event::Output { name, value } => self.output(name, value),
            Event::JobEnded { time, conclusion } => {
                self.end(time, conclusion);
                None
            }
        }
    }

    /// Adds a row to the log.
    pub(super) fn row(&mut self, time: Timestamp, text: String) -> Row {
        let index = self.rows;
        self.rows += 1;
        if let Some(step) = self.running.or_else(|| self.between()) {
            self.steps[step].log_length += 1;
            // Steps that were skipped behind it have no rows and stand where the log is now.
            for skipped in &mut self.steps[step + 1..] {
                if skipped.result.is_some() {
                    skipped.log_index = self.rows;
                }
            }
        }
        Row { index, row: LogRow { time: Some(wire_time(time)), content: text } }
    }

    /// The step that a row between two steps belongs to: the last one that ran, while others are to come.
    fn between(&self) -> Option<usize> {
        if self.steps.iter().all(|step| step.result.is_some()) {
            return None;
        }
        self.steps.iter().rposition(|step| step.started.is_some())
    }

    fn output(&mut self, name: String, value: String) -> Option<Row> {
        let reason = if name.len() > MAX_OUTPUT_NAME {
            format!("its name has {} bytes, and Gitea takes {MAX_OUTPUT_NAME}", name.len())
        } else if value.len() > MAX_OUTPUT_VALUE {
            format!("its value has {} bytes, and Gitea takes {MAX_OUTPUT_VALUE}", value.len())
        } else {
            self.output_bytes += name.len() + value.len();
            self.outputs.insert(name, value);
            return None;
        };
        let name: String = name.chars().take(60).collect();
        // The journal has no time for an output; the row must be the same each time it is made.
        let time = self.steps.iter().filter_map(|step| step.stopped).max().or(self.started);
        let time = time.unwrap_or(Timestamp::from_micros(0));
        Some(self.row(time, format!("##[warning]The output {name} is left out: {reason}.")))
    }

    fn end(&mut self, time: Timestamp, conclusion: Conclusion) {
        let rows = self.rows;
        for step in self.steps.iter_mut().filter(|step| step.result.is_none()) {
            // The executor ends its steps; this is for a journal that does not.
            if step.started.is_some() {
                step.result = Some(conclusion);
            } else {
                step.result = Some(Conclusion::Skipped);
                step.log_index = rows;
            }
            step.stopped = Some(time);
        }
        self.running = None;
        let latest = self.steps.iter().filter_map(|step| step.stopped).chain(self.started).max();
        self.ended = Some((latest.map_or(time, |latest| latest.max(time)), conclusion));
    }

    /// Goes on with row `rows`, where the server has more of them than the journal.
    pub(super) fn skip_to(&mut self, rows: u64) {
        self.rows = self.rows.max(rows);
    }

    /// How many rows there are so far.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// When and how the job ended, once it has.
    pub(super) fn ended(&self) -> Option<(Timestamp, Conclusion)> {
        self.ended
    }

    /// Outputs that Gitea does not have yet.
    pub(super) fn outputs(&self) -> &BTreeMap<String, String> {
        &self.outputs
    }

    /// Size of these outputs in bytes.
    pub(super) fn output_bytes(&self) -> usize {
        self.output_bytes
    }

    /// Gitea has this output, or will never have it.
    pub(super) fn forget_output(&mut self, name: &str) {
        if let Some(value) = self.outputs.remove(name) {
            self.output_bytes -= (name.len() + value.len()).min(self.output_bytes);
        }
    }

    /// How the task stands: all steps, and no result of the task itself.
    pub(super) fn state(&self, task: i64) -> TaskState {
        TaskState {
            id: task,
            result: WireResult::Unspecified.into(),
            started_at: self.started.map(wire_time),
            stopped_at: None,
            steps: self.steps.iter().zip(0..).map(|(step, id)| step.state(id)).collect(),
        }
    }

    /// As [`Tracker::state`], with the result once the job has ended.
    pub(super) fn final_state(&self, task: i64) -> TaskState {
        let mut state = self.state(task);
        if let Some((time, conclusion)) = self.ended {
            state.result = wire_result(conclusion).into();
            state.stopped_at = Some(wire_time(time));
        }
        state
    }
}

impl Step {
    fn state(&self, id: i64) -> StepState {
        StepState {
            id,
            result: self.result.map_or(WireResult::Unspecified, wire_result).into(),
            started_at: self.started.map(wire_time),
            stopped_at: self.stopped.map(wire_time),
            log_index: i64::try_from(self.log_index).unwrap_or(i64::MAX),
            log_length: i64::try_from(self.log_length).unwrap_or(i64::MAX),
        }
    }
}

/// Cuts the ranges of a state to a log that was sealed at this many rows.
pub(super) fn cut_ranges(state: &mut TaskState, rows: u64) {
    let rows = i64::try_from(rows).unwrap_or(i64::MAX);
    for step in &mut state.steps {
        step.log_index = step.log_index.min(rows);
        step.log_length = step.log_length.min(rows - step.log_index);
    }
}

fn wire_time(time: Timestamp) -> WireTime {
    let (seconds, nanos) = time.seconds_and_nanos();
    WireTime { seconds, nanos }
}

fn wire_result(conclusion: Conclusion) -> WireResult {
    match conclusion {
        Conclusion::Success => WireResult::Success,
        Conclusion::Failure => WireResult::Failure,
        Conclusion::Cancelled => WireResult::Cancelled,
        Conclusion::Skipped => WireResult::Skipped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::StepInfo;

    const TIME: Timestamp = Timestamp::from_micros(1_000_001);

    fn started(steps: usize) -> Event {
        let info = |index: usize| StepInfo { id: index.to_string(), name: format!("step {index}") };
        Event::JobStarted { time: TIME, version: "1".to_owned(), steps: (0..steps).map(info).collect() }
    }

    fn row(text: &str) -> Event {
        Event::Row { time: TIME, text: text.to_owned() }
    }

    fn begin(step: usize) -> Event {
        Event::StepStarted { time: TIME, step }
    }

    fn end(step: usize, outcome: Conclusion) -> Event {
        Event::StepEnded { time: TIME, step, outcome, conclusion: Conclusion::Success }
    }

    fn track(events: Vec<Event>) -> (Tracker, Vec<u64>) {
        let mut tracker = Tracker::default();
        let rows = events.into_iter().filter_map(|event| tracker.take(event)).map(|row| row.index).collect();
        (tracker, rows)
    }

    fn ranges(tracker: &Tracker) -> Vec<(i64, i64)> {
        tracker.state(1).steps.iter().map(|step| (step.log_index, step.log_length)).collect()
    }

    #[test]
    fn ranges_follow_each_other_without_gaps() {
        let (tracker, rows) = track(vec![
            started(3),
            row("set-up"),
            row("set-up"),
            begin(0),
            row("a"),
            end(0, Conclusion::Success),
            row("between"),
            begin(1),
            row("b"),
            row("b"),
            end(1, Conclusion::Failure),
            end(2, Conclusion::Skipped),
            row("clean-up"),
            Event::JobEnded { time: TIME, conclusion: Conclusion::Failure },
        ]);
        assert_eq!(rows, (0..7).collect::<Vec<_>>());
        assert_eq!(ranges(&tracker), [(2, 2), (4, 2), (6, 0)]);
        let state = tracker.final_state(9);
        assert_eq!((state.id, state.result, state.stopped_at.is_some()), (9, 2, true));
        assert_eq!(state.steps.iter().map(|step| step.result).collect::<Vec<_>>(), [1, 2, 4]);
        assert!(state.steps[2].started_at.is_none() && state.steps[2].stopped_at.is_some());
    }

    #[test]
    fn a_row_behind_a_skipped_step_moves_it_along() {
        let (tracker, _) = track(vec![
            started(4),
            end(0, Conclusion::Skipped),
            row("set-up"),
            begin(1),
            row("a"),
            end(1, Conclusion::Success),
            end(2, Conclusion::Skipped),
            row("between"),
            begin(3),
            row("c"),
        ]);
        assert_eq!(ranges(&tracker), [(0, 0), (1, 2), (3, 0), (3, 1)]);
        assert_eq!(tracker.state(1).result, 0);
    }

    #[test]
    fn a_step_that_may_fail_is_shown_as_failed() {
        let (tracker, _) = track(vec![started(1), begin(0), end(0, Conclusion::Failure)]);
        assert_eq!(tracker.state(1).steps[0].result, 2);
    }

    #[test]
    fn outputs_that_gitea_would_drop_are_named_in_the_log() {
        let output = |name: String, value: String| Event::Output { name, value };
        let (tracker, rows) = track(vec![
            started(0),
            output("ok".to_owned(), "v".repeat(MAX_OUTPUT_VALUE)),
            output("n".repeat(256), "v".to_owned()),
            output("long".to_owned(), "v".repeat(MAX_OUTPUT_VALUE + 1)),
        ]);
        assert_eq!(rows, [0, 1]);
        assert_eq!(tracker.outputs().keys().collect::<Vec<_>>(), ["ok"]);
    }

    #[test]
    fn a_log_that_was_sealed_early_ends_the_ranges() {
        let (tracker, _) = track(vec![
            started(2),
            begin(0),
            row("a"),
            row("b"),
            row("c"),
            end(0, Conclusion::Success),
            begin(1),
            row("d"),
        ]);
        let mut state = tracker.state(1);
        cut_ranges(&mut state, 2);
        let ranges: Vec<_> = state.steps.iter().map(|step| (step.log_index, step.log_length)).collect();
        assert_eq!(ranges, [(0, 2), (2, 0)]);
    }

    #[test]
    fn a_clock_that_jumps_gives_no_end_before_its_beginning() {
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        let (tracker, _) = track(vec![
            started(2),
            Event::StepStarted { time: at(1000), step: 0 },
            Event::Row { time: at(10), text: "set back".to_owned() },
            Event::StepEnded {
                time: at(20),
                step: 0,
                outcome: Conclusion::Success,
                conclusion: Conclusion::Success,
            },
            Event::StepStarted { time: at(30), step: 1 },
            Event::StepEnded {
                time: at(5000),
                step: 1,
                outcome: Conclusion::Success,
                conclusion: Conclusion::Success,
            },
            Event::JobEnded { time: at(40), conclusion: Conclusion::Success },
        ]);
        let state = tracker.final_state(1);
        let seconds = |time: &Option<WireTime>| time.as_ref().unwrap().seconds;
        for step in &state.steps {
            assert!(seconds(&step.stopped_at) >= seconds(&step.started_at), "{step:?}");
            assert!(seconds(&state.stopped_at) >= seconds(&step.stopped_at));
        }
    }

    #[test]
    fn nonsense_does_not_panic() {
        let (tracker, _) = track(vec![
            begin(3),
            row("x"),
            end(7, Conclusion::Success),
            started(1),
            begin(0),
            Event::JobEnded { time: TIME, conclusion: Conclusion::Cancelled },
        ]);
        assert_eq!(tracker.final_state(1).steps[0].result, 3);
    }
}

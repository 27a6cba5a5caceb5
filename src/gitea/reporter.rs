//! Carries one job's journal to Gitea.
//!
//! Log first, state after: a state names rows that Gitea must have. The state that is sent is therefore the one
//! that belongs to the last row which Gitea has acknowledged, and the result comes last of all, behind the sealed
//! log. At most one batch of rows is in memory; everything else waits in the journal, however long Gitea is away.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use prost::Message;
use sower_wire::runner::{LogRow, Result as WireResult, TaskState, UpdateLogRequest, UpdateTaskRequest};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::Backoff;
use super::client::{Client, SummaryPlace};
use super::error::{Error, Meaning};
use super::poller::stopped;
use super::track::{Tracker, cut_ranges};
use crate::events::journal::{self, Reader};
use crate::events::{Event, Timestamp};
use crate::limits::profile::Profile;
use crate::observe::{Observer, Seen, tally};
use crate::supervisor::{self, Gone, JobProcess, State};

/// Most bytes of rows in one request. Proxies often refuse bodies of more than 1 MiB.
const MAX_BATCH: usize = 512 * 1024;
/// No request is made smaller than this when something on the way calls it too large.
const MIN_BATCH: usize = 64 * 1024;
/// Outputs beyond this are sent before more is read.
const MAX_OUTPUTS: usize = 512 * 1024;
/// What a row costs beside its text: tags, lengths, time.
const ROW_OVERHEAD: usize = 32;
/// How often the journal is looked at right after something happened, so that a short job is over soon.
const SHORTEST_POLL: Duration = Duration::from_millis(20);
/// How often it is looked at while nothing happens.
const LONGEST_POLL: Duration = Duration::from_millis(200);
/// How often the process is looked at.
const WATCH: Duration = Duration::from_secs(1);
/// The task's state is sent at least this often; Gitea gives a task up after ten minutes, and a cancel is told in
/// the reply.
const HEARTBEAT: Duration = Duration::from_secs(4);
/// How often it is sent while more rows wait than fit into a batch: each call makes Gitea read and write the index of
/// all rows again, which is what a long log waits for.
const STATE_WHILE_BEHIND: Duration = Duration::from_secs(2);
/// Events read at a time before others have their turn.
const READ_AT_ONCE: usize = 10_000;
/// How often a summary is sent that does not arrive.
const SUMMARY_TRIES: u32 = 3;
/// How often an output is sent that the server does not take.
const OUTPUT_TRIES: u32 = 3;
/// A server must not know this runner for this long before its job is given up.
const UNREGISTERED_FOR: Duration = Duration::from_secs(60);
/// How often the end of a job is tried to be written before it is reported without having been.
const CLOSING_TRIES: u32 = 3;
/// How long a job process may take to leave after its last event.
const LEAVE: Duration = Duration::from_secs(60);

/// How reporting ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Gitea has acknowledged the end.
    Reported,
    /// Gitea does not take reports on this task any more; the job was stopped.
    Lost,
    /// The daemon leaves; the next one goes on.
    Left,
}

/// Tries of one kind of call.
struct Tries {
    backoff: Backoff,
    next: Instant,
    unregistered_since: Option<Instant>,
}

impl Tries {
    fn new() -> Self {
        let backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
        Self { backoff, next: Instant::now(), unregistered_since: None }
    }

    fn succeeded(&mut self, task: i64) {
        if self.backoff.failures() > 1 {
            info!("task {task}: reporting again");
        }
        self.backoff.succeeded();
        self.unregistered_since = None;
    }
}

/// Reports on one job.
pub(super) struct Reporter {
    client: Client,
    process: JobProcess,
    task: i64,
    pace: Duration,
    ephemeral: bool,
    stop: watch::Receiver<bool>,

    /// How many steps Gitea knows.
    steps: usize,
    reader: Option<Reader>,
    tracker: Tracker,
    /// A summary that Gitea does not have yet; nothing more is read before it is sent or given up.
    summary: Option<(usize, String)>,
    summaries: Tries,
    /// An event that did not fit into the batch.
    held: Option<Event>,
    rows: Vec<LogRow>,
    /// Index of the first of these rows.
    first: u64,
    bytes: usize,
    limit: usize,

    /// How many rows Gitea has; `None` until it was asked.
    acknowledged: Option<u64>,
    sealed: bool,
    /// How many rows a log has that was sealed by somebody else.
    sealed_at: Option<u64>,
    /// The final batch was sent before, and its reply did not arrive.
    end_was_sent: bool,
    /// The state that belongs to the acknowledged rows.
    state: TaskState,
    /// Gitea does not have this state yet.
    changed: bool,
    output_tries: u32,
    log: Tries,
    states: Tries,
    last_log: Instant,
    last_state: Instant,
    watched: Instant,
    gone: Option<Gone>,
    journal_complaint: bool,
    closing_tries: u32,
    /// The job's end, where the journal could not take it.
    end: VecDeque<Event>,
    /// The state is not older than what Gitea has.
    caught_up: bool,
    poll: Duration,
    finished: bool,
    lost: bool,
    observer: Observer,
    /// How the job went, for the metrics and whoever wants to be told.
    seen: Seen,
}

impl Reporter {
    /// For a job whose process is known. `fresh`: its task has just been received, so its log is empty.
    pub(super) fn new(
        client: Client,
        process: JobProcess,
        fresh: bool,
        report_interval: Duration,
        ephemeral: bool,
        stop: watch::Receiver<bool>,
        observer: Observer,
    ) -> Self {
        let task = process.dir().task();
        let now = Instant::now();
        let past = now.checked_sub(HEARTBEAT).unwrap_or(now);
        let steps = process.dir().read_meta().steps.len();
        let tracker = Tracker::new(steps);
        Self {
            client,
            process,
            task,
            // What is left is for noticing the row and for the two calls.
            pace: report_interval.mul_f64(0.7),
            ephemeral,
            stop,
            steps,
            reader: None,
            summary: None,
            summaries: Tries::new(),
            held: None,
            rows: Vec::new(),
            first: 0,
            bytes: 0,
            limit: MAX_BATCH,
            acknowledged: fresh.then_some(0),
            sealed: false,
            sealed_at: None,
            end_was_sent: false,
            state: tracker.state(task),
            tracker,
            changed: false,
            output_tries: 0,
            log: Tries::new(),
            states: Tries::new(),
            last_log: past,
            last_state: if fresh { now } else { past },
            watched: past,
            gone: None,
            journal_complaint: false,
            closing_tries: 0,
            end: VecDeque::new(),
            caught_up: fresh,
            poll: SHORTEST_POLL,
            finished: false,
            lost: false,
            observer,
            seen: Seen::default(),
        }
    }

    /// Reports until the job's end is acknowledged, or the daemon leaves.
    pub(super) async fn run(mut self) -> Outcome {
        loop {
            let stopping = *self.stop.borrow();
            let drained = self.read();
            self.watch(drained).await;
            if self.lost {
                return self.give_up().await;
            }
            if self.log_is_due(stopping) {
                self.send_log().await;
            }
            if self.summary.is_some() && Instant::now() >= self.summaries.next {
                self.send_summary().await;
            }
            if self.state_is_due(stopping) {
                self.send_state().await;
            }
            if self.finished {
                return self.finish().await;
            }
            let stuck = self.log.backoff.failures() > 0 || self.summaries.backoff.failures() > 0;
            if stopping && (drained || stuck) && !self.lost {
                return Outcome::Left;
            }
            let waiting = self.summary.is_some() || self.tracker.output_bytes() >= MAX_OUTPUTS;
            if !drained && self.rows.is_empty() && !waiting {
                tokio::task::yield_now().await;
                continue;
            }
            let mut stop = self.stop.clone();
            tokio::select! {
                () = tokio::time::sleep_until(self.next_look()) => {}
                () = stopped(&mut stop), if !stopping => {}
            }
        }
    }

    /// When there is something to do next.
    fn next_look(&self) -> Instant {
        let now = Instant::now();
        let mut next = now + self.poll;
        if !self.rows.is_empty() || self.acknowledged.is_none() {
            let paced = if self.batch_is_full() { now } else { self.last_log + self.pace };
            next = next.min(paced.max(self.log.next));
        }
        if self.changed && self.rows.is_empty() {
            next = next.min((self.last_state + self.pace).max(self.states.next));
        }
        next
    }

    fn batch_is_full(&self) -> bool {
        self.held.is_some() || self.tracker.ended().is_some()
    }

    // --- journal ---

    /// Reads what fits into the batch; true when the journal has no more to give for now.
    fn read(&mut self) -> bool {
        let Some(acknowledged) = self.acknowledged else { return true };
        let position = self.reader.as_ref().map(Reader::position);
        let stage = self.seen.stage();
        let drained = self.read_events(acknowledged);
        if self.seen.stage() != stage {
            self.observer.job_is(self.task, self.seen.stage());
        }
        let moved = position != self.reader.as_ref().map(Reader::position);
        self.poll = if moved { SHORTEST_POLL } else { (self.poll * 2).min(LONGEST_POLL) };
        // Outputs come last, so whoever has too many of them to read on has read the rest.
        let all_there = drained
            || self.tracker.output_bytes() >= MAX_OUTPUTS
            || self.caught_up && self.tracker.rows() >= acknowledged;
        if self.rows.is_empty() && all_there {
            self.take_state();
        }
        drained
    }

    fn read_events(&mut self, acknowledged: u64) -> bool {
        for _ in 0..READ_AT_ONCE {
            if self.tracker.ended().is_some() {
                return true;
            }
            if self.tracker.output_bytes() >= MAX_OUTPUTS || self.summary.is_some() {
                return false;
            }
            let event = match self.held.take() {
                Some(event) => event,
                None => match self.next_event() {
                    Some(event) => event,
                    None => return true,
                },
            };
            if let Event::Row { text, .. } = &event
                && !self.rows.is_empty()
                && self.bytes + text.len() + ROW_OVERHEAD > MAX_BATCH
            {
                self.held = Some(event);
                return false;
            }
            if let Event::Summary { step, markdown } = event {
                self.summary = Some((step, markdown));
                return false;
            }
            let new_row = matches!(event, Event::Row { .. }) && self.tracker.rows() >= acknowledged;
            if new_row && !self.caught_up {
                // Everything up to the last row that Gitea has is read: so far goes what it knows.
                self.take_state();
            }
            note(&mut self.seen, &event);
            if let Some(row) = self.tracker.take(event)
                && row.index >= acknowledged
                && !self.sealed
            {
                self.push(row.index, row.row);
            }
        }
        false
    }

    fn push(&mut self, index: u64, row: LogRow) {
        if self.rows.is_empty() {
            self.first = index;
            self.bytes = 0;
        }
        self.bytes += row.encoded_len() + 5;
        self.rows.push(row);
    }

    fn next_event(&mut self) -> Option<Event> {
        self.next_event_of_journal().or_else(|| self.end.pop_front())
    }

    fn next_event_of_journal(&mut self) -> Option<Event> {
        if self.reader.is_none() {
            match Reader::open(&self.process.dir().journal()) {
                Ok(reader) => self.reader = Some(reader),
                // The job process has not come that far, or is just writing the first bytes.
                Err(journal::Error::NotAJournal { .. }) => return None,
                Err(journal::Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                    return None;
                }
                Err(error) => return self.complain(&error),
            }
        }
        match self.reader.as_mut()?.next_event() {
            Ok(event) => event,
            Err(error) => self.complain(&error),
        }
    }

    fn complain(&mut self, error: &journal::Error) -> Option<Event> {
        if !self.journal_complaint {
            self.journal_complaint = true;
            error!("task {}: {error}", self.task);
        }
        None
    }

    /// Reads the journal from its beginning again, for a server that has this many rows.
    fn rewind(&mut self, acknowledged: u64) {
        // A step may have removed the file; what is open can be read all the same.
        match (&mut self.reader, self.process.dir().journal().exists()) {
            (Some(reader), false) => {
                if let Err(error) = reader.rewind() {
                    error!("task {}: {error}", self.task);
                }
            }
            _ => self.reader = None,
        }
        self.tracker = Tracker::new(self.steps);
        self.held = None;
        self.summary = None;
        self.rows = Vec::new();
        self.bytes = 0;
        self.acknowledged = Some(acknowledged);
    }

    /// Looks after the process: once it is gone and the journal is read to its end without the job's end, the
    /// journal gets one.
    async fn watch(&mut self, drained: bool) {
        if self.tracker.ended().is_some() {
            return;
        }
        if self.gone.is_none() && self.watched.elapsed() >= WATCH {
            self.watched = Instant::now();
            if let State::Gone(gone) = self.process.state() {
                // Also while Gitea is away: what it has left running eats memory.
                self.sweep().await;
                self.gone = Some(gone);
                return;
            }
        }
        if self.acknowledged.is_none() {
            return;
        }
        // Only what was read after the process was seen to be gone is all there is.
        if let (Some(gone), true) = (self.gone, drained) {
            let known = if self.sealed { 0 } else { self.acknowledged.unwrap_or(0) };
            warn!("task {}: {gone}", self.task);
            match supervisor::close(self.process.dir(), gone, known) {
                Ok(()) => {
                    let known = self.acknowledged.unwrap_or(0);
                    self.rewind(known);
                    self.gone = None;
                }
                Err(error) => self.fail_to_close(gone, &error),
            }
        }
    }

    /// The disk does not take the job's end: try again with the next look at the process, and then without it.
    fn fail_to_close(&mut self, gone: Gone, error: &supervisor::Error) {
        self.gone = None;
        self.closing_tries += 1;
        if self.closing_tries == 1 {
            error!("task {}: {error}", self.task);
        }
        if self.closing_tries >= CLOSING_TRIES && self.end.is_empty() {
            self.end = supervisor::end_without_journal(self.process.dir(), gone, error).into();
        }
    }

    /// Ends what the job has left running, beside the other work: what sits in the kernel is waited for.
    async fn sweep(&self) {
        let dir = self.process.dir().clone();
        let task = self.task;
        match tokio::task::spawn_blocking(move || supervisor::sweep(&dir)).await {
            Ok(0) => {}
            Ok(ended) => info!("task {task}: ended {ended} processes that the job had left running"),
            Err(failure) => error!("task {task}: {failure}"),
        }
    }

    // --- log ---

    fn log_is_due(&self, stopping: bool) -> bool {
        let now = Instant::now();
        if self.sealed || now < self.log.next && !(stopping && self.log.backoff.failures() == 0) {
            return false;
        }
        if self.acknowledged.is_none() || self.tracker.ended().is_some() {
            return true;
        }
        !self.rows.is_empty() && (stopping || self.batch_is_full() || now >= self.last_log + self.pace)
    }

    /// Sends the batch, or asks how many rows the server has.
    async fn send_log(&mut self) {
        let asking = self.acknowledged.is_none();
        let ended = self.tracker.ended();
        if let Some((time, conclusion)) = ended
            && self.rows.is_empty()
        {
            // Old servers seal a log only together with a new row.
            self.tracker.skip_to(self.acknowledged.unwrap_or(0));
            let row = self.tracker.row(time, format!("The job has ended: {conclusion}."));
            self.push(row.index, row.row);
        }
        let rest = self.rows.split_off(self.how_many());
        let no_more = ended.is_some() && rest.is_empty() && !asking;
        let request = UpdateLogRequest {
            task_id: self.task,
            index: if asking { 0 } else { i64::try_from(self.first).unwrap_or(i64::MAX) },
            rows: std::mem::take(&mut self.rows),
            no_more,
        };
        self.last_log = Instant::now();
        let client = self.client.clone();
        let result = {
            let mut call = pin!(client.update_log(&request));
            loop {
                let beat = (self.last_state + HEARTBEAT).max(self.states.next);
                tokio::select! {
                    biased;
                    result = &mut call => break result,
                    // A log that hangs must not make the task look dead.
                    () = tokio::time::sleep_until(beat), if self.caught_up => self.send_state().await,
                }
            }
        };
        let sent = request.rows.len() as u64;
        self.rows = request.rows;
        self.rows.extend(rest);
        match result {
            Ok(reply) => {
                self.log.succeeded(self.task);
                self.acknowledge(u64::try_from(reply.ack_index).unwrap_or(0), asking, sent, no_more);
            }
            Err(error) => self.log_failed(&error, no_more),
        }
    }

    /// How many rows of the batch go into one request.
    fn how_many(&self) -> usize {
        if self.bytes <= self.limit {
            return self.rows.len();
        }
        let mut bytes = 0;
        let fitting = self.rows.iter().take_while(|row| {
            bytes += row.encoded_len() + 5;
            bytes <= self.limit
        });
        fitting.count().max(1).min(self.rows.len())
    }

    fn acknowledge(&mut self, rows: u64, asking: bool, sent: u64, no_more: bool) {
        if asking {
            debug!("task {}: Gitea has {rows} rows", self.task);
            self.acknowledged = Some(rows);
            return;
        }
        if rows < self.first {
            warn!("task {}: Gitea has {rows} rows and had {}; sending them again", self.task, self.first);
            self.rewind(rows);
            self.log.next = Instant::now() + self.log.backoff.failed();
            return;
        }
        let taken = usize::try_from(rows - self.first).unwrap_or(usize::MAX).min(self.rows.len());
        let printed = taken.checked_sub(1).and_then(|last| self.rows[last].time);
        let bytes: usize = self.rows.drain(..taken).map(|row| row.encoded_len() + 5).sum();
        let lag = printed.map(|time| lag(time.seconds, time.nanos));
        self.observer.rows_arrived(self.task, taken as u64, bytes as u64, lag);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.first += taken as u64;
        self.acknowledged = Some(rows);
        if (taken as u64) < sent {
            // It took less than it was given: not a reason to hurry.
            self.log.next = Instant::now() + self.log.backoff.failed();
        }
        if self.rows.is_empty() {
            self.rows.shrink_to(1024);
            self.sealed |= no_more;
            self.take_state();
        }
    }

    fn log_failed(&mut self, error: &Error, no_more: bool) {
        match error.meaning() {
            Meaning::LogSealed => {
                if self.tracker.ended().is_none() {
                    warn!("task {}: Gitea has sealed the log; no more rows are sent", self.task);
                }
                self.sealed = true;
                self.rows = Vec::new();
                // The end may have arrived at an earlier try. Who has only just asked does not know, and whoever
                // sealed the log had the last word.
                self.sealed_at = if self.end_was_sent { None } else { self.acknowledged };
                if self.acknowledged.is_some() {
                    self.take_state();
                }
                // Nothing is sent any more, so the journal is read to its end before the state is taken.
                self.acknowledged = Some(u64::MAX);
            }
            Meaning::TooLarge if self.limit > MIN_BATCH => {
                self.limit /= 2;
                debug!("task {}: {error}; batches of {} bytes from now on", self.task, self.limit);
            }
            _ => {
                self.end_was_sent |= no_more && matches!(error, Error::Unreachable { .. });
                self.lost |= failed(&mut self.log, error, self.task, self.ephemeral);
            }
        }
    }

    /// Makes the present state the one to report. Only when Gitea has every row that was read.
    fn take_state(&mut self) {
        let mut state = self.tracker.state(self.task);
        if let Some(rows) = self.sealed_at {
            cut_ranges(&mut state, rows);
        }
        self.caught_up = true;
        if state != self.state {
            self.state = state;
            self.changed = true;
        }
    }

    // --- state ---

    fn is_over(&self) -> bool {
        self.tracker.ended().is_some() && self.sealed
    }

    fn state_is_due(&self, stopping: bool) -> bool {
        let now = Instant::now();
        if now < self.states.next || !self.caught_up {
            return false;
        }
        let pace = if self.held.is_some() { self.pace.max(STATE_WHILE_BEHIND) } else { self.pace };
        self.is_over()
            || now >= self.last_state + HEARTBEAT
            || self.tracker.output_bytes() >= MAX_OUTPUTS
            || self.changed && (stopping || now >= self.last_state + pace)
    }

    /// Sends the state: a sign of life, or the end.
    async fn send_state(&mut self) {
        let over = self.is_over();
        let mut state = if over { self.tracker.final_state(self.task) } else { self.state.clone() };
        if let Some(rows) = self.sealed_at {
            cut_ranges(&mut state, rows);
        }
        let request = UpdateTaskRequest { state: Some(state), outputs: self.tracker.outputs().clone() };
        self.last_state = Instant::now();
        match self.client.update_task(&request).await {
            Ok(reply) => {
                self.states.succeeded(self.task);
                if request.state.as_ref() == Some(&self.state) {
                    self.changed = false;
                }
                self.settle_outputs(&request, &reply.sent_outputs);
                let result = reply.state.map_or(0, |state| state.result);
                if over {
                    self.finished = true;
                } else if result != i32::from(WireResult::Unspecified) {
                    self.cancel(result);
                }
            }
            Err(error) => {
                let ended_ephemeral = over && self.ephemeral && error.meaning() == Meaning::Unregistered;
                if ended_ephemeral {
                    // The runner is deleted with its task: a try before this one has arrived.
                    self.finished = true;
                } else if error.meaning() == Meaning::TooLarge && !request.outputs.is_empty() {
                    self.drop_largest_output();
                } else {
                    self.lost |= failed(&mut self.states, &error, self.task, self.ephemeral);
                }
            }
        }
    }

    /// Sends a summary. It is an extra: where it cannot be shown, the job goes on without it.
    async fn send_summary(&mut self) {
        let Some((step, markdown)) = self.summary.take() else { return };
        if !self.client.shows_summaries() {
            debug!("task {}: this Gitea shows no summaries", self.task);
            return;
        }
        let meta = self.process.dir().read_meta();
        let token = self.process.dir().read_token();
        let (Some(run), Some(job)) = (meta.run_number, meta.job_number) else { return };
        let place = SummaryPlace { run, job, step };
        match self.client.put_summary(place, &token, markdown.clone()).await {
            Ok(()) => self.summaries.succeeded(self.task),
            Err(Error::Refused { status: 404 | 405, .. }) => {
                debug!("task {}: this Gitea shows no summaries", self.task);
                self.summaries.succeeded(self.task);
            }
            Err(error) => {
                let again = !matches!(error, Error::Refused { status: 400..500, .. })
                    && self.summaries.backoff.failures() + 1 < SUMMARY_TRIES;
                self.summaries.next = Instant::now() + self.summaries.backoff.failed();
                if again {
                    self.summary = Some((step, markdown));
                } else {
                    warn!("task {}: the summary of step {step} is left out: {error}", self.task);
                    self.summaries.succeeded(self.task);
                }
            }
        }
    }

    fn settle_outputs(&mut self, request: &UpdateTaskRequest, sent: &[String]) {
        for name in sent {
            self.tracker.forget_output(name);
        }
        let refused: Vec<&String> = request.outputs.keys().filter(|name| !sent.contains(name)).collect();
        if refused.is_empty() {
            self.output_tries = 0;
            return;
        }
        self.output_tries += 1;
        if self.output_tries >= OUTPUT_TRIES {
            for name in refused {
                warn!("task {}: Gitea does not take the output {name:?}", self.task);
                self.tracker.forget_output(name);
            }
            self.output_tries = 0;
        }
    }

    fn drop_largest_output(&mut self) {
        let largest = self.tracker.outputs().iter().max_by_key(|(_, value)| value.len());
        if let Some(name) = largest.map(|(name, _)| name.clone()) {
            warn!("task {}: the output {name:?} is too large for what is between here and Gitea", self.task);
            self.tracker.forget_output(&name);
        }
    }

    /// Gitea has ended the task: the job is told to stop, once.
    fn cancel(&mut self, result: i32) {
        if self.process.dir().is_cancelled() {
            return;
        }
        let why = WireResult::try_from(result).map_or("unknown", |result| result.as_str_name());
        info!("task {}: Gitea has ended it ({why}); stopping the job", self.task);
        let marked = self.process.cancel().and_then(|()| self.process.dir().mark_cancelled());
        if let Err(error) = marked {
            warn!("task {}: {error}", self.task);
        }
    }

    // --- end ---

    async fn finish(mut self) -> Outcome {
        if let Some((_, conclusion)) = self.tracker.ended() {
            info!("task {}: {conclusion}, {} rows", self.task, self.tracker.rows());
        }
        self.tell();
        if let Err(error) = self.process.dir().mark_reported() {
            warn!("task {}: {error}", self.task);
        }
        let until = Instant::now() + LEAVE;
        while self.process.state() == State::Alive && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if self.process.state() != State::Gone(Gone::Exited(0)) {
            self.sweep().await;
        }
        Outcome::Reported
    }

    /// Counts how the job went.
    fn tell(&mut self) {
        let dir = self.process.dir();
        self.seen.received = dir.read_meta().received;
        if let Ok(profile) = Profile::read(&supervisor::history::memory(dir.path())) {
            (self.seen.peak, self.seen.cap) = (Some(profile.peak), profile.cap);
        }
        self.observer.job_ended(self.task, &self.seen, &tally::read(&dir.path().join("tally")));
    }

    /// Nobody can see the end of this job: it is stopped, and waited for.
    async fn give_up(mut self) -> Outcome {
        warn!("task {}: Gitea takes no more reports on it; stopping the job", self.task);
        if let Err(error) = self.process.cancel() {
            warn!("task {}: {error}", self.task);
        }
        while self.process.state() == State::Alive {
            let mut stop = self.stop.clone();
            tokio::select! {
                () = tokio::time::sleep(WATCH) => {}
                () = stopped(&mut stop) => return Outcome::Left,
            }
        }
        self.sweep().await;
        if let Err(error) = self.process.dir().mark_reported() {
            warn!("task {}: {error}", self.task);
        }
        Outcome::Lost
    }
}

/// Keeps what an event says of how the job goes. Reading the journal again says the same again.
fn note(seen: &mut Seen, event: &Event) {
    match event {
        Event::JobStarted { time, .. } => seen.started = Some(*time),
        Event::StepStarted { time, step } => {
            seen.begun.get_or_insert(*time);
            seen.steps.entry(*step).or_default().begun = Some(*time);
        }
        Event::StepEnded { time, step, conclusion, .. } => {
            seen.steps.entry(*step).or_default().ended = Some((*time, *conclusion));
        }
        Event::JobEnded { time, conclusion } => {
            (seen.ended, seen.conclusion) = (Some(*time), Some(*conclusion));
        }
        _ => {}
    }
}

/// How long ago that was.
fn lag(seconds: i64, nanos: i32) -> Duration {
    let micros = seconds.saturating_mul(1_000_000).saturating_add(i64::from(nanos / 1000));
    Duration::from_millis(Timestamp::now().millis_since(Timestamp::from_micros(micros)))
}

/// Notes a failed try; true when there is no use in another one.
fn failed(tries: &mut Tries, error: &Error, task: i64, ephemeral: bool) -> bool {
    let now = Instant::now();
    let first = tries.backoff.failures() == 0;
    let wait = tries.backoff.failed();
    tries.next = now + error.retry_after().map_or(wait, |asked| asked.max(wait));
    if first {
        warn!("task {task}: {error}; trying again");
    } else {
        debug!("task {task}: {error}; trying again");
    }
    match error.meaning() {
        Meaning::TaskLost => true,
        Meaning::Unregistered => {
            let since = *tries.unregistered_since.get_or_insert(now);
            ephemeral && !first || since.elapsed() >= UNREGISTERED_FOR
        }
        _ => {
            tries.unregistered_since = None;
            false
        }
    }
}

/// Fails a task that could not even be written down, with the reason in its log.
pub(super) async fn refuse(
    client: Client,
    task: i64,
    steps: usize,
    reason: String,
    mut stop: watch::Receiver<bool>,
) {
    let mut tracker = Tracker::new(steps);
    let time = Timestamp::now();
    let row = tracker.row(time, format!("##[error]{reason}"));
    tracker.take(Event::JobEnded { time, conclusion: crate::events::Conclusion::Failure });
    let log = UpdateLogRequest { task_id: task, index: 0, rows: vec![row.row], no_more: true };
    let state = UpdateTaskRequest { state: Some(tracker.final_state(task)), ..UpdateTaskRequest::default() };
    let mut tries = Tries::new();
    let mut sealed = false;
    loop {
        let result = if sealed {
            client.update_task(&state).await.map(drop)
        } else {
            client.update_log(&log).await.map(drop)
        };
        match result {
            Ok(()) if sealed => return,
            Ok(()) => sealed = true,
            Err(error) if error.meaning() == Meaning::LogSealed && !sealed => sealed = true,
            Err(error) => {
                if failed(&mut tries, &error, task, false) {
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep_until(tries.next) => {}
                    () = stopped(&mut stop) => return,
                }
            }
        }
    }
}

//! The end of a job whose process is gone without having written one.

use std::fmt;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::{Error, JobDir};
use crate::events::journal::{self, Reader, Writer};
use crate::events::{Conclusion, Event, MAX_ROW_BYTES, Sink, StepInfo, Timestamp};
use crate::job::process::signal_name;

/// No server may make us write more rows than this to fill a gap.
const MAX_GAP: u64 = 10_000_000;
/// How much of what the job process printed itself is shown.
const LOG_TAIL: u64 = 4096;

/// How a job process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// It left with an exit code.
    Exited(i32),
    /// A signal ended it.
    Killed(i32),
    /// The host was started again since.
    HostWentDown,
    /// It was not a child of this daemon, so nobody knows.
    Unknown,
    /// There never was a process.
    NeverStarted,
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "The job process left with exit code {code} before the job had ended."),
            Self::Killed(signal) => {
                write!(f, "The job process was killed by {} before the job had ended.", signal_name(*signal))
            }
            Self::HostWentDown => f.write_str("The host went down while the job was running."),
            Self::Unknown => f.write_str(
                "The job process is gone, and the job had not ended. How it went is not known: another daemon had \
                 started it.",
            ),
            Self::NeverStarted => f.write_str(
                "The job was never started: the daemon died while it wrote the task down, or could not start it.",
            ),
        }
    }
}

/// What a journal says of its job so far.
#[derive(Default)]
struct Seen {
    started: bool,
    steps: Vec<StepInfo>,
    ended: Vec<usize>,
    running: Option<usize>,
    rows: u64,
    last_row: Option<(Timestamp, String)>,
    over: bool,
    /// What is lost of it.
    damage: Option<String>,
}

/// The rows that say why a job has no end of its own, and how it is to be counted.
fn reasons(dir: &JobDir, gone: Gone, last_row: Option<(Timestamp, &str)>) -> (Vec<String>, Conclusion) {
    let mut notes = vec![gone.to_string()];
    match gone {
        Gone::HostWentDown => notes.extend(when_the_host_went_down(last_row)),
        // A process that was told to leave did not die of memory.
        Gone::Killed(9) | Gone::Unknown => {
            notes.extend(dir.read_trace().and_then(|trace| trace.counters.since()));
        }
        _ => {}
    }
    notes.extend(tail(&dir.log()));
    // Told to stop, it may have gone before it could write its end.
    let conclusion = if dir.is_cancelled() { Conclusion::Cancelled } else { Conclusion::Failure };
    (notes, conclusion)
}

/// The end of a job whose journal cannot be written, such as on a disk that is full or broken, as events that follow on
/// what was read of it. [`close`] is to be preferred: these are lost with the daemon.
#[must_use]
pub fn end_without_journal(dir: &JobDir, gone: Gone, problem: &Error) -> Vec<Event> {
    let (mut notes, conclusion) = reasons(dir, gone, None);
    notes.push(format!("The end of the journal could not be written: {problem}"));
    let time = Timestamp::now();
    let mut events: Vec<Event> = rows(&notes).map(|text| Event::Row { time, text }).collect();
    events.push(Event::JobEnded { time, conclusion });
    events
}

/// Ends the journal of a job whose process is gone: rows that say why, the running step failed, later ones skipped,
/// the job failed. `acknowledged` is how many rows Gitea has; where the journal has fewer (its end was lost with the
/// power), empty ones are put in their place, so that the rows that follow are new to Gitea. A journal that has its
/// end already is left alone; one that cannot be read is put aside as `journal.unreadable`.
///
/// # Errors
/// When the journal cannot be written.
pub fn close(dir: &JobDir, gone: Gone, acknowledged: u64) -> Result<(), Error> {
    let path = dir.journal();
    dir.release();
    let mut problem = None;
    let (seen, mut writer) = match look(&path) {
        Ok(Some(seen)) if seen.over => return Ok(()),
        Ok(Some(seen)) => (seen, Writer::resume(&path)?),
        Ok(None) => (Seen::default(), Writer::create(&path)?),
        Err(error @ journal::Error::Io { .. }) => return Err(error.into()),
        Err(error) => {
            problem = Some(error.to_string());
            let aside = dir.path().join("journal.unreadable");
            std::fs::rename(&path, &aside).map_err(Error::io(&aside))?;
            (Seen::default(), Writer::create(&path)?)
        }
    };
    let last_row = seen.last_row.as_ref().map(|(time, text)| (*time, text.as_str()));
    let (mut notes, conclusion) = reasons(dir, gone, last_row);
    notes.extend(problem);
    // A power cut tears the end; that is said already.
    if gone != Gone::HostWentDown {
        notes.extend(seen.damage.clone());
    }
    write_end(&mut writer, &seen, dir.read_meta().steps, &notes, acknowledged, conclusion)
        .map_err(Error::io(&path))
}

fn write_end(
    writer: &mut Writer,
    seen: &Seen,
    known_steps: Vec<StepInfo>,
    notes: &[String],
    acknowledged: u64,
    conclusion: Conclusion,
) -> std::io::Result<()> {
    let time = Timestamp::now();
    let steps = if seen.started { seen.steps.len() } else { known_steps.len() };
    if !seen.started {
        writer.emit(&Event::JobStarted { time, version: crate::VERSION.to_owned(), steps: known_steps })?;
    }
    for _ in seen.rows..acknowledged.min(seen.rows.saturating_add(MAX_GAP)) {
        writer.emit(&Event::Row { time, text: String::new() })?;
    }
    for text in rows(notes) {
        writer.emit(&Event::Row { time, text })?;
    }
    for step in (0..steps).filter(|step| !seen.ended.contains(step)) {
        let outcome = if seen.running == Some(step) { conclusion } else { Conclusion::Skipped };
        writer.emit(&Event::StepEnded { time, step, outcome, conclusion: outcome })?;
    }
    writer.emit(&Event::JobEnded { time, conclusion })?;
    writer.sync()
}

/// Notes as rows of the log, the first as an error.
fn rows(notes: &[String]) -> impl Iterator<Item = String> + '_ {
    notes.iter().enumerate().map(|(index, note)| {
        let mut text = if index == 0 { format!("##[error]{note}") } else { note.clone() };
        text.truncate(text.floor_char_boundary(MAX_ROW_BYTES));
        text
    })
}

/// Between what two moments the host went down, and what is the last that is known of the job.
fn when_the_host_went_down(last_row: Option<(Timestamp, &str)>) -> Vec<String> {
    let back = boot_time().map(|time| format!(" and was up again at {}", utc(time))).unwrap_or_default();
    let Some((time, text)) = last_row else {
        return vec![format!("It had printed nothing that was kept{back}.")];
    };
    let mut text: String = text.chars().take(200).collect();
    if text.trim().is_empty() {
        text = "(empty)".to_owned();
    }
    vec![
        format!("The host went down after {}{back}.", utc(time)),
        format!("The last row that was kept: {text}"),
    ]
}

/// When this host was started.
fn boot_time() -> Option<Timestamp> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let seconds: i64 = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(Timestamp::from_micros(seconds.checked_mul(1_000_000)?))
}

/// Reads a journal to the end of what is whole; `None` when there is none.
fn look(path: &Path) -> Result<Option<Seen>, journal::Error> {
    // The power may go before the first bytes are on the disk.
    if std::fs::metadata(path).is_ok_and(|meta| meta.len() == 0) {
        std::fs::remove_file(path).map_err(|source| journal::Error::Io { path: path.to_owned(), source })?;
    }
    let mut reader = match Reader::open(path) {
        Ok(reader) => reader,
        Err(journal::Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let mut seen = Seen::default();
    loop {
        match reader.next_event() {
            Ok(Some(event)) => seen.take(event),
            // What is behind a damaged record is cut off when the journal is resumed.
            Ok(None) => return Ok(Some(seen)),
            Err(error @ journal::Error::Damaged { .. }) => {
                let more =
                    std::fs::metadata(path).map_or(0, |meta| meta.len().saturating_sub(reader.position()));
                seen.damage = Some(format!("{error}: its last {more} bytes are lost."));
                return Ok(Some(seen));
            }
            Err(error) => return Err(error),
        }
    }
}

impl Seen {
    fn take(&mut self, event: Event) {
        match event {
            Event::JobStarted { steps, .. } => {
                self.started = true;
                self.steps = steps;
            }
            Event::StepStarted { step, .. } => self.running = Some(step),
            Event::StepEnded { step, .. } => {
                self.ended.push(step);
                if self.running == Some(step) {
                    self.running = None;
                }
            }
            Event::Row { time, text } => {
                self.rows += 1;
                self.last_row = Some((time, text));
            }
            Event::JobEnded { .. } => self.over = true,
            Event::Summary { .. } | Event::Output { .. } => {}
        }
    }
}

/// The last lines that the job process printed itself, such as why it could not begin.
fn tail(path: &Path) -> Vec<String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let length = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(10)..].iter().map(|line| format!("job process: {line}")).collect()
}

fn utc(time: Timestamp) -> String {
    jiff::Timestamp::from_microsecond(time.as_micros()).map_or_else(
        |_| "an unknown time".to_owned(),
        |time| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
    )
}

//! What happens in a job, as a stream of events, and the journal that keeps it.
//!
//! The executor writes this stream and has never heard of Gitea; the reporter, the terminal of `sower exec` and
//! the metrics read it and have never heard of a shell.

pub mod bound;
pub mod journal;

use std::fmt;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Most bytes that one log row may have. Gitea cuts rows at 65,536 bytes, wherever that falls in a character.
pub const MAX_ROW_BYTES: usize = 60 * 1024;

/// A moment in wall-clock time: microseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The present moment.
    #[must_use]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }

    /// From microseconds since 1970-01-01 UTC.
    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since 1970-01-01 UTC.
    #[must_use]
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Whole seconds since 1970-01-01 UTC and the nanoseconds on top, as protobuf's `Timestamp` wants them.
    #[must_use]
    pub const fn seconds_and_nanos(self) -> (i64, i32) {
        #[expect(clippy::cast_possible_truncation, reason = "less than 10^9 by construction")]
        let nanos = (self.0.rem_euclid(1_000_000) * 1000) as i32;
        (self.0.div_euclid(1_000_000), nanos)
    }

    /// Time from `earlier` to this moment in milliseconds; 0 when the clock was set back meanwhile.
    #[must_use]
    pub fn millis_since(self, earlier: Self) -> u64 {
        u64::try_from((self.0 - earlier.0) / 1000).unwrap_or(0)
    }
}

/// How a step or a job ended, in the words of the workflow language.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Conclusion {
    /// It did what it should.
    Success,
    /// It failed.
    Failure,
    /// It was stopped from outside.
    Cancelled,
    /// It was not run.
    Skipped,
}

impl Conclusion {
    /// The word as it stands in `steps.x.outcome`, `needs.x.result` and on the terminal.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Cancelled => "cancelled",
            Self::Skipped => "skipped",
        }
    }
}

impl fmt::Display for Conclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One thing that happened in a job. Everything in it is masked already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The job began. The first event, before any row.
    JobStarted {
        /// When.
        time: Timestamp,
        /// The version of the program that runs it.
        version: String,
        /// The steps as the workflow declares them, in order; their index is how other events name them.
        steps: Vec<StepInfo>,
    },
    /// A step began. Rows that follow belong to it until its end.
    StepStarted {
        /// When.
        time: Timestamp,
        /// Index of the step, from 0.
        step: usize,
    },
    /// A row of the log. Before the first step it belongs to the set-up, after the last one to the clean-up.
    Row {
        /// When it was printed.
        time: Timestamp,
        /// One line without its end, valid UTF-8, at most [`MAX_ROW_BYTES`].
        text: String,
    },
    /// A step ended, or was skipped without having begun.
    StepEnded {
        /// When.
        time: Timestamp,
        /// Index of the step, from 0.
        step: usize,
        /// What it did.
        outcome: Conclusion,
        /// What it counts as: a failure that `continue-on-error` forgives is a success.
        conclusion: Conclusion,
    },
    /// What a step wrote to its summary.
    Summary {
        /// Index of the step, from 0.
        step: usize,
        /// Markdown, at most 1 MiB.
        markdown: String,
    },
    /// An output of the job. Outputs come before the job's end.
    Output {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// The job ended. The last event.
    JobEnded {
        /// When.
        time: Timestamp,
        /// How.
        conclusion: Conclusion,
    },
}

/// A step as the workflow declares it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepInfo {
    /// The id that the workflow gives it, or its index.
    pub id: String,
    /// The name to show.
    pub name: String,
}

/// Takes events in the order in which they happen.
pub trait Sink {
    /// Takes one event. It need not be visible to others before [`Sink::flush`].
    ///
    /// # Errors
    /// When the event could not be kept, such as on a full disk.
    fn emit(&mut self, event: &Event) -> io::Result<()>;

    /// Makes everything emitted so far visible to readers.
    ///
    /// # Errors
    /// As [`Sink::emit`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

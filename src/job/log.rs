//! The way out of a job: every event passes here, and every secret stops here.

use std::io;

use crate::events::{Event, MAX_ROW_BYTES, Sink, Timestamp};

use super::mask::Masker;
use super::tail::Tail;

/// Masks and emits.
pub struct Log<'s> {
    sink: &'s mut dyn Sink,
    /// The secrets of the job.
    pub masker: Masker,
    /// Rows of `::debug::` are shown.
    pub debug: bool,
    /// Kept so that a row costs no allocation.
    row: String,
    /// The last rows, by which the cause of a failure is told.
    pub tail: Tail,
}

impl std::fmt::Debug for Log<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log")
            .field("masker", &self.masker)
            .field("debug", &self.debug)
            .finish_non_exhaustive()
    }
}

impl<'s> Log<'s> {
    /// A log into this sink.
    pub fn new(sink: &'s mut dyn Sink, masker: Masker, debug: bool) -> Self {
        Self { sink, masker, debug, row: String::new(), tail: Tail::default() }
    }

    /// The parts, for whoever feeds rows from a splitter.
    pub fn parts(&mut self) -> (RowSink<'_>, &mut Masker) {
        (RowSink { sink: self.sink, row: &mut self.row, tail: &mut self.tail }, &mut self.masker)
    }

    /// Emits an event whose texts are masked already or hold none.
    ///
    /// # Errors
    /// When the sink fails.
    pub fn emit(&mut self, event: &Event) -> io::Result<()> {
        self.sink.emit(event)
    }

    /// Emits a text as one row for each of its lines.
    ///
    /// # Errors
    /// When the sink fails.
    pub fn text(&mut self, text: &str) -> io::Result<()> {
        let (mut rows, masker) = self.parts();
        if text.is_empty() {
            return rows.row(text, masker);
        }
        text.lines().try_for_each(|line| rows.row(line, masker))
    }

    /// Emits an error row.
    ///
    /// # Errors
    /// When the sink fails.
    pub fn error(&mut self, message: &str) -> io::Result<()> {
        let mut lines = message.lines();
        self.text(&format!("##[error]{}", lines.next().unwrap_or_default()))?;
        lines.try_for_each(|line| self.text(line))
    }

    /// Emits a warning row.
    ///
    /// # Errors
    /// When the sink fails.
    pub fn warning(&mut self, message: &str) -> io::Result<()> {
        self.text(&format!("##[warning]{message}"))
    }

    /// Makes what was emitted visible.
    ///
    /// # Errors
    /// When the sink fails.
    pub fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

/// Takes rows that are not masked yet.
pub struct RowSink<'a> {
    sink: &'a mut dyn Sink,
    row: &'a mut String,
    tail: &'a mut Tail,
}

impl std::fmt::Debug for RowSink<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowSink").finish_non_exhaustive()
    }
}

impl RowSink<'_> {
    /// Masks and emits one row.
    ///
    /// # Errors
    /// When the sink fails.
    pub fn row(&mut self, text: &str, masker: &mut Masker) -> io::Result<()> {
        self.row.clear();
        self.row.push_str(text);
        masker.mask_in_place(self.row);
        self.tail.push(self.row);
        let time = Timestamp::now();
        // Short secrets make rows longer when they are masked.
        while self.row.len() > MAX_ROW_BYTES {
            let cut = self.row.floor_char_boundary(MAX_ROW_BYTES);
            let rest = self.row.split_off(cut);
            let begin = std::mem::replace(self.row, rest);
            self.sink.emit(&Event::Row { time, text: begin })?;
        }
        let event = Event::Row { time, text: std::mem::take(self.row) };
        let emitted = self.sink.emit(&event);
        if let Event::Row { text, .. } = event {
            *self.row = text;
        }
        emitted
    }

    /// Makes what was emitted visible.
    ///
    /// # Errors
    /// When the sink fails.
    pub fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

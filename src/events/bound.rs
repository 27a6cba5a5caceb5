//! A stream of events whose rows are bounded: beyond a limit only the last ones before each other event are kept, and a
//! row says how many were left out.

use std::collections::VecDeque;
use std::io;

use super::{Event, Sink, Timestamp};

/// Most bytes of rows that are kept in memory beyond the limit.
const TAIL_BYTES: usize = 256 * 1024;
/// Most rows that are kept in memory beyond the limit.
const TAIL_ROWS: usize = 1000;
/// What a row costs beside its text.
const ROW_OVERHEAD: usize = 17;

/// Lets everything pass until the rows together are larger than the limit.
#[derive(Debug)]
pub struct Bounded<'s, S> {
    inner: &'s mut S,
    limit: u64,
    used: u64,
    full: bool,
    tail: VecDeque<(Timestamp, String)>,
    tail_bytes: usize,
    left_out: u64,
    left_out_bytes: u64,
}

impl<'s, S: Sink> Bounded<'s, S> {
    /// At most `limit` bytes of rows go to `inner`, and at most 256 KiB more before each event that is no row.
    pub fn new(inner: &'s mut S, limit: u64) -> Self {
        Self {
            inner,
            limit,
            used: 0,
            full: false,
            tail: VecDeque::new(),
            tail_bytes: 0,
            left_out: 0,
            left_out_bytes: 0,
        }
    }

    fn keep(&mut self, time: Timestamp, text: &str) -> io::Result<()> {
        if !self.full {
            self.full = true;
            let text = format!(
                "##[warning]The log has reached its limit of {} MiB (runner.journal_limit): of what follows, the last \
                 rows of each step are kept.",
                self.limit >> 20
            );
            self.inner.emit(&Event::Row { time, text })?;
        }
        self.tail_bytes += text.len() + ROW_OVERHEAD;
        self.tail.push_back((time, text.to_owned()));
        while self.tail_bytes > TAIL_BYTES || self.tail.len() > TAIL_ROWS {
            let Some((_, text)) = self.tail.pop_front() else { break };
            self.tail_bytes -= text.len() + ROW_OVERHEAD;
            self.left_out += 1;
            self.left_out_bytes += text.len() as u64;
        }
        Ok(())
    }

    /// Gives out what was kept, behind a row that says what was not.
    fn give_out(&mut self) -> io::Result<()> {
        if let (true, Some((time, _))) = (self.left_out > 0, self.tail.front()) {
            let text = format!(
                "##[warning]{} rows ({} KiB) are left out here: the log has reached its limit.",
                self.left_out,
                self.left_out_bytes >> 10
            );
            self.inner.emit(&Event::Row { time: *time, text })?;
            self.left_out = 0;
            self.left_out_bytes = 0;
        }
        while let Some((time, text)) = self.tail.pop_front() {
            self.tail_bytes -= text.len() + ROW_OVERHEAD;
            self.inner.emit(&Event::Row { time, text })?;
        }
        Ok(())
    }
}

impl<S: Sink> Sink for Bounded<'_, S> {
    fn emit(&mut self, event: &Event) -> io::Result<()> {
        match event {
            Event::Row { time, text } => {
                let size = (text.len() + ROW_OVERHEAD) as u64;
                if self.full || self.used + size > self.limit {
                    return self.keep(*time, text);
                }
                self.used += size;
                self.inner.emit(event)
            }
            _ => {
                self.give_out()?;
                self.inner.emit(event)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Conclusion;

    #[derive(Default)]
    struct Rows(Vec<String>);

    impl Sink for Rows {
        fn emit(&mut self, event: &Event) -> io::Result<()> {
            self.0.push(match event {
                Event::Row { text, .. } => text.clone(),
                _ => "-".to_owned(),
            });
            Ok(())
        }
    }

    #[test]
    fn the_beginning_and_the_last_rows_of_each_step_are_kept() {
        let time = Timestamp::from_micros(1);
        let mut rows = Rows::default();
        let mut bounded = Bounded::new(&mut rows, 1 << 20);
        let end =
            Event::StepEnded { time, step: 0, outcome: Conclusion::Success, conclusion: Conclusion::Success };
        for step in 0..2 {
            for number in 0..50_000 {
                let text = format!("{step} row {number:06} {}", "x".repeat(30));
                bounded.emit(&Event::Row { time, text }).unwrap();
            }
            bounded.emit(&end).unwrap();
        }
        let rows = rows.0;
        let bytes: usize = rows.iter().map(String::len).sum();
        assert!(bytes < (1 << 20) + 2 * TAIL_BYTES + 1024, "{bytes}");
        assert!(rows[0].starts_with("0 row 000000"));
        assert_eq!(rows.iter().filter(|row| row.contains("runner.journal_limit")).count(), 1);
        let ends: Vec<usize> = (0..rows.len()).filter(|index| rows[*index] == "-").collect();
        assert!(
            rows[ends[0] - 1].starts_with("0 row 049999") && rows[ends[1] - 1].starts_with("1 row 049999")
        );
        // Whatever is missing is counted.
        let said: usize = rows
            .iter()
            .filter_map(|row| row.strip_prefix("##[warning]")?.split_once(" rows (")?.0.parse::<usize>().ok())
            .sum();
        assert_eq!(rows.iter().filter(|row| row.contains(" row ")).count() + said, 100_000);
    }

    #[test]
    fn what_stays_below_the_limit_is_left_alone() {
        let time = Timestamp::from_micros(1);
        let mut rows = Rows::default();
        let mut bounded = Bounded::new(&mut rows, 1 << 20);
        for number in 0..1000 {
            bounded.emit(&Event::Row { time, text: number.to_string() }).unwrap();
        }
        assert_eq!(rows.0, (0..1000).map(|number| number.to_string()).collect::<Vec<_>>());
    }
}

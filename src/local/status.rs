//! A line at the end of a terminal that says what runs now and what memory it uses.
//!
//! Whatever is printed takes the line away first, and the next tick puts it back: it is never part of what stays.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::show::duration;
use crate::limits::process;
use crate::limits::size::Size;

/// How often it is drawn anew.
const TICK: Duration = Duration::from_millis(500);
/// Moments in its picture.
const WIDTH: usize = 24;
/// Takes away what stands in the current line of a terminal.
const CLEAR: &[u8] = b"\r\x1b[2K";

/// What is printed to a terminal, and the line below it. Copies share one state.
#[derive(Debug, Clone)]
pub struct Status(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// The line stands on the terminal now.
    shown: bool,
    /// What was printed last ended a line.
    at_begin: bool,
    /// The steps that run, by job.
    running: Vec<(String, String, Instant)>,
    /// Bytes at the last ticks, the latest last.
    samples: Vec<u64>,
    peak: u64,
    columns: usize,
}

impl Status {
    /// A line that is drawn until the last copy is gone.
    ///
    /// # Errors
    /// When there can be no further thread.
    pub fn start() -> io::Result<Self> {
        let state = State {
            shown: false,
            at_begin: true,
            running: Vec::new(),
            samples: Vec::new(),
            peak: 0,
            columns: 80,
        };
        let state = Arc::new(Mutex::new(state));
        let seen = Arc::downgrade(&state);
        std::thread::Builder::new().name("status".to_owned()).spawn(move || {
            loop {
                std::thread::sleep(TICK);
                let Some(state) = seen.upgrade() else { break };
                let bytes = resident();
                Self(state).lock().tick(bytes);
            }
        })?;
        Ok(Self(state))
    }

    /// A step of a job runs.
    pub fn begins(&self, job: &str, step: &str) {
        let mut state = self.lock();
        state.running.push((job.to_owned(), step.to_owned(), Instant::now()));
        (state.peak, state.samples) = (0, Vec::new());
    }

    /// It has ended.
    pub fn ends(&self, job: &str) {
        self.lock().running.retain(|(of, ..)| of != job);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Status {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.lock();
        let mut out = io::stdout().lock();
        if std::mem::take(&mut state.shown) {
            out.write_all(CLEAR)?;
        }
        out.write_all(bytes)?;
        state.at_begin = bytes.last().is_none_or(|last| *last == b'\n');
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

impl State {
    fn tick(&mut self, bytes: u64) {
        self.samples.push(bytes);
        if self.samples.len() > WIDTH {
            self.samples.remove(0);
        }
        self.peak = self.peak.max(bytes);
        if let Ok(size) = rustix::termios::tcgetwinsize(io::stdout()) {
            self.columns = usize::from(size.ws_col).max(20);
        }
        if !self.at_begin {
            return;
        }
        let line = self.line();
        let mut out = io::stdout().lock();
        // Who looks at a terminal that is gone?
        let _ = out.write_all(CLEAR).and_then(|()| out.write_all(line.as_bytes())).and_then(|()| out.flush());
        self.shown = !line.is_empty();
    }

    fn line(&self) -> String {
        let Some((_, step, began)) = self.running.last() else { return String::new() };
        let more = match self.running.len() {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        let took = duration(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX));
        let now = self.samples.last().copied().unwrap_or(0);
        let facts = format!("{took}  {} (peak {})  {}", Size(now), Size(self.peak), bars(&self.samples));
        // A line that is wider than the terminal could not be taken away.
        let room = self.columns.saturating_sub(facts.chars().count() + more.len() + 8);
        let name: String = step.chars().map(|c| if c.is_control() { ' ' } else { c }).take(room).collect();
        let line: String = format!("  … {name}{more}  {facts}").chars().take(self.columns - 1).collect();
        format!("\x1b[2m{line}\x1b[0m")
    }
}

/// A small picture, scaled to its own peak.
fn bars(samples: &[u64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = samples.iter().copied().max().unwrap_or(0).max(1);
    samples.iter().map(|bytes| BARS[usize::try_from(bytes * 7 / most).unwrap_or(0).min(7)]).collect()
}

/// What all processes below this one have resident, in bytes; what they share of files is counted once.
fn resident() -> u64 {
    let pids = process::descendants(std::process::id()).unwrap_or_default();
    let (mut own, mut most) = (0, 0);
    for process::Measured { stat, shared } in pids.into_iter().filter_map(process::measured) {
        own += stat.resident - shared;
        most = shared.max(most);
    }
    own + most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_fits_into_the_terminal_and_names_the_step() {
        let mut state = State {
            shown: false,
            at_begin: true,
            running: vec![("it".to_owned(), "Run nix build\t.#docker ".repeat(9), Instant::now())],
            samples: vec![1 << 20, 8 << 20, 4 << 20],
            peak: 8 << 20,
            columns: 60,
        };
        let line = state.line();
        assert!(line.contains("… Run nix") && line.contains("4 MiB (peak 8 MiB)  ▁█▄"), "{line}");
        assert!(
            line.trim_start_matches("\x1b[2m").trim_end_matches("\x1b[0m").chars().count() < 60,
            "{line}"
        );
        state.running.clear();
        assert_eq!(state.line(), "");
    }
}

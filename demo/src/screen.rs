//! What the demo prints: lines that stay, and on a terminal one line below them that says what is going on.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use rustix::termios::tcgetwinsize;
use sower_test_support::Status;

/// Least time between two changes of the line below, so that a terminal far away keeps up.
const BREATH: Duration = Duration::from_millis(100);
const SPINNER: [&str; 4] = ["◐", "◓", "◑", "◒"];

/// A colour or weight, where there are such things.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Style {
    /// As it is.
    Plain,
    /// For headings.
    Bold,
    /// For what matters less.
    Dim,
    /// For what is well.
    Green,
    /// For what is not.
    Red,
    /// For what somebody should read.
    Yellow,
}

/// The terminal, or the file that stands for it.
pub(crate) struct Screen {
    terminal: bool,
    colour: bool,
    below: bool,
    last: Option<Instant>,
    turn: usize,
}

impl Screen {
    /// Standard output.
    pub(crate) fn new() -> Self {
        let terminal = io::stdout().is_terminal();
        let colour = terminal && env::var_os("NO_COLOR").is_none();
        Self { terminal, colour, below: false, last: None, turn: 0 }
    }

    /// A line that stays.
    pub(crate) fn line(&mut self, text: &str) {
        self.clear();
        self.put(&format!("{text}\n"));
    }

    /// What is going on, on a terminal; the next line takes its place.
    pub(crate) fn going_on(&mut self, text: &str) {
        if !self.terminal || self.last.is_some_and(|last| last.elapsed() < BREATH) {
            return;
        }
        self.clear();
        self.turn += 1;
        let text = format!("{} {text}", SPINNER[self.turn % SPINNER.len()]);
        let shown = self.styled(Style::Dim, &cut(&text, self.width()));
        self.put(&shown);
        self.below = true;
        self.last = Some(Instant::now());
    }

    /// Takes the line below away.
    pub(crate) fn clear(&mut self) {
        if self.below {
            self.put("\r\x1b[2K");
            self.below = false;
            self.last = None;
        }
    }

    /// The text in a style, where the terminal has any.
    pub(crate) fn styled(&self, style: Style, text: &str) -> String {
        let code = match style {
            Style::Plain => return text.to_owned(),
            Style::Bold => "1",
            Style::Dim => "2",
            Style::Green => "32",
            Style::Red => "31",
            Style::Yellow => "33",
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A row of a job's log, below its step, as Gitea shows it.
    pub(crate) fn row(&mut self, text: &str) {
        // (prefix of the command, mark, style); of a group only the heading is shown.
        let known = [
            ("##[group]", "▸ ", Style::Bold),
            ("::group::", "▸ ", Style::Bold),
            ("##[error]", "error: ", Style::Red),
            ("::error::", "error: ", Style::Red),
            ("##[warning]", "warning: ", Style::Yellow),
            ("::warning::", "warning: ", Style::Yellow),
            ("##[notice]", "notice: ", Style::Yellow),
            ("::notice::", "notice: ", Style::Yellow),
            ("##[command]", "$ ", Style::Dim),
        ];
        let (text, style) = known
            .iter()
            .find_map(|(prefix, mark, style)| Some((format!("{mark}{}", text.strip_prefix(prefix)?), *style)))
            .unwrap_or_else(|| (text.to_owned(), Style::Plain));
        let text = if self.terminal { cut(&text, self.width().saturating_sub(5)) } else { text };
        let line = format!("   {} {}", self.styled(Style::Dim, "│"), self.styled(style, &text));
        self.line(&line);
    }

    /// How a step ended.
    pub(crate) fn step(&mut self, name: &str, status: Status, took: Option<Duration>) {
        let mark = self.mark(status);
        let took = match (status, took) {
            (Status::Skipped, _) => "skipped".to_owned(),
            (_, took) => took.map(seconds).unwrap_or_default(),
        };
        let name = cut(name, 58);
        let padding = " ".repeat(60_usize.saturating_sub(name.chars().count()));
        let name = self.styled(Style::Bold, &name);
        self.line(&format!(" {mark} {name}{padding}{took:>8}"));
    }

    /// The sign of a state.
    pub(crate) fn mark(&self, status: Status) -> String {
        match status {
            Status::Success => self.styled(Style::Green, "✓"),
            Status::Failure => self.styled(Style::Red, "✗"),
            Status::Cancelled | Status::Cancelling => self.styled(Style::Yellow, "■"),
            Status::Skipped => self.styled(Style::Dim, "○"),
            Status::Waiting | Status::Running | Status::Blocked => self.styled(Style::Dim, "·"),
        }
    }

    fn width(&self) -> usize {
        tcgetwinsize(io::stdout()).map_or(100, |size| usize::from(size.ws_col)).max(40)
    }

    /// A reader that went away does not stop the demo: it has things to put away.
    fn put(&self, text: &str) {
        let mut out = io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

/// A duration as the page of a run has it.
pub(crate) fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(60) {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} min {} s", time.as_secs() / 60, time.as_secs() % 60)
    }
}

/// A number with its thousands apart.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// At most `width` characters; escape sequences count, as they seldom stand in a log.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_fit_for_people() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(28_100_972), "28,100,972");
        assert_eq!(seconds(Duration::from_millis(2345)), "2.3 s");
        assert_eq!(seconds(Duration::from_secs(125)), "2 min 5 s");
        assert_eq!(cut("längere Zeile", 6), "länge…");
    }
}

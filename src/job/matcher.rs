//! Problem matchers: what compilers print becomes annotations.
//!
//! Source: <https://github.com/actions/toolkit/blob/main/docs/problem-matchers.md>. A file holds matchers; each has an
//! owner, a severity and patterns, one for each line of a message; the last pattern may `loop`.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use regex::{Captures, Regex, RegexBuilder};
use rustix::fs::OFlags;
use serde::Deserialize;

/// Most bytes that a file of matchers may have.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// Most bytes that an expression may take once it is built.
const MAX_EXPRESSION_BYTES: usize = 2 * 1024 * 1024;
/// Most matchers that are in force at once.
const MAX_MATCHERS: usize = 100;

/// The matchers in force, the latest first.
#[derive(Debug, Default)]
pub struct Matchers {
    matchers: VecDeque<Matcher>,
}

/// What a matcher made of the lines.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    /// `error`, `warning` or `notice`.
    pub level: &'static str,
    /// `file:line:column: message [code]`, as far as the lines told.
    pub text: String,
}

#[derive(Debug)]
struct Matcher {
    owner: String,
    level: &'static str,
    patterns: Vec<Pattern>,
    /// What the patterns so far have told; its length is the number of the next one.
    told: Vec<Told>,
}

#[derive(Debug)]
struct Pattern {
    regex: Regex,
    groups: Groups,
    repeats: bool,
}

/// Which group of an expression holds what.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Groups {
    file: Option<usize>,
    from_path: Option<usize>,
    line: Option<usize>,
    column: Option<usize>,
    severity: Option<usize>,
    code: Option<usize>,
    message: Option<usize>,
}

#[derive(Debug, Clone, Default)]
struct Told {
    file: Option<String>,
    from_path: Option<String>,
    line: Option<String>,
    column: Option<String>,
    severity: Option<String>,
    code: Option<String>,
    message: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileText {
    problem_matcher: Vec<MatcherText>,
}

#[derive(Deserialize)]
struct MatcherText {
    owner: String,
    severity: Option<String>,
    pattern: Vec<PatternText>,
}

#[derive(Deserialize)]
struct PatternText {
    regexp: String,
    #[serde(default, rename = "loop")]
    repeats: bool,
    #[serde(flatten)]
    groups: Groups,
}

impl Matchers {
    /// Puts the matchers of a file in force; those of the same owners are replaced.
    ///
    /// # Errors
    /// Why the file cannot be used.
    pub fn add(&mut self, file: &Path) -> Result<(), String> {
        for matcher in read(file)? {
            self.remove(&matcher.owner);
            if self.matchers.len() >= MAX_MATCHERS {
                return Err(format!("there are {MAX_MATCHERS} problem matchers already"));
            }
            self.matchers.push_front(matcher);
        }
        Ok(())
    }

    /// Puts the matchers of a file out of force.
    ///
    /// # Errors
    /// Why the file cannot be used.
    pub fn remove_file(&mut self, file: &Path) -> Result<(), String> {
        for matcher in read(file)? {
            self.remove(&matcher.owner);
        }
        Ok(())
    }

    /// Puts the matcher of an owner out of force.
    pub fn remove(&mut self, owner: &str) {
        self.matchers.retain(|matcher| !matcher.owner.eq_ignore_ascii_case(owner));
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.matchers.is_empty()
    }

    /// Shows a line to the matchers; the first that is complete tells what it found.
    pub fn see(&mut self, line: &str, workspace: &Path) -> Option<Finding> {
        let line = without_colours(line);
        let at = self.matchers.iter_mut().position(|matcher| matcher.see(&line))?;
        // What the others had begun is over: these lines belong to this one.
        for (other, matcher) in self.matchers.iter_mut().enumerate() {
            if other != at {
                matcher.told.clear();
            }
        }
        self.matchers[at].finding(workspace)
    }
}

impl Matcher {
    /// Whether the line completes what the matcher looks for.
    fn see(&mut self, line: &str) -> bool {
        let last = self.patterns.len() - 1;
        if self.told.len() > last {
            // Only a loop goes on after the last pattern.
            self.told.truncate(last);
            if let Some(told) = self.patterns[last].told(line) {
                self.told.push(told);
                return true;
            }
            self.told.clear();
        }
        let next = self.told.len();
        match self.patterns[next].told(line) {
            Some(told) => self.told.push(told),
            None if next == 0 => return false,
            None => {
                self.told.clear();
                match self.patterns[0].told(line) {
                    Some(told) => self.told.push(told),
                    None => return false,
                }
            }
        }
        self.told.len() == self.patterns.len()
    }

    fn finding(&mut self, workspace: &Path) -> Option<Finding> {
        let pick = |field: fn(&Told) -> &Option<String>| {
            self.told.iter().rev().find_map(|told| field(told).clone()).filter(|text| !text.is_empty())
        };
        let level = match pick(|told| &told.severity).map(|word| word.to_ascii_lowercase()) {
            Some(word) if word.starts_with("err") || word.starts_with("fatal") => "error",
            Some(word) if word.starts_with("warn") => "warning",
            Some(word)
                if word.starts_with("info") || word.starts_with("note") || word.starts_with("notice") =>
            {
                "notice"
            }
            _ => self.level,
        };
        let message = pick(|told| &told.message);
        let mut text = String::new();
        if let Some(file) = pick(|told| &told.file) {
            let from = pick(|told| &told.from_path);
            text.push_str(&shown(&file, from.as_deref(), workspace));
            for part in
                [pick(|told| &told.line), pick(|told| &told.column)].into_iter().map_while(|part| part)
            {
                text.push(':');
                text.push_str(&part);
            }
            text.push_str(": ");
        }
        text.push_str(message.as_deref().unwrap_or_default().trim());
        if let Some(code) = pick(|told| &told.code) {
            text.push_str(&format!(" [{code}]"));
        }
        if !self.patterns[self.patterns.len() - 1].repeats {
            self.told.clear();
        }
        message.map(|_| Finding { level, text })
    }
}

impl Pattern {
    fn told(&self, line: &str) -> Option<Told> {
        let captures = self.regex.captures(line)?;
        let get = |group: Option<usize>| text(&captures, group);
        let groups = &self.groups;
        Some(Told {
            file: get(groups.file),
            from_path: get(groups.from_path),
            line: get(groups.line),
            column: get(groups.column),
            severity: get(groups.severity),
            code: get(groups.code),
            message: get(groups.message),
        })
    }
}

fn text(captures: &Captures<'_>, group: Option<usize>) -> Option<String> {
    captures.get(group?).map(|found| found.as_str().to_owned())
}

/// A file as people look for it: relative to the workspace if it lies there.
fn shown(file: &str, from: Option<&str>, workspace: &Path) -> String {
    let file = match from.and_then(|from| Path::new(from).parent()) {
        Some(parent) => parent.join(file),
        None => PathBuf::from(file),
    };
    file.strip_prefix(workspace).unwrap_or(&file).display().to_string()
}

fn read(file: &Path) -> Result<Vec<Matcher>, String> {
    let said = |reason: String| format!("{}: {reason}", file.display());
    // Whatever the path leads to: a pipe must not make the runner wait.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(file)
        .map_err(|error| said(error.to_string()))?;
    let mut json = Vec::new();
    opened.take(MAX_FILE_BYTES + 1).read_to_end(&mut json).map_err(|error| said(error.to_string()))?;
    if json.len() as u64 > MAX_FILE_BYTES {
        return Err(said(format!("it has more than {MAX_FILE_BYTES} bytes")));
    }
    let text: FileText = serde_json::from_slice(json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&json))
        .map_err(|error| said(error.to_string()))?;
    text.problem_matcher.into_iter().map(|matcher| build(matcher).map_err(said)).collect()
}

fn build(text: MatcherText) -> Result<Matcher, String> {
    let MatcherText { owner, severity, pattern } = text;
    if owner.is_empty() || pattern.is_empty() {
        return Err("a problem matcher needs an 'owner' and a 'pattern'".to_owned());
    }
    let level = match severity.as_deref().map(str::to_ascii_lowercase).as_deref() {
        None | Some("error" | "") => "error",
        Some("warning") => "warning",
        Some("notice" | "info") => "notice",
        Some(other) => return Err(format!("the matcher {owner:?}: the severity {other:?} is not known")),
    };
    let count = pattern.len();
    let mut patterns = Vec::with_capacity(count);
    for (at, PatternText { regexp, repeats, groups }) in pattern.into_iter().enumerate() {
        if repeats && (at + 1 < count || count == 1) {
            return Err(format!("the matcher {owner:?}: only the last of several patterns may loop"));
        }
        let regex = expression(&regexp).map_err(|error| {
            // The last line of the parser's words says what is wrong.
            let reason = error.to_string();
            let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            format!("the matcher {owner:?}: the expression {regexp:?} cannot be used: {reason}")
        })?;
        patterns.push(Pattern { regex, groups, repeats });
    }
    Ok(Matcher { owner, level, patterns, told: Vec::new() })
}

/// An expression of JavaScript; what it allows and Rust does not is written in Rust's way.
fn expression(text: &str) -> Result<Regex, regex::Error> {
    let build = |text: &str| RegexBuilder::new(text).size_limit(MAX_EXPRESSION_BYTES).build();
    build(text).or_else(|error| {
        let mut out = String::new();
        let mut class = false;
        let mut characters = text.chars();
        while let Some(c) = characters.next() {
            match c {
                '\\' => {
                    out.push(c);
                    out.extend(characters.next());
                    continue;
                }
                '[' if class => out.push('\\'),
                '[' => class = true,
                ']' => class = false,
                _ => {}
            }
            out.push(c);
        }
        build(&out).map_err(|_| error)
    })
}

/// The line without the codes by which programs colour it.
fn without_colours(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find('\x1b') {
        out.push_str(&rest[..at]);
        let behind = &rest[at + 1..];
        rest = match behind.strip_prefix('[') {
            Some(code) => match code.find(|c: char| ('@'..='~').contains(&c)) {
                Some(end) => &code[end + 1..],
                None => "",
            },
            None => behind,
        };
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matchers(json: &str) -> Matchers {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json).unwrap();
        let mut matchers = Matchers::default();
        matchers.add(file.path()).unwrap();
        matchers
    }

    fn see(matchers: &mut Matchers, lines: &[&str]) -> Vec<String> {
        let found = lines.iter().filter_map(|line| matchers.see(line, Path::new("/ws")));
        found.map(|finding| format!("{} {}", finding.level, finding.text)).collect()
    }

    /// As in the documentation, and as actions/setup-node brings them.
    const ESLINT: &str = r#"{"problemMatcher": [
        {"owner": "eslint-compact", "pattern": [{
            "regexp": "^(.+):\\sline\\s(\\d+),\\scol\\s(\\d+),\\s(Error|Warning|Info)\\s-\\s(.+)\\s\\((.+)\\)$",
            "file": 1, "line": 2, "column": 3, "severity": 4, "message": 5, "code": 6}]},
        {"owner": "eslint-stylish", "pattern": [
            {"regexp": "^([^\\s].*)$", "file": 1},
            {"regexp": "^\\s+(\\d+):(\\d+)\\s+(error|warning|info)\\s+(.*)\\s\\s+(.*)$",
             "line": 1, "column": 2, "severity": 3, "message": 4, "code": 5, "loop": true}]}]}"#;

    #[test]
    fn one_line_and_several_with_a_loop() {
        let mut matchers = matchers(ESLINT);
        let lines = [
            "badFile.js: line 50, col 11, Error - 'myVar' is defined but never used. (no-unused-vars)",
            "test.js",
            "  1:0   error  Missing \"use strict\" statement                 strict",
            "\u{1b}[31m  5:10  warning  'addOne' is defined but never used            no-unused-vars\u{1b}[0m",
            "✖ 2 problems",
            "/ws/foo.js",
            "  36:10  error  Expected parentheses around arrow function argument  arrow-parens",
        ];
        assert_eq!(
            see(&mut matchers, &lines),
            [
                "error badFile.js:50:11: 'myVar' is defined but never used. [no-unused-vars]",
                "error test.js:1:0: Missing \"use strict\" statement [strict]",
                "warning test.js:5:10: 'addOne' is defined but never used [no-unused-vars]",
                "error foo.js:36:10: Expected parentheses around arrow function argument [arrow-parens]",
            ]
        );
        matchers.remove("ESLINT-compact");
        assert_eq!(see(&mut matchers, &lines[..1]), Vec::<String>::new());
    }

    #[test]
    fn a_severity_of_the_matcher_and_classes_as_in_javascript() {
        let mut matchers = matchers(
            r#"{"problemMatcher": [{"owner": "gcc", "severity": "warning", "pattern": [{
                "regexp": "^([^[:]+):(\\d+):(\\d+):\\s+(?:fatal\\s+)?(warning|error):\\s+(.*)$",
                "file": 1, "line": 2, "column": 3, "severity": 4, "message": 5}]},
                {"owner": "go", "severity": "warning", "pattern": [{"regexp": "^\\s*([\\w\\/.]+\\.go):(\\d+): (.*)",
                "file": 1, "line": 2, "message": 3}]}]}"#,
        );
        let lines = ["a.c:1:2: error: no", "sub/x.go:3: unused"];
        assert_eq!(see(&mut matchers, &lines), ["error a.c:1:2: no", "warning sub/x.go:3: unused"]);
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let refused = |json: &str| {
            std::fs::write(file.path(), json).unwrap();
            Matchers::default().add(file.path()).unwrap_err()
        };
        assert!(refused("x").contains("expected value"));
        assert!(refused(r#"{"problemMatcher": [{"owner": "a", "pattern": []}]}"#).contains("'pattern'"));
        let message = refused(
            r#"{"problemMatcher": [{"owner": "a", "pattern": [{"regexp": "(?=x)", "message": 1}]}]}"#,
        );
        assert!(message.contains("look-around"), "{message}");
        let huge =
            refused(r#"{"problemMatcher": [{"owner": "a", "pattern": [{"regexp": "(\\w{1000}){1000}"}]}]}"#);
        assert!(huge.contains("cannot be used"), "{huge}");
        assert!(Matchers::default().add(Path::new("/nowhere")).unwrap_err().starts_with("/nowhere: "));
    }
}

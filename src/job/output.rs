//! What a step prints, read as the runner reads it: rows for the log, and workflow commands that are obeyed.

use std::io;
use std::path::PathBuf;

use super::command::{self, Command};
use super::log::{Log, RowSink};
use super::mask::Masker;
use super::matcher::Matchers;
use super::rows::{RawRow, Splitter};

/// What a step told the runner by commands.
#[derive(Debug, Default)]
pub struct Told {
    /// `set-output`.
    pub outputs: Vec<(String, String)>,
    /// `save-state`.
    pub state: Vec<(String, String)>,
    /// `set-env`, where the workflow allows it.
    pub env: Vec<(String, String)>,
    /// `add-path`, where the workflow allows it.
    pub path: Vec<String>,
    /// A command that was refused: the step fails.
    pub refused: Option<&'static str>,
}

/// Reads the output of the steps of one job.
#[derive(Debug, Default)]
pub struct Interpreter {
    splitter: Splitter,
    rules: Rules,
}

#[derive(Debug, Default)]
struct Rules {
    stopped: Option<String>,
    /// Commands are shown.
    echo: bool,
    /// In force until they are removed, whatever step brought them.
    matchers: Matchers,
    /// What the files of matchers are relative to.
    workspace: PathBuf,
    debug: bool,
    /// `set-env` and `add-path` are obeyed.
    unsecure: bool,
    told: Told,
}

impl Interpreter {
    /// For steps that work in this directory.
    #[must_use]
    pub fn new(workspace: PathBuf) -> Self {
        Self { rules: Rules { workspace, ..Rules::default() }, ..Self::default() }
    }

    /// Begins a step.
    pub fn begin(&mut self, debug: bool, unsecure: bool) {
        self.rules = Rules {
            debug,
            unsecure,
            echo: debug,
            matchers: std::mem::take(&mut self.rules.matchers),
            workspace: std::mem::take(&mut self.rules.workspace),
            ..Rules::default()
        };
    }

    /// Takes output; an empty slice says that nothing more is there for now.
    ///
    /// # Errors
    /// When the log fails.
    pub fn take(&mut self, bytes: &[u8], log: &mut Log<'_>) -> io::Result<()> {
        let (mut rows, masker) = log.parts();
        if bytes.is_empty() {
            return rows.flush();
        }
        let mut result = Ok(());
        let rules = &mut self.rules;
        self.splitter.push(bytes, masker, &mut |row, masker| {
            if result.is_ok() {
                result = rules.row(&row, &mut rows, masker);
            }
        });
        result
    }

    /// Ends a step: what it printed last without a newline is a row too.
    ///
    /// # Errors
    /// When the log fails.
    pub fn end(&mut self, log: &mut Log<'_>) -> io::Result<Told> {
        let (mut rows, masker) = log.parts();
        let mut result = Ok(());
        let rules = &mut self.rules;
        self.splitter.finish(masker, &mut |row, masker| {
            if result.is_ok() {
                result = rules.row(&row, &mut rows, masker);
            }
        });
        result?;
        rows.flush()?;
        Ok(std::mem::take(&mut self.rules.told))
    }
}

/// The rows of a message: what comes before it stands in the first, the others are indented.
fn lines(before: &str, message: &str, rows: &mut RowSink<'_>, masker: &mut Masker) -> io::Result<()> {
    let mut lines = message.lines();
    rows.row(&format!("{before}{}", lines.next().unwrap_or_default()), masker)?;
    lines.try_for_each(|line| rows.row(&format!("  {line}"), masker))
}

fn one_line(text: &str) -> String {
    text.replace(['\r', '\n'], " ")
}

impl Rules {
    fn row(&mut self, row: &RawRow<'_>, rows: &mut RowSink<'_>, masker: &mut Masker) -> io::Result<()> {
        let text = row.text.as_ref();
        let begins = text.trim_ascii_start().as_bytes();
        if !row.whole || !(begins.starts_with(b"::") || begins.starts_with(b"##[")) {
            return self.plain(text, rows, masker);
        }
        if let Some(token) = &self.stopped {
            if command::resumes(text, token) {
                self.stopped = None;
                return Ok(());
            }
            // Gitea's page would read it as a command.
            return rows.row(text, masker);
        }
        let command = command::parse(text);
        let shown = !matches!(
            &command,
            None | Some(
                Command::AddMask(_)
                    | Command::Annotation { .. }
                    | Command::Debug(_)
                    | Command::Group(_)
                    | Command::EndGroup
                    | Command::Wrong(_)
            )
        );
        if shown && self.echo {
            // With a blank, so that nobody takes it for a command again.
            rows.row(&format!(" {}", text.trim_start()), masker)?;
        }
        match command {
            None => self.plain(text, rows, masker),
            Some(Command::Echo(on)) => {
                self.echo = on;
                Ok(())
            }
            Some(Command::Wrong(why)) => rows.row(&format!("##[warning]{why}"), masker),
            Some(Command::AddMatcher(file)) => {
                let done = self.matchers.add(&self.workspace.join(file));
                complain(done, rows, masker)
            }
            Some(Command::RemoveMatcherFile(file)) => {
                let done = self.matchers.remove_file(&self.workspace.join(file));
                complain(done, rows, masker)
            }
            Some(Command::RemoveMatcher(owner)) => {
                self.matchers.remove(&owner);
                Ok(())
            }
            Some(Command::SetOutput { name, value }) => {
                self.told.outputs.push((name, value));
                Ok(())
            }
            Some(Command::SaveState { name, value }) => {
                self.told.state.push((name, value));
                Ok(())
            }
            Some(Command::SetEnv { name, value }) => {
                if self.unsecure {
                    self.told.env.push((name, value));
                } else {
                    self.told.refused = Some("set-env");
                }
                Ok(())
            }
            Some(Command::AddPath(directory)) => {
                if self.unsecure {
                    self.told.path.push(directory);
                } else {
                    self.told.refused = Some("add-path");
                }
                Ok(())
            }
            Some(Command::AddMask(value)) => {
                masker.add(&value);
                Ok(())
            }
            Some(Command::StopCommands(token)) => {
                self.stopped = Some(token);
                Ok(())
            }
            Some(Command::Debug(message)) => {
                if self.debug {
                    lines("##[debug]", &message, rows, masker)
                } else {
                    Ok(())
                }
            }
            Some(Command::Annotation { level, prefix, message }) => {
                lines(&format!("##[{level}]{prefix}"), &message, rows, masker)
            }
            Some(Command::Group(title)) => rows.row(&format!("::group::{}", one_line(&title)), masker),
            Some(Command::EndGroup) => rows.row("::endgroup::", masker),
        }
    }

    /// A row that is no command; matchers may find a problem in it.
    fn plain(&mut self, text: &str, rows: &mut RowSink<'_>, masker: &mut Masker) -> io::Result<()> {
        rows.row(text, masker)?;
        if self.matchers.is_empty() {
            return Ok(());
        }
        match self.matchers.see(text, &self.workspace) {
            Some(finding) => rows.row(&format!("##[{}]{}", finding.level, finding.text), masker),
            None => Ok(()),
        }
    }
}

/// A matcher that cannot be used is no reason for a step to fail.
fn complain(done: Result<(), String>, rows: &mut RowSink<'_>, masker: &mut Masker) -> io::Result<()> {
    match done {
        Ok(()) => Ok(()),
        Err(problem) => rows.row(&format!("##[warning]Problem matcher: {problem}"), masker),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Event, Sink};

    #[derive(Default)]
    struct Rows(Vec<String>);

    impl Sink for Rows {
        fn emit(&mut self, event: &Event) -> io::Result<()> {
            if let Event::Row { text, .. } = event {
                self.0.push(text.clone());
            }
            Ok(())
        }
    }

    fn interpret(output: &str, debug: bool) -> (Vec<String>, Told) {
        let mut rows = Rows::default();
        let mut log = Log::new(&mut rows, Masker::default(), debug);
        let mut interpreter = Interpreter::default();
        interpreter.begin(debug, false);
        interpreter.take(output.as_bytes(), &mut log).unwrap();
        let told = interpreter.end(&mut log).unwrap();
        (rows.0, told)
    }

    #[test]
    fn commands_are_obeyed_and_rows_stay() {
        let (rows, told) = interpret(
            "plain\n::set-output name=a::1\n::add-mask::geheim\nist geheim\n::group::G\nin\n::endgroup::\n\
             ::error file=a.c,line=1::bad thing\n::debug::unseen\nlast",
            false,
        );
        assert_eq!(
            rows,
            ["plain", "ist ***", "::group::G", "in", "::endgroup::", "##[error]a.c:1: bad thing", "last"]
        );
        assert_eq!(told.outputs, [("a".to_owned(), "1".to_owned())]);
        assert_eq!(interpret("::debug::seen\n", true).0, ["##[debug]seen"]);
    }

    #[test]
    fn stopped_commands_are_rows_until_the_token() {
        let (rows, told) = interpret(
            "::stop-commands::tok\n::set-output name=a::1\n::tok::\n::set-output name=b::2\n",
            false,
        );
        assert_eq!(rows, ["::set-output name=a::1"]);
        assert_eq!(told.outputs, [("b".to_owned(), "2".to_owned())]);
    }

    #[test]
    fn commands_are_shown_while_echo_is_on() {
        let (rows, _) = interpret(
            "::echo::on\n::set-output name=a::1\n::add-mask::hush\n::echo::off\n::save-state name=b::2\n",
            false,
        );
        assert_eq!(rows, [" ::set-output name=a::1", " ::echo::off"]);
        assert_eq!(
            interpret("::add-mask::\n", false).0,
            ["##[warning]::add-mask:: takes a value that is not empty"]
        );
    }

    #[test]
    fn problem_matchers_annotate_until_they_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let json = r#"{"problemMatcher": [{"owner": "t", "pattern": [{"regexp": "^(.*):(\\d+): (.*)$", "file": 1, "line": 2, "message": 3}]}]}"#;
        std::fs::write(dir.path().join("m.json"), json).unwrap();
        let mut rows = Rows::default();
        let mut log = Log::new(&mut rows, Masker::default(), false);
        let mut interpreter = Interpreter::new(dir.path().to_owned());
        for output in [
            "::add-matcher::m.json\na.c:1: bad\n",
            "b.c:2: worse\n::remove-matcher owner=t::\nc.c:3: unseen\n::add-matcher::x.json\n",
        ] {
            interpreter.begin(false, false);
            interpreter.take(output.as_bytes(), &mut log).unwrap();
            interpreter.end(&mut log).unwrap();
        }
        assert_eq!(
            rows.0[..5],
            ["a.c:1: bad", "##[error]a.c:1: bad", "b.c:2: worse", "##[error]b.c:2: worse", "c.c:3: unseen"]
        );
        assert!(
            rows.0[5].starts_with("##[warning]Problem matcher: /") && rows.0[5].contains("x.json"),
            "{}",
            rows.0[5]
        );
    }

    #[test]
    fn setting_variables_by_output_is_refused() {
        assert_eq!(interpret("::set-env name=PATH::/evil\n", false).1.refused, Some("set-env"));
        assert_eq!(interpret("::add-path::/evil\n", false).1.refused, Some("add-path"));
    }
}

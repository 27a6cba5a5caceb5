//! One step: its condition, its environment, its script, and what it hands on.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use indexmap::IndexMap;

use crate::diagnose::End;
use crate::events::{Conclusion, Event, Timestamp};
use crate::workflow::{Condition, EvaluationError, Status, Step, StepKind, Template};

use super::environment;
use super::executor::{Executor, minutes, named, plain};
use super::process::{self, Ended, Program};
use super::scope::{Frame, StepResult};
use super::shell::Shell;
use super::tree;

/// What a process of a step handed over, by files and by commands.
#[derive(Debug, Default)]
pub(super) struct Handed {
    /// How it ended.
    pub(super) conclusion: Option<Conclusion>,
    /// Its outputs.
    pub(super) outputs: IndexMap<String, String>,
    /// Its state, for the later phases of its action.
    pub(super) state: Vec<(String, String)>,
}

/// What to start for a step, put together.
pub(super) struct Task<'t> {
    /// The program.
    pub(super) file: &'t Path,
    /// Its arguments.
    pub(super) arguments: &'t [OsString],
    /// Its environment.
    pub(super) environment: &'t [(String, String)],
    /// Where it starts.
    pub(super) directory: &'t Path,
    /// When its time is up.
    pub(super) deadline: Option<Instant>,
    /// The step of the job to which a summary belongs.
    pub(super) index: Option<usize>,
}

/// Why a step could not be run: the job's own fault, said in its log, or the sink's.
#[derive(Debug)]
pub(super) enum Problem {
    /// The step fails with this message.
    Step(String),
    /// The job cannot go on.
    Sink(io::Error),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Sink(error)
    }
}

impl Executor<'_> {
    /// Runs one step. With an index it is a step of the job, whose beginning is an event; without, it is a step
    /// inside an action.
    pub(super) fn step(
        &mut self,
        step: &Step,
        frame: &mut Frame,
        index: Option<usize>,
    ) -> io::Result<StepResult> {
        let started = |executor: &mut Self| match index {
            Some(step) => {
                executor.log.emit(&Event::StepStarted { time: Timestamp::now(), step })?;
                executor.log.flush()
            }
            None => Ok(()),
        };
        let env = match self.wants_to_run(step, frame) {
            Ok(Some(env)) => env,
            Ok(None) => return Ok(plain(Conclusion::Skipped)),
            Err(error) => {
                started(self)?;
                let message = self.at(&error);
                self.log.error(&message)?;
                return Ok(plain(Conclusion::Failure));
            }
        };
        started(self)?;
        let done = match &step.kind {
            StepKind::Run { script, shell, working_directory } => self.run_script(
                step,
                frame,
                &env,
                [Some(script), shell.as_ref(), working_directory.as_ref()],
                index,
            ),
            StepKind::Uses { action, with } => {
                self.use_action(step, frame, &env, action, with, index.or(frame.index))
            }
        };
        let handed = match done {
            Ok(handed) => handed,
            Err(Problem::Sink(error)) => return Err(error),
            Err(Problem::Step(message)) => {
                self.log.error(&message)?;
                Handed { conclusion: Some(Conclusion::Failure), ..Handed::default() }
            }
        };
        let outcome = handed.conclusion.unwrap_or(Conclusion::Success);
        let forgiven = outcome == Conclusion::Failure && self.forgives(step, frame, &env)?;
        let conclusion = if forgiven { Conclusion::Success } else { outcome };
        Ok(StepResult { outcome, conclusion, outputs: handed.outputs })
    }

    /// The step's variables if its condition holds.
    fn wants_to_run(
        &self,
        step: &Step,
        frame: &Frame,
    ) -> Result<Option<Vec<(String, String)>>, EvaluationError> {
        let default = Condition::success();
        let condition = step.condition.as_ref().unwrap_or(&default);
        // A step that is not to run need not have variables that can be evaluated, but its condition may name them.
        let env = step.env.render(&self.view(frame, &[&self.env, &frame.env]));
        let own = env.as_deref().unwrap_or_default();
        if !condition.holds(&self.view(frame, &[&self.env, &frame.env, own]))? {
            return Ok(None);
        }
        env.map(Some)
    }

    fn forgives(&mut self, step: &Step, frame: &Frame, env: &[(String, String)]) -> io::Result<bool> {
        let Some(template) = &step.continue_on_error else { return Ok(false) };
        match template.value(&self.view(frame, &[&self.env, &frame.env, env])) {
            Ok(value) => Ok(value.is_truthy() && value.to_text() != "false"),
            Err(error) => {
                let message = self.at(&error);
                self.log.error(&message)?;
                Ok(false)
            }
        }
    }

    /// When the step has to be over: its own limit, the job's, or that of the clean-up.
    pub(super) fn step_deadline(
        &self,
        step: &Step,
        frame: &Frame,
        env: &[(String, String)],
    ) -> Result<Option<Instant>, Problem> {
        let own = match &step.timeout_minutes {
            None => None,
            Some(template) => {
                let value = template.value(&self.view(frame, &[&self.env, &frame.env, env]));
                minutes(&value.map_err(|error| Problem::Step(self.at(&error)))?)
            }
        };
        let job = self.cleanup_deadline.or(self.deadline);
        Ok([own.map(|limit| Instant::now() + limit), frame.deadline, job].into_iter().flatten().min())
    }

    /// Renders a text of a step.
    pub(super) fn render(
        &self,
        template: &Template,
        frame: &Frame,
        env: &[(String, String)],
    ) -> Result<String, Problem> {
        template
            .render(&self.view(frame, &[&self.env, &frame.env, env]))
            .map_err(|error| Problem::Step(self.at(&error)))
    }

    /// The path on which a step finds programs.
    pub(super) fn search_path(&self, layers: &[&[(String, String)]]) -> String {
        let set = layers.iter().rev().copied().flatten().rev().find(|(name, _)| name == "PATH");
        let base = set.map_or(self.base["PATH"].as_str(), |(_, value)| value.as_str());
        let own = self.spec.places.scratch.join("bin");
        let mut parts: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let own = own.to_string_lossy();
        // Behind the directories that steps add, before the host's.
        parts.push(&own);
        parts.push(base);
        parts.join(":")
    }

    /// The whole environment of a process of a step.
    pub(super) fn environment(&self, frame: &Frame, env: &[(String, String)]) -> IndexMap<String, String> {
        let mut all = self.base.clone();
        let layers: [&[(String, String)]; 3] = [&self.env, &frame.env, env];
        for (name, value) in layers.into_iter().flatten() {
            all.insert(name.clone(), value.clone());
        }
        all.extend(self.runner_env.iter().map(|(name, value)| (name.clone(), value.clone())));
        all.insert("GITHUB_ACTION".to_owned(), frame.step_name.clone());
        if let Some(action) = &frame.action {
            environment::action(&mut all, action);
        }
        all.extend(self.files.variables().map(|(name, path)| (name, path.to_string_lossy().into_owned())));
        all.insert("PATH".to_owned(), self.search_path(&layers));
        self.memory.extend(&mut all);
        all
    }

    fn run_script(
        &mut self,
        step: &Step,
        frame: &Frame,
        env: &[(String, String)],
        [script, shell, working_directory]: [Option<&Template>; 3],
        index: Option<usize>,
    ) -> Result<Handed, Problem> {
        let defaults = [&self.job.defaults, &self.workflow.defaults];
        let in_job = frame.action.is_none();
        let default = |own: Option<&Template>, pick: fn(&crate::workflow::Defaults) -> Option<&Template>| {
            own.cloned()
                .or_else(|| in_job.then(|| defaults.iter().find_map(|level| pick(level))).flatten().cloned())
        };
        let shell = default(shell, |level| level.shell.as_ref());
        let working_directory = default(working_directory, |level| level.working_directory.as_ref());
        let script =
            script.map(|template| self.render(template, frame, env)).transpose()?.unwrap_or_default();
        let shell = shell.map(|template| self.render(&template, frame, env)).transpose()?;
        let working_directory =
            working_directory.map(|template| self.render(&template, frame, env)).transpose()?;
        let deadline = self.step_deadline(step, frame, env)?;

        let environment: Vec<(String, String)> = self.environment(frame, env).into_iter().collect();
        let path = environment.iter().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value);
        let (shell, program) =
            Shell::resolve(shell.as_deref(), path).map_err(|error| Problem::Step(error.to_string()))?;
        let directory = self.directory(working_directory.as_deref())?;

        let file = self.script_file(&shell, &script)?;
        self.announce(&script, &shell, env)?;
        let arguments = shell.arguments(&file);
        let task = Task {
            file: &program,
            arguments: &arguments,
            environment: &environment,
            directory: &directory,
            deadline,
            index: index.or(frame.index),
        };
        self.execute(&task)
    }

    /// Where a step starts.
    fn directory(&self, asked: Option<&str>) -> Result<PathBuf, Problem> {
        let directory = match asked.filter(|asked| !asked.is_empty()) {
            Some(asked) => self.spec.places.workspace.join(asked),
            None => self.spec.places.workspace.clone(),
        };
        match process::check_directory(&directory) {
            Ok(()) => Ok(directory),
            Err(error) => Err(Problem::Step(format!(
                "The working directory {} cannot be used: {error}",
                directory.display()
            ))),
        }
    }

    /// Writes the script of a step, into the file of the last one where nobody can read that any more: each new file costs a
    /// file system as much as a short step.
    fn script_file(&mut self, shell: &Shell, script: &str) -> Result<PathBuf, Problem> {
        if !tree::has_no_children() {
            self.scripts += 1;
        }
        let file = self.spec.places.scratch.join(format!("{}{}", self.scripts, shell.extension));
        match shell.write_script(&file, script) {
            Ok(()) => Ok(file),
            Err(error) => {
                Err(Problem::Step(format!("Cannot write the step's script: {}", named(&file, &error))))
            }
        }
    }

    /// Shows what is about to run, folded.
    fn announce(&mut self, script: &str, shell: &Shell, env: &[(String, String)]) -> io::Result<()> {
        let log = &mut self.log;
        log.text(&format!("::group::Run {}", script.trim().lines().next().unwrap_or_default()))?;
        for line in script.trim_end().lines() {
            // The colour keeps a line of the script from being read as a command.
            log.text(&format!("\x1b[36;1m{line}\x1b[0m"))?;
        }
        log.text(&format!("shell: {}", shell.display()))?;
        if !env.is_empty() {
            log.text("env:")?;
            for (name, value) in env {
                log.text(&format!("  {name}: {}", value.replace('\n', "\n  ")))?;
            }
        }
        log.text("::endgroup::")
    }

    /// Starts a process of a step, reads what it prints, and takes what it hands over.
    pub(super) fn execute(&mut self, task: &Task<'_>) -> Result<Handed, Problem> {
        self.files
            .reset()
            .map_err(|error| Problem::Step(format!("Cannot prepare the environment files: {error}")))?;
        let unsecure = task.environment.iter().any(|(name, value)| {
            name == "ACTIONS_ALLOW_UNSECURE_COMMANDS" && value.eq_ignore_ascii_case("true")
        });
        self.tell_ghcrts(task.environment)?;
        self.interpreter.begin(self.log.debug, unsecure);
        self.log.tail.clear();
        self.log.flush()?;
        let program = Program {
            file: task.file,
            arguments: task.arguments,
            environment: task.environment,
            directory: task.directory,
        };
        let control = self.cleanup_deadline.is_none().then_some(self.control);
        let Self { interpreter, log, output, members, grace, .. } = self;
        let mut broken = None;
        let ended = output.run(&program, task.deadline, control, *grace, members, &mut |bytes| {
            interpreter.take(bytes, log).inspect_err(|error| {
                broken = Some(io::Error::new(error.kind(), error.to_string()));
            })
        });
        let told = self.interpreter.end(&mut self.log)?;
        let ended = match (ended, broken) {
            (_, Some(error)) => return Err(Problem::Sink(error)),
            (Ok(ended), None) => ended,
            (Err(error), None) => {
                return Err(Problem::Step(format!("Cannot start {}: {error}", task.file.display())));
            }
        };
        let mut handed = self.collect(task.index)?;
        for (name, value) in told.outputs {
            handed.outputs.insert(name, value);
        }
        handed.state.extend(told.state);
        self.set_env(told.env);
        for directory in told.path {
            self.path.insert(0, directory);
        }
        let mut conclusion = self.judge(ended)?;
        if let Some(command) = told.refused {
            self.log.error(&format!(
                "The command ::{command}:: is refused, since any output could give it: write to GITHUB_ENV or \
                 GITHUB_PATH, or set ACTIONS_ALLOW_UNSECURE_COMMANDS to true"
            ))?;
            conclusion = Conclusion::Failure;
        }
        // An unreadable file has made the step fail already.
        handed.conclusion = Some(if handed.conclusion.is_some() { Conclusion::Failure } else { conclusion });
        Ok(handed)
    }

    /// Takes over the environment files. Each that cannot be read fails the step and is said; the others count.
    fn collect(&mut self, index: Option<usize>) -> io::Result<Handed> {
        let mut handed = Handed::default();
        let mut problems = Vec::new();
        match self.files.env() {
            Ok(pairs) => {
                let (refused, accepted): (Vec<_>, Vec<_>) =
                    pairs.into_iter().partition(|(name, value)| environment::refuses(name, value).is_some());
                problems.extend(refused.iter().filter_map(|(name, value)| environment::refuses(name, value)));
                self.set_env(accepted);
            }
            Err(error) => problems.push(error.to_string()),
        }
        match self.files.outputs() {
            Ok(pairs) => handed.outputs.extend(pairs),
            Err(error) => problems.push(error.to_string()),
        }
        match self.files.state() {
            Ok(pairs) => handed.state = pairs,
            Err(error) => problems.push(error.to_string()),
        }
        match self.files.path() {
            Ok(directories) => directories.into_iter().for_each(|directory| self.path.insert(0, directory)),
            Err(error) => problems.push(error.to_string()),
        }
        match (self.files.summary(), index) {
            (Ok(summary), Some(step)) if !summary.is_empty() => {
                let markdown = self.log.masker.mask(&summary);
                self.last_summary = Some((step, markdown.clone()));
                self.log.emit(&Event::Summary { step, markdown })?;
            }
            (Ok(_), _) => {}
            // A summary is for reading; a step does not fail for it.
            (Err(error), _) => self.log.warning(&error.to_string())?,
        }
        for problem in &problems {
            self.log.error(problem)?;
            handed.conclusion = Some(Conclusion::Failure);
        }
        Ok(handed)
    }

    /// Says how the process ended and what that makes of the step.
    fn judge(&mut self, ended: Ended) -> io::Result<Conclusion> {
        Ok(match ended {
            Ended::Exit(0) => Conclusion::Success,
            Ended::Exit(code) => {
                self.log.error(&format!("Process completed with exit code {code}."))?;
                self.say_cause(End::Exit(code))?;
                Conclusion::Failure
            }
            Ended::Signal(signal) => {
                self.log.error(&format!("Process was killed by {}.", process::signal_name(signal)))?;
                self.say_cause(End::Signal(signal))?;
                Conclusion::Failure
            }
            Ended::TimedOut => {
                self.members.end(self.output.started(), self.grace.terminate);
                self.log.error("The time limit was reached; the step was stopped.")?;
                Conclusion::Failure
            }
            Ended::Cancelled => {
                self.members.end(self.output.started(), self.grace.terminate);
                self.notice_cancel()?;
                if self.status == Status::Cancelled { Conclusion::Cancelled } else { Conclusion::Failure }
            }
        })
    }
}

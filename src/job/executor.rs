//! A job from its first event to its last.
//!
//! Reads the specification, finds out what is wrong with it before anything runs, runs the steps, and always ends the
//! stream with how the job ended. It has never heard of Gitea.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use indexmap::IndexMap;

use crate::events::{Conclusion, Event, Sink, StepInfo, Timestamp};
use crate::workflow::{
    Condition, EvaluationError, Job, Object, Scope, Status, Step, StepKind, Template, Value, Workflow,
    parse_workflow, snippet,
};
use crate::yaml::Node;

use super::call;
use super::environment;
use super::files::EnvironmentFiles;
use super::host::{self, Host};
use super::log::Log;
use super::mask::Masker;
use super::memory::Memory;
use super::output::Interpreter;
use super::phases::{Post, Prepared};
use super::process::{Control, Grace, Output};
use super::remove;
use super::scope::{Fixed, Frame, JobView, StepResult, View, needs_status, object};
use super::spec::JobSpec;
use super::tree::Members;

/// How long what a job leaves running is given between SIGTERM and SIGKILL.
const LEFTOVER_GRACE: Duration = Duration::from_millis(500);

/// Runs the job of a specification. Its events go to `sink`; the last one tells what is returned.
///
/// # Errors
/// When the sink fails, or the job's own directories cannot be made: then the stream has no end.
pub fn run(
    spec: &JobSpec,
    sink: &mut dyn Sink,
    control: &Control,
    members: Members,
) -> io::Result<Conclusion> {
    let secrets = spec.secrets.values().chain(&spec.masks).map(String::as_str);
    let debug = spec.secrets.get("ACTIONS_STEP_DEBUG").or_else(|| spec.vars.get("ACTIONS_STEP_DEBUG"));
    let debug = debug.is_some_and(|value| value == "true");
    let mut log = Log::new(sink, Masker::new(secrets), debug);
    let planned = plan(spec);
    let steps = planned.as_ref().map(|plan| plan.step_infos(spec)).unwrap_or_default();
    log.emit(&Event::JobStarted { time: Timestamp::now(), version: crate::VERSION.to_owned(), steps })?;
    head(spec, &mut log)?;
    let conclusion = match planned {
        Err(problem) => {
            log.error(&problem)?;
            Conclusion::Failure
        }
        Ok(plan) if plan.job().uses.is_some() => call::run(spec, &plan, log, control, members)?,
        Ok(plan) => Executor::new(spec, &plan, log, control, members)?.run()?,
    };
    let mut log = Log::new(sink, Masker::default(), debug);
    log.text(match conclusion {
        Conclusion::Success => "Job succeeded",
        Conclusion::Failure => "Job failed",
        Conclusion::Cancelled => "Job was cancelled",
        Conclusion::Skipped => "Job was skipped: its `if` does not hold",
    })?;
    log.emit(&Event::JobEnded { time: Timestamp::now(), conclusion })?;
    log.flush()?;
    Ok(conclusion)
}

/// The first rows: who runs what, where, and under which limits.
fn head(spec: &JobSpec, log: &mut Log<'_>) -> io::Result<()> {
    if spec.nested {
        return Ok(());
    }
    let host = Host::this();
    log.text(&format!("sower {} on {}", crate::VERSION, host.line()))?;
    for row in &spec.head {
        log.text(row)?;
    }
    let memory = match host.memory_limit {
        Some(limit) => format!("memory {} (control group)", host::gibibytes(limit)),
        None => "memory not limited".to_owned(),
    };
    log.text(&format!("Limits: time {} min, {memory}", spec.timeout_seconds / 60))?;
    log.flush()
}

/// What is to be run, found to be runnable.
pub(super) struct Plan {
    pub(super) workflow: Workflow,
    job: usize,
    matrix: Object,
}

impl Plan {
    pub(super) fn job(&self) -> &Job {
        &self.workflow.jobs[self.job]
    }

    fn step_infos(&self, spec: &JobSpec) -> Vec<StepInfo> {
        let fixed = self.fixed(spec, false);
        let frame = Frame::of_job(&spec.inputs);
        let view = View { fixed: &fixed, frame: &frame, env: &[], status: Status::Success };
        let mut masker = Masker::new(spec.secrets.values().chain(&spec.masks).map(String::as_str));
        let info = |(index, step): (usize, &Step)| StepInfo {
            id: step_id(step, index),
            name: masker.mask(&step_name(step, &view)),
        };
        self.job().steps.iter().enumerate().map(info).collect()
    }

    /// The labels that the job asks for, as far as they can be computed here.
    fn labels(&self, fixed: &Fixed, spec: &JobSpec) -> Vec<String> {
        let frame = Frame::of_job(&spec.inputs);
        let view = View { fixed, frame: &frame, env: &[], status: Status::Success };
        self.job().runs_on.labels(&view).unwrap_or_default()
    }

    pub(super) fn fixed(&self, spec: &JobSpec, debug: bool) -> Fixed {
        if let Some(strategy) = &spec.strategy {
            return Fixed::new(spec, &self.job().id, self.matrix.clone(), object(strategy), debug);
        }
        let id = &self.job().id;
        let bare = Fixed::new(spec, id, self.matrix.clone(), Object::new(), debug);
        let frame = Frame::of_job(&spec.inputs);
        let view = View { fixed: &bare, frame: &frame, env: &[], status: Status::Success };
        // The server has looked at it already.
        let strategy = self.job().strategy_values(&view, 0, 1).unwrap_or_default();
        Fixed::new(spec, id, self.matrix.clone(), object(&strategy), debug)
    }
}

/// The id by which `steps.<id>` finds a step.
pub(super) fn step_id(step: &Step, index: usize) -> String {
    step.id.clone().unwrap_or_else(|| index.to_string())
}

/// The names by which `github.action` tells steps apart: the id, or what the step does, numbered when it comes again.
pub(super) fn step_names(steps: &[Step]) -> Vec<String> {
    let mut seen: IndexMap<String, usize> = IndexMap::new();
    let name = |step: &Step| {
        if let Some(id) = &step.id {
            return id.clone();
        }
        let name = match &step.kind {
            StepKind::Run { .. } => "__run".to_owned(),
            StepKind::Uses { action, .. } if action.source().starts_with("./") => "__self".to_owned(),
            StepKind::Uses { action, .. } => {
                let name = action.source().rsplit_once('@').map_or(action.source(), |(name, _)| name);
                let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
                format!("__{}", name.chars().map(plain).collect::<String>())
            }
        };
        let count = seen.entry(name.clone()).or_default();
        *count += 1;
        if *count == 1 { name } else { format!("{name}_{count}") }
    };
    steps.iter().map(name).collect()
}

/// The name that people see.
fn step_name(step: &Step, scope: &dyn Scope) -> String {
    if let Some(name) = &step.name {
        return name.render(scope).unwrap_or_else(|_| name.source().to_owned());
    }
    match &step.kind {
        StepKind::Run { script, .. } => {
            format!("Run {}", script.source().trim().lines().next().unwrap_or_default())
        }
        StepKind::Uses { action, .. } => format!("Run {}", action.source()),
    }
}

/// Parses the workflow and picks the job.
fn plan(spec: &JobSpec) -> Result<Plan, String> {
    let (workflow, _) =
        parse_workflow(spec.workflow.as_bytes(), &spec.workflow_file).map_err(|problems| {
            let mut text = String::from("The workflow cannot be run:");
            for problem in problems.iter().take(20) {
                text.push_str(&format!("\n{problem}\n{}", snippet(problem, &spec.workflow)));
            }
            text
        })?;
    let job = match &spec.job {
        Some(id) => workflow
            .jobs
            .get_index_of(id)
            .ok_or_else(|| format!("{}: there is no job {id:?}", spec.workflow_file))?,
        None if workflow.jobs.len() == 1 => 0,
        None => {
            let count = workflow.jobs.len();
            return Err(format!("{}: expected exactly one job, found {count}", spec.workflow_file));
        }
    };
    let matrix = match &spec.matrix {
        Some(matrix) => object(matrix),
        None => sole_combination(&workflow.jobs[job], spec)?,
    };
    let plan = Plan { workflow, job, matrix };
    let job = plan.job();
    let fixed = plan.fixed(spec, false);
    let frame = Frame::of_job(&spec.inputs);
    let view = View { fixed: &fixed, frame: &frame, env: &[], status: Status::Success };
    let engine = "this runner runs jobs on the host and has no container engine; remove it, or give the job a label of \
                  a runner that has one";
    if let Some(container) = job.container.as_ref().filter(|node| has_image(node, &view)) {
        return Err(format!(
            "{}:{}: job {:?} asks for a container, but {engine}",
            spec.workflow_file, container.place, job.id
        ));
    }
    let services = |node: &&Node| match node.as_mapping() {
        Some(services) => services.iter().any(|(_, service)| has_image(service, &view)),
        None => has_image(node, &view),
    };
    if let Some(services) = job.services.as_ref().filter(services) {
        return Err(format!(
            "{}:{}: job {:?} asks for services, but {engine}",
            spec.workflow_file, services.place, job.id
        ));
    }
    Ok(plan)
}

/// Whether a container is asked for: an image that is computed and comes out empty means none.
fn has_image(node: &Node, scope: &dyn Scope) -> bool {
    let image = if node.as_mapping().is_some() { node.get("image") } else { Some(node) };
    let Some(image) = image else { return true };
    match Template::from_node(image).and_then(|template| template.value(scope)) {
        Ok(value) => !value.is_primitive() || !value.text().trim().is_empty(),
        Err(_) => true,
    }
}

/// The one combination of a matrix that the server has expanded.
fn sole_combination(job: &Job, spec: &JobSpec) -> Result<Object, String> {
    let Some(matrix) = job.strategy.as_ref().and_then(|strategy| strategy.matrix.as_ref()) else {
        return Ok(Object::new());
    };
    let fixed = Fixed::new(spec, &job.id, Object::new(), Object::new(), false);
    let frame = Frame::of_job(&spec.inputs);
    let view = View { fixed: &fixed, frame: &frame, env: &[], status: Status::Success };
    let mut combinations =
        matrix.combinations(&view).map_err(|error| format!("{}:{error}", spec.workflow_file))?;
    match combinations.len() {
        0 => Ok(Object::new()),
        1 => Ok(combinations.remove(0)),
        count => {
            Err(format!("{}: expected one combination of the matrix, found {count}", spec.workflow_file))
        }
    }
}

/// A job that is running.
pub(super) struct Executor<'a> {
    pub(super) spec: &'a JobSpec,
    pub(super) job: &'a Job,
    pub(super) workflow: &'a Workflow,
    pub(super) log: Log<'a>,
    pub(super) fixed: Fixed,
    pub(super) files: EnvironmentFiles,
    pub(super) interpreter: Interpreter,
    pub(super) output: Output,
    pub(super) control: &'a Control,
    pub(super) members: Members,
    pub(super) grace: Grace,
    /// The clean base of every step's environment.
    pub(super) base: IndexMap<String, String>,
    /// What the runner says and nobody can change.
    pub(super) runner_env: IndexMap<String, String>,
    /// The variables of the workflow, of the job, and of `GITHUB_ENV`.
    pub(super) env: Vec<(String, String)>,
    /// Directories of `GITHUB_PATH`, the latest first.
    pub(super) path: Vec<String>,
    pub(super) status: Status,
    /// When the job's time is up.
    pub(super) deadline: Option<Instant>,
    /// Set once the job is cancelled or its time is up: what runs from then on has this long.
    pub(super) cleanup_deadline: Option<Instant>,
    /// What actions have to do when all steps are over, in the order in which they ran.
    pub(super) posts: Vec<Post>,
    /// What the actions of the steps did before the first step.
    pub(super) prepared: Prepared,
    /// Numbers the scripts.
    pub(super) scripts: usize,
    /// What a step wrote to its summary last.
    pub(super) last_summary: Option<(usize, String)>,
    /// Limits and what is measured.
    pub(super) memory: Memory,
}

impl<'a> Executor<'a> {
    fn new(
        spec: &'a JobSpec,
        plan: &'a Plan,
        mut log: Log<'a>,
        control: &'a Control,
        members: Members,
    ) -> io::Result<Self> {
        let scratch = &spec.places.scratch;
        for directory in [&spec.places.workspace, &scratch.join("temp"), &scratch.join("bin")] {
            fs::create_dir_all(directory).map_err(|error| named(directory, &error))?;
        }
        // Steps expect it to be there; one that needs no tools does not fail for it.
        let _ = fs::create_dir_all(&spec.places.tool_cache);
        let event = spec.github.get("event").cloned().unwrap_or_else(|| serde_json::json!({}));
        let event_path = scratch.join("event.json");
        fs::write(&event_path, event.to_string()).map_err(|error| named(&event_path, &error))?;
        // Steps call this very program, whatever else is on the path.
        let link = scratch.join("bin/sower");
        match std::os::unix::fs::symlink(host::this_program()?, &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(named(&link, &error)),
            _ => {}
        }
        let fixed = plan.fixed(spec, log.debug);
        let runner_env = environment::runner(spec, &fixed, members.mark(), log.debug);
        let base = environment::base(spec);
        let mut output = Output::open()?;
        let mut path = Vec::new();
        let labels = plan.labels(&fixed, spec);
        let memory = Memory::begin(
            spec,
            &labels,
            &members,
            control,
            (&base["PATH"], &mut path),
            &mut output,
            &mut log,
        )?;
        Ok(Self {
            spec,
            job: plan.job(),
            workflow: &plan.workflow,
            fixed,
            files: EnvironmentFiles::create(&scratch.join("files"))?,
            interpreter: Interpreter::new(spec.places.workspace.clone()),
            output,
            control,
            members,
            grace: spec.patience.into(),
            base,
            runner_env,
            env: environment::shown(spec),
            path,
            status: Status::Success,
            deadline: Some(Instant::now() + Duration::from_secs(spec.timeout_seconds)),
            cleanup_deadline: None,
            posts: Vec::new(),
            prepared: Prepared::default(),
            scripts: 0,
            last_summary: None,
            memory,
            log,
        })
    }

    fn run(mut self) -> io::Result<Conclusion> {
        let ran = self.run_all();
        // Also when the log cannot be written any more: nothing may be left behind.
        let cleaned = self.clean_up();
        self.memory.end();
        let conclusion = ran?;
        cleaned.map(|()| conclusion)
    }

    fn run_all(&mut self) -> io::Result<Conclusion> {
        let mut frame = Frame::of_job(&self.spec.inputs);
        match self.prepare(&frame) {
            Ok(true) => {
                if self.hook_started()? {
                    self.run_pres(&frame)?;
                    self.steps(&mut frame)?;
                    self.run_posts()?;
                    self.tell_memory()?;
                    self.outputs(&frame)?;
                } else {
                    self.status = Status::Failure;
                    self.skip_all()?;
                }
                self.hook_completed()?;
                if self.status == Status::Success {
                    self.keep_results()?;
                }
                Ok(match self.status {
                    Status::Success => Conclusion::Success,
                    Status::Failure => Conclusion::Failure,
                    Status::Cancelled => Conclusion::Cancelled,
                    Status::Skipped => Conclusion::Skipped,
                })
            }
            Ok(false) => {
                self.skip_all()?;
                Ok(Conclusion::Skipped)
            }
            Err(error) => {
                let message = self.at(&error);
                self.log.error(&message)?;
                self.skip_all()?;
                Ok(Conclusion::Failure)
            }
        }
    }

    /// Says an error with the file and the place.
    pub(super) fn at(&self, error: &EvaluationError) -> String {
        format!("{}:{error}", self.spec.workflow_file)
    }

    /// Evaluates what holds for the whole job; whether the job is to run.
    fn prepare(&mut self, frame: &Frame) -> Result<bool, EvaluationError> {
        let env = self.workflow.env.render(&self.view(frame, &[]))?;
        self.set_env(env);
        let env = self.job.env.render(&self.view(frame, &[]))?;
        self.set_env(env);
        let needs = needs_status(self.spec.needs.values());
        let success = Condition::success();
        let condition = self.job.condition.as_ref().unwrap_or(&success);
        if !condition.holds(&JobView { view: self.view(frame, &[]), needs })? {
            return Ok(false);
        }
        if let Some(template) = &self.job.timeout_minutes
            && let Some(limit) = minutes(&template.value(&self.view(frame, &[]))?)
        {
            self.deadline = Some(Instant::now() + limit.min(Duration::from_secs(self.spec.timeout_seconds)));
        }
        Ok(true)
    }

    /// What expressions see now.
    pub(super) fn view<'v>(&'v self, frame: &'v Frame, env: &'v [&'v [(String, String)]]) -> View<'v> {
        View { fixed: &self.fixed, frame, env, status: self.status }
    }

    /// Sets variables for this and later steps; the last value counts.
    pub(super) fn set_env(&mut self, env: Vec<(String, String)>) {
        for (name, value) in env {
            match self.env.iter_mut().find(|(known, _)| *known == name) {
                Some((_, old)) => *old = value,
                None => self.env.push((name, value)),
            }
        }
    }

    /// Runs the job's steps, each of which is an event of its own.
    fn steps(&mut self, frame: &mut Frame) -> io::Result<()> {
        let job = self.job;
        for ((index, step), name) in job.steps.iter().enumerate().zip(step_names(&job.steps)) {
            self.notice_cancel()?;
            let id = step_id(step, index);
            self.memory.step_begins(&step_name(step, &self.view(frame, &[])));
            frame.begin(index, &name);
            let result = self.step(step, frame, Some(index))?;
            self.step_memory(index, result.conclusion)?;
            self.count(result.conclusion);
            frame.ended(&id, &result);
            self.log.emit(&Event::StepEnded {
                time: Timestamp::now(),
                step: index,
                outcome: result.outcome,
                conclusion: result.conclusion,
            })?;
            self.log.flush()?;
        }
        self.notice_cancel()
    }

    /// A step that failed makes the job fail, unless the job is cancelled already.
    fn count(&mut self, conclusion: Conclusion) {
        if conclusion == Conclusion::Failure && self.status == Status::Success {
            self.status = Status::Failure;
        }
    }

    /// Notices a cancel, and a job whose time is up, between steps.
    pub(super) fn notice_cancel(&mut self) -> io::Result<()> {
        if self.cleanup_deadline.is_some() {
            return Ok(());
        }
        if self.control.is_cancelled() {
            self.cleanup_deadline = Some(Instant::now() + self.cleanup_time());
            if self.control.is_told_to_end() {
                self.status = Status::Failure;
                self.log.error(
                    "The process of this job was told to end (SIGTERM), as it is when the host shuts down.",
                )?;
            } else {
                self.status = Status::Cancelled;
                self.log.error("The job was cancelled.")?;
            }
        } else if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            self.status = Status::Failure;
            self.cleanup_deadline = Some(Instant::now() + self.cleanup_time());
            self.log.error("The job ran longer than its time limit and was stopped.")?;
        }
        Ok(())
    }

    fn cleanup_time(&self) -> Duration {
        Duration::from_secs(self.spec.patience.cleanup_seconds)
    }

    fn skip_all(&mut self) -> io::Result<()> {
        for step in 0..self.job.steps.len() {
            self.log.emit(&Event::StepEnded {
                time: Timestamp::now(),
                step,
                outcome: Conclusion::Skipped,
                conclusion: Conclusion::Skipped,
            })?;
        }
        Ok(())
    }

    /// Evaluates the job's outputs. One that holds a secret is left out, as it would be on GitHub.
    fn outputs(&mut self, frame: &Frame) -> io::Result<()> {
        let job = self.job;
        for (name, template) in &job.outputs {
            match template.render(&self.view(frame, &[&self.env])) {
                Ok(mut value) => {
                    if self.log.masker.mask_in_place(&mut value) {
                        self.log.warning(&format!("Output {name:?} holds a secret and is left out"))?;
                    } else {
                        self.log.emit(&Event::Output { name: name.clone(), value })?;
                    }
                }
                Err(error) => {
                    let message = self.at(&error);
                    self.log.error(&message)?;
                    self.status = Status::Failure;
                }
            }
        }
        Ok(())
    }

    /// Leaves nothing behind: no process and no file.
    fn clean_up(&mut self) -> io::Result<()> {
        self.members.end_all(LEFTOVER_GRACE);
        let Self { output, interpreter, log, .. } = self;
        let drained = output.drain_rest(&mut |bytes| interpreter.take(bytes, log));
        let drained = drained.and_then(|()| interpreter.end(log).map(drop));
        let places = &self.spec.places;
        let workspace = places.remove_workspace.then_some(&places.workspace);
        let mut problems = Vec::new();
        // Also when the log cannot be written: then the disk is full, perhaps of this.
        for directory in [Some(&places.scratch), workspace].into_iter().flatten() {
            if let Err(error) = remove::tree(directory) {
                problems.push(format!("Cannot remove {}: {error}", directory.display()));
            }
        }
        drained?;
        problems.iter().try_for_each(|problem| self.log.warning(problem))
    }
}

/// A time limit in minutes, fractions allowed; `None` for nothing, zero or what is no number.
pub(super) fn minutes(value: &Value) -> Option<Duration> {
    let minutes = match value {
        Value::Number(minutes) => *minutes,
        other => other.to_text().trim().parse().ok()?,
    };
    Duration::try_from_secs_f64(minutes * 60.0).ok().filter(|limit| !limit.is_zero())
}

/// An error that names its file.
pub(super) fn named(path: &std::path::Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// How a step ended that gave nothing.
pub(super) fn plain(conclusion: Conclusion) -> StepResult {
    StepResult { outcome: conclusion, conclusion, outputs: IndexMap::new() }
}

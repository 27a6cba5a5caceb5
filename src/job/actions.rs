//! Steps that use an action: finding it, giving it its inputs, running it, and its clean-up at the job's end.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::events::Conclusion;
use crate::workflow::{Action, Object, Runs, Status, Step, Template, parse_action};

use super::embedded;
use super::executor::{Executor, step_id, step_names};
use super::native::Native;
use super::phases::{Phases, Runtime};
use super::scope::{ActionPlace, Frame};
use super::source::{self, Fetched, Git, RepositoryAction, Uses};
use super::steps::{Handed, Problem};

/// How long an action's server is waited for where there is another way.
const PATIENCE: Duration = Duration::from_secs(30);

/// Actions in actions in actions: GitHub's limit.
pub(super) const MAX_NESTING: usize = 10;

/// A step that uses an action, as far as its parts have to know.
#[derive(Clone, Copy)]
pub(super) struct Use<'u> {
    /// The variables of the step.
    pub(super) env: &'u [(String, String)],
    /// `uses`, rendered.
    pub(super) uses: &'u str,
    /// `with`, rendered.
    pub(super) with: &'u [(String, String)],
    /// Which step of the job it is; `None` inside another action.
    pub(super) index: Option<usize>,
    /// When it has to be over.
    pub(super) deadline: Option<Instant>,
}

impl Executor<'_> {
    /// Runs a step that uses an action.
    pub(super) fn use_action(
        &mut self,
        step: &Step,
        frame: &Frame,
        env: &[(String, String)],
        action: &Template,
        with: &[(String, Template)],
        index: Option<usize>,
    ) -> Result<Handed, Problem> {
        let uses = self.render(action, frame, env)?;
        let with: Vec<(String, String)> = with
            .iter()
            .map(|(name, value)| Ok((name.clone(), self.render(value, frame, env)?)))
            .collect::<Result<_, Problem>>()?;
        let deadline = self.step_deadline(step, frame, env)?;
        let used = Use { env, uses: &uses, with: &with, index, deadline };
        self.announce_action(&used)?;
        if frame.depth >= MAX_NESTING {
            return Err(Problem::Step(format!("{uses}: actions are nested more than {MAX_NESTING} deep")));
        }
        if self.spec.actions.embedded
            && let Some(found) = embedded::find(&uses)
        {
            let text = found.map_err(|error| Problem::Step(error.to_string()))?;
            let action = self.parse(text.as_bytes(), &format!("{uses}/action.yml"))?;
            return self.run_action(&action, ActionPlace::default(), &used, frame);
        }
        match Uses::parse(&uses, &self.spec.actions).map_err(|error| Problem::Step(error.to_string()))? {
            Uses::Docker(image) => Err(Problem::Step(format!(
                "docker://{image}: this runner runs jobs on the host and has no container engine; use a program of the \
                 host in a run step, or a runner with an engine"
            ))),
            Uses::Local(path) => {
                let directory = self.spec.places.workspace.join(&path);
                let action = self.load(&directory).map_err(|problem| match problem {
                    Problem::Step(message) if !directory.exists() => Problem::Step(format!(
                        "{message}; is there an actions/checkout step before this one?"
                    )),
                    other => other,
                })?;
                let place = ActionPlace { directory, ..ActionPlace::default() };
                self.run_action(&action, place, &used, frame)
            }
            Uses::Repository(wanted) => {
                let native = Native::of(&wanted);
                if let Some(native) = native
                    && let Some(handed) = self.native_first(native, &used, frame)?
                {
                    return Ok(handed);
                }
                let path = self.search_path(&[&self.env, &frame.env, env]);
                let native = native.filter(|_| self.native_allowed());
                // A host behind a wall that swallows everything would wait for minutes at each step.
                let patience = native.map(|_| PATIENCE);
                let fetched = match self.fetch_action(&wanted, &path, patience) {
                    Ok(fetched) => fetched,
                    Err(error) => match native {
                        Some(native) => {
                            self.log.text(&format!("{error}; the built-in action is used instead"))?;
                            return self.run_native(native, &used, frame);
                        }
                        None => return Err(Problem::Step(error.to_string())),
                    },
                };
                let how = if fetched.cached { "cached" } else { "fetched" };
                self.log.text(&format!("{} is commit {} ({how})", used.uses, fetched.commit))?;
                let directory = fetched.directory.join(&wanted.path);
                let action = self.load(&directory)?;
                let place = ActionPlace {
                    directory,
                    repository: wanted.name.clone(),
                    reference: wanted.reference.clone(),
                };
                self.run_action(&action, place, &used, frame)
            }
        }
    }

    /// An action's repository at the commit that its reference named when this job first asked.
    pub(super) fn fetch_action(
        &mut self,
        wanted: &RepositoryAction,
        path: &str,
        patience: Option<Duration>,
    ) -> Result<Fetched, source::Error> {
        let key = (wanted.url.clone(), wanted.reference.clone());
        if let Some(fetched) = self.prepared.fetched.get(&key) {
            return Ok(fetched.clone());
        }
        let control = self.cleanup_deadline.is_none().then(|| self.control.clone());
        let mut deadline = self.cleanup_deadline.or(self.deadline);
        if let Some(patience) = patience {
            // Whom it was waited for in vain is not waited for again.
            let patience =
                if self.prepared.silent.contains(wanted.server()) { Duration::ZERO } else { patience };
            let end = Instant::now() + patience;
            deadline = Some(deadline.map_or(end, |deadline| deadline.min(end)));
        }
        let git = self.git(path).with_login(wanted).until(control, deadline);
        let places = &self.spec.places;
        let fetched = source::fetch(wanted, &places.action_cache, &git, self.spec.actions.offline);
        if fetched.is_err() && deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            self.prepared.silent.insert(wanted.server().to_owned());
        }
        let fetched = fetched?;
        self.prepared.fetched.insert(key, fetched.clone());
        Ok(fetched)
    }

    /// Git with the job's token for the own instance.
    pub(super) fn git(&self, path: &str) -> Git {
        let token = self.fixed.github_text("token");
        Git::new(path, &self.spec.places.home).with_token(&self.spec.actions.instance_url, &token)
    }

    fn announce_action(&mut self, used: &Use<'_>) -> io::Result<()> {
        self.log.text(&format!("::group::Run {}", used.uses))?;
        for (title, pairs) in [("with", used.with), ("env", used.env)] {
            if !pairs.is_empty() {
                self.log.text(&format!("{title}:"))?;
                for (name, value) in pairs {
                    self.log.text(&format!("  {name}: {}", value.replace('\n', "\n  ")))?;
                }
            }
        }
        self.log.text("::endgroup::")
    }

    pub(super) fn load(&self, directory: &Path) -> Result<Action, Problem> {
        for name in ["action.yml", "action.yaml"] {
            let file = directory.join(name);
            match fs::read(&file) {
                Ok(text) => return self.parse(&text, &file.display().to_string()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Problem::Step(format!("{}: {error}", file.display()))),
            }
        }
        if directory.join("Dockerfile").is_file() {
            return Err(no_engine(&directory.display().to_string()));
        }
        Err(Problem::Step(format!(
            "{}: there is no action.yml, action.yaml or Dockerfile",
            directory.display()
        )))
    }

    pub(super) fn parse(&self, text: &[u8], file: &str) -> Result<Action, Problem> {
        parse_action(text, file).map_err(|problems| {
            let lines: Vec<String> = problems.iter().take(10).map(ToString::to_string).collect();
            Problem::Step(lines.join("\n"))
        })
    }

    /// The inputs of an action: what the step gives, over the defaults.
    pub(super) fn inputs(
        &self,
        action: &Action,
        with: &[(String, String)],
        frame: &Frame,
        env: &[(String, String)],
    ) -> Result<Object, Problem> {
        let given = |wanted: &str| with.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        let mut inputs = Object::new();
        // Defaults see what was given; a default of a default sees those before it.
        for input in &action.inputs {
            if let Some((_, value)) = given(&input.name) {
                inputs.insert(input.name.as_str(), value.as_str());
            }
        }
        for input in &action.inputs {
            if given(&input.name).is_some() {
                continue;
            }
            let seen = Frame {
                inputs: inputs.clone().into(),
                action: frame.action.clone(),
                steps: frame.steps.clone(),
                status: frame.status,
                ..Frame::default()
            };
            let default =
                input.default.as_ref().map(|template| self.render(template, &seen, env)).transpose()?;
            inputs.insert(input.name.as_str(), default.unwrap_or_default());
        }
        // In the order in which the action declares them.
        let mut ordered: Object = action
            .inputs
            .iter()
            .map(|input| (input.name.as_str(), inputs.get(&input.name).cloned().unwrap_or_default()))
            .collect();
        for (name, value) in with {
            ordered.insert(name.as_str(), value.as_str());
        }
        Ok(ordered)
    }

    /// Says which inputs are old and which the action does not know.
    fn judge_inputs(&mut self, action: &Action, used: &Use<'_>) -> io::Result<()> {
        for (name, _) in used.with {
            match action.inputs.iter().find(|input| input.name.eq_ignore_ascii_case(name)) {
                Some(input) => {
                    if let Some(message) = &input.deprecation {
                        self.log.warning(&format!("Input {:?} is deprecated: {message}", input.name))?;
                    }
                }
                None if matches!(action.runs, Runs::Docker { .. }) => {}
                None => {
                    let known: Vec<&str> = action.inputs.iter().map(|input| input.name.as_str()).collect();
                    self.log.warning(&format!(
                        "Unexpected input {name:?}; {} takes: {}",
                        used.uses,
                        known.join(", ")
                    ))?;
                }
            }
        }
        let missing = |input: &&crate::workflow::Input| {
            input.required
                && input.default.is_none()
                && !used.with.iter().any(|(name, _)| name.eq_ignore_ascii_case(&input.name))
        };
        for input in action.inputs.iter().filter(missing) {
            self.log
                .warning(&format!("Input {:?} is required by {} and not given", input.name, used.uses))?;
        }
        Ok(())
    }

    fn run_action(
        &mut self,
        action: &Action,
        place: ActionPlace,
        used: &Use<'_>,
        frame: &Frame,
    ) -> Result<Handed, Problem> {
        self.judge_inputs(action, used)?;
        let inputs = self.inputs(action, used.with, frame, used.env)?;
        match &action.runs {
            Runs::Composite { steps } => self.run_composite(action, steps, inputs, place, used, frame),
            Runs::Node { main, pre, post, pre_if, post_if, .. } => {
                let phases = Phases { runtime: Runtime::Node, main, pre, post, pre_if, post_if };
                self.run_main(&phases, &inputs, place, used, frame)
            }
            Runs::Go { main, pre, post, pre_if, post_if } => {
                let phases = Phases { runtime: Runtime::Go, main, pre, post, pre_if, post_if };
                self.run_main(&phases, &inputs, place, used, frame)
            }
            Runs::Docker { .. } => Err(no_engine(used.uses)),
        }
    }

    fn run_composite(
        &mut self,
        action: &Action,
        steps: &[Step],
        inputs: Object,
        place: ActionPlace,
        used: &Use<'_>,
        frame: &Frame,
    ) -> Result<Handed, Problem> {
        let mut inner = Frame {
            inputs: inputs.into(),
            action: Some(place),
            env: frame.env.iter().chain(used.env).cloned().collect(),
            depth: frame.depth + 1,
            deadline: used.deadline,
            index: used.index,
            path: frame.place(),
            ..Frame::default()
        };
        let mut cancelled = false;
        for ((index, step), name) in steps.iter().enumerate().zip(step_names(steps)) {
            self.notice_cancel()?;
            inner.begin(index, &name);
            let result = self.step(step, &mut inner, None)?;
            match result.conclusion {
                Conclusion::Failure => inner.status = Status::Failure,
                Conclusion::Cancelled => cancelled = true,
                Conclusion::Success | Conclusion::Skipped => {}
            }
            inner.ended(&step_id(step, index), &result);
        }
        let mut handed = Handed::default();
        for (name, template) in &action.outputs {
            if let Some(template) = template {
                handed.outputs.insert(name.clone(), self.render(template, &inner, &[])?);
            }
        }
        handed.conclusion = Some(match inner.status {
            _ if cancelled => Conclusion::Cancelled,
            Status::Failure => Conclusion::Failure,
            Status::Success | Status::Cancelled | Status::Skipped => Conclusion::Success,
        });
        Ok(handed)
    }
}

fn no_engine(what: &str) -> Problem {
    Problem::Step(format!("{what}: this action runs in a container, and this runner has no container engine"))
}

//! Steps that use an action: finding it, giving it its inputs, running it, and its clean-up at the job's end.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use indexmap::IndexMap;

use crate::events::Conclusion;
use crate::workflow::{Action, Condition, Object, Runs, Status, Step, Template, parse_action};

use super::embedded;
use super::environment::{self, input_variable};
use super::executor::{Executor, step_id};
use super::native::{After, Native};
use super::scope::{ActionPlace, Frame};
use super::shell;
use super::source::{self, Git, Uses};
use super::steps::{Handed, Problem, Task};

/// Actions in actions in actions: GitHub's limit.
const MAX_NESTING: usize = 10;

/// What an action has to do when all steps are over.
#[derive(Debug)]
pub(super) struct Post {
    /// What the log calls it.
    pub(super) title: String,
    pub(super) work: Work,
    pub(super) condition: Condition,
    pub(super) action: ActionPlace,
    pub(super) env: Vec<(String, String)>,
    pub(super) state: Vec<(String, String)>,
}

/// What runs then.
#[derive(Debug)]
pub(super) enum Work {
    /// A script of a JavaScript action.
    Script(PathBuf),
    /// What a built-in action has left to do.
    Native(After),
}

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
                let git = self.git(&self.search_path(&[&self.env, &frame.env, env]));
                let fetched = match source::fetch(&wanted, &self.spec.places.action_cache, &git) {
                    Ok(fetched) => fetched,
                    Err(error) => match native.filter(|_| self.native_allowed()) {
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

    fn load(&self, directory: &Path) -> Result<Action, Problem> {
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

    fn parse(&self, text: &[u8], file: &str) -> Result<Action, Problem> {
        parse_action(text, file).map_err(|problems| {
            let lines: Vec<String> = problems.iter().take(10).map(ToString::to_string).collect();
            Problem::Step(lines.join("\n"))
        })
    }

    /// The inputs of an action: what the step gives, over the defaults.
    fn inputs(&mut self, action: &Action, used: &Use<'_>, frame: &Frame) -> Result<Object, Problem> {
        let mut inputs = Object::new();
        for input in &action.inputs {
            let default =
                input.default.as_ref().map(|template| self.render(template, frame, used.env)).transpose()?;
            inputs.insert(input.name.as_str(), default.unwrap_or_default());
            let given = used.with.iter().any(|(name, _)| name.eq_ignore_ascii_case(&input.name));
            if given && let Some(message) = &input.deprecation {
                self.log.warning(&format!("Input {:?} is deprecated: {message}", input.name))?;
            }
        }
        for (name, value) in used.with {
            if inputs.get(name).is_none() && !matches!(action.runs, Runs::Docker { .. }) {
                let known: Vec<&str> = action.inputs.iter().map(|input| input.name.as_str()).collect();
                self.log.warning(&format!(
                    "Unexpected input {name:?}; {} takes: {}",
                    used.uses,
                    known.join(", ")
                ))?;
            }
            inputs.insert(name.as_str(), value.as_str());
        }
        Ok(inputs)
    }

    fn run_action(
        &mut self,
        action: &Action,
        place: ActionPlace,
        used: &Use<'_>,
        frame: &Frame,
    ) -> Result<Handed, Problem> {
        let inputs = self.inputs(action, used, frame)?;
        match &action.runs {
            Runs::Composite { steps } => self.run_composite(action, steps, inputs, place, used, frame),
            Runs::Node { main, pre, post, pre_if, post_if, .. } => {
                let phases = Phases { main, pre: pre.as_deref(), post: post.as_deref(), pre_if, post_if };
                self.run_node(&phases, &inputs, place, used, frame)
            }
            Runs::Docker { .. } => Err(no_engine(used.uses)),
            Runs::Go { .. } => {
                Err(Problem::Step(format!("{}: actions written in Go are not supported", used.uses)))
            }
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
            ..Frame::default()
        };
        let mut cancelled = false;
        for (index, step) in steps.iter().enumerate() {
            self.notice_cancel()?;
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
            Status::Success | Status::Cancelled => Conclusion::Success,
        });
        Ok(handed)
    }

    fn run_node(
        &mut self,
        phases: &Phases<'_>,
        inputs: &Object,
        place: ActionPlace,
        used: &Use<'_>,
        frame: &Frame,
    ) -> Result<Handed, Problem> {
        let mut own: Vec<(String, String)> = frame.env.iter().chain(used.env).cloned().collect();
        own.extend(inputs.iter().map(|(name, value)| (input_variable(name), value.to_text())));
        let mut state = Vec::new();
        if let Some(pre) = phases.pre
            && self.holds(phases.pre_if.as_ref(), frame)?
        {
            let handed = self.node(&place.directory.join(pre), &place, &own, used.deadline, used.index)?;
            state = handed.state;
            if handed.conclusion != Some(Conclusion::Success) {
                return Ok(Handed { conclusion: handed.conclusion, ..Handed::default() });
            }
        }
        let mut env = own.clone();
        env.extend(state_variables(&state));
        let main = self.node(&place.directory.join(phases.main), &place, &env, used.deadline, used.index);
        if let Some(post) = phases.post {
            state.extend(main.as_ref().map(|handed| handed.state.clone()).unwrap_or_default());
            self.posts.push(Post {
                title: format!("Post {}", used.uses),
                work: Work::Script(place.directory.join(post)),
                condition: phases.post_if.clone().unwrap_or_else(Condition::always),
                action: place,
                env: own,
                state,
            });
        }
        main
    }

    fn holds(&self, condition: Option<&Condition>, frame: &Frame) -> Result<bool, Problem> {
        let Some(condition) = condition else { return Ok(true) };
        condition.holds(&self.view(frame, &[&self.env])).map_err(|error| Problem::Step(self.at(&error)))
    }

    /// Runs a script of an action with node.
    fn node(
        &mut self,
        script: &Path,
        action: &ActionPlace,
        env: &[(String, String)],
        deadline: Option<Instant>,
        index: Option<usize>,
    ) -> Result<Handed, Problem> {
        let mut environment = self.environment(&Frame::default(), env);
        environment::action(&mut environment, action);
        let path = &environment["PATH"];
        let node = shell::find("node", path).ok_or_else(|| {
            Problem::Step(format!(
                "This action needs Node.js and there is no node on PATH ({path}); install Node.js on this host, or use a \
                 composite action or a run step"
            ))
        })?;
        let environment: Vec<(String, String)> = environment.into_iter().collect();
        let directory = self.spec.places.workspace.clone();
        self.execute(&Task {
            file: &node,
            arguments: &[script.as_os_str().to_owned()],
            environment: &environment,
            directory: &directory,
            deadline,
            index,
        })
    }

    /// Lets the actions clean up, the last one first.
    pub(super) fn run_posts(&mut self) -> io::Result<()> {
        while let Some(post) = self.posts.pop() {
            self.notice_cancel()?;
            let frame = Frame { action: Some(post.action.clone()), status: self.status, ..Frame::default() };
            let done = match self.holds(Some(&post.condition), &frame) {
                Ok(false) => continue,
                Ok(true) => {
                    self.log.text(&format!("::group::{}", post.title))?;
                    let mut env = post.env;
                    env.extend(state_variables(&post.state));
                    let deadline = self.cleanup_deadline.or(self.deadline);
                    let done = match &post.work {
                        Work::Script(script) => self.node(script, &post.action, &env, deadline, None),
                        Work::Native(after) => self.run_after(after, deadline),
                    };
                    self.log.text("::endgroup::")?;
                    done
                }
                Err(problem) => Err(problem),
            };
            let failed = match done {
                Ok(handed) => handed.conclusion == Some(Conclusion::Failure),
                Err(Problem::Step(message)) => {
                    self.log.error(&message)?;
                    true
                }
                Err(Problem::Sink(error)) => return Err(error),
            };
            if failed && self.status == Status::Success {
                self.status = Status::Failure;
            }
        }
        Ok(())
    }
}

/// The scripts of a JavaScript action.
struct Phases<'p> {
    main: &'p str,
    pre: Option<&'p str>,
    post: Option<&'p str>,
    pre_if: &'p Option<Condition>,
    post_if: &'p Option<Condition>,
}

fn no_engine(what: &str) -> Problem {
    Problem::Step(format!("{what}: this action runs in a container, and this runner has no container engine"))
}

fn state_variables(state: &[(String, String)]) -> impl Iterator<Item = (String, String)> {
    let last: IndexMap<&str, &str> =
        state.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    last.into_iter()
        .map(|(name, value)| (format!("STATE_{name}"), value.to_owned()))
        .collect::<Vec<_>>()
        .into_iter()
}

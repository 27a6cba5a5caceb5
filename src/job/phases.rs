//! Actions that are programs, in JavaScript or Go: what they do before the first step, in their step, and after the
//! last one.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use crate::events::Conclusion;
use crate::workflow::{Action, Condition, Object, Runs, Status, Step, StepKind};

use super::actions::{MAX_NESTING, Use};
use super::embedded;
use super::environment::{self, input_variable};
use super::executor::{Executor, step_names};
use super::native::After;
use super::scope::{ActionPlace, Frame};
use super::shell;
use super::source::{Fetched, Uses};
use super::steps::{Handed, Problem, Task};

/// What runs the files of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Runtime {
    /// The node of the host, whatever version the action asks for.
    Node,
    /// The Go of the host: a package is built, then run.
    Go,
}

/// The files of an action's phases, relative to its directory.
#[derive(Clone, Copy)]
pub(super) struct Phases<'p> {
    pub(super) runtime: Runtime,
    pub(super) main: &'p str,
    pub(super) pre: &'p Option<String>,
    pub(super) post: &'p Option<String>,
    pub(super) pre_if: &'p Option<Condition>,
    pub(super) post_if: &'p Option<Condition>,
}

impl<'p> Phases<'p> {
    fn of(action: &'p Action) -> Option<Self> {
        Some(match &action.runs {
            Runs::Node { main, pre, post, pre_if, post_if, .. } => {
                Self { runtime: Runtime::Node, main, pre, post, pre_if, post_if }
            }
            Runs::Go { main, pre, post, pre_if, post_if } => {
                Self { runtime: Runtime::Go, main, pre, post, pre_if, post_if }
            }
            Runs::Composite { .. } | Runs::Docker { .. } => return None,
        })
    }
}

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
    pub(super) inputs: Object,
    /// The name of its step.
    pub(super) name: String,
}

/// What runs then.
#[derive(Debug)]
pub(super) enum Work {
    /// A file of an action.
    File(Runtime, PathBuf),
    /// What a built-in action has left to do.
    Native(After),
}

/// What was done for the actions before the first step.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    /// Repositories that this job has asked for, by URL and reference.
    pub(super) fetched: HashMap<(String, String), Fetched>,
    /// Servers that have not answered in the time that there was for it.
    pub(super) silent: HashSet<String>,
    /// What `pre` of an action left as its state, by the place of its step.
    state: HashMap<Vec<usize>, Vec<(String, String)>>,
}

/// Actions that this program may run itself, and that have nothing to do before the first step.
const WITHOUT_PRE: [&str; 4] =
    ["actions/checkout", "actions/cache", "actions/upload-artifact", "actions/download-artifact"];

impl Executor<'_> {
    /// Lets the actions of all steps do what they want to do before the first step.
    pub(super) fn run_pres(&mut self, frame: &Frame) -> io::Result<()> {
        let job = self.job;
        let mut outer = Frame { inputs: frame.inputs.clone(), ..Frame::default() };
        for ((index, step), name) in job.steps.iter().enumerate().zip(step_names(&job.steps)) {
            self.notice_cancel()?;
            outer.begin(index, &name);
            self.pre_of(step, &outer)?;
        }
        self.log.flush()
    }

    /// What cannot be known or had yet is not said here, but when the step runs.
    fn pre_of(&mut self, step: &Step, frame: &Frame) -> io::Result<()> {
        let StepKind::Uses { action, with } = &step.kind else { return Ok(()) };
        let Ok(uses) = self.render(action, frame, &[]) else { return Ok(()) };
        let Some((action, place)) = self.look_ahead(&uses, frame) else { return Ok(()) };
        let env = step.env.render(&self.view(frame, &[&self.env, &frame.env])).unwrap_or_default();
        let with: Vec<(String, String)> = with
            .iter()
            .map(|(name, value)| (name.clone(), self.render(value, frame, &env).unwrap_or_default()))
            .collect();
        let Ok(inputs) = self.inputs(&action, &with, frame, &env) else { return Ok(()) };
        if let Runs::Composite { steps } = &action.runs {
            let mut inner = Frame {
                inputs: inputs.into(),
                action: Some(place),
                env: frame.env.iter().chain(&env).cloned().collect(),
                depth: frame.depth + 1,
                path: frame.place(),
                ..Frame::default()
            };
            for ((index, step), name) in steps.iter().enumerate().zip(step_names(steps)) {
                inner.begin(index, &name);
                self.pre_of(step, &inner)?;
            }
            return Ok(());
        }
        let Some(phases) = Phases::of(&action) else { return Ok(()) };
        if phases.pre.is_none() {
            return Ok(());
        }
        let used = Use { env: &env, uses: &uses, with: &with, index: None, deadline: self.deadline };
        let own = own_variables(&inputs, &used, frame);
        let (conclusion, state) = self.run_pre(&phases, &place, &own, &inputs, &used, frame)?;
        self.prepared.state.insert(frame.place(), state);
        if conclusion == Conclusion::Failure && self.status == Status::Success {
            self.status = Status::Failure;
        }
        Ok(())
    }

    /// The action of a step that has not run yet, if it can be had without running what comes before it.
    fn look_ahead(&mut self, uses: &str, frame: &Frame) -> Option<(Action, ActionPlace)> {
        if frame.depth >= MAX_NESTING {
            return None;
        }
        if self.spec.actions.embedded
            && let Some(found) = embedded::find(uses)
        {
            let action = self.parse(found.ok()?.as_bytes(), "action.yml").ok()?;
            return Some((action, ActionPlace::default()));
        }
        let Ok(Uses::Repository(wanted)) = Uses::parse(uses, &self.spec.actions) else { return None };
        if WITHOUT_PRE.iter().any(|own| wanted.name.eq_ignore_ascii_case(own)) {
            return None;
        }
        let path = self.search_path(&[&self.env]);
        let fetched = self.fetch_action(&wanted, &path, None).ok()?;
        let directory = fetched.directory.join(&wanted.path);
        let action = self.load(&directory).ok()?;
        let place = ActionPlace { directory, repository: wanted.name, reference: wanted.reference };
        Some((action, place))
    }

    /// Runs `pre` if it is to run; how that went, and the state that it left.
    fn run_pre(
        &mut self,
        phases: &Phases<'_>,
        place: &ActionPlace,
        own: &[(String, String)],
        inputs: &Object,
        used: &Use<'_>,
        frame: &Frame,
    ) -> io::Result<(Conclusion, Vec<(String, String)>)> {
        let Some(pre) = phases.pre else { return Ok((Conclusion::Success, Vec::new())) };
        let seen = Frame {
            inputs: inputs.clone().into(),
            action: Some(place.clone()),
            status: self.status,
            step_name: frame.step_name.clone(),
            ..Frame::default()
        };
        let done = match self.holds(phases.pre_if.as_ref(), &seen) {
            Ok(false) => return Ok((Conclusion::Skipped, Vec::new())),
            Ok(true) => {
                self.log.text(&format!("::group::Pre {}", used.uses))?;
                let done = self.phase(
                    phases.runtime,
                    &place.directory.join(pre),
                    place,
                    own,
                    used,
                    &frame.step_name,
                );
                self.log.text("::endgroup::")?;
                done
            }
            Err(problem) => Err(problem),
        };
        match done {
            Ok(handed) => Ok((handed.conclusion.unwrap_or(Conclusion::Success), handed.state)),
            Err(Problem::Sink(error)) => Err(error),
            Err(Problem::Step(message)) => {
                self.log.error(&message)?;
                Ok((Conclusion::Failure, Vec::new()))
            }
        }
    }

    /// Runs an action in its step, and keeps what it has to do after the last one.
    pub(super) fn run_main(
        &mut self,
        phases: &Phases<'_>,
        inputs: &Object,
        place: ActionPlace,
        used: &Use<'_>,
        frame: &Frame,
    ) -> Result<Handed, Problem> {
        let own = own_variables(inputs, used, frame);
        let mut state = match self.prepared.state.remove(&frame.place()) {
            Some(state) => state,
            None if phases.pre.is_some() && place.repository.is_empty() => {
                self.log
                    .warning(&format!("{}: `pre` does not run for an action of the workspace", used.uses))?;
                Vec::new()
            }
            // An action inside one of the workspace: nobody could know of it before.
            None => match self.run_pre(phases, &place, &own, inputs, used, frame)? {
                (Conclusion::Success | Conclusion::Skipped, state) => state,
                (conclusion, _) => return Ok(Handed { conclusion: Some(conclusion), ..Handed::default() }),
            },
        };
        let mut env = own.clone();
        env.extend(state_variables(&state));
        let file = place.directory.join(phases.main);
        let main = self.phase(phases.runtime, &file, &place, &env, used, &frame.step_name);
        if let Some(post) = phases.post {
            state.extend(main.as_ref().map(|handed| handed.state.clone()).unwrap_or_default());
            self.posts.push(Post {
                title: format!("Post {}", used.uses),
                work: Work::File(phases.runtime, place.directory.join(post)),
                condition: phases.post_if.clone().unwrap_or_else(Condition::always),
                action: place,
                env: own,
                state,
                inputs: inputs.clone(),
                name: frame.step_name.clone(),
            });
        }
        main
    }

    fn holds(&self, condition: Option<&Condition>, frame: &Frame) -> Result<bool, Problem> {
        let Some(condition) = condition else { return Ok(true) };
        condition.holds(&self.view(frame, &[&self.env])).map_err(|error| Problem::Step(self.at(&error)))
    }

    /// Runs a file of an action.
    fn phase(
        &mut self,
        runtime: Runtime,
        file: &Path,
        action: &ActionPlace,
        env: &[(String, String)],
        used: &Use<'_>,
        name: &str,
    ) -> Result<Handed, Problem> {
        let frame = Frame { step_name: name.to_owned(), ..Frame::default() };
        let mut environment = self.environment(&frame, env);
        environment::action(&mut environment, action);
        let path = environment["PATH"].clone();
        let environment: Vec<(String, String)> = environment.into_iter().collect();
        let workspace = self.spec.places.workspace.clone();
        let (deadline, index) = (used.deadline, used.index);
        match runtime {
            Runtime::Node => {
                let node = program("node", "Node.js", &path)?;
                let arguments = [file.as_os_str().to_owned()];
                let task = Task {
                    file: &node,
                    arguments: &arguments,
                    environment: &environment,
                    directory: &workspace,
                    deadline,
                    index,
                };
                self.execute(&task)
            }
            Runtime::Go => {
                let go = program("go", "Go", &path)?;
                let built = self.spec.places.scratch.join(format!("go-{}", self.scripts));
                self.scripts += 1;
                // A package is a directory or a file in it; Go wants it to be named from within its module.
                let within = file.strip_prefix(&action.directory).unwrap_or(file);
                let package = Path::new(".").join(within);
                let arguments =
                    ["build".into(), "-o".into(), built.as_os_str().to_owned(), package.into_os_string()];
                let build = Task {
                    file: &go,
                    arguments: &arguments,
                    environment: &environment,
                    directory: &action.directory,
                    deadline,
                    index,
                };
                let handed = self.execute(&build)?;
                if handed.conclusion != Some(Conclusion::Success) {
                    return Ok(handed);
                }
                let run = Task {
                    file: &built,
                    arguments: &[],
                    environment: &environment,
                    directory: &workspace,
                    deadline,
                    index,
                };
                self.execute(&run)
            }
        }
    }

    /// Lets the actions clean up, the last one first.
    pub(super) fn run_posts(&mut self) -> io::Result<()> {
        while let Some(post) = self.posts.pop() {
            self.notice_cancel()?;
            let frame = Frame {
                inputs: post.inputs.clone().into(),
                action: Some(post.action.clone()),
                status: self.status,
                step_name: post.name.clone(),
                ..Frame::default()
            };
            let done = match self.holds(Some(&post.condition), &frame) {
                Ok(false) => continue,
                Ok(true) => {
                    self.log.text(&format!("::group::{}", post.title))?;
                    let mut env = post.env;
                    env.extend(state_variables(&post.state));
                    let deadline = self.cleanup_deadline.or(self.deadline);
                    let used = Use { env: &[], uses: &post.title, with: &[], index: None, deadline };
                    let done = match &post.work {
                        Work::File(runtime, file) => {
                            self.phase(*runtime, file, &post.action, &env, &used, &post.name)
                        }
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

/// The variables that an action finds beside those of the job: its step's, and its inputs.
fn own_variables(inputs: &Object, used: &Use<'_>, frame: &Frame) -> Vec<(String, String)> {
    let mut own: Vec<(String, String)> = frame.env.iter().chain(used.env).cloned().collect();
    own.extend(inputs.iter().map(|(name, value)| (input_variable(name), value.to_text())));
    own
}

fn program(name: &str, title: &str, path: &str) -> Result<PathBuf, Problem> {
    shell::find(name, path).ok_or_else(|| {
        Problem::Step(format!(
            "This action needs {title} and there is no {name} on PATH ({path}); install {title} on this host, or use a \
             composite action or a run step"
        ))
    })
}

fn state_variables(state: &[(String, String)]) -> impl Iterator<Item = (String, String)> {
    let last: IndexMap<&str, &str> =
        state.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    last.into_iter()
        .map(|(name, value)| (format!("STATE_{name}"), value.to_owned()))
        .collect::<Vec<_>>()
        .into_iter()
}

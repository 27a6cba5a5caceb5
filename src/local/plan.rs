//! Which jobs run for an event, in which order, in how many variants.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::{Map, Value};

use crate::events::Conclusion;
use crate::job::call::{self, Called};
use crate::job::scope::{Fixed, Frame, JobView, View, needs_status, object};
use crate::job::source::Git;
use crate::job::spec::{
    ActionSources, JobSpec, MemorySpec, NativeActions, Need, OperatorSpec, Patience, Places, RunnerInfo,
};
use crate::workflow::model::{DispatchInput, InputType};
use crate::workflow::{
    Condition, Diagnostic, EvaluationError, Job, Object, Status, Workflow, did_you_mean, parse_workflow,
};

use crate::yaml;

use super::context::{Context, Question};
use super::filter;

/// A workflow file that was read.
#[derive(Debug)]
pub struct File {
    /// The file as it is shown, such as `.gitea/workflows/deploy.yaml`.
    pub name: String,
    /// Its text.
    pub text: String,
    /// What it says.
    pub workflow: Workflow,
}

/// A workflow that is to run: for the event, or since a job calls it.
#[derive(Debug)]
pub struct Instance {
    /// The workflow.
    pub file: File,
    /// What stands before the names of its jobs, such as `deploy / `.
    pub prefix: String,
    /// The jobs to run, none before what it needs.
    pub jobs: Vec<String>,
    /// Where it lies in the repository that holds it, when that is not the repository of the event.
    origin: Option<PathBuf>,
    /// The name of the workflow that runs for the event.
    title: String,
    inputs: Map<String, Value>,
    /// The inputs of the event as its payload has them: as text, with the defaults.
    dispatched: Map<String, Value>,
    secrets: BTreeMap<String, String>,
    /// Values to mask beside the secrets: those of whoever calls it.
    masks: Vec<String>,
    calls: usize,
}

/// One job with one combination of its matrix.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its workflow.
    pub instance: Arc<Instance>,
    /// The job's id.
    pub job: String,
    /// Its name with the values of the matrix.
    pub name: String,
    /// The combination.
    pub matrix: Map<String, Value>,
    /// The `strategy` context.
    pub strategy: Map<String, Value>,
    /// A failure of it does not count.
    pub forgiven: bool,
}

/// What is to run.
#[derive(Debug, Default)]
pub struct Plan {
    /// The workflows for the event.
    pub instances: Vec<Arc<Instance>>,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The question was wrong.
    #[error(transparent)]
    Question(#[from] Question),
    /// Workflows are invalid.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<Diagnostic>),
}

/// What to pick.
#[derive(Debug, Default)]
pub struct Selection {
    /// A file or a directory; the repository's workflows when there is none.
    pub workflows: Option<PathBuf>,
    /// Only this job and what it needs.
    pub job: Option<String>,
    /// Values that a matrix may have: alternatives for each key.
    pub matrix: BTreeMap<String, Vec<String>>,
    /// The event is not told but taken for granted: a workflow that is named runs whatever its filters.
    pub any_event: bool,
}

impl Plan {
    /// Reads the workflows and picks the jobs. The texts are warnings and remarks.
    ///
    /// # Errors
    /// When there is no such workflow or job, or a workflow is invalid.
    pub fn new(context: &Context, selection: &Selection) -> Result<(Self, Vec<String>), Error> {
        let mut files = Vec::new();
        let mut remarks = Vec::new();
        let mut problems = Vec::new();
        let mut others = Vec::new();
        let named = selection.any_event && selection.workflows.as_ref().is_some_and(|path| path.is_file());
        let folder = selection.workflows.as_ref().is_some_and(|path| path.is_dir());
        for (path, name) in find_files(context, selection)? {
            let text = fs::read(&path).map_err(|error| Question(format!("{}: {error}", path.display())))?;
            match parse_workflow(&text, &name) {
                Ok((workflow, found)) => {
                    let Some(trigger) = workflow.on.events.get(&context.event) else {
                        let events: Vec<&str> = workflow.on.events.keys().map(String::as_str).collect();
                        others.push(format!("{name} runs on {}", events.join(", ")));
                        continue;
                    };
                    remarks.extend(found.iter().map(ToString::to_string));
                    match filter::applies(trigger, context) {
                        Ok(()) => {}
                        Err(reason) if named => {
                            remarks
                                .push(format!("{name}: a server would not run it for this event: {reason}"));
                        }
                        Err(reason) => {
                            others.push(format!("{name} does not run for this event: {reason}"));
                            continue;
                        }
                    }
                    let text = String::from_utf8_lossy(&text).into_owned();
                    files.push(File { name, text, workflow });
                }
                // A folder that is named may hold an action and other files beside workflows.
                Err(_) if folder && is_something_else(&text) => others.push(format!("{name} is no workflow")),
                Err(found) => problems.extend(found),
            }
        }
        if !problems.is_empty() {
            return Err(Error::Invalid(problems));
        }
        if files.is_empty() {
            let others = others.join("; ");
            return Err(
                Question(format!("no workflow runs on {:?} ({others}); see --event", context.event)).into()
            );
        }
        known_inputs(&files, context)?;
        remarks.extend(others.into_iter().filter(|other| other.contains("does not run for this event")));
        let known: Vec<String> = files.iter().flat_map(|file| file.workflow.jobs.keys().cloned()).collect();
        let mut instances = Vec::new();
        for file in files {
            let jobs = match &selection.job {
                Some(job) => file.workflow.order_of(std::iter::once(job.as_str())),
                None => file.workflow.order(),
            };
            if !jobs.is_empty() {
                instances.push(Arc::new(Instance::for_event(file, jobs, context)?));
            }
        }
        if instances.is_empty() {
            let asked = selection.job.as_deref().unwrap_or_default();
            return Err(
                Question(format!("there is no job {asked:?}; there are: {}", known.join(", "))).into()
            );
        }
        Ok((Self { instances }, remarks))
    }

    /// How many jobs were picked.
    #[must_use]
    pub fn len(&self) -> usize {
        self.instances.iter().map(|instance| instance.jobs.len()).sum()
    }

    /// Whether there is nothing to run.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Instance {
    fn for_event(file: File, jobs: Vec<String>, context: &Context) -> Result<Self, Question> {
        let base = Path::new(&file.name)
            .file_name()
            .map_or_else(|| file.name.clone(), |base| base.to_string_lossy().into_owned());
        let inputs = typed_inputs(&declared_inputs(&file.workflow, &context.event), &context.inputs)?;
        Ok(Self {
            title: file.workflow.name.as_ref().map_or(base, |title| title.source().to_owned()),
            file,
            prefix: String::new(),
            jobs,
            origin: None,
            dispatched: match context.event.as_str() {
                "workflow_dispatch" => payload_inputs(context, &inputs),
                _ => Map::new(),
            },
            inputs,
            secrets: context.secrets().clone(),
            masks: Vec::new(),
            calls: 0,
        })
    }

    /// The workflow that a run of this one calls.
    ///
    /// # Errors
    /// Why it cannot be had or given what it wants.
    pub fn called(
        &self,
        context: &Context,
        run: &Run,
        needs: &IndexMap<String, Need>,
        places: &Places,
    ) -> Result<Option<Self>, String> {
        self.call(context, run, needs, places, true)
    }

    /// The jobs of the workflow that a run of this one calls, for a list: whatever it is not given yet is empty.
    #[must_use]
    pub fn outline(&self, context: &Context, run: &Run) -> Option<Self> {
        self.call(context, run, &IndexMap::new(), &Places::none(), false).ok().flatten()
    }

    fn call(
        &self,
        context: &Context,
        run: &Run,
        needs: &IndexMap<String, Need>,
        places: &Places,
        strict: bool,
    ) -> Result<Option<Self>, String> {
        let job = self.job(&run.job);
        let Some(uses) = &job.uses else { return Ok(None) };
        let spec = self.spec(context, run, needs, places);
        let path = std::env::var("PATH").unwrap_or_else(|_| crate::job::environment::DEFAULT_PATH.to_owned());
        let token = spec.github.get("token").and_then(Value::as_str).unwrap_or_default();
        let git = Git::new(&path, &places.home).with_token(&spec.actions.instance_url, token);
        let called = call::load(uses, &spec, &git)?;
        let fixed = fixed(&spec, &run.job);
        let frame = Frame::of_job(&self.inputs);
        let view = View { fixed: &fixed, frame: &frame, env: &[], status: Status::Success };
        let inputs = call::inputs(&called.workflow, job, &self.file.name, &view);
        let secrets = call::secrets(&called.workflow, job, &self.file.name, &self.secrets, &view);
        let (inputs, secrets) = if strict {
            (inputs?, secrets?)
        } else {
            (inputs.unwrap_or_default(), secrets.unwrap_or_default())
        };
        let Called { workflow, text, file, origin } = called;
        Ok(Some(Self {
            prefix: format!("{} / ", run.name),
            jobs: workflow.order(),
            file: File { name: file, text, workflow },
            origin,
            title: self.title.clone(),
            dispatched: self.dispatched.clone(),
            inputs,
            secrets,
            masks: self.masks.iter().chain(self.secrets.values()).cloned().collect(),
            calls: self.calls + 1,
        }))
    }

    /// The outputs of a called workflow, now that its jobs are over.
    ///
    /// # Errors
    /// An output that cannot be computed.
    pub fn outputs(
        &self,
        context: &Context,
        jobs: &IndexMap<String, Need>,
    ) -> Result<Vec<(String, String)>, String> {
        let spec = self.base_spec(context, &Places::none());
        call::outputs(&self.file.workflow, &self.file.name, &spec, jobs)
    }

    /// A job of the workflow.
    ///
    /// # Panics
    /// Never for what [`Instance::jobs`] holds.
    #[must_use]
    pub fn job(&self, id: &str) -> &Job {
        &self.file.workflow.jobs[id]
    }

    /// Whether a job is to run at all, by its `if`, now that what it needs has ended.
    ///
    /// # Errors
    /// When its `if` cannot be evaluated.
    pub fn wants_to_run(
        &self,
        context: &Context,
        id: &str,
        needs: &IndexMap<String, Need>,
    ) -> Result<bool, String> {
        let spec = JobSpec { needs: needs.clone(), ..self.base_spec(context, &Places::none()) };
        let fixed = Fixed::new(&spec, id, Object::new(), Object::new(), false);
        let frame = Frame::of_job(&spec.inputs);
        let view = View { fixed: &fixed, frame: &frame, env: &[], status: Status::Success };
        let status = needs_status(needs.values());
        let success = Condition::success();
        let condition = self.job(id).condition.as_ref().unwrap_or(&success);
        condition.holds(&JobView { view, needs: status }).map_err(|error| self.said(&error))
    }

    fn said(&self, error: &EvaluationError) -> String {
        format!("{}:{error}", self.file.name)
    }

    /// The variants of a job, now that what it needs has ended.
    ///
    /// # Errors
    /// When its matrix, its name or its strategy cannot be evaluated.
    pub fn runs(
        self: &Arc<Self>,
        context: &Context,
        selection: &Selection,
        id: &str,
        needs: &IndexMap<String, Need>,
    ) -> Result<Vec<Run>, String> {
        let job = self.job(id);
        let said = |error: EvaluationError| self.said(&error);
        let spec = JobSpec { needs: needs.clone(), ..self.base_spec(context, &Places::none()) };
        let frame = Frame::of_job(&spec.inputs);
        let bare = Fixed::new(&spec, id, Object::new(), Object::new(), false);
        let view = View { fixed: &bare, frame: &frame, env: &[], status: Status::Success };
        let combinations: Vec<Object> = job
            .combinations(&view)
            .map_err(said)?
            .into_iter()
            .filter(|matrix| {
                matrix.iter().all(|(key, value)| {
                    selection.matrix.get(key).is_none_or(|values| values.contains(&value.to_text()))
                })
            })
            .collect();
        let total = combinations.len();
        let mut runs = Vec::new();
        for (index, matrix) in combinations.into_iter().enumerate() {
            let strategy = job.strategy_values(&view, index, total).map_err(said)?;
            let fixed = Fixed::new(&spec, id, matrix.clone(), object(&strategy), false);
            let view = View { fixed: &fixed, frame: &frame, env: &[], status: Status::Success };
            let values = call::values(&matrix);
            let name = match &job.name {
                Some(name) if name.is_literal() && !values.is_empty() => {
                    format!("{} ({values})", name.source())
                }
                Some(name) => name.render(&view).map_err(said)?,
                None if values.is_empty() => id.to_owned(),
                None => format!("{id} ({values})"),
            };
            let forgiven = match &job.continue_on_error {
                Some(template) => {
                    let value = template.value(&view).map_err(said)?;
                    value.is_truthy() && value.text() != "false"
                }
                None => false,
            };
            runs.push(Run {
                instance: self.clone(),
                job: id.to_owned(),
                name: format!("{}{name}", self.prefix),
                matrix: matrix.iter().map(|(key, value)| (key.to_owned(), value.to_json())).collect(),
                strategy,
                forgiven,
            });
        }
        Ok(runs)
    }

    /// The labels that a job asks for, as far as they can be known before it runs.
    ///
    /// # Errors
    /// When they cannot be evaluated.
    pub fn labels(&self, context: &Context, run: &Run) -> Result<Vec<String>, String> {
        let spec = self.spec(context, run, &IndexMap::new(), &Places::none());
        let fixed = fixed(&spec, &run.job);
        let frame = Frame::of_job(&spec.inputs);
        let view = View { fixed: &fixed, frame: &frame, env: &[], status: Status::Success };
        self.job(&run.job).runs_on.labels(&view).map_err(|error| self.said(&error))
    }

    /// The specification of a run.
    #[must_use]
    pub fn spec(
        &self,
        context: &Context,
        run: &Run,
        needs: &IndexMap<String, Need>,
        places: &Places,
    ) -> JobSpec {
        JobSpec {
            job: Some(run.job.clone()),
            matrix: Some(run.matrix.clone()),
            strategy: Some(run.strategy.clone()),
            needs: needs.clone(),
            ..self.base_spec(context, places)
        }
    }

    fn base_spec(&self, context: &Context, places: &Places) -> JobSpec {
        let mut github = context.github.clone();
        github.insert("workflow".to_owned(), self.title.clone().into());
        if let Some(event) = github.get_mut("event").filter(|_| !self.dispatched.is_empty()) {
            event["inputs"] = self.dispatched.clone().into();
        }
        JobSpec {
            workflow: self.file.text.clone(),
            workflow_file: self.file.name.clone(),
            job: None,
            matrix: Some(Map::new()),
            github,
            inputs: self.inputs.clone(),
            secrets: self.secrets.clone(),
            vars: context.vars.clone(),
            needs: IndexMap::new(),
            masks: self.masks.clone(),
            env: context.env.clone(),
            runner: RunnerInfo { name: "exec".to_owned(), labels: Vec::new() },
            places: places.clone(),
            actions: ActionSources {
                default_url: "https://github.com".to_owned(),
                instance_url: context
                    .github
                    .get("server_url")
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned(),
                github_mirror: None,
                embedded: true,
                checkout_from: Some(context.root.clone()),
                offline: context.offline,
                mirrors: context.mirrors.clone(),
                native: NativeActions { policy: context.native, ..NativeActions::default() },
            },
            head: Vec::new(),
            timeout_seconds: 6 * 60 * 60,
            patience: Patience::default(),
            journal_limit: u64::MAX,
            memory: MemorySpec::default(),
            operator: OperatorSpec::default(),
            strategy: None,
            nested: false,
            calls: self.calls,
            origin: self.origin.clone(),
        }
    }
}

/// The contexts of a run whose specification names its combination.
fn fixed(spec: &JobSpec, id: &str) -> Fixed {
    let object_of = |map: &Option<Map<String, Value>>| map.as_ref().map(object).unwrap_or_default();
    Fixed::new(spec, id, object_of(&spec.matrix), object_of(&spec.strategy), false)
}

/// What a variant's end counts as for the job.
#[must_use]
pub const fn counts(run: &Run, conclusion: Conclusion) -> Conclusion {
    match conclusion {
        Conclusion::Failure if run.forgiven => Conclusion::Success,
        conclusion => conclusion,
    }
}

/// The inputs that a workflow declares for this event.
fn declared_inputs(workflow: &Workflow, event: &str) -> Vec<DispatchInput> {
    match event {
        "workflow_dispatch" => workflow.on.dispatch_inputs(),
        "workflow_call" => workflow.on.call_inputs(),
        _ => Vec::new(),
    }
}

/// Inputs as a server writes them into the payload of `workflow_dispatch`: texts, those of the defaults too.
fn payload_inputs(context: &Context, inputs: &Map<String, Value>) -> Map<String, Value> {
    let given = context.inputs.iter().map(|(name, value)| (name.clone(), value.as_str().into()));
    let mut all: Map<String, Value> = given.collect();
    for (name, value) in inputs {
        if !all.keys().any(|known| known.eq_ignore_ascii_case(name)) {
            let text = match value {
                Value::Null => String::new(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            all.insert(name.clone(), text.into());
        }
    }
    all
}

/// Judges the inputs that the command line names as GitHub does ("Unexpected inputs provided"): a workflow that runs
/// for the event has to declare each.
fn known_inputs(files: &[File], context: &Context) -> Result<(), Question> {
    let Some(first) = context.asked_inputs.first() else { return Ok(()) };
    if !matches!(context.event.as_str(), "workflow_dispatch" | "workflow_call") {
        let event = &context.event;
        return Err(Question(format!(
            "--input {first}: the event {event:?} has no inputs; add --event workflow_dispatch"
        )));
    }
    let declared: Vec<String> = files
        .iter()
        .flat_map(|file| declared_inputs(&file.workflow, &context.event))
        .map(|input| input.name)
        .collect();
    let unknown = context
        .asked_inputs
        .iter()
        .find(|asked| !declared.iter().any(|declared| declared.eq_ignore_ascii_case(asked)));
    let Some(unknown) = unknown else { return Ok(()) };
    let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
    let there_are = match declared.is_empty() {
        true => "it declares none".to_owned(),
        false => format!("there are: {}", declared.join(", ")),
    };
    let hint = did_you_mean(unknown, declared.iter().map(String::as_str));
    Err(Question(format!("--input {unknown}: no such input in {}{hint}; {there_are}", names.join(", "))))
}

/// Inputs of the event with their declared types and defaults.
fn typed_inputs(
    declared: &[DispatchInput],
    given: &[(String, String)],
) -> Result<Map<String, Value>, Question> {
    let mut inputs = Map::new();
    for input in declared {
        let given = given.iter().rev().find(|(name, _)| name.eq_ignore_ascii_case(&input.name));
        let text = match (given, &input.default) {
            (Some((_, value)), _) => value.clone(),
            (None, Some(default)) => default.source().to_owned(),
            (None, None) => String::new(),
        };
        let wrong = |wanted: String| Question(format!("--input {}={text}: expected {wanted}", input.name));
        let value = match input.kind {
            InputType::Boolean => match text.as_str() {
                "true" => Value::Bool(true),
                "false" | "" => Value::Bool(false),
                _ => return Err(wrong("true or false".to_owned())),
            },
            InputType::Number if text.is_empty() => Value::Null,
            InputType::Number => match crate::workflow::Value::from(text.as_str()).to_number() {
                number if number.is_finite() => crate::workflow::Value::Number(number).to_json(),
                _ => return Err(wrong("a number".to_owned())),
            },
            InputType::Choice if given.is_some() && !input.options.contains(&text) => {
                return Err(wrong(format!("one of {}", input.options.join(", "))));
            }
            InputType::String | InputType::Choice | InputType::Environment => text.into(),
        };
        inputs.insert(input.name.clone(), value);
    }
    let missing = declared.iter().find(|input| {
        input.required
            && input.default.is_none()
            && !given.iter().any(|(name, _)| name.eq_ignore_ascii_case(&input.name))
    });
    match missing {
        Some(input) => Err(Question(format!("the input {0:?} is required: --input {0}=VALUE", input.name))),
        None => Ok(inputs),
    }
}

/// Whether a document has nothing that makes it a workflow, right or wrong.
fn is_something_else(text: &[u8]) -> bool {
    yaml::parse(text).is_ok_and(|root| ["on", "true", "jobs"].iter().all(|key| root.get(key).is_none()))
}

/// The workflow files to read, each with the name to show.
fn find_files(context: &Context, selection: &Selection) -> Result<Vec<(PathBuf, String)>, Question> {
    let show = |path: &Path| path.strip_prefix(&context.root).unwrap_or(path).display().to_string();
    if let Some(asked) = &selection.workflows {
        if asked.is_dir() {
            let files = yaml_files(asked);
            if files.is_empty() {
                return Err(Question(format!("there is no workflow in {}", asked.display())));
            }
            return Ok(files.into_iter().map(|path| (path.clone(), path.display().to_string())).collect());
        }
        if !asked.exists() {
            return Err(Question(format!("there is no workflow {}", asked.display())));
        }
        return Ok(vec![(asked.clone(), asked.display().to_string())]);
    }
    for directory in [".gitea/workflows", ".forgejo/workflows", ".github/workflows"] {
        let files = yaml_files(&context.root.join(directory));
        if !files.is_empty() {
            return Ok(files.into_iter().map(|path| (path.clone(), show(&path))).collect());
        }
    }
    Err(Question(format!(
        "there is no workflow in {}/.gitea/workflows or .github/workflows; name one with -W",
        context.root.display()
    )))
}

fn yaml_files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_file() && path.extension().is_some_and(|end| end == "yml" || end == "yaml"))
        .collect();
    files.sort();
    files
}

//! Jobs that call a workflow: finding it, what it is given, what it gives back, and running it within one job.
//!
//! `exec` runs the called workflow's jobs as jobs of its own. A server up to Gitea 1.26 sends the calling job as one
//! task; then its jobs run here one after the other. Source: GitHub's documentation, "Reusing workflows".

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use indexmap::IndexMap;
use serde_json::{Map, Value as Json};

use crate::events::{Conclusion, Event, Sink};
use crate::workflow::model::{DispatchInput, InputType};
use crate::workflow::{
    Condition, EvaluationError, Job, JobSecrets, Object, Scope, Spanned, Status, Template, Value, Workflow,
    parse_workflow, snippet,
};

use super::executor::{Plan, named};
use super::log::Log;
use super::process::Control;
use super::scope::{Fixed, Frame, JobView, View, needs_status};
use super::source::{self, Git, RepositoryAction, Uses};
use super::spec::{JobSpec, Need, Places};
use super::tree::Members;

/// How many workflows may call one another: GitHub's limit.
pub const MAX_CALLS: usize = 4;

/// A workflow that a job calls.
#[derive(Debug)]
pub struct Called {
    /// What it says.
    pub workflow: Workflow,
    /// Its text.
    pub text: String,
    /// How diagnostics name it.
    pub file: String,
    /// The files of its repository, when that is not the repository of the event.
    pub origin: Option<PathBuf>,
}

/// Reads the workflow that a job calls.
///
/// # Errors
/// Why it cannot be had, or everything that is wrong with it, with places.
pub fn load(uses: &Spanned<String>, spec: &JobSpec, git: &Git) -> Result<Called, String> {
    let at = format!("{}:{}", spec.workflow_file, uses.place);
    if spec.calls >= MAX_CALLS {
        return Err(format!("{at}: workflows call one another more than {MAX_CALLS} deep"));
    }
    let failed = |reason: String| format!("{at}: cannot read the workflow {:?}: {reason}", uses.value);
    let (path, file, origin) = find(&uses.value, spec, git).map_err(failed)?;
    let text = fs::read(&path).map_err(|error| failed(format!("{}: {error}", path.display())))?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let (workflow, _) = parse_workflow(text.as_bytes(), &file).map_err(|problems| {
        let mut message = format!("{at}: the workflow {:?} cannot be run:", uses.value);
        for problem in problems.iter().take(20) {
            message.push_str(&format!("\n{problem}\n{}", snippet(problem, &text)));
        }
        message
    })?;
    if !workflow.on.has_event("workflow_call") {
        return Err(format!("{at}: {:?} cannot be called: it has no 'workflow_call' under 'on'", uses.value));
    }
    Ok(Called { workflow, text, file, origin })
}

/// The file of a workflow, its name, and where its repository lies.
fn find(uses: &str, spec: &JobSpec, git: &Git) -> Result<(PathBuf, String, Option<PathBuf>), String> {
    let sources = &spec.actions;
    let fetch = |action: &RepositoryAction| {
        source::fetch(action, &spec.places.action_cache, git, sources.offline)
            .map_err(|error| error.to_string())
    };
    if let Some(path) = uses.strip_prefix("./").or_else(|| uses.strip_prefix("$/")) {
        let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        if !inside {
            return Err("the path must lie in the repository".to_owned());
        }
        if let Some(origin) = &spec.origin {
            return Ok((origin.join(path), uses.to_owned(), spec.origin.clone()));
        }
        if let Some(root) = &sources.checkout_from {
            return Ok((root.join(path), path.to_owned(), None));
        }
        let text = |key: &str| spec.github.get(key).and_then(Json::as_str).unwrap_or_default();
        let fetched = fetch(&RepositoryAction {
            url: format!("{}/{}", text("server_url").trim_end_matches('/'), text("repository")),
            name: text("repository").to_owned(),
            path: PathBuf::new(),
            reference: text("sha").to_owned(),
            login: None,
        })?;
        return Ok((fetched.directory.join(path), path.to_owned(), None));
    }
    match Uses::parse(uses, sources).map_err(|error| error.to_string())? {
        Uses::Repository(action) if action.path.as_os_str().is_empty() => {
            Err("expected owner/repository/path/to/workflow.yaml@ref".to_owned())
        }
        Uses::Repository(action) => {
            let fetched = fetch(&action)?;
            Ok((fetched.directory.join(&action.path), uses.to_owned(), Some(fetched.directory)))
        }
        Uses::Local(_) | Uses::Docker(_) => Err("this is no workflow".to_owned()),
    }
}

/// The `inputs` context of a called workflow: what is given, of the declared types, and the defaults.
///
/// # Errors
/// What is missing, of another type or not declared; a value that cannot be computed.
pub fn inputs(
    called: &Workflow,
    job: &Job,
    file: &str,
    scope: &dyn Scope,
) -> Result<Map<String, Json>, String> {
    let declared = called.on.call_inputs();
    let said = |error: EvaluationError| format!("{file}:{error}");
    for (name, template) in &job.with {
        if !declared.iter().any(|input| input.name.eq_ignore_ascii_case(name)) {
            return Err(format!(
                "{file}:{}: Invalid input, {name} is not defined in the referenced workflow.",
                template.place
            ));
        }
    }
    let mut inputs = Map::new();
    for input in &declared {
        let given = job.with.iter().find(|(name, _)| name.eq_ignore_ascii_case(&input.name));
        let value = match (given, &input.default) {
            (Some((_, template)), _) => {
                let value = template.value(scope).map_err(said)?;
                typed(input, &value).map_err(|wrong| format!("{file}:{}: {wrong}", template.place))?
            }
            (None, Some(default)) => {
                let value = default.value(scope).map_err(said)?;
                typed(input, &value).map_err(|wrong| format!("{file}: the default of an input: {wrong}"))?
            }
            (None, None) if input.required => {
                let place = job.uses.as_ref().map_or(job.place, |uses| uses.place);
                return Err(format!(
                    "{file}:{place}: Input {} is required, but not provided while calling.",
                    input.name
                ));
            }
            (None, None) => match input.kind {
                InputType::Boolean => Json::Bool(false),
                InputType::Number => 0.into(),
                InputType::String | InputType::Choice | InputType::Environment => "".into(),
            },
        };
        inputs.insert(input.name.clone(), value);
    }
    Ok(inputs)
}

/// A value of the type that an input declares.
fn typed(input: &DispatchInput, value: &Value) -> Result<Json, String> {
    let text = value.text();
    let wrong = |wanted: &str| format!("Unexpected value '{text}': the input {} takes {wanted}", input.name);
    Ok(match input.kind {
        InputType::Boolean => match (&value, text.trim()) {
            (Value::Null, _) => Json::Bool(false),
            (_, "true") => Json::Bool(true),
            (_, "false" | "") => Json::Bool(false),
            _ => return Err(wrong("true or false")),
        },
        InputType::Number => match value {
            Value::Bool(_) => return Err(wrong("a number")),
            value => {
                let number = value.to_number();
                if !number.is_finite() {
                    return Err(wrong("a number"));
                }
                Value::Number(number).to_json()
            }
        },
        InputType::String | InputType::Choice | InputType::Environment => {
            if !value.is_primitive() {
                return Err(wrong("text"));
            }
            text.into_owned().into()
        }
    })
}

/// The secrets of a called workflow.
///
/// # Errors
/// A secret that is required and not given, a value that cannot be computed.
pub fn secrets(
    called: &Workflow,
    job: &Job,
    file: &str,
    own: &BTreeMap<String, String>,
    scope: &dyn Scope,
) -> Result<BTreeMap<String, String>, String> {
    let declared = called.on.call_secrets();
    let mut secrets: BTreeMap<String, String> = match &job.secrets {
        JobSecrets::Inherit => own.clone(),
        JobSecrets::None => BTreeMap::new(),
        JobSecrets::Map(entries) => {
            let mut secrets = BTreeMap::new();
            // GitHub refuses a secret that is not declared; Gitea hands it on.
            for (name, template) in entries {
                let value = template.render(scope).map_err(|error| format!("{file}:{error}"))?;
                secrets.insert(name.to_uppercase(), value);
            }
            secrets
        }
    };
    let place = job.uses.as_ref().map_or(job.place, |uses| uses.place);
    for (name, required) in &declared {
        let given = secrets.get(&name.to_uppercase()).is_some_and(|value| !value.is_empty());
        if *required && !given {
            return Err(format!(
                "{file}:{place}: Secret {name} is required, but not provided while calling."
            ));
        }
    }
    for token in ["GITHUB_TOKEN", "GITEA_TOKEN"] {
        if let Some(value) = own.get(token) {
            secrets.entry(token.to_owned()).or_insert_with(|| value.clone());
        }
    }
    Ok(secrets)
}

/// The outputs of a called workflow whose jobs are all over.
///
/// # Errors
/// An output that cannot be computed, with its place.
pub fn outputs(
    called: &Workflow,
    file: &str,
    spec: &JobSpec,
    jobs: &IndexMap<String, Need>,
) -> Result<Vec<(String, String)>, String> {
    let fixed = Fixed::new(spec, "", Object::new(), Object::new(), false);
    let mut frame = Frame::of_job(&spec.inputs);
    frame.jobs = super::scope::results(jobs).into();
    let view = View { fixed: &fixed, frame: &frame, env: &[], status: Status::Success };
    let render = |(name, template): (String, Template)| {
        template.render(&view).map(|value| (name, value)).map_err(|error| format!("{file}:{error}"))
    };
    called.on.call_outputs().into_iter().map(render).collect()
}

/// How jobs that ran stand together for whoever waits for all of them.
#[must_use]
pub fn together(results: impl IntoIterator<Item = Conclusion>) -> Conclusion {
    let weight = |conclusion| match conclusion {
        Conclusion::Skipped => 0,
        Conclusion::Success => 1,
        Conclusion::Cancelled => 2,
        Conclusion::Failure => 3,
    };
    results.into_iter().max_by_key(|conclusion| weight(*conclusion)).unwrap_or(Conclusion::Success)
}

/// The specification of a job of a called workflow: the caller's, with what is the called workflow's own.
#[must_use]
pub fn spec_of(
    spec: &JobSpec,
    called: &Called,
    inputs: Map<String, Json>,
    secrets: BTreeMap<String, String>,
) -> JobSpec {
    // What the caller knows must not be printed by the called either.
    let masks = spec.masks.iter().chain(spec.secrets.values()).cloned().collect();
    JobSpec {
        workflow: called.text.clone(),
        workflow_file: called.file.clone(),
        inputs,
        secrets,
        masks,
        needs: IndexMap::new(),
        matrix: None,
        job: None,
        strategy: None,
        calls: spec.calls + 1,
        origin: called.origin.clone(),
        nested: true,
        head: Vec::new(),
        ..spec.clone()
    }
}

/// Runs a job that calls a workflow within one job: the called jobs one after the other, none before what it needs.
pub(super) fn run(
    spec: &JobSpec,
    plan: &Plan,
    mut log: Log<'_>,
    control: &Control,
    members: Members,
) -> io::Result<Conclusion> {
    let (outputs, conclusion) = match whole(spec, plan, &mut log, control, &members)? {
        Ok(ended) => ended,
        Err(problem) => {
            log.error(&problem)?;
            (Vec::new(), Conclusion::Failure)
        }
    };
    for (name, mut value) in outputs {
        if log.masker.mask_in_place(&mut value) {
            log.warning(&format!("Output {name:?} holds a secret and is left out"))?;
        } else {
            log.emit(&Event::Output { name, value })?;
        }
    }
    let places = &spec.places;
    let workspace = places.remove_workspace.then_some(&places.workspace);
    for directory in [Some(&places.scratch), workspace].into_iter().flatten() {
        if let Err(error) = super::remove::tree(directory) {
            log.warning(&format!("Cannot remove {}: {error}", directory.display()))?;
        }
    }
    Ok(conclusion)
}

type Ended = (Vec<(String, String)>, Conclusion);

fn whole(
    spec: &JobSpec,
    plan: &Plan,
    log: &mut Log<'_>,
    control: &Control,
    members: &Members,
) -> io::Result<Result<Ended, String>> {
    let job = plan.job();
    let file = &spec.workflow_file;
    let fixed = plan.fixed(spec, log.debug);
    let frame = Frame::of_job(&spec.inputs);
    let view = || View { fixed: &fixed, frame: &frame, env: &[], status: Status::Success };
    let success = Condition::success();
    let needs = needs_status(spec.needs.values());
    match job.condition.as_ref().unwrap_or(&success).holds(&JobView { view: view(), needs }) {
        Ok(true) => {}
        Ok(false) => return Ok(Ok((Vec::new(), Conclusion::Skipped))),
        Err(error) => return Ok(Err(format!("{file}:{error}"))),
    }
    let Some(uses) = &job.uses else { return Ok(Ok((Vec::new(), Conclusion::Success))) };
    let path = std::env::var("PATH").unwrap_or_else(|_| super::environment::DEFAULT_PATH.to_owned());
    let git = Git::new(&path, &spec.places.home)
        .with_token(&spec.actions.instance_url, &fixed.github_text("token"));
    let prepared = load(uses, spec, &git).and_then(|called| {
        let inputs = inputs(&called.workflow, job, file, &view())?;
        let secrets = secrets(&called.workflow, job, file, &spec.secrets, &view())?;
        Ok((spec_of(spec, &called, inputs, secrets), called))
    });
    let (inner, called) = match prepared {
        Ok(prepared) => prepared,
        Err(problem) => return Ok(Err(problem)),
    };
    log.text(&format!("Job {} calls the workflow {}", job.id, uses.value))?;
    let deadline = Instant::now() + Duration::from_secs(spec.timeout_seconds);
    let mut ended: IndexMap<String, Need> = IndexMap::new();
    for id in called.workflow.order() {
        let needs = &called.workflow.jobs[&id].needs;
        let needs: IndexMap<String, Need> = needs
            .iter()
            .map(|need| (need.value.clone(), ended.get(&need.value).cloned().unwrap_or_default()))
            .collect();
        let mut before: Vec<Conclusion> =
            needs.values().flat_map(|need| need.result.into_iter().chain(need.before.clone())).collect();
        before.sort_by_key(|conclusion| conclusion.as_str());
        before.dedup();
        let spec = JobSpec { job: Some(id.clone()), needs, ..inner.clone() };
        let need = match one_job(&spec, &called, &id, log, control, members, deadline)? {
            Ok(need) => need,
            Err(problem) => {
                log.error(&problem)?;
                Need { result: Some(Conclusion::Failure), ..Need::default() }
            }
        };
        ended.insert(id, Need { before, ..need });
    }
    let conclusion = together(ended.values().filter_map(|need| need.result));
    Ok(outputs(&called.workflow, &called.file, &inner, &ended).map(|outputs| (outputs, conclusion)))
}

/// Runs all variants of one called job.
fn one_job(
    spec: &JobSpec,
    called: &Called,
    id: &str,
    log: &mut Log<'_>,
    control: &Control,
    members: &Members,
    deadline: Instant,
) -> io::Result<Result<Need, String>> {
    let job = &called.workflow.jobs[id];
    let fixed = Fixed::new(spec, id, Object::new(), Object::new(), log.debug);
    let frame = Frame::of_job(&spec.inputs);
    let view = View { fixed: &fixed, frame: &frame, env: &[], status: Status::Success };
    let combinations = match job.combinations(&view) {
        Ok(combinations) => combinations,
        Err(error) => return Ok(Err(format!("{}:{error}", called.file))),
    };
    let mut need = Need::default();
    let total = combinations.len();
    for (index, matrix) in combinations.into_iter().enumerate() {
        let base = spec.places.scratch.join(format!("call-{id}-{index}"));
        let places = Places {
            workspace: base.join("workspace"),
            scratch: base.join("scratch"),
            remove_workspace: true,
            ..spec.places.clone()
        };
        for directory in [&places.workspace, &places.scratch] {
            fs::create_dir_all(directory).map_err(|error| named(directory, &error))?;
        }
        let strategy = match job.strategy_values(&view, index, total) {
            Ok(strategy) => strategy,
            Err(error) => return Ok(Err(format!("{}:{error}", called.file))),
        };
        let left = deadline.saturating_duration_since(Instant::now()).as_secs().max(1);
        let name = if matrix.is_empty() { id.to_owned() } else { format!("{id} ({})", values(&matrix)) };
        let matrix = matrix.iter().map(|(key, value)| (key.to_owned(), value.to_json())).collect();
        let spec = JobSpec {
            matrix: Some(matrix),
            strategy: Some(strategy),
            places,
            timeout_seconds: left,
            ..spec.clone()
        };
        log.text(&format!("Job {name} begins"))?;
        let mut inner = Nested { log, outputs: Vec::new() };
        let conclusion = super::executor::run(&spec, &mut inner, control, members.clone())?;
        let outputs = inner.outputs;
        log.text(&format!("Job {name}: {conclusion}"))?;
        need.result = Some(together(need.result.into_iter().chain([conclusion])));
        need.outputs.extend(outputs.into_iter().filter(|(_, value)| !value.is_empty()));
    }
    Ok(Ok(need))
}

/// The values of a combination, as job names show them.
#[must_use]
pub fn values(matrix: &Object) -> String {
    let plain = |value: &Value| match value {
        Value::Array(_) | Value::Object(_) => value.to_json().to_string(),
        other => other.to_text(),
    };
    matrix.iter().map(|(_, value)| plain(value)).collect::<Vec<_>>().join(", ")
}

/// Lets a called job's rows into the log of the job that called it. They are masked already.
struct Nested<'n, 'l> {
    log: &'n mut Log<'l>,
    outputs: Vec<(String, String)>,
}

impl Sink for Nested<'_, '_> {
    fn emit(&mut self, event: &Event) -> io::Result<()> {
        match event {
            Event::Row { .. } => self.log.emit(event),
            Event::Output { name, value } => {
                self.outputs.push((name.clone(), value.clone()));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.log.flush()
    }
}

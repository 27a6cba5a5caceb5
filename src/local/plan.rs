//! Which jobs run for an event, in which order, in how many variants.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::{Map, Value};

use crate::job::scope::{Fixed, Frame, View, object};
use crate::job::spec::{ActionSources, JobSpec, NativeActions, Need, Patience, Places, RunnerInfo};
use crate::workflow::model::{DispatchInput, InputType};
use crate::workflow::{Diagnostic, Job, Object, Status, Workflow, parse_workflow};

use super::context::{Context, Question};

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

/// One job with one combination of its matrix.
#[derive(Debug, Clone)]
pub struct Run {
    /// Index into [`Plan::files`].
    pub file: usize,
    /// The job's id.
    pub job: String,
    /// Its name with the values of the matrix.
    pub name: String,
    /// The combination.
    pub matrix: Map<String, Value>,
}

/// What is to run.
#[derive(Debug, Default)]
pub struct Plan {
    /// The workflows.
    pub files: Vec<File>,
    /// The jobs that were picked, workflow by workflow, none before what it needs.
    pub jobs: Vec<(usize, String)>,
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
}

impl Plan {
    /// Reads the workflows and picks the jobs.
    ///
    /// # Errors
    /// When there is no such workflow or job, or a workflow is invalid.
    pub fn new(context: &Context, selection: &Selection) -> Result<(Self, Vec<Diagnostic>), Error> {
        let mut plan = Self::default();
        let mut warnings = Vec::new();
        let mut problems = Vec::new();
        let mut others = Vec::new();
        for (path, name) in find_files(context, selection)? {
            let text = fs::read(&path).map_err(|error| Question(format!("{}: {error}", path.display())))?;
            match parse_workflow(&text, &name) {
                Ok((workflow, found)) => {
                    warnings.extend(found);
                    if workflow.on.has_event(&context.event) {
                        let text = String::from_utf8_lossy(&text).into_owned();
                        plan.files.push(File { name, text, workflow });
                    } else {
                        let events: Vec<&str> = workflow.on.events.keys().map(String::as_str).collect();
                        others.push(format!("{name} runs on {}", events.join(", ")));
                    }
                }
                Err(found) => problems.extend(found),
            }
        }
        if !problems.is_empty() {
            return Err(Error::Invalid(problems));
        }
        if plan.files.is_empty() {
            let others = others.join("; ");
            return Err(
                Question(format!("no workflow runs on {:?} ({others}); see --event", context.event)).into()
            );
        }
        for index in 0..plan.files.len() {
            plan.pick(index, selection.job.as_deref());
        }
        if plan.jobs.is_empty() {
            let known: Vec<&str> =
                plan.files.iter().flat_map(|file| file.workflow.jobs.keys().map(String::as_str)).collect();
            let asked = selection.job.as_deref().unwrap_or_default();
            return Err(
                Question(format!("there is no job {asked:?}; there are: {}", known.join(", "))).into()
            );
        }
        Ok((plan, warnings))
    }

    /// Adds the jobs of a file, each behind those that it needs. The parser has refused circles.
    fn pick(&mut self, index: usize, only: Option<&str>) {
        let jobs = &self.files[index].workflow.jobs;
        let mut order: Vec<String> = Vec::new();
        let mut seen = HashSet::new();
        let mut stack: Vec<(String, bool)> = jobs
            .keys()
            .filter(|id| only.is_none_or(|only| only == id.as_str()))
            .rev()
            .map(|id| (id.clone(), false))
            .collect();
        while let Some((id, ready)) = stack.pop() {
            if ready {
                order.push(id);
            } else if seen.insert(id.clone()) {
                stack.push((id.clone(), true));
                if let Some(job) = jobs.get(&id) {
                    stack.extend(job.needs.iter().rev().map(|need| (need.value.clone(), false)));
                }
            }
        }
        self.jobs.extend(order.into_iter().map(|id| (index, id)));
    }

    /// A job of the plan.
    ///
    /// # Panics
    /// Never for what [`Plan::jobs`] holds.
    #[must_use]
    pub fn job(&self, file: usize, id: &str) -> &Job {
        &self.files[file].workflow.jobs[id]
    }

    /// The variants of a job, now that what it needs has ended.
    ///
    /// # Errors
    /// When its matrix or its name cannot be evaluated.
    pub fn runs(
        &self,
        context: &Context,
        selection: &Selection,
        file: usize,
        id: &str,
        needs: &IndexMap<String, Need>,
    ) -> Result<Vec<Run>, String> {
        let job = self.job(file, id);
        let said = |error: crate::workflow::EvaluationError| format!("{}:{error}", self.files[file].name);
        let spec = self.spec(context, file, id, needs, &Places::none());
        let view_of = |fixed: &Fixed, frame: &Frame, job: &Job| {
            job.strategy
                .as_ref()
                .and_then(|strategy| strategy.matrix.as_ref())
                .map(|matrix| matrix.combinations(&View { fixed, frame, env: &[], status: Status::Success }))
        };
        let fixed = Fixed::new(&spec, id, Object::new(), Object::new(), false);
        let frame = Frame::of_job(&spec.inputs);
        let combinations = match view_of(&fixed, &frame, job) {
            Some(combinations) => combinations.map_err(said)?,
            None => vec![Object::new()],
        };
        let mut runs = Vec::new();
        for matrix in combinations {
            let wanted = |key: &str, value: &crate::workflow::Value| {
                selection.matrix.get(key).is_none_or(|values| values.contains(&value.to_text()))
            };
            if !matrix.iter().all(|(key, value)| wanted(key, value)) {
                continue;
            }
            let fixed = Fixed::new(&spec, id, matrix.clone(), Object::new(), false);
            let view = View { fixed: &fixed, frame: &frame, env: &[], status: Status::Success };
            let values: Vec<String> = matrix.iter().map(|(_, value)| plain(value)).collect();
            let name = match &job.name {
                Some(name) if name.is_literal() && !values.is_empty() => {
                    format!("{} ({})", name.source(), values.join(", "))
                }
                Some(name) => name.render(&view).map_err(said)?,
                None if values.is_empty() => id.to_owned(),
                None => format!("{id} ({})", values.join(", ")),
            };
            let matrix = matrix.iter().map(|(key, value)| (key.to_owned(), value.to_json())).collect();
            runs.push(Run { file, job: id.to_owned(), name, matrix });
        }
        Ok(runs)
    }

    /// The labels that a job asks for, as far as they can be known before it runs.
    ///
    /// # Errors
    /// When they cannot be evaluated.
    pub fn labels(&self, context: &Context, run: &Run) -> Result<Vec<String>, String> {
        let spec = self.spec(context, run.file, &run.job, &IndexMap::new(), &Places::none());
        let matrix = object(&run.matrix);
        let fixed = Fixed::new(&spec, &run.job, matrix, Object::new(), false);
        let frame = Frame::of_job(&spec.inputs);
        let view = View { fixed: &fixed, frame: &frame, env: &[], status: Status::Success };
        let labels = self.job(run.file, &run.job).runs_on.labels(&view);
        labels.map_err(|error| format!("{}:{error}", self.files[run.file].name))
    }

    /// The specification of a job, without its combination.
    #[must_use]
    pub fn spec(
        &self,
        context: &Context,
        file: usize,
        id: &str,
        needs: &IndexMap<String, Need>,
        places: &Places,
    ) -> JobSpec {
        let File { name, text, workflow } = &self.files[file];
        let mut github = context.github.clone();
        let base = Path::new(name)
            .file_name()
            .map_or_else(|| name.clone(), |base| base.to_string_lossy().into_owned());
        let title = workflow.name.as_ref().map_or(base, |title| title.source().to_owned());
        github.insert("workflow".to_owned(), title.into());
        let inputs = if context.event == "workflow_dispatch" {
            typed_inputs(&workflow.on.dispatch_inputs(), &context.inputs)
        } else {
            Map::new()
        };
        JobSpec {
            workflow: text.clone(),
            workflow_file: name.clone(),
            job: Some(id.to_owned()),
            matrix: Some(Map::new()),
            github,
            inputs,
            secrets: context.secrets().clone(),
            vars: context.vars.clone(),
            needs: needs.clone(),
            masks: Vec::new(),
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
                native: NativeActions { policy: context.native, insecure: false },
            },
            head: Vec::new(),
            timeout_seconds: 6 * 60 * 60,
            patience: Patience::default(),
            journal_limit: u64::MAX,
        }
    }
}

fn plain(value: &crate::workflow::Value) -> String {
    match value {
        crate::workflow::Value::Array(_) | crate::workflow::Value::Object(_) => value.to_json().to_string(),
        other => other.to_text(),
    }
}

/// Inputs of `workflow_dispatch` with their declared types and defaults.
fn typed_inputs(declared: &[DispatchInput], given: &[(String, String)]) -> Map<String, Value> {
    let mut inputs = Map::new();
    for input in declared {
        let given = given.iter().rev().find(|(name, _)| name.eq_ignore_ascii_case(&input.name));
        let text = match (given, &input.default) {
            (Some((_, value)), _) => value.clone(),
            (None, Some(default)) => default.source().to_owned(),
            (None, None) => String::new(),
        };
        let value = match input.kind {
            InputType::Boolean => Value::Bool(text == "true"),
            InputType::Number => text.parse::<f64>().map_or(Value::Null, Value::from),
            InputType::String | InputType::Choice | InputType::Environment => text.into(),
        };
        inputs.insert(input.name.clone(), value);
    }
    inputs
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

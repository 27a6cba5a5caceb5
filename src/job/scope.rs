//! What expressions see: the contexts of a job, of a step, and of a step inside an action.

use std::path::{Path, PathBuf};
use std::time::Instant;

use indexmap::IndexMap;
use serde_json::{Map, Value as Json};

use crate::events::Conclusion;
use crate::workflow::{Object, Scope, Status, Value, hash_files};

use super::host;
use super::spec::{JobSpec, Need};

/// The contexts that stay the same for a whole job.
#[derive(Debug)]
pub struct Fixed {
    github: Object,
    runner: Value,
    secrets: Value,
    vars: Value,
    needs: Value,
    strategy: Value,
    matrix: Value,
    workspace: PathBuf,
}

impl Fixed {
    /// Puts together what the specification says with what only the runner knows.
    #[must_use]
    pub fn new(spec: &JobSpec, job_id: &str, matrix: Object, strategy: Object, debug: bool) -> Self {
        let mut github: Object =
            spec.github.iter().map(|(key, value)| (key.as_str(), Value::from(value.clone()))).collect();
        let places = &spec.places;
        github.insert("workspace", text(&places.workspace));
        github.insert("event_path", text(&places.scratch.join("event.json")));
        github.insert("job", job_id);
        // What the server leaves out and the event knows.
        let known =
            |github: &Object, key: &str| github.get(key).is_some_and(|value| !value.text().is_empty());
        let event = spec.github.get("event");
        for (key, pointer) in [
            ("actor_id", "/sender/id"),
            ("repository_id", "/repository/id"),
            ("repository_owner_id", "/repository/owner/id"),
        ] {
            if let Some(id) = event.and_then(|event| event.pointer(pointer)).and_then(Json::as_u64)
                && !known(&github, key)
            {
                github.insert(key, id.to_string());
            }
        }
        let part = |key: &str| github.get(key).map(Value::to_text).unwrap_or_default();
        let file = match spec.workflow_file.contains('/') {
            true => spec.workflow_file.clone(),
            false => format!(".gitea/workflows/{}", spec.workflow_file),
        };
        let more = [
            ("workflow_ref", format!("{}/{file}@{}", part("repository"), part("ref"))),
            ("workflow_sha", part("sha")),
        ];
        for (key, value) in more {
            if !known(&github, key) {
                github.insert(key, value);
            }
        }
        let runner: Object = [
            ("name", Value::from(spec.runner.name.as_str())),
            ("os", "Linux".into()),
            ("arch", host::arch().into()),
            ("temp", text(&places.scratch.join("temp"))),
            ("tool_cache", text(&places.tool_cache)),
            ("workspace", text(places.workspace.parent().unwrap_or(&places.workspace))),
            ("environment", "self-hosted".into()),
            ("debug", if debug { "1" } else { "" }.into()),
        ]
        .into_iter()
        .collect();
        let needs = results(&spec.needs);
        let strings = |map: &std::collections::BTreeMap<String, String>| -> Object {
            map.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
        };
        Self {
            github,
            runner: runner.into(),
            secrets: strings(&spec.secrets).into(),
            vars: strings(&spec.vars).into(),
            needs: needs.into(),
            strategy: strategy.into(),
            matrix: matrix.into(),
            workspace: places.workspace.clone(),
        }
    }

    /// A value of the `github` context as text; empty when it is not there.
    #[must_use]
    pub fn github_text(&self, key: &str) -> String {
        self.github.get(key).map(Value::to_text).unwrap_or_default()
    }
}

fn text(path: &Path) -> Value {
    path.to_string_lossy().into_owned().into()
}

/// How a step ended and what it gave.
#[derive(Debug, Clone)]
pub struct StepResult {
    /// What it did.
    pub outcome: Conclusion,
    /// What it counts as.
    pub conclusion: Conclusion,
    /// Its outputs.
    pub outputs: IndexMap<String, String>,
}

/// The steps that one list of steps has run: those of the job, or those of a composite action.
#[derive(Debug, Default)]
pub struct Frame {
    /// The `inputs` context.
    pub inputs: Value,
    /// The `steps` context. Replaced as a whole when a step ends, so that copies that were given out stay as they are.
    pub(super) steps: Object,
    /// The action that these steps belong to; `None` for the job's own.
    pub action: Option<ActionPlace>,
    /// Variables that the step which uses the action gives to the steps inside.
    pub env: Vec<(String, String)>,
    /// How the steps of this list stand: a composite action has its own success and failure.
    pub status: Status,
    /// How many actions are around these steps.
    pub depth: usize,
    /// When the step that uses the action has to be over.
    pub deadline: Option<Instant>,
    /// The step of the job that uses the action.
    pub index: Option<usize>,
    /// Which steps are around these: the number of the job's step, of the step in its action, and so on.
    pub path: Vec<usize>,
    /// The number of the step that runs now.
    pub position: usize,
    /// The name of the step that runs now, as `github.action` has it.
    pub step_name: String,
    /// The `jobs` context, for the outputs of a called workflow.
    pub jobs: Value,
}

impl Frame {
    /// Begins with a step: its number in its list, and its name.
    pub fn begin(&mut self, position: usize, name: &str) {
        self.position = position;
        name.clone_into(&mut self.step_name);
    }

    /// Which step runs now, from the job's own down to this one.
    #[must_use]
    pub fn place(&self) -> Vec<usize> {
        self.path.iter().copied().chain([self.position]).collect()
    }
}

/// Where an action lies and where it came from.
#[derive(Debug, Clone, Default)]
pub struct ActionPlace {
    /// Its directory.
    pub directory: PathBuf,
    /// `owner/name`; empty for a local or embedded action.
    pub repository: String,
    /// The ref that was asked for.
    pub reference: String,
}

/// How jobs ended and what they gave, as `needs` and `jobs` have it.
#[must_use]
pub fn results(jobs: &IndexMap<String, Need>) -> Object {
    jobs.iter()
        .map(|(id, need)| {
            let outputs: Object =
                need.outputs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let result = need.result.map_or("", Conclusion::as_str);
            let need: Object =
                [("result", Value::from(result)), ("outputs", outputs.into())].into_iter().collect();
            (id.as_str(), need)
        })
        .collect()
}

/// A JSON object as a value of the expression language.
#[must_use]
pub fn object(map: &Map<String, Json>) -> Object {
    map.iter().map(|(name, value)| (name.as_str(), Value::from(value.clone()))).collect()
}

impl Frame {
    /// The frame of a job's own steps.
    #[must_use]
    pub fn of_job(inputs: &Map<String, Json>) -> Self {
        Self { inputs: object(inputs).into(), ..Self::default() }
    }

    /// Keeps how a step ended.
    pub fn ended(&mut self, id: &str, result: &StepResult) {
        let outputs: Object =
            result.outputs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let entry: Object = [
            ("outputs", Value::from(outputs)),
            ("outcome", result.outcome.as_str().into()),
            ("conclusion", result.conclusion.as_str().into()),
        ]
        .into_iter()
        .collect();
        self.steps.insert(id, entry);
    }
}

/// Everything that an expression can see at one moment.
#[derive(Debug)]
pub struct View<'a> {
    /// What stays the same.
    pub fixed: &'a Fixed,
    /// Where in the job.
    pub frame: &'a Frame,
    /// The `env` context: the job's variables, and above them the step's.
    pub env: &'a [&'a [(String, String)]],
    /// How the job stands.
    pub status: Status,
}

impl Scope for View<'_> {
    fn named(&self, name: &str) -> Option<Value> {
        let fixed = self.fixed;
        Some(match name {
            "github" | "gitea" | "forgejo" => {
                let mut github = fixed.github.clone();
                if !self.frame.step_name.is_empty() {
                    github.insert("action", self.frame.step_name.as_str());
                }
                if let Some(action) = &self.frame.action {
                    github.insert("action_path", text(&action.directory));
                    github.insert("action_repository", action.repository.as_str());
                    github.insert("action_ref", action.reference.as_str());
                    github.insert("action_status", status_word(self.frame.status));
                }
                github.into()
            }
            "env" => {
                let mut env = Object::new();
                for (name, value) in self.env.iter().copied().flatten() {
                    env.insert(name.as_str(), value.as_str());
                }
                env.into()
            }
            "job" => {
                let job: Object = [
                    ("status", Value::from(status_word(self.status))),
                    ("services", Object::new().into()),
                    ("container", Object::new().into()),
                ]
                .into_iter()
                .collect();
                job.into()
            }
            "steps" => self.frame.steps.clone().into(),
            "runner" => fixed.runner.clone(),
            // An action gets the secrets that its inputs name and no others.
            "secrets" if self.frame.action.is_some() => return None,
            "secrets" => fixed.secrets.clone(),
            "vars" => fixed.vars.clone(),
            "needs" => fixed.needs.clone(),
            "strategy" => fixed.strategy.clone(),
            "matrix" => fixed.matrix.clone(),
            "inputs" => self.frame.inputs.clone(),
            "jobs" => self.frame.jobs.clone(),
            _ => return None,
        })
    }

    fn status(&self) -> Status {
        // Inside an action, success() is about its own steps; a cancelled job is cancelled everywhere.
        match (&self.frame.action, self.status) {
            (Some(_), Status::Success | Status::Failure) => self.frame.status,
            (_, status) => status,
        }
    }

    fn hash_files(&self, patterns: &[String]) -> Result<String, String> {
        hash_files(&self.fixed.workspace, patterns)
    }
}

const fn status_word(status: Status) -> &'static str {
    match status {
        Status::Success => "success",
        Status::Failure => "failure",
        Status::Cancelled => "cancelled",
        Status::Skipped => "skipped",
    }
}

/// What a job's own `if` sees: no steps yet, and the status of what it needs.
#[derive(Debug)]
pub struct JobView<'a> {
    /// The contexts.
    pub view: View<'a>,
    /// How the needed jobs ended.
    pub needs: Status,
}

impl Scope for JobView<'_> {
    fn named(&self, name: &str) -> Option<Value> {
        self.view.named(name)
    }

    fn status(&self) -> Status {
        self.needs
    }

    fn hash_files(&self, patterns: &[String]) -> Result<String, String> {
        self.view.hash_files(patterns)
    }
}

/// How the jobs that a job needs stand together, for `success()`, `failure()` and `cancelled()` in its `if`: those
/// that it names and, as far as they are known, all before them.
#[must_use]
pub fn needs_status<'a>(needs: impl IntoIterator<Item = &'a Need>) -> Status {
    let mut status = Status::Success;
    for result in needs.into_iter().flat_map(|need| need.result.iter().chain(&need.before)) {
        match result {
            Conclusion::Success => {}
            Conclusion::Cancelled => return Status::Cancelled,
            Conclusion::Failure => status = Status::Failure,
            // A job that was skipped was skipped for a reason: what needs it is skipped too, unless it says always().
            Conclusion::Skipped if status == Status::Success => status = Status::Skipped,
            Conclusion::Skipped => {}
        }
    }
    status
}

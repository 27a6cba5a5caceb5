//! What a task carries beside its payload: the `github` context, secrets, variables and the results of its needs.

use std::collections::BTreeMap;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value as Json, json};
use sower_wire::runner::{Result as WireResult, Task as WireTask, TaskNeed};
use sower_wire::{Struct, Value, value::Kind};

use crate::random;
use crate::state::{Job, Run, State, Status};

/// A token for the artifact and summary routes, in the form of the real one; the signature is noise.
pub(crate) fn runtime_token(run: i64, job: i64, task: i64) -> io::Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let header = json!({"alg": "HS256", "typ": "JWT"});
    let claims = json!({
        "exp": now + 4 * 3600,
        "nbf": now,
        "scp": format!("Actions.Results:{run}:{job}"),
        "TaskID": task,
        "RunID": run,
        "JobID": job,
        "ac": r#"[{"Scope":"","Permission":2}]"#,
    });
    let part = |text: &Json| URL_SAFE_NO_PAD.encode(text.to_string());
    Ok(format!("{}.{}.{}", part(&header), part(&claims), URL_SAFE_NO_PAD.encode(random::hex(16)?)))
}

impl State {
    /// A claimed task as FetchTask delivers it.
    pub(crate) fn task_message(&self, id: i64) -> Option<WireTask> {
        let task = self.tasks.get(&id)?;
        let job = self.jobs.get(&task.job)?;
        let run = self.runs.get(&job.run)?;
        let mut secrets: BTreeMap<String, String> = self.secrets.clone();
        secrets.extend(job.extra.secrets.clone());
        for name in ["GITHUB_TOKEN", "GITEA_TOKEN"] {
            secrets.insert(name.to_owned(), task.token.clone());
        }
        let mut vars = self.vars.clone();
        vars.extend(job.extra.vars.clone());
        let context = self.context(run, job, &task.token, &task.runtime_token);
        Some(WireTask {
            id,
            workflow_payload: Some(job.payload.clone()),
            context: Some(structure(&context)),
            secrets: secrets.into_iter().collect(),
            machine: String::new(),
            needs: self.needs(run, job),
            vars: vars.into_iter().collect(),
        })
    }

    fn context(&self, run: &Run, job: &Job, token: &str, runtime_token: &str) -> Map<String, Json> {
        let base = &self.base;
        let (kind, name) = match run.reference.strip_prefix("refs/tags/") {
            Some(tag) => ("tag", tag),
            None => ("branch", run.reference.strip_prefix("refs/heads/").unwrap_or(&run.reference)),
        };
        let owner = run.repository.split('/').next().unwrap_or_default();
        let mut context = Map::new();
        for key in [
            "action",
            "action_path",
            "action_ref",
            "action_repository",
            "action_status",
            "base_ref",
            "head_ref",
            "env",
            "path",
            "event_path",
            "workspace",
            "graphql_url",
            "retention_days",
        ] {
            context.insert(key.to_owned(), Json::from(""));
        }
        let text = [
            ("actor", crate::forge::USER.to_owned()),
            ("triggering_actor", crate::forge::USER.to_owned()),
            ("api_url", format!("{base}/api/v1")),
            ("server_url", format!("{base}/")),
            ("event_name", run.event_name.clone()),
            ("job", job.key.clone()),
            ("ref", run.reference.clone()),
            ("ref_name", name.to_owned()),
            ("ref_type", kind.to_owned()),
            ("sha", run.sha.clone()),
            ("repository", run.repository.clone()),
            ("repository_owner", owner.to_owned()),
            ("repositoryUrl", format!("{base}/{}", run.repository)),
            ("run_id", run.id.to_string()),
            ("run_number", run.number.to_string()),
            ("run_attempt", "1".to_owned()),
            ("secret_source", "Actions".to_owned()),
            ("workflow", run.workflow.clone()),
            ("token", token.to_owned()),
            ("gitea_runtime_token", runtime_token.to_owned()),
            ("gitea_default_actions_url", base.clone()),
        ];
        context.extend(text.into_iter().map(|(key, value)| (key.to_owned(), Json::from(value))));
        context.insert("ref_protected".to_owned(), Json::from(false));
        context.insert("event".to_owned(), run.event.clone());
        context.extend(job.extra.context.clone());
        context
    }

    /// Results and outputs of the direct needs. Jobs of one matrix share a key: a value that is not empty wins over an
    /// earlier one, and one failure makes the need a failure.
    fn needs(&self, run: &Run, job: &Job) -> BTreeMap<String, TaskNeed> {
        let mut needs: BTreeMap<String, TaskNeed> = job
            .extra
            .needs
            .iter()
            .map(|(key, (status, outputs))| {
                let outputs = outputs.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
                (key.clone(), TaskNeed { outputs, result: status.to_result().into() })
            })
            .collect();
        for key in &job.needs {
            let siblings: Vec<&Job> = run
                .jobs
                .iter()
                .filter_map(|id| self.jobs.get(id))
                .filter(|other| other.key == *key)
                .collect();
            let mut outputs = BTreeMap::new();
            for sibling in &siblings {
                let Some(task) = sibling.task.and_then(|task| self.tasks.get(&task)) else { continue };
                for (name, value) in &task.outputs {
                    if !value.is_empty() || !outputs.contains_key(name) {
                        outputs.insert(name.clone(), value.clone());
                    }
                }
            }
            let any = |status| siblings.iter().any(|job| job.status == status);
            let result = [Status::Failure, Status::Cancelled, Status::Success]
                .into_iter()
                .find(|status| any(*status))
                .map_or(WireResult::Skipped, Status::to_result);
            needs.insert(key.clone(), TaskNeed { outputs, result: result.into() });
        }
        needs
    }
}

fn structure(map: &Map<String, Json>) -> Struct {
    Struct { fields: map.iter().map(|(key, json)| (key.clone(), value(json))).collect() }
}

fn value(json: &Json) -> Value {
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(truth) => Kind::BoolValue(*truth),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::StringValue(text.clone()),
        Json::Array(items) => {
            Kind::ListValue(prost_types::ListValue { values: items.iter().map(value).collect() })
        }
        Json::Object(map) => Kind::StructValue(structure(map)),
    };
    Value { kind: Some(kind) }
}

//! A task as Gitea sends it becomes a job to run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use indexmap::IndexMap;
use serde_json::{Map, Value};
use sower_wire::runner::{Result as WireResult, Task, TaskNeed};
use sower_wire::{Struct, Value as WireValue, value};

use super::client::Address;
use crate::cache::Grant;
use crate::config::{Config, Native};
use crate::events::{Conclusion, StepInfo, Timestamp};
use crate::housekeeping;
use crate::job::spec::{
    ActionSources, Detour, JobSpec, MemorySpec, NativeActions, NativePolicy, Need, OperatorSpec, Patience,
    Places, Results, RunnerInfo,
};
use crate::limits::admission::Request;
use crate::supervisor::{Meta, history};
use crate::yaml;

/// What the daemon knows that a task does not say.
#[derive(Debug, Clone)]
pub struct Surroundings<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// Variables of the configuration for every step.
    pub step_env: &'a BTreeMap<String, String>,
    /// The instance as this host reaches it, which may differ from what Gitea thinks of itself.
    pub address: &'a Address,
    /// The runner.
    pub runner: RunnerInfo,
    /// Its UUID.
    pub uuid: &'a str,
    /// Name of this host.
    pub host: &'a str,
    /// Where jobs find the cache server; `None` where there is none.
    pub cache: Option<&'a str>,
    /// Where clients of version 2 find cache and artifacts at one address; `None` where nothing serves both.
    pub results: Option<&'a str>,
}

/// Makes the job of a task; its directories lie in `directory` (or in `host.workdir_parent`).
///
/// Nothing of the workflow is judged here: whatever is wrong with it, the job says in its log.
#[must_use]
pub fn job_spec(task: Task, directory: &Path, around: &Surroundings<'_>) -> (JobSpec, Meta) {
    let config = around.config;
    let address = around.address.as_str();
    let mut github = task.context.map(object).unwrap_or_default();
    let text = |github: &Map<String, Value>, key: &str| {
        github.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let token = text(&github, "token");
    let runtime_token = match text(&github, "gitea_runtime_token") {
        empty if empty.is_empty() => token.clone(),
        runtime_token => runtime_token,
    };
    let default_actions_url = text(&github, "gitea_default_actions_url");
    github.insert("server_url".to_owned(), address.into());
    github.insert("api_url".to_owned(), format!("{address}/api/v1").into());

    let repository = text(&github, "repository");
    let job = text(&github, "job");
    let head = vec![
        format!("Runner {} on {}, task {} of {address}", around.runner.name, around.host, task.id),
        format!(
            "Job {job} of {repository}, {} of {} at {}",
            text(&github, "event_name"),
            text(&github, "ref"),
            text(&github, "sha"),
        ),
    ];

    let mut env = around.step_env.clone();
    let mut set = |key: &str, value: String| env.insert(key.to_owned(), value);
    set("ACTIONS_RUNTIME_URL", format!("{address}/api/actions_pipeline/"));
    set("ACTIONS_RESULTS_URL", around.results.unwrap_or(address).to_owned());
    if around.results.is_some() {
        set("ACTIONS_CACHE_SERVICE_V2", "true".to_owned());
    }
    set("ACTIONS_RUNTIME_TOKEN", runtime_token.clone());
    if let Some(cache) = around.cache {
        set("ACTIONS_CACHE_URL", format!("{}/", cache.trim_end_matches('/')));
    }
    set("GITEA_ACTIONS", "true".to_owned());
    set("GITEA_ACTIONS_RUNNER_VERSION", crate::VERSION.to_owned());
    let claims = claims(&runtime_token);
    let mut masks = vec![token, runtime_token];
    for key in ["url", "token"] {
        let value = text(&github, &format!("actions_id_token_request_{key}"));
        if !value.is_empty() {
            set(&format!("ACTIONS_ID_TOKEN_REQUEST_{}", key.to_uppercase()), value.clone());
            if key == "token" {
                masks.push(value);
            }
        }
    }
    masks.retain(|mask| !mask.is_empty());

    let workflow_file = match text(&github, "workflow") {
        empty if empty.is_empty() => "workflow.yaml".to_owned(),
        file => file,
    };
    let workflow = String::from_utf8(task.workflow_payload.unwrap_or_default())
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    let work = config.host.workdir_parent.as_ref().map(|parent| parent.join(format!("task-{}", task.id)));
    let meta = Meta {
        received: Some(Timestamp::now()),
        runner: around.uuid.to_owned(),
        repository,
        job,
        workflow: workflow_file.clone(),
        run_number: claim(claims.as_ref(), "RunID"),
        job_number: claim(claims.as_ref(), "JobID"),
        steps: steps(&workflow),
        work: work.clone(),
        cache_refs: Grant::of_context(&github).reads,
    };
    let spec = JobSpec {
        inputs: inputs(&github),
        workflow_file,
        workflow,
        job: None,
        matrix: None,
        github,
        secrets: task.secrets,
        vars: task.vars,
        needs: needs(task.needs),
        masks,
        env,
        runner: around.runner.clone(),
        places: places(config, work.as_deref().unwrap_or(directory)),
        actions: ActionSources {
            default_url: default_actions_url,
            instance_url: address.to_owned(),
            github_mirror: config.runner.github_mirror.clone(),
            embedded: config.actions.embedded,
            checkout_from: None,
            offline: config.cache.offline_mode,
            mirrors: config.actions.mirrors.clone(),
            native: NativeActions {
                policy: match config.actions.native {
                    Native::Auto => NativePolicy::Auto,
                    Native::Always => NativePolicy::Always,
                    Native::Never => NativePolicy::Never,
                },
                insecure: config.runner.insecure,
                // Nothing that is built in has to go the longer way.
                artifacts: around
                    .results
                    .map(|results| Detour { announced: results.to_owned(), direct: address.to_owned() }),
            },
        },
        head,
        timeout_seconds: config.runner.timeout.as_secs().max(1),
        strategy: None,
        nested: false,
        calls: 0,
        origin: None,
        patience: Patience {
            interrupt_millis: millis(config.runner.interrupt_grace),
            terminate_millis: millis(config.runner.terminate_grace),
            cleanup_seconds: config.runner.cleanup_timeout.as_secs().max(1),
        },
        journal_limit: config.runner.journal_limit,
        memory: MemorySpec {
            limits: config.limits.clone(),
            ghc: config.ghc.clone(),
            causes: config.diagnose.clone(),
            record: Some(directory.join("memory.json")),
            admission: (config.history.admission && config.runner.capacity > 1).then(|| Request {
                directory: config.state_dir().join("admission"),
                peaks: history::peaks(config.state_dir()),
                job: history::key(&meta.repository, &meta.workflow, &meta.job),
                task: task.id,
            }),
        },
        operator: OperatorSpec {
            task: Some(task.id),
            hooks: config.hooks.clone(),
            tally: Some(directory.join("tally")),
            results: (config.housekeeping.results > 0).then(|| Results {
                folder: housekeeping::roots(config.state_dir()),
                task: task.id,
                keep: config.housekeeping.results,
            }),
            gc_lock: Some(housekeeping::lock_file(config.state_dir())),
        },
    };
    (spec, meta)
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What the runtime token says of itself. It is not ours to check; the instance does.
fn claims(token: &str) -> Option<Value> {
    let payload = token.split('.').nth(1)?;
    let json = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).ok()?;
    serde_json::from_slice(&json).ok()
}

fn claim(claims: Option<&Value>, name: &str) -> Option<i64> {
    claims?.get(name)?.as_i64()
}

fn places(config: &Config, work: &Path) -> Places {
    let state = config.state_dir();
    let cache = config.cache.dir.clone().unwrap_or_else(|| state.join("cache"));
    let home = config.host.home.clone().or_else(|| {
        std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute() && home.is_dir())
    });
    Places {
        workspace: work.join("workspace"),
        scratch: work.join("scratch"),
        tool_cache: cache.join("tools"),
        action_cache: cache.join("actions"),
        home: home.unwrap_or_else(|| state.join("home")),
        remove_workspace: true,
    }
}

/// The `inputs` context: what `workflow_dispatch` was given, or what a calling workflow gave.
fn inputs(github: &Map<String, Value>) -> Map<String, Value> {
    let event = github.get("event_name").and_then(Value::as_str);
    if !matches!(event, Some("workflow_dispatch" | "workflow_call")) {
        return Map::new();
    }
    let inputs = github.get("event").and_then(|event| event.get("inputs")).and_then(Value::as_object);
    inputs.cloned().unwrap_or_default()
}

fn needs(needs: BTreeMap<String, TaskNeed>) -> IndexMap<String, Need> {
    let conclusion = |need: &TaskNeed| match need.result() {
        WireResult::Unspecified => None,
        WireResult::Success => Some(Conclusion::Success),
        WireResult::Failure => Some(Conclusion::Failure),
        WireResult::Cancelled => Some(Conclusion::Cancelled),
        WireResult::Skipped => Some(Conclusion::Skipped),
    };
    needs
        .into_iter()
        .map(|(job, need)| {
            (job, Need { result: conclusion(&need), outputs: need.outputs, ..Need::default() })
        })
        .collect()
}

/// The steps that Gitea made of the payload, for a job that dies before it says what they are.
fn steps(workflow: &str) -> Vec<StepInfo> {
    let Ok(document) = yaml::parse(workflow.as_bytes()) else { return Vec::new() };
    let jobs = document.get("jobs").and_then(yaml::Node::as_mapping).unwrap_or_default();
    // A payload has one job. Of one that has more, the first counts, as it does for whoever made its steps.
    let Some((_, job)) = jobs.first() else { return Vec::new() };
    let steps = job.get("steps").and_then(yaml::Node::as_sequence).unwrap_or_default();
    let text = |step: &yaml::Node, key: &str| step.get(key).and_then(yaml::Node::scalar_text);
    steps
        .iter()
        .enumerate()
        .map(|(index, step)| StepInfo {
            id: text(step, "id").unwrap_or_else(|| index.to_string()),
            name: text(step, "name").unwrap_or_else(|| format!("step {index}")),
        })
        .collect()
}

fn object(object: Struct) -> Map<String, Value> {
    object.fields.into_iter().map(|(key, value)| (key, json(value))).collect()
}

/// Nesting is bounded: the decoder of the wire stops at 100 messages in each other.
fn json(wire: WireValue) -> Value {
    match wire.kind {
        None | Some(value::Kind::NullValue(_)) => Value::Null,
        Some(value::Kind::NumberValue(number)) => self::number(number),
        Some(value::Kind::StringValue(text)) => Value::String(text),
        Some(value::Kind::BoolValue(truth)) => Value::Bool(truth),
        Some(value::Kind::StructValue(inner)) => Value::Object(object(inner)),
        Some(value::Kind::ListValue(list)) => Value::Array(list.values.into_iter().map(json).collect()),
    }
}

/// Protobuf knows floating point only; a whole number is meant as one.
fn number(number: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() <= EXACT {
        #[expect(clippy::cast_possible_truncation, reason = "a whole number of at most 2^53")]
        let whole = number as i64;
        return whole.into();
    }
    serde_json::Number::from_f64(number).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use sower_wire::runner::FetchTaskResponse;

    use super::*;

    fn recorded(name: &str) -> (Task, Value, String) {
        let root = format!("{}/tests/data/recorded/{name}-FetchTask", env!("CARGO_MANIFEST_DIR"));
        let body = std::fs::read(format!("{root}.res")).unwrap();
        let json = std::fs::read(format!("{root}.task.json")).unwrap();
        let payload = std::fs::read_to_string(format!("{root}.payload.yaml")).unwrap();
        let task = FetchTaskResponse::decode(body.as_slice()).unwrap().task.unwrap();
        (task, serde_json::from_slice(&json).unwrap(), payload)
    }

    fn spec(task: Task, config: &Config) -> (JobSpec, Meta) {
        let address: Address = "http://gitea.internal:3000/git/".parse().unwrap();
        let runner = RunnerInfo { name: "haskelseed".to_owned(), labels: vec!["host".to_owned()] };
        let env = [("LEVEL".to_owned(), "runner".to_owned())].into();
        let around = Surroundings {
            config,
            step_env: &env,
            address: &address,
            runner,
            uuid: "u",
            host: "box",
            cache: Some("http://127.0.0.1:1"),
            results: Some("http://127.0.0.1:1"),
        };
        job_spec(task, Path::new("/state/jobs/1"), &around)
    }

    #[test]
    fn recorded_tasks_become_jobs() {
        for name in ["gitea-1.26-dev/007", "gitea-1.27-like/007"] {
            let (task, json, payload) = recorded(name);
            let (spec, meta) = spec(task, &Config::default());
            assert_eq!(spec.workflow, payload, "{name}");
            assert_eq!(spec.workflow_file, "main.yaml");
            // Everything of the context is there as the server gave it, but for the addresses.
            let mut expected = json["context"].as_object().unwrap().clone();
            expected.insert("server_url".to_owned(), "http://gitea.internal:3000/git".into());
            expected.insert("api_url".to_owned(), "http://gitea.internal:3000/git/api/v1".into());
            let whole = |value: &Value| value.to_string().replace(".0,", ",").replace(".0}", "}").len();
            assert_eq!(spec.github.len(), expected.len(), "{name}");
            for (key, value) in &expected {
                assert_eq!(whole(&spec.github[key]), whole(value), "{name}: {key}");
            }
            assert_eq!(spec.secrets["DEPLOY_KEY"], "throwaway-secret-1");
            assert_eq!(spec.vars["REGISTRY"], "from-vars");
            let token = spec.github["token"].as_str().unwrap();
            let runtime_token = spec.github["gitea_runtime_token"].as_str().unwrap();
            assert_eq!(spec.masks, [token, runtime_token]);
            assert_eq!(
                spec.env["ACTIONS_RUNTIME_URL"],
                "http://gitea.internal:3000/git/api/actions_pipeline/"
            );
            // The cache server hands on what is Gitea's; what is built in asks Gitea itself.
            assert_eq!(spec.env["ACTIONS_RESULTS_URL"], "http://127.0.0.1:1");
            assert_eq!(spec.env["ACTIONS_CACHE_SERVICE_V2"], "true");
            assert_eq!(
                spec.actions.native.artifacts.as_ref().map(|detour| detour.direct.as_str()),
                Some("http://gitea.internal:3000/git")
            );
            assert_eq!(spec.env["ACTIONS_RUNTIME_TOKEN"], runtime_token);
            assert_eq!(spec.env["ACTIONS_CACHE_URL"], "http://127.0.0.1:1/");
            assert_eq!(meta.cache_refs, ["refs/heads/main"]);
            assert_eq!((spec.env["GITEA_ACTIONS"].as_str(), spec.env["LEVEL"].as_str()), ("true", "runner"));
            assert_eq!(spec.places.workspace, Path::new("/state/jobs/1/workspace"));
            assert_eq!(spec.timeout_seconds, 10_800);
            assert_eq!((meta.job.as_str(), meta.repository.as_str()), ("build", "sower/probe"));
            assert_eq!((meta.run_number, meta.job_number), (Some(1), Some(1)));
            // The steps count as Gitea counts them.
            let said: Vec<&str> = meta.steps.iter().map(|step| step.id.as_str()).collect();
            assert_eq!(said, ["0", "short", "2", "3", "4", "5"]);
            assert!(!serde_json::to_string(&meta).unwrap().contains(token), "no secret is in meta.json");
            assert_eq!(spec.head[0], "Runner haskelseed on box, task 1 of http://gitea.internal:3000/git");
            assert!(spec.head[1].starts_with("Job build of sower/probe, push of refs/heads/main at "));
        }
    }

    #[test]
    fn needs_come_with_result_and_outputs() {
        let (task, ..) = recorded("gitea-1.27-like/031");
        let (spec, _) = spec(task, &Config::default());
        assert_eq!(spec.needs["build"].result, Some(Conclusion::Success));
        assert_eq!(spec.needs["build"].outputs["sha"], "95fea0e");
    }

    #[test]
    fn the_configuration_says_where_jobs_work() {
        let text = b"runner: {file: /srv/sower/.runner}\nhost: {workdir_parent: /builds, home: /home/ci}\n";
        let (config, _) = Config::parse(Path::new("c"), text).unwrap();
        let (spec, meta) = spec(Task { id: 12, ..Task::default() }, &config);
        assert_eq!(spec.places.scratch, Path::new("/builds/task-12/scratch"));
        assert_eq!(spec.places.home, Path::new("/home/ci"));
        assert_eq!(spec.places.action_cache, Path::new("/srv/sower/cache/actions"));
        assert_eq!(meta.work.as_deref(), Some(Path::new("/builds/task-12")));
    }

    #[test]
    fn a_task_with_nothing_in_it_is_a_job_still() {
        let (spec, meta) = spec(Task::default(), &Config::default());
        assert_eq!(spec.workflow, "");
        assert!(spec.masks.is_empty() && meta.steps.is_empty());
    }

    #[test]
    fn inputs_are_those_of_a_dispatch_only() {
        let github = |event: &str| -> Map<String, Value> {
            let json = serde_json::json!({"event_name": event, "event": {"inputs": {"level": "2"}}});
            json.as_object().unwrap().clone()
        };
        assert_eq!(inputs(&github("workflow_dispatch"))["level"], "2");
        assert!(inputs(&github("push")).is_empty());
    }

    #[test]
    fn whole_numbers_are_whole() {
        assert_eq!(number(3.0).to_string(), "3");
        assert_eq!(number(-0.5).to_string(), "-0.5");
        assert_eq!(number(f64::NAN), Value::Null);
        assert_eq!(number(1e300).to_string(), "1e+300");
    }
}

//! The variables that every step finds: the clean base, `GITHUB_*`, `RUNNER_*`, and the path.
//!
//! Nothing of the daemon's own environment gets in but PATH and LANG: it may hold the secrets of the service.

use std::path::Path;

use indexmap::IndexMap;

use crate::observe::tally;

use super::host;
use super::scope::{ActionPlace, Fixed};
use super::spec::JobSpec;

/// Where programs are looked for when nobody says otherwise.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Keys of the `github` context that are variables as well: `GITHUB_<KEY>`.
const GITHUB_KEYS: [&str; 25] = [
    "actor",
    "actor_id",
    "api_url",
    "base_ref",
    "event_name",
    "event_path",
    "graphql_url",
    "head_ref",
    "job",
    "ref",
    "ref_name",
    "ref_protected",
    "ref_type",
    "repository",
    "repository_id",
    "repository_owner",
    "repository_owner_id",
    "retention_days",
    "run_attempt",
    "run_id",
    "run_number",
    "server_url",
    "sha",
    "workflow_ref",
    "workflow_sha",
];

/// The base of a job's environment, below everything that a workflow sets.
#[must_use]
pub fn base(spec: &JobSpec) -> IndexMap<String, String> {
    let inherited = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let mut env = IndexMap::new();
    env.insert("PATH".to_owned(), inherited("PATH", DEFAULT_PATH));
    env.insert("HOME".to_owned(), spec.places.home.to_string_lossy().into_owned());
    env.insert("LANG".to_owned(), inherited("LANG", "C.UTF-8"));
    env.insert("CI".to_owned(), "true".to_owned());
    // By this, workflows tell a runner of Gitea from one of GitHub.
    env.insert("ACT".to_owned(), "true".to_owned());
    env.extend(spec.env.iter().map(|(name, value)| (name.clone(), value.clone())));
    env
}

/// Variables of the base that the `env` context shows as well: `ACT`, and those of the runner's configuration.
#[must_use]
pub fn shown(spec: &JobSpec) -> Vec<(String, String)> {
    let act = ("ACT".to_owned(), "true".to_owned());
    let act = (!spec.env.contains_key("ACT")).then_some(act);
    let configured = spec.env.iter().filter(|(name, _)| !name.starts_with("ACTIONS_"));
    act.into_iter().chain(configured.map(|(name, value)| (name.clone(), value.clone()))).collect()
}

/// What the runner says of the job; no workflow can set these.
#[must_use]
pub fn runner(spec: &JobSpec, fixed: &Fixed, tracking_id: &str, debug: bool) -> IndexMap<String, String> {
    let places = &spec.places;
    let show = |path: &Path| path.to_string_lossy().into_owned();
    let mut env = IndexMap::new();
    for key in GITHUB_KEYS {
        env.insert(format!("GITHUB_{}", key.to_uppercase()), fixed.github_text(key));
    }
    env.insert("GITHUB_WORKFLOW".to_owned(), fixed.github_text("workflow"));
    let actor = fixed.github_text("triggering_actor");
    env.insert(
        "GITHUB_TRIGGERING_ACTOR".to_owned(),
        if actor.is_empty() { fixed.github_text("actor") } else { actor },
    );
    let more = [
        ("GITHUB_ACTIONS", "true".to_owned()),
        ("GITEA_ACTIONS", "true".to_owned()),
        ("GITEA_ACTIONS_RUNNER_VERSION", format!("sower/{}", crate::VERSION)),
        ("GITHUB_WORKSPACE", show(&places.workspace)),
        ("RUNNER_NAME", spec.runner.name.clone()),
        ("RUNNER_OS", "Linux".to_owned()),
        ("RUNNER_ARCH", host::arch().to_owned()),
        ("RUNNER_ENVIRONMENT", "self-hosted".to_owned()),
        ("RUNNER_TEMP", show(&places.scratch.join("temp"))),
        ("RUNNER_TOOL_CACHE", show(&places.tool_cache)),
        ("RUNNER_WORKSPACE", show(places.workspace.parent().unwrap_or(&places.workspace))),
        ("RUNNER_TRACKING_ID", tracking_id.to_owned()),
    ];
    env.extend(more.map(|(name, value)| (name.to_owned(), value)));
    if let Some(tally) = &spec.operator.tally {
        env.insert(tally::VARIABLE.to_owned(), show(tally));
    }
    if debug {
        env.insert("RUNNER_DEBUG".to_owned(), "1".to_owned());
    }
    env
}

/// What a step inside an action, or an action itself, finds beside that.
pub fn action(env: &mut IndexMap<String, String>, action: &ActionPlace) {
    env.insert("GITHUB_ACTION_PATH".to_owned(), action.directory.to_string_lossy().into_owned());
    env.insert("GITHUB_ACTION_REPOSITORY".to_owned(), action.repository.clone());
    env.insert("GITHUB_ACTION_REF".to_owned(), action.reference.clone());
}

/// The variable of an action's input: `INPUT_<NAME>`, upper-case, blanks as underscores.
#[must_use]
pub fn input_variable(name: &str) -> String {
    format!("INPUT_{}", name.replace(' ', "_").to_uppercase())
}

/// Why a step may not set this variable for later steps.
#[must_use]
pub fn refuses(name: &str, value: &str) -> Option<String> {
    if name.eq_ignore_ascii_case("NODE_OPTIONS") {
        return Some(
            "GITHUB_ENV cannot set NODE_OPTIONS, which every later action would run with".to_owned(),
        );
    }
    if name.contains('\0') || value.contains('\0') || name.contains('=') {
        return Some(format!(
            "GITHUB_ENV: {name:?} or its value holds a character that no variable can hold"
        ));
    }
    None
}

//! A workflow file made into jobs, each with the payload that its runner gets.
//!
//! Only what the server does is done here: matrix, needs, names, labels. Expressions are not evaluated; in job names
//! and in `runs-on`, `${{ matrix.x }}` and `${{ vars.x }}` are replaced.

use std::collections::BTreeMap;

use yaml_serde::{Mapping, Value};

/// A job that a workflow asks for.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) key: String,
    pub(crate) name: String,
    pub(crate) runs_on: Vec<String>,
    pub(crate) needs: Vec<String>,
    pub(crate) has_if: bool,
    pub(crate) payload: Vec<u8>,
    pub(crate) step_names: Vec<String>,
}

/// A workflow with what happened, to see whether it is meant.
#[derive(Debug)]
pub(crate) enum Trigger<'a> {
    /// Something was pushed to this full ref.
    Push(&'a str),
    /// It was started by hand.
    Dispatch,
}

/// Keys of a workflow that reach the runner.
const WORKFLOW_KEYS: [&str; 7] = ["name", "on", "env", "jobs", "defaults", "permissions", "run-name"];
/// Keys of a job that reach the runner; `needs` is not among them.
const JOB_KEYS: [&str; 17] = [
    "name",
    "runs-on",
    "env",
    "if",
    "steps",
    "timeout-minutes",
    "services",
    "strategy",
    "container",
    "defaults",
    "outputs",
    "uses",
    "with",
    "secrets",
    "concurrency",
    "permissions",
    "continue-on-error",
];
/// Keys of a step that reach the runner.
const STEP_KEYS: [&str; 11] = [
    "id",
    "if",
    "name",
    "uses",
    "run",
    "working-directory",
    "shell",
    "env",
    "with",
    "continue-on-error",
    "timeout-minutes",
];
/// Most jobs that a matrix may ask for.
const MAX_COMBINATIONS: usize = 256;

/// The title of a run: `run-name`, else what the caller knows.
pub(crate) fn title(yaml: &[u8]) -> Option<String> {
    parse(yaml).ok()?.get("run-name")?.as_str().map(str::to_owned)
}

fn parse(yaml: &[u8]) -> Result<Mapping, String> {
    match yaml_serde::from_slice(yaml) {
        Ok(Value::Mapping(mapping)) => Ok(mapping),
        Ok(_) => Err("a workflow is a mapping".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether the workflow wants to run on this. Path filters are not looked at.
pub(crate) fn wants(yaml: &[u8], trigger: &Trigger<'_>) -> Result<bool, String> {
    let workflow = parse(yaml)?;
    let Some(on) = workflow.get("on") else { return Err("there is no `on`".to_owned()) };
    let name = match trigger {
        Trigger::Push(_) => "push",
        Trigger::Dispatch => "workflow_dispatch",
    };
    let event = match on {
        Value::String(only) => return Ok(only == name),
        Value::Sequence(list) => return Ok(list.iter().any(|event| event.as_str() == Some(name))),
        Value::Mapping(events) => match events.get(name) {
            None => return Ok(false),
            Some(event) => event,
        },
        _ => return Err("`on` is neither a name, a list nor a mapping".to_owned()),
    };
    let Trigger::Push(reference) = trigger else { return Ok(true) };
    let filters = |key: &str| event.get(key).map(strings);
    let (branches, tags) = (filters("branches"), filters("tags"));
    let branches_ignore = filters("branches-ignore").unwrap_or_default();
    let any = |patterns: &[String], text: &str| patterns.iter().any(|pattern| glob(pattern, text));
    Ok(match (reference.strip_prefix("refs/heads/"), reference.strip_prefix("refs/tags/")) {
        (Some(branch), _) => {
            branches.map_or_else(|| tags.is_none(), |patterns| any(&patterns, branch))
                && !any(&branches_ignore, branch)
        }
        (_, Some(tag)) => tags.map_or_else(|| branches.is_none(), |patterns| any(&patterns, tag)),
        _ => false,
    })
}

/// `*` is anything but a slash, `**` is anything.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.find('*') {
        None => pattern == text,
        Some(star) => {
            let Some(rest) = text.strip_prefix(&pattern[..star]) else { return false };
            let deep = pattern[star..].starts_with("**");
            let tail = &pattern[star + if deep { 2 } else { 1 }..];
            let limit = if deep { rest.len() } else { rest.find('/').unwrap_or(rest.len()) };
            (0..=limit).filter(|at| rest.is_char_boundary(*at)).any(|at| glob(tail, &rest[at..]))
        }
    }
}

/// No payload that is larger, in bytes, is looked into.
const MAX_PAYLOAD: usize = 4 << 20;

/// Names of the steps of a payload's only job, as rows of the page; none when it cannot be read.
pub(crate) fn step_names(payload: &[u8]) -> Vec<String> {
    // A slow parser on a busy machine would keep the whole stand-in from answering for minutes.
    if payload.len() > MAX_PAYLOAD {
        return Vec::new();
    }
    let Ok(workflow) = parse(payload) else { return Vec::new() };
    let Some(Value::Mapping(jobs)) = workflow.get("jobs") else { return Vec::new() };
    jobs.iter().next().map(|(_, job)| names_of_steps(job)).unwrap_or_default()
}

fn names_of_steps(job: &Value) -> Vec<String> {
    let Some(Value::Sequence(steps)) = job.get("steps") else { return Vec::new() };
    steps
        .iter()
        .map(|step| {
            let text = |key: &str| step.get(key).and_then(Value::as_str);
            text("name").map_or_else(
                || {
                    let what = text("run").or_else(|| text("uses")).unwrap_or_default();
                    format!("Run {}", what.trim().lines().next().unwrap_or_default())
                },
                str::to_owned,
            )
        })
        .collect()
}

/// The jobs of a workflow, in its order, matrix jobs sorted by name.
pub(crate) fn split(yaml: &[u8], vars: &BTreeMap<String, String>) -> Result<Vec<Planned>, String> {
    let workflow = parse(yaml)?;
    let Some(Value::Mapping(jobs)) = workflow.get("jobs") else {
        return Err("there are no `jobs`".to_owned());
    };
    let mut head = Mapping::new();
    for key in WORKFLOW_KEYS {
        if let Some(value) = workflow.get(key) {
            head.insert(Value::from(key), value.clone());
        }
    }
    let mut planned = Vec::new();
    for (key, job) in jobs {
        let (Some(key), Value::Mapping(job)) = (key.as_str(), job) else {
            return Err("a job is a mapping with a name".to_owned());
        };
        let matrix = job.get("strategy").and_then(|strategy| strategy.get("matrix"));
        let combinations = match matrix {
            Some(Value::Mapping(matrix)) => combine(matrix)?,
            _ => vec![BTreeMap::new()],
        };
        let mut siblings = Vec::new();
        for combination in combinations {
            siblings.push(plan(&head, key, job, &combination, vars)?);
        }
        siblings.sort_by(|a, b| a.name.cmp(&b.name));
        planned.extend(siblings);
    }
    for job in &planned {
        if let Some(missing) = job.needs.iter().find(|need| !planned.iter().any(|job| job.key == **need)) {
            return Err(format!("job `{}` needs `{missing}`, which there is not", job.key));
        }
    }
    Ok(planned)
}

type Combination = BTreeMap<String, Value>;

fn plan(
    head: &Mapping,
    key: &str,
    job: &Mapping,
    combination: &Combination,
    vars: &BTreeMap<String, String>,
) -> Result<Planned, String> {
    let fill = |text: &str| interpolate(text, combination, vars);
    let declared = job.get("name").and_then(Value::as_str).unwrap_or(key);
    let mut name = fill(declared);
    if !combination.is_empty() && !declared.contains("${{") {
        let values: Vec<String> = combination.values().map(scalar).collect();
        name = format!("{declared} ({})", values.join(", "));
    }
    let runs_on: Vec<String> =
        job.get("runs-on").map(strings).unwrap_or_default().iter().map(|label| fill(label)).collect();

    let mut only = Mapping::new();
    for field in JOB_KEYS {
        let Some(value) = job.get(field) else { continue };
        let value = match (field, value) {
            ("name", _) => Value::from(name.clone()),
            ("runs-on", Value::String(label)) => Value::from(fill(label)),
            ("runs-on", Value::Sequence(_)) => Value::from(runs_on.clone()),
            ("steps", Value::Sequence(steps)) => Value::Sequence(steps.iter().filter_map(step).collect()),
            ("strategy", Value::Mapping(strategy)) => {
                let mut strategy = strategy.clone();
                for number in ["fail-fast", "max-parallel"] {
                    if let Some(value) = strategy.get_mut(number) {
                        *value = Value::from(scalar(value));
                    }
                }
                if !combination.is_empty() {
                    let lists = combination
                        .iter()
                        .map(|(key, value)| (Value::from(key.clone()), Value::Sequence(vec![value.clone()])))
                        .collect();
                    strategy.insert(Value::from("matrix"), Value::Mapping(lists));
                }
                Value::Mapping(strategy)
            }
            ("timeout-minutes", value) => Value::from(scalar(value)),
            (_, value) => value.clone(),
        };
        only.insert(Value::from(field), value);
    }
    if !only.contains_key("name") {
        only.insert(Value::from("name"), Value::from(name.clone()));
    }
    let only = Value::Mapping(only);
    let step_names = names_of_steps(&only);
    let mut payload = head.clone();
    let mut jobs = Mapping::new();
    jobs.insert(Value::from(key), only);
    payload.insert(Value::from("jobs"), Value::Mapping(jobs));
    Ok(Planned {
        key: key.to_owned(),
        name,
        runs_on,
        needs: job.get("needs").map(strings).unwrap_or_default(),
        has_if: job.contains_key("if"),
        payload: yaml_serde::to_string(&Value::Mapping(payload))
            .map_err(|error| error.to_string())?
            .into_bytes(),
        step_names,
    })
}

/// A step with the keys that the server knows; nothing for a null step.
fn step(step: &Value) -> Option<Value> {
    let Value::Mapping(step) = step else { return None };
    let mut known = Mapping::new();
    for key in STEP_KEYS {
        if let Some(value) = step.get(key) {
            let value = if key == "timeout-minutes" { Value::from(scalar(value)) } else { value.clone() };
            known.insert(Value::from(key), value);
        }
    }
    Some(Value::Mapping(known))
}

/// Every combination of a matrix, less `exclude`, with `include`.
fn combine(matrix: &Mapping) -> Result<Vec<Combination>, String> {
    let mut all: Vec<Combination> = vec![BTreeMap::new()];
    let mut keys = Vec::new();
    for (key, values) in matrix {
        let Some(key) = key.as_str() else { return Err("a key of the matrix is not text".to_owned()) };
        if key == "include" || key == "exclude" {
            continue;
        }
        let Value::Sequence(values) = values else { return Err(format!("matrix key `{key}` is not a list")) };
        keys.push(key.to_owned());
        all = all
            .into_iter()
            .flat_map(|before| {
                values.iter().map(move |value| {
                    let mut with = before.clone();
                    with.insert(key.to_owned(), value.clone());
                    with
                })
            })
            .collect();
        if all.len() > MAX_COMBINATIONS {
            return Err(format!("the matrix has more than {MAX_COMBINATIONS} combinations"));
        }
    }
    if keys.is_empty() {
        all.clear();
    }
    for exclude in rules(matrix, "exclude") {
        all.retain(|one| !exclude.iter().all(|(key, value)| one.get(key) == Some(value)));
    }
    let original = all.clone();
    for include in rules(matrix, "include") {
        let fits = |one: &Combination| {
            include.iter().all(|(key, value)| !keys.contains(key) || one.get(key) == Some(value))
        };
        let mut extended = false;
        for (one, before) in all.iter_mut().zip(&original) {
            if fits(before) {
                one.extend(include.clone());
                extended = true;
            }
        }
        if !extended {
            all.push(include);
        }
    }
    Ok(all)
}

fn rules(matrix: &Mapping, key: &str) -> Vec<Combination> {
    let Some(Value::Sequence(list)) = matrix.get(key) else { return Vec::new() };
    list.iter()
        .filter_map(Value::as_mapping)
        .map(|rule| {
            rule.iter().filter_map(|(key, value)| Some((key.as_str()?.to_owned(), value.clone()))).collect()
        })
        .collect()
}

fn interpolate(text: &str, combination: &Combination, vars: &BTreeMap<String, String>) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${{") {
        let Some((expression, tail)) = after.split_once("}}") else { break };
        result.push_str(before);
        let expression = expression.trim();
        if let Some(value) = expression.strip_prefix("matrix.").and_then(|key| combination.get(key)) {
            result.push_str(&scalar(value));
        } else if let Some(value) = expression.strip_prefix("vars.").and_then(|key| vars.get(key)) {
            result.push_str(value);
        } else {
            result.push_str("${{ ");
            result.push_str(expression);
            result.push_str(" }}");
        }
        rest = tail;
    }
    result + rest
}

/// One string or a list of them.
fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::Sequence(list) => list.iter().map(scalar).collect(),
        Value::Null => Vec::new(),
        one => vec![scalar(one)],
    }
}

/// A scalar as text.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => yaml_serde::to_string(other).unwrap_or_default().trim().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MATRIX: &str = "
on: {push: {branches: [main, 'release/*']}}
jobs:
  first: {runs-on: host, steps: [{run: 'true'}]}
  many:
    needs: first
    runs-on: ${{ matrix.os }}
    timeout-minutes: 5
    strategy:
      fail-fast: false
      matrix: {os: [a, b], n: [1, 2], exclude: [{os: a, n: 1}], include: [{os: b, n: 2, extra: yes}]}
    steps: [{name: One, run: echo, unknown: dropped}, null]
";

    #[test]
    fn a_matrix_becomes_jobs_with_one_value_for_each_key() {
        let jobs = split(MATRIX.as_bytes(), &BTreeMap::new()).unwrap();
        let names: Vec<&str> = jobs.iter().map(|job| job.name.as_str()).collect();
        assert_eq!(names, ["first", "many (1, b)", "many (2, a)", "many (yes, 2, b)"]);
        let payload = String::from_utf8(jobs[3].payload.clone()).unwrap();
        assert!(!payload.contains("needs") && !payload.contains("unknown"), "{payload}");
        let payload: Value = yaml_serde::from_str(&payload).unwrap();
        let job = &payload["jobs"]["many"];
        assert_eq!(job["strategy"]["matrix"]["os"], Value::Sequence(vec![Value::from("b")]));
        assert_eq!(job["strategy"]["fail-fast"], Value::from("false"));
        assert_eq!(job["timeout-minutes"], Value::from("5"));
        assert_eq!(jobs[3].runs_on, ["b"]);
        assert_eq!(jobs[3].needs, ["first"]);
        assert_eq!(jobs[3].step_names, ["One"]);
    }

    #[test]
    fn filters_of_push_are_looked_at() {
        let wants = |reference| wants(MATRIX.as_bytes(), &Trigger::Push(reference)).unwrap();
        assert!(wants("refs/heads/main"));
        assert!(wants("refs/heads/release/1"));
        assert!(!wants("refs/heads/release/1/x"));
        assert!(!wants("refs/heads/other"));
        assert!(!wants("refs/tags/v1"));
    }
}

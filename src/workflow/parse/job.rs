//! A job: `jobs.ID`.

use indexmap::IndexMap;

use super::fields::{Fields, named_template, template};
use super::{Problems, is_id, step};
use crate::workflow::matrix::{Matrix, Name, Tree};
use crate::workflow::model::{Job, JobSecrets, RunsOn, Spanned, Strategy};
use crate::workflow::template::Template;
use crate::yaml::{Key, Kind, Node};

const KEYS: &[&str] = &[
    "name",
    "description",
    "needs",
    "if",
    "runs-on",
    "env",
    "defaults",
    "outputs",
    "strategy",
    "steps",
    "timeout-minutes",
    "cancel-timeout-minutes",
    "continue-on-error",
    "container",
    "services",
    "permissions",
    "concurrency",
    "environment",
    "snapshot",
    "uses",
    "with",
    "secrets",
];

pub(super) fn job(key: &Key, node: &Node, problems: &mut Problems) -> Option<Job> {
    let id = &key.text;
    if !is_id(id) {
        problems.error(
            key.place,
            "id",
            format!("'{id}' cannot be a job's id: letters, digits, '-' and '_' only, no digit or '-' first"),
        );
    }
    let Kind::Mapping(entries) = &node.kind else {
        problems.wrong_type(
            &Node { place: key.place, ..node.clone() },
            &format!("the job '{id}'"),
            "a mapping with 'runs-on' and 'steps'",
        );
        return None;
    };
    let mut fields = Fields::new(entries, KEYS, format!("the job '{id}'"));
    fields.raw("description", problems);
    fields.number("cancel-timeout-minutes", problems);
    let uses = fields.take("uses");
    let has_runs_on = fields.take("runs-on");
    let steps = fields.take("steps");
    if let Some((uses, _)) = uses {
        for (other, _) in [has_runs_on, steps].into_iter().flatten() {
            let place = other.place.max(uses.place);
            let message =
                format!("the job '{id}' has both 'uses' and '{}'; it can have only one", other.text);
            problems.error(place, "run-and-uses", message);
        }
    } else {
        if has_runs_on.is_none() {
            let place = fields.misspelt("runs-on", problems).unwrap_or(key.place);
            problems.warning(place, "missing-key", format!("the job '{id}' has no 'runs-on'"));
        }
        if steps.is_none() {
            let place = fields.misspelt("steps", problems).unwrap_or(key.place);
            problems.warning(place, "no-steps", format!("the job '{id}' has no steps"));
        }
    }
    misplaced(id, uses.is_some(), &fields, problems);
    let job = Job {
        id: id.clone(),
        place: key.place,
        name: fields.template("name", problems),
        needs: fields.take("needs").map(|(_, node)| needs(node, problems)).unwrap_or_default(),
        runs_on: has_runs_on.map(|(_, node)| runs_on(node, problems)).unwrap_or_default(),
        condition: fields.condition("if", problems),
        env: fields.env("env", problems),
        defaults: fields.defaults("defaults", problems),
        outputs: outputs(&mut fields, problems),
        strategy: fields.take("strategy").and_then(|(_, node)| strategy(node, problems)),
        steps: steps.map(|(_, node)| step::steps(node, problems)).unwrap_or_default(),
        timeout_minutes: fields.number("timeout-minutes", problems),
        continue_on_error: fields.boolean("continue-on-error", problems),
        container: fields.raw("container", problems),
        services: fields.raw("services", problems),
        permissions: fields.raw("permissions", problems),
        concurrency: fields.raw("concurrency", problems),
        environment: fields.raw("environment", problems),
        snapshot: fields.raw("snapshot", problems),
        uses: uses.and_then(|(_, node)| called_workflow(node, problems)),
        with: fields.pairs("with", problems),
        secrets: fields.take("secrets").map(|(_, node)| secrets(node, problems)).unwrap_or_default(),
    };
    fields.finish(problems);
    Some(job)
}

/// Keys that only a job with steps can have.
const OF_STEPS: &[&str] = &[
    "env",
    "defaults",
    "outputs",
    "timeout-minutes",
    "continue-on-error",
    "container",
    "services",
    "environment",
    "snapshot",
];
/// Keys that only a job that calls a workflow can have.
const OF_CALLS: &[&str] = &["with", "secrets"];

fn misplaced(id: &str, calls: bool, fields: &Fields<'_>, problems: &mut Problems) {
    let (keys, kind) = if calls {
        (OF_STEPS, "that calls a workflow ('uses')")
    } else {
        (OF_CALLS, "that calls no workflow (there is no 'uses')")
    };
    for key in keys.iter().filter_map(|name| fields.key(name)) {
        let message = format!("'{}' does nothing in the job '{id}' {kind}", key.text);
        problems.warning(key.place, "misplaced-key", message);
    }
}

fn called_workflow(node: &Node, problems: &mut Problems) -> Option<Spanned<String>> {
    match node.as_str() {
        Some(text) if !text.is_empty() => Some(Spanned::new(node.place, text.to_owned())),
        _ => {
            problems.wrong_type(node, "'uses' of a job", "the path or address of a workflow");
            None
        }
    }
}

fn needs(node: &Node, problems: &mut Problems) -> Vec<Spanned<String>> {
    let items = match &node.kind {
        Kind::Null => return Vec::new(),
        Kind::Sequence(items) => &items[..],
        _ => std::slice::from_ref(node),
    };
    let mut needs = Vec::with_capacity(items.len());
    for item in items {
        match item.scalar_text().filter(|text| !text.is_empty()) {
            Some(text) => needs.push(Spanned::new(item.place, text)),
            None => problems.wrong_type(item, "'needs'", "a job's id or a list of them"),
        }
    }
    needs
}

fn runs_on(node: &Node, problems: &mut Problems) -> RunsOn {
    let labels = |node: &Node, problems: &mut Problems| -> Vec<Template> {
        match &node.kind {
            Kind::Null => Vec::new(),
            Kind::Sequence(items) => items
                .iter()
                .filter_map(|item| named_template("a label of 'runs-on'", item, problems))
                .collect(),
            _ => named_template("'runs-on'", node, problems).into_iter().collect(),
        }
    };
    if let Kind::Mapping(entries) = &node.kind {
        let mut fields = Fields::new(entries, &["group", "labels"], "'runs-on'");
        let group = fields.template("group", problems);
        let labels = fields.take("labels").map(|(_, node)| labels(node, problems)).unwrap_or_default();
        fields.finish(problems);
        return RunsOn { place: Some(node.place), labels, group };
    }
    RunsOn { place: Some(node.place), labels: labels(node, problems), group: None }
}

fn outputs(fields: &mut Fields<'_>, problems: &mut Problems) -> IndexMap<String, Template> {
    fields.pairs("outputs", problems).into_iter().collect()
}

fn secrets(node: &Node, problems: &mut Problems) -> JobSecrets {
    match &node.kind {
        Kind::Null => JobSecrets::None,
        Kind::String(text) if text == "inherit" => JobSecrets::Inherit,
        Kind::Mapping(entries) => JobSecrets::Map(
            entries
                .iter()
                .filter_map(|(key, node)| Some((key.text.clone(), template(key, node, problems)?)))
                .collect(),
        ),
        Kind::String(text) if !text.contains("${{") => {
            let message =
                format!("'secrets' must be 'inherit' or a mapping of names to values, not '{text}'");
            problems.error(node.place, "type", message);
            JobSecrets::None
        }
        _ => {
            problems.wrong_type(node, "'secrets'", "'inherit' or a mapping of names to values");
            JobSecrets::None
        }
    }
}

fn strategy(node: &Node, problems: &mut Problems) -> Option<Strategy> {
    let known = &["matrix", "fail-fast", "max-parallel"];
    let mut fields = Fields::nested(node, known, "'strategy'", problems)?;
    let strategy = Strategy {
        matrix: fields.take("matrix").and_then(|(_, node)| matrix(node, problems)),
        fail_fast: fields.boolean("fail-fast", problems),
        max_parallel: fields.number("max-parallel", problems),
    };
    fields.finish(problems);
    Some(strategy)
}

fn matrix(node: &Node, problems: &mut Problems) -> Option<Matrix> {
    match &node.kind {
        Kind::Null => return None,
        Kind::Mapping(entries) => {
            for (key, value) in entries {
                check_vector(key, value, problems);
            }
        }
        Kind::String(text) if text.contains("${{") => {}
        _ => {
            problems.wrong_type(node, "'matrix'", "a mapping or an expression");
            return None;
        }
    }
    Some(Matrix { place: node.place, tree: tree(node, problems)? })
}

fn check_vector(key: &Key, value: &Node, problems: &mut Problems) {
    let filter = matches!(key.text.as_str(), "include" | "exclude");
    match &value.kind {
        Kind::Sequence(items) if filter => {
            for item in items {
                let expression = item.as_str().is_some_and(|text| text.contains("${{"));
                if item.as_mapping().is_none() && !expression {
                    problems.wrong_type(item, &format!("an item of '{}'", key.text), "a mapping");
                }
            }
        }
        Kind::Sequence(items) if items.is_empty() => {
            problems.error(key.place, "matrix", format!("the matrix key '{}' has no values", key.text));
        }
        Kind::Mapping(_) => {
            problems.wrong_type(value, &format!("'{}' of a matrix", key.text), "a list");
        }
        _ => {}
    }
}

fn tree(node: &Node, problems: &mut Problems) -> Option<Tree> {
    Some(match &node.kind {
        Kind::Sequence(items) => {
            Tree::Sequence(items.iter().filter_map(|item| tree(item, problems)).collect())
        }
        Kind::Mapping(entries) => {
            let mut named = Vec::with_capacity(entries.len());
            for (key, value) in entries {
                let name = problems.keep("expression", Name::read(key));
                let value = tree(value, problems);
                named.extend(name.zip(value));
            }
            Tree::Mapping(named)
        }
        _ => Tree::Scalar(named_template("a value of 'matrix'", node, problems)?),
    })
}

//! What `workflow_dispatch` and `workflow_call` declare: inputs, secrets and outputs.

use std::collections::HashMap;

use super::Problems;
use super::availability::{self, Where};
use super::names::Names;
use super::references;
use super::shapes::{is_expression, unknown};
use crate::workflow::model::{Job, Workflow};
use crate::workflow::parse::did_you_mean;
use crate::workflow::template::Template;
use crate::yaml::{Key, Kind, Node};

/// `outputs` has those of the jobs of which they are known.
pub(super) fn check(workflow: &Workflow, outputs: &HashMap<&str, Names>, problems: &mut Problems) {
    for event in ["workflow_call", "workflow_dispatch"] {
        let Some(trigger) = workflow.on.events.get(event) else { continue };
        for (key, node) in declared(&trigger.filters, "inputs", problems) {
            input(key, node, event, problems);
        }
        if event == "workflow_dispatch" {
            continue;
        }
        for (key, node) in declared(&trigger.filters, "secrets", problems) {
            if let Some(entries) = node.as_mapping() {
                unknown(
                    entries,
                    &["description", "required"],
                    &format!("the secret '{}'", key.text),
                    problems,
                );
            }
        }
        let jobs: HashMap<String, &Job> =
            workflow.jobs.values().map(|job| (job.id.to_ascii_lowercase(), job)).collect();
        for (key, node) in declared(&trigger.filters, "outputs", problems) {
            output(&jobs, outputs, key, node, problems);
        }
    }
}

/// The entries of `inputs`, `secrets` or `outputs`.
fn declared<'a>(filters: &'a Node, what: &str, problems: &mut Problems) -> &'a [(Key, Node)] {
    match filters.get(what) {
        None => &[],
        Some(node) => match &node.kind {
            Kind::Mapping(entries) => entries,
            Kind::Null => &[],
            _ => {
                problems.wrong_type(node, &format!("'{what}'"), "a mapping of names to what they are");
                &[]
            }
        },
    }
}

fn output(
    jobs: &HashMap<String, &Job>,
    outputs: &HashMap<&str, Names>,
    key: &Key,
    node: &Node,
    problems: &mut Problems,
) {
    let name = &key.text;
    if let Some(entries) = node.as_mapping() {
        unknown(entries, &["description", "value"], &format!("the output '{name}'"), problems);
    }
    let Some(value) = node.get("value") else {
        problems.error(key.place, "missing-key", format!("the output '{name}' has no 'value'"));
        return;
    };
    // What cannot be read has been reported already.
    let Ok(template) = Template::from_node(value) else { return };
    availability::check(template.expressions(), Where::CallOutputs, problems);
    for placed in template.expressions() {
        for reference in placed.expression.references().iter().filter(|reference| reference.name == "jobs") {
            let Some(id) = reference.properties.first() else { continue };
            let place = placed.at(reference.position);
            let Some(job) = jobs.get(&id.to_ascii_lowercase()) else {
                let hint = did_you_mean(id, jobs.values().map(|job| job.id.as_str()));
                let message = format!("there is no job '{id}' for the output '{name}'{hint}");
                problems.error(place, "undefined-output", message);
                continue;
            };
            if let [_, kind, output, ..] = &reference.properties[..]
                && kind.eq_ignore_ascii_case("outputs")
            {
                references::output(job, outputs.get(job.id.as_str()), output, place, problems);
            }
        }
    }
}

fn input(key: &Key, node: &Node, event: &str, problems: &mut Problems) {
    let types: &[&str] = match event {
        "workflow_call" => &["string", "boolean", "number"],
        _ => &["string", "boolean", "number", "choice", "environment"],
    };
    let name = &key.text;
    if let Some(entries) = node.as_mapping() {
        let known: &'static [&'static str] = match event {
            "workflow_call" => &["description", "type", "required", "default"],
            _ => &["description", "type", "required", "default", "options", "deprecationMessage"],
        };
        unknown(entries, known, &format!("the input '{name}'"), problems);
    }
    if let Some(required) = node.get("required")
        && !is_expression(required)
        && !matches!(required.scalar_text().as_deref(), Some("true" | "false" | ""))
    {
        let text = required.scalar_text().unwrap_or_else(|| required.kind_name().to_owned());
        let message = format!("'required' of the input '{name}' must be true or false, not '{text}'");
        problems.error(required.place, "type", message);
    }
    if let Some(Ok(template)) = node.get("default").map(Template::from_node)
        && event == "workflow_call"
    {
        availability::check(template.expressions(), Where::RunName, problems);
    }
    let Some(kind) = node.get("type") else {
        if event == "workflow_call" {
            let message = format!("the input '{name}' has no 'type' ({})", types.join(", "));
            problems.warning(key.place, "input", message);
        }
        return;
    };
    let text = kind.scalar_text().unwrap_or_default();
    if !types.contains(&text.as_str()) {
        let hint = did_you_mean(&text, types.iter().copied());
        let message =
            format!("the input '{name}' cannot be of the type '{text}' ({}){hint}", types.join(", "));
        problems.error(kind.place, "input", message);
        return;
    }
    let default = node.get("default").filter(|node| !node.is_null() && !is_expression(node));
    let options = node.get("options").and_then(Node::as_sequence);
    match (text.as_str(), options) {
        ("choice", None | Some([])) => {
            problems.error(kind.place, "input", format!("the input '{name}' is a choice without 'options'"));
        }
        ("choice", Some(options)) => {
            let known: Vec<String> = options.iter().filter_map(Node::scalar_text).collect();
            if let Some(default) = default
                && let Some(text) = default.scalar_text()
                && !known.contains(&text)
            {
                let message = format!("the default '{text}' is none of the options of the input '{name}'");
                problems.error(default.place, "input", message);
            }
        }
        ("boolean", _) => {
            if let Some(default) = default
                && !matches!(default.scalar_text().as_deref(), Some("true" | "false"))
            {
                let text = default.scalar_text().unwrap_or_default();
                let message =
                    format!("the default of the input '{name}' must be true or false, not '{text}'");
                problems.error(default.place, "input", message);
            }
        }
        ("number", _) => {
            if let Some(default) = default
                && default
                    .scalar_text()
                    .is_none_or(|text| !crate::workflow::Value::from(text).to_number().is_finite())
            {
                let text = default.scalar_text().unwrap_or_default();
                let message = format!("the default of the input '{name}' must be a number, not '{text}'");
                problems.error(default.place, "input", message);
            }
        }
        _ => {}
    }
}

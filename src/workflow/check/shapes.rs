//! Parts that the model keeps as written: permissions, containers, concurrency, environments, and what
//! `workflow_call` and `workflow_dispatch` declare.

use std::collections::HashMap;

use super::Problems;
use crate::workflow::model::{Job, Workflow};
use crate::workflow::parse::did_you_mean;
use crate::yaml::{Key, Kind, Node, Place};

/// Scopes of a token: GitHub's, and those that only Gitea has.
const SCOPES: &[&str] = &[
    "actions",
    "artifact-metadata",
    "attestations",
    "checks",
    "code",
    "contents",
    "deployments",
    "discussions",
    "id-token",
    "issues",
    "models",
    "packages",
    "pages",
    "projects",
    "pull-requests",
    "releases",
    "repository-projects",
    "security-events",
    "statuses",
    "wiki",
];

const CONTAINER: &[&str] = &["image", "credentials", "env", "ports", "volumes", "options"];
const SERVICE: &[&str] =
    &["image", "credentials", "env", "ports", "volumes", "options", "cmd", "command", "entrypoint"];

pub(super) fn check(workflow: &Workflow, problems: &mut Problems) {
    permissions(workflow.permissions.as_ref(), problems);
    concurrency(workflow.concurrency.as_ref(), problems);
    let mut seen: HashMap<String, Place> = HashMap::new();
    for job in workflow.jobs.values() {
        let Job { id, place, .. } = job;
        match seen.get(&id.to_lowercase()) {
            Some(first) => {
                let message = format!(
                    "the job '{id}' is here a second time in other letters (first in line {})",
                    first.line
                );
                problems.error(*place, "duplicate-id", message);
            }
            None => {
                seen.insert(id.to_lowercase(), *place);
            }
        }
        permissions(job.permissions.as_ref(), problems);
        concurrency(job.concurrency.as_ref(), problems);
        if let Some(node) = &job.container {
            container(node, "'container'", CONTAINER, problems);
        }
        if let Some(node) = &job.services {
            match &node.kind {
                Kind::Mapping(services) => {
                    for (key, node) in services {
                        container(node, &format!("the service '{}'", key.text), SERVICE, problems);
                    }
                }
                _ if is_expression(node) => {}
                _ => problems.wrong_type(node, "'services'", "a mapping of names to containers"),
            }
        }
    }
    for (event, outputs) in [("workflow_call", true), ("workflow_dispatch", false)] {
        let Some(trigger) = workflow.on.events.get(event) else { continue };
        for (key, node) in trigger.filters.get("inputs").and_then(Node::as_mapping).unwrap_or_default() {
            input(key, node, event, problems);
        }
        for (key, node) in trigger.filters.get("outputs").and_then(Node::as_mapping).unwrap_or_default() {
            if outputs && node.get("value").is_none() {
                problems.error(key.place, "missing-key", format!("the output '{}' has no 'value'", key.text));
            }
        }
    }
}

fn is_expression(node: &Node) -> bool {
    node.as_str().is_some_and(|text| text.contains("${{"))
}

fn permissions(node: Option<&Node>, problems: &mut Problems) {
    let Some(node) = node else { return };
    match &node.kind {
        Kind::Mapping(entries) => {
            for (key, value) in entries {
                if !SCOPES.contains(&key.text.as_str()) {
                    let hint = did_you_mean(&key.text, SCOPES.iter().copied());
                    let message = format!("unknown permission '{}'{hint}", key.text);
                    // Servers have more of them with every year.
                    if hint.is_empty() {
                        problems.warning(key.place, "permissions", message);
                    } else {
                        problems.error(key.place, "permissions", message);
                    }
                }
                let level = value.scalar_text().unwrap_or_default();
                if !matches!(level.as_str(), "read" | "write" | "none") {
                    let message = format!("'{}' can be read, write or none, not '{level}'", key.text);
                    problems.error(value.place, "permissions", message);
                }
            }
        }
        Kind::Null => {}
        _ => {
            let text = node.scalar_text().unwrap_or_default();
            if !matches!(text.as_str(), "read-all" | "write-all") {
                let message = format!("'permissions' must be read-all, write-all or a mapping, not '{text}'");
                problems.error(node.place, "permissions", message);
            }
        }
    }
}

fn concurrency(node: Option<&Node>, problems: &mut Problems) {
    let Some(node) = node else { return };
    let Kind::Mapping(entries) = &node.kind else {
        if node.as_sequence().is_some() {
            problems.wrong_type(node, "'concurrency'", "the name of a group or a mapping");
        }
        return;
    };
    let known = &["group", "cancel-in-progress", "queue"];
    unknown(entries, known, "'concurrency'", problems);
    if node.get("group").is_none() && !entries.iter().any(|(key, _)| !known.contains(&key.text.as_str())) {
        problems.error(node.place, "missing-key", "'concurrency' has no 'group'");
    }
}

fn container(node: &Node, what: &str, known: &'static [&'static str], problems: &mut Problems) {
    match &node.kind {
        Kind::Mapping(entries) => {
            unknown(entries, known, what, problems);
            match node.get("image") {
                Some(image) => empty_image(image, what, problems),
                None if entries.iter().all(|(key, _)| known.contains(&key.text.as_str())) => {
                    problems.error(node.place, "missing-key", format!("{what} has no 'image'"));
                }
                None => {}
            }
            if let Some(Kind::Mapping(entries)) = node.get("credentials").map(|node| &node.kind) {
                unknown(entries, &["username", "password"], "'credentials'", problems);
            }
        }
        Kind::Null => {}
        Kind::Sequence(_) => problems.wrong_type(node, what, "the name of an image or a mapping"),
        _ => {}
    }
}

/// An empty image means no container, where it is computed; written out it is a mistake.
fn empty_image(image: &Node, what: &str, problems: &mut Problems) {
    if image.scalar_text().is_some_and(|text| text.trim().is_empty()) {
        problems.warning(image.place, "container", format!("the image of {what} is empty"));
    }
}

fn unknown(entries: &[(Key, Node)], known: &'static [&'static str], owner: &str, problems: &mut Problems) {
    for (key, _) in entries {
        if !known.contains(&key.text.as_str()) && !key.text.contains("${{") {
            let hint = match problems.may_suggest() {
                true => did_you_mean(&key.text, known.iter().copied()),
                false => String::new(),
            };
            let message = format!("unknown key '{}' in {owner}{hint}", key.text);
            problems.error(key.place, "unknown-key", message);
        }
    }
}

fn input(key: &Key, node: &Node, event: &str, problems: &mut Problems) {
    let types: &[&str] = match event {
        "workflow_call" => &["string", "boolean", "number"],
        _ => &["string", "boolean", "number", "choice", "environment"],
    };
    let name = &key.text;
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

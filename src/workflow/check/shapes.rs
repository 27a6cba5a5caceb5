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
    "code-quality",
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
        reserved(id, *place, problems);
        for step in &job.steps {
            step.id.iter().for_each(|id| reserved(id, step.id_place, problems));
        }
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
        environment(job.environment.as_ref(), problems);
        snapshot(job.snapshot.as_ref(), problems);
        if let Some(node) = &job.container {
            container(node, "'container'", CONTAINER, problems);
        }
        if let Some(node) = &job.services {
            match &node.kind {
                Kind::Mapping(services) => {
                    for (key, node) in services {
                        let what = format!("the service '{}'", key.text);
                        if node.is_null() {
                            problems.error(key.place, "missing-key", format!("{what} has no 'image'"));
                        }
                        let place = if node.as_mapping().is_some() { key.place } else { node.place };
                        container(&Node { place, ..node.clone() }, &what, SERVICE, problems);
                    }
                }
                _ if is_expression(node) => {}
                _ => problems.wrong_type(node, "'services'", "a mapping of names to containers"),
            }
        }
    }
}

pub(super) fn is_expression(node: &Node) -> bool {
    node.as_str().is_some_and(|text| text.contains("${{"))
}

/// Names that begin with two underscores are those that the runner gives.
fn reserved(id: &str, place: Place, problems: &mut Problems) {
    if id.starts_with("__") {
        problems.error(
            place,
            "id",
            format!("'{id}' cannot be an id: those that begin with '__' are reserved"),
        );
    }
}

fn environment(node: Option<&Node>, problems: &mut Problems) {
    let Some(node) = node else { return };
    match &node.kind {
        Kind::Mapping(entries) => {
            unknown(entries, &["name", "url", "deployment"], "'environment'", problems);
            if node.get("name").is_none() && entries.iter().all(|(key, _)| key.text != "name") {
                let misspelt =
                    entries.iter().any(|(key, _)| !matches!(key.text.as_str(), "url" | "deployment"));
                if !misspelt {
                    problems.error(node.place, "missing-key", "'environment' has no 'name'");
                }
            }
            entries.iter().for_each(|(key, node)| scalar(key, node, problems));
        }
        Kind::Sequence(_) => problems.wrong_type(node, "'environment'", "a name or a mapping"),
        _ => {}
    }
}

fn snapshot(node: Option<&Node>, problems: &mut Problems) {
    let Some(node) = node else { return };
    match &node.kind {
        Kind::Mapping(entries) => {
            unknown(entries, &["image-name", "if", "version"], "'snapshot'", problems);
            if entries.iter().all(|(key, _)| matches!(key.text.as_str(), "if" | "version")) {
                problems.error(node.place, "missing-key", "'snapshot' has no 'image-name'");
            }
        }
        Kind::Sequence(_) => problems.wrong_type(node, "'snapshot'", "the name of an image or a mapping"),
        _ => {}
    }
}

/// A value that must be text.
fn scalar(key: &Key, node: &Node, problems: &mut Problems) {
    if matches!(node.kind, Kind::Sequence(_) | Kind::Mapping(_)) {
        problems.wrong_type(node, &format!("'{}'", key.text), "text");
    }
}

/// Scopes that cannot be read, or cannot be written.
const WRITE_ONLY: &[&str] = &["id-token", "copilot-requests"];
const READ_ONLY: &[&str] = &["models"];

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
                let (levels, words): (&[&str], &str) = match key.text.as_str() {
                    name if WRITE_ONLY.contains(&name) => (&["write", "none"], "write or none"),
                    name if READ_ONLY.contains(&name) => (&["read", "none"], "read or none"),
                    _ => (&["read", "write", "none"], "read, write or none"),
                };
                if !levels.contains(&level.as_str()) {
                    let message = format!("'{}' can be {words}, not '{level}'", key.text);
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
    if let Some(cancel) = node.get("cancel-in-progress")
        && !is_expression(cancel)
        && !matches!(cancel.scalar_text().as_deref(), Some("true" | "false" | ""))
    {
        let text = cancel.scalar_text().unwrap_or_else(|| cancel.kind_name().to_owned());
        let message = format!("'cancel-in-progress' must be true, false or an expression, not '{text}'");
        problems.error(cancel.place, "type", message);
    }
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
            entries.iter().for_each(|(key, node)| container_key(key, node, problems));
        }
        Kind::Null => {}
        Kind::Sequence(_) => problems.wrong_type(node, what, "the name of an image or a mapping"),
        _ => {}
    }
}

fn container_key(key: &Key, node: &Node, problems: &mut Problems) {
    let what = format!("'{}'", key.text);
    match (key.text.as_str(), &node.kind) {
        (_, Kind::Null) => {}
        ("credentials", Kind::Mapping(entries)) => {
            unknown(entries, &["username", "password"], &what, problems);
        }
        ("env", Kind::Mapping(entries)) => {
            entries.iter().for_each(|(key, node)| scalar(key, node, problems));
        }
        ("env" | "credentials", _) if !is_expression(node) => {
            problems.wrong_type(node, &what, "a mapping");
        }
        ("ports" | "volumes", Kind::Sequence(items)) => {
            items.iter().for_each(|node| scalar(key, node, problems))
        }
        ("ports" | "volumes", _) if !is_expression(node) => problems.wrong_type(node, &what, "a list"),
        ("image" | "options" | "entrypoint" | "command", _) => scalar(key, node, problems),
        _ => {}
    }
}

/// An empty image means no container, where it is computed; written out it is a mistake.
fn empty_image(image: &Node, what: &str, problems: &mut Problems) {
    if image.scalar_text().is_some_and(|text| text.trim().is_empty()) {
        problems.warning(image.place, "container", format!("the image of {what} is empty"));
    }
}

pub(super) fn unknown(
    entries: &[(Key, Node)],
    known: &'static [&'static str],
    owner: &str,
    problems: &mut Problems,
) {
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

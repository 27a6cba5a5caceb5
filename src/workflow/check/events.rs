//! `on`: event names, their types and filters, patterns and schedules.

use super::Problems;
use super::cron::bad_cron;
use super::patterns::bad_pattern;
use crate::workflow::model::{Trigger, Triggers};
use crate::workflow::parse::did_you_mean;
use crate::yaml::{Kind, Node};

/// The events that GitHub or Gitea know, each with its types; those of repository_dispatch are free.
const EVENTS: &[(&str, &[&str])] = &[
    ("branch_protection_rule", CHANGES),
    ("check_run", &["completed", "created", "rerequested", "requested_action"]),
    ("check_suite", &["completed", "requested", "rerequested"]),
    ("create", &[]),
    ("delete", &[]),
    ("deployment", &["created"]),
    ("deployment_status", &["created"]),
    (
        "discussion",
        &[
            "created",
            "edited",
            "deleted",
            "transferred",
            "pinned",
            "unpinned",
            "labeled",
            "unlabeled",
            "locked",
            "unlocked",
            "category_changed",
            "answered",
            "unanswered",
        ],
    ),
    ("discussion_comment", CHANGES),
    ("fork", &[]),
    ("gollum", &[]),
    ("image_version", &["created", "ready", "deleted"]),
    ("issue_comment", CHANGES),
    (
        "issues",
        &[
            "opened",
            "edited",
            "deleted",
            "transferred",
            "pinned",
            "unpinned",
            "closed",
            "reopened",
            "assigned",
            "unassigned",
            "labeled",
            "unlabeled",
            "locked",
            "unlocked",
            "milestoned",
            "demilestoned",
            "field_added",
            "field_removed",
            "typed",
            "untyped",
            "label_updated",
            "label_cleared",
        ],
    ),
    ("label", CHANGES),
    ("merge_group", &["checks_requested"]),
    ("milestone", &["created", "closed", "opened", "edited", "deleted"]),
    ("page_build", &[]),
    ("project", &["created", "closed", "reopened", "edited", "deleted"]),
    ("project_card", &["created", "moved", "converted", "edited", "deleted"]),
    ("project_column", &["created", "updated", "moved", "deleted"]),
    ("public", &[]),
    ("pull_request", PULL_REQUEST),
    ("pull_request_comment", CHANGES),
    ("pull_request_review", &["submitted", "edited", "dismissed"]),
    ("pull_request_review_comment", CHANGES),
    ("pull_request_target", PULL_REQUEST),
    ("push", &[]),
    ("registry_package", &["published", "updated"]),
    (
        "release",
        &["published", "unpublished", "created", "edited", "deleted", "prereleased", "released", "updated"],
    ),
    ("repository_dispatch", &[]),
    ("schedule", &[]),
    ("status", &[]),
    ("watch", &["started"]),
    ("workflow_call", &[]),
    ("workflow_dispatch", &[]),
    ("workflow_run", &["requested", "completed", "in_progress"]),
];

const CHANGES: &[&str] = &["created", "edited", "deleted"];

/// GitHub's, and those that only Gitea has.
const PULL_REQUEST: &[&str] = &[
    "assigned",
    "unassigned",
    "labeled",
    "unlabeled",
    "opened",
    "edited",
    "closed",
    "reopened",
    "synchronize",
    "converted_to_draft",
    "locked",
    "unlocked",
    "enqueued",
    "dequeued",
    "milestoned",
    "demilestoned",
    "ready_for_review",
    "review_requested",
    "review_request_removed",
    "auto_merge_enabled",
    "auto_merge_disabled",
    "stacked",
    "synchronized",
    "label_updated",
    "label_cleared",
];

const FILTERS: &[&str] = &[
    "branches",
    "branches-ignore",
    "tags",
    "tags-ignore",
    "paths",
    "paths-ignore",
    "types",
    "workflows",
    "inputs",
    "outputs",
    "secrets",
    "names",
    "versions",
];

/// Filters that only some events look at; a server ignores them elsewhere.
const OF_EVENTS: &[(&str, &[&str])] = &[
    ("branches", &["push", "pull_request", "pull_request_target", "workflow_run", "merge_group"]),
    ("tags", &["push"]),
    ("paths", &["push", "pull_request", "pull_request_target"]),
    ("workflows", &["workflow_run"]),
    ("inputs", &["workflow_call", "workflow_dispatch"]),
    ("outputs", &["workflow_call"]),
    ("secrets", &["workflow_call"]),
    ("names", &["image_version"]),
    ("versions", &["image_version"]),
];

pub(super) fn check(triggers: &Triggers, problems: &mut Problems) {
    for (name, trigger) in &triggers.events {
        let event = EVENTS.iter().find(|(known, _)| known == name);
        if event.is_none() {
            let hint = did_you_mean(name, EVENTS.iter().map(|(name, _)| *name));
            problems.error(trigger.place, "event", format!("unknown event '{name}'{hint}"));
        }
        if name == "schedule" {
            schedule(trigger, problems);
            continue;
        }
        match &trigger.filters.kind {
            Kind::Null => {}
            Kind::Mapping(_) => {
                filters(name, &trigger.filters, event.map_or(&[], |(_, types)| types), problems)
            }
            _ => {
                problems.wrong_type(&trigger.filters, &format!("the event '{name}'"), "a mapping of filters");
            }
        }
    }
}

fn filters(event: &str, node: &Node, types: &[&str], problems: &mut Problems) {
    let entries = node.as_mapping().unwrap_or_default();
    let find = |name: &str| entries.iter().find(|(key, _)| key.text == name);
    for kind in ["branches", "tags", "paths"] {
        let ignored = format!("{kind}-ignore");
        if let (Some((one, _)), Some((other, _))) = (find(kind), find(&ignored)) {
            let message = format!("'{kind}' and '{ignored}' of the event '{event}' exclude each other");
            problems.warning(one.place.max(other.place), "event-key", message);
        }
    }
    for (key, value) in entries {
        let text = key.text.as_str();
        if !FILTERS.contains(&text) {
            let hint = did_you_mean(text, FILTERS.iter().copied());
            let message = format!("unknown key '{text}' under the event '{event}'{hint}");
            problems.warning(key.place, "event-key", message);
            continue;
        }
        let kind = text.strip_suffix("-ignore").unwrap_or(text);
        let looked_at = OF_EVENTS.iter().find(|(name, _)| *name == kind);
        if let Some((_, events)) = looked_at.filter(|(_, events)| !events.contains(&event)) {
            let message =
                format!("the event '{event}' does not look at '{text}'; these do: {}", events.join(", "));
            problems.warning(key.place, "event-key", message);
        }
        match kind {
            "branches" | "tags" | "paths" => patterns(text, value, problems),
            "types" => check_types(event, value, types, problems),
            _ => {}
        }
    }
}

fn check_types(event: &str, node: &Node, types: &[&str], problems: &mut Problems) {
    let items = node.as_sequence().unwrap_or(std::slice::from_ref(node));
    for item in items {
        let Some(text) = item.scalar_text() else {
            problems.wrong_type(item, "'types'", "a type or a list of types");
            continue;
        };
        if types.is_empty() || types.contains(&text.as_str()) || item.is_null() {
            continue;
        }
        let hint = did_you_mean(&text, types.iter().copied());
        let known = if hint.is_empty() { format!(" ({})", types.join(", ")) } else { hint };
        problems.error(item.place, "event-type", format!("the event '{event}' has no type '{text}'{known}"));
    }
}

fn patterns(key: &str, node: &Node, problems: &mut Problems) {
    let items = node.as_sequence().unwrap_or(std::slice::from_ref(node));
    for item in items {
        match item.scalar_text() {
            Some(text) => {
                if let Some(trouble) = bad_pattern(key, &text) {
                    problems.error(
                        item.place,
                        "glob",
                        format!("'{text}' is no pattern for '{key}': {trouble}"),
                    );
                }
            }
            None => problems.wrong_type(item, &format!("'{key}'"), "a pattern or a list of patterns"),
        }
    }
    let takes_away = |item: &Node| item.scalar_text().is_some_and(|text| text.starts_with('!'));
    if let Some(first) = items.first()
        && items.iter().all(takes_away)
    {
        let message = format!(
            "every pattern of '{key}' begins with '!' and takes away from nothing: it matches nothing"
        );
        problems.warning(first.place, "glob", message);
    }
}

fn schedule(trigger: &Trigger, problems: &mut Problems) {
    let node = &trigger.filters;
    let Some(items) = node.as_sequence() else {
        let place = if node.is_null() { trigger.place } else { node.place };
        let node = Node { place, ..node.clone() };
        problems.wrong_type(&node, "'schedule'", "a list of entries with 'cron'");
        return;
    };
    for item in items {
        for (key, _) in item.as_mapping().unwrap_or_default() {
            if !matches!(key.text.as_str(), "cron" | "timezone") {
                let hint = did_you_mean(&key.text, ["cron", "timezone"].into_iter());
                let message = format!("unknown key '{}' under the event 'schedule'{hint}", key.text);
                problems.warning(key.place, "event-key", message);
            }
        }
        match item.get("cron") {
            Some(cron) => cron_text(cron, problems),
            None => problems.error(item.place, "cron", "an entry of 'schedule' has no 'cron'"),
        }
    }
}

fn cron_text(cron: &Node, problems: &mut Problems) {
    let Some(text) = cron.scalar_text() else {
        problems.wrong_type(cron, "'cron'", "five fields, such as '0 4 * * 1'");
        return;
    };
    if let Some(trouble) = bad_cron(&text) {
        let message = format!("'{text}' is no schedule for 'cron': {trouble}");
        problems.error(cron.place, "cron", message);
    }
}

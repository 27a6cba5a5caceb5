//! `on`: event names, filters, patterns and schedules.

use super::Problems;
use crate::workflow::model::Triggers;
use crate::workflow::parse::did_you_mean;
use crate::yaml::{Kind, Node};

/// The events that GitHub or Gitea know.
const EVENTS: &[&str] = &[
    "branch_protection_rule",
    "check_run",
    "check_suite",
    "create",
    "delete",
    "deployment",
    "deployment_status",
    "discussion",
    "discussion_comment",
    "fork",
    "gollum",
    "image_version",
    "issue_comment",
    "issues",
    "label",
    "merge_group",
    "milestone",
    "page_build",
    "project",
    "project_card",
    "project_column",
    "public",
    "pull_request",
    "pull_request_comment",
    "pull_request_review",
    "pull_request_review_comment",
    "pull_request_target",
    "push",
    "registry_package",
    "release",
    "repository_dispatch",
    "schedule",
    "status",
    "watch",
    "workflow_call",
    "workflow_dispatch",
    "workflow_run",
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
    "cron",
    "names",
    "versions",
];

pub(super) fn check(triggers: &Triggers, problems: &mut Problems) {
    for (name, trigger) in &triggers.events {
        if !EVENTS.contains(&name.as_str()) {
            let hint = did_you_mean(name, EVENTS.iter().copied());
            let message = format!("unknown event '{name}'{hint}");
            if hint.is_empty() {
                problems.warning(trigger.place, "event", message);
            } else {
                problems.error(trigger.place, "event", message);
            }
        }
        if name == "schedule" {
            schedule(&trigger.filters, problems);
            continue;
        }
        match &trigger.filters.kind {
            Kind::Null => {}
            Kind::Mapping(entries) => {
                for kind in ["branches", "tags", "paths"] {
                    let ignored = format!("{kind}-ignore");
                    let find = |name: &str| entries.iter().find(|(key, _)| key.text == name);
                    if let (Some((one, _)), Some((other, _))) = (find(kind), find(&ignored)) {
                        let message =
                            format!("'{kind}' and '{ignored}' of the event '{name}' exclude each other");
                        problems.warning(one.place.max(other.place), "event-key", message);
                    }
                }
                for (key, value) in entries {
                    if !FILTERS.contains(&key.text.as_str()) {
                        let hint = did_you_mean(&key.text, FILTERS.iter().copied());
                        let message = format!("unknown key '{}' under the event '{name}'{hint}", key.text);
                        problems.warning(key.place, "event-key", message);
                    }
                    if key.text.starts_with("branches")
                        || key.text.starts_with("tags")
                        || key.text.starts_with("paths")
                    {
                        patterns(&key.text, value, problems);
                    }
                }
            }
            _ => {
                problems.wrong_type(&trigger.filters, &format!("the event '{name}'"), "a mapping of filters")
            }
        }
    }
}

fn patterns(key: &str, node: &Node, problems: &mut Problems) {
    let items = node.as_sequence().unwrap_or(std::slice::from_ref(node));
    for item in items {
        match item.scalar_text() {
            Some(text) => {
                if let Some(trouble) = bad_pattern(&text) {
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
}

/// What is wrong with a filter pattern (`*`, `**`, `?`, `+`, `[]`, `!`).
fn bad_pattern(text: &str) -> Option<&'static str> {
    let body = text.strip_prefix('!').unwrap_or(text);
    if body.is_empty() {
        return Some("it is empty");
    }
    let mut characters = body.chars().peekable();
    let mut before = None;
    while let Some(character) = characters.next() {
        match character {
            '\\' => {
                characters.next()?;
            }
            '[' => {
                let inside: String = characters.by_ref().take_while(|c| *c != ']').collect();
                if inside.is_empty() {
                    return Some("'[' has nothing in it");
                }
                if !body.contains(']') {
                    return Some("'[' is not closed by ']'");
                }
                let bytes: Vec<char> = inside.chars().collect();
                if bytes.windows(3).any(|range| range[1] == '-' && range[0] > range[2]) {
                    return Some("a range in '[]' runs backwards");
                }
            }
            '?' | '+' if before.is_none() || matches!(before, Some('*' | '?' | '+' | '/')) => {
                return Some("'?' and '+' repeat the character before them, and there is none");
            }
            _ => {}
        }
        before = Some(character);
    }
    None
}

fn schedule(node: &Node, problems: &mut Problems) {
    let Some(items) = node.as_sequence() else {
        problems.wrong_type(node, "'schedule'", "a list of entries with 'cron'");
        return;
    };
    for item in items {
        let Some(cron) = item.get("cron") else {
            problems.error(item.place, "cron", "an entry of 'schedule' has no 'cron'");
            continue;
        };
        let text = cron.scalar_text().unwrap_or_default();
        if let Some(trouble) = bad_cron(&text) {
            problems.error(cron.place, "cron", format!("'{text}' is no schedule: {trouble}"));
        }
    }
}

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// What is wrong with a cron text: five fields, or one of Gitea's words like `@daily`.
fn bad_cron(text: &str) -> Option<String> {
    let words = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
    if words.contains(&text.trim()) || text.trim().starts_with("@every ") {
        return None;
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != 5 {
        return Some(format!("it has {} fields instead of 5", fields.len()));
    }
    let kinds: [(&str, u32, u32, &[&str]); 5] = [
        ("minute", 0, 59, &[]),
        ("hour", 0, 23, &[]),
        ("day of the month", 1, 31, &[]),
        ("month", 1, 12, MONTHS),
        ("day of the week", 0, 7, DAYS),
    ];
    fields.iter().zip(kinds).find_map(|(field, (name, least, most, words))| {
        field
            .split(',')
            .any(|part| !cron_part(part, least, most, words))
            .then(|| format!("the {name} '{field}' must be within {least} to {most}"))
    })
}

fn cron_part(part: &str, least: u32, most: u32, words: &[&str]) -> bool {
    let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
    if step.is_some_and(|step| !step.parse().is_ok_and(|step: u32| step > 0)) {
        return false;
    }
    let value = |text: &str| -> Option<u32> {
        let word = text.to_ascii_lowercase();
        if let Some(at) = words.iter().position(|known| *known == word) {
            return u32::try_from(at).ok().map(|at| at + u32::from(least == 1));
        }
        text.parse().ok().filter(|value| (least..=most).contains(value))
    };
    match range.split_once('-') {
        Some((first, last)) => {
            matches!((value(first), value(last)), (Some(first), Some(last)) if first <= last)
        }
        None => matches!(range, "*" | "?") || value(range).is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crons() {
        for right in ["0 0 * * *", "*/15 0-5,9 1 JAN-mar mon", "@daily", "0 0 1 1 7"] {
            assert_eq!(bad_cron(right), None, "{right}");
        }
        for wrong in ["", "0 0 * *", "60 0 * * *", "0 24 * * *", "*/0 * * * *", "5-1 * * * *", "x * * * *"] {
            assert!(bad_cron(wrong).is_some(), "{wrong}");
        }
    }

    #[test]
    fn patterns() {
        for right in ["main", "releases/**", "!v[0-9]+.*", "v1?", "a\\[b", "**.js"] {
            assert_eq!(bad_pattern(right), None, "{right}");
        }
        for wrong in ["", "!", "v[", "v[]", "[9-0]", "+a", "a**?"] {
            assert!(bad_pattern(wrong).is_some(), "{wrong}");
        }
    }
}

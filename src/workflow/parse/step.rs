//! The steps of a job or of a composite action.

use std::collections::HashMap;

use super::Problems;
use super::fields::Fields;
use crate::workflow::model::{Step, StepKind};
use crate::workflow::template::Template;
use crate::yaml::{Kind, Node, Place};

const KEYS: &[&str] = &[
    "id",
    "if",
    "name",
    "description",
    "uses",
    "run",
    "working-directory",
    "shell",
    "with",
    "env",
    "continue-on-error",
    "timeout-minutes",
];

pub(super) fn steps(node: &Node, problems: &mut Problems) -> Vec<Step> {
    let items = match &node.kind {
        Kind::Sequence(items) => items,
        Kind::Null => {
            problems.warning(node.place, "no-steps", "'steps' is empty");
            return Vec::new();
        }
        _ => {
            problems.wrong_type(node, "'steps'", "a list of steps");
            return Vec::new();
        }
    };
    if items.is_empty() {
        problems.warning(node.place, "no-steps", "'steps' is empty");
    }
    let mut ids = HashMap::new();
    items.iter().enumerate().filter_map(|(number, item)| step(number + 1, item, &mut ids, problems)).collect()
}

fn step(
    number: usize,
    node: &Node,
    ids: &mut HashMap<String, Place>,
    problems: &mut Problems,
) -> Option<Step> {
    let Kind::Mapping(entries) = &node.kind else {
        if node.is_null() {
            problems.warning(node.place, "no-steps", format!("step {number} is empty"));
        } else {
            problems.wrong_type(node, &format!("step {number}"), "a mapping with 'run' or 'uses'");
        }
        return None;
    };
    let mut fields = Fields::new(entries, KEYS, format!("step {number}"));
    fields.take("description");
    let id = fields.id(problems);
    if let Some((id, node)) = &id
        && let Some(first) = ids.insert(id.to_lowercase(), node.place)
    {
        problems.error(
            node.place,
            "duplicate-id",
            format!("the step id '{id}' is here a second time (first in line {})", first.line),
        );
    }
    let name = fields.template("name", problems);
    let condition = fields.condition("if", problems);
    let env = fields.env("env", problems);
    let continue_on_error = fields.boolean("continue-on-error", problems);
    let timeout_minutes = fields.number("timeout-minutes", problems);
    let kind = kind(number, node, &mut fields, problems);
    fields.finish(problems);
    Some(Step {
        place: node.place,
        id_place: id.as_ref().map_or(node.place, |(_, node)| node.place),
        id: id.map(|(id, _)| id),
        name,
        condition,
        env,
        continue_on_error,
        timeout_minutes,
        // What is wrong with it is noted; the step is still there to be spoken of.
        kind: kind.unwrap_or_else(|| StepKind::Run {
            script: Template::nothing(node.place),
            shell: None,
            working_directory: None,
        }),
    })
}

fn kind(number: usize, node: &Node, fields: &mut Fields<'_>, problems: &mut Problems) -> Option<StepKind> {
    let [run, uses, with, shell, folder] =
        ["run", "uses", "with", "shell", "working-directory"].map(|name| fields.take(name));
    let mut misplaced = |key: Option<(&crate::yaml::Key, &Node)>, other: &str| {
        if let Some((key, _)) = key {
            let message = format!("'{}' does nothing in a step with '{other}'", key.text);
            problems.warning(key.place, "misplaced-key", message);
        }
    };
    match (run, uses) {
        (Some((run, script)), Some((uses, action))) => {
            // What is wrong in them is wrong all the same.
            super::fields::template(run, script, problems);
            super::fields::template(uses, action, problems);
            fields.pairs("with", problems);
            problems.error(
                run.place.max(uses.place),
                "run-and-uses",
                format!("step {number} has both 'run' and 'uses'; it can have only one"),
            );
            None
        }
        (None, None) => {
            let place = fields
                .misspelt("run", problems)
                .or_else(|| fields.misspelt("uses", problems))
                .unwrap_or(node.place);
            problems.error(place, "missing-key", format!("step {number} has neither 'run' nor 'uses'"));
            None
        }
        (Some((key, script)), None) => {
            misplaced(with, "run");
            if script.is_null() {
                problems.warning(key.place, "missing-key", format!("'run' of step {number} has no script"));
            }
            let shell = fields.template("shell", problems);
            let working_directory = fields.template("working-directory", problems);
            Some(StepKind::Run {
                script: super::fields::template(key, script, problems)?,
                shell,
                working_directory,
            })
        }
        (None, Some((key, action))) => {
            misplaced(shell, "uses");
            misplaced(folder, "uses");
            let with = fields.pairs("with", problems);
            if action.scalar_text().is_some_and(|text| text.trim().is_empty()) {
                problems.error(key.place, "missing-key", format!("'uses' of step {number} names no action"));
                return None;
            }
            Some(StepKind::Uses { action: super::fields::template(key, action, problems)?, with })
        }
    }
}

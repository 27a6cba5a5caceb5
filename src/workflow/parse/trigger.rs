//! `on`: the events that start a workflow.

use super::Problems;
use super::fields::expressions;
use crate::workflow::model::{Trigger, Triggers};
use crate::yaml::{Kind, Node, Place, Style};

pub(super) fn triggers(node: &Node, problems: &mut Problems) -> Triggers {
    let mut triggers = Triggers::default();
    let mut add = |name: &str, place: Place, filters: Node| {
        triggers.events.insert(name.to_owned(), Trigger { place, filters });
    };
    match &node.kind {
        Kind::Mapping(entries) => {
            for (key, filters) in entries {
                expressions(filters, problems);
                add(&key.text, key.place, filters.clone());
            }
        }
        Kind::Sequence(items) => {
            for item in items {
                match item.as_str() {
                    Some(name) => add(name, item.place, nothing(item.place)),
                    None => problems.wrong_type(item, "an event under 'on'", "the name of an event"),
                }
            }
        }
        Kind::String(name) if !name.is_empty() => add(name, node.place, nothing(node.place)),
        // What a server makes of an `on` that it could not read: no reason to refuse the job.
        Kind::Null | Kind::Bool(_) | Kind::String(_) => {
            problems.warning(node.place, "missing-key", "'on' names no event");
        }
        Kind::Number { .. } => problems.wrong_type(node, "'on'", "an event, a list or a mapping of events"),
    }
    triggers
}

fn nothing(place: Place) -> Node {
    Node { place, style: Style::Plain, expressions: None, folds: None, kind: Kind::Null }
}

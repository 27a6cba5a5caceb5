//! `action.yml`: what an action takes, gives and runs.

use super::fields::Fields;
use super::{Problems, step};
use crate::workflow::action::{Action, Input, Runs};
use crate::workflow::diagnostic::Diagnostic;
use crate::workflow::template::Condition;
use crate::yaml::{self, Kind, Node};

const KEYS: &[&str] = &["name", "author", "description", "inputs", "outputs", "runs", "branding"];

pub(in crate::workflow) fn action(text: &[u8], file: &str) -> Result<Action, Vec<Diagnostic>> {
    let (action, problems) = read_action(text, file);
    problems.finish(action).map(|(action, _)| action)
}

/// What can be made of a file, and everything that is wrong with it.
pub(in crate::workflow) fn read_action(text: &[u8], file: &str) -> (Option<Action>, Problems) {
    let mut problems = Problems::new(file);
    let action = super::document(text, &mut problems).and_then(|root| read(&root, &mut problems));
    (action, problems)
}

fn read(root: &Node, problems: &mut Problems) -> Option<Action> {
    let Kind::Mapping(entries) = &root.kind else {
        problems.wrong_type(root, "an action", "a mapping with 'runs'");
        return None;
    };
    let mut fields = Fields::new(entries, KEYS, "the action");
    let name = fields.text("name", problems).unwrap_or_default();
    let inputs = fields.take("inputs").map(|(_, node)| inputs(node, problems)).unwrap_or_default();
    let outputs = fields.take("outputs").map(|(_, node)| outputs(node, problems)).unwrap_or_default();
    let runs = match fields.take("runs") {
        Some((_, node)) => runs(node, problems),
        None => {
            problems.error(root.place, "missing-key", "the action has no 'runs'");
            None
        }
    };
    Some(Action { name, inputs, outputs, runs: runs? })
}

fn inputs(node: &Node, problems: &mut Problems) -> Vec<Input> {
    let Some(entries) = mapping(node, "'inputs'", problems) else { return Vec::new() };
    let known = &["description", "required", "default", "deprecationMessage", "type"];
    entries
        .iter()
        .filter_map(|(key, node)| {
            let mut fields = Fields::nested(node, known, &format!("the input '{}'", key.text), problems)?;
            Some(Input {
                place: key.place,
                name: key.text.clone(),
                description: fields.text("description", problems),
                required: fields.text("required", problems).is_some_and(|text| text == "true"),
                default: fields.template("default", problems),
                deprecation: fields.text("deprecationMessage", problems),
            })
        })
        .collect()
}

fn outputs(node: &Node, problems: &mut Problems) -> Vec<(String, Option<crate::workflow::Template>)> {
    let Some(entries) = mapping(node, "'outputs'", problems) else { return Vec::new() };
    entries
        .iter()
        .filter_map(|(key, node)| {
            let owner = format!("the output '{}'", key.text);
            let mut fields = Fields::nested(node, &["description", "value"], &owner, problems)?;
            Some((key.text.clone(), fields.template("value", problems)))
        })
        .collect()
}

fn mapping<'a>(node: &'a Node, what: &str, problems: &mut Problems) -> Option<&'a [(yaml::Key, Node)]> {
    match &node.kind {
        Kind::Mapping(entries) => Some(entries),
        Kind::Null => None,
        _ => {
            problems.wrong_type(node, what, "a mapping");
            None
        }
    }
}

fn runs(node: &Node, problems: &mut Problems) -> Option<Runs> {
    let mut fields = Fields::nested(node, &[], "'runs'", problems)?;
    let Some((_, using_node)) = fields.take("using") else {
        problems.error(node.place, "missing-key", "'runs' does not say what it is 'using'");
        return None;
    };
    let using = using_node.scalar_text().unwrap_or_default();
    match using.to_ascii_lowercase().as_str() {
        "composite" => {
            let Some((_, steps)) = fields.take("steps") else {
                problems.error(node.place, "missing-key", "a composite action has no 'steps'");
                return None;
            };
            Some(Runs::Composite { steps: step::steps(steps, problems) })
        }
        "docker" => {
            let image = fields.text("image", problems).unwrap_or_default();
            Some(Runs::Docker { image, raw: node.clone() })
        }
        word => {
            let node_version = word.strip_prefix("node").is_some_and(|version| {
                !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit())
            });
            if word != "go" && !node_version {
                let message = format!("'{using}' is nothing that an action can be 'using' here");
                problems.error(using_node.place, "using", message);
                return None;
            }
            let main = fields.text("main", problems).filter(|main| !main.is_empty());
            let pre = fields.text("pre", problems).filter(|pre| !pre.is_empty());
            let post = fields.text("post", problems).filter(|post| !post.is_empty());
            let pre_if = fields.condition("pre-if", problems).map(Condition::whatever_happened);
            let post_if = fields.condition("post-if", problems).map(Condition::whatever_happened);
            let Some(main) = main else {
                problems.error(node.place, "missing-key", format!("'runs' with '{using}' has no 'main'"));
                return None;
            };
            Some(if word == "go" {
                Runs::Go { main, pre, post, pre_if, post_if }
            } else {
                Runs::Node { using, main, pre, post, pre_if, post_if }
            })
        }
    }
}

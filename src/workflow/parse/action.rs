//! `action.yml`: what an action takes, gives and runs.

use super::fields::Fields;
use super::{Problems, step};
use crate::workflow::action::{Action, Input, Runs};
use crate::workflow::diagnostic::Diagnostic;
use crate::workflow::template::{Condition, Template};
use crate::yaml::{self, Kind, Node, Place};

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
            let place = fields.misspelt("runs", problems).unwrap_or(root.place);
            problems.error(place, "missing-key", "the action has no 'runs'");
            None
        }
    };
    if matches!(runs, Some(Runs::Composite { .. })) {
        for (place, name, _) in outputs.iter().filter(|(_, _, value)| value.is_none()) {
            let message = format!("the output '{name}' of a composite action has no 'value'");
            problems.warning(*place, "missing-key", message);
        }
    }
    let outputs = outputs.into_iter().map(|(_, name, value)| (name, value)).collect();
    for key in ["author", "description", "branding"] {
        fields.take(key);
    }
    fields.finish_loosely(problems);
    Some(Action { name, inputs, outputs, runs: runs? })
}

fn inputs(node: &Node, problems: &mut Problems) -> Vec<Input> {
    let Some(entries) = mapping(node, "'inputs'", problems) else { return Vec::new() };
    let known = &["description", "required", "default", "deprecationMessage", "type", "options"];
    entries
        .iter()
        .filter_map(|(key, node)| {
            let mut fields = Fields::nested(node, known, &format!("the input '{}'", key.text), problems)?;
            let input = Input {
                place: key.place,
                name: key.text.clone(),
                description: fields.text("description", problems),
                required: fields.text("required", problems).is_some_and(|text| text == "true"),
                default: fields.template("default", problems),
                deprecation: fields.text("deprecationMessage", problems),
            };
            // Forms of other programs say more of an input.
            fields.take("type");
            fields.take("options");
            fields.finish_loosely(problems);
            Some(input)
        })
        .collect()
}

fn outputs(node: &Node, problems: &mut Problems) -> Vec<(Place, String, Option<Template>)> {
    let Some(entries) = mapping(node, "'outputs'", problems) else { return Vec::new() };
    entries
        .iter()
        .filter_map(|(key, node)| {
            let owner = format!("the output '{}'", key.text);
            let mut fields = Fields::nested(node, &["description", "value"], &owner, problems)?;
            fields.take("description");
            let value = fields.template("value", problems);
            fields.finish(problems);
            Some((key.place, key.text.clone(), value))
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

/// The keys of `runs` of each kind.
const COMPOSITE: &[&str] = &["using", "steps"];
const SCRIPTS: &[&str] = &["using", "main", "pre", "pre-if", "post", "post-if"];
const DOCKER: &[&str] = &[
    "using",
    "image",
    "args",
    "env",
    "entrypoint",
    "pre-entrypoint",
    "pre-if",
    "post-entrypoint",
    "post-if",
];

fn runs(node: &Node, problems: &mut Problems) -> Option<Runs> {
    let mut fields = Fields::nested(node, SCRIPTS, "'runs'", problems)?;
    let Some((_, using_node)) = fields.take("using") else {
        let place = fields.misspelt("using", problems).unwrap_or(node.place);
        problems.error(place, "missing-key", "'runs' does not say what it is 'using'");
        return None;
    };
    let using = using_node.scalar_text().unwrap_or_default();
    let runs = runs_using(&using, using_node, node, &mut fields, problems);
    fields.finish(problems);
    runs
}

fn runs_using(
    using: &str,
    using_node: &Node,
    node: &Node,
    fields: &mut Fields<'_>,
    problems: &mut Problems,
) -> Option<Runs> {
    match using.to_ascii_lowercase().as_str() {
        "composite" => {
            fields.expect(COMPOSITE);
            let Some((_, steps)) = fields.take("steps") else {
                let place = fields.misspelt("steps", problems).unwrap_or(node.place);
                problems.error(place, "missing-key", "a composite action has no 'steps'");
                return None;
            };
            Some(Runs::Composite { steps: step::steps(steps, problems) })
        }
        "docker" => {
            fields.expect(DOCKER);
            for key in DOCKER {
                fields.take(key);
            }
            let image = fields.text("image", problems).unwrap_or_default();
            Some(Runs::Docker { image, raw: node.clone() })
        }
        word => {
            let node_version = word.strip_prefix("node").is_some_and(|version| {
                !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit())
            });
            if word != "go" && !node_version {
                // What else it needs is not known.
                fields.take_all();
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
                let place = fields.misspelt("main", problems).unwrap_or(node.place);
                problems.error(place, "missing-key", format!("'runs' with '{using}' has no 'main'"));
                return None;
            };
            Some(if word == "go" {
                Runs::Go { main, pre, post, pre_if, post_if }
            } else {
                Runs::Node { using: using.to_owned(), main, pre, post, pre_if, post_if }
            })
        }
    }
}

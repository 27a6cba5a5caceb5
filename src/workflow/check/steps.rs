//! Steps: what they use, their shells, and scripts that run what others wrote.

use super::Problems;
use super::availability::{self, Where};
use crate::workflow::model::{Env, Spanned, Step, StepKind};
use crate::workflow::template::Template;
use crate::yaml::Place;

pub(super) fn check(steps: &[Step], at: Where, problems: &mut Problems) {
    let condition_at = if at == Where::Composite { Where::CompositeIf } else { Where::StepIf };
    for step in steps {
        let mut text = |template: &Template| availability::check(template.expressions(), at, problems);
        [&step.name, &step.continue_on_error, &step.timeout_minutes]
            .into_iter()
            .flatten()
            .for_each(&mut text);
        match &step.env {
            Env::Map(entries) => entries.iter().for_each(|(_, template)| text(template)),
            Env::Expression(template) => text(template),
        }
        match &step.kind {
            StepKind::Run { script, shell, working_directory } => {
                text(script);
                [shell, working_directory].into_iter().flatten().for_each(&mut text);
                check_shell(shell.as_ref(), problems);
                check_injection(script, problems);
            }
            StepKind::Uses { action, with } => {
                text(action);
                with.iter().for_each(|(_, template)| text(template));
                check_action(action, problems);
            }
        }
        if let Some(condition) = &step.condition {
            availability::check(condition.expressions().into_iter(), condition_at, problems);
        }
    }
}

/// The shells that need no `{0}`.
const SHELLS: &[&str] = &["bash", "sh", "pwsh", "powershell", "python", "cmd", "node"];

pub(super) fn check_shell(shell: Option<&Template>, problems: &mut Problems) {
    let Some(shell) = shell.filter(|shell| shell.is_literal()) else { return };
    let text = shell.source();
    if !SHELLS.contains(&text) && !text.contains("{0}") {
        problems.error(
            shell.place,
            "shell",
            format!(
                "'{text}' is no known shell ({}); a command needs '{{0}}' for the script",
                SHELLS.join(", ")
            ),
        );
    }
}

fn check_action(action: &Template, problems: &mut Problems) {
    if !action.is_literal() {
        return;
    }
    let text = action.source();
    // `$/` is the repository that holds the file.
    if text.starts_with("./")
        || text.starts_with("../")
        || text.starts_with("$/")
        || text.starts_with("docker://")
    {
        return;
    }
    remote(text, action.place, "owner/repository@version, a URL, ./path or docker://image", 2, problems);
}

pub(super) fn check_called_workflow(uses: &Spanned<String>, problems: &mut Problems) {
    if !uses.value.starts_with("./") && !uses.value.starts_with("$/") {
        remote(
            &uses.value,
            uses.place,
            "./path/to/workflow.yaml or owner/repository/path@version",
            3,
            problems,
        );
    }
}

/// `owner/repository[/path]@version`, perhaps with `https://host/` before it.
fn remote(text: &str, place: Place, wanted: &str, parts: usize, problems: &mut Problems) {
    let Some((name, version)) = text.rsplit_once('@') else {
        problems.error(place, "uses", format!("'{text}' has no version: write '{text}@VERSION'"));
        return;
    };
    if version.is_empty() {
        problems.error(place, "uses", format!("'{text}' has no version after the '@'"));
        return;
    }
    let path = match name.split_once("://") {
        Some(("http" | "https" | "ssh", rest)) => rest.split_once('/').map_or("", |(_, path)| path),
        Some((scheme, _)) => {
            problems.error(place, "uses", format!("'{scheme}://' in '{text}' is no address of an action"));
            return;
        }
        None => name,
    };
    if path.split('/').filter(|part| !part.is_empty()).count() < parts || path.contains(char::is_whitespace) {
        problems.error(place, "uses", format!("'{text}' names no action; it must be {wanted}"));
    }
}

/// Properties of events that only the server or the owner of the repository can set.
const HARMLESS: &[&str] = &[
    "number",
    "id",
    "node_id",
    "sha",
    "size",
    "url",
    "created_at",
    "updated_at",
    "action",
    "before",
    "after",
    "type",
    "private",
    "fork",
    "merged",
    "draft",
    "forced",
    "deleted",
    "created",
    "run_number",
    "state",
];

/// Scripts into which somebody else's text is pasted.
fn check_injection(script: &Template, problems: &mut Problems) {
    for placed in script.expressions() {
        for reference in placed.expression.references() {
            if !matches!(reference.name.as_str(), "github" | "gitea" | "forgejo") {
                continue;
            }
            let properties: Vec<String> =
                reference.properties.iter().map(|property| property.to_ascii_lowercase()).collect();
            let Some(last) = properties.last() else { continue };
            let others = match properties[0].as_str() {
                "head_ref" => true,
                "event" => {
                    properties.len() > 2
                        && properties[1] != "inputs"
                        && !HARMLESS.contains(&last.as_str())
                        && !last.ends_with("_url")
                        && !last.ends_with("_id")
                }
                _ => false,
            };
            if others {
                problems.warning(
                    placed.at(reference.position),
                    "script-injection",
                    format!(
                        "'{}.{}' is text that others write, and it becomes part of this script; give it to the \
                         script through 'env'",
                        reference.name,
                        reference.properties.join(".")
                    ),
                );
            }
        }
    }
}

//! Steps: what they use, their shells, and scripts that run what others wrote.

use super::Problems;
use super::availability::{self, Where};
use super::injection;
use crate::workflow::model::{Env, Spanned, Step, StepKind};
use crate::workflow::template::Template;
use crate::yaml::Place;

pub(super) fn check(steps: &[Step], at: Where, problems: &mut Problems) {
    let condition_at = if at == Where::Composite { Where::CompositeIf } else { Where::StepIf };
    for step in steps {
        let mut text = |template: &Template| {
            availability::length(template, problems);
            availability::check(template.expressions(), at, problems);
        };
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
                injection::check(script, problems);
            }
            StepKind::Uses { action, with } => {
                text(action);
                with.iter().for_each(|(_, template)| text(template));
                check_action(action, problems);
                if action.source().starts_with("actions/github-script@") {
                    let script = with.iter().find(|(name, _)| name == "script");
                    script.iter().for_each(|(_, template)| injection::check(template, problems));
                }
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
    if !SHELLS.contains(&text.to_ascii_lowercase().as_str()) && !text.contains("{0}") {
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
    if text == "docker://" {
        problems.error(action.place, "uses", "'docker://' names no image");
        return;
    }
    if let Some(path) = text.strip_prefix("./")
        && (path.starts_with(".gitea/workflows/") || path.starts_with(".github/workflows/"))
        && (path.ends_with(".yml") || path.ends_with(".yaml"))
    {
        let message = format!("'{text}' is a workflow: a job calls it with 'uses', and no step can");
        problems.error(action.place, "uses", message);
        return;
    }
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
    let text = &uses.value;
    if text.contains("${{") {
        return;
    }
    if text.starts_with("./") || text.starts_with("$/") {
        if let Some((path, version)) = text.rsplit_once('@') {
            let message =
                format!("a workflow of this repository has no version: write '{path}' without '@{version}'");
            problems.error(uses.place, "uses", message);
        }
    } else {
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
    if path.starts_with('/') || path.split('/').filter(|part| !part.trim().is_empty()).count() < parts {
        problems.error(place, "uses", format!("'{text}' names no action; it must be {wanted}"));
    }
}

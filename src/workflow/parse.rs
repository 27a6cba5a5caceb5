//! From YAML to the model: everything that is wrong in a file, in one go.

use super::action::Action;
use super::diagnostic::{Diagnostic, Severity};
use super::model::Workflow;
use crate::yaml;

/// Reads a workflow file, or the payload that a server sends. Unknown keys are warnings.
///
/// # Errors
/// Everything that keeps the workflow from being run (warnings among it), in the order of the lines.
pub fn parse_workflow(
    text: impl AsRef<[u8]>,
    file: &str,
) -> Result<(Workflow, Vec<Diagnostic>), Vec<Diagnostic>> {
    Err(vec![not_built(text.as_ref(), file)])
}

pub(super) fn action(text: &[u8], file: &str) -> Result<Action, Vec<Diagnostic>> {
    Err(vec![not_built(text, file)])
}

fn not_built(text: &[u8], file: &str) -> Diagnostic {
    let place = yaml::parse(text).map_or_else(|error| error.place, |node| node.place);
    Diagnostic {
        file: file.to_owned(),
        place,
        severity: Severity::Error,
        message: "workflows cannot be read yet".to_owned(),
        rule: "yaml",
    }
}

//! Which contexts and functions may be used where, as GitHub documents it.
//!
//! <https://docs.github.com/en/actions/reference/workflows-and-actions/contexts#context-availability>. Gitea
//! adds the `gitea` context and evaluates `uses` and `shell` of a step.

use super::Problems;
use crate::workflow::template::Placed;

/// Where an expression stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Where {
    RunName,
    WorkflowEnv,
    Defaults,
    Strategy,
    Job,
    JobIf,
    JobEnv,
    Container,
    CallSecrets,
    Outputs,
    Step,
    StepIf,
    Composite,
    CompositeIf,
}

impl Where {
    /// The place in the words of a message.
    fn name(self) -> &'static str {
        match self {
            Self::RunName => "for the whole workflow",
            Self::WorkflowEnv => "in the 'env' of the workflow",
            Self::Defaults => "in 'defaults'",
            Self::Strategy => "in 'strategy'",
            Self::Job => "in this key of a job",
            Self::JobIf => "in the 'if' of a job",
            Self::JobEnv => "in the 'env' of a job",
            Self::Container => "in 'container' and 'services'",
            Self::CallSecrets => "in 'secrets' of a job",
            Self::Outputs => "in the outputs of a job",
            Self::Step => "in a step",
            Self::StepIf => "in the 'if' of a step",
            Self::Composite => "in a step of an action",
            Self::CompositeIf => "in the 'if' of an action's step",
        }
    }

    fn contexts(self) -> &'static [&'static str] {
        match self {
            Self::RunName => &["github", "inputs", "vars"],
            Self::WorkflowEnv => &["github", "inputs", "vars", "secrets"],
            Self::Strategy | Self::JobIf => &["github", "inputs", "vars", "needs"],
            Self::Defaults => &["github", "inputs", "vars", "needs", "strategy", "matrix", "env"],
            Self::Job => &["github", "inputs", "vars", "needs", "strategy", "matrix"],
            Self::JobEnv | Self::CallSecrets => {
                &["github", "inputs", "vars", "needs", "strategy", "matrix", "secrets"]
            }
            Self::StepIf => {
                &["github", "inputs", "vars", "needs", "strategy", "matrix", "steps", "job", "runner", "env"]
            }
            Self::Container | Self::Outputs | Self::Step => &[
                "github", "inputs", "vars", "needs", "strategy", "matrix", "secrets", "steps", "job",
                "runner", "env",
            ],
            Self::Composite | Self::CompositeIf => {
                &["github", "inputs", "vars", "needs", "strategy", "matrix", "steps", "job", "runner", "env"]
            }
        }
    }

    fn allows_function(self, name: &str) -> bool {
        match name {
            "success" | "failure" | "cancelled" | "always" => {
                matches!(self, Self::JobIf | Self::StepIf | Self::CompositeIf)
            }
            "hashFiles" => {
                matches!(self, Self::Step | Self::StepIf | Self::Composite | Self::CompositeIf)
            }
            _ => true,
        }
    }
}

/// Notes every context and function that is not to be had in a place.
pub(super) fn check<'a>(expressions: impl Iterator<Item = &'a Placed>, at: Where, problems: &mut Problems) {
    for placed in expressions {
        if placed.is_empty() {
            problems.error(placed.place, "expression", "an expression was expected between '${{' and '}}'");
        }
        for reference in placed.expression.references() {
            let name = match reference.name.as_str() {
                "gitea" | "forgejo" => "github",
                name => name,
            };
            if !at.contexts().contains(&name) {
                problems.error(
                    placed.at(reference.position),
                    "context",
                    format!(
                        "the context '{}' is not available {} (available: {})",
                        reference.name,
                        at.name(),
                        at.contexts().join(", ")
                    ),
                );
            }
        }
        for (name, position) in placed.expression.functions() {
            if !at.allows_function(name) {
                let message = format!("the function '{name}' is not available {}", at.name());
                problems.error(placed.at(position), "function", message);
            }
        }
    }
}

//! Which contexts and functions may be used where, as GitHub documents it.
//!
//! <https://docs.github.com/en/actions/reference/workflows-and-actions/contexts#context-availability>. Gitea
//! adds the `gitea` context and evaluates `uses` and `shell` of a step.

use super::Problems;
use crate::workflow::expression::MAX_LENGTH;
use crate::workflow::template::{Placed, Template};

/// Where an expression stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Where {
    /// Where no expression may be.
    Nowhere,
    RunName,
    WorkflowEnv,
    Defaults,
    Strategy,
    Job,
    JobIf,
    JobEnv,
    ContainerEnv,
    Credentials,
    EnvironmentUrl,
    CallSecrets,
    CallOutputs,
    Outputs,
    Step,
    StepIf,
    Composite,
    CompositeIf,
    InputDefault,
}

impl Where {
    /// The place in the words of a message.
    fn name(self) -> &'static str {
        match self {
            Self::Nowhere => "here",
            Self::RunName => "for the whole workflow",
            Self::WorkflowEnv => "in the 'env' of the workflow",
            Self::Defaults => "in 'defaults'",
            Self::Strategy => "in 'strategy'",
            Self::Job => "in this key of a job",
            Self::JobIf => "in the 'if' of a job",
            Self::JobEnv => "in the 'env' of a job",
            Self::ContainerEnv => "in the 'env' of a container",
            Self::Credentials => "in 'credentials'",
            Self::EnvironmentUrl => "in the 'url' of 'environment'",
            Self::CallSecrets => "in 'secrets' of a job",
            Self::CallOutputs => "in the outputs of 'workflow_call'",
            Self::Outputs => "in the outputs of a job",
            Self::Step => "in a step",
            Self::StepIf => "in the 'if' of a step",
            Self::Composite => "in a step of an action",
            Self::CompositeIf => "in the 'if' of an action's step",
            Self::InputDefault => "in the default of an action's input",
        }
    }

    fn contexts(self) -> &'static [&'static str] {
        match self {
            Self::Nowhere => &[],
            Self::RunName => &["github", "inputs", "vars"],
            Self::CallOutputs => &["github", "inputs", "vars", "jobs"],
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
            Self::Credentials => {
                &["github", "inputs", "vars", "needs", "strategy", "matrix", "secrets", "env"]
            }
            Self::ContainerEnv => &[
                "github", "inputs", "vars", "needs", "strategy", "matrix", "secrets", "job", "runner", "env",
            ],
            Self::EnvironmentUrl => {
                &["github", "inputs", "vars", "needs", "strategy", "matrix", "steps", "job", "runner", "env"]
            }
            Self::Outputs | Self::Step => &[
                "github", "inputs", "vars", "needs", "strategy", "matrix", "secrets", "steps", "job",
                "runner", "env",
            ],
            Self::InputDefault => &["github", "strategy", "matrix", "job", "runner"],
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
                matches!(
                    self,
                    Self::Step | Self::StepIf | Self::Composite | Self::CompositeIf | Self::InputDefault
                )
            }
            _ => true,
        }
    }
}

/// Notes a text that is too long to be one expression: GitHub computes a text with `${{ }}` in it as a whole.
pub(super) fn length(template: &Template, problems: &mut Problems) {
    if !template.is_literal() && template.source().encode_utf16().count() > MAX_LENGTH {
        let message = format!("Exceeded max expression length {MAX_LENGTH}: this text with its expressions");
        problems.error(template.place, "expression", message);
    }
}

/// Notes every context and function that is not to be had in a place.
pub(super) fn check<'a>(expressions: impl Iterator<Item = &'a Placed>, at: Where, problems: &mut Problems) {
    for placed in expressions {
        if placed.is_empty() {
            problems.error(placed.place, "expression", "an expression was expected between '${{' and '}}'");
        }
        if at == Where::Nowhere {
            problems.error(placed.place, "expression", "no expression ('${{ }}') may be here");
            continue;
        }
        for failing in placed.expression.failing() {
            let place = failing.position.map_or(placed.place, |position| placed.at(position));
            problems.error(place, "expression", failing.message);
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
        if at != Where::JobIf {
            for (name, position) in placed.expression.named_statuses() {
                let message = format!("Too many parameters supplied: '{name}'");
                problems.error(placed.at(position), "function", message);
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

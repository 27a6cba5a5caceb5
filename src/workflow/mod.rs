//! The workflow language: model, parser, diagnostics and expressions.
//!
//! [`parse_workflow`] and [`parse_action`] turn a file into a typed model whose texts are [`Template`]s and
//! [`Condition`]s; whoever runs the model evaluates them against a [`Scope`] of its own.

pub mod action;
pub mod check;
pub mod diagnostic;
pub mod expression;
pub mod hash_files;
pub mod matrix;
pub mod model;
pub mod template;

mod parse;
#[cfg(test)]
mod testing;

pub use action::{Action, Input, Runs, parse_action};
pub use check::{Around, ReadFile, check_action, check_action_in, check_workflow, check_workflow_in};
pub use diagnostic::{Diagnostic, Severity, snippet};
pub use expression::{Expression, ExpressionError, ExpressionErrorKind, Object, Scope, Status, Value};
pub use hash_files::hash_files;
pub use matrix::Matrix;
pub use model::{
    Defaults, Env, Job, JobSecrets, RunsOn, Spanned, Step, StepKind, Strategy, Triggers, Workflow,
};
pub(crate) use parse::did_you_mean;
pub use parse::parse_workflow;
pub use template::{Condition, EvaluationError, Template};

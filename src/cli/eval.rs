//! `sower eval`: Evaluate an expression of the workflow language.

use super::{Failure, Outcome};

/// Evaluate an expression of the workflow language.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: &Args) -> Outcome {
    Err(Failure::wrong_question("not built yet"))
}

//! `sower archive`: Check static archives and mend them.

use super::{Failure, Outcome};

/// Check static archives and mend them.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: &Args) -> Outcome {
    Err(Failure::wrong_question("not built yet"))
}

//! `sower exec`: Run a workflow of the working directory locally.

use super::{Failure, Outcome};

/// Run a workflow of the working directory locally.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: Args) -> Outcome {
    Err(Failure::wrong_question("not built yet"))
}

//! `sower daemon`: Take jobs from Gitea and run them.

use super::{Failure, Outcome};

/// Take jobs from Gitea and run them.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: &Args) -> Outcome {
    Err(Failure::wrong_question("not built yet"))
}

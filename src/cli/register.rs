//! `sower register`: Register this host with a Gitea instance.

use super::{Failure, Outcome};

/// Register this host with a Gitea instance.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: &Args) -> Outcome {
    Err(Failure::wrong_question("not built yet"))
}

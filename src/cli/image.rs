//! `sower image`: Push images to a registry and prune tags.

use super::{Failure, Outcome};

/// Push images to a registry and prune tags.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: &Args) -> Outcome {
    Err(Failure::wrong_question("not built yet"))
}

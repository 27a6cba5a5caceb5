//! `sower deploy`: Deploy with helm and say why it failed.

use super::{Failure, Outcome};

/// Deploy with helm and say why it failed.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: &Args) -> Outcome {
    Err(Failure::wrong_question("not built yet"))
}

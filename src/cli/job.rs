//! `sower job`: Run the job in a job directory (used by the daemon).

use super::{Failure, Outcome};

/// Run the job in a job directory (used by the daemon).
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: &Args) -> Outcome {
    Err(Failure::wrong_question("not built yet"))
}

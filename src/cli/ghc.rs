//! `sower ghc`: Give GHC a heap ceiling and prove it.

use super::{Failure, Outcome};

/// Give GHC a heap ceiling and prove it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: &Args) -> Outcome {
    Err(Failure::wrong_question("not built yet"))
}

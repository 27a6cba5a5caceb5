//! `sower archive`: Check static archives and mend them.

mod check;
mod explain;
mod patch;

use std::io::Write;

use clap::Subcommand;

use super::{Failure, Outcome};
use crate::archive::donor::Source;
use crate::limits::cover;

/// Check static archives and mend them.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(check::Args),
    Patch(patch::Args),
    Explain(explain::Args),
}

pub(super) fn run(args: &Args) -> Outcome {
    // In a job whose compilers have launchers in front of them a store path is not what Nix put there.
    cover::leave().map_err(Failure::wrong_question)?;
    match &args.command {
        Command::Check(args) => check::run(args),
        Command::Patch(args) => patch::run(args),
        Command::Explain(args) => explain::run(args),
    }
}

/// Prints a line. Where the reader went away (`| head`) nothing is said, and the exit code still tells the verdict.
fn say(text: &str) -> Result<(), Failure> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(Failure::not_well),
    }
}

/// The sources that were named; whatever Nix can do if none was.
fn sources(from: &[String]) -> Result<Vec<Source>, Failure> {
    if from.is_empty() {
        return Ok(vec![Source::Nix]);
    }
    let parse = |text: &String| {
        Source::parse(text)
            .map_err(|why| Failure::wrong_question(format!("--from {}: {why}", without_password(text))))
    };
    from.iter().map(parse).collect()
}

/// What stands before the host in a URL may be a password, which no message repeats.
fn without_password(text: &str) -> String {
    match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://…@{host}"),
        _ => text.to_owned(),
    }
}

//! `sower image`: push images to a registry, prune tags, look at images and at registries.

mod connection;
mod display;
mod doctor;
mod inspect;
mod prune;
mod push;

use std::io::Write as _;
use std::path::PathBuf;

use super::{Failure, Outcome};
use crate::image::Error;

/// Push images to a registry, prune tags, look at images and registries.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Push(push::Args),
    Prune(prune::Args),
    Inspect(inspect::Args),
    Doctor(doctor::Args),
}

/// What a command does with what it found.
#[derive(Debug, clap::Args)]
struct Output {
    /// Say what would be done, do nothing
    #[arg(long)]
    dry_run: bool,
    /// The report as JSON on standard output
    #[arg(long)]
    json: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if error.is_wrong_question() { Self::wrong_question(error) } else { Self::not_well(error) }
    }
}

pub(super) fn run(args: &Args) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::not_well(format!("no runtime: {error}")))?;
    runtime.block_on(async {
        match &args.command {
            Command::Push(args) => push::run(args).await,
            Command::Prune(args) => prune::run(args).await,
            Command::Inspect(args) => inspect::run(args).await,
            Command::Doctor(args) => doctor::run(args).await,
        }
    })
}

/// Appends to the file that an environment variable of the job names, if it is set.
fn append(variable: &str, text: &str) -> Result<(), Failure> {
    let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from) else {
        return Ok(());
    };
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| Failure::not_well(format!("{variable}: {}: {error}", path.display())))
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::not_well(format!("the report as JSON: {error}")))?;
    print(&format!("{text}\n"))
}

/// A reader that went away is no failure.
fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::not_well(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

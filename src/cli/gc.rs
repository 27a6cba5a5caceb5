//! `sower gc`: Remove what nobody needs any more.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{Failure, Outcome};
use crate::config::{Config, parse_bytes};
use crate::housekeeping::{self, Collected, Item, Options, Turn};
use crate::limits::size::Size;

/// Remove what nobody needs any more: leftovers of jobs, old logs, cache over its quota, garbage of the Nix store.
///
/// The daemon does the same by itself (`housekeeping` in the configuration). The Nix store is cleaned only while no job
/// runs, and a job that begins meanwhile waits; the results of the last successful jobs of each repository stay, with all
/// that they were built from.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Say what would be removed, remove nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Collect at most so much in the Nix store [default: what housekeeping.store_min_free is short of]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_freed: Option<u64>,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
    /// The configuration [default: /etc/sower/config.yaml, or the built-in values where there is none]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  sower gc --dry-run
  sower gc
  sower gc --max-freed 10GiB

Exit code: 0 done, 1 something could not be removed, 2 the question was wrong.";

fn size(text: &str) -> Result<u64, String> {
    parse_bytes(text).ok_or_else(|| "a number of bytes such as 10GiB is expected".to_owned())
}

pub(super) fn run(args: &Args) -> Outcome {
    let (config, _) = Config::load(args.config.as_deref()).map_err(Failure::wrong_question)?;
    let options = Options { dry_run: args.dry_run, max_freed: args.max_freed, daemon: false };
    let turn = housekeeping::run(&config, options);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&turn).map_err(Failure::not_well)?);
    } else {
        print(&turn);
    }
    Ok(if turn.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(turn: &Turn) {
    let did = if turn.dry_run { "would go" } else { "gone" };
    for Item { what, path, bytes, problem } in &turn.items {
        match problem {
            None => println!("{did:<8}  {:>10}  {what} {}", Size(*bytes).to_string(), path.display()),
            Some(problem) => println!("FAILED    {:>10}  {what} {}: {problem}", "", path.display()),
        }
    }
    match &turn.store {
        Collected::Left { why } => println!("Nix store: left alone, {why}"),
        Collected::Would { wanted, dead } => {
            println!("Nix store: up to {} of {dead} paths that nothing keeps", Size(*wanted));
        }
        Collected::Done { wanted, freed } => {
            println!("Nix store: {} freed of {} wanted", Size(*freed), Size(*wanted));
        }
        Collected::Failed { why } => println!("Nix store: FAILED: {why}"),
    }
    if !turn.dry_run {
        println!("{} freed", Size(turn.freed()));
    }
}

//! The command line: one file per subcommand, each with its arguments and one call into a room.

mod archive;
mod check;
mod config;
mod daemon;
mod deploy;
mod doctor;
mod eval;
mod exec;
mod failure;
mod gc;
mod ghc;
mod image;
mod job;
mod jobs;
mod migrate;
mod nix;
mod register;
mod status;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

pub use failure::{Failure, Outcome};

/// A Gitea Actions runner for small build hosts.
#[derive(Debug, Parser)]
#[command(name = "sower", version, about, propagate_version = true, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  sower register --instance https://git.example.org --token TOKEN --labels haskelseed:host
  sower doctor
  sower daemon
  sower exec -W .gitea/workflows/deploy.yaml";

#[derive(Debug, Subcommand)]
enum Command {
    Register(register::Args),
    Daemon(daemon::Args),
    Migrate(migrate::Args),
    Status(status::Args),
    Doctor(doctor::Args),
    Gc(gc::Args),
    Exec(exec::Args),
    Eval(eval::Args),
    Check(check::Args),
    Config(config::Args),
    Archive(archive::Args),
    Ghc(ghc::Args),
    Image(image::Args),
    Deploy(deploy::Args),
    Jobs(jobs::Args),
    Nix(nix::Args),
    Job(job::Args),
}

/// The command line itself, for manual pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Reads the command line, runs the subcommand and says what went wrong on stderr.
///
/// Exit code: 0 done, 1 the thing asked about is not well, 2 the question was wrong.
#[must_use]
pub fn main() -> ExitCode {
    crate::allocator::share_heaps();
    let outcome = match Cli::parse().command {
        Command::Register(args) => register::run(&args),
        Command::Daemon(args) => daemon::run(&args),
        Command::Migrate(args) => migrate::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Gc(args) => gc::run(&args),
        Command::Exec(args) => exec::run(args),
        Command::Eval(args) => eval::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Config(args) => config::run(&args),
        Command::Archive(args) => archive::run(&args),
        Command::Ghc(args) => ghc::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Deploy(args) => deploy::run(&args),
        Command::Jobs(args) => jobs::run(&args),
        Command::Nix(args) => nix::run(&args),
        Command::Job(args) => job::run(&args),
    };
    outcome.unwrap_or_else(|failure| {
        // Where it cannot be written, as a job's log on a broken disk, the exit code has to tell.
        let _ = writeln!(std::io::stderr(), "sower: {failure}");
        failure.exit_code()
    })
}

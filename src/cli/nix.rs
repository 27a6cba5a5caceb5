//! `sower nix`: Nix builds that can be followed.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command as Process, ExitCode, ExitStatus};

use clap::Subcommand;

use super::{Failure, Outcome};
use crate::archive::nix;
use crate::limits::{follow, nix as ways};

/// Follow Nix builds.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Build(BuildArgs),
    Follow(FollowArgs),
}

/// Run `nix build` and show its derivations: phase, time, memory, and how long they took before.
///
/// In a job they are groups of the log, and a table goes to the summary; there a plain `nix build` does the same. Exit
/// code: that of Nix.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sower nix build .#docker
  sower ghc run --heap 2g -- sower nix build .#docker -- --cores 1")]
struct BuildArgs {
    /// What to build
    #[arg(value_name = "INSTALLABLE")]
    installables: Vec<OsString>,
    /// Further arguments for Nix
    #[arg(last = true, value_name = "ARG")]
    more: Vec<OsString>,
}

/// Run a command line of Nix and follow it if it builds (used by launchers in jobs).
#[derive(Debug, clap::Args)]
#[command(hide = true)]
struct FollowArgs {
    /// The program, `nix` or `nix-build`
    program: PathBuf,
    /// Its arguments
    #[arg(last = true, value_name = "ARG")]
    arguments: Vec<OsString>,
}

pub(super) fn run(args: &Args) -> Outcome {
    match &args.command {
        Command::Build(args) => build(args),
        Command::Follow(args) => follow_any(args),
    }
}

fn build(args: &BuildArgs) -> Outcome {
    let mut arguments = vec![OsString::from("build")];
    arguments.extend(args.installables.iter().chain(&args.more).cloned());
    say_way(&arguments);
    let mut command = nix::command(&["build", "--log-format", "internal-json"]);
    command.args(&arguments[1..]);
    code(follow::follow(command).map_err(|error| Failure::not_well(format!("nix: {error}")))?)
}

fn follow_any(args: &FollowArgs) -> Outcome {
    let mut command = Process::new(&args.program);
    command.args(&args.arguments);
    let legacy = args.program.file_name().is_some_and(|name| name == "nix-build");
    let mut words = args.arguments.clone();
    if legacy {
        words.insert(0, "build".into());
    }
    if ways::builds(&words).is_none() {
        // Not a build after all.
        let error = command.exec();
        return Err(Failure::not_well(format!("{}: {error}", args.program.display())));
    }
    if !legacy {
        say_way(&args.arguments);
    }
    command.args(["--log-format", "internal-json"]);
    let ended = follow::follow(command);
    code(ended.map_err(|error| Failure::not_well(format!("{}: {error}", args.program.display())))?)
}

fn say_way(arguments: &[OsString]) {
    if let Some(way) = follow::way(arguments) {
        eprintln!("{way}");
    }
}

fn code(status: ExitStatus) -> Outcome {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

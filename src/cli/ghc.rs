//! `sower ghc`: Give GHC a heap ceiling and prove it.

use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;

use super::{Failure, Outcome};
use crate::limits::ceiling::Ceiling;
use crate::limits::run::{self, CannotRun};
use crate::limits::size::Size;
use crate::limits::{derivations, launcher};

/// Give GHC a heap ceiling and prove it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Caps(CapsArgs),
    Run(RunArgs),
}

#[derive(Debug, clap::Args)]
struct CeilingArgs {
    /// The most that GHC's heap may grow to
    #[arg(long, value_name = "SIZE", default_value = "2g")]
    heap: Size,
    /// The allocation area of each of GHC's threads
    #[arg(long, value_name = "SIZE", default_value = "32m")]
    allocation_area: Size,
    /// Modules that one GHC compiles at a time [default: what the build says]
    #[arg(long, value_name = "N")]
    jobs: Option<u32>,
    /// Put the ceiling last on GHC's command line, where it beats what a build passes itself
    #[arg(long)]
    enforce: bool,
}

/// Put launchers with a heap ceiling in front of GHC for the steps that follow in a job.
///
/// Every GHC that a later step calls gets the ceiling; no other program does. As root that is by any name and path, and
/// inside single-user Nix builds; else by PATH.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sower ghc caps --heap 2g --allocation-area 32m       (in a step of a job)
  sower ghc caps --installable .#docker                (also asks Nix which derivations carry a ceiling)
  sower ghc caps --dir ~/capped && PATH=~/capped:$PATH (anywhere)")]
struct CapsArgs {
    #[command(flatten)]
    ceiling: CeilingArgs,
    /// Where the launchers go [default: in a job, below RUNNER_TEMP]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Have the job fail if a GHC ran in it without the ceiling
    #[arg(long)]
    require: bool,
    /// Ask Nix which derivations of this run GHC, and which carry a ceiling
    #[arg(long, value_name = "INSTALLABLE")]
    installable: Option<String>,
}

/// Run a command with a heap ceiling on every GHC in it, and say at the end whether it was in force.
///
/// As root, GHC has the ceiling by its full path and inside a single-user Nix build as well; no derivation changes.
/// Exit code: the command's.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sower ghc run --heap 2g --allocation-area 32m -- nix build .#docker
  sower ghc run --require -- cabal build")]
struct RunArgs {
    #[command(flatten)]
    ceiling: CeilingArgs,
    /// Exit with 1 if a GHC ran without the ceiling
    #[arg(long)]
    require: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub(super) fn run(args: &Args) -> Outcome {
    match &args.command {
        Command::Caps(args) => caps(args),
        Command::Run(args) => run_under(args),
    }
}

impl CeilingArgs {
    fn ceiling(&self) -> Result<Ceiling, Failure> {
        let ceiling = Ceiling {
            heap: self.heap,
            allocation_area: self.allocation_area,
            jobs: self.jobs,
            enforce: self.enforce,
        };
        ceiling.check().map_err(Failure::wrong_question)?;
        for warning in ceiling.warnings(None) {
            eprintln!("sower: {warning}");
        }
        Ok(ceiling)
    }
}

fn environment(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn caps(args: &CapsArgs) -> Outcome {
    let ceiling = args.ceiling.ceiling()?;
    let path_file = environment("GITHUB_PATH");
    let directory = match (&args.dir, environment("RUNNER_TEMP")) {
        (Some(directory), _) => std::path::absolute(directory).map_err(Failure::wrong_question)?,
        (None, Some(temporary)) if path_file.is_some() => temporary.join("sower-ghc-caps"),
        _ => {
            return Err(Failure::wrong_question(
                "this is no step of a job (GITHUB_PATH or RUNNER_TEMP is not set): give --dir DIR and put DIR in front of PATH, or use `sower ghc run -- CMD`",
            ));
        }
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let made = launcher::make_directory(&directory, &path, &ceiling)
        .and_then(|made| {
            launcher::ask(&directory, &launcher::Asked { ceiling, require: args.require })?;
            Ok(made)
        })
        .map_err(|error| Failure::not_well(format!("{}: {error}", directory.display())))?;
    if made.is_empty() {
        println!("no GHC on PATH: nothing to put a ceiling on here");
    } else {
        let names: Vec<&str> = made.iter().map(|(name, _)| name.as_str()).collect();
        println!("{} for {}", ceiling.line(), names.join(", "));
    }
    announce(&directory, path_file.as_deref())?;
    if let Some(set) = std::env::var_os("GHCRTS").filter(|set| !set.is_empty()) {
        println!(
            "GHCRTS is set to \"{}\": GHC keeps what it says, and every other Haskell program of the job that is linked without -rtsopts exits with 1",
            set.display()
        );
    }
    if let Some(installable) = &args.installable {
        let asked = derivations::ask(&[installable.into()]).map_err(|said| {
            Failure::not_well(format!("nix could not show the derivations of {installable}:\n{said}"))
        })?;
        asked.lines().iter().for_each(|line| println!("{line}"));
        if asked.with_ghc.iter().any(|derivation| derivation.heap.is_none()) {
            println!(
                "as root and without a nix-daemon the ceiling reaches the others too: in a job from the next step on, elsewhere with `sower ghc run -- nix build {installable}`"
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Puts the launchers in front of PATH for the steps that follow, or says how to do it.
fn announce(directory: &Path, path_file: Option<&Path>) -> Result<(), Failure> {
    let Some(path_file) = path_file else {
        println!(
            "use it with: export PATH={}:\"$PATH\"",
            shlex::try_quote(&directory.to_string_lossy()).unwrap_or_default()
        );
        return Ok(());
    };
    let line = format!("{}\n", directory.display());
    let written = std::fs::OpenOptions::new().append(true).create(true).open(path_file);
    written
        .and_then(|mut file| file.write_all(line.as_bytes()))
        .map_err(|error| Failure::not_well(format!("{}: {error}", path_file.display())))?;
    println!("launchers in {}, in front of PATH from the next step on", directory.display());
    Ok(())
}

fn run_under(args: &RunArgs) -> Outcome {
    let ceiling = args.ceiling.ceiling()?;
    let ran = match run::run(&args.command, &ceiling, &mut |notice| eprintln!("sower: {notice}")) {
        Ok(ran) => ran,
        Err(CannotRun::Start { command, source }) => {
            eprintln!("sower: {}: {source}", command.display());
            // As a shell has it.
            return Ok(ExitCode::from(if source.kind() == ErrorKind::NotFound { 127 } else { 126 }));
        }
        Err(error) => return Err(Failure::not_well(error)),
    };
    eprintln!("sower: {}", ran.proof.line());
    let code = ran.status.code().or_else(|| ran.status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    if args.require && code == 0 && ran.proof.unbound_count > 0 {
        return Err(Failure::not_well(
            "a GHC ran without the heap ceiling, and --require does not allow that",
        ));
    }
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

//! `sower nix`: Nix builds that can be followed.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use clap::Subcommand;

use super::{Failure, Outcome};
use crate::archive::nix;
use crate::limits::admission::Peaks;
use crate::limits::nix_build::Builds;

/// Follow Nix builds.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Build(BuildArgs),
}

/// Run `nix build` and show its derivations: phase, time, memory, and how long they took before.
///
/// In a job a table goes to the summary. Exit code: that of Nix.
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

/// How often the builders are measured.
const MEASURE: Duration = Duration::from_millis(500);
/// How often a line says what is being built, when nothing else does.
const STILL: u32 = 120;
/// A longer row of the log is cut.
const ROW_AT_MOST: u64 = 1 << 20;

pub(super) fn run(args: &Args) -> Outcome {
    match &args.command {
        Command::Build(args) => build(args),
    }
}

fn times() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("sower/nix-builds.json"))
}

fn build(args: &BuildArgs) -> Outcome {
    let times = times();
    let builds = Builds::new(times.as_deref().map(Peaks::read).unwrap_or_default());
    let builds = Arc::new(Mutex::new(builds));
    let lock = |builds: &Mutex<Builds>, work: &mut dyn FnMut(&mut Builds)| {
        work(&mut builds.lock().unwrap_or_else(PoisonError::into_inner));
    };
    let mut child = nix::command(&["build", "--log-format", "internal-json", "-v"])
        .args(&args.installables)
        .args(&args.more)
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::not_well(format!("nix could not be started: {error}")))?;
    let pid = child.id();
    let stderr = child.stderr.take();
    let watched = Arc::clone(&builds);
    std::thread::spawn(move || {
        for turn in 1_u32.. {
            std::thread::sleep(MEASURE);
            let mut still = None;
            lock(&watched, &mut |builds| {
                builds.measure(pid);
                still = builds.line().filter(|_| turn.is_multiple_of(STILL));
            });
            if let Some(still) = still {
                eprintln!("still building: {still}");
            }
        }
    });
    let mut reader = BufReader::new(stderr.ok_or_else(|| Failure::not_well("nix has no stderr"))?);
    let mut row = Vec::new();
    loop {
        row.clear();
        let read = std::io::Read::take(&mut reader, ROW_AT_MOST).read_until(b'\n', &mut row);
        if !matches!(read, Ok(1..)) {
            break;
        }
        let text = String::from_utf8_lossy(&row);
        let mut said = None;
        lock(&builds, &mut |builds| said = builds.take(text.trim_end_matches(['\n', '\r'])));
        if let Some(said) = said {
            eprintln!("{said}");
        }
    }
    let status = child.wait().map_err(Failure::not_well)?;
    let builds = builds.lock().unwrap_or_else(PoisonError::into_inner);
    if let (Some(summary), Some(markdown)) = (std::env::var_os("GITHUB_STEP_SUMMARY"), builds.markdown()) {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(&summary);
        let written = file.and_then(|mut file| writeln!(file, "{markdown}"));
        written.map_err(|error| Failure::not_well(format!("{}: {error}", summary.display())))?;
    }
    if let Some(times) = times.filter(|_| status.success()) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        if let Err(error) = builds.remember(&times, now) {
            eprintln!("sower: how long it took is not remembered: {}: {error}", times.display());
        }
    }
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

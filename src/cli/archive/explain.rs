//! `sower archive explain`: Name the archive behind "at position N".

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{Failure, Outcome, say};
use crate::archive::explain::{member_at, position, position_in};
use crate::archive::memory::Memory;
use crate::archive::nix::closure;
use crate::archive::{find, words};

/// Name the archive and member that "Data.Binary.Get.runGet at position N" is about.
///
/// Exit code: 0 found, 1 none of the archives fits, 2 one could not be asked.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sower archive explain --position 287686318 --closure .#docker
  sower archive explain --log build.log /nix/store/…-ghc-9.10.3")]
pub(super) struct Args {
    /// Archives, or directories in which every *.a, *.rlib and *.lib is looked at
    #[arg(value_name = "PATH", required_unless_present = "closure")]
    paths: Vec<PathBuf>,
    /// The position in the message
    #[arg(long, value_name = "N", required_unless_present = "log")]
    position: Option<u64>,
    /// Read the position from a build's log
    #[arg(long, value_name = "FILE", conflicts_with = "position")]
    log: Option<PathBuf>,
    /// All archives that the build of this needs: a flake's output, a derivation or a store path
    #[arg(long, value_name = "INSTALLABLE")]
    closure: Vec<String>,
    /// Print one JSON object per archive
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Outcome {
    let wanted = match (args.position, &args.log) {
        (Some(position), _) => position,
        (None, Some(log)) => from_log(log)?,
        (None, None) => return Err(Failure::wrong_question("--position or --log is needed")),
    };
    let mut archives = Vec::new();
    for path in &args.paths {
        if path.is_dir() {
            archives.extend(find::archives_below(path).archives);
        } else {
            archives.push(path.clone());
        }
    }
    let mut memory = Memory::from_environment();
    for installable in &args.closure {
        archives
            .extend(closure::archives(installable, &mut memory).map_err(Failure::wrong_question)?.archives);
    }
    let mut unasked = 0;
    let culprits = position(&archives, wanted, &mut |error| {
        eprintln!("sower: {error}");
        unasked += 1;
    });
    for culprit in &culprits {
        if args.json {
            say(&serde_json::to_string(culprit).map_err(Failure::not_well)?)?;
            continue;
        }
        let member = culprit.place();
        let verdict = if culprit.exact {
            format!("position {} is {member} of {}", words::grouped(wanted), culprit.path.display())
        } else {
            format!(
                "{} is cut, but not there: position {} is {member}",
                culprit.path.display(),
                words::grouped(wanted)
            )
        };
        say(&format!("{verdict}\n{}", words::text(&culprit.report)))?;
    }
    match (culprits.is_empty(), unasked) {
        (false, _) => Ok(ExitCode::SUCCESS),
        (true, 0) => {
            // Of archives that were named it is told what stands there: one may have been mended since.
            for path in args.paths.iter().filter(|path| path.is_file()) {
                if let Some(member) = member_at(path, wanted) {
                    let at = words::grouped(wanted);
                    eprintln!("sower: {}: not cut; position {at} lies in {member}", path.display());
                }
            }
            Err(Failure::not_well(format!(
                "none of {} archives is cut at position {}",
                words::grouped(archives.len() as u64),
                words::grouped(wanted)
            )))
        }
        (true, _) => Ok(ExitCode::from(2)),
    }
}

fn from_log(log: &Path) -> Result<u64, Failure> {
    let wrong = |error: std::io::Error| Failure::wrong_question(format!("{}: {error}", log.display()));
    let file = std::fs::File::open(log).map_err(wrong)?;
    for line in std::io::BufReader::new(file).split(b'\n') {
        if let Some(position) = position_in(&String::from_utf8_lossy(&line.map_err(wrong)?)) {
            return Ok(position);
        }
    }
    Err(Failure::wrong_question(format!(
        "{}: no `Data.Binary.Get.runGet at position N` in it",
        log.display()
    )))
}

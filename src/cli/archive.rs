//! `sower archive`: Check static archives and mend them.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};

use super::{Failure, Outcome};
use crate::archive::check::{CheckError, Report};
use crate::archive::mend::{MendError, Mended, Source, mend};
use crate::archive::{check, find, readers, words};

/// Check static archives and mend them.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(CheckArgs),
    Patch(PatchArgs),
}

/// Say whether archives are whole: every member header, no bodies.
///
/// Exit code: 0 all are sound, 1 one is not, 2 one could not be asked.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sower archive check /nix/store/…-ghc-9.10.3/lib
  sower archive check --json libfoo.a libbar.a
  sower archive check --repair --from /mnt/backup dist/")]
struct CheckArgs {
    /// Archives, or directories in which every *.a is checked
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Print one JSON object per archive
    #[arg(long)]
    json: bool,
    /// Print nothing about archives that are sound
    #[arg(long, short)]
    quiet: bool,
    /// Mend what is not sound, as `sower archive patch` does
    #[arg(long)]
    repair: bool,
    /// Where --repair takes whole copies from: `nix`, a file or a directory; repeatable [default: nix]
    #[arg(long, value_name = "SOURCE", requires = "repair")]
    from: Vec<String>,
}

/// Mend an archive from a whole copy of it.
///
/// The copy is compared with all of the archive that is still there before anything is written, and takes its place in one step.
/// Exit code: 0 it is sound now (or could be, with --dry-run), 1 it is not, 2 it could not be asked.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sower archive patch /nix/store/…-ghc-9.10.3/lib/…/libHSghc-9.10.3.a
  sower archive patch libfoo.a --from /mnt/backup/libfoo.a --from nix --dry-run")]
struct PatchArgs {
    /// The archive
    path: PathBuf,
    /// Where a whole copy may be: `nix` (the configured substituters), a file, or a directory with a file of the same name; tried in order [default: nix]
    #[arg(long, value_name = "SOURCE")]
    from: Vec<String>,
    /// Say what would be done and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(args: &Args) -> Outcome {
    match &args.command {
        Command::Check(args) => check_all(args),
        Command::Patch(args) => patch(args),
    }
}

/// What came of all that was asked.
#[derive(Debug, Default)]
struct Tally {
    sound: u64,
    mended: u64,
    not_sound: u64,
    not_asked: u64,
}

impl Tally {
    fn code(&self) -> ExitCode {
        match (self.not_sound, self.not_asked) {
            (0, 0) => ExitCode::SUCCESS,
            (0, _) => ExitCode::from(2),
            _ => ExitCode::from(1),
        }
    }
}

fn check_all(args: &CheckArgs) -> Outcome {
    let mut tally = Tally::default();
    let mut archives = Vec::new();
    for path in &args.paths {
        if path.is_dir() {
            let found = find::archives_below(path);
            for folder in &found.unreadable {
                eprintln!("sower: {folder}");
                tally.not_asked += 1;
            }
            if found.archives.is_empty() {
                eprintln!("sower: {}: no *.a below it", path.display());
                tally.not_asked += 1;
            }
            archives.extend(found.archives.into_iter().map(|archive| (archive, true)));
        } else {
            archives.push((path.clone(), false));
        }
    }
    let progress = progress(archives.len() as u64);
    for (path, by_directory) in &archives {
        progress.set_message(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        match check(path) {
            Ok(report) => {
                progress.suspend(|| print(&report, args))?;
                if report.sound {
                    tally.sound += 1;
                } else if args.repair && progress.suspend(|| repair(path, &args.from, args.json)) {
                    tally.mended += 1;
                } else {
                    tally.not_sound += 1;
                }
            }
            // What vanished since the directory was read was nobody's archive any more.
            Err(CheckError::Io { source, .. })
                if *by_directory && source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                progress.suspend(|| eprintln!("sower: {error}"));
                tally.not_asked += 1;
            }
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    if archives.len() > 1 && !args.json {
        say(&total(&tally))?;
    }
    Ok(tally.code())
}

fn total(tally: &Tally) -> String {
    let mut text = format!("{} sound", words::grouped(tally.sound));
    if tally.mended > 0 {
        text.push_str(&format!(", {} mended", words::grouped(tally.mended)));
    }
    text.push_str(&format!(", {} not sound", words::grouped(tally.not_sound)));
    if tally.not_asked > 0 {
        text.push_str(&format!(", {} could not be asked", words::grouped(tally.not_asked)));
    }
    text
}

fn progress(length: u64) -> ProgressBar {
    if length < 2 || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(length).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn print(report: &Report, args: &CheckArgs) -> Result<(), Failure> {
    if args.quiet && report.sound {
        return Ok(());
    }
    if args.json { say(&json(report)?) } else { say(&words::text(report)) }
}

fn json(report: &Report) -> Result<String, Failure> {
    let mut value = serde_json::to_value(report).map_err(Failure::not_well)?;
    if !report.sound
        && let Some(object) = value.as_object_mut()
    {
        object.insert(
            "readers".to_owned(),
            serde_json::to_value(readers::verdicts(report)).map_err(Failure::not_well)?,
        );
        object.insert("ghc_position".to_owned(), readers::ghc_position(report).into());
        object.insert("mend".to_owned(), words::mend_command(&report.path).into());
    }
    Ok(value.to_string())
}

/// Prints a line; a reader that went away (`| head`) ends the program quietly.
fn say(text: &str) -> Result<(), Failure> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(Failure::not_well),
    }
}

/// Mends and says so on stderr (stdout may be read by a program); whether the archive is sound now.
fn repair(path: &Path, from: &[String], json: bool) -> bool {
    let outcome = mend(path, &sources(from), false, &mut |notice| eprintln!("{notice}"));
    match outcome {
        Ok(mended) => {
            let text = tell(&mended);
            if json {
                eprintln!("{text}")
            } else {
                println!("{text}")
            }
            true
        }
        Err(error) => {
            eprintln!("sower: {error}");
            false
        }
    }
}

fn sources(from: &[String]) -> Vec<Source> {
    if from.is_empty() { vec![Source::Nix] } else { from.iter().map(|text| Source::parse(text)).collect() }
}

fn patch(args: &PatchArgs) -> Outcome {
    for source in sources(&args.from) {
        if let Source::Path(path) = source
            && !path.exists()
        {
            return Err(Failure::wrong_question(format!("--from {}: it is not there", path.display())));
        }
    }
    match mend(&args.path, &sources(&args.from), args.dry_run, &mut |notice| eprintln!("{notice}")) {
        Ok(mended) => {
            say(&tell(&mended))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error @ MendError::Check(_)) => Err(Failure::wrong_question(error)),
        Err(error) => Err(Failure::not_well(error)),
    }
}

/// What a mend did, in words; also into the job's summary, if there is one.
fn tell(mended: &Mended) -> String {
    match mended {
        Mended::Sound(report) => format!("{}; nothing to mend", words::text(report)),
        Mended::Would { before, plan } => format!("{}\n{plan}; nothing was written", words::text(before)),
        Mended::Done { before, after, source, notices } => {
            if let Err(error) = summarise(&words::mend_summary(before, after, source)) {
                eprintln!("sower: the job summary could not be written: {error}");
            }
            let mut text = format!(
                "mended     {}: {} bytes before, {} now, {} members, {} symbols; from {source}",
                after.path.display(),
                words::grouped(before.size),
                words::grouped(after.size),
                words::grouped(after.members),
                words::grouped(after.symbols),
            );
            for notice in notices {
                text.push_str("\n           ");
                text.push_str(notice);
            }
            text
        }
    }
}

fn summarise(markdown: &str) -> std::io::Result<()> {
    let Some(file) = std::env::var_os("GITHUB_STEP_SUMMARY").filter(|file| !file.is_empty()) else {
        return Ok(());
    };
    std::fs::OpenOptions::new().append(true).create(true).open(file)?.write_all(markdown.as_bytes())
}

//! `sower archive check`: Say whether archives are whole.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::patch::tell;
use super::{Failure, Outcome, say, sources};
use crate::archive::check::{CheckError, Report};
use crate::archive::donor::Source;
use crate::archive::memory::Memory;
use crate::archive::mend::{Options, mend};
use crate::archive::nar::Sum;
use crate::archive::nix::{self, closure, joins::Joins};
use crate::archive::store::{self, View};
use crate::archive::survey::{self, Answer, Request};
use crate::archive::{find, readers, words};

/// Say whether archives are whole: every member header, no bodies.
///
/// Archives of the Nix store are also compared with Nix's book: by the hash of their store path where they or it are named, by
/// its size alone in a directory and in a --closure (unless with --hash).
/// Exit code: 0 all are sound, 1 one is not, 2 one could not be asked.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sower archive check /nix/store/…-ghc-9.10.3/lib
  sower archive check --closure .#docker
  sower archive check --json libfoo.a libbar.a
  sower archive check --repair --from /mnt/backup dist/")]
pub(super) struct Args {
    /// Archives, directories in which every *.a, *.rlib and *.lib is checked, or store paths
    #[arg(required_unless_present = "closure", value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// All archives that the build of this needs: a flake's output, a derivation or a store path. What was sound is remembered
    #[arg(long, value_name = "INSTALLABLE")]
    closure: Vec<String>,
    /// Forget what was sound, and ask Nix anew
    #[arg(long, requires = "closure")]
    fresh: bool,
    /// Read every body as well and compare with the hash that Nix knows, also in a --closure
    #[arg(long)]
    hash: bool,
    /// Compare with the size that Nix knows alone; no body is read
    #[arg(long, conflicts_with = "hash")]
    no_hash: bool,
    /// Print one JSON object per archive
    #[arg(long)]
    json: bool,
    /// Print nothing about archives that are sound
    #[arg(long, short)]
    quiet: bool,
    /// Mend what is not sound, as `sower archive patch` does
    #[arg(long)]
    repair: bool,
    /// Where --repair takes whole copies from, as `sower archive patch` does; repeatable [default: nix]
    #[arg(long, value_name = "SOURCE", requires = "repair")]
    from: Vec<String>,
}

/// Reasons that are told of why a store path could not be mended.
const REASONS_AT_MOST: usize = 8;

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

    fn text(&self) -> String {
        let mut text = format!("{} sound", words::grouped(self.sound));
        if self.mended > 0 {
            text.push_str(&format!(", {} mended", words::grouped(self.mended)));
        }
        text.push_str(&format!(", {} not sound", words::grouped(self.not_sound)));
        if self.not_asked > 0 {
            text.push_str(&format!(", {} could not be asked", words::grouped(self.not_asked)));
        }
        text
    }
}

pub(super) fn run(args: &Args) -> Outcome {
    let sources = sources(&args.from)?;
    let mut tally = Tally::default();
    let mut request = Request { hash: args.hash, ..Request::default() };
    // What vanishes while a directory is walked was nobody's archive any more; what was named must be there.
    let mut named = Vec::new();
    for path in &args.paths {
        // A directory may hold much that nobody asked about: its store path is hashed when that is asked for.
        let home =
            path.canonicalize().ok().filter(|real| !real.is_dir()).and_then(|real| nix::store_path(&real));
        request.hashed.extend(home.filter(|_| !args.no_hash));
        if nix::store_path(path).as_ref() == Some(path) && path.symlink_metadata().is_ok() {
            request.store_paths.push(path.clone());
            request.hashed.extend((!args.no_hash).then(|| path.clone()));
        } else if !path.is_dir() {
            named.push(path.clone());
            request.archives.push(path.clone());
            continue;
        }
        let found = find::archives_below(path);
        // A store path may be a single file.
        let found = if path.is_dir() {
            found
        } else {
            find::Found { archives: vec![path.clone()], ..Default::default() }
        };
        for folder in &found.unreadable {
            eprintln!("sower: {folder}");
            tally.not_asked += 1;
        }
        if found.archives.is_empty() && !request.store_paths.contains(path) {
            eprintln!("sower: {}: no *.a, *.rlib or *.lib below it", path.display());
            tally.not_asked += 1;
        }
        request.archives.extend(found.archives);
    }
    let mut memory = (!args.closure.is_empty()).then(Memory::from_environment);
    if let Some(memory) = &mut memory {
        if args.fresh {
            memory.forget();
        }
        for installable in &args.closure {
            let found = closure::archives(installable, memory).map_err(Failure::wrong_question)?;
            request.archives.extend(found.archives);
            for joins in &found.joins {
                say(&joined(joins, args.json)?)?;
            }
        }
    }
    // An archive that is named twice, or lies in a directory that is, is one.
    let mut seen = std::collections::HashSet::new();
    request.archives.retain(|path| seen.insert(path.clone()));
    let several = request.archives.len() > 1;
    let progress = progress(request.archives.len() as u64);
    let mut failure = None;
    survey::run(&request, memory.as_mut(), &mut |answer| {
        if let Answer::Archive(path, _) = &answer {
            progress.set_message(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
            progress.inc(1);
        }
        let told = progress.suspend(|| take(answer, args, &sources, &named, &mut tally));
        failure = failure.take().or(told.err());
    });
    progress.finish_and_clear();
    if let Some(failure) = failure {
        return Err(failure);
    }
    if let Some(memory) = &mut memory
        && let Err(error) = memory.write()
    {
        eprintln!("sower: what was sound could not be remembered: {error}");
    }
    if (several || !args.closure.is_empty()) && !args.json {
        say(&tally.text())?;
    }
    Ok(tally.code())
}

/// Tells one answer, counts it, and mends if asked to.
fn take(
    answer: Answer,
    args: &Args,
    sources: &[Source],
    named: &[PathBuf],
    tally: &mut Tally,
) -> Result<(), Failure> {
    match answer {
        Answer::Archive(path, result) => match *result {
            Ok(report) => {
                if !(args.quiet && report.sound) {
                    say(&if args.json { json(&report)? } else { words::text(&report) })?;
                }
                if report.sound {
                    tally.sound += 1;
                } else if args.repair && repair(&path, sources, args.json)? {
                    tally.mended += 1;
                } else {
                    tally.not_sound += 1;
                }
            }
            Err(CheckError::Io { source, .. })
                if !named.contains(&path) && source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                if args.json {
                    let path = path.to_string_lossy();
                    say(&serde_json::json!({ "path": path, "error": error.to_string() }).to_string())?;
                }
                eprintln!("sower: {error}");
                tally.not_asked += 1;
            }
        },
        Answer::StorePath(view) => store_path(view, args, sources, tally)?,
        Answer::StorePathUnknown(path, why) => {
            eprintln!("sower: {}: {why}", path.display());
            tally.not_asked += 1;
        }
        Answer::Notice(text) => eprintln!("sower: {text}"),
    }
    Ok(())
}

fn store_path(mut view: View, args: &Args, sources: &[Source], tally: &mut Tally) -> Result<(), Failure> {
    // An archive of it may have been mended meanwhile.
    if !view.agrees
        && let Ok(known) = nix::known::ask_one(&view.store_path)
        && let Ok(again) = store::compare(&view.store_path, &known, true)
    {
        view = again;
        if !view.agrees && args.repair {
            view = repair_store_path(view, &known, sources);
            tally.mended += u64::from(view.agrees);
        }
    }
    if view.agrees && args.quiet {
        return Ok(());
    }
    if !view.agrees {
        tally.not_sound += 1;
    }
    if args.json {
        return say(&serde_json::to_string(&view).map_err(Failure::not_well)?);
    }
    let path = view.store_path.display();
    if view.agrees {
        return say(&format!("sound      {path}: {}", view.text()));
    }
    say(&format!("NOT SOUND  {path}: {}\n  mend     nix store repair {path}", view.text()))
}

fn joined(joins: &Joins, json: bool) -> Result<String, Failure> {
    if json {
        return serde_json::to_string(&serde_json::json!({ "joins": joins })).map_err(Failure::not_well);
    }
    Ok(format!(
        "joins      {}: Cabal is configured with --enable-static, so after all modules `ghc -staticlib` reads every dependency's archive into its heap: {} that are there already, {} bytes in all\n  off      haskell.lib.disableStaticLibraries, in IHP's flake `buildStaticLibraries = false`: nothing installs what is joined",
        joins.name,
        words::grouped(joins.archives),
        words::grouped(joins.bytes)
    ))
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
        object.insert("mend".to_owned(), words::mend_command(report).into());
    }
    Ok(value.to_string())
}

/// Mends and says so on stderr (stdout may be read by a program); whether the archive is sound now.
fn repair(path: &Path, sources: &[Source], json: bool) -> Result<bool, Failure> {
    match mend(path, sources, &Options::default(), &mut |notice| eprintln!("{notice}")) {
        Ok(mended) => {
            let text = tell(&mended);
            if json {
                eprintln!("{text}");
            } else {
                say(&text)?;
            }
            Ok(true)
        }
        Err(error) => {
            eprintln!("sower: {error}");
            Ok(false)
        }
    }
}

/// Mends a store path of which no archive looks damaged: by Nix, or by copies of its archives, each proven by the hash.
fn repair_store_path(mut view: View, known: &Sum, sources: &[Source]) -> View {
    let path = view.store_path.clone();
    let archives = if path.is_dir() { find::archives_below(&path).archives } else { vec![path.clone()] };
    let mut reasons = Vec::new();
    for source in sources {
        let places = if *source == Source::Nix { std::slice::from_ref(&path) } else { archives.as_slice() };
        for place in places {
            let mended = match source {
                Source::Nix => nix::repair(place),
                other => mend(place, std::slice::from_ref(other), &Options::default(), &mut |notice| {
                    eprintln!("{notice}");
                })
                .map(|mended| eprintln!("{}", tell(&mended)))
                .map_err(|error| error.to_string()),
            };
            match mended {
                Ok(()) => view = store::compare(&path, known, true).unwrap_or(view),
                Err(why) => reasons.push(why),
            }
            if view.agrees {
                return view;
            }
        }
    }
    for why in reasons.iter().take(REASONS_AT_MOST) {
        eprintln!("sower: {why}");
    }
    if let Some(more) = reasons.len().checked_sub(REASONS_AT_MOST).filter(|more| *more > 0) {
        eprintln!("sower: and {more} more like these");
    }
    view
}

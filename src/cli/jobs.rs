//! `sower jobs`: What ran on this host, its log and its memory.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;

use super::{Failure, Outcome};
use crate::config::Config;
use crate::events::Event;
use crate::events::journal::Reader;
use crate::limits::profile::Profile;
use crate::limits::size::Size;
use crate::limits::{report, svg};
use crate::supervisor::history::{self, Entry};

/// List the jobs of this host, show a job's log, draw its memory.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  sower jobs
  sower jobs log 42 -f
  sower jobs memory 42 --svg build.svg"
)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    list: List,
}

#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    place: Place,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Log(LogArgs),
    Memory(MemoryArgs),
}

#[derive(Debug, clap::Args)]
struct Place {
    /// The configuration [default: /etc/sower/config.yaml, or the built-in values where there is none]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The state directory, whatever the configuration says
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

/// Print the log of a job.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  sower jobs log 42 -f")]
struct LogArgs {
    /// The number of its task
    task: i64,
    /// Go on as the job does, until it ends
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    place: Place,
}

/// Show what memory a job used, by step, and draw it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sower jobs memory 42
  sower jobs memory 42 --svg build.svg")]
struct MemoryArgs {
    /// The number of its task
    task: i64,
    /// Write a picture to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print everything that was measured as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(args: &Args) -> Outcome {
    match &args.command {
        None => list(&args.list),
        Some(Command::Log(args)) => log(args),
        Some(Command::Memory(args)) => memory(args),
    }
}

impl Place {
    fn state(&self) -> Result<PathBuf, Failure> {
        if let Some(state) = &self.state {
            return Ok(state.clone());
        }
        let (config, _) = Config::load(self.config.as_deref()).map_err(Failure::wrong_question)?;
        Ok(config.state_dir().to_owned())
    }

    fn job(&self, task: i64) -> Result<PathBuf, Failure> {
        let state = self.state()?;
        history::place(&state, task).ok_or_else(|| {
            Failure::wrong_question(format!(
                "no task {task} in {}; `sower jobs` lists what there is",
                state.display()
            ))
        })
    }
}

fn print(text: &str) {
    // Nobody may be reading any more.
    let _ = io::stdout().write_all(text.as_bytes());
}

fn list(args: &List) -> Outcome {
    let entries = history::entries(&args.place.state()?);
    let mut text = String::new();
    if args.json {
        for entry in &entries {
            text.push_str(&serde_json::to_string(entry).map_err(Failure::not_well)?);
            text.push('\n');
        }
    } else {
        let mut rows = vec![["TASK", "STATE", "STARTED", "TIME", "PEAK", "JOB"].map(str::to_owned)];
        rows.extend(entries.iter().map(row));
        let widths: [usize; 6] = std::array::from_fn(|column| {
            rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
        });
        for row in &rows {
            let cells: Vec<String> =
                row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            text.push_str(cells.join("  ").trim_end());
            text.push('\n');
        }
    }
    print(&text);
    Ok(ExitCode::SUCCESS)
}

fn row(entry: &Entry) -> [String; 6] {
    let started = entry.started.and_then(|time| jiff::Timestamp::from_microsecond(time.as_micros()).ok());
    [
        entry.task.to_string(),
        entry.conclusion.map_or("running", |conclusion| conclusion.as_str()).to_owned(),
        started.map(|time| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()).unwrap_or_default(),
        entry.millis().map(report::time).unwrap_or_default(),
        entry.peak.map(|peak| Size(peak).to_string()).unwrap_or_default(),
        entry.key(),
    ]
}

fn log(args: &LogArgs) -> Outcome {
    let place = args.place.job(args.task)?;
    let mut reader = Reader::open(&place.join("journal")).map_err(Failure::not_well)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut names = Vec::new();
    loop {
        let event = match reader.next_event() {
            Ok(Some(event)) => event,
            Ok(None) if args.follow && exists(&args.place, args.task) => {
                if out.flush().is_err() {
                    return Ok(ExitCode::SUCCESS);
                }
                std::thread::sleep(Duration::from_millis(200));
                continue;
            }
            Ok(None) => break,
            Err(error) => return Err(Failure::not_well(error)),
        };
        let written = match &event {
            Event::JobStarted { steps, .. } => {
                names.clone_from(steps);
                Ok(())
            }
            Event::StepStarted { step, .. } => {
                writeln!(out, "● {}", names.get(*step).map_or("", |step| step.name.as_str()))
            }
            Event::Row { text, .. } => writeln!(out, "{text}"),
            _ => Ok(()),
        };
        // Nobody is reading any more.
        if written.is_err() || matches!(event, Event::JobEnded { .. }) {
            break;
        }
    }
    let _ = out.flush();
    Ok(ExitCode::SUCCESS)
}

fn exists(place: &Place, task: i64) -> bool {
    place.state().is_ok_and(|state| history::place(&state, task).is_some())
}

fn memory(args: &MemoryArgs) -> Outcome {
    let place = args.place.job(args.task)?;
    let path = history::memory(&place);
    let profile = Profile::read(&path).map_err(|error| {
        Failure::not_well(format!(
            "{}: {error}; a job that has just begun has nothing measured yet",
            path.display()
        ))
    })?;
    if let Some(file) = &args.svg {
        std::fs::write(file, svg::draw(&profile, &title(&place, args.task)))
            .map_err(|error| Failure::not_well(format!("{}: {error}", file.display())))?;
    }
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&profile).map_err(Failure::not_well)?));
    } else {
        let mut text = String::new();
        for step in &profile.steps {
            let time = report::time(step.to.saturating_sub(step.from));
            text.push_str(&format!("{} ({time})\n  {}\n", step.name, profile.step_line(step)));
        }
        for mark in &profile.marks {
            text.push_str(&format!("At {}: {}\n", report::time(mark.at), mark.text));
        }
        text.push_str(&format!("{}\n", profile.proof.line()));
        print(&text);
    }
    Ok(ExitCode::SUCCESS)
}

fn title(place: &Path, task: i64) -> String {
    let entry = std::fs::read(place.join("entry.json")).ok();
    let entry = entry.and_then(|bytes| serde_json::from_slice::<Entry>(&bytes).ok());
    match entry {
        Some(entry) => format!("{} · {} · task {task}", entry.repository, entry.job),
        None => format!("task {task}"),
    }
}

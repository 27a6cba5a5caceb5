//! `sower status`: How the daemon of this host stands.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use super::{Failure, Outcome};
use crate::config::Config;
use crate::events::Timestamp;
use crate::limits::report;
use crate::limits::size::Size;
use crate::observe::{self, Status};

/// Say how the daemon of this host stands: Gitea, jobs, disks.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The configuration [default: /etc/sower/config.yaml, or the built-in values where there is none]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The state directory, whatever the configuration says
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Print it as JSON
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Print nothing; 0 also when it runs and is not ready, such as for a health check
    #[arg(short, long)]
    quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  sower status
  sower status --json
  sower status --quiet || rc-service sower restart

Exit code: 0 it runs and would take a task, 1 it does not, 2 the question was wrong.";

pub(super) fn run(args: &Args) -> Outcome {
    let state = match &args.state {
        Some(state) => state.clone(),
        None => {
            let (config, _) = Config::load(args.config.as_deref()).map_err(Failure::wrong_question)?;
            config.state_dir().to_owned()
        }
    };
    let status = match observe::ask(&state) {
        Ok(status) => status,
        Err(_) if args.quiet => return Ok(ExitCode::FAILURE),
        Err(error) => return Err(Failure::not_well(format!("{error}; start it: sower daemon"))),
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status).map_err(Failure::not_well)?);
    } else if !args.quiet {
        print!("{}", text(&status));
    }
    Ok(if status.ready || args.quiet { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<8}  {value}");
    };
    let state = match &status.not_ready {
        None => "ready".to_owned(),
        Some(why) => format!("not ready: {why}"),
    };
    line(
        "daemon",
        &format!("{state}; sower {}, process {}, up {}", status.version, status.pid, ago(status.started)),
    );
    let contact = match status.contact {
        Some(_) => format!("answered {} ago", ago(status.contact)),
        None => "has not answered yet".to_owned(),
    };
    line("gitea", &format!("{}, {contact}", status.address));
    line("runner", &format!("{}, labels {}", status.runner, status.labels.join(", ")));
    for disk in &status.disks {
        let gate = if status.min_free > 0 && disk.place != "store" {
            format!(", at least {} asked for", Size(status.min_free))
        } else {
            String::new()
        };
        line(
            "disk",
            &format!("{} of {} free at {}{gate}", gib(disk.free), gib(disk.size), disk.path.display()),
        );
    }
    if status.housekeeping.is_some() {
        line("house", &format!("kept {} ago", ago(status.housekeeping)));
    }
    line("jobs", &format!("{} of {}", status.jobs.len(), status.capacity));
    for job in &status.jobs {
        let what = format!("{} / {} / {}", job.repository, job.workflow, job.job);
        let (state, since) = (job.state.word(), ago(job.received));
        line("", &format!("task {}  {state}  {since}  {} rows  {what}", job.task, job.rows));
    }
    text
}

fn gib(bytes: u64) -> String {
    crate::job::host::gibibytes(bytes)
}

fn ago(time: Option<Timestamp>) -> String {
    time.map_or_else(|| "?".to_owned(), |time| report::time(Timestamp::now().millis_since(time)))
}

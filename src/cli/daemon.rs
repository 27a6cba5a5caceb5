//! `sower daemon`: Take jobs from Gitea and run them.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::{Failure, Outcome};
use crate::config::{self, Config, Level, LogFormat};
use crate::gitea::{self, DaemonError, Left, Registration};
use crate::limits::ceiling::Ceiling;
use crate::supervisor::{self, Lock, Program, StateDir};

/// Take jobs from Gitea and run them.
///
/// Jobs run in processes of their own: they go on when the daemon is stopped, and the next one takes up reporting
/// where Gitea has the last row.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The configuration [default: /etc/sower/config.yaml, or the built-in values where there is none]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Take one task and leave when it has ended
    #[arg(long)]
    once: bool,
    /// Have the daemon that is running take no more tasks, and wait until its jobs have ended and it has left;
    /// where none is running, report on the jobs that are there and leave
    #[arg(long, conflicts_with = "once")]
    drain: bool,
    /// How log messages are written [default: log.format of the configuration]
    #[arg(long, value_name = "FORMAT", value_parser = format, hide_possible_values = false)]
    log_format: Option<LogFormat>,
}

/// What the daemon and the processes of jobs ask of the out-of-memory killer, in thousandths of the memory less.
const BADNESS: i32 = -500;

const EXAMPLES: &str = "\
Signals: SIGTERM and SIGINT stop the daemon (jobs go on), SIGUSR1 drains it,
SIGHUP reads the configuration again (labels, capacity, limits; jobs that run keep theirs).

Examples:
  sower daemon
  sower daemon -c runner-config/config.yaml --log-format json
  sower daemon --drain";

pub(super) fn run(args: &Args) -> Outcome {
    let (config, warnings) = Config::load(args.config.as_deref()).map_err(Failure::wrong_question)?;
    start_log(&config, args.log_format.unwrap_or(config.log.format));
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ceiling::of(&config.ghc).map_err(Failure::wrong_question)?;
    // What else will not work is said where it is used; a hook only in the job that fails of it.
    for fault in gitea::faults(&config).iter().filter(|fault| fault.starts_with("hooks.")) {
        tracing::warn!("{fault}");
    }
    protect();
    let registration = Registration::read(&config.runner.file).map_err(Failure::wrong_question)?;
    let state = StateDir::open(config.state_dir()).map_err(Failure::not_well)?;
    let lock = take_lock(&state, args.drain)?;
    let program =
        Program::this().map_err(|error| Failure::not_well(format!("cannot find this program: {error}")))?;
    let options = gitea::Options {
        config,
        config_path: args.config.clone(),
        registration,
        state,
        lock,
        program,
        once: args.once,
        drain: args.drain,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::not_well(format!("cannot start: {error}")))?;
    let left = runtime.block_on(gitea::run(options));
    // Removing a directory may take long; the next daemon goes on with it.
    runtime.shutdown_timeout(Duration::from_secs(5));
    match left {
        Ok(Left::Done) => Ok(ExitCode::SUCCESS),
        Ok(Left::Stopped { jobs: 0 }) => {
            tracing::info!("stopped");
            Ok(ExitCode::SUCCESS)
        }
        Ok(Left::Stopped { jobs }) => {
            tracing::info!("stopped; {jobs} jobs go on, and the next daemon reports on them");
            Ok(ExitCode::SUCCESS)
        }
        Err(error @ (DaemonError::Unregistered { .. } | DaemonError::Signals(_) | DaemonError::State(_))) => {
            Err(Failure::not_well(error))
        }
        Err(error) => Err(Failure::wrong_question(error)),
    }
}

/// Has the kernel pick a job when there is no memory left, and never the daemon or a job's process.
fn protect() {
    // Lowering it is root's; a service manager may have done so already.
    let now = std::fs::read_to_string("/proc/self/oom_score_adj")
        .ok()
        .and_then(|text| text.trim().parse::<i32>().ok());
    if now.is_some_and(|now| now > BADNESS)
        && std::fs::write("/proc/self/oom_score_adj", BADNESS.to_string()).is_err()
    {
        tracing::debug!(
            "the kernel may pick the daemon when memory is short: oom_score_adj cannot be lowered"
        );
    }
}

/// Takes the state directory. To drain one, the daemon that holds it is told so and waited for.
fn take_lock(state: &StateDir, drain: bool) -> Result<Lock, Failure> {
    let mut told = None;
    loop {
        match state.lock() {
            Ok(lock) => return Ok(lock),
            Err(supervisor::Error::Held { pid: Some(pid), .. }) if drain => {
                if told != Some(pid) {
                    told = Some(pid);
                    let daemon = i32::try_from(pid).ok().and_then(Pid::from_raw);
                    let sent =
                        daemon.map_or(Ok(()), |daemon| rustix::process::kill_process(daemon, Signal::USR1));
                    sent.map_err(|error| {
                        Failure::not_well(format!("cannot tell the daemon, process {pid}, to drain: {error}"))
                    })?;
                    tracing::info!("the daemon, process {pid}, takes no more tasks; waiting for it to leave");
                }
                std::thread::sleep(Duration::from_millis(200));
            }
            Err(error) => return Err(Failure::not_well(error)),
        }
    }
}

fn format(word: &str) -> Result<LogFormat, String> {
    match word {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("text or json is expected".to_owned()),
    }
}

fn filter(level: Level) -> LevelFilter {
    match level {
        Level::Trace => LevelFilter::TRACE,
        Level::Debug => LevelFilter::DEBUG,
        Level::Info => LevelFilter::INFO,
        Level::Warn => LevelFilter::WARN,
        Level::Error => LevelFilter::ERROR,
    }
}

/// Sends the log to stderr: as lines, in colour on a terminal, or as JSON.
fn start_log(config: &config::Config, format: LogFormat) {
    let level = filter(config.log.level);
    let libraries = if level == LevelFilter::TRACE { level } else { level.min(LevelFilter::WARN) };
    // What libraries say is of use in the finest detail only.
    let mut targets = Targets::new().with_default(libraries).with_target("sower", level);
    for (room, level) in &config.log.rooms {
        targets = targets.with_target(format!("sower::{room}"), filter(*level));
    }
    let lowest = config.log.rooms.values().copied().chain([config.log.level]).min().unwrap_or_default();
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry();
    // Only a second call in one process could fail.
    let _ = match format {
        LogFormat::Json => {
            let layer = layer.json().flatten_event(true).with_current_span(false).with_span_list(false);
            registry.with(layer.with_filter(targets)).try_init()
        }
        LogFormat::Text => {
            let layer = layer.with_target(lowest <= Level::Debug).with_ansi(std::io::stderr().is_terminal());
            registry.with(layer.with_filter(targets)).try_init()
        }
    };
}

//! A command under a ceiling, from start to exit code.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Pid, Signal, WaitOptions};

use super::ceiling::Ceiling;
use super::cover;
use super::launcher;
use super::nix;
use super::programs;
use super::watch::{Proof, Watch};

/// What a command came to.
#[derive(Debug)]
pub struct Ran {
    /// How it ended.
    pub status: ExitStatus,
    /// What was seen of GHC.
    pub proof: Proof,
}

/// Why a command was not run.
#[derive(Debug, thiserror::Error)]
pub enum CannotRun {
    /// The launchers could not be made.
    #[error("the launchers could not be made: {0}")]
    Launchers(io::Error),
    /// The command could not be started.
    #[error("{}: {source}", command.display())]
    Start {
        /// The command.
        command: OsString,
        /// What the system says.
        source: io::Error,
    },
    /// The system refused something that it never refuses.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

/// Runs `command` with launchers in front of every GHC that can be reached; `notice` is told which way was taken.
///
/// # Errors
/// When the command could not be started. How it ended is in [`Ran::status`].
pub fn run(command: &[OsString], ceiling: &Ceiling, notice: &mut dyn FnMut(&str)) -> Result<Ran, CannotRun> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let launchers = tempfile::Builder::new().prefix("sower-ghc-").tempdir().map_err(CannotRun::Launchers)?;
    launcher::make_directory(launchers.path(), &path, ceiling).map_err(CannotRun::Launchers)?;
    for line in cover_all(|| programs::reachable(&path), ceiling) {
        notice(&line);
    }
    if let Some(set) = std::env::var_os("GHCRTS").filter(|set| !set.is_empty() && !ceiling.enforce) {
        notice(&format!("GHCRTS is set to \"{}\": what it says counts, not the ceiling", set.display()));
    }
    let (program, arguments) = command.split_first().unwrap_or((const { &OsString::new() }, &[]));
    let mut child = if has_sockets() {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", HAND_ON, "sh"]).arg(program);
        shell
    } else {
        Command::new(program)
    };
    child.args(arguments).env("PATH", in_front(launchers.path().as_os_str(), &path));
    let system = |doing| move |source: io::Error| CannotRun::System { doing, source };
    // What the command leaves behind becomes our child and not init's, so that it is found.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| system("adopting orphans")(error.into()))?;
    let signals = Signals::catch().map_err(system("catching signals"))?;
    let started = child.spawn().map_err(|source| CannotRun::Start { command: program.clone(), source })?;
    let pid = Pid::from_child(&started);
    let watch =
        Watch::start(ceiling.heap, move || signals.forward(pid)).map_err(system("starting the watch"))?;
    let status = wait(pid).map_err(system("waiting for the command"))?;
    Ok(Ran { status, proof: watch.stop() })
}

/// Becomes its arguments, to which the sockets of a service belong then.
const HAND_ON: &str = "LISTEN_PID=$$; export LISTEN_PID; exec \"$@\"";

/// Whether a service manager has given this process sockets, as systemd gives the nix-daemon's: they are for the command.
fn has_sockets() -> bool {
    std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string())
}

/// Covers every compiler that a job of this host can reach, for this thread and all that it starts; gives what to tell.
#[must_use]
pub fn cover_host(path: &OsStr, ceiling: &Ceiling) -> Vec<String> {
    let mut lines = vec![format!("GHC: {}", ceiling.line())];
    lines.extend(cover_all(|| programs::reachable(path), ceiling));
    lines
}

/// Compilers that a job can reach and that have no launcher in front of them.
#[must_use]
pub fn uncovered(path: &OsStr) -> usize {
    let original = |file: &PathBuf| file.to_string_lossy().ends_with(launcher::ORIGINAL);
    programs::reachable(path).iter().filter(|file| !original(file) && cover::is_open(file)).count()
}

/// How a line begins that tells that there are no private mounts.
pub const BY_PATH_ONLY: &str = "The ceiling reaches GHC by PATH only";

/// What to tell where builders are the nix-daemon's children.
pub const BUILDERS_OF_THE_DAEMON: &str = "Nix builds go through a nix-daemon here: the builders are its children, and no ceiling and no limit of this job \
     reaches them. `sower doctor` says how to put both on the daemon";

fn cover_all(find: impl FnOnce() -> Vec<PathBuf>, ceiling: &Ceiling) -> Vec<String> {
    let mut lines = Vec::new();
    match cover::enter(find, ceiling) {
        Ok(covered) if covered.programs.is_empty() && covered.left.is_empty() => {}
        Ok(covered) => {
            let compilers = match covered.programs.len() {
                1 => "1 compiler".to_owned(),
                count => format!("{count} compilers"),
            };
            lines.push(format!(
                "The ceiling reaches {compilers} by any path and inside single-user Nix builds, by launchers in private mounts; no hash changes"
            ));
            lines.extend(covered.left.iter().map(|left| format!("No launcher over {left}")));
        }
        Err(error) => {
            lines.push(format!("{BY_PATH_ONLY}, not by its full path or inside a Nix build: {error}"));
        }
    }
    if nix::builders_are_the_daemons() {
        lines.push(BUILDERS_OF_THE_DAEMON.to_owned());
    }
    lines
}

fn in_front(directory: &OsStr, path: &OsStr) -> OsString {
    let mut joined = directory.to_owned();
    if !path.is_empty() {
        joined.push(":");
        joined.push(path);
    }
    joined
}

/// Waits for `child`, and buries whatever orphans end meanwhile.
fn wait(child: Pid) -> io::Result<ExitStatus> {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == child => return Ok(ExitStatus::from_raw(status.as_raw())),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Signals that are the command's, not ours.
struct Signals {
    caught: Vec<(Signal, Arc<AtomicBool>)>,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        let mut caught = Vec::new();
        for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2] {
            let flag = Arc::new(AtomicBool::new(false));
            signal_hook::flag::register(signal.as_raw(), Arc::clone(&flag))?;
            caught.push((signal, flag));
        }
        Ok(Self { caught })
    }

    fn forward(&self, child: Pid) {
        for (signal, flag) in &self.caught {
            if flag.swap(false, Ordering::Relaxed) && !(terminal_signal(*signal) && in_foreground()) {
                // It may have ended this very moment.
                let _ = rustix::process::kill_process(child, *signal);
            }
        }
    }
}

/// Ctrl-C and Ctrl-\ reach every process of the terminal's foreground by themselves.
fn terminal_signal(signal: Signal) -> bool {
    signal == Signal::INT || signal == Signal::QUIT
}

fn in_foreground() -> bool {
    rustix::termios::tcgetpgrp(std::io::stdin()).is_ok_and(|group| group == rustix::process::getpgrp())
}

//! Programs that the demo starts, and how all of them end.
//!
//! Each gets a process group of its own, so that Ctrl-C reaches the demo alone and the demo ends the others in
//! the right order. Orphans (jobs outlive their daemon) become the demo's children, so that none is lost.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, wait};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::trouble::{At, Trouble};

const POLL: Duration = Duration::from_millis(20);
/// How much of a program's output is shown when it failed, in bytes.
const TAIL: u64 = 3000;

/// Whether somebody wants the demo to end.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens for Ctrl-C and its kin from now on, and takes in orphans.
    pub(crate) fn listen() -> io::Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&flag))?;
        }
        set_child_subreaper(Some(getpid()))?;
        Ok(Self(flag))
    }

    /// Refuses to go on once somebody wants an end.
    pub(crate) fn check(&self) -> Result<(), Trouble> {
        if self.0.load(Ordering::Relaxed) { Err(Trouble::Interrupted) } else { Ok(()) }
    }

    /// Asks `ready` again and again until it has something, at most for `limit`; `what` is named when it has not.
    pub(crate) fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        mut ready: impl FnMut() -> Option<T>,
    ) -> Result<T, Trouble> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(found) = ready() {
                return Ok(found);
            }
            self.check()?;
            if Instant::now() > deadline {
                return Err(Trouble::Failed(format!("{what}: not within {} s", limit.as_secs())));
            }
            thread::sleep(POLL);
        }
    }

    /// Runs a program to its end and answers what it wrote to stdout. stderr goes to `log`.
    pub(crate) fn run(&self, command: &mut Command, log: &Path) -> Result<String, Trouble> {
        let out = tempfile::tempfile().at(log)?;
        let mut child = start(command.stdout(out.try_clone().at(log)?).stderr(append(log)?))?;
        let status = loop {
            if let Some(status) = child.try_wait().at(log)? {
                break status;
            }
            if let Err(trouble) = self.check() {
                end_tree(child.id());
                // Killed or about to be; there is nobody to tell how.
                let _ = child.wait();
                return Err(trouble);
            }
            thread::sleep(POLL);
        };
        let mut out = out;
        let mut text = String::new();
        out.seek(SeekFrom::Start(0)).at(log)?;
        out.read_to_string(&mut text).at(log)?;
        if status.success() {
            return Ok(text);
        }
        Err(Trouble::Program {
            program: describe(command),
            status: status.to_string(),
            tail: format!("{text}{}", tail(log)),
        })
    }
}

/// Starts a program in a process group of its own, with nothing to read.
pub(crate) fn start(command: &mut Command) -> Result<Child, Trouble> {
    command.stdin(Stdio::null()).process_group(0).spawn().map_err(|error| {
        Trouble::Failed(format!("{} cannot be started: {error}", command.get_program().to_string_lossy()))
    })
}

/// A file to which output is added.
pub(crate) fn append(path: &Path) -> Result<File, Trouble> {
    File::options().create(true).append(true).open(path).at(path)
}

/// The end of a log.
pub(crate) fn tail(path: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
    };
    read().unwrap_or_default()
}

/// Program and arguments, for an error.
fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|argument| argument.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Asks a process to end and waits for it, with less patience after `limit`.
pub(crate) fn stop(child: &mut Child, limit: Duration) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // Gone already is as good.
        let _ = kill_process(pid, Signal::TERM);
    }
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        thread::sleep(POLL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Kills a process and whatever descends from it.
pub(crate) fn end_tree(root: u32) {
    for pid in descendants(root).into_iter().chain([root]) {
        kill(pid);
    }
}

/// Kills everything that descends from the demo. The children of what is killed become the demo's own, so it takes
/// a few rounds.
pub(crate) fn end_all() {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        let left = descendants(std::process::id());
        if left.is_empty() {
            return;
        }
        for pid in left {
            kill(pid);
        }
        thread::sleep(POLL);
    }
}

fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// The processes below `root`, the nearest first. A process that appears meanwhile may be missing.
fn descendants(root: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // pid (name) state parent …; the name may hold anything, parentheses too.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut next = vec![root];
    while let Some(pid) = next.pop() {
        if let Some(below) = children.remove(&pid) {
            found.extend(&below);
            next.extend(below);
        }
    }
    found
}

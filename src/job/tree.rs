//! Processes that a job started: finding them, ending them, leaving none behind.
//!
//! The process that runs a job is made the reaper of its orphans, so that everything a step starts stays below it,
//! whatever forks, sessions and groups it makes.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions};

/// Makes this process the parent of what its descendants leave behind.
///
/// # Errors
/// When the kernel is older than 3.4.
pub fn adopt_orphans() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Which of this process's descendants belong to a job.
#[derive(Debug, Clone)]
pub enum Members {
    /// All of them: this process runs one job.
    All,
    /// Those with this `RUNNER_TRACKING_ID` in their environment: this process runs several.
    Tracked(String),
}

impl Members {
    /// The job's living processes. Zombies do not count.
    #[must_use]
    pub fn processes(&self) -> Vec<Pid> {
        let mut found = descendants(rustix::process::getpid());
        if let Self::Tracked(id) = self {
            let wanted = format!("RUNNER_TRACKING_ID={id}").into_bytes();
            found.retain(|pid| {
                fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero()))
                    .is_ok_and(|environ| environ.split(|&byte| byte == 0).any(|entry| entry == wanted))
            });
        }
        found
    }

    /// Sends a signal to each of them.
    pub fn signal(&self, signal: Signal) {
        for pid in self.processes() {
            // It may have ended meanwhile.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Ends them all: asks with SIGTERM, waits for the grace, kills; returns how many there were. What forks faster
    /// than it is killed is killed again until nothing is left, for at most 5 s.
    pub fn end(&self, grace: Duration) -> usize {
        self.reap();
        let count = self.processes().len();
        if count == 0 {
            return 0;
        }
        self.signal(Signal::TERM);
        // A stopped process takes no SIGTERM.
        self.signal(Signal::CONT);
        let asked = Instant::now();
        while asked.elapsed() < grace {
            std::thread::sleep(Duration::from_millis(10));
            self.reap();
            if self.processes().is_empty() {
                return count;
            }
        }
        let killed = Instant::now();
        while killed.elapsed() < Duration::from_secs(5) {
            self.signal(Signal::KILL);
            std::thread::sleep(Duration::from_millis(5));
            self.reap();
            if self.processes().is_empty() {
                break;
            }
        }
        count
    }

    /// Takes the exit status of adopted processes that have ended, so that they do not stay as zombies. Where several
    /// jobs run in one process this would take it from the steps of the others, so there the zombies stay until it ends.
    fn reap(&self) {
        if matches!(self, Self::All) {
            while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
        }
    }
}

/// All living descendants of a process, parents before children.
fn descendants(root: Pid) -> Vec<Pid> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // It may have ended since it was listed.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        if let Some((state, parent)) = state_and_parent(&stat)
            && state != 'Z'
        {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut next = vec![root.as_raw_nonzero().get()];
    while let Some(parent) = next.pop() {
        for &child in children.get(&parent).map_or(&[][..], Vec::as_slice) {
            next.push(child);
            found.extend(Pid::from_raw(child));
        }
    }
    found
}

/// Fields 3 and 4 of `/proc/<pid>/stat`. The command in field 2 may contain anything, parentheses too.
fn state_and_parent(stat: &str) -> Option<(char, i32)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_parentheses_does_not_confuse() {
        assert_eq!(state_and_parent("12 (a) b (c)) S 7 12 12"), Some(('S', 7)));
        assert_eq!(state_and_parent("12 (a"), None);
    }
}

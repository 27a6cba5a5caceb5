//! Processes that a job started: finding them, ending them, leaving none behind.
//!
//! The process that runs a job is made the reaper of its orphans, so that everything a step starts stays below it,
//! whatever forks, sessions and groups it makes. Where there is a control group ([`super::group`]) it holds them too,
//! also when the process that runs the job is gone.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions};

use super::group::Group;

/// How long killing may take before it is given up: what sits in the kernel does not die.
const KILLING: Duration = Duration::from_secs(5);

/// Makes this process the parent of what its descendants leave behind.
///
/// # Errors
/// When the kernel is older than 3.4.
pub fn adopt_orphans() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Whether nothing lives that this process has started, and nothing of what that left behind: it would be a child too, see
/// [`adopt_orphans`].
#[must_use]
pub fn has_no_children() -> bool {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(rustix::process::waitid(WaitId::All, look), Err(rustix::io::Errno::CHILD))
}

/// A process, told apart from any that gets the same id later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Process {
    /// Its id.
    pub pid: Pid,
    /// When it started, in clock ticks since the host's boot.
    pub start: u64,
}

impl Process {
    /// Sends a signal to this very process; nothing happens when it is gone.
    ///
    /// # Errors
    /// When the kernel does not allow it.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let is_it = || {
            stat(self.pid).is_some_and(|stat| stat.start == self.start && !matches!(stat.state, b'Z' | b'X'))
        };
        // The descriptor pins the process, so that what is checked is what is signalled.
        let result = match rustix::process::pidfd_open(self.pid, PidfdFlags::empty()) {
            Ok(process) if is_it() => rustix::process::pidfd_send_signal(process, signal),
            // Without pidfd (Linux 5.3), or with no descriptor left.
            Err(rustix::io::Errno::NOSYS | rustix::io::Errno::MFILE | rustix::io::Errno::NFILE)
                if is_it() =>
            {
                rustix::process::kill_process(self.pid, signal)
            }
            Ok(_) | Err(_) => Ok(()),
        };
        match result {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            other => other.map_err(io::Error::from),
        }
    }
}

/// What `/proc/PID/stat` says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// State letter, such as `R` or `Z`.
    pub state: u8,
    /// Its parent.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
    /// Its session.
    pub session: i32,
    /// When it started, in clock ticks since the host's boot.
    pub start: u64,
}

/// Looks at a process; `None` when it is gone.
#[must_use]
pub fn stat(pid: Pid) -> Option<Stat> {
    // The kernel tells all of it at one go: a name of 15 bytes and about fifty numbers.
    let mut text = [0; 1024];
    let length = File::open(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?.read(&mut text).ok()?;
    parse(&text[..length])
}

/// All processes of this host.
#[must_use]
pub fn all() -> Vec<(Process, Stat)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
            // It may have ended since it was listed.
            let stat = stat(pid)?;
            Some((Process { pid, start: stat.start }, stat))
        })
        .collect()
}

/// Whether a process was started with this variable. Nobody else's environment can be read, which counts as no.
#[must_use]
pub fn has_variable(pid: Pid, name: &str, value: &str) -> bool {
    let wanted = format!("{name}={value}").into_bytes();
    fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero()))
        .is_ok_and(|environ| environ.split(|&byte| byte == 0).any(|entry| entry == wanted))
}

/// The variable that marks the processes of a job.
pub const MARK: &str = "RUNNER_TRACKING_ID";

/// Which of this process's descendants belong to a job.
#[derive(Debug, Clone)]
pub struct Members {
    mark: String,
    /// This process runs no other job.
    alone: bool,
    group: Option<Group>,
}

impl Members {
    /// All descendants: this process runs one job. Its processes get `mark` as their `RUNNER_TRACKING_ID`; `group`
    /// holds this process too.
    #[must_use]
    pub fn all(mark: String, group: Option<Group>) -> Self {
        Self { mark, alone: true, group }
    }

    /// Those with this `RUNNER_TRACKING_ID` in their environment: this process runs several jobs.
    #[must_use]
    pub fn tracked(mark: String) -> Self {
        Self { mark, alone: false, group: None }
    }

    /// The job's control group.
    #[must_use]
    pub fn group(&self) -> Option<&Group> {
        self.group.as_ref()
    }

    /// Whether this process runs no other job.
    #[must_use]
    pub fn alone(&self) -> bool {
        self.alone
    }

    /// What the processes have as `RUNNER_TRACKING_ID`.
    #[must_use]
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// The job's living processes. Zombies do not count.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        self.since(0)
    }

    /// Those that were started at this time (in clock ticks since the host's boot) or later, without those that an
    /// older one of the job has started: what one step started, and not the servers of the steps before it.
    #[must_use]
    pub fn since(&self, start: u64) -> Vec<Process> {
        let own = rustix::process::getpid();
        let all = all();
        let (mut found, older) = descendants(&all, own, start);
        if !self.alone {
            found.retain(|process| has_variable(process.pid, MARK, &self.mark));
        }
        if let Some(group) = &self.group {
            let held: HashSet<Pid> = group.processes().into_iter().collect();
            let known: HashSet<Pid> = found.iter().map(|process| process.pid).chain(older).collect();
            found.extend(
                all.iter()
                    .filter(|(process, stat)| {
                        let pid = process.pid;
                        held.contains(&pid)
                            && !known.contains(&pid)
                            && pid != own
                            && process.start >= start
                            && stat.state != b'Z'
                    })
                    .map(|(process, _)| *process),
            );
        }
        found
    }

    /// Sends a signal to those that [`Members::since`] gives.
    pub fn signal(&self, since: u64, signal: Signal) {
        for process in self.since(since) {
            // Another user's can only be ended by root.
            let _ = process.signal(signal);
        }
    }

    /// Ends those that [`Members::since`] gives: asks with SIGTERM, waits for the grace, kills; returns how many
    /// there were. What forks faster than it is killed is killed again until nothing is left, for at most 5 s.
    pub fn end(&self, since: u64, grace: Duration) -> usize {
        self.reap();
        let count = self.since(since).len();
        if count == 0 {
            return 0;
        }
        self.signal(since, Signal::TERM);
        // A stopped process takes no SIGTERM.
        self.signal(since, Signal::CONT);
        let asked = Instant::now();
        while asked.elapsed() < grace {
            std::thread::sleep(Duration::from_millis(10));
            self.reap();
            if self.since(since).is_empty() {
                return count;
            }
        }
        let killed = Instant::now();
        while killed.elapsed() < KILLING {
            self.signal(since, Signal::KILL);
            std::thread::sleep(Duration::from_millis(5));
            self.reap();
            if self.since(since).is_empty() {
                break;
            }
        }
        count
    }

    /// Ends everything, for good: nothing more is started. With a control group what is left after the grace is killed
    /// at one blow, and the group removed; this process leaves it for that.
    pub fn end_all(&self, grace: Duration) -> usize {
        let Some(group) = &self.group else { return self.end(0, grace) };
        self.reap();
        let asked = Instant::now();
        let count = self.processes().len();
        if count > 0 {
            self.signal(0, Signal::TERM);
            self.signal(0, Signal::CONT);
            while asked.elapsed() < grace && !self.processes().is_empty() {
                std::thread::sleep(Duration::from_millis(10));
                self.reap();
            }
        }
        if group.leave().is_ok() {
            let killed = Instant::now();
            while !group.processes().is_empty() && killed.elapsed() < KILLING {
                group.kill();
                std::thread::sleep(Duration::from_millis(2));
                self.reap();
            }
        }
        // What has left the group is a descendant still.
        self.end(0, Duration::ZERO);
        group.remove();
        count
    }

    /// Takes the exit status of adopted processes that have ended, so that they do not stay as zombies. Where several
    /// jobs run in one process this would take it from the steps of the others, so there the zombies stay until it ends.
    fn reap(&self) {
        if self.alone {
            while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
        }
    }
}

/// The living descendants of a process that were started at `start` or later, parents before children, without what
/// is below an older one; and the older ones.
fn descendants(all: &[(Process, Stat)], root: Pid, start: u64) -> (Vec<Process>, Vec<Pid>) {
    let mut children: HashMap<i32, Vec<Process>> = HashMap::new();
    for (process, stat) in all.iter().filter(|(_, stat)| stat.state != b'Z') {
        children.entry(stat.parent).or_default().push(*process);
    }
    let (mut found, mut older) = (Vec::new(), Vec::new());
    let mut next = vec![(root, false)];
    while let Some((parent, old)) = next.pop() {
        for child in children.get(&parent.as_raw_nonzero().get()).map_or(&[][..], Vec::as_slice) {
            let old = old || child.start < start;
            next.push((child.pid, old));
            if old {
                older.push(child.pid);
            } else {
                found.push(*child);
            }
        }
    }
    (found, older)
}

/// Reads `/proc/PID/stat`. The name in field 2 may hold anything, closing parentheses and other bytes than text too.
fn parse(text: &[u8]) -> Option<Stat> {
    let behind = &text[text.iter().rposition(|byte| *byte == b')')? + 1..];
    let mut fields = std::str::from_utf8(behind).ok()?.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let mut number = || fields.next()?.parse().ok();
    let (parent, group, session) = (number()?, number()?, number()?);
    // The session is field 6, the start time field 22.
    let start = fields.nth(15)?.parse().ok()?;
    Some(Stat { state, parent, group, session, start })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_parentheses_does_not_confuse() {
        let line = "12 (a) b (c)) S 7 12 11 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 5555 9 10";
        let stat = Stat { state: b'S', parent: 7, group: 12, session: 11, start: 5555 };
        assert_eq!(parse(line.as_bytes()), Some(stat));
        assert_eq!(parse(b"12 (a"), None);
        // The session may belong to a process outside of this PID namespace, and is 0 then.
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let session = status.lines().find_map(|line| line.strip_prefix("NSsid:")).unwrap();
        let own = super::stat(rustix::process::getpid()).unwrap();
        assert_eq!(own.session.to_string(), session.split_whitespace().next().unwrap());
    }

    #[test]
    fn what_an_older_process_starts_belongs_to_no_later_step() {
        let process = |pid: i32, parent, start| {
            let stat = Stat { state: b'S', parent, group: 1, session: 1, start };
            (Process { pid: Pid::from_raw(pid).unwrap(), start }, stat)
        };
        let all =
            [process(2, 1, 10), process(3, 2, 30), process(4, 1, 20), process(5, 4, 21), process(6, 9, 30)];
        let pids = |list: Vec<Process>| {
            let mut pids: Vec<i32> = list.iter().map(|one| one.pid.as_raw_nonzero().get()).collect();
            pids.sort_unstable();
            pids
        };
        let root = Pid::from_raw(1).unwrap();
        assert_eq!(pids(descendants(&all, root, 0).0), [2, 3, 4, 5]);
        assert_eq!(pids(descendants(&all, root, 20).0), [4, 5]);
    }
}

//! What a job process leaves behind when it dies before its time, and the end of that.
//!
//! Before its first step a job process writes down by what its processes are known: a mark in their environment, the
//! control group that holds them, and the counters of the kernel's out-of-memory killer before it all began.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use super::{Error, Identity, JobDir};
use crate::job::group::Group;
use crate::job::oom::Counters;
use crate::job::tree::{self, Members, Process};

/// After this long a process that becomes another program has become it.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long killing may take before it is given up: what sits in the kernel does not die.
const KILLING: Duration = Duration::from_secs(5);

/// By what the processes of a job are known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// Their `RUNNER_TRACKING_ID`.
    pub mark: String,
    /// The directory of their control group.
    pub group: Option<PathBuf>,
    /// The counters of the out-of-memory killer when the job began.
    pub counters: Counters,
}

/// Makes this process the one that runs the job of a directory: it enters a control group of its own, where there is
/// one to be had, and writes the trace down.
///
/// # Errors
/// When the disk says no.
pub fn enter(dir: &JobDir) -> Result<Members, Error> {
    // Unique on this host as long as it is up.
    let start = Identity::of(std::process::id()).map_or(0, |identity| identity.start);
    let mark = format!("sower-{}-{start}", std::process::id());
    let counters = Counters::now();
    let mut group = Group::create(&mark);
    if group.as_ref().is_some_and(|group| group.enter().is_err()) {
        // Made, but closed to us: as good as none.
        if let Some(group) = group.take() {
            group.remove();
        }
    }
    let place = group.as_ref().map(|group| group.directory().to_owned());
    let written = dir.write_trace(&Trace { mark: mark.clone(), group: place, counters });
    if let (Err(_), Some(group)) = (&written, &group) {
        let _ = group.leave();
        group.remove();
    }
    written.map(|()| Members::all(mark, group))
}

/// Ends what a job has left running whose process is gone; returns how many processes there were. Finds them by their
/// control group, by their mark, by the session of the job process, and what any of these has started.
pub fn sweep(dir: &JobDir) -> usize {
    let Some(trace) = dir.read_trace() else { return 0 };
    let session = dir.read_identity().ok().flatten().filter(Identity::is_of_this_boot);
    let group = trace.group.as_deref().map(Group::at).filter(|group| group.directory().is_dir());
    let mut ended = HashSet::new();
    if let Some(group) = &group {
        ended.extend(group.processes());
        let _ = group.end();
    }
    let until = Instant::now() + KILLING;
    // A process that is just becoming another program shows no environment for a moment: one empty look is not enough.
    let mut looked_again = false;
    loop {
        let left = leftovers(&trace, session.as_ref());
        if left.is_empty() && looked_again || Instant::now() >= until {
            break;
        }
        if left.is_empty() {
            looked_again = true;
            std::thread::sleep(LOOK_AGAIN);
            continue;
        }
        looked_again = false;
        for process in left {
            ended.insert(process.pid);
            let _ = process.signal(Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    if let Some(group) = &group {
        group.remove();
    }
    crate::limits::cap::remove_left(&trace.mark);
    ended.len()
}

fn leftovers(trace: &Trace, job: Option<&Identity>) -> Vec<Process> {
    let all = tree::all();
    let session = job.and_then(|job| Some((i32::try_from(job.pid).ok()?, job.start)));
    let own = rustix::process::getpid();
    let mut found: HashSet<Pid> = HashSet::new();
    for (process, stat) in &all {
        // The leader of a session that began later has the number by chance.
        let by_session = session.is_some_and(|(pid, start)| {
            stat.session == pid && (process.pid.as_raw_nonzero().get() != pid || process.start == start)
        });
        if by_session || tree::has_variable(process.pid, tree::MARK, &trace.mark) {
            found.insert(process.pid);
        }
    }
    // And their children, and the children of these.
    loop {
        let before = found.len();
        for (process, stat) in &all {
            if Pid::from_raw(stat.parent).is_some_and(|parent| found.contains(&parent)) {
                found.insert(process.pid);
            }
        }
        if found.len() == before {
            break;
        }
    }
    all.into_iter()
        .filter(|(process, stat)| {
            found.contains(&process.pid) && process.pid != own && !matches!(stat.state, b'Z' | b'X')
        })
        .map(|(process, _)| process)
        .collect()
}

//! A thread that finds the GHC processes below this one and keeps the proof of their ceiling.
//!
//! Twice a second it walks the processes below this one. In between it looks a hundred times a second whether the kernel has
//! started anything (one small read), and at what it started: a GHC that runs for 30 ms is seen as well.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::ceiling::in_force;
use super::process::{self, Followed, Measured, Stat};
use super::programs;
use super::size::Size;
use crate::job::group::Group;

const LOOK: Duration = Duration::from_millis(10);
const WALK: Duration = Duration::from_millis(500);
const MEASURE: Duration = Duration::from_millis(100);
/// For how many looks a process is new: it may become something else, on a busy host after a second. It is looked at 13 times
/// meanwhile, and at each look while it is becoming GHC.
const LOOKS_AT_NEW: u8 = 128;
/// New processes between two looks that are looked at one by one.
const NEW_AT_MOST: u32 = 512;
/// Processes of which a file is kept open.
const FOLLOWED_AT_MOST: usize = 64;
/// Runs without the ceiling that are told one by one.
const TOLD_AT_MOST: usize = 10;

/// A run of GHC that was not under the ceiling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unbound {
    /// Its process number.
    pub pid: u32,
    /// The begin of its command line.
    pub command: String,
    /// Name and number of its parent.
    pub parent: String,
    /// The ceiling that it had instead, if any.
    pub heap: Option<Size>,
}

/// What was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Proof {
    /// Runs of GHC.
    pub runs: u64,
    /// Runs by the heap ceiling that was in force.
    #[serde(with = "pairs")]
    pub by_heap: BTreeMap<Option<u64>, u64>,
    /// The most memory that one GHC had resident, in bytes.
    pub peak: u64,
    /// Runs that had no ceiling, or a higher one; the first few.
    pub unbound: Vec<Unbound>,
    /// How many such runs there were.
    pub unbound_count: u64,
}

impl Proof {
    /// One line that says it.
    #[must_use]
    pub fn line(&self) -> String {
        if self.runs == 0 {
            return "GHC did not run".to_owned();
        }
        let times = if self.runs == 1 { "time" } else { "times" };
        // The lowest first; runs without any are told behind.
        let forces: Vec<String> = self
            .by_heap
            .iter()
            .filter_map(|(heap, count)| {
                heap.map(|heap| format!("{} in {count} of {}", Size(heap), self.runs))
            })
            .collect();
        let forces =
            if forces.is_empty() { format!("none in {0} of {0}", self.runs) } else { forces.join(", ") };
        let mut line = format!(
            "GHC ran {} {times}; heap ceiling in force: {forces}, peak RSS {}",
            self.runs,
            Size(self.peak)
        );
        for run in &self.unbound {
            let had = run.heap.map_or_else(|| "without".to_owned(), |heap| format!("with {heap}"));
            line.push_str(&format!("; {had}: {} (pid {}, started by {})", run.command, run.pid, run.parent));
        }
        let told = self.unbound.len() as u64;
        if self.unbound_count > told {
            line.push_str(&format!("; and {} more", self.unbound_count - told));
        }
        line
    }
}

/// Keys of JSON are texts, so a map with other keys is a list of pairs.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    type Map = BTreeMap<Option<u64>, u64>;

    pub(super) fn serialize<S: Serializer>(map: &Map, serializer: S) -> Result<S::Ok, S::Error> {
        map.iter().collect::<Vec<_>>().serialize(serializer)
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(deserializer: D) -> Result<Map, D::Error> {
        Ok(Vec::<(Option<u64>, u64)>::deserialize(deserializer)?.into_iter().collect())
    }
}

/// The watching thread; signals that arrive are passed on by it as well.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Proof>,
}

impl Watch {
    /// Starts watching the descendants of this process; `each_look` is called at every look.
    ///
    /// # Errors
    /// When there can be no further thread.
    pub fn start(asked: Size, mut each_look: impl FnMut() + Send + 'static) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let mut eye = Eye::new(Some(asked), Source::Descendants);
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                each_look();
                eye.look();
                std::thread::park_timeout(LOOK);
            }
            eye.proof
        })?;
        Ok(Self { stop, thread })
    }

    /// Stops and gives what was seen.
    #[must_use]
    pub fn stop(self) -> Proof {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        self.thread.join().unwrap_or_default()
    }
}

/// Which processes are looked at.
#[derive(Debug)]
pub(super) enum Source {
    /// Those below this process.
    Descendants,
    /// Those of a control group, this process not counted.
    Group(Group),
}

/// What a look at a process came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// There is nothing more to wait for.
    Settled,
    /// It is another program, and may become GHC.
    Other,
    /// It has GHC's executable and is just being started, or ends, or becomes another program.
    Almost,
}

/// A process that has not been looked at yet.
const NEW: (u8, Found) = (0, Found::Other);

/// Finds the GHC processes of a command or a job.
#[derive(Debug)]
pub(super) struct Eye {
    /// The ceiling that was asked for; without one there is nothing that a run could lack.
    pub(super) asked: Option<Size>,
    /// What was seen.
    pub(super) proof: Proof,
    /// The processes of the last walk.
    pub(super) seen: HashMap<u32, Measured>,
    own: u32,
    source: Source,
    starts: process::LastStarted,
    last_started: Option<u32>,
    walked: Option<Instant>,
    measured: Instant,
    /// New processes, the looks that have passed since, and what the last one came to.
    new: HashMap<u32, (u8, Found)>,
    /// GHC processes that live, with their start and command line.
    live: HashMap<u32, (u64, Vec<u8>)>,
    /// Processes that are no GHC, by start and name: a new program has a new name.
    others: HashMap<u32, (u64, String)>,
    /// The processes of the last walk, with their files.
    followed: HashMap<u32, Followed>,
    /// The lists of members of the group and of its leaf `steps`, if there are such.
    members: [Option<File>; 2],
    buffer: Vec<u8>,
}

impl Eye {
    pub(super) fn new(asked: Option<Size>, source: Source) -> Self {
        let starts = process::LastStarted::open();
        Self {
            asked,
            proof: Proof::default(),
            seen: HashMap::new(),
            own: std::process::id(),
            source,
            last_started: starts.get(),
            starts,
            walked: None,
            measured: Instant::now(),
            new: HashMap::new(),
            live: HashMap::new(),
            others: HashMap::new(),
            followed: HashMap::new(),
            members: [None, None],
            buffer: Vec::new(),
        }
    }

    /// Looks at what was started since the last look, and now and then at everything; true when it was everything.
    pub(super) fn look(&mut self) -> bool {
        let now = Instant::now();
        let walk = self.walked.is_none_or(|last| now - last >= WALK);
        if walk {
            let first = self.walked.is_none();
            self.walked = Some(now);
            self.walk(first);
        }
        let last = self.starts.get();
        if last != self.last_started {
            self.add_new(last);
        }
        self.last_started = last;
        for pid in self.new.keys().copied().collect::<Vec<_>>() {
            let (looks, mut found) = self.new.get(&pid).copied().unwrap_or(NEW);
            // Most become what they are going to be at once: the looks get rarer, down to six a second.
            if looks.is_power_of_two() || looks.is_multiple_of(16) || found == Found::Almost {
                found = match process::stat(pid) {
                    Some(stat) => self.consider(pid, &stat, false),
                    None => Found::Settled,
                };
            }
            if found == Found::Settled || looks >= LOOKS_AT_NEW {
                self.new.remove(&pid);
            } else {
                self.new.insert(pid, (looks + 1, found));
            }
        }
        if now - self.measured >= MEASURE {
            self.measured = now;
            self.measure();
        }
        walk
    }

    /// Takes in what was started since the last look.
    fn add_new(&mut self, last: Option<u32>) {
        if let Source::Group(_) = &self.source {
            // What others start on this host costs nothing then. Groups further below are for the walks.
            for file in self.members.iter().flatten() {
                for pid in process::members(file, &mut self.buffer) {
                    if pid != self.own && !self.seen.contains_key(&pid) {
                        self.new.entry(pid).or_insert(NEW);
                    }
                }
            }
        } else if let (Some(from), Some(to)) = (self.last_started, last)
            && to > from
            && to - from <= NEW_AT_MOST
        {
            // Numbers start over at the end of their range; then the next walk finds what this misses.
            self.new.extend((from + 1..=to).map(|pid| (pid, NEW)));
        }
    }

    /// Looks at every process.
    fn walk(&mut self, first: bool) {
        let pids = match &self.source {
            Source::Descendants => process::descendants(self.own).unwrap_or_else(process::all),
            Source::Group(group) => {
                group.processes().iter().map(|pid| pid.as_raw_nonzero().get().unsigned_abs()).collect()
            }
        };
        if let Source::Group(group) = &self.source {
            for (file, name) in self.members.iter_mut().zip(["cgroup.procs", "steps/cgroup.procs"]) {
                if file.is_none() {
                    *file = File::open(group.directory().join(name)).ok();
                }
            }
        }
        self.seen.clear();
        for pid in pids {
            if pid != self.own
                && let Some(measured) = self.measured(pid)
            {
                self.seen.insert(pid, measured);
            }
        }
        let seen = &self.seen;
        self.followed.retain(|pid, _| seen.contains_key(pid));
        let seen = std::mem::take(&mut self.seen);
        let lives = |pid: &u32, start: u64| seen.get(pid).is_some_and(|seen| seen.stat.start == start);
        self.live.retain(|pid, (start, _)| lives(pid, *start));
        self.others.retain(|pid, (start, _)| lives(pid, *start));
        self.seen = seen;
        let pids: Vec<u32> = self.seen.keys().copied().collect();
        for pid in pids {
            let Some(stat) = self.seen.get(&pid).map(|seen| seen.stat.clone()) else { continue };
            let found = self.consider(pid, &stat, true);
            // What was started before the watch may be on its way to becoming GHC, and counts as new no more.
            if found == Found::Almost || (first && found == Found::Other) {
                self.new.insert(pid, (0, found));
            }
        }
    }

    /// Looks at a process by the file that is open, or opens it.
    fn measured(&mut self, pid: u32) -> Option<Measured> {
        if let Some(measured) = self.followed.get_mut(&pid).and_then(Followed::look) {
            return Some(measured.clone());
        }
        self.followed.remove(&pid);
        if self.followed.len() >= FOLLOWED_AT_MOST {
            return process::measured(pid);
        }
        let mut followed = Followed::open(pid)?;
        let measured = followed.look()?.clone();
        self.followed.insert(pid, followed);
        Some(measured)
    }

    /// Takes a process into the proof if it is a GHC of ours.
    fn consider(&mut self, pid: u32, stat: &Stat, known: bool) -> Found {
        if self.live.get(&pid).is_some_and(|(start, _)| *start == stat.start) {
            return Found::Settled;
        }
        // A wrapper script has the name of the program that it becomes.
        let likely = stat.name.len() >= 15 || programs::is_compiler(&stat.name);
        if !likely
            && self.others.get(&pid).is_some_and(|(start, name)| *start == stat.start && *name == stat.name)
        {
            return Found::Other;
        }
        let Some(executable) = process::executable(pid) else { return Found::Other };
        let name = executable.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !programs::is_compiler(name.strip_suffix(" (deleted)").unwrap_or(&name)) {
            self.others.insert(pid, (stat.start, stat.name.clone()));
            return Found::Other;
        }
        if !self.is_ours(stat, known) {
            return Found::Other;
        }
        if !process::is_process(pid) {
            return Found::Settled;
        }
        let Some((arguments, environment)) = process::started_as(pid, &executable) else {
            return Found::Almost;
        };
        // The parent may have become GHC after it was looked at last.
        if stat.parent != self.own
            && !self.live.contains_key(&stat.parent)
            && let Some(parent) = process::stat(stat.parent)
        {
            self.consider(stat.parent, &parent, known);
        }
        // A GHC that has forked and not yet become the assembler looks like a second one.
        if self.live.get(&stat.parent).is_some_and(|(_, parents)| *parents == arguments) {
            // One that stays so is not worth a look at its environment a hundred times a second.
            return Found::Other;
        }
        self.take(pid, stat, &arguments, in_force(&environment, &arguments).heap);
        self.live.insert(pid, (stat.start, arguments));
        Found::Settled
    }

    /// The GHC processes that live.
    pub(super) fn compilers(&self) -> impl Iterator<Item = u32> + '_ {
        self.live.keys().copied()
    }

    fn is_ours(&self, stat: &Stat, known: bool) -> bool {
        match &self.source {
            // Only what is in the group is looked at.
            Source::Group(_) => return true,
            Source::Descendants => {}
        }
        let mut parent = stat.parent;
        let mut seen = HashSet::new();
        while parent > 1 && seen.insert(parent) {
            if parent == self.own {
                return true;
            }
            let next = match self.seen.get(&parent).filter(|_| known) {
                Some(seen) => Some(seen.stat.parent),
                None => process::stat(parent).map(|stat| stat.parent),
            };
            let Some(next) = next else { return false };
            parent = next;
        }
        parent == self.own
    }

    fn take(&mut self, pid: u32, stat: &Stat, arguments: &[u8], heap: Option<Size>) {
        self.proof.runs += 1;
        *self.proof.by_heap.entry(heap.map(|size| size.0)).or_default() += 1;
        self.proof.peak = self.proof.peak.max(process::peak_resident(pid).unwrap_or(0));
        let Some(asked) = self.asked else { return };
        if heap.is_some_and(|heap| heap <= asked) {
            return;
        }
        self.proof.unbound_count += 1;
        if self.proof.unbound.len() < TOLD_AT_MOST {
            let words: Vec<_> = arguments.split(|&byte| byte == 0).map(String::from_utf8_lossy).collect();
            let mut command: String =
                words.join(" ").trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            if command.chars().count() > 100 {
                command = command.chars().take(99).chain(['…']).collect();
            }
            let parent = process::stat(stat.parent)
                .map_or_else(|| "a process that is gone".to_owned(), |parent| parent.name);
            let parent = format!("{parent}, pid {}", stat.parent);
            self.proof.unbound.push(Unbound { pid, command, parent, heap });
        }
    }

    fn measure(&mut self) {
        for pid in self.live.keys() {
            self.proof.peak = self.proof.peak.max(process::peak_resident(*pid).unwrap_or(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_was_in_force_and_who_ran_without() {
        let gib = 1 << 30;
        let mut proof = Proof { runs: 3, peak: 512 << 20, ..Proof::default() };
        proof.by_heap.insert(Some(2 * gib), 3);
        insta::assert_snapshot!(proof.line(), @"GHC ran 3 times; heap ceiling in force: 2 GiB in 3 of 3, peak RSS 512 MiB");
        proof.by_heap.insert(Some(2 * gib), 1);
        proof.by_heap.insert(Some(4 * gib), 1);
        proof.by_heap.insert(None, 1);
        let run =
            |heap| Unbound { pid: 7, command: "ghc --make".into(), parent: "Setup, pid 6".into(), heap };
        proof.unbound = vec![run(None), run(Some(Size(4 * gib)))];
        proof.unbound_count = 3;
        insta::assert_snapshot!(proof.line(), @"GHC ran 3 times; heap ceiling in force: 2 GiB in 1 of 3, 4 GiB in 1 of 3, peak RSS 512 MiB; without: ghc --make (pid 7, started by Setup, pid 6); with 4 GiB: ghc --make (pid 7, started by Setup, pid 6); and 1 more");
        assert_eq!(Proof::default().line(), "GHC did not run");
    }
}

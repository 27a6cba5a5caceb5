//! The thread that measures a running job: its memory twice a second, its GHC processes as they come, and the
//! watchdog that ends steps by our own rule.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::cap::{self, Cap, Events};
use super::kernel_log::{KernelLog, Victim};
use super::parents::Parents;
use super::process;
use super::profile::{Profile, StepUse};
use super::programs;
use super::size::Size;
use super::watch::{Eye, Source};
use crate::config::Limits;
use crate::job::oom::HostKills;
use crate::job::tree::Members;

/// How often something new is looked for.
const LOOK: Duration = Duration::from_millis(25);
/// How often the profile is written down while the job runs.
const WRITE: Duration = Duration::from_secs(10);
/// A job in which every process waits for memory this share of the time, in percent …
const STALLED: f32 = 80.0;
/// … for this long is ended.
const STALLED_FOR: Duration = Duration::from_secs(30);

/// Measures a job.
#[derive(Debug)]
pub struct Meter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    eye: Eye,
    profile: Profile,
    cap: Option<Cap>,
    limits: Limits,
    members: Members,
    kernel: KernelLog,
    began: Instant,
    stall: Stall,
    /// Why the watchdog killed, until somebody asks.
    killed: Option<String>,
    host: HostKills,
    host_kills: u64,
    parents: Parents,
    /// Kills at the job's limit that are in the picture.
    marked: u64,
    victims: Vec<Victim>,
    record: Option<PathBuf>,
    written: Instant,
    /// The largest process at the last sample.
    largest: Option<(String, u32, u64)>,
}

/// What is to be measured.
#[derive(Debug)]
pub struct Subject {
    /// The job's processes.
    pub members: Members,
    /// Its limits.
    pub limits: Limits,
    /// Those of them that the kernel enforces.
    pub cap: Option<Cap>,
    /// The ceiling that GHC has been given.
    pub ceiling: Option<Size>,
    /// Where the profile is written.
    pub record: Option<PathBuf>,
}

/// Why processes may have died since this was asked last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Deaths {
    /// The watchdog ended the step, with the reason.
    pub watchdog: Option<String>,
    /// Processes that the kernel killed at the job's own limit.
    pub at_the_cap: u64,
    /// Processes of the job that it killed while the job was below its own limit.
    pub of_the_job: u64,
    /// A control group above the job's whose limit was reached.
    pub parent: Option<String>,
    /// Processes that it killed elsewhere on the host.
    pub elsewhere: u64,
    /// How often a process could not be started because of `limits.pids`.
    pub refused: u64,
    /// What the kernel's log says of them.
    pub victims: Vec<Victim>,
    /// The largest process when this was measured last.
    pub largest: Option<String>,
    /// The job's limit and the most that it used, in bytes.
    pub cap: Option<(u64, Option<u64>)>,
}

impl Meter {
    /// Begins.
    ///
    /// # Errors
    /// When there can be no further thread.
    pub fn start(subject: Subject) -> std::io::Result<Self> {
        let Subject { members, limits, cap, ceiling, record } = subject;
        let source = match members.group() {
            Some(group) => Source::Group(group.clone()),
            None => Source::Descendants,
        };
        let profile = Profile {
            host: process::host_memory(),
            cap: limits.memory.filter(|_| cap.as_ref().is_some_and(Cap::limits_memory)),
            ceiling: ceiling.map(|ceiling| ceiling.0),
            ..Profile::default()
        };
        let now = Instant::now();
        let host = HostKills::open();
        let state = State {
            eye: Eye::new(ceiling, source),
            profile,
            cap,
            limits,
            members,
            kernel: KernelLog::open(),
            began: now,
            stall: Stall::default(),
            killed: None,
            host_kills: host.count().unwrap_or(0),
            host,
            parents: Parents::now(),
            marked: 0,
            victims: Vec::new(),
            record,
            written: now,
            largest: None,
        };
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), state: Mutex::new(state) });
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("meter".to_owned()).spawn(move || {
                while !shared.stop.load(Ordering::Relaxed) {
                    shared.state().turn();
                    std::thread::park_timeout(LOOK);
                }
            })?
        };
        Ok(Self { shared, thread: Some(thread) })
    }

    /// A step begins.
    pub fn step_begins(&self, name: &str) {
        let mut state = self.shared.state();
        let at = state.at();
        state.profile.step_begins(name, at);
    }

    /// The step that began last does not run.
    pub fn step_skipped(&self) {
        self.shared.state().profile.steps.pop();
    }

    /// The step that began last ends; gives what it used, and a line about it.
    #[must_use]
    pub fn step_ends(&self) -> Option<(StepUse, String)> {
        let mut state = self.shared.state();
        let at = state.at();
        let step = state.profile.step_ends(at)?.clone();
        let line = state.profile.step_line(&step);
        Some((step, line))
    }

    /// Sets the ceiling that every GHC is to have from now on.
    pub fn expect_ceiling(&self, ceiling: Size) {
        let mut state = self.shared.state();
        state.eye.asked = Some(ceiling);
        state.profile.ceiling = Some(ceiling.0);
    }

    /// Why processes may have died since this was asked last.
    #[must_use]
    pub fn deaths(&self) -> Deaths {
        self.shared.state().deaths()
    }

    /// What was measured so far.
    #[must_use]
    pub fn profile(&self) -> Profile {
        let state = self.shared.state();
        Profile { proof: state.eye.proof.clone(), ..state.profile.clone() }
    }

    /// Ends; gives what was measured, which is written down as well.
    #[must_use]
    pub fn stop(mut self) -> Profile {
        self.end();
        let state = self.shared.state();
        let profile = Profile { proof: state.eye.proof.clone(), ..state.profile.clone() };
        if let Some(path) = &state.record {
            // The job is not to fail for a picture of it.
            let _ = profile.write(path);
        }
        profile
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
        // The groups go with it, once the steps are gone.
        self.shared.state().cap = None;
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn at(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn turn(&mut self) {
        if !self.eye.look() {
            return;
        }
        self.sample();
        if self.written.elapsed() >= WRITE {
            self.written = Instant::now();
            if let Some(path) = &self.record {
                let profile = Profile { proof: self.eye.proof.clone(), ..self.profile.clone() };
                let _ = profile.write(path);
            }
        }
    }

    fn sample(&mut self) {
        let at = self.at();
        // What the processes of one program share (its file, its libraries) is counted once.
        let mut by_program: Vec<(String, u64, u64)> = Vec::new();
        self.largest = None;
        let compilers: Vec<u32> = self.eye.compilers().collect();
        let mut ghc = 0;
        for (pid, process::Measured { stat, shared }) in &self.eye.seen {
            let program = if compilers.contains(pid) { "ghc" } else { class(&stat.name) };
            if program == "ghc" {
                ghc = ghc.max(stat.resident);
            }
            let own = stat.resident - shared;
            match by_program.iter_mut().find(|(known, ..)| known == program) {
                Some((_, all, most)) => {
                    *all += own;
                    *most = (*most).max(*shared);
                }
                None => by_program.push((program.to_owned(), own, *shared)),
            }
            if self.largest.as_ref().is_none_or(|(_, _, bytes)| stat.resident > *bytes) {
                self.largest = Some((stat.name.clone(), *pid, stat.resident));
            }
        }
        let mut by_program: Vec<(String, u64)> =
            by_program.into_iter().map(|(program, own, shared)| (program, own + shared)).collect();
        // The same order at each moment, so that the largest programs are told apart first.
        by_program.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        self.mark_kills();
        let usage = self.cap.as_ref().and_then(Cap::usage);
        self.profile.add(at, &by_program, usage.map(|usage| usage.current));
        if let Some(step) = self.profile.steps.last_mut().filter(|step| step.to == 0) {
            step.ghc = step.ghc.max(ghc);
        }
        let total: u64 = by_program.iter().map(|(_, bytes)| bytes).sum();
        self.watch(total, usage);
    }

    /// Ends the steps when they use more than they may and the kernel does nothing, or when they stand still.
    fn watch(&mut self, total: u64, usage: Option<cap::Usage>) {
        let enforced = self.cap.as_ref().is_some_and(Cap::limits_memory);
        let reason = if enforced {
            let at_the_limit = usage.is_some_and(|usage| is_at_the_limit(usage.current, &self.limits));
            // Version 1 counts the pressure of the whole host only.
            let pressure = usage
                .and_then(|usage| usage.pressure)
                .or_else(|| cap::full_avg10(&std::fs::read_to_string("/proc/pressure/memory").ok()?));
            self.stall.goes_on(at_the_limit, pressure, Instant::now()).then(|| {
                format!(
                    "at its limit of {} the job stood still: for {} s its processes waited for memory more than {STALLED} % of the time, and the kernel, which slows them down from {} on, ended none of them",
                    Size(self.limits.memory.or(self.limits.memory_high).unwrap_or_default()),
                    STALLED_FOR.as_secs(),
                    Size(slow_from(&self.limits).unwrap_or_default())
                )
            })
        } else {
            self.limits.memory.filter(|limit| self.limits.watchdog && total > *limit).map(|limit| {
                let largest = self.largest.as_ref().map(|(name, pid, bytes)| {
                    format!(", most of it {name} (pid {pid}, {})", Size(*bytes))
                });
                format!(
                    "the step used {}{} and limits.memory is {}; the kernel does not enforce it here, so the runner's own watchdog did",
                    Size(total),
                    largest.unwrap_or_default(),
                    Size(limit)
                )
            })
        };
        if let Some(reason) = reason {
            self.stall = Stall::default();
            let at = self.at();
            self.profile.mark(at, "ended by the watchdog");
            match &self.cap {
                Some(cap) if enforced => cap.kill(),
                _ => self.members.signal(0, rustix::process::Signal::KILL),
            }
            self.killed = Some(reason);
        }
    }

    /// Puts what the kernel killed at the job's limit into the picture.
    fn mark_kills(&mut self) {
        let killed = self.cap.as_ref().map_or(0, |cap| cap.events().killed);
        if killed <= self.marked {
            return;
        }
        self.marked = killed;
        let victims = self.kernel.victims();
        let at = self.at();
        match victims.first() {
            Some(victim) => self.profile.mark(at, &format!("out of memory: {} killed", victim.line())),
            None => self.profile.mark(at, "out of memory"),
        }
        self.victims.extend(victims);
    }

    fn deaths(&mut self) -> Deaths {
        let Events { killed, refused, reached } = self.cap.as_mut().map(Cap::news).unwrap_or_default();
        let host = self.host.count().unwrap_or(0);
        let on_host = host.saturating_sub(self.host_kills);
        self.host_kills = host;
        self.mark_kills();
        let mut victims = std::mem::take(&mut self.victims);
        if killed + on_host > 0 {
            victims.extend(self.kernel.victims());
        }
        let peak = self.cap.as_ref().and_then(Cap::usage).and_then(|usage| usage.peak);
        // The kernel's log is surest: it names the group whose limit it was. It tells of others on this host as well, and may
        // not have told of ours yet.
        let mark = self.cap.as_ref().and_then(Cap::mark);
        let own = |victim: &Victim| {
            let group = victim.group.as_deref().zip(mark.as_deref());
            group.is_some_and(|(group, mark)| group.contains(mark))
        };
        let ours = reached > 0 || victims.iter().any(own);
        if ours && killed > 0 {
            victims.retain(own);
        }
        Deaths {
            watchdog: self.killed.take(),
            at_the_cap: if ours { killed } else { 0 },
            of_the_job: if ours { 0 } else { killed },
            parent: self.parents.news(),
            elsewhere: on_host.saturating_sub(killed),
            refused,
            victims,
            largest: self
                .largest
                .as_ref()
                .map(|(name, pid, bytes)| format!("{name} (pid {pid}, {})", Size(*bytes))),
            cap: self.profile.cap.map(|cap| (cap, peak)),
        }
    }
}

/// From how many bytes on the kernel slows a job down.
fn slow_from(limits: &Limits) -> Option<u64> {
    let of_the_limit = limits.memory.map(|limit| limit / 10 * 9);
    limits.memory_high.or(of_the_limit).map(|high| high.min(limits.memory.unwrap_or(u64::MAX)))
}

/// Whether a job uses so much that it may stand still for it.
fn is_at_the_limit(current: u64, limits: &Limits) -> bool {
    slow_from(limits).is_some_and(|high| current >= high / 20 * 19)
}

/// Since when a job stands still.
#[derive(Debug, Default)]
struct Stall {
    since: Option<Instant>,
}

impl Stall {
    /// Whether it has stood still for so long that it is to be ended. `pressure` is `full avg10`, in percent.
    fn goes_on(&mut self, at_the_limit: bool, pressure: Option<f32>, now: Instant) -> bool {
        if !(at_the_limit && pressure.is_some_and(|pressure| pressure >= STALLED)) {
            self.since = None;
            return false;
        }
        now.duration_since(*self.since.get_or_insert(now)) >= STALLED_FOR
    }
}

/// By what name a program is counted.
fn class(name: &str) -> &str {
    if programs::is_compiler(name) {
        return "ghc";
    }
    match name {
        "ld" | "ld.bfd" | "ld.gold" | "ld.lld" | "lld" | "gold" | "mold" | "collect2" => "linker",
        "cc1" | "cc1plus" | "as" => "C compiler",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_stands_still_at_its_limit_is_ended_and_one_that_moves_is_not() {
        let limits = Limits { memory: Some(400 << 20), memory_high: Some(40 << 20), ..Limits::default() };
        assert!(is_at_the_limit(39 << 20, &limits) && !is_at_the_limit(30 << 20, &limits));
        let only_high = Limits { memory_high: Some(40 << 20), ..Limits::default() };
        assert!(is_at_the_limit(39 << 20, &only_high) && !is_at_the_limit(1 << 40, &Limits::default()));
        let nine_tenths = Limits { memory: Some(100 << 20), ..Limits::default() };
        assert!(is_at_the_limit(86 << 20, &nine_tenths) && !is_at_the_limit(80 << 20, &nine_tenths));

        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let mut stall = Stall::default();
        assert!(!stall.goes_on(true, Some(99.0), began));
        assert!(!stall.goes_on(true, Some(80.0), after(29)));
        assert!(stall.goes_on(true, Some(90.0), after(30)));
        // A moment in which it moved, or gave memory back, begins it anew; where nothing is measured, nothing is ended.
        for (at_the_limit, pressure) in [(true, Some(79.0)), (false, Some(99.0)), (true, None)] {
            assert!(!stall.goes_on(at_the_limit, pressure, after(31)));
            assert!(!stall.goes_on(true, Some(99.0), after(40)));
        }
        assert!(stall.goes_on(true, Some(99.0), after(70)));
    }
}

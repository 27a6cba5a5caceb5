//! The memory of a job: its limits are put in force before the first step, and what it used is told after each.

use std::io;
use std::time::{Duration, Instant, SystemTime};

use indexmap::IndexMap;
use rustix::process::Resource;

use crate::archive::nix::store_directory;
use crate::config::Limits;
use crate::diagnose::{self, End, Evidence};
use crate::events::{Conclusion, Event};
use crate::limits::admission::{Admitted, Answer};
use crate::limits::cap::Cap;
use crate::limits::ceiling::Ceiling;
use crate::limits::meter::{Meter, Subject};
use crate::limits::nix_log::{self, NixLog};
use crate::limits::size::Size;
use crate::limits::{follow, launcher, nix, process, report, run};

use super::executor::Executor;
use super::log::Log;
use super::process::{Control, Entry, Output};
use super::spec::JobSpec;
use super::tree::Members;

/// A step that took less time …
const TOLD_MILLIS: u64 = 2000;
/// … and less memory is not told about.
const TOLD_BYTES: u64 = 256 << 20;
/// How often a job that waits for memory asks again.
const ADMISSION: Duration = Duration::from_millis(500);

/// Limits in force and what is measured.
#[derive(Debug)]
pub(super) struct Memory {
    meter: Option<Meter>,
    ceiling: Option<Ceiling>,
    /// What the launchers in private mounts were made for: the search path, and when the Nix store got a path last.
    covered: Option<(Ceiling, String, Option<SystemTime>)>,
    /// What Nix tells of builds that are not followed.
    nix_log: Option<NixLog>,
    /// A GHCRTS of the workflow that was told.
    told_ghcrts: String,
    /// The job fails when a GHC ran without the ceiling.
    require: bool,
    /// The last step that ran.
    last: Option<usize>,
    /// The right to run beside others.
    admitted: Option<Admitted>,
}

impl Memory {
    /// Puts the limits in force and begins to measure. Launchers for the GHC programs of the search path go in front
    /// of it, into the second of the pair.
    pub(super) fn begin(
        spec: &JobSpec,
        labels: &[String],
        members: &Members,
        control: &Control,
        (search_path, path): (&str, &mut Vec<String>),
        output: &mut Output,
        log: &mut Log<'_>,
    ) -> io::Result<Self> {
        let admitted = admission(spec, control, log)?;
        let limits = limits(spec, labels);
        let job = members.group().map(super::group::Group::directory);
        let (cap, problems) = Cap::create(members.mark(), &limits, job);
        if let Some(cap) = &cap {
            log.text(&format!("Limits of this job's steps: {}", cap.line(&limits)))?;
        }
        for problem in &problems {
            log.warning(&problem.to_string())?;
        }
        if limits.watchdog
            && let Some(memory) = limits.memory.filter(|_| !cap.as_ref().is_some_and(Cap::limits_memory))
        {
            log.text(&format!("The runner's own watchdog ends a step above {}.", Size(memory)))?;
        }
        let groups = match cap.as_ref().map(Cap::doors).transpose() {
            Ok(groups) => groups,
            Err(error) => {
                log.warning(&format!("The limits are not in force: {error}"))?;
                None
            }
        };
        let rlimits = rlimits(&limits, cap.as_ref(), log)?;
        output.set_entry(Entry { groups, rlimits });
        let ceiling = match Ceiling::of(&spec.memory.ghc) {
            Ok(ceiling) => ceiling,
            Err(problem) => {
                log.warning(&format!("No heap ceiling for GHC: {problem}"))?;
                None
            }
        };
        if let Some(ceiling) = &ceiling {
            let directory = spec.places.scratch.join("temp/sower-ghc-caps");
            let asked = launcher::Asked { ceiling: *ceiling, require: spec.memory.ghc.require };
            let made = launcher::make_directory(&directory, search_path.as_ref(), ceiling)
                .and_then(|_| launcher::ask(&directory, &asked));
            match made {
                Ok(()) => path.push(directory.to_string_lossy().into_owned()),
                Err(error) => {
                    log.warning(&format!("No launchers for GHC: {}: {error}", directory.display()))?;
                }
            }
            for warning in ceiling.warnings(limits.memory) {
                log.warning(&warning)?;
            }
        }
        let bin = spec.places.scratch.join("bin");
        if let Err(error) = follow::make_launchers(&bin, search_path.as_ref(), &bin.join("sower")) {
            log.warning(&format!("Nix builds are not followed: {}: {error}", bin.display()))?;
        }
        let nix_log = if nix_log::is_known_to(search_path.as_ref()) {
            // Builds are done also where they cannot be told.
            output.end().and_then(|end| NixLog::listen(&spec.places.scratch.join("nix"), end)).ok()
        } else {
            None
        };
        if !limits.is_none()
            && which::which_in("nix", Some(search_path), "/").is_ok()
            && nix::builders_are_the_daemons()
        {
            log.warning(run::BUILDERS_OF_THE_DAEMON)?;
        }
        let subject = Subject {
            members: members.clone(),
            limits,
            cap,
            ceiling: ceiling.map(|ceiling| ceiling.heap),
            record: spec.memory.record.clone(),
        };
        // A job runs also where it cannot be measured.
        let meter = Meter::start(subject).ok();
        Ok(Self {
            meter,
            covered: ceiling.map(|ceiling| (ceiling, search_path.to_owned(), store_changed())),
            ceiling,
            nix_log,
            told_ghcrts: String::new(),
            require: spec.memory.ghc.require && ceiling.is_some(),
            last: None,
            admitted,
        })
    }

    pub(super) fn step_begins(&self, name: &str) {
        if let Some(meter) = &self.meter {
            meter.step_begins(name);
        }
    }

    /// Adds to a step's environment what Nix is to know.
    pub(super) fn extend(&self, environment: &mut IndexMap<String, String>) {
        if let Some(log) = &self.nix_log {
            let config = environment.entry("NIX_CONFIG".to_owned()).or_default();
            *config = log.config(config);
        }
    }

    /// Writes down what was measured, and removes the limits.
    pub(super) fn end(&mut self) {
        if let Some(meter) = self.meter.take() {
            let _ = meter.stop();
        }
        self.nix_log = None;
        self.admitted = None;
    }
}

/// What the kernel can limit for each process where it cannot for the job. Not the address space: GHC and others reserve
/// far more of it than they use.
fn rlimits(limits: &Limits, cap: Option<&Cap>, log: &mut Log<'_>) -> io::Result<Vec<(Resource, u64)>> {
    let mut rlimits = Vec::new();
    let kernel_limits_memory = cap.is_some_and(Cap::limits_memory);
    if let Some(memory) = limits.memory.filter(|_| !kernel_limits_memory && !limits.watchdog) {
        rlimits.push((Resource::Data, memory));
        log.text(&format!(
            "Each process of the steps may have {} of its own (RLIMIT_DATA), all together more; limits.watchdog has the runner \
             end a step above it.",
            Size(memory)
        ))?;
    }
    // This one counts all processes of a user, and root's are not limited.
    let root = rustix::process::geteuid().is_root();
    if let Some(pids) = limits.pids.filter(|_| !root && !cap.is_some_and(Cap::limits_pids)) {
        rlimits.push((Resource::Nproc, pids));
        log.text(&format!(
            "This user may have {pids} processes, those of others of its jobs among them (RLIMIT_NPROC)."
        ))?;
    }
    Ok(rlimits)
}

/// When the Nix store got a path last.
fn store_changed() -> Option<SystemTime> {
    std::fs::metadata(store_directory()).and_then(|meta| meta.modified()).ok()
}

/// Waits until the job fits beside those that run. A job that cannot ask begins.
fn admission(spec: &JobSpec, control: &Control, log: &mut Log<'_>) -> io::Result<Option<Admitted>> {
    let (Some(request), Some(host)) = (&spec.memory.admission, process::host_memory()) else {
        return Ok(None);
    };
    let began = Instant::now();
    let mut said = String::new();
    loop {
        match request.ask(host) {
            Ok(Answer::Begin(admitted)) => {
                if !said.is_empty() {
                    log.text(&format!("Waited {} s for memory.", began.elapsed().as_secs()))?;
                }
                return Ok(Some(admitted));
            }
            Ok(Answer::Wait(reason)) => {
                if reason != said {
                    log.text(&reason)?;
                    log.flush()?;
                    said = reason;
                }
            }
            Err(error) => {
                log.warning(&format!(
                    "Not asked whether this job fits: {}: {error}",
                    request.directory.display()
                ))?;
                return Ok(None);
            }
        }
        // Its steps are not run then, and it ends.
        if control.is_cancelled() {
            return Ok(None);
        }
        std::thread::sleep(ADMISSION);
    }
}

/// The limits for a job that asks for these labels.
fn limits(spec: &JobSpec, labels: &[String]) -> Limits {
    let limits = &spec.memory.limits;
    let of_label = labels.iter().find_map(|label| limits.labels.get(label));
    of_label.map_or_else(|| limits.job.clone(), |own| own.or(&limits.job))
}

impl Executor<'_> {
    /// Tells what a step of the job used.
    pub(super) fn step_memory(&mut self, index: usize, conclusion: Conclusion) -> io::Result<()> {
        let Some(meter) = &self.memory.meter else { return Ok(()) };
        if conclusion == Conclusion::Skipped {
            meter.step_skipped();
            return Ok(());
        }
        self.memory.last = Some(index);
        let told = meter.step_ends();
        let caps = self.spec.places.scratch.join("temp/sower-ghc-caps");
        if let Some(asked) = launcher::asked(&caps) {
            meter.expect_ceiling(asked.ceiling.heap);
            self.memory.ceiling = Some(asked.ceiling);
            self.memory.require |= asked.require;
        }
        let deaths = meter.deaths();
        // Of a step that failed it is told already.
        let killed = deaths.at_the_cap + deaths.of_the_job;
        if killed > 0 && conclusion == Conclusion::Success {
            let victims: Vec<_> =
                deaths.victims.iter().map(crate::limits::kernel_log::Victim::line).collect();
            self.log.warning(&format!(
                "{} the kernel killed {} in this step, which went on{}{}",
                if deaths.at_the_cap > 0 { "At the job's limit" } else { "For want of memory" },
                if killed == 1 { "a process" } else { "processes" },
                if victims.is_empty() { "" } else { ": " },
                victims.join(", ")
            ))?;
        }
        match told {
            Some((step, line)) if step.to - step.from >= TOLD_MILLIS || step.peak >= TOLD_BYTES => {
                self.log.text(&line)?;
            }
            _ => {}
        }
        self.cover_ghc()
    }

    /// Puts launchers in front of the compilers that later steps can reach, where the ceiling is new or they are.
    fn cover_ghc(&mut self) -> io::Result<()> {
        let Some(ceiling) = self.memory.ceiling else { return Ok(()) };
        let now = (ceiling, self.search_path(&[]), store_changed());
        if self.memory.covered.as_ref() == Some(&now) {
            return Ok(());
        }
        let known = self.memory.covered.replace(now.clone());
        if known.is_some_and(|(known, ..)| known == ceiling) {
            // Most new paths of a store hold no compiler.
            let (_, path, _) = &now;
            if run::uncovered(path.as_ref()) == 0 {
                return Ok(());
            }
            let lines = run::cover_host(path.as_ref(), &ceiling);
            // Where there can be no such mounts it was told already.
            let fresh = lines.iter().skip(1).filter(|line| !line.starts_with(run::BY_PATH_ONLY));
            return fresh.into_iter().try_for_each(|line| self.log.text(line));
        }
        run::cover_host(now.1.as_ref(), &ceiling).iter().try_for_each(|line| self.log.text(line))
    }

    /// Says once that a workflow's own GHCRTS counts.
    pub(super) fn tell_ghcrts(&mut self, environment: &[(String, String)]) -> io::Result<()> {
        let Some(ceiling) = self.memory.ceiling else { return Ok(()) };
        let set = environment.iter().find(|(name, _)| name == "GHCRTS").map_or("", |(_, value)| value);
        if set.is_empty() || set == self.memory.told_ghcrts {
            return Ok(());
        }
        set.clone_into(&mut self.memory.told_ghcrts);
        let counts = if ceiling.enforce {
            "the ceiling of this job is enforced and beats what it says of -M and -A"
        } else {
            "for GHC, what it says counts, not the ceiling of this job"
        };
        self.log.text(&format!(
            "GHCRTS is set to \"{set}\": {counts}. Haskell programs that are linked without -rtsopts exit with 1 under it"
        ))
    }

    /// Tells what the whole job used, and whether GHC was under its ceiling.
    pub(super) fn tell_memory(&mut self) -> io::Result<()> {
        let Some(profile) = self.memory.meter.as_ref().map(Meter::profile) else { return Ok(()) };
        if profile.proof.runs > 0 {
            self.log.text(&profile.proof.line())?;
        }
        if self.memory.require && profile.proof.unbound_count > 0 {
            self.log.error("A GHC ran without the heap ceiling, and `require` does not allow that.")?;
            self.status = match self.status {
                crate::workflow::Status::Success => crate::workflow::Status::Failure,
                other => other,
            };
        }
        let worth = profile.proof.runs > 0
            || profile
                .steps
                .iter()
                .any(|step| step.to - step.from >= 5 * TOLD_MILLIS || step.peak >= TOLD_BYTES);
        let builds = self.memory.nix_log.as_ref().and_then(NixLog::markdown);
        let Some(step) = self.memory.last.filter(|_| worth || builds.is_some()) else { return Ok(()) };
        // A summary belongs to a step and replaces what the step had.
        let before = self.last_summary.take().filter(|(of, _)| *of == step).map(|(_, text)| text + "\n\n");
        let builds = builds.map(|builds| builds + "\n\n");
        let markdown = before.unwrap_or_default() + &builds.unwrap_or_default() + &report::markdown(&profile);
        let markdown = self.log.masker.mask(&markdown);
        self.log.emit(&Event::Summary { step, markdown })
    }

    /// Says why a process of a step failed, where that can be told.
    pub(super) fn say_cause(&mut self, end: End) -> io::Result<()> {
        let deaths = self.memory.meter.as_ref().map(Meter::deaths).unwrap_or_default();
        let found = diagnose::find(&Evidence {
            end,
            rows: self.log.tail.rows(),
            deaths: &deaths,
            ceiling: self.memory.ceiling.map(|ceiling| ceiling.heap),
            own: &self.spec.memory.causes,
        });
        let Some(mut found) = found else { return Ok(()) };
        let path = self.search_path(&[]);
        let scratch = &self.spec.places.scratch;
        let places = diagnose::Places {
            workspace: &self.spec.places.workspace,
            path: path.as_ref(),
            others: &[scratch.join("temp"), self.spec.places.home.clone()],
        };
        diagnose::look(&mut found, self.log.tail.rows(), &places);
        self.log.error(&found.to_string())
    }
}

//! The kernel's limits for a job: control groups of version 2 or 1, below the group of the runner itself.
//!
//! The steps are in the capped group and the process that runs the job is not: at the limit the kernel picks one of the
//! steps, and who tells about it lives. Version 2 wants processes in leaves only, so there the job's group gets two:
//!
//! ```text
//! version 2   OWN/sower-daemon        the daemon            version 1   memory/OWN/MARK   the steps
//!             OWN/MARK/runner         the job process                   pids/OWN/MARK     the steps
//!             OWN/MARK/steps          the steps, capped                 cpu/OWN/MARK      the steps
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::scope;
use super::size::Size;
use crate::config::Limits;
use crate::job::group::{self, Group};

/// The period of processor limits in microseconds.
const PERIOD: u64 = 100_000;

/// A job's limits, in force.
#[derive(Debug)]
pub struct Cap {
    /// The group whose memory is limited, if that is among what could be set.
    memory: Option<PathBuf>,
    pids: Option<PathBuf>,
    unified: bool,
    made: Vec<PathBuf>,
    doors: Vec<File>,
    before: Events,
}

/// What the kernel counts in a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Events {
    /// Processes that were killed for memory.
    pub killed: u64,
    /// How often a process could not be started.
    pub refused: u64,
    /// How often the limit on memory was reached. Processes that were killed while it was not died for another's limit.
    pub reached: u64,
}

/// What the steps use now.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// Bytes of memory, the page cache of files among it.
    pub current: u64,
    /// The most so far.
    pub peak: Option<u64>,
    /// Share of the last 10 s, in percent, in which every process waited for memory (`full avg10`).
    pub pressure: Option<f32>,
}

/// Why limits are not in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoCap {
    /// The host has no such controller, or gives it to others.
    #[error("{what} is not enforced: {why}")]
    Controller {
        /// The key of the configuration.
        what: &'static str,
        /// The reason, and what to do.
        why: String,
    },
}

impl Cap {
    /// Makes the groups for a job's steps and sets what can be set; what cannot be is told. `job` is the job's own
    /// group, which this process is in.
    #[must_use]
    pub fn create(mark: &str, limits: &Limits, job: Option<&Path>) -> (Option<Self>, Vec<NoCap>) {
        if limits.is_none() {
            return (None, Vec::new());
        }
        let mut problems = Vec::new();
        let wanted = wanted(limits);
        if let Some(job) = job {
            scope::hand_down(job, wanted.iter().map(|(_, controller)| *controller));
        }
        let unified = job.filter(|job| job.join("cgroup.subtree_control").exists());
        let offered = unified.map(|job| read(&job.join("cgroup.controllers"))).unwrap_or_default();
        let here = |controller: &str| offered.split_ascii_whitespace().any(|one| one == controller);
        let mut cap = match unified {
            Some(job) if wanted.iter().any(|(_, controller)| here(controller)) => {
                Self::in_version_2(job, limits, &wanted, &mut problems)
            }
            _ => Self::in_version_1(mark, limits, &wanted, &mut problems),
        };
        if let Some(cap) = &mut cap {
            cap.before = cap.events();
        }
        (cap, problems)
    }

    fn empty(unified: bool) -> Self {
        Self {
            memory: None,
            pids: None,
            unified,
            made: Vec::new(),
            doors: Vec::new(),
            before: Events::default(),
        }
    }

    fn in_version_2(
        job: &Path,
        limits: &Limits,
        wanted: &[(&'static str, &'static str)],
        problems: &mut Vec<NoCap>,
    ) -> Option<Self> {
        let (runner, steps) = (job.join("runner"), job.join("steps"));
        let made = fs::create_dir(&runner)
            .and_then(|()| fs::create_dir(&steps))
            .and_then(|()| Group::at(&runner).enter())
            .and_then(|()| OpenOptions::new().write(true).open(steps.join("cgroup.procs")));
        let door = match made {
            Ok(door) => door,
            Err(error) => {
                let why = format!("{}: {error}", job.display());
                problems.extend(wanted.iter().map(|(what, _)| NoCap::Controller { what, why: why.clone() }));
                return None;
            }
        };
        let mut cap = Self::empty(true);
        cap.doors.push(door);
        cap.made.extend([runner, steps.clone()]);
        for (what, controller) in wanted {
            let set = fs::write(job.join("cgroup.subtree_control"), format!("+{controller}"))
                .and_then(|()| set_version_2(&steps, controller, limits));
            match set {
                Ok(()) if *controller == "memory" => cap.memory = Some(steps.clone()),
                Ok(()) if *controller == "pids" => cap.pids = Some(steps.clone()),
                Ok(()) => {}
                Err(error) => problems.push(NoCap::Controller { what, why: not_delegated(&error) }),
            }
        }
        Some(cap)
    }

    fn in_version_1(
        mark: &str,
        limits: &Limits,
        wanted: &[(&'static str, &'static str)],
        problems: &mut Vec<NoCap>,
    ) -> Option<Self> {
        let mut cap = Self::empty(false);
        for (what, controller) in wanted {
            let Some(parent) = group::controller(controller) else {
                problems.push(NoCap::Controller { what, why: missing(controller) });
                continue;
            };
            let directory = parent.join(mark);
            let set = fs::create_dir(&directory).and_then(|()| {
                cap.made.push(directory.clone());
                set_version_1(&directory, controller, limits)?;
                cap.doors.push(OpenOptions::new().write(true).open(directory.join("cgroup.procs"))?);
                Ok(())
            });
            match set {
                Ok(()) if *controller == "memory" => cap.memory = Some(directory),
                Ok(()) if *controller == "pids" => cap.pids = Some(directory),
                Ok(()) => {}
                Err(error) => {
                    let why = format!("{}: {error}", directory.display());
                    problems.push(NoCap::Controller { what, why });
                }
            }
        }
        (!cap.doors.is_empty()).then_some(cap)
    }

    /// The files by which a new process of a step goes into the groups.
    ///
    /// # Errors
    /// When no file descriptor is left.
    pub fn doors(&self) -> io::Result<Arc<Vec<OwnedFd>>> {
        let doors: io::Result<Vec<OwnedFd>> =
            self.doors.iter().map(|door| Ok(door.try_clone()?.into())).collect();
        doors.map(Arc::new)
    }

    /// Whether the kernel limits the memory.
    #[must_use]
    pub fn limits_memory(&self) -> bool {
        self.memory.is_some()
    }

    /// Whether the kernel limits the number of processes.
    #[must_use]
    pub fn limits_pids(&self) -> bool {
        self.pids.is_some()
    }

    /// The part of the path of the limited group by which the kernel's log can be told to speak of it.
    #[must_use]
    pub fn mark(&self) -> Option<String> {
        let directory = self.memory.as_deref()?;
        // In version 2 it is the leaf `steps` of the job's group.
        let named = if self.unified { directory.parent()? } else { directory };
        Some(named.file_name()?.to_string_lossy().into_owned())
    }

    /// What the steps use now; `None` where their memory is not counted.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        let directory = self.memory.as_deref()?;
        let names = if self.unified {
            ["memory.current", "memory.peak"]
        } else {
            ["memory.usage_in_bytes", "memory.max_usage_in_bytes"]
        };
        let pressure =
            if self.unified { fs::read_to_string(directory.join("memory.pressure")).ok() } else { None };
        Some(Usage {
            current: number(&directory.join(names[0]))?,
            peak: number(&directory.join(names[1])),
            pressure: pressure.as_deref().and_then(full_avg10),
        })
    }

    /// What the kernel has counted so far.
    #[must_use]
    pub fn events(&self) -> Events {
        let count = |directory: &Option<PathBuf>, file: &str, name: &str| {
            let text = read(&directory.as_ref()?.join(file));
            text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
        };
        let file = if self.unified { "memory.events" } else { "memory.oom_control" };
        Events {
            killed: count(&self.memory, file, "oom_kill ").unwrap_or(0),
            refused: count(&self.pids, "pids.events", "max ").unwrap_or(0),
            reached: if self.unified {
                count(&self.memory, file, "oom ").unwrap_or(0)
            } else {
                self.memory
                    .as_ref()
                    .and_then(|directory| number(&directory.join("memory.failcnt")))
                    .unwrap_or(0)
            },
        }
    }

    /// What has happened since this was asked last.
    pub fn news(&mut self) -> Events {
        let now = self.events();
        let news = Events {
            killed: now.killed.saturating_sub(self.before.killed),
            refused: now.refused.saturating_sub(self.before.refused),
            reached: now.reached.saturating_sub(self.before.reached),
        };
        self.before = now;
        news
    }

    /// Kills every process of the steps, at once.
    pub fn kill(&self) {
        for directory in &self.made {
            if directory.file_name().is_some_and(|name| name == "runner") {
                continue;
            }
            if fs::write(directory.join("cgroup.kill"), "1").is_ok() {
                return;
            }
            for line in read(&directory.join("cgroup.procs")).lines() {
                if let Some(pid) = line.parse().ok().and_then(rustix::process::Pid::from_raw) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
        }
    }

    /// One line about what is in force.
    #[must_use]
    pub fn line(&self, limits: &Limits) -> String {
        let mut parts = Vec::new();
        if let (Some(memory), true) = (limits.memory, self.memory.is_some()) {
            parts.push(format!("memory {}", Size(memory)));
            if let Some(swap) = limits.swap {
                parts.push(format!("swap {}", Size(swap)));
            }
        }
        if let (Some(pids), true) = (limits.pids, self.pids.is_some()) {
            parts.push(format!("{pids} processes"));
        }
        if let Some(cpu) = limits.cpu {
            parts.push(format!("{} CPU", cpu as f64 / 1000.0));
        }
        format!("{} (control groups, version {})", parts.join(", "), if self.unified { 2 } else { 1 })
    }
}

impl Drop for Cap {
    fn drop(&mut self) {
        // Those of version 2 are below the job's own group and go with it.
        if !self.unified {
            for directory in &self.made {
                group::remove_empty(directory);
            }
        }
    }
}

/// Removes the groups of version 1 that a job with this mark left when its process died.
pub fn remove_left(mark: &str) {
    for controller in ["memory", "pids", "cpu"] {
        if let Some(directory) = group::controller(controller).map(|parent| parent.join(mark))
            && directory.is_dir()
        {
            group::remove_empty(&directory);
        }
    }
}

/// Where the groups of jobs with limits are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Below {
    /// Below the daemon's own group.
    Own,
    /// Below scopes of systemd, one for each job: see [`scope`].
    Scopes,
}

/// Readies the daemon's own group for groups with limits below it: the daemon moves into a leaf, and the controllers
/// are handed down. To be called before any job is started; without version 2 there is nothing to do.
///
/// # Errors
/// Why no limits can be had here.
pub fn delegate(limits: &Limits) -> Result<Below, String> {
    let Some(own) = group::unified() else { return Ok(Below::Own) };
    let offered = read(&own.join("cgroup.controllers"));
    let wanted: Vec<&str> = wanted(limits)
        .into_iter()
        .map(|(_, controller)| controller)
        .filter(|controller| offered.split_ascii_whitespace().any(|one| one == *controller))
        .collect();
    if wanted.is_empty() {
        return Ok(Below::Own);
    }
    let leaf = own.join(group::DAEMON);
    // A service of systemd whose daemon was put right into its group: the next one would be, too, and may not be once
    // controllers are handed down from there.
    if own.extension().is_some_and(|kind| kind == "service") && !group::in_leaf() && scope::can_be_had() {
        return Ok(Below::Scopes);
    }
    let moved = match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Group::at(&leaf).enter(),
    };
    moved.map_err(|error| format!("{}: {error}", leaf.display()))?;
    for controller in wanted {
        let hand_down = || fs::write(own.join("cgroup.subtree_control"), format!("+{controller}"));
        let handed = match hand_down() {
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy
                    && is_of_a_service(&own, std::env::var("RC_SVCNAME").ok().as_deref()) =>
            {
                gather(&own, &leaf);
                hand_down()
            }
            other => other,
        };
        handed.map_err(|error| format!("{}: {controller}: {}", own.display(), not_delegated(&error)))?;
    }
    Ok(Below::Own)
}

/// Whether a group is that of this service, and not of a login, of another service or of a whole host. `openrc` is the
/// name that OpenRC has for it.
fn is_of_a_service(group: &Path, openrc: Option<&str>) -> bool {
    let name = group.file_name().unwrap_or_default().to_string_lossy();
    // Older ones of OpenRC name the group as the service.
    let of_openrc = |service: &str| name.strip_prefix("openrc.").unwrap_or(&name) == service;
    name.ends_with(".service") || openrc.is_some_and(of_openrc)
}

/// Moves what else is in the service's group into the daemon's leaf: OpenRC's `supervise-daemon` is in the group of what it
/// supervises. What it starts anew is in the leaf then, like the daemon.
fn gather(own: &Path, leaf: &Path) {
    for pid in read(&own.join("cgroup.procs")).lines() {
        // It may have ended meanwhile.
        let _ = fs::write(leaf.join("cgroup.procs"), pid);
    }
}

fn wanted(limits: &Limits) -> Vec<(&'static str, &'static str)> {
    let mut wanted = Vec::new();
    if limits.memory.is_some() || limits.memory_high.is_some() || limits.swap.is_some() {
        wanted.push(("limits.memory", "memory"));
    }
    if limits.pids.is_some() {
        wanted.push(("limits.pids", "pids"));
    }
    if limits.cpu.is_some() {
        wanted.push(("limits.cpu", "cpu"));
    }
    wanted
}

fn set_version_2(steps: &Path, controller: &str, limits: &Limits) -> io::Result<()> {
    let set = |file: &str, value: String| write(&steps.join(file), &value);
    match controller {
        "memory" => {
            if let Some(memory) = limits.memory {
                set("memory.max", memory.to_string())?;
            }
            // Before the limit the kernel slows down and takes back, so that less is killed.
            if let Some(high) = limits.memory_high.or(limits.memory.map(|memory| memory / 10 * 9)) {
                set("memory.high", high.to_string())?;
            }
            if let Some(swap) = limits.swap
                && steps.join("memory.swap.max").exists()
            {
                set("memory.swap.max", swap.to_string())?;
            }
            // A step with one process missing is of no use to anybody. Since Linux 4.19.
            let _ = set("memory.oom.group", "1".to_owned());
            Ok(())
        }
        "pids" => set("pids.max", limits.pids.unwrap_or_default().to_string()),
        _ => set("cpu.max", format!("{} {PERIOD}", limits.cpu.unwrap_or(1000) * PERIOD / 1000)),
    }
}

fn set_version_1(directory: &Path, controller: &str, limits: &Limits) -> io::Result<()> {
    let set = |file: &str, value: u64| write(&directory.join(file), &value.to_string());
    match controller {
        "memory" => {
            let _ = set("memory.use_hierarchy", 1);
            if let Some(memory) = limits.memory {
                set("memory.limit_in_bytes", memory)?;
                // Version 1 counts memory and swap together; without swap accounting there is no such file.
                if let Some(swap) = limits.swap
                    && directory.join("memory.memsw.limit_in_bytes").exists()
                {
                    set("memory.memsw.limit_in_bytes", memory.saturating_add(swap))?;
                }
            }
            if let Some(high) = limits.memory_high {
                set("memory.soft_limit_in_bytes", high)?;
            }
            Ok(())
        }
        "pids" => set("pids.max", limits.pids.unwrap_or_default()),
        _ => {
            set("cpu.cfs_period_us", PERIOD)?;
            set("cpu.cfs_quota_us", limits.cpu.unwrap_or(1000) * PERIOD / 1000)
        }
    }
}

fn not_delegated(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ResourceBusy => {
            "other processes are in the runner's control group; run it as a service of its own (systemd: Delegate=yes)"
                .to_owned()
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => format!(
            "{error}; the runner may not write its control group (systemd: Delegate=yes; OpenRC: rc_cgroup_mode=unified)"
        ),
        _ => error.to_string(),
    }
}

fn missing(controller: &str) -> String {
    format!(
        "the control group of this runner has no {controller} controller (systemd: Delegate=yes; OpenRC: rc_cgroup_mode=unified)"
    )
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    // Never made: where something else than control groups is mounted, a new file would limit nobody.
    let written =
        OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(value.as_bytes()));
    written.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Reads `full avg10=1.23 …` of a `memory.pressure` file.
#[must_use]
pub fn full_avg10(text: &str) -> Option<f32> {
    let line = text.lines().find_map(|line| line.strip_prefix("full "))?;
    line.split(' ').find_map(|word| word.strip_prefix("avg10=")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_limits_there_are_no_groups_and_no_words() {
        let (cap, problems) = Cap::create("x", &Limits::default(), None);
        assert!(cap.is_none() && problems.is_empty());
    }

    #[test]
    fn the_limits_of_version_2_are_written_as_the_kernel_reads_them() {
        let steps = tempfile::tempdir().unwrap();
        let limits = Limits {
            memory: Some(1000 << 20),
            pids: Some(50),
            cpu: Some(1500),
            swap: Some(0),
            ..Limits::default()
        };
        for file in
            ["memory.max", "memory.high", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max"]
        {
            fs::write(steps.path().join(file), "").unwrap();
        }
        for controller in ["memory", "pids", "cpu"] {
            set_version_2(steps.path(), controller, &limits).unwrap();
        }
        let read = |name: &str| read(&steps.path().join(name));
        assert_eq!(read("memory.max"), (1000_u64 << 20).to_string());
        assert_eq!(read("memory.high"), (900_u64 << 20).to_string());
        assert_eq!((read("memory.swap.max"), read("memory.oom.group")), ("0".into(), "1".into()));
        assert_eq!((read("pids.max"), read("cpu.max")), ("50".into(), "150000 100000".into()));
    }

    #[test]
    fn groups_of_services_are_told_from_those_of_people() {
        for (group, service) in [
            ("/sys/fs/cgroup/openrc.sower", true),
            ("/sys/fs/cgroup/sower", true),
            ("/sys/fs/cgroup/openrc.sshd", false),
            ("/sys/fs/cgroup/system.slice/sower.service", true),
            ("/sys/fs/cgroup/user.slice/user-0.slice/session-1.scope", false),
            ("/sys/fs/cgroup", false),
        ] {
            assert_eq!(is_of_a_service(Path::new(group), Some("sower")), service, "{group}");
        }
        assert!(!is_of_a_service(Path::new("/sys/fs/cgroup/openrc.sower"), None));
    }

    #[test]
    fn pressure_is_read() {
        let text = "some avg10=3.00 avg60=1.00 avg300=0.00 total=5\nfull avg10=41.25 avg60=0.00 avg300=0.00 total=2\n";
        assert_eq!(full_avg10(text), Some(41.25));
        assert_eq!(full_avg10(""), None);
    }
}

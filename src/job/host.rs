//! What this host is, as the head of a log and the `runner` context tell it.

use std::fs;
use std::io;
use std::path::PathBuf;

/// The facts about a host that a reader of a log wants to know.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// The operating system's own name for itself, such as `Alpine Linux v3.21`.
    pub system: String,
    /// Machine name of the processor, such as `x86_64`.
    pub machine: String,
    /// Processors that this process may use.
    pub cpus: usize,
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// The limit of the control group that this process is in, in bytes.
    pub memory_limit: Option<u64>,
}

impl Host {
    /// This host, as far as it can be read.
    #[must_use]
    pub fn this() -> Self {
        let uname = rustix::system::uname();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            name: uname.nodename().to_string_lossy().into_owned(),
            system: system_name().unwrap_or_else(|| uname.sysname().to_string_lossy().into_owned()),
            machine: uname.machine().to_string_lossy().into_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory: meminfo.lines().find_map(|line| kibibytes(line.strip_prefix("MemTotal:")?)),
            memory_limit: memory_limit(),
        }
    }

    /// One line: name, system, machine, processors, memory.
    #[must_use]
    pub fn line(&self) -> String {
        let memory = self.memory.map(|bytes| format!(", {} memory", gibibytes(bytes))).unwrap_or_default();
        let cpus = if self.cpus == 1 { "1 CPU".to_owned() } else { format!("{} CPUs", self.cpus) };
        format!("{} ({}, {}), {cpus}{memory}", self.name, self.system, self.machine)
    }
}

/// The file of this very program. Where `/proc` is not mounted, what it was called by tells.
///
/// # Errors
/// When neither the system nor the command line says it.
pub fn this_program() -> io::Result<PathBuf> {
    std::env::current_exe().or_else(|error| {
        let called = std::env::args_os().next().ok_or(error)?;
        which::which(called).map_err(io::Error::other)
    })
}

/// `X64`, `ARM64` and so on, as `runner.arch` has it.
#[must_use]
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "X64",
        "x86" => "X86",
        "aarch64" => "ARM64",
        "arm" => "ARM",
        other => other,
    }
}

/// A size in GiB with one decimal.
#[must_use]
pub fn gibibytes(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) / (1 << 30);
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

fn system_name() -> Option<String> {
    let release = fs::read_to_string("/etc/os-release").ok()?;
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(name.trim().trim_matches('"').to_owned())
}

fn kibibytes(text: &str) -> Option<u64> {
    text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The smallest limit from this process's control group up to the root, version 2 or 1.
fn memory_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let limit = |root: &str, group: &str, file: &str| {
        std::path::Path::new(group)
            .ancestors()
            .filter_map(|part| {
                let place = format!("{root}{}/{file}", part.display().to_string().trim_end_matches('/'));
                fs::read_to_string(place).ok()?.trim().parse::<u64>().ok()
            })
            .min()
    };
    groups
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, group) = (parts.next()?, parts.next()?, parts.next()?);
            if controllers.is_empty() {
                limit("/sys/fs/cgroup", group, "memory.max")
            } else if controllers.split(',').any(|controller| controller == "memory") {
                limit("/sys/fs/cgroup/memory", group, "memory.limit_in_bytes")
            } else {
                None
            }
        })
        // Version 1 says "no limit" by a number near 2^63.
        .filter(|&limit| limit < 1 << 60)
        .min()
}

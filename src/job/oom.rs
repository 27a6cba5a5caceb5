//! Whether the kernel's out-of-memory killer has struck since a moment, and where.
//!
//! A process that it kills dies of SIGKILL like any other that is killed. The counters of the control groups (version
//! 2: `memory.events`, version 1: `memory.oom_control`) and of the host (`/proc/vmstat`) tell the two apart.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// `/proc/vmstat` has about 5 KB.
const VMSTAT_AT_MOST: usize = 16 * 1024;

/// The counters at some moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Processes that were killed on the whole host since it started.
    host: Option<u64>,
    /// The same in this process's group and those above it, innermost first.
    groups: Vec<(PathBuf, u64)>,
}

impl Counters {
    /// As they are now.
    #[must_use]
    pub fn now() -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut groups = Vec::new();
        for line in own.lines() {
            let mut parts = line.splitn(3, ':');
            let (_, Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
                continue;
            };
            let root = if controllers.is_empty() {
                "/sys/fs/cgroup"
            } else if controllers.split(',').any(|one| one == "memory") {
                "/sys/fs/cgroup/memory"
            } else {
                continue;
            };
            for part in Path::new(path).ancestors() {
                let place = part.to_string_lossy();
                let directory = PathBuf::from(format!("{root}{}", place.trim_end_matches('/')));
                if let Some(count) = killed_in(&directory) {
                    groups.push((directory, count));
                }
            }
        }
        Self { host: HostKills::open().count(), groups }
    }

    /// What has happened since then, for people; `None` when nothing has.
    #[must_use]
    pub fn since(&self) -> Option<String> {
        for (directory, before) in &self.groups {
            let Some(now) = killed_in(directory).filter(|now| now > before) else { continue };
            let read = |names: [&str; 2]| {
                let text = names.iter().find_map(|name| fs::read_to_string(directory.join(name)).ok())?;
                text.trim().parse::<u64>().ok().filter(|bytes| *bytes < 1 << 60)
            };
            let limit = read(["memory.max", "memory.limit_in_bytes"]);
            let peak = read(["memory.peak", "memory.max_usage_in_bytes"]);
            let size = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), mebibytes);
            return Some(format!(
                "Out of memory: the kernel killed {} in the control group {} (limit {}, peak {}).",
                processes(now - before),
                directory.display(),
                limit.map_or("none".to_owned(), mebibytes),
                size(peak),
            ));
        }
        let count = HostKills::open().count()?.checked_sub(self.host?).filter(|count| *count > 0)?;
        Some(format!("Out of memory: the kernel killed {} on this host meanwhile.", processes(count)))
    }
}

fn processes(count: u64) -> String {
    if count == 1 { "1 process".to_owned() } else { format!("{count} processes") }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// The line `oom_kill N` of a group's file.
fn killed_in(directory: &Path) -> Option<u64> {
    ["memory.events", "memory.oom_control"]
        .iter()
        .find_map(|file| count(&fs::read_to_string(directory.join(file)).ok()?))
}

/// Counts what the out-of-memory killer has ended on the whole host since it started.
#[derive(Debug)]
pub struct HostKills(Option<File>);

impl HostKills {
    /// Opens the counter.
    #[must_use]
    pub fn open() -> Self {
        Self(File::open("/proc/vmstat").ok())
    }

    /// Processes so far; `None` before Linux 4.13.
    #[must_use]
    pub fn count(&self) -> Option<u64> {
        let file = self.0.as_ref()?;
        let mut text = [0; VMSTAT_AT_MOST];
        let mut length = 0;
        while let read @ 1.. = file.read_at(&mut text[length..], length as u64).ok()? {
            length += read;
        }
        count(std::str::from_utf8(&text[..length]).ok()?)
    }
}

fn count(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_has_happened_since_now() {
        let group = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(group.path().join(file), text).unwrap();
        write("memory.events", "low 0\nhigh 0\nmax 3\noom 0\noom_kill 0\n");
        let mut counters = Counters { host: None, groups: vec![(group.path().to_owned(), 0)] };
        assert_eq!(counters.since(), None);
        write("memory.events", "low 0\nhigh 0\nmax 9\noom 1\noom_kill 2\n");
        write("memory.max", "52428800\n");
        write("memory.peak", "52428800\n");
        let said = counters.since().unwrap();
        assert!(said.contains("2 processes") && said.contains("limit 50 MiB, peak 50 MiB"), "{said}");
        counters = Counters { host: Some(0), groups: Vec::new() };
        assert_eq!(counters.since().is_some(), HostKills::open().count().is_some_and(|count| count > 0));
    }
}

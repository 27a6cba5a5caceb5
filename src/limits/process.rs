//! What `/proc` tells of a process. Every answer may be missing: processes vanish while they are read.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The most that is read of an environment or a command line; the kernel allows a process 2 MiB of both by default.
const TEXT_AT_MOST: u64 = 4 << 20;

/// The parts of `/proc/<pid>/stat` that are used here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Name of the executable, at most 15 bytes.
    pub name: String,
    /// The parent.
    pub parent: u32,
    /// Start, in clock ticks since boot: with the number it names a process once and for all.
    pub start: u64,
    /// Memory that it has resident, in bytes.
    pub resident: u64,
}

/// Reads `/proc/<pid>/stat`.
#[must_use]
pub fn stat(pid: u32) -> Option<Stat> {
    let mut buffer = [0; 1024];
    parse_stat(&String::from_utf8_lossy(small(&format!("/proc/{pid}/stat"), &mut buffer)?))
}

/// A process and how much of its memory others may have too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    /// What its `stat` says.
    pub stat: Stat,
    /// The part of its resident memory that others may have too (files, shared memory), in bytes.
    pub shared: u64,
}

/// Reads both.
#[must_use]
pub fn measured(pid: u32) -> Option<Measured> {
    let stat = stat(pid)?;
    let shared = small(&statm_of(pid), &mut [0; STATM]).and_then(shared_in).unwrap_or(0).min(stat.resident);
    Some(Measured { stat, shared })
}

/// A process that is looked at again and again.
///
/// Its `/proc/<pid>/statm` stays open and is read alone while it says the same: that costs the kernel a fraction of `stat`,
/// most processes wait most of the time, and one that becomes another program has other memory. The file stays with its
/// process, also where another one gets the number.
#[derive(Debug)]
pub struct Followed {
    pid: u32,
    file: File,
    said: Vec<u8>,
    last: Measured,
}

impl Followed {
    /// Begins; `None` when the process is gone.
    #[must_use]
    pub fn open(pid: u32) -> Option<Self> {
        let file = File::open(statm_of(pid)).ok()?;
        let mut buffer = [0; STATM];
        let length = file.read_at(&mut buffer, 0).ok()?;
        // This one is read first: what changes meanwhile is a change at the next look.
        let said = buffer.get(..length)?.to_vec();
        Some(Self { pid, file, said, last: measured(pid)? })
    }

    /// What it is now; `None` when it is gone.
    pub fn look(&mut self) -> Option<&Measured> {
        let mut buffer = [0; STATM];
        let length = self.file.read_at(&mut buffer, 0).ok()?;
        let says = buffer.get(..length)?;
        if says != self.said {
            self.last.stat = stat(self.pid)?;
            self.last.shared = shared_in(says).unwrap_or(0).min(self.last.stat.resident);
            self.said.clear();
            self.said.extend_from_slice(says);
        }
        Some(&self.last)
    }
}

/// Reads a small file at one go: these are read a hundred times a second.
fn small<'b>(path: &str, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
    let length = File::open(path).ok()?.read(buffer).ok()?;
    buffer.get(..length)
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name may hold anything, parentheses as well: the last one ends it.
    let (begin, rest) = text.rsplit_once(')')?;
    let name = begin.split_once('(')?.1.to_owned();
    let mut fields = rest.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let start = fields.nth(17)?.parse().ok()?;
    let pages: u64 = fields.nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    Some(Stat { name, parent, start, resident: pages.saturating_mul(rustix::param::page_size() as u64) })
}

/// The executable's path; the kernel appends ` (deleted)` where it is gone.
#[must_use]
pub fn executable(pid: u32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// The command line, each argument ended by a NUL.
#[must_use]
pub fn arguments(pid: u32) -> Option<Vec<u8>> {
    read(&format!("/proc/{pid}/cmdline"))
}

/// The environment that the process was started with, each entry ended by a NUL.
#[must_use]
pub fn environment(pid: u32) -> Option<Vec<u8>> {
    read(&format!("/proc/{pid}/environ"))
}

/// Command line and environment with which the process was started as this executable; `None` when it became
/// another one while they were read, or has none yet.
#[must_use]
pub fn started_as(pid: u32, its_executable: &Path) -> Option<(Vec<u8>, Vec<u8>)> {
    let (arguments, environment) = (arguments(pid)?, environment(pid)?);
    let is_it_still = executable(pid).is_some_and(|executable| executable == its_executable);
    (is_it_still && !arguments.is_empty()).then_some((arguments, environment))
}

fn read(path: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(TEXT_AT_MOST).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Whether the number is a process and not a thread of one: `/proc` answers for both.
#[must_use]
pub fn is_process(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let group = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    group.and_then(|group| group.trim().parse().ok()) == Some(pid)
}

/// The numbers in a file `cgroup.procs` that is kept open.
pub fn members(file: &File, buffer: &mut Vec<u8>) -> Vec<u32> {
    buffer.clear();
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = file.read_at(&mut piece, buffer.len() as u64) {
        buffer.extend_from_slice(&piece[..length]);
        // A further line would have found room.
        if length + 16 < piece.len() {
            break;
        }
    }
    let text = std::str::from_utf8(buffer).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// `/proc/<pid>/statm` has seven numbers.
const STATM: usize = 256;

fn statm_of(pid: u32) -> String {
    format!("/proc/{pid}/statm")
}

/// The third number: resident memory that belongs to files or is shared, in bytes.
fn shared_in(statm: &[u8]) -> Option<u64> {
    let pages: u64 = std::str::from_utf8(statm).ok()?.split_ascii_whitespace().nth(2)?.parse().ok()?;
    Some(pages.saturating_mul(rustix::param::page_size() as u64))
}

/// The most memory that the process had resident so far, in bytes.
#[must_use]
pub fn peak_resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// The numbers of all processes.
#[must_use]
pub fn all() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Tells whether the kernel has started anything: the number that it gave out last, from `/proc/loadavg`.
#[derive(Debug)]
pub struct LastStarted(Option<File>);

impl LastStarted {
    /// Opens the file once; each answer is then one small read.
    #[must_use]
    pub fn open() -> Self {
        Self(File::open("/proc/loadavg").ok())
    }

    /// The number of the process or thread that was started last.
    #[must_use]
    pub fn get(&self) -> Option<u32> {
        let mut line = [0; 64];
        let length = self.0.as_ref()?.read_at(&mut line, 0).ok()?;
        std::str::from_utf8(line.get(..length)?).ok()?.split_ascii_whitespace().nth(4)?.parse().ok()
    }
}

/// The processes below `root`, itself not counted; `None` where the kernel does not tell children.
#[must_use]
pub fn descendants(root: u32) -> Option<Vec<u32>> {
    let mut found = Vec::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{parent}/task")) else { continue };
        for thread in threads.flatten() {
            let Ok(text) = std::fs::read_to_string(thread.path().join("children")) else {
                // The root's own threads do not vanish: the kernel has no such file.
                if parent == root {
                    return None;
                }
                continue;
            };
            let children: Vec<u32> =
                text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect();
            found.extend(&children);
            parents.extend(children);
        }
    }
    Some(found)
}

/// The host's memory in bytes.
#[must_use]
pub fn host_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_become_another_program_was_not_started_as_the_first() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        // It has no command line for a moment.
        let arguments = loop {
            if let Some((arguments, _)) = started_as(child.id(), &executable(child.id()).unwrap()) {
                break arguments;
            }
        };
        assert!(arguments.ends_with(b"\x0060\0"), "{arguments:?}");
        // The fork of a GHC that is the assembler now must not count as a GHC with the assembler's arguments.
        let was = executable(std::process::id()).unwrap();
        assert_eq!(started_as(child.id(), &was), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn reads_names_that_try_to_look_like_more() {
        let line = "12 (a) R 1 (x) S 7 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 9912 0 0";
        let expected = Stat { name: "a) R 1 (x".to_owned(), parent: 7, start: 9912, resident: 0 };
        assert_eq!(parse_stat(line), Some(expected));
        assert_eq!(parse_stat("12 (a"), None);
        assert_eq!(parse_stat(""), None);
    }
}

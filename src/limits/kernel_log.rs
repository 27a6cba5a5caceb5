//! What the kernel's log says of processes that it killed for memory: which, how much they had, and at whose limit.
//!
//! Source of the format: `dump_oom_victim` and `__oom_kill_process` in the kernel's `mm/oom_kill.c`.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use super::launcher;
use super::size::Size;

/// The kernel's log from some moment on. Only root may read it on most hosts.
#[derive(Debug)]
pub struct KernelLog {
    file: Option<File>,
}

/// A process that was killed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Victim {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// Memory that it had, in bytes, where the log says it.
    pub had: Option<u64>,
    /// The control group at whose limit it was killed; `None` when the whole host had no more.
    pub group: Option<String>,
}

impl KernelLog {
    /// From now on.
    #[must_use]
    pub fn open() -> Self {
        let flags = rustix::fs::OFlags::NONBLOCK.bits();
        let file = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open("/dev/kmsg").ok();
        let file = file.and_then(|mut file| file.seek(SeekFrom::End(0)).ok().map(|_| file));
        Self { file }
    }

    /// The processes that were killed since this was asked last.
    pub fn victims(&mut self) -> Vec<Victim> {
        let Some(file) = &mut self.file else { return Vec::new() };
        let mut text = String::new();
        let mut record = [0; 8192];
        // One record at a time. One that was overwritten meanwhile is an error, and the next is there.
        for _ in 0..10_000 {
            match file.read(&mut record) {
                Ok(0) => break,
                Ok(length) => {
                    text.push_str(
                        String::from_utf8_lossy(&record[..length]).lines().next().unwrap_or_default(),
                    );
                    text.push('\n');
                }
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PIPE.raw_os_error()) => {}
                Err(_) => break,
            }
        }
        victims(&text)
    }
}

fn victims(text: &str) -> Vec<Victim> {
    let mut found: Vec<Victim> = Vec::new();
    for line in text.lines() {
        if let Some((_, facts)) = line.split_once("oom-kill:") {
            let fact =
                |name: &str| facts.split(',').find_map(|fact| fact.strip_prefix(name)?.strip_prefix('='));
            let Some(pid) = fact("pid").and_then(|pid| pid.trim().parse().ok()) else { continue };
            found.push(Victim {
                pid,
                name: fact("task").unwrap_or_default().to_owned(),
                had: None,
                group: fact("oom_memcg").map(str::to_owned),
            });
        } else if let Some((_, rest)) = line.split_once("Killed process ") {
            let mut words = rest.splitn(2, ' ');
            let pid: Option<u32> = words.next().and_then(|pid| pid.trim_end_matches(',').parse().ok());
            let kibibytes = |name: &str| -> Option<u64> {
                rest.split_once(name)?.1.split("kB").next()?.trim().parse().ok()
            };
            let had: Option<u64> =
                ["anon-rss:", "file-rss:", "shmem-rss:"].iter().map(|name| kibibytes(name)).sum();
            let Some(pid) = pid else { continue };
            let had = had.map(|had| had * 1024);
            match found.iter_mut().find(|victim| victim.pid == pid && victim.had.is_none()) {
                Some(victim) => victim.had = had,
                None => {
                    let name =
                        rest.split_once('(').and_then(|(_, rest)| rest.split_once(')')).map(|(name, _)| name);
                    found.push(Victim { pid, name: name.unwrap_or_default().to_owned(), had, group: None });
                }
            }
        }
    }
    found
}

impl Victim {
    /// For people: `python3 (pid 12, 62 MiB)`.
    #[must_use]
    pub fn line(&self) -> String {
        let had = self.had.map(|had| format!(", {}", Size(had))).unwrap_or_default();
        format!("{} (pid {}{had})", self.name.trim_end_matches(launcher::ORIGINAL), self.pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn victims_are_read_with_their_memory_and_the_group_whose_limit_it_was() {
        // Linux 6.18.
        let text = "3,1234,5678,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/a/sower-7-1,task_memcg=/a/sower-7-1,task=python3,pid=4321,uid=0\n\
            3,1235,5679,-;Memory cgroup out of memory: Killed process 4321 (python3) total-vm:220000kB, anon-rss:60000kB, file-rss:5536kB, shmem-rss:0kB, UID:0 pgtables:200kB oom_score_adj:500\n\
            3,1236,5680,-;Out of memory: Killed process 99 (a (b) total-vm:1kB, anon-rss:1024kB, file-rss:0kB, shmem-rss:0kB\n";
        let found = victims(text);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0].group.as_deref(), Some("/a/sower-7-1"));
        assert_eq!(found[0].line(), "python3 (pid 4321, 64 MiB)");
        assert_eq!((found[1].group.as_deref(), found[1].had), (None, Some(1 << 20)));
        assert!(victims("Killed process x\noom-kill:pid=y").is_empty());
    }
}

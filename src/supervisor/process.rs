//! Which process is meant: an id, when it started, and in which boot of the host.

use std::io;
use std::path::Path;
use std::sync::OnceLock;

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use crate::job::tree::{self, Process};

/// A process, told apart from any that gets the same id later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The process id.
    pub pid: u32,
    /// When it started: clock ticks since the host's boot, field 22 of `/proc/PID/stat`.
    pub start: u64,
    /// A number for the boot in which it started (a hash of the kernel's boot id; 0 when there is none).
    pub boot: u32,
}

impl Identity {
    /// The process that has this id now; `None` when there is none.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let stat = tree::stat(i32::try_from(pid).ok().and_then(Pid::from_raw)?)?;
        Some(Self { pid, start: stat.start, boot: this_boot() })
    }

    /// Whether this process runs. One that has ended and was not waited for does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.is_of_this_boot()
            && self
                .raw()
                .and_then(tree::stat)
                .is_some_and(|stat| stat.start == self.start && !matches!(stat.state, b'Z' | b'X'))
    }

    /// Whether the host has not been started again since.
    #[must_use]
    pub fn is_of_this_boot(&self) -> bool {
        self.boot == this_boot()
    }

    /// Sends a signal to this very process; nothing happens when it is gone.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        match self.raw() {
            Some(pid) if self.is_of_this_boot() => Process { pid, start: self.start }.signal(signal),
            _ => Ok(()),
        }
    }

    /// Whether it was stopped, as by SIGSTOP.
    pub(super) fn is_stopped(&self) -> bool {
        let stat = self.raw().and_then(tree::stat);
        self.is_of_this_boot() && stat.is_some_and(|stat| stat.start == self.start && stat.state == b'T')
    }

    fn raw(&self) -> Option<Pid> {
        i32::try_from(self.pid).ok().and_then(Pid::from_raw)
    }
}

/// Looks for a process that has the path as its last argument, as job processes have their directory.
pub(super) fn find_by_argument(path: &Path) -> Option<Identity> {
    use std::os::unix::ffi::OsStrExt;
    let wanted = path.as_os_str().as_bytes();
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(arguments) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let last = arguments.strip_suffix(b"\0").unwrap_or(&arguments).rsplit(|byte| *byte == 0).next();
        if last == Some(wanted) && pid != std::process::id() {
            return Identity::of(pid);
        }
    }
    None
}

fn this_boot() -> u32 {
    static BOOT: OnceLock<u32> = OnceLock::new();
    *BOOT.get_or_init(|| {
        std::fs::read("/proc/sys/kernel/random/boot_id").map_or(0, |id| crc32fast::hash(id.trim_ascii()))
    })
}

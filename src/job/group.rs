//! The control group of a job: whatever starts in it stays in it, and is ended with it, however it forks.
//!
//! Version 2 of control groups where one is mounted (beside version 1 too: no controller is needed), else the freezer
//! of version 1. The group is made below that of the process itself, so it needs no more than the right to write there.
//! Where there is no group to be had, [`super::tree`] finds the processes by other signs.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// How long a group may take to be empty after its processes were killed.
const EMPTY: Duration = Duration::from_secs(5);

/// The leaf in which the daemon is where its group hands controllers down to those of the jobs.
pub const DAEMON: &str = "sower-daemon";

/// A control group that holds one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    directory: PathBuf,
}

impl Group {
    /// Makes a group with this name below the one that this process is in; `None` where the host has none or it may
    /// not be written.
    #[must_use]
    pub fn create(name: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        parents(&mounts, &own).into_iter().find_map(|parent| {
            let directory = parent.join(name);
            fs::create_dir(&directory).ok()?;
            let group = Self { directory };
            if group.usable() {
                Some(group)
            } else {
                group.remove();
                None
            }
        })
    }

    /// The group in a directory, as [`Group::directory`] told it.
    #[must_use]
    pub fn at(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn usable(&self) -> bool {
        let has = |file: &str| self.directory.join(file).exists();
        has("cgroup.procs") && (has("cgroup.kill") || has("cgroup.freeze") || has("freezer.state"))
    }

    /// Moves this process, with all its threads, into the group.
    ///
    /// # Errors
    /// When the kernel does not let it.
    pub fn enter(&self) -> io::Result<()> {
        move_here(&self.directory)
    }

    /// Moves this process out of the group, so that it can end what is left in there.
    ///
    /// # Errors
    /// When the kernel does not let it.
    pub fn leave(&self) -> io::Result<()> {
        let Some(parent) = self.directory.parent() else { return Ok(()) };
        // Where controllers are handed down, version 2 has processes in leaves only.
        let leaf = parent.join(DAEMON);
        if leaf.is_dir() {
            return move_here(&leaf);
        }
        match move_here(parent) {
            // A scope of this job's own, which has no daemon in it.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                fs::create_dir(&leaf)?;
                move_here(&leaf)
            }
            other => other,
        }
    }

    /// The processes in it and in the groups below it.
    #[must_use]
    pub fn processes(&self) -> Vec<Pid> {
        let mut found = Vec::new();
        for directory in self.all() {
            let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            found.extend(text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)));
        }
        found
    }

    /// Kills everything in it, at once and whatever it forks meanwhile. The calling process must not be in it.
    pub fn kill(&self) {
        if fs::write(self.directory.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        // Before Linux 5.14, and in version 1: what is frozen cannot fork.
        let all = self.all();
        let freeze = |frozen: bool| {
            for directory in &all {
                let _ = fs::write(directory.join("cgroup.freeze"), if frozen { "1" } else { "0" });
                let _ = fs::write(directory.join("freezer.state"), if frozen { "FROZEN" } else { "THAWED" });
            }
        };
        freeze(true);
        for pid in self.processes() {
            // It may have ended meanwhile.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        freeze(false);
    }

    /// Kills until nothing is left; false when something is after 5 s.
    #[must_use]
    pub fn end(&self) -> bool {
        let until = Instant::now() + EMPTY;
        while !self.processes().is_empty() {
            if Instant::now() >= until {
                return false;
            }
            self.kill();
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Removes the group and those below it. One that is not empty stays.
    pub fn remove(&self) {
        self.all().iter().rev().for_each(|directory| remove_empty(directory));
    }

    /// The group's directory and those below it, parents first.
    fn all(&self) -> Vec<PathBuf> {
        let mut all = vec![self.directory.clone()];
        let mut next = 0;
        while next < all.len() {
            for entry in fs::read_dir(&all[next]).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    all.push(entry.path());
                }
            }
            next += 1;
        }
        all
    }
}

/// Removes a group in which no process is left.
pub fn remove_empty(directory: &Path) {
    // The last process may be on its way out of the kernel still.
    for _ in 0..20 {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(Duration::from_millis(5));
            }
            _ => break,
        }
    }
}

/// The directory of this process's group in a controller of version 1, such as `memory`.
#[must_use]
pub fn controller(name: &str) -> Option<PathBuf> {
    places(
        &fs::read_to_string("/proc/self/mountinfo").ok()?,
        &fs::read_to_string("/proc/self/cgroup").ok()?,
        Some(name),
    )
    .into_iter()
    .next()
}

/// The directory of this process's group in version 2. For a process in the daemon's leaf it is the one above.
#[must_use]
pub fn unified() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    places(&mounts, &own, None).into_iter().next()
}

/// Whether this process is in the daemon's leaf.
#[must_use]
pub fn in_leaf() -> bool {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    own.lines().any(|line| line.strip_prefix("0::").is_some_and(|path| Path::new(path).ends_with(DAEMON)))
}

fn move_here(directory: &Path) -> io::Result<()> {
    // By its own number rather than 0: all threads are to go.
    fs::write(directory.join("cgroup.procs"), std::process::id().to_string())
}

/// Where a group can be made, the best place first: the directory of this process's group in version 2, then in the
/// freezer of version 1.
fn parents(mounts: &str, own: &str) -> Vec<PathBuf> {
    let mut found = places(mounts, own, None);
    found.extend(places(mounts, own, Some("freezer")));
    found
}

/// The directories of this process's group in version 2, or in a controller of version 1.
fn places(mounts: &str, own: &str, controller: Option<&str>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in mounts.lines() {
        // ID PARENT MAJOR:MINOR ROOT PLACE OPTIONS TAGS… - TYPE SOURCE SUPER-OPTIONS
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let ([_, _, _, root, place, ..], [kind, _, options, ..]) = (&left[..], &right[..]) else { continue };
        let wanted = match (*kind, controller) {
            ("cgroup2", None) => "",
            ("cgroup", Some(name)) if options.split(',').any(|option| option == name) => name,
            _ => continue,
        };
        let path = own.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            controllers.split(',').any(|one| one == wanted).then_some(path)
        });
        if let Some(directory) = path.and_then(|path| below(place, root, path)) {
            let leaf = controller.is_none() && directory.file_name().is_some_and(|name| name == DAEMON);
            found.push(if leaf { directory.parent().unwrap_or(&directory).to_owned() } else { directory });
        }
    }
    found
}

/// The directory of the group `path` in a hierarchy whose group `root` is mounted at `place`.
fn below(place: &str, root: &str, path: &str) -> Option<PathBuf> {
    let relative = Path::new(path).strip_prefix(root).ok()?;
    // A process outside of its own namespace's root is told so by `..`.
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    plain.then(|| Path::new(place).join(relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_group_is_found_in_every_layout() {
        let hybrid = "37 31 0:34 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        assert_eq!(
            parents(hybrid, "6:freezer:/a\n0::/b"),
            [Path::new("/sys/fs/cgroup/unified/b"), Path::new("/sys/fs/cgroup/freezer/a")]
        );
        let unified = "25 30 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(parents(unified, "0::/openrc.sower"), [Path::new("/sys/fs/cgroup/openrc.sower")]);
        let container = "25 30 0:22 /docker/x /sys/fs/cgroup ro - cgroup2 cgroup rw";
        assert_eq!(parents(container, "0::/docker/x/y"), [Path::new("/sys/fs/cgroup/y")]);
        assert!(parents(container, "0::/../z").is_empty());
        assert!(parents("", "").is_empty());
    }
}

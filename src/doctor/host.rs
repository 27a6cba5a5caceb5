//! The host: memory, swap, disks, control groups, clock, kernel.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, access, statvfs};

use super::report::Check;
use crate::archive::nix::store_directory;
use crate::config::Config;
use crate::job::group;
use crate::job::host::{Host, gibibytes};
use crate::limits::size::Size;

const ROOM: &str = "host";
/// A disk with less room than this, in bytes, cannot take a build.
const LEAST_FREE: u64 = 1 << 30;
/// Of a disk with fewer files left than this a build may take the last.
const LEAST_FILES: u64 = 50_000;
/// With less memory than this, a build of Haskell wants swap.
const SMALL: u64 = 6 << 30;
/// A clock before this (2025-01-01, in seconds since 1970) was never set.
const CLOCK_AT_LEAST: i64 = 1_735_689_600;

pub(super) fn examine(config: &Config) -> Vec<Check> {
    let mut checks = vec![system()];
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    checks.push(memory(config, &meminfo));
    checks.push(swap(&meminfo));
    for (what, place) in places(config) {
        checks.push(disk(config, what, &place));
        checks.extend(files(what, &place));
    }
    checks.push(groups(config));
    checks.push(clock());
    checks
}

fn system() -> Check {
    let host = Host::this();
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let seen = format!("{release}, {}, {} CPUs", host.system, host.cpus);
    let mut numbers = release.split(['.', '-']).filter_map(|part| part.parse::<u32>().ok());
    // pidfd_open came with 5.3; without it a process is known by number and start time alone.
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < (5, 3) => Check::odd(
            ROOM,
            "kernel",
            seen,
            "older than 5.3: ends of processes are polled for; a newer kernel is better",
        ),
        _ => Check::well(ROOM, "kernel", seen),
    }
}

/// A line of `/proc/meminfo` in bytes.
fn line(meminfo: &str, name: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn memory(config: &Config, meminfo: &str) -> Check {
    let (Some(total), available) = (line(meminfo, "MemTotal"), line(meminfo, "MemAvailable").unwrap_or(0))
    else {
        return Check::note(ROOM, "memory", "cannot be read (/proc/meminfo)");
    };
    // A control group around the daemon may leave it less.
    let total = Host::this().memory_limit.map_or(total, |limit| limit.min(total));
    let seen = format!("{} of {} available", gibibytes(available), gibibytes(total));
    let jobs = u64::from(config.runner.capacity);
    let heap = config.ghc.heap.as_deref().and_then(|heap| heap.parse::<Size>().ok()).map(|heap| heap.0);
    let wanted = config.limits.job.memory.or(heap).unwrap_or(0).saturating_mul(jobs);
    if wanted > total {
        let key = if config.limits.job.memory.is_some() { "limits.memory" } else { "ghc.heap" };
        return Check::odd(
            ROOM,
            "memory",
            format!("{seen}; {jobs} jobs may use {} by {key}", gibibytes(wanted)),
            format!(
                "in the configuration: runner: {{capacity: {}}}",
                (total / (wanted / jobs).max(1)).max(1)
            ),
        );
    }
    if total < SMALL && heap.is_none() {
        return Check::odd(
            ROOM,
            "memory",
            format!("{seen}; no heap ceiling for GHC"),
            format!("in the configuration: ghc: {{heap: {}m}}", (total * 6 / 10) >> 20),
        );
    }
    Check::well(ROOM, "memory", seen)
}

fn swap(meminfo: &str) -> Check {
    let total = line(meminfo, "SwapTotal").unwrap_or(0);
    let free = line(meminfo, "SwapFree").unwrap_or(0);
    let memory = line(meminfo, "MemTotal").unwrap_or(u64::MAX);
    if total == 0 && memory < SMALL {
        return Check::odd(
            ROOM,
            "swap",
            "none, and little memory: a build that needs a little more is killed",
            "fallocate -l 4G /swapfile && chmod 600 /swapfile && mkswap /swapfile && swapon /swapfile\n\
             and in /etc/fstab: /swapfile none swap sw 0 0",
        );
    }
    if total == 0 {
        return Check::note(ROOM, "swap", "none");
    }
    Check::well(ROOM, "swap", format!("{} of {} free", gibibytes(free), gibibytes(total)))
}

/// The places that jobs fill: what for, and where.
fn places(config: &Config) -> Vec<(&'static str, PathBuf)> {
    let mut places = vec![("jobs", config.state_dir().to_owned())];
    places.extend(config.host.workdir_parent.clone().map(|place| ("workspaces", place)));
    let store = store_directory();
    if store.is_dir() {
        places.push(("store", store));
    }
    places
}

/// The nearest folder that is there, for a place that is made when it is needed.
fn there(place: &Path) -> &Path {
    place.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"))
}

fn disk(config: &Config, what: &str, place: &Path) -> Check {
    let name = format!("disk for {what}");
    let Ok(disk) = statvfs(there(place)) else {
        return Check::bad(
            ROOM,
            name,
            format!("{} cannot be asked", place.display()),
            "mount it, or name another folder",
        );
    };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let total = disk.f_blocks.saturating_mul(disk.f_frsize);
    let seen = format!("{} of {} free at {}", gibibytes(free), gibibytes(total), place.display());
    let gate = config.housekeeping.min_free;
    if gate > 0 && what != "store" && free < gate {
        return Check::bad(
            ROOM,
            name,
            format!("{seen}; housekeeping.min_free asks for {}, so no task is fetched", gibibytes(gate)),
            "sower gc, or make room otherwise; Gitea keeps the tasks waiting",
        );
    }
    if free < LEAST_FREE {
        return Check::bad(
            ROOM,
            name,
            seen,
            "sower gc --dry-run shows what sower can free, sower gc frees it",
        );
    }
    if gate == 0 && what == "jobs" {
        return Check::odd(
            ROOM,
            name,
            format!("{seen}; tasks are fetched until nothing is left"),
            "in the configuration: housekeeping: {min_free: 5GiB}",
        );
    }
    Check::well(ROOM, name, seen)
}

fn files(what: &str, place: &Path) -> Option<Check> {
    let disk = statvfs(there(place)).ok()?;
    // File systems without a fixed number of files say 0.
    if disk.f_files == 0 {
        return None;
    }
    let name = format!("files for {what}");
    let seen = format!("{} of {} free", disk.f_favail, disk.f_files);
    Some(if disk.f_favail < LEAST_FILES {
        Check::bad(
            ROOM,
            name,
            seen,
            "a file system with more inodes (mkfs.ext4 -i 8192), or fewer files: sower gc",
        )
    } else {
        Check::well(ROOM, name, seen)
    })
}

fn groups(config: &Config) -> Check {
    let limits = config.limits.labels.values().fold(config.limits.job.clone(), |all, label| all.or(label));
    let writable = |place: &Path| access(place, Access::WRITE_OK).is_ok();
    let v2 = group::unified();
    let v1 = group::controller("memory");
    let remedy = "OpenRC: in /etc/rc.conf: rc_cgroup_mode=\"unified\"\nsystemd: in the unit: Delegate=yes";
    let check = |seen: String, enough: bool| match (enough, limits.is_none()) {
        (true, _) => Check::well(ROOM, "control groups", seen),
        (false, true) => Check::odd(
            ROOM,
            "control groups",
            format!("{seen}; leftovers of jobs are found otherwise"),
            remedy,
        ),
        (false, false) => {
            Check::bad(ROOM, "control groups", format!("{seen}; `limits` are not enforced"), remedy)
        }
    };
    match (&v2, &v1) {
        (Some(place), None) => {
            let controllers = std::fs::read_to_string(place.join("cgroup.controllers")).unwrap_or_default();
            let rights = if writable(place) { "groups can be made" } else { "no right to make groups" };
            let memory = controllers.split_ascii_whitespace().any(|one| one == "memory");
            check(
                format!("version 2, {rights} ({}), controllers: {}", place.display(), controllers.trim()),
                writable(place) && (memory || limits.is_none()),
            )
        }
        (_, Some(place)) => {
            let rights = if writable(place) { "groups can be made" } else { "no right to make groups" };
            let hybrid = if v2.is_some() { " (hybrid)" } else { "" };
            check(format!("version 1{hybrid}, {rights} ({})", place.display()), writable(place))
        }
        (None, None) => check("none mounted".to_owned(), false),
    }
}

fn clock() -> Check {
    let now = jiff::Timestamp::now();
    let seen = now.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
    if now.as_second() < CLOCK_AT_LEAST {
        return Check::bad(
            ROOM,
            "clock",
            seen,
            "set it and keep it set: apk add chrony && rc-update add chronyd && rc-service chronyd start",
        );
    }
    Check::well(ROOM, "clock", seen)
}

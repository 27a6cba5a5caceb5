//! The truth about an end: why a step failed, told from its last rows and from what the kernel counted.
//!
//! [`table`] holds the patterns, the first that fits counts; before it come what the kernel and our own watchdog did,
//! which no row tells, and the operator's own patterns. [`look`] says which file it was, where the rows do not.

mod look;
mod table;

use std::fmt;

pub use look::{Places, look};
pub use table::{Pattern, all as patterns, fits};

use crate::config::OwnCause;
use crate::limits::meter::Deaths;
use crate::limits::size::Size;

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// What happened.
    pub cause: String,
    /// What to do; empty when there is nothing to say.
    pub advice: String,
    /// What to look for, to say more.
    pub about: About,
}

/// What a cause is about: more can be said of it by looking at the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum About {
    /// Nothing that can be looked for.
    #[default]
    Other,
    /// A static archive.
    Archive,
    /// An interface file of GHC.
    Interface,
    /// A disk.
    Disk,
}

impl Diagnosis {
    fn of(cause: String, advice: &str) -> Self {
        Self { cause, advice: advice.to_owned(), about: About::Other }
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cause: {}.", self.cause)?;
        if !self.advice.is_empty() {
            write!(f, " {}.", self.advice)?;
        }
        Ok(())
    }
}

/// How the step's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, with this code.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

impl End {
    /// Whether it, or what a shell waited for, was killed by SIGKILL.
    #[must_use]
    pub fn is_kill(self) -> bool {
        matches!(self, Self::Exit(137) | Self::Signal(9))
    }
}

/// What there is to tell it from.
#[derive(Debug)]
pub struct Evidence<'e> {
    /// How the process ended.
    pub end: End,
    /// The last rows of the step.
    pub rows: &'e str,
    /// Why processes may have died.
    pub deaths: &'e Deaths,
    /// The heap ceiling that GHC had, if it had one.
    pub ceiling: Option<Size>,
    /// The operator's own patterns.
    pub own: &'e [OwnCause],
}

/// Finds out why a step failed; `None` where nothing is known.
#[must_use]
pub fn find(evidence: &Evidence<'_>) -> Option<Diagnosis> {
    let Evidence { end, rows, deaths, ceiling, own } = evidence;
    memory(*end, rows, deaths)
        .or_else(|| {
            own.iter().find_map(|own| {
                let held = table::last_row(rows, |row| fits(&own.pattern, row))?;
                Some(Diagnosis::of(table::fill(&own.cause, &held), &own.advice))
            })
        })
        .or_else(|| table::look(*end, rows, *ceiling))
        .or_else(|| {
            end.is_kill().then(|| {
                Diagnosis::of(
                    "a process was killed (SIGKILL, exit code 137), and neither the kernel's out-of-memory killer nor this \
                     runner did it"
                        .to_owned(),
                    "Something on the host did: an operator, a container engine, earlyoom or systemd-oomd; their logs tell",
                )
            })
        })
}

/// What the kernel or the watchdog did for memory.
fn memory(end: End, rows: &str, deaths: &Deaths) -> Option<Diagnosis> {
    if let Some(reason) = &deaths.watchdog {
        return Some(Diagnosis::of(
            reason.clone(),
            "Raise limits.memory, or let the step do less at a time (-j1, a lower heap ceiling)",
        ));
    }
    let killed = |count: u64| {
        let told: Vec<String> =
            deaths.victims.iter().take(3).map(super::limits::kernel_log::Victim::line).collect();
        match (told.is_empty(), &deaths.largest) {
            (false, _) => told.join(", "),
            (true, Some(largest)) => format!("{} (the largest was {largest})", processes(count)),
            (true, None) => processes(count),
        }
    };
    if deaths.at_the_cap > 0 {
        let (limit, peak) = deaths.cap.unwrap_or_default();
        let peak = peak.map(|peak| format!(", {} used", Size(peak))).unwrap_or_default();
        return Some(Diagnosis::of(
            format!(
                "out of memory: at this job's own limit of {}{peak}, the kernel killed {}",
                Size(limit),
                killed(deaths.at_the_cap)
            ),
            "Raise limits.memory in the runner's configuration, or let the step do less at a time (-j1, a heap ceiling for \
             GHC below the limit)",
        ));
    }
    // Elsewhere on the host it may have been anybody's process.
    let sign = end.is_kill() || rows.lines().any(|row| row.contains("Killed") || row.contains("signal 9"));
    let count = deaths.of_the_job + if sign { deaths.elsewhere } else { 0 };
    if count > 0 {
        let host = "because the whole host had no memory left".to_owned();
        let (place, of_host) = match (deaths.victims.first(), &deaths.parent) {
            (_, Some(parent)) => {
                (format!("at the limit of the control group {parent}, which this runner is in"), false)
            }
            (Some(victim), None) => match &victim.group {
                Some(group) => (format!("at the limit of the control group {group}"), false),
                None => (host, true),
            },
            (None, None) if deaths.of_the_job > 0 => (host, true),
            (None, None) => ("on this host".to_owned(), true),
        };
        let advice = if of_host {
            "Set limits.memory so that a job dies before the host does, let fewer jobs run at a time (runner.capacity), or \
             add memory or swap"
        } else {
            "That limit is not one of this runner's: raise it where it is set (systemd: MemoryMax= of the service; a \
             container engine: its memory option), or set limits.memory below it"
        };
        return Some(Diagnosis::of(
            format!("out of memory: the kernel killed {} {place}", killed(count)),
            advice,
        ));
    }
    if deaths.refused > 0 && end != End::Exit(0) {
        return Some(Diagnosis::of(
            format!("{} times a process could not be started because of limits.pids", deaths.refused),
            "Raise limits.pids, or look for what starts so many",
        ));
    }
    None
}

fn processes(count: u64) -> String {
    if count == 1 { "1 process".to_owned() } else { format!("{count} processes") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(end: End, rows: &str, deaths: &Deaths) -> String {
        find(&Evidence { end, rows, deaths, ceiling: None, own: &[] })
            .map(|d| d.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn who_killed_is_told_apart() {
        let capped = Deaths {
            at_the_cap: 1,
            cap: Some((64 << 20, Some(64 << 20))),
            largest: Some("python3 (pid 5, 60 MiB)".to_owned()),
            ..Deaths::default()
        };
        insta::assert_snapshot!(said(End::Exit(137), "", &capped), @"Cause: out of memory: at this job's own limit of 64 MiB, 64 MiB used, the kernel killed 1 process (the largest was python3 (pid 5, 60 MiB)). Raise limits.memory in the runner's configuration, or let the step do less at a time (-j1, a heap ceiling for GHC below the limit).");
        let victim =
            crate::limits::kernel_log::Victim { pid: 9, name: "ld".into(), had: Some(3 << 30), group: None };
        let host = Deaths { elsewhere: 1, victims: vec![victim], ..Deaths::default() };
        assert!(
            said(End::Exit(2), "collect2: fatal error: ld terminated with signal 9 [Killed]", &host)
                .contains("killed ld (pid 9, 3 GiB) because the whole host")
        );
        assert_eq!(said(End::Exit(2), "error: no such file", &host), "");
        let above = Deaths {
            of_the_job: 1,
            parent: Some("/sys/fs/cgroup/a (limit 100 MiB)".to_owned()),
            cap: Some((1 << 30, Some(90 << 20))),
            ..Deaths::default()
        };
        insta::assert_snapshot!(said(End::Exit(1), "", &above), @"Cause: out of memory: the kernel killed 1 process at the limit of the control group /sys/fs/cgroup/a (limit 100 MiB), which this runner is in. That limit is not one of this runner's: raise it where it is set (systemd: MemoryMax= of the service; a container engine: its memory option), or set limits.memory below it.");
        assert!(said(End::Signal(9), "", &Deaths::default()).contains("neither the kernel's"));
        let own = Deaths { watchdog: Some("it stood still".to_owned()), ..Deaths::default() };
        assert!(said(End::Exit(1), "", &own).starts_with("Cause: it stood still."));
    }

    #[test]
    fn own_patterns_come_before_the_built_in_ones() {
        let own = [OwnCause {
            pattern: "licence * of *".into(),
            cause: "no licence {1}".into(),
            advice: "Ring Ada".into(),
        }];
        let deaths = Deaths::default();
        let rows = "No space left on device\nlicence 7 of 9 is taken\n";
        let found = find(&Evidence { end: End::Exit(1), rows, deaths: &deaths, ceiling: None, own: &own });
        assert_eq!(found.unwrap().to_string(), "Cause: no licence 7. Ring Ada.");
    }
}

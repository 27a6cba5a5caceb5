//! A ceiling for GHC's heap, and the one that is in force in a process.

use super::process;
use super::size::Size;
use crate::config::Ghc;

/// Below this GHC does not start, or hangs without a word.
const LEAST_HEAP: Size = Size(32 << 20);
/// The least allocation area that the run-time system takes.
const LEAST_AREA: Size = Size(8192);

/// What GHC may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Ceiling {
    /// The most that its heap may grow to (`-M`).
    pub heap: Size,
    /// The nursery of each capability (`-A`).
    pub allocation_area: Size,
    /// Modules compiled at a time (`-j`), if that is to be set.
    pub jobs: Option<u32>,
    /// The options stand last on the command line, where they beat those that a build passes itself.
    pub enforce: bool,
}

/// Why GHC would not run under a ceiling.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCeiling {
    /// The heap is too small for GHC itself.
    #[error("a heap of {0} is too small: GHC itself needs at least {LEAST_HEAP}")]
    Heap(Size),
    /// The area is smaller than the run-time system takes.
    #[error("an allocation area of {0} is too small: GHC refuses less than {LEAST_AREA}")]
    Area(Size),
    /// The area does not leave room in the heap.
    #[error("an allocation area of {area} does not fit into a heap of {heap}; a 16th of it is usual")]
    AreaOverHeap {
        /// The area.
        area: Size,
        /// The heap.
        heap: Size,
    },
    /// Nothing can be compiled by nobody.
    #[error("0 jobs compile nothing; give 1 or more")]
    Jobs,
}

impl Ceiling {
    /// The ceiling that a configuration asks for; `None` when it asks for none.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of(ghc: &Ghc) -> Result<Option<Self>, String> {
        let size =
            |key: &str, text: &str| text.parse::<Size>().map_err(|error| format!("ghc.{key}: {error}"));
        let Some(heap) = &ghc.heap else { return Ok(None) };
        let heap = size("heap", heap)?;
        let allocation_area = match &ghc.allocation_area {
            Some(area) => size("allocation_area", area)?,
            None => Size((32 << 20).min(heap.0 / 16)),
        };
        let ceiling = Self { heap, allocation_area, jobs: ghc.jobs, enforce: ghc.enforce };
        ceiling.check().map_err(|problem| format!("ghc: {problem}"))?;
        Ok(Some(ceiling))
    }

    /// For people: `heap ceiling 2 GiB, allocation area 32 MiB`.
    #[must_use]
    pub fn line(&self) -> String {
        let jobs = match self.jobs {
            Some(1) => ", 1 module at a time".to_owned(),
            Some(jobs) => format!(", {jobs} modules at a time"),
            None => String::new(),
        };
        let enforced = if self.enforce { ", enforced" } else { "" };
        format!("heap ceiling {}, allocation area {}{jobs}{enforced}", self.heap, self.allocation_area)
    }

    /// What is odd about it on this host, under the limit of a job if there is one.
    #[must_use]
    pub fn warnings(&self, limit: Option<u64>) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(memory) = process::host_memory().filter(|memory| self.heap.0 > *memory) {
            warnings.push(format!(
                "a heap of {} is more than this host's memory of {}",
                self.heap,
                Size(memory)
            ));
        }
        if let Some(limit) = limit.filter(|limit| self.heap.0 > *limit) {
            warnings.push(format!(
                "a heap of {} is more than the job's limit of {}: the kernel would end GHC before its own ceiling does",
                self.heap,
                Size(limit)
            ));
        }
        warnings
    }

    /// Checks that GHC can run under this ceiling.
    ///
    /// # Errors
    /// When it cannot: see [`BadCeiling`].
    pub fn check(&self) -> Result<(), BadCeiling> {
        if self.heap < LEAST_HEAP {
            return Err(BadCeiling::Heap(self.heap));
        }
        if self.allocation_area < LEAST_AREA {
            return Err(BadCeiling::Area(self.allocation_area));
        }
        if self.allocation_area.0 > self.heap.0 / 2 {
            return Err(BadCeiling::AreaOverHeap { area: self.allocation_area, heap: self.heap });
        }
        if self.jobs == Some(0) {
            return Err(BadCeiling::Jobs);
        }
        Ok(())
    }
}

/// What a GHC process runs under.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InForce {
    /// Its heap ceiling, if it has one.
    pub heap: Option<Size>,
    /// Its allocation area, if it was set.
    pub allocation_area: Option<Size>,
}

/// Reads the options in force as the run-time system does: GHCRTS first, then the command line, and of each
/// option the last. `environment` and `arguments` are as `/proc` has them, each entry ended by a NUL.
///
/// Source: `setupRtsFlags` in GHC's `RtsFlags.c`. `--RTS` and `--` end the reading of the command line.
#[must_use]
pub fn in_force(environment: &[u8], arguments: &[u8]) -> InForce {
    let mut found = InForce::default();
    let variable = environment.split(|&byte| byte == 0).find_map(|entry| entry.strip_prefix(b"GHCRTS="));
    for word in variable.unwrap_or_default().split(u8::is_ascii_whitespace) {
        take(&mut found, word);
    }
    let mut reading = false;
    for argument in arguments.split(|&byte| byte == 0).skip(1) {
        match argument {
            b"--RTS" | b"--" => break,
            b"+RTS" => reading = true,
            b"-RTS" => reading = false,
            option if reading => take(&mut found, option),
            _ => {}
        }
    }
    found
}

fn take(found: &mut InForce, option: &[u8]) {
    // A size that the run-time system refuses stops the process at once: it changes nothing here.
    if let Some(heap) = option.strip_prefix(b"-M").and_then(Size::as_the_run_time_system_reads) {
        found.heap = Some(heap);
    } else if let Some(area) = option.strip_prefix(b"-A").and_then(Size::as_the_run_time_system_reads) {
        found.allocation_area = Some(area);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heap(environment: &str, arguments: &str) -> Option<u64> {
        let environment = format!("PATH=/bin\0{environment}\0");
        let arguments = arguments.split(' ').map(|word| format!("{word}\0")).collect::<String>();
        in_force(environment.as_bytes(), arguments.as_bytes()).heap.map(|size| size.0 >> 20)
    }

    #[test]
    fn the_last_option_wins_and_the_command_line_comes_last() {
        assert_eq!(heap("GHCRTS=-A32m -M2g", "ghc --make Main.hs"), Some(2048));
        assert_eq!(heap("GHCRTS=-M2g -M1g", "ghc"), Some(1024));
        assert_eq!(heap("GHCRTS=-M2g", "ghc +RTS -M3g -RTS Main.hs"), Some(3072));
        assert_eq!(heap("", "ghc +RTS -A128m -M100m -RTS x +RTS -M200m"), Some(200));
        assert_eq!(heap("GHCRTS=-A1m", "ghc -M2g"), None);
        assert_eq!(heap("XGHCRTS=-M2g", "ghc"), None);
        assert_eq!(heap("GHCRTS=-M2g", "ghc +RTS -M50% -M -M2gb -M0 -M-1g"), Some(2048));
        assert_eq!(heap("GHCRTS=-M2e9", "ghc +RTS -M0x10000000 -RTS"), Some(256));
    }

    #[test]
    fn options_behind_the_end_marks_are_the_programs_own() {
        assert_eq!(heap("", "ghc --RTS +RTS -M1g"), None);
        assert_eq!(heap("", "ghc -- +RTS -M1g"), None);
        assert_eq!(heap("", "+RTS -M1g"), None);
    }

    #[test]
    fn refuses_ceilings_that_ghc_cannot_run_under() {
        let ceiling = |heap: u64, area: u64| {
            Ceiling { heap: Size(heap), allocation_area: Size(area), jobs: None, enforce: false }.check()
        };
        assert_eq!(ceiling(2 << 30, 32 << 20), Ok(()));
        assert!(matches!(ceiling(4096, 8192), Err(BadCeiling::Heap(_))));
        assert!(matches!(ceiling(2 << 30, 100), Err(BadCeiling::Area(_))));
        assert!(matches!(ceiling(1 << 30, 1 << 30), Err(BadCeiling::AreaOverHeap { .. })));
    }
}

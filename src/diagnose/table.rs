//! Patterns in the last rows of a failed step, what they mean, and what to do.

use super::{About, Diagnosis, End};
use crate::limits::size::Size;

/// A line of the table. In patterns `*` stands for anything; the texts may name what it stood for as `{1}`, `{2}` and
/// `{ceiling}`, GHC's heap ceiling.
#[derive(Debug, Clone, Copy)]
pub struct Pattern {
    /// All of these are in the rows, each in one of them; what the first one's `*` stood for is kept.
    pub rows: &'static [&'static str],
    /// The exit code must be this.
    pub code: Option<i32>,
    /// What happened.
    pub cause: &'static str,
    /// What to do.
    pub advice: &'static str,
}

const fn row(pattern: &'static [&'static str], cause: &'static str, advice: &'static str) -> Pattern {
    Pattern { rows: pattern, code: None, cause, advice }
}

const CEILING: &str =
    "GHC reached its own heap ceiling{ceiling} (-M); neither the kernel nor a bug of GHC ended it";
/// A cut interface has been seen to make GHC 9.0 ask for more than there is, which it takes for an overflow.
const UNSET: &str = " (none that this runner set: one in GHCRTS or in the build's own +RTS -M, or else a damaged .hi file that \
                     has GHC ask for absurd room)";
const RAISE: &str = "Raise the ceiling if the host has memory left, compile fewer modules at a time (-j1), use a smaller \
                     allocation area (-A), or split the module that GHC was at";
const ARCHIVE: &str =
    "Find the file with `sower archive check`, mend it with `sower archive patch`, or have it built again";
const INTERFACE: &str = "Remove the .hi files of the build and compile again; where one is beyond 274 MB, split its module or export \
                         names instead of whole modules (`module M` in an export list takes in all of M)";
const DISK: &str =
    "Free some: `nix-collect-garbage`, old workspaces, the registry; `df -h` and `df -i` tell which is full";
const MEMORY: &str = "The host, a control group or a limit of the process (ulimit -v, ulimit -d) had no more to give; let it do less \
                      at a time, or give it more";

/// The first that fits counts: what is surer stands first.
const TABLE: &[Pattern] = &[
    // GHC 9.0 takes it for a panic, newer ones say it and leave with 251 (EXIT_HEAPOVERFLOW in rts/RtsUtils.h).
    row(&["heap overflow"], CEILING, RAISE),
    row(&["Heap exhausted;"], CEILING, RAISE),
    row(&["*: Heap exhausted"], CEILING, RAISE),
    Pattern { rows: &["*"], code: Some(251), cause: CEILING, advice: RAISE },
    row(
        &["Most RTS options are disabled"],
        "GHCRTS is set for the whole job, and a Haskell program that is linked without -rtsopts refuses to run with it",
        "Remove GHCRTS from the job and set the ceiling with `ghc.heap` of the configuration or sower/ghc-caps@v1: it \
         reaches GHC alone",
    ),
    row(
        &["error in RTS option *"],
        "GHC refuses a run-time option: {1}",
        "Sizes are a number and k, m or g, such as -M2g",
    ),
    row(
        &["Unable to commit * bytes of memory"],
        "GHC's run-time system was refused {1} more bytes of memory, below its own ceiling",
        MEMORY,
    ),
    row(
        &["unable to allocate memory (requested * bytes)"],
        "GHC's run-time system was refused memory ({1} bytes), below its own ceiling",
        MEMORY,
    ),
    // Truncated archives: every reader says it in its own way.
    row(
        &["Data.Binary.Get.runGet at position *: not enough bytes"],
        "GHC's own reader of archives (-staticlib) met the end of a static archive in the middle of a member: a .a file is \
         truncated (a member's content begins at byte {1} of it)",
        ARCHIVE,
    ),
    row(
        &["Bad interface file: *"],
        "GHC cannot read the interface file {1}: it is cut, damaged or of another GHC",
        INTERFACE,
    ),
    row(
        &["Binary.readBinMem: only read * bytes"],
        "GHC could not read an interface file (.hi) to its end ({1} bytes of it)",
        INTERFACE,
    ),
    row(
        &["ghc: panic!", "Ix{Int}.index: Index "],
        "GHC met a number out of range in what it read, most likely in an interface file (.hi) that is cut or damaged",
        INTERFACE,
    ),
    row(
        &["ghc: panic!", "toEnum: bad argument"],
        "GHC met a number out of range in what it read, most likely in an interface file (.hi) that is cut or damaged",
        INTERFACE,
    ),
    row(
        &["*: attempt to map * bytes at offset * exceeds size of file; the file may be corrupt"],
        "the linker (gold) found a file truncated: {1}",
        ARCHIVE,
    ),
    row(
        &["internal error in find_view, at *fileread.cc"],
        "the linker (gold) was to read beyond the end of a file, most likely a truncated archive; it does not say which",
        ARCHIVE,
    ),
    row(&["*: * is not a valid archive"], "an archive is truncated or damaged: {2}", ARCHIVE),
    row(&["error adding symbols: file truncated"], "the linker (ld) found a file truncated", ARCHIVE),
    row(&["error: *: file too short"], "the linker (ld) found a file truncated: {1}", ARCHIVE),
    row(&["*: file truncated"], "a program found a file truncated: {1}", ARCHIVE),
    row(&["error adding symbols: malformed archive"], "the linker (ld) found an archive damaged", ARCHIVE),
    row(&["*: malformed archive"], "a program found an archive damaged: {1}", ARCHIVE),
    row(
        &["error: *: failed to parse archive: "],
        "the linker (lld) found an archive truncated or damaged: {1}",
        ARCHIVE,
    ),
    row(
        &["truncated or malformed archive"],
        "the linker (lld) found an archive truncated or damaged",
        ARCHIVE,
    ),
    row(
        &["ld.lld: error: *: invalid sh_type for string table"],
        "the linker (lld) found {1} cut: the end of the object is not there",
        ARCHIVE,
    ),
    row(
        &["*: error adding symbols: no more archived files"],
        "the linker (ld) found an archive cut before its first member: {1}",
        ARCHIVE,
    ),
    row(
        &["loadArchive: error whilst reading `*'"],
        "GHC's own linker (Template Haskell, GHCi) met the end of a static archive in the middle of a member: {1}",
        ARCHIVE,
    ),
    row(&["loadArchive: *"], "GHC's own linker could not load a static archive: {1}", ARCHIVE),
    row(&["loadArchive \"*\": failed"], "GHC's own linker could not load the static archive {1}", ARCHIVE),
    row(
        &["*: file format not recognized; treating as linker script"],
        "the linker does not know {1} as an archive: its begin is damaged",
        ARCHIVE,
    ),
    row(&["No space left on device"], "no space is left on a disk", DISK),
    row(&["Disk quota exceeded"], "a disk quota is used up", DISK),
    row(
        &["File size limit exceeded"],
        "a file reached the limit of the process for its size (ulimit -f)",
        "Raise it",
    ),
    // Memory that a program asked for and was refused: no kill, but the program's own end.
    row(&["std::bad_alloc"], "a C++ program was refused memory (std::bad_alloc)", MEMORY),
    row(&["virtual memory exhausted"], "a program was refused memory", MEMORY),
    row(&["out of memory allocating * bytes"], "the C compiler was refused {1} bytes of memory", MEMORY),
    row(&["memory allocation of * bytes failed"], "a Rust program was refused {1} bytes of memory", MEMORY),
    row(
        &["JavaScript heap out of memory"],
        "a JavaScript program reached its heap limit",
        "Raise it with NODE_OPTIONS=--max-old-space-size=MIB",
    ),
    row(&["java.lang.OutOfMemoryError"], "a Java program reached its heap limit", "Raise it with -Xmx"),
    row(&["MemoryError"], "a Python program was refused memory (MemoryError)", MEMORY),
    row(&["memory exhausted"], "a program was refused memory", MEMORY),
    row(&["Cannot allocate memory"], "a program was refused memory", MEMORY),
    row(
        &["fork: *Resource temporarily unavailable"],
        "no further process could be started",
        "limits.pids, ulimit -u or the kernel's pid_max is reached; look for what starts so many",
    ),
    row(
        &["Too many open files"],
        "a program reached its limit of open files (ulimit -n)",
        "Raise it, or look for what opens so many",
    ),
];

/// The table, for those who write it down.
#[must_use]
pub fn all() -> &'static [Pattern] {
    TABLE
}

/// The rows by which the table knows a cause.
pub(super) fn look(end: End, rows: &str, ceiling: Option<Size>) -> Option<Diagnosis> {
    TABLE.iter().find_map(|pattern| {
        if pattern.code.is_some_and(|code| end != End::Exit(code)) {
            return None;
        }
        let (first, others) = pattern.rows.split_first()?;
        let held = last_row(rows, |row| fits(first, row)).or_else(|| (*first == "*").then(Vec::new))?;
        let all = others.iter().all(|other| last_row(rows, |row| fits(other, row)).is_some());
        all.then(|| {
            let of = ceiling.map(|ceiling| format!(" of {ceiling}")).unwrap_or_default();
            let about = match pattern.advice {
                ARCHIVE => About::Archive,
                INTERFACE => About::Interface,
                DISK => About::Disk,
                _ => About::Other,
            };
            let mut cause = fill(pattern.cause, &held).replace("{ceiling}", &of);
            if pattern.cause == CEILING && ceiling.is_none() {
                cause.push_str(UNSET);
            }
            Diagnosis { cause, advice: pattern.advice.to_owned(), about }
        })
    })
}

/// What the last row that fits holds.
pub(super) fn last_row(rows: &str, fits: impl Fn(&str) -> Option<Vec<String>>) -> Option<Vec<String>> {
    rows.lines().rev().find_map(fits)
}

/// Whether a row holds the parts of a pattern in this order; what each `*` stood for, at most 200 characters each.
#[must_use]
pub fn fits(pattern: &str, row: &str) -> Option<Vec<String>> {
    let mut parts = pattern.split('*');
    let mut held = Vec::new();
    let first = parts.next()?;
    let mut rest = &row[row.find(first)? + first.len()..];
    // What stands before a pattern is of no account, so one that begins with `*` holds the row's begin.
    for part in parts {
        let at = if part.is_empty() { rest.len() } else { rest.find(part)? };
        let text = rest[..at].trim();
        held.push(text.chars().take(200).collect());
        rest = &rest[at + part.len()..];
    }
    Some(held)
}

/// Puts what was held in the place of `{1}`, `{2}` and so on.
pub(super) fn fill(text: &str, held: &[String]) -> String {
    held.iter()
        .enumerate()
        .fold(text.to_owned(), |text, (index, held)| text.replace(&format!("{{{}}}", index + 1), held))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(code: i32, rows: &str) -> String {
        look(End::Exit(code), rows, Some(Size(2 << 30))).map(|found| found.cause).unwrap_or_default()
    }

    #[test]
    fn patterns_fit_in_order_and_hold_what_they_skip() {
        assert_eq!(fits("a * b * c", "x a 1 b 22 c y"), Some(vec!["1".to_owned(), "22".to_owned()]));
        assert_eq!(
            fits("at position *: not", "runGet at position 287686318: not enough"),
            Some(vec!["287686318".to_owned()])
        );
        assert_eq!(fits("a*b", "b a"), None);
        assert_eq!(fits("rest *", "the rest is here"), Some(vec!["is here".to_owned()]));
    }

    #[test]
    fn the_rows_of_ghc_are_known() {
        // GHC 9.0.2.
        let panic = "ghc: panic! (the 'impossible' happened)\n  (GHC version 9.0.2:\n\theap overflow\n\nPlease report this as a GHC bug";
        assert!(
            cause(1, panic).starts_with("GHC reached its own heap ceiling of 2 GiB"),
            "{}",
            cause(1, panic)
        );
        // GHC 9.10.
        let exhausted = "ghc: Heap exhausted;\nghc: Current maximum heap size is 104857600 bytes (100 MB).\nghc: Use `+RTS -M<size>' to increase it.";
        assert!(cause(251, exhausted).starts_with("GHC reached"));
        assert!(cause(251, "").starts_with("GHC reached"));
        assert_eq!(cause(1, "Main.hs:1:1: error: parse error"), "");
        let damaged = "ghc: panic! (the 'impossible' happened)\n  (GHC version 9.0.2:\n\tIx{Int}.index: Index (0) out of range ((0,-1))\n";
        assert!(cause(1, damaged).contains("an interface file (.hi) that is cut"), "{}", cause(1, damaged));
        let unset = look(End::Exit(1), panic, None).map(|found| found.cause).unwrap_or_default();
        assert!(unset.contains("none that this runner set") && unset.contains(".hi file"), "{unset}");
    }
}

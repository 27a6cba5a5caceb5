//! Nix as a job meets it: whose children its builders are, which commands build, and by which way a ceiling gets into
//! a build.

use std::ffi::OsString;
use std::path::PathBuf;

use rustix::fs::{Access, access};

use super::ceiling::Ceiling;
use super::cover;
use super::derivations::{self, Asked};
use super::launcher;
use super::process;
use super::programs;
use super::run::BUILDERS_OF_THE_DAEMON;
use crate::archive::nix::store_directory;

/// Options of Nix that take this many words behind them.
const WITH_VALUES: &[(&str, usize)] = &[
    ("--option", 2),
    ("--arg", 2),
    ("--argstr", 2),
    ("--override-input", 2),
    ("--override-flake", 2),
    ("--extra-experimental-features", 1),
    ("--experimental-features", 1),
    ("--log-format", 1),
    ("--max-jobs", 1),
    ("--cores", 1),
    ("--store", 1),
    ("--eval-store", 1),
    ("--out-link", 1),
    ("--profile", 1),
    ("--file", 1),
    ("--expr", 1),
    ("--include", 1),
    ("--builders", 1),
    ("--substituters", 1),
    ("--extra-substituters", 1),
    ("--trusted-public-keys", 1),
    ("--timeout", 1),
    ("--max-silent-time", 1),
    ("--inputs-from", 1),
    ("--update-input", 1),
    ("--reference-lock-file", 1),
    ("--output-lock-file", 1),
    ("--attr", 1),
    ("--add-root", 1),
    ("-j", 1),
    ("-o", 1),
    ("-f", 1),
    ("-I", 1),
    ("-A", 1),
    ("-E", 1),
];

/// Whether Nix hands its builds to a daemon: then the builders are not ours. Nix's own rule: what `NIX_REMOTE` says, else
/// whether the state directory is ours to write.
#[must_use]
pub fn builders_are_the_daemons() -> bool {
    are_the_daemons(&std::env::var("NIX_REMOTE").unwrap_or_default())
}

/// The same where `remote` is what `NIX_REMOTE` will be.
#[must_use]
pub fn are_the_daemons(remote: &str) -> bool {
    match remote {
        "" | "auto" => {}
        other => return other == "daemon" || other.starts_with("unix://"),
    }
    let state =
        std::env::var_os("NIX_STATE_DIR").map_or_else(|| PathBuf::from("/nix/var/nix"), PathBuf::from);
    access(&state, Access::READ_OK | Access::WRITE_OK).is_err() && state.join("daemon-socket/socket").exists()
}

/// Whether a nix-daemon of this host runs under a ceiling (`sower ghc run`), as far as this user may see it.
#[must_use]
pub fn daemon_has_ceiling() -> bool {
    let stats = process::all().into_iter().filter_map(process::stat);
    stats.filter(|stat| stat.name == "nix-daemon").any(|daemon| {
        let above = process::arguments(daemon.parent).unwrap_or_default();
        let words: Vec<&[u8]> = above.split(|&byte| byte == 0).collect();
        words.windows(2).any(|pair| pair == [&b"ghc"[..], b"run"])
    })
}

/// What a command line of Nix builds, as words for another command of Nix; `None` when it builds nothing. `arguments` has
/// no program's name.
#[must_use]
pub fn builds(arguments: &[OsString]) -> Option<Vec<OsString>> {
    let mut words = arguments.iter();
    let mut installables = Vec::new();
    let mut kept = Vec::new();
    let mut command = false;
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        if !text.starts_with('-') {
            if command {
                installables.push(word.clone());
            } else if text == "build" {
                command = true;
            } else {
                return None;
            }
            continue;
        }
        // Somebody has a use of its own for what Nix says, or nothing is built.
        if matches!(&*text, "--log-format" | "--help" | "--dry-run" | "--version") {
            return None;
        }
        let values = WITH_VALUES.iter().find(|(option, _)| *option == text).map_or(0, |(_, values)| *values);
        // What changes the answer to the question what would be built.
        let matters = matches!(
            &*text,
            "--impure"
                | "--arg"
                | "--argstr"
                | "--override-input"
                | "--file"
                | "-f"
                | "--expr"
                | "--option"
                | "--store"
        ) || text.ends_with("experimental-features");
        let values: Vec<OsString> = words.by_ref().take(values).cloned().collect();
        if matters {
            kept.push(word.clone());
            kept.extend(values);
        }
    }
    command.then(|| kept.into_iter().chain(installables).collect())
}

/// By which way the ceiling reaches the GHCs of a build, told before it begins. `question` is what [`builds`] gave.
#[must_use]
pub fn way(question: &[OsString], ceiling: &Ceiling) -> String {
    let covered = || {
        let compilers = programs::in_store(&store_directory());
        // Those that are scripts lead to others, perhaps outside of the store.
        let behind = compilers.iter().flat_map(|compiler| programs::behind(compiler));
        compilers.iter().cloned().chain(behind).any(|compiler| {
            !cover::is_open(&compiler) || compiler.to_string_lossy().ends_with(launcher::ORIGINAL)
        })
    };
    match derivations::ask(question) {
        Ok(asked) => told(&asked, ceiling, builders_are_the_daemons(), covered()),
        // Nix says it itself in a moment, and better.
        Err(_) => "Heap ceiling: what will be built is not known before Nix begins".to_owned(),
    }
}

fn told(asked: &Asked, ceiling: &Ceiling, daemon: bool, covered: bool) -> String {
    let waiting: Vec<_> = asked.with_ghc.iter().filter(|derivation| !derivation.built).collect();
    if waiting.is_empty() {
        return format!(
            "Heap ceiling: none of the {} derivations that are still to be built runs GHC",
            asked.waiting
        );
    }
    let carry = |heap: &Option<super::size::Size>| heap.is_some_and(|heap| heap <= ceiling.heap);
    let carrying = waiting.iter().filter(|derivation| carry(&derivation.heap)).count();
    let runs = format!(
        "{} of {} derivations that are still to be built {} GHC, {carrying} of them with a ceiling in GHCRTS",
        waiting.len(),
        asked.waiting,
        if waiting.len() == 1 { "runs" } else { "run" },
    );
    let way = if carrying == waiting.len() {
        "the derivations carry it".to_owned()
    } else if daemon {
        format!("it does not reach the others. {BUILDERS_OF_THE_DAEMON}")
    } else if covered {
        "launchers in private mounts set it for the GHCs of the store, and no hash changes".to_owned()
    } else {
        "no launcher stands in front of a GHC of the store: the others run without".to_owned()
    };
    format!("Heap ceiling: {runs}; {way}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::derivations::Derivation;
    use crate::limits::size::Size;

    fn built(line: &str) -> Option<String> {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let found = builds(&words)?;
        Some(found.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn what_builds_is_told_from_what_does_not() {
        assert_eq!(built("build .#docker").as_deref(), Some(".#docker"));
        assert_eq!(
            built("--extra-experimental-features nix-command build -L --max-jobs 1 .#a .#b --impure")
                .as_deref(),
            Some("--extra-experimental-features nix-command --impure .#a .#b")
        );
        assert_eq!(built("build"), Some(String::new()));
        for other in
            ["eval .#build", "run .#build build", "build --dry-run", "--log-format raw build x", "--version"]
        {
            assert_eq!(built(other), None, "{other}");
        }
    }

    #[test]
    fn the_way_is_told() {
        let ceiling =
            Ceiling { heap: Size(2 << 30), allocation_area: Size(32 << 20), jobs: None, enforce: false };
        let derivation = |heap, built| Derivation { name: "app".to_owned(), heap, built };
        let asked = |with_ghc: Vec<Derivation>| Asked { all: 9, waiting: 3, with_ghc };
        let open = asked(vec![
            derivation(None, false),
            derivation(Some(Size(1 << 30)), false),
            derivation(None, true),
        ]);
        insta::assert_snapshot!(told(&open, &ceiling, false, true), @"Heap ceiling: 2 of 3 derivations that are still to be built run GHC, 1 of them with a ceiling in GHCRTS; launchers in private mounts set it for the GHCs of the store, and no hash changes");
        assert!(told(&open, &ceiling, true, true).contains("nix-daemon"));
        assert!(told(&open, &ceiling, false, false).ends_with("the others run without"));
        let carried = asked(vec![derivation(Some(Size(2 << 30)), false)]);
        assert!(told(&carried, &ceiling, true, false).ends_with("the derivations carry it"));
        assert!(told(&asked(vec![derivation(None, true)]), &ceiling, false, true).contains("none of the 3"));
    }
}

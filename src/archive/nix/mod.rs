//! The Nix store: what it knows of a path, what is in a closure, what it can do for a path of its own.
//!
//! | Module | Holds |
//! | --- | --- |
//! | [`known`] | size and hash of a store path by Nix's own book (`nix path-info`) |
//! | [`closure`] | the store paths that a build needs, and the archives in them |
//! | [`joins`] | derivations that join static libraries |
//! | [`links`] | the hard links that `nix-store --optimise` makes |

pub mod closure;
pub mod joins;
pub mod known;
pub(super) mod links;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where the store is unless the environment says otherwise.
const STORE: &str = "/nix/store";

/// The store's directory (`NIX_STORE_DIR`, else `/nix/store`).
#[must_use]
pub fn store_directory() -> PathBuf {
    std::env::var_os("NIX_STORE_DIR").map_or_else(|| PathBuf::from(STORE), PathBuf::from)
}

/// The store path (`/nix/store/<hash>-<name>`) that `path` is or lies in.
#[must_use]
pub fn store_path(path: &Path) -> Option<PathBuf> {
    let store = store_directory();
    let inside = path.strip_prefix(&store).ok()?;
    let first = inside.components().next()?;
    let name = first.as_os_str().to_str()?;
    // 32 digits of the hash and a dash; `.links` and the like are no store paths.
    (name.len() > 33 && name.as_bytes().get(32) == Some(&b'-')).then(|| store.join(name))
}

/// A `nix` command with the switches that make the new command line available.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new("nix");
    command.args(["--extra-experimental-features", "nix-command flakes"]).args(arguments);
    command
}

/// Brings a store path back from the configured substituters, whole and checked by Nix against its hash.
///
/// # Errors
/// What Nix said, or why it could not be started.
pub fn repair(store_path: &Path) -> Result<(), String> {
    let output = command(&["store", "repair"])
        .arg(store_path)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("nix could not be started: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("`nix store repair {}` failed: {}", store_path.display(), last_words(&output.stderr)))
}

/// The last lines that a program said.
pub(crate) fn last_words(stderr: &[u8]) -> String {
    let said = String::from_utf8_lossy(stderr);
    let mut last: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).rev().take(3).collect();
    last.reverse();
    last.join(" / ")
}

/// Runs a program and gives what it says on stdout.
///
/// # Errors
/// The last lines of what it said on stderr, or why it could not be started.
pub(crate) fn ask(command: &mut Command) -> Result<Vec<u8>, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program} could not be started: {error}"))?;
    if output.status.success() { Ok(output.stdout) } else { Err(last_words(&output.stderr)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_store_path_of_a_file() {
        let path = Path::new("/nix/store/8xwdrqkvb6ydmbqlp9bzjg0l9sxfi3a7-ghc-9.10.3/lib/libx.a");
        let expected = Path::new("/nix/store/8xwdrqkvb6ydmbqlp9bzjg0l9sxfi3a7-ghc-9.10.3");
        assert_eq!(store_path(path).as_deref(), Some(expected));
        assert_eq!(store_path(Path::new("/nix/store/.links/1abc")), None);
        assert_eq!(store_path(Path::new("/usr/lib/libm.a")), None);
    }
}

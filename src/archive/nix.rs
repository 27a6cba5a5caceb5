//! What the Nix store can do for a path of its own.

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
    let said = String::from_utf8_lossy(&output.stderr);
    let mut last: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).rev().take(3).collect();
    last.reverse();
    Err(format!("`nix store repair {}` failed: {}", store_path.display(), last.join(" / ")))
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

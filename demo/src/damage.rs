//! The archive that is cut: a real static archive in the Nix store, as the first user found one.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::processes::Interrupt;
use crate::trouble::{At, Trouble};

/// How much is left of the archive, in parts of a thousand.
const LEFT: u64 = 990;

/// A store path with a static archive in it that is cut off, as by a full disk.
pub(crate) struct Damage {
    /// The archive.
    pub(crate) archive: PathBuf,
    /// The whole archive's size in bytes.
    pub(crate) whole: u64,
    /// What is left of it, in bytes.
    pub(crate) left: u64,
    store_path: PathBuf,
    log: PathBuf,
}

impl Damage {
    /// Builds the application's compiler, with its archive of `base`, and cuts that archive.
    pub(crate) fn do_it(
        application: &Path,
        root: &Path,
        log: &Path,
        interrupt: &Interrupt,
    ) -> Result<Self, Trouble> {
        let mut build = nix(&["build", ".#ghc", "--out-link"]);
        interrupt.run(build.arg(root).current_dir(application), log)?;
        let store_path = fs::canonicalize(root).at(root)?;
        // A demo that was killed may have left the cut archive behind.
        repair_if_needed(&store_path, log, interrupt)?;
        let archive = find_archive(&store_path.join("lib/ghc"))?;
        let whole = fs::metadata(&archive).at(&archive)?.len();
        let left = whole / 1000 * LEFT;
        File::options().write(true).open(&archive).and_then(|file| file.set_len(left)).at(&archive)?;
        // Root may write whatever the mode says; it stays as the store wants it.
        fs::set_permissions(&archive, fs::Permissions::from_mode(0o444)).at(&archive)?;
        Ok(Self { archive, whole, left, store_path, log: log.to_owned() })
    }

    /// Name of the folder that the archive lies in, such as `base-4.15.1.0`.
    pub(crate) fn folder(&self) -> &Path {
        self.archive.parent().and_then(Path::file_name).map(Path::new).unwrap_or(Path::new(""))
    }

    /// The folder with the compiler's libraries.
    pub(crate) fn libraries(&self) -> PathBuf {
        self.store_path.join("lib")
    }

    /// Whether Nix finds the store path as it was built.
    pub(crate) fn is_mended(&self, interrupt: &Interrupt) -> bool {
        verify(&self.store_path, &self.log, interrupt).is_ok()
    }
}

impl Drop for Damage {
    /// A demo that stopped half-way leaves no broken compiler in the store.
    fn drop(&mut self) {
        if fs::metadata(&self.archive).is_ok_and(|found| found.len() == self.whole) {
            return;
        }
        // Ctrl-C came before; this must happen nevertheless.
        let _ = nix(&["store", "repair"]).arg(&self.store_path).output();
    }
}

fn repair_if_needed(path: &Path, log: &Path, interrupt: &Interrupt) -> Result<(), Trouble> {
    match verify(path, log, interrupt) {
        Err(Trouble::Program { .. }) => {
            interrupt.run(nix(&["store", "repair"]).arg(path), log)?;
            Ok(())
        }
        other => other,
    }
}

fn verify(path: &Path, log: &Path, interrupt: &Interrupt) -> Result<(), Trouble> {
    interrupt.run(nix(&["store", "verify", "--no-trust"]).arg(path), log).map(drop)
}

fn find_archive(tree: &Path) -> Result<PathBuf, Trouble> {
    for entry in fs::read_dir(tree).at(tree)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("base-") {
            return Ok(entry.path().join(format!("libHS{name}.a")));
        }
    }
    Err(Trouble::Failed(format!("{}: no archive of base", tree.display())))
}

/// What Nix needs to know here: one user, no sandbox, and nobody to fetch from.
pub(crate) const NIX_CONFIG: &str = "experimental-features = nix-command flakes\nbuild-users-group =\nsandbox = false\n\
                                     substituters =\nflake-registry =\n";

fn nix(arguments: &[&str]) -> Command {
    let mut command = Command::new("nix");
    command.args(arguments).env("NIX_CONFIG", NIX_CONFIG);
    command
}

//! The store paths that a build needs, as far as they are there, and the archives in them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::joins::{self, Joins};
use crate::archive::find;
use crate::archive::memory::{self, Memory};

/// The archives that a build needs.
#[derive(Debug, Default)]
pub struct Found {
    /// Those that are there, sorted by path.
    pub archives: Vec<PathBuf>,
    /// Derivations that are about to be built and join static libraries.
    pub joins: Vec<Joins>,
}

/// The archives in the closure of what will be built, from memory where nothing changed.
///
/// # Errors
/// What Nix said.
pub fn archives(installable: &str, memory: &mut Memory) -> Result<Found, String> {
    let by_tree = git_tree(installable);
    let key = by_tree.clone().unwrap_or_else(|| installable.to_owned());
    let stable = by_tree.is_some() || Path::new(installable).starts_with(super::store_directory());
    let known = if stable { memory.closure(&key).cloned() } else { None };
    let closure = match known {
        Some(known) => known,
        None => {
            let closure = look(installable, memory)?;
            if stable {
                memory.remember_closure(&key, closure.clone());
            }
            closure
        }
    };
    let archives = closure.there.iter().flat_map(|path| archives_of(path, memory)).collect();
    Ok(Found { archives, joins: closure.joins })
}

fn archives_of(store_path: &Path, memory: &mut Memory) -> Vec<PathBuf> {
    if let Some(known) = memory.archives_of(store_path) {
        return known.to_vec();
    }
    let archives = if store_path.is_dir() {
        find::archives_below(store_path).archives
    } else if find::is_archive(store_path) {
        vec![store_path.to_owned()]
    } else {
        Vec::new()
    };
    memory.remember_archives_of(store_path, &archives);
    archives
}

fn look(installable: &str, memory: &mut Memory) -> Result<memory::Closure, String> {
    let asked = ask(installable)?;
    let there: BTreeSet<PathBuf> = asked.paths.into_iter().collect();
    let mut closure = memory::Closure { there, ..memory::Closure::default() };
    for derivation in &asked.derivations {
        let answer = joins::derivations(&derivation.display().to_string())?;
        closure.missing.extend(joins::missing_outputs(&answer));
        closure.joins.extend(joins::find(&answer, &mut |path| archives_of(path, memory)));
    }
    Ok(closure)
}

/// A flake in a git repository without changes is evaluated to the same thing as long as its tree is the same one.
fn git_tree(installable: &str) -> Option<String> {
    let (folder, output) = installable.split_once('#').unwrap_or((installable, ""));
    let folder = if folder.is_empty() { "." } else { folder };
    if folder.contains(':') || !Path::new(folder).join("flake.nix").is_file() {
        return None;
    }
    let git = |arguments: &[&str]| {
        let output =
            Command::new("git").arg("-C").arg(folder).args(arguments).stdin(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    // Nix sees what git tracks.
    if !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty() {
        return None;
    }
    let tree = git(&["rev-parse", "HEAD^{tree}"])?;
    let place = std::fs::canonicalize(folder).ok()?;
    Some(format!("{} {tree} #{output}", place.display()))
}

/// What is there of what a build needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Closure {
    /// The derivation, if something is to be built.
    pub derivations: Vec<PathBuf>,
    /// Store paths that exist, derivations left out.
    pub paths: Vec<PathBuf>,
}

/// Asks Nix what `installable` needs: a flake's output (`.#docker`), a derivation or a store path. Nothing is built.
///
/// # Errors
/// What Nix said.
pub fn ask(installable: &str) -> Result<Closure, String> {
    let store = super::store_directory();
    let path = Path::new(installable);
    let roots: Vec<PathBuf> = if path.starts_with(&store) {
        vec![path.to_owned()]
    } else {
        let said = super::ask(super::command(&["path-info", "--derivation"]).arg(installable))?;
        // Newer versions add the outputs (`….drv^*`).
        lines(&said).map(|line| line.split(['^', '!']).next().unwrap_or(line).into()).collect()
    };
    if roots.is_empty() {
        return Err(format!("Nix names no derivation for {installable}"));
    }
    let is_derivation = |path: &Path| path.extension().is_some_and(|extension| extension == "drv");
    let mut command = Command::new("nix-store");
    command.args(["--query", "--requisites"]);
    if roots.iter().any(|root| is_derivation(root)) {
        command.arg("--include-outputs");
    }
    let said = super::ask(command.args(&roots))?;
    let paths = lines(&said).map(PathBuf::from).filter(|path| !is_derivation(path)).collect();
    let derivations = roots.into_iter().filter(|root| is_derivation(root)).collect();
    Ok(Closure { derivations, paths })
}

fn lines(said: &[u8]) -> impl Iterator<Item = &str> {
    std::str::from_utf8(said).unwrap_or_default().lines().map(str::trim).filter(|line| line.starts_with('/'))
}

//! The results of successful jobs as roots of Nix, so that garbage collection leaves them, and what they were built
//! from, for the next build.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Item;
use crate::archive::nix;
use crate::job::remove;
use crate::job::spec::Results;

/// Links that are kept of a job at most.
const AT_MOST: usize = 64;

/// Makes roots of the links named `result*` in a workspace and in the folders of its first level, and lets go those of
/// older jobs. Gives the store paths that are kept.
///
/// # Errors
/// What Nix, or the file system, said.
pub fn keep(workspace: &Path, repository: &str, results: &Results) -> Result<Vec<PathBuf>, String> {
    let links = links(workspace);
    let Some(folder) = repository_folder(&results.folder, repository).filter(|_| !links.is_empty()) else {
        return Ok(Vec::new());
    };
    let place = folder.join(results.task.to_string());
    fs::create_dir_all(&place).map_err(|error| format!("{}: {error}", place.display()))?;
    let mut kept = Vec::new();
    for (index, path) in links.into_iter().enumerate() {
        let mut command = Command::new("nix-store");
        command.args(["--realise", "--indirect", "--add-root"]).arg(place.join(format!("result-{index}")));
        nix::ask(command.arg(&path))?;
        kept.push(path);
    }
    rotate(&folder, results.keep, false);
    Ok(kept)
}

/// The store paths that links of a workspace name.
fn links(workspace: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    let mut folders = vec![workspace.to_owned()];
    for level in 0..2 {
        let mut below = Vec::new();
        for entry in folders.iter().flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten()) {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && level == 0 && entry.file_name() != ".git" {
                below.push(entry.path());
            }
            let named = entry.file_name().as_encoded_bytes().starts_with(b"result");
            if !(named && kind.is_symlink()) || kind.is_socket() {
                continue;
            }
            let path = fs::read_link(entry.path()).ok().and_then(|target| nix::store_path(&target));
            if let Some(path) = path.filter(|path| path.exists() && !found.contains(path))
                && found.len() < AT_MOST
            {
                found.push(path);
            }
        }
        folders = below;
    }
    found
}

/// `FOLDER/OWNER/NAME`; `None` for a name that is none.
fn repository_folder(folder: &Path, repository: &str) -> Option<PathBuf> {
    let (owner, name) = repository.split_once('/')?;
    let plain = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains(['/', '\0']);
    (plain(owner) && plain(name)).then(|| folder.join(owner.to_lowercase()).join(name.to_lowercase()))
}

/// Lets the results of all but the last `keep` jobs of a repository go.
fn rotate(folder: &Path, keep: u32, dry: bool) -> Vec<Item> {
    let mut tasks: Vec<(i64, PathBuf)> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .collect();
    tasks.sort_by_key(|(task, _)| std::cmp::Reverse(*task));
    let old = tasks.into_iter().skip(keep as usize);
    old.map(|(_, path)| {
        let problem = if dry { None } else { remove::tree(&path).err().map(|error| error.to_string()) };
        Item { what: "root of the store", path, bytes: 0, problem }
    })
    .collect()
}

/// The same for all repositories.
pub(super) fn rotate_all(folder: &Path, keep: u32, dry: bool) -> Vec<Item> {
    let below = |folder: &Path| {
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect::<Vec<_>>()
    };
    below(folder).iter().flat_map(|owner| below(owner)).flat_map(|name| rotate(&name, keep, dry)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        for task in ["9", "10", "8"] {
            fs::create_dir_all(folder.path().join("o/n").join(task)).unwrap();
        }
        let gone = |items: Vec<Item>| items.into_iter().map(|item| item.path).collect::<Vec<_>>();
        let eight = folder.path().join("o/n/8");
        assert_eq!(gone(rotate_all(folder.path(), 2, true)), std::slice::from_ref(&eight));
        assert!(eight.exists());
        assert_eq!(gone(rotate_all(folder.path(), 2, false)), std::slice::from_ref(&eight));
        assert!(!eight.exists());
    }

    #[test]
    fn names_that_lead_elsewhere_are_none() {
        let folder = Path::new("/roots");
        assert_eq!(repository_folder(folder, "Dev/App"), Some("/roots/dev/app".into()));
        for name in ["", "app", "../x", "a/..", "a/b/c", "/b"] {
            assert_eq!(repository_folder(folder, name), None, "{name}");
        }
    }
}

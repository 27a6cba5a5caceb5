//! The working tree as it is now, for jobs that are run from one.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::job::source::Git;

/// What goes along beside the files.
#[derive(Debug, Clone, Copy)]
pub(super) struct Copied {
    /// All tags.
    pub(super) tags: bool,
    /// The files of submodules.
    pub(super) submodules: bool,
}

/// Makes `destination` a repository with the files of `tree` as they are now; gives the commit.
pub(super) fn copy_tree(
    tree: &Path,
    destination: &Path,
    git: &Git,
    wanted: Copied,
) -> Result<String, String> {
    let io = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
    let Ok(head) = git.run(tree, &["rev-parse", "HEAD"]) else {
        // No repository, or one without a commit: its files are what there is.
        copy_directory(tree, destination)?;
        return Ok(String::new());
    };
    let source = tree.to_string_lossy();
    let branch = git.run(tree, &["symbolic-ref", "--quiet", "--short", "HEAD"]);
    let branch = format!("--initial-branch={}", branch.as_deref().map_or("main", str::trim));
    git.run(destination, &["init", "--quiet", &branch, "."])?;
    let tags = if wanted.tags { "--tags" } else { "--no-tags" };
    git.run(destination, &["fetch", "--quiet", tags, &source, "HEAD"])?;
    git.run(destination, &["reset", "--quiet", "--soft", "FETCH_HEAD"])?;
    if let Ok(origin) = git.run(tree, &["remote", "get-url", "origin"]) {
        git.run(destination, &["remote", "add", "origin", origin.trim()])?;
    }
    let listed = git.run(tree, &["ls-files", "-z", "--cached", "--others", "--exclude-standard"])?;
    for name in listed.split('\0').filter(|name| !name.is_empty()) {
        let from = tree.join(name);
        let to = destination.join(name);
        // A file that is deleted but not committed is listed and not there.
        let Ok(meta) = fs::symlink_metadata(&from) else { continue };
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(|error| io(parent, error))?;
        }
        if meta.is_symlink() {
            let target = fs::read_link(&from).map_err(|error| io(&from, error))?;
            std::os::unix::fs::symlink(target, &to).map_err(|error| io(&to, error))?;
        } else if meta.is_file() {
            fs::copy(&from, &to).map_err(|error| io(&from, error))?;
        } else if meta.is_dir() && wanted.submodules {
            // A submodule: what lies in it is not listed.
            fs::create_dir_all(&to).map_err(|error| io(&to, error))?;
            copy_directory(&from, &to)?;
        }
    }
    git.run(destination, &["reset", "--quiet"])?;
    Ok(head.trim().to_owned())
}

fn copy_directory(from: &Path, to: &Path) -> Result<(), String> {
    let io = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
    for entry in fs::read_dir(from).map_err(|error| io(from, error))? {
        let entry = entry.map_err(|error| io(from, error))?;
        if entry.file_name().as_bytes() == b".git" {
            continue;
        }
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(|error| io(&source, error))?;
        if kind.is_dir() {
            fs::create_dir_all(&target).map_err(|error| io(&target, error))?;
            copy_directory(&source, &target)?;
        } else if kind.is_symlink() {
            let link = fs::read_link(&source).map_err(|error| io(&source, error))?;
            std::os::unix::fs::symlink(link, &target).map_err(|error| io(&target, error))?;
        } else if kind.is_file() {
            fs::copy(&source, &target).map_err(|error| io(&source, error))?;
        }
    }
    Ok(())
}

//! Removing what a job leaves on disk: read-only directories, trees of any depth, names of any bytes, and never through
//! a symbolic link or into a file system that a step has mounted.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::mounts;

/// What is deeper than this is moved up to the top first: each level costs a file descriptor.
const MAX_DEPTH: usize = 32;

/// Removes a directory tree, or a file; one that is not there is fine. What is mounted in it is unmounted, and stays as
/// it is.
///
/// # Errors
/// With the first thing that could not be removed, once everything else is gone.
pub fn tree(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(meta) if !meta.is_dir() => return fs::remove_file(path),
        Ok(_) => {}
    }
    for place in mounts_in(path) {
        // What cannot be unmounted is not entered either, and shows in the error of the removal.
        let _ = unmount(&place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
    let mut sweeper = Sweeper { top: open(CWD, &c_string(path)?)?, moved: 0, problem: None };
    let mut round = 0;
    loop {
        let before = sweeper.moved;
        let top = open(CWD, &c_string(path)?)?;
        sweeper.empty(&top, path, 0);
        round += 1;
        // What was moved up is there for the next round.
        if sweeper.moved == before || round > 100_000 {
            break;
        }
        sweeper.problem = None;
    }
    match fs::remove_dir(path) {
        Err(error) => Err(sweeper.problem.unwrap_or(error)),
        Ok(()) => Ok(()),
    }
}

struct Sweeper {
    top: OwnedFd,
    /// Directories that were moved up so far; numbers them.
    moved: usize,
    problem: Option<io::Error>,
}

impl Sweeper {
    fn failed(&mut self, path: &Path, error: Errno) {
        if self.problem.is_none() {
            let error = io::Error::from(error);
            self.problem = Some(io::Error::new(error.kind(), format!("{}: {error}", path.display())));
        }
    }

    /// Removes all that is in a directory.
    fn empty(&mut self, directory: &OwnedFd, path: &Path, depth: usize) {
        if let Err(error) = writable(directory) {
            self.failed(path, error);
        }
        // Removing while reading may skip entries in some file systems: read until there is nothing to remove.
        loop {
            let names = match names(directory) {
                Ok(names) => names,
                Err(error) => return self.failed(path, error),
            };
            let mut removed = 0;
            for (name, kind) in &names {
                if self.remove(directory, path, name, *kind, depth) {
                    removed += 1;
                }
            }
            if names.is_empty() || removed == 0 {
                return;
            }
        }
    }

    /// Removes one entry; whether it is gone from here.
    fn remove(
        &mut self,
        directory: &OwnedFd,
        path: &Path,
        name: &CStr,
        kind: FileType,
        depth: usize,
    ) -> bool {
        let here = || path.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
        if kind != FileType::Directory {
            match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => return true,
                Err(Errno::ISDIR) => {}
                Err(error) => {
                    self.failed(&here(), error);
                    return false;
                }
            }
        }
        // An empty one, or a mount point, needs not be opened.
        match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return true,
            Err(_) => {}
        }
        if depth >= MAX_DEPTH {
            let up = CString::new(format!(".removing-{}-{}", std::process::id(), self.moved));
            if let Ok(up) = up
                && rustix::fs::renameat(directory, name, &self.top, &up).is_ok()
            {
                self.moved += 1;
                return true;
            }
        }
        match open(directory, name) {
            Ok(inner) => self.empty(&inner, &here(), depth + 1),
            Err(error) => self.failed(&here(), error),
        }
        match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => true,
            Err(error) => {
                self.failed(&here(), error);
                false
            }
        }
    }
}

/// Opens a directory in the same mount, not through a link. One that may not be read is made readable.
fn open(at: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let at = at.as_fd();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let try_open = || {
        // The top is named by an absolute path, which may have links and mounts on its way.
        if name.to_bytes().starts_with(b"/") {
            return rustix::fs::openat(at, name, flags, Mode::empty());
        }
        match rustix::fs::openat2(at, name, flags, Mode::empty(), ResolveFlags::NO_XDEV) {
            // Before Linux 5.6, or forbidden: the mounts were unmounted, which has to do.
            Err(Errno::NOSYS | Errno::PERM) => rustix::fs::openat(at, name, flags, Mode::empty()),
            other => other,
        }
    };
    match try_open() {
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(at, name, Mode::RWXU, AtFlags::empty())?;
            try_open()
        }
        other => other,
    }
}

/// Go's module cache makes its directories read-only.
fn writable(directory: &OwnedFd) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(rustix::fs::fstat(directory)?.st_mode);
    if mode.contains(Mode::RWXU) {
        return Ok(());
    }
    rustix::fs::fchmod(directory, mode | Mode::RWXU)
}

/// A few thousand entries at a time, so that a directory of millions does not fill the memory.
fn names(directory: &OwnedFd) -> Result<Vec<(CString, FileType)>, Errno> {
    let again = rustix::fs::openat(
        directory,
        c".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut found = Vec::new();
    let mut buffer = Vec::with_capacity(32 * 1024);
    let mut entries = RawDir::new(again, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            found.push((name.to_owned(), entry.file_type()));
        }
        if found.len() >= 4096 {
            break;
        }
    }
    Ok(found)
}

/// What is mounted below a directory, the latest first.
fn mounts_in(path: &Path) -> Vec<PathBuf> {
    let Ok(path) = fs::canonicalize(path) else { return Vec::new() };
    let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<PathBuf> = text
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(mounts::unescaped)
        .filter(|place| place.starts_with(&path) && *place != path)
        .collect();
    found.reverse();
    found
}

fn c_string(path: &Path) -> io::Result<CString> {
    let absolute = std::path::absolute(path)?;
    CString::new(absolute.as_os_str().as_bytes()).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn odd_things_are_removed_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "").unwrap();
        let root = dir.path().join("root");
        let closed = root.join("read-only/inside");
        fs::create_dir_all(&closed).unwrap();
        fs::write(closed.join("file"), "").unwrap();
        for path in [closed.as_path(), closed.parent().unwrap()] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o500)).unwrap();
        }
        fs::create_dir(root.join("closed")).unwrap();
        fs::set_permissions(root.join("closed"), fs::Permissions::from_mode(0o000)).unwrap();
        fs::write(root.join(OsStr::from_bytes(b"not \xff\xfe text\n")), "").unwrap();
        symlink(&kept, root.join("link")).unwrap();
        symlink("nowhere", root.join("dangling")).unwrap();
        for number in 0..5000 {
            fs::write(root.join(number.to_string()), "").unwrap();
        }
        tree(&root).unwrap();
        assert!(!root.exists() && kept.join("file").exists());
        tree(&root).unwrap();
        symlink(&kept, &root).unwrap();
        tree(&root).unwrap();
        assert!(kept.join("file").exists(), "the link itself is what is removed");
    }

    #[test]
    fn a_tree_that_no_path_reaches_the_end_of_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        let mut at = open(CWD, &c_string(&root).unwrap()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, c"deeper", Mode::RWXU).unwrap();
            at = open(&at, c"deeper").unwrap();
        }
        tree(&root).unwrap();
        assert!(!root.exists());
    }
}

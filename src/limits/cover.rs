//! Launchers in front of GHC where nobody looks at PATH: in the Nix store and behind its wrapper scripts.
//!
//! The thread that starts the steps moves into a mount namespace of its own. Each folder with a compiler in it is covered by a
//! small tmpfs that shows the same entries, the compiler's name leading to a launcher and the compiler itself
//! reachable beside it (`ghc.original`): GHC finds its libraries by the folder it lies in. The store's own files
//! are not touched, and no derivation changes. A builder that is a child of this process sees it, in Nix's
//! sandbox as well, because Nix binds its inputs with everything that is mounted in them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};

use super::ceiling::Ceiling;
use super::launcher;
use crate::mounts;

/// What the mounts of this module are known by.
const SOURCE: &str = "sower-ghc";
/// Entries of a folder that is covered; each costs a mount.
const ENTRIES_AT_MOST: usize = 300;

/// Why nothing is covered.
#[derive(Debug, thiserror::Error)]
pub enum CannotCover {
    /// Mounting is root's.
    #[error("only root can put launchers there")]
    NotRoot,
    /// The kernel, or the container around us, does not let us.
    #[error("this system lets no process have mounts of its own ({0})")]
    Refused(io::Error),
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Covered {
    /// Compilers that now have a launcher in front of them.
    pub programs: Vec<PathBuf>,
    /// Compilers that have not, and why.
    pub left: Vec<String>,
}

/// Moves this thread into a mount namespace of its own and covers the compilers that `find` gives. What this thread starts
/// from now on sees the launchers; other threads of the process see what they saw.
///
/// Launchers that an outer command put there are taken away first, here and nowhere else: the inner ceiling counts.
///
/// # Errors
/// When there can be no such namespace. A single folder that cannot be covered is told in [`Covered::left`].
pub fn enter(find: impl FnOnce() -> Vec<PathBuf>, ceiling: &Ceiling) -> Result<Covered, CannotCover> {
    if !rustix::process::geteuid().is_root() {
        return Err(CannotCover::NotRoot);
    }
    own_mounts()?;
    let compilers = find();
    let mut folders: BTreeMap<&Path, Vec<OsString>> = BTreeMap::new();
    for compiler in &compilers {
        if let (Some(folder), Some(name)) = (compiler.parent(), compiler.file_name()) {
            folders.entry(folder).or_default().push(name.to_owned());
        }
    }
    let mut covered = Covered::default();
    for (folder, names) in folders {
        match cover(folder, &names, ceiling) {
            Ok(()) => covered.programs.extend(names.iter().map(|name| folder.join(name))),
            Err(error) => covered.left.push(format!("{}: {error}", folder.display())),
        }
    }
    Ok(covered)
}

/// Shows this thread, and what it starts from now on, the folders as they lie on the disk, without the launchers that an outer
/// command put in front of them: who compares a store path with Nix's book must not find ours in it. Other threads
/// and processes keep theirs. Nothing happens where nothing is covered.
///
/// # Errors
/// When there can be no such namespace.
pub fn leave() -> Result<(), CannotCover> {
    if covered_folders(&mount_table()).is_empty() {
        return Ok(());
    }
    own_mounts()
}

/// A mount namespace of this thread's own in which nothing is covered.
fn own_mounts() -> Result<(), CannotCover> {
    mounts::own_namespace().map_err(CannotCover::Refused)?;
    // What the host mounts later still shows here; what is mounted here shows nowhere else.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(|error| CannotCover::Refused(error.into()))?;
    for folder in covered_folders(&mount_table()) {
        unmount(&folder, UnmountFlags::DETACH).map_err(|error| CannotCover::Refused(error.into()))?;
    }
    Ok(())
}

/// What is mounted where this thread is.
fn mount_table() -> String {
    fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default()
}

/// Whether a compiler has no launcher in front of it.
#[must_use]
pub fn is_open(compiler: &Path) -> bool {
    let mut original = compiler.as_os_str().to_owned();
    original.push(launcher::ORIGINAL);
    !Path::new(&original).exists()
}

/// The folders that are covered, the last one first.
fn covered_folders(table: &str) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let ours = right.split(' ').take(2).eq(["tmpfs", SOURCE]);
            ours.then(|| mounts::unescaped(left.split(' ').nth(4).unwrap_or_default().as_bytes()))
        })
        .collect();
    folders.reverse();
    folders
}

fn cover(folder: &Path, names: &[OsString], ceiling: &Ceiling) -> io::Result<()> {
    // The handle leads to the folder as it is, also when something is mounted over its path.
    let handle = File::open(folder)?;
    let below = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()));
    let entries: Vec<_> = fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    if entries.len() > ENTRIES_AT_MOST {
        return Err(io::Error::other(format!("it has {} entries, too many to be covered", entries.len())));
    }
    let mode = handle.metadata()?.permissions();
    mount(SOURCE, folder, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"size=4m,mode=0755")?;
    let filled = fill(folder, &below, &entries, names, ceiling).and_then(|()| {
        fs::set_permissions(folder, Permissions::from_mode(mode.mode() & 0o7777))?;
        Ok(mount_remount(folder, MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV, c"size=4m")?)
    });
    if filled.is_err() {
        // A folder with half of its entries would be worse than no ceiling.
        unmount(folder, UnmountFlags::DETACH)?;
    }
    filled
}

fn fill(
    folder: &Path,
    below: &Path,
    entries: &[fs::DirEntry],
    names: &[OsString],
    ceiling: &Ceiling,
) -> io::Result<()> {
    for entry in entries {
        let name = entry.file_name();
        let (from, to) = (below.join(&name), folder.join(&name));
        let kind = entry.file_type()?;
        if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&from)?, &to)?;
        } else if kind.is_dir() {
            fs::create_dir(&to)?;
            mount_bind_recursive(&from, &to)?;
        } else if names.contains(&name) {
            let mut original = name.clone();
            original.push(launcher::ORIGINAL);
            let original = folder.join(original);
            File::create(&original)?;
            mount_bind_recursive(&from, &original)?;
            launcher::write_executable(&to, &launcher::compiler(&original, ceiling))?;
        } else {
            File::create(&to)?;
            mount_bind_recursive(&from, &to)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covers_are_known_again_in_the_list_of_mounts() {
        let mounts = "36 35 98:0 / / rw - ext4 /dev/root rw\n\
                      60 36 0:50 / /nix/store/a-ghc/bin ro,nosuid - tmpfs sower-ghc rw,size=4096k\n\
                      61 36 0:51 / /opt/a\\040b/bin ro shared:1 - tmpfs sower-ghc rw\n\
                      62 36 0:52 / /tmp rw - tmpfs tmpfs rw";
        assert_eq!(covered_folders(mounts), [Path::new("/opt/a b/bin"), Path::new("/nix/store/a-ghc/bin")]);
    }
}

//! The atomic replacement of a file: a copy without a name, proven and synced, takes its place in one step.
//!
//! The old file is never written to: other names of its inode (Nix links equal files together) keep what they had. Killed
//! at any point, the directory holds the old file or the new one; the copy has no name until it is whole.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatVfsMountFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, mount_change, mount_remount};

use super::nar::PENDING;
use super::words::grouped;
use crate::mounts;

/// Something that could not be done to a file.
#[derive(Debug, thiserror::Error)]
#[error("{}: {doing}: {source}", path.display())]
pub struct Failed {
    /// The file.
    pub path: PathBuf,
    /// What was being done.
    pub doing: &'static str,
    /// What the system says.
    pub source: io::Error,
}

pub(super) fn failed<'a>(path: &'a Path, doing: &'static str) -> impl Fn(io::Error) -> Failed + 'a {
    move |source| Failed { path: path.to_owned(), doing, source }
}

pub(super) fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A copy that will take the place of a file.
#[derive(Debug)]
pub struct Replacement {
    real: PathBuf,
    file: File,
    /// The copy's name beside the file; it has it only on file systems without nameless files, or in the last step.
    beside: PathBuf,
    named: bool,
    /// The directory's mode, if it was made writable for the moment.
    restore: Option<Permissions>,
}

impl Replacement {
    /// Makes room for a copy of `size` bytes beside `real`.
    ///
    /// # Errors
    /// When there is too little space, or the directory cannot be written to.
    pub fn new(real: &Path, size: u64) -> Result<Self, Failed> {
        let directory = folder(real);
        let space = rustix::fs::statvfs(directory)
            .map_err(|error| failed(directory, "asking for free space")(error.into()))?;
        if space.f_flag.contains(StatVfsMountFlags::RDONLY) {
            remount_writable(directory)
                .map_err(failed(directory, "it is mounted read-only; making it writable for this process"))?;
        }
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if free < size {
            let why = format!("{} bytes are needed and {} are free", grouped(size), grouped(free));
            let error = io::Error::new(io::ErrorKind::StorageFull, why);
            return Err(failed(directory, "making a copy beside it")(error));
        }
        let mut name = std::ffi::OsString::from(".");
        name.push(real.file_name().unwrap_or_default());
        name.push(PENDING);
        let beside = directory.join(name);
        let mode = std::fs::metadata(directory)
            .map_err(failed(directory, "looking at the directory"))?
            .permissions();
        let locked = mode.mode() & 0o200 == 0 && !rustix::process::geteuid().is_root();
        if locked {
            let writable = Permissions::from_mode(mode.mode() | 0o200);
            std::fs::set_permissions(directory, writable)
                .map_err(failed(directory, "making the directory writable"))?;
        }
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(&beside, "removing what an earlier mend left")(error));
            }
            _ => {}
        }
        let (file, named) = create(directory, &beside).map_err(failed(&beside, "making a copy beside it"))?;
        Ok(Self { real: real.to_owned(), file, beside, named, restore: locked.then_some(mode) })
    }

    /// The copy, to be written.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// A path under which the copy can be read.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        if self.named {
            self.beside.clone()
        } else {
            format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
        }
    }

    /// Gives the copy owner, mode and times of the old file, and syncs it.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn finish(&self, like: &Metadata) -> Result<(), Failed> {
        let owner = std::os::unix::fs::fchown(&self.file, Some(like.uid()), Some(like.gid()));
        // Only root may give files away; anyone else owns both already, or cannot keep the owner.
        if let Err(error) = owner
            && rustix::process::geteuid().is_root()
        {
            return Err(failed(&self.beside, "setting the owner")(error));
        }
        self.file
            .set_permissions(Permissions::from_mode(like.mode() & 0o7777))
            .map_err(failed(&self.beside, "setting the mode"))?;
        set_times(&self.file, like).map_err(failed(&self.beside, "setting the times"))?;
        self.file.sync_all().map_err(failed(&self.beside, "syncing"))
    }

    /// Puts the copy in the place of the file.
    ///
    /// # Errors
    /// Whatever the file system says; the old file is in its place then.
    pub fn put(mut self) -> Result<(), Failed> {
        let directory = folder(&self.real).to_owned();
        let before = std::fs::metadata(&directory).map_err(failed(&directory, "looking at the directory"))?;
        if !self.named {
            rustix::fs::linkat(CWD, self.path(), CWD, &self.beside, AtFlags::SYMLINK_FOLLOW)
                .map_err(|error| failed(&self.beside, "naming the copy")(error.into()))?;
            self.named = true;
        }
        std::fs::rename(&self.beside, &self.real)
            .map_err(failed(&self.real, "putting the copy in its place"))?;
        self.named = false;
        let handle = File::open(&directory).map_err(failed(&directory, "opening the directory"))?;
        // The Nix store has its directories dated as its files are.
        let _ = set_times(&handle, &before);
        handle.sync_all().map_err(failed(&directory, "syncing the directory"))
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if self.named {
            let _ = std::fs::remove_file(&self.beside);
        }
        if let Some(mode) = self.restore.take() {
            let _ = std::fs::set_permissions(folder(&self.real), mode);
        }
    }
}

/// A file without a name where the file system has such, else one by a fixed name that the next mend finds.
fn create(directory: &Path, beside: &Path) -> io::Result<(File, bool)> {
    let mode = Mode::RUSR | Mode::WUSR;
    if Path::new("/proc/self/fd").is_dir()
        && let Ok(handle) =
            rustix::fs::open(directory, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode)
    {
        return Ok((handle.into(), false));
    }
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(beside)?;
    Ok((file, true))
}

fn set_times(file: &File, like: &Metadata) -> io::Result<()> {
    let times = std::fs::FileTimes::new().set_accessed(like.accessed()?).set_modified(like.modified()?);
    file.set_times(times)
}

/// A store that is mounted read-only (NixOS does that) is made writable for this thread alone, in a mount namespace that
/// ends with it.
fn remount_writable(directory: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "only root can do that"));
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let real = std::fs::canonicalize(directory)?;
    let mount = mount_point(&mounts, &real).ok_or_else(|| io::Error::other("its mount is not known"))?;
    mounts::own_namespace()?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount_remount(&mount, MountFlags::BIND, c"")?;
    Ok(())
}

/// The mount that a path is in: the last one in the table whose point is its longest prefix.
fn mount_point(mountinfo: &str, path: &Path) -> Option<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    let points = points.map(|point| mounts::unescaped(point.as_bytes()));
    points.filter(|point| path.starts_with(point)).max_by_key(|point| point.components().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_of_a_path_is_the_innermost() {
        let table = "22 1 254:0 / / rw - ext4 /dev/vda rw\n30 22 254:0 /nix/store /nix/store ro - ext4 /dev/vda rw\n31 22 0:4 / /nix/store\\040b rw - tmpfs x rw\n";
        let point = |path: &str| mount_point(table, Path::new(path)).unwrap();
        assert_eq!(point("/nix/store/x-ghc/lib"), Path::new("/nix/store"));
        assert_eq!(point("/nix/storeroom"), Path::new("/"));
        assert_eq!(point("/nix/store b/x"), Path::new("/nix/store b"));
    }
}

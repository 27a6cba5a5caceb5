//! The archives of `actions/cache`: a tar of paths relative to the workspace, compressed.
//!
//! The real action runs `tar --posix -P` through `zstdmt` where there is a zstd, or gzip. Here the tar is written and
//! read in this process, and only zstd is a program: which of the two it is is part of a cache's version, so both must
//! decide alike. Paths may lead out of the workspace (`../../root/.cache/x`), as `-P` allows.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use flate2::Compression;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use tar::{EntryType, Header};

use super::Stop;

/// How an archive is compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Method {
    /// In this process.
    Gzip,
    /// By this program.
    Zstd(PathBuf),
}

impl Method {
    /// As the real action decides: zstd where the program is there.
    pub(super) fn on(path: &str) -> Self {
        super::super::shell::find("zstd", path).map_or(Self::Gzip, Self::Zstd)
    }

    /// Its word in a cache's version.
    pub(super) const fn word(&self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd(_) => "zstd-without-long",
        }
    }

    /// The name that the archive has on disk.
    pub(super) const fn file_name(&self) -> &'static str {
        match self {
            Self::Gzip => "cache.tgz",
            Self::Zstd(_) => "cache.tzst",
        }
    }
}

/// Writes these paths (relative to `root`) and all that is in them to `archive`.
///
/// # Errors
/// When a file cannot be read, the archive not be written, or the job has to stop.
pub(super) fn pack(
    archive: &Path,
    root: &Path,
    paths: &[PathBuf],
    method: &Method,
    stop: &Stop,
) -> io::Result<()> {
    let file = File::create(archive).map_err(|error| named(archive, &error))?;
    match method {
        Method::Gzip => {
            let out = flate2::write::GzEncoder::new(io::BufWriter::new(file), Compression::default());
            write_tar(out, archive, root, paths, stop)?.finish()?.flush()
        }
        Method::Zstd(program) => {
            let mut child = Command::new(program)
                .args(["-T0", "-q", "-c"])
                .stdin(Stdio::piped())
                .stdout(file)
                .stderr(Stdio::piped())
                .spawn()
                .map_err(|error| named(program, &error))?;
            let input = child.stdin.take().ok_or_else(|| io::Error::other("zstd has no input"))?;
            let written =
                write_tar(io::BufWriter::with_capacity(64 * 1024, input), archive, root, paths, stop)
                    .and_then(|mut out| out.flush());
            finish(child, written)
        }
    }
}

/// Waits for the program, whose words say more than that its pipe broke.
fn finish(mut child: Child, done: io::Result<()>) -> io::Result<()> {
    if done.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::BrokenPipe) {
        let _ = child.kill();
        let _ = child.wait();
        return done;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return done;
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("zstd failed ({}): {}", output.status, words.trim())))
}

fn write_tar<W: Write>(out: W, archive: &Path, root: &Path, paths: &[PathBuf], stop: &Stop) -> io::Result<W> {
    let own = fs::metadata(archive).map(|meta| (meta.dev(), meta.ino()))?;
    let mut writer = Writer { tar: tar::Builder::new(out), links: HashMap::new(), own, stop };
    let all: HashSet<&Path> = paths.iter().map(PathBuf::as_path).collect();
    for path in paths {
        // A pattern such as `a/**` finds a folder and all that is in it: that goes along with the folder.
        if !goes_along(root, path, &all) {
            writer.add(&root.join(path), path)?;
        }
    }
    writer.tar.into_inner()
}

/// Whether a path lies in a folder that is packed as well; what is reached through a link does not.
fn goes_along(root: &Path, path: &Path, all: &HashSet<&Path>) -> bool {
    let root_itself = Path::new(".");
    let inside = matches!(path.components().next(), Some(Component::Normal(_)));
    for folder in path.ancestors().skip(1) {
        let folder = match folder.as_os_str().is_empty() {
            true if !inside => return false,
            true => root_itself,
            false => folder,
        };
        if fs::symlink_metadata(root.join(folder)).is_ok_and(|meta| meta.is_symlink()) {
            return false;
        }
        if all.contains(folder) {
            return true;
        }
    }
    false
}

struct Writer<'s, W: Write> {
    tar: tar::Builder<W>,
    /// Files with several names, and the first of them.
    links: HashMap<(u64, u64), PathBuf>,
    own: (u64, u64),
    stop: &'s Stop,
}

impl<W: Write> Writer<'_, W> {
    fn add(&mut self, path: &Path, name: &Path) -> io::Result<()> {
        self.stop.check()?;
        let meta = fs::symlink_metadata(path).map_err(|error| named(path, &error))?;
        let identity = (meta.dev(), meta.ino());
        if identity == self.own {
            return Ok(());
        }
        let mut header = Header::new_ustar();
        header.set_mode(meta.mode() & 0o7777);
        header.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0));
        header.set_uid(u64::from(meta.uid()));
        header.set_gid(u64::from(meta.gid()));
        header.set_size(0);
        let kind = meta.file_type();
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            let mut folder = name.as_os_str().to_owned();
            folder.push("/");
            self.entry(header, folder.as_bytes(), None, &meta, io::empty())?;
            let mut names: Vec<_> = fs::read_dir(path)
                .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>())
                .map_err(|error| named(path, &error))?;
            names.sort();
            for child in names {
                self.add(&path.join(&child), &name.join(&child))?;
            }
            return Ok(());
        }
        let bytes = name.as_os_str().as_bytes();
        if kind.is_symlink() {
            let target = fs::read_link(path).map_err(|error| named(path, &error))?;
            header.set_entry_type(EntryType::Symlink);
            return self.entry(header, bytes, Some(target.as_os_str().as_bytes()), &meta, io::empty());
        }
        if !kind.is_file() {
            // Sockets and the like mean nothing in another job.
            return Ok(());
        }
        if meta.nlink() > 1
            && let Some(first) = self.links.get(&identity).cloned()
        {
            header.set_entry_type(EntryType::Link);
            return self.entry(header, bytes, Some(first.as_os_str().as_bytes()), &meta, io::empty());
        }
        if meta.nlink() > 1 {
            self.links.insert(identity, name.to_owned());
        }
        let file = File::open(path).map_err(|error| named(path, &error))?;
        header.set_entry_type(EntryType::Regular);
        let size = file.metadata()?.len();
        header.set_size(size);
        // A file that grows or shrinks meanwhile must not break what follows it.
        let exactly = file.take(size).chain(io::repeat(0)).take(size);
        self.entry(header, bytes, None, &meta, exactly)
    }

    /// Writes an entry; what the header cannot say exactly goes before it as extended records.
    fn entry(
        &mut self,
        mut header: Header,
        name: &[u8],
        target: Option<&[u8]>,
        meta: &Metadata,
        data: impl Read,
    ) -> io::Result<()> {
        let mut extended: Vec<(&str, Vec<u8>)> = Vec::new();
        if meta.mtime_nsec() != 0 || meta.mtime() < 0 {
            extended.push(("mtime", format!("{}.{:09}", meta.mtime(), meta.mtime_nsec()).into_bytes()));
        }
        let size = header.entry_size()?;
        if size >= 1 << 33 {
            extended.push(("size", size.to_string().into_bytes()));
        }
        let fields = header.as_ustar_mut().ok_or_else(|| io::Error::other("no ustar header"))?;
        for (key, value, field) in
            [("path", Some(name), &mut fields.name), ("linkpath", target, &mut fields.linkname)]
        {
            let Some(value) = value else { continue };
            let length = value.len().min(field.len());
            field[..length].copy_from_slice(&value[..length]);
            if length < value.len() || !value.is_ascii() {
                extended.push((key, value.to_vec()));
            }
        }
        if !extended.is_empty() {
            self.tar.append_pax_extensions(extended.iter().map(|(key, value)| (*key, value.as_slice())))?;
        }
        header.set_cksum();
        self.tar.append(&header, data)
    }
}

/// Unpacks an archive into `root`.
///
/// # Errors
/// When it is broken, a file cannot be written, or the job has to stop.
pub(super) fn unpack(archive: &Path, root: &Path, method: &Method, stop: &Stop) -> io::Result<()> {
    let file = File::open(archive).map_err(|error| named(archive, &error))?;
    match method {
        Method::Gzip => read_tar(flate2::read::MultiGzDecoder::new(io::BufReader::new(file)), root, stop),
        Method::Zstd(program) => {
            let mut child = Command::new(program)
                .args(["-d", "-q", "-c"])
                .stdin(file)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .map_err(|error| named(program, &error))?;
            let output = child.stdout.take().ok_or_else(|| io::Error::other("zstd has no output"))?;
            let mut input = io::BufReader::with_capacity(64 * 1024, output);
            let done = read_tar(&mut input, root, stop);
            if done.is_ok() {
                // Behind the end of the tar there may be padding, which the program must be rid of to end well.
                io::copy(&mut input, &mut io::sink())?;
                return finish(child, done);
            }
            drop(input);
            let error = done.err().unwrap_or_else(|| io::Error::other("the archive is broken"));
            let words =
                child.wait_with_output().map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
            match words.unwrap_or_default().trim() {
                "" => Err(error),
                words => Err(io::Error::other(format!("{error}; zstd: {words}"))),
            }
        }
    }
}

fn read_tar(input: impl Read, root: &Path, stop: &Stop) -> io::Result<()> {
    let own = rustix::process::geteuid().is_root();
    let mut folders: Vec<(PathBuf, u32, Timestamps)> = Vec::new();
    let mut tar = tar::Archive::new(input);
    for entry in tar.entries()? {
        stop.check()?;
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        let path = root.join(&name);
        let at = |error: io::Error| named(&path, &error);
        let header = entry.header();
        let mode = header.mode()? & 0o7777;
        let owner = (header.uid()?, header.gid()?);
        let kind = header.entry_type();
        let seconds = i64::try_from(header.mtime()?).unwrap_or(0);
        let mut time = Timespec { tv_sec: seconds, tv_nsec: 0 };
        let target = entry.link_name()?.map(std::borrow::Cow::into_owned);
        for record in entry.pax_extensions()?.into_iter().flatten().flatten() {
            if let (Ok("mtime"), Ok(value)) = (record.key(), record.value())
                && let Some(exact) = timestamp(value)
            {
                time = exact;
            }
        }
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
            last_modification: time,
        };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|error| named(parent, &error))?;
        }
        match kind {
            EntryType::Directory => {
                fs::create_dir_all(&path).map_err(at)?;
                folders.push((path, mode, times));
                continue;
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                clear(&path)?;
                let mut out = File::create_new(&path).map_err(at)?;
                copy(&mut entry, &mut out, stop).map_err(at)?;
                if own {
                    chown(&path, owner);
                }
                out.set_permissions(fs::Permissions::from_mode(mode)).map_err(at)?;
            }
            EntryType::Symlink => {
                clear(&path)?;
                std::os::unix::fs::symlink(target.unwrap_or_default(), &path).map_err(at)?;
                if own {
                    chown(&path, owner);
                }
            }
            EntryType::Link => {
                let target = root.join(target.unwrap_or_default());
                // GNU's tar says of a file that it was given twice that it is a link to itself.
                if !same(&target, &path) {
                    clear(&path)?;
                    fs::hard_link(target, &path).map_err(at)?;
                }
                continue;
            }
            _ => continue,
        }
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| at(error.into()))?;
    }
    // Last, since each file that comes changes its folder's time, and may not be allowed to.
    for (path, mode, times) in folders.into_iter().rev() {
        let set = fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            .and_then(|()| Ok(rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty())?));
        set.map_err(|error| named(&path, &error))?;
    }
    Ok(())
}

/// Only root may give files away; whom they belonged to matters less than that they are there.
fn chown(path: &Path, (user, group): (u64, u64)) {
    let id = |id: u64| u32::try_from(id).ok();
    let _ = std::os::unix::fs::lchown(path, id(user), id(group));
}

/// Whether two paths are of one file.
fn same(left: &Path, right: &Path) -> bool {
    let identity = |path: &Path| fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    identity(left).is_some_and(|found| identity(right) == Some(found))
}

/// Makes room for a file.
fn clear(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(named(path, &error)),
        _ => Ok(()),
    }
}

fn copy(from: &mut impl Read, to: &mut File, stop: &Stop) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            count => to.write_all(&buffer[..count])?,
        }
        stop.check()?;
    }
}

/// Seconds since 1970 with their fraction, as extended records have them.
fn timestamp(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    Some(Timespec { tv_sec: seconds.parse().ok()?, tv_nsec: digits.parse().ok()? })
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// When a file was changed last, for tests and for ZIP archives.
pub(super) fn modified(meta: &Metadata) -> Duration {
    meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(root: &Path) {
        fs::create_dir_all(root.join("w/dir/empty")).unwrap();
        fs::create_dir_all(root.join("home")).unwrap();
        fs::write(root.join("w/dir/file"), "one").unwrap();
        let long = format!("w/dir/{}", "long-".repeat(40));
        fs::write(root.join(&long), vec![7; 200_000]).unwrap();
        fs::set_permissions(root.join(&long), fs::Permissions::from_mode(0o555)).unwrap();
        fs::write(root.join("w/dir/ä"), "").unwrap();
        fs::hard_link(root.join("w/dir/file"), root.join("w/dir/same")).unwrap();
        std::os::unix::fs::symlink("no/where", root.join("w/dir/link")).unwrap();
        fs::write(root.join("home/outside"), "two").unwrap();
        let file = File::open(root.join("w/dir/file")).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::new(1_600_000_000, 123_456_789)).unwrap();
        let folder = File::open(root.join("w/dir")).unwrap();
        folder.set_modified(UNIX_EPOCH + Duration::new(1_500_000_000, 0)).unwrap();
    }

    fn check(root: &Path) {
        assert_eq!(fs::read(root.join("w/dir/same")).unwrap(), b"one");
        let (file, same) = (root.join("w/dir/file"), root.join("w/dir/same"));
        assert_eq!(fs::metadata(&file).unwrap().ino(), fs::metadata(same).unwrap().ino());
        let time = modified(&fs::metadata(file).unwrap());
        assert_eq!(time, Duration::new(1_600_000_000, 123_456_789));
        assert_eq!(modified(&fs::metadata(root.join("w/dir")).unwrap()).as_secs(), 1_500_000_000);
        let long = fs::metadata(root.join(format!("w/dir/{}", "long-".repeat(40)))).unwrap();
        assert_eq!((long.len(), long.mode() & 0o777), (200_000, 0o555));
        assert!(root.join("w/dir/ä").is_file() && root.join("w/dir/empty").is_dir());
        assert_eq!(fs::read_link(root.join("w/dir/link")).unwrap(), Path::new("no/where"));
        assert_eq!(fs::read(root.join("home/outside")).unwrap(), b"two");
    }

    #[test]
    fn what_was_packed_is_unpacked_and_tar_reads_it_too() {
        let methods = [Method::Gzip, Method::on("/usr/bin:/bin")];
        assert!(matches!(methods[1], Method::Zstd(_)), "zstd is missing; `make test-parts` installs it");
        for method in methods {
            let from = tempfile::tempdir().unwrap();
            tree(from.path());
            let archive = from.path().join("archive");
            let paths = [PathBuf::from("dir"), PathBuf::from("../home/outside")];
            let stop = Stop::never();
            pack(&archive, &from.path().join("w"), &paths, &method, &stop).unwrap();
            let to = tempfile::tempdir().unwrap();
            fs::create_dir(to.path().join("w")).unwrap();
            unpack(&archive, &to.path().join("w"), &method, &stop).unwrap();
            check(to.path());
            // Again, over what is there.
            unpack(&archive, &to.path().join("w"), &method, &stop).unwrap();
            check(to.path());
            let other = tempfile::tempdir().unwrap();
            fs::create_dir(other.path().join("w")).unwrap();
            let done = Command::new("tar")
                .args(["-P", "-xf"])
                .arg(&archive)
                .arg("-C")
                .arg(other.path().join("w"))
                .status();
            assert!(done.unwrap().success());
            check(other.path());
        }
    }

    #[test]
    fn what_is_found_twice_is_packed_once() {
        let from = tempfile::tempdir().unwrap();
        tree(from.path());
        let (archive, root) = (from.path().join("archive"), from.path().join("w"));
        std::os::unix::fs::symlink("dir", root.join("through")).unwrap();
        let paths = ["dir", "dir/file", "dir/same", "dir/empty", "through/file"].map(PathBuf::from);
        pack(&archive, &root, &paths, &Method::Gzip, &Stop::never()).unwrap();
        let listed = Command::new("tar").arg("-tzf").arg(&archive).output().unwrap();
        let names = String::from_utf8(listed.stdout).unwrap();
        assert_eq!(names.lines().filter(|name| *name == "dir/file").count(), 1, "{names}");
        assert_eq!(names.lines().filter(|name| *name == "dir/empty/").count(), 1, "{names}");
        assert!(names.contains("through/file"), "{names}");
        let all: HashSet<&Path> = [".", "dir", "dir/file", "../home"].map(Path::new).into();
        let along = |path: &str| goes_along(&root, Path::new(path), &all);
        assert!(along("dir") && along("dir/file") && along("dir/other"));
        assert!(!along(".") && !along("../home") && !along("through/file") && along("../home/outside"));
    }

    #[test]
    fn what_tar_was_given_twice_is_unpacked() {
        let from = tempfile::tempdir().unwrap();
        fs::create_dir(from.path().join("w")).unwrap();
        fs::write(from.path().join("w/file"), "one").unwrap();
        let archive = from.path().join("archive.tar.gz");
        let status = Command::new("tar")
            .args(["--posix", "-P", "-z", "-cf"])
            .arg(&archive)
            .arg("-C")
            .arg(from.path().join("w"))
            .args([".", "file", "file"])
            .status();
        assert!(status.unwrap().success());
        let to = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            unpack(&archive, to.path(), &Method::Gzip, &Stop::never()).unwrap();
            assert_eq!(fs::read(to.path().join("file")).unwrap(), b"one");
        }
    }

    #[test]
    fn what_tar_packed_is_unpacked() {
        let from = tempfile::tempdir().unwrap();
        tree(from.path());
        let archive = from.path().join("archive.tar.gz");
        let status = Command::new("tar")
            .args(["--posix", "-P", "-z", "-cf"])
            .arg(&archive)
            .arg("-C")
            .arg(from.path().join("w"))
            .args(["dir", "../home/outside"])
            .status();
        assert!(status.unwrap().success());
        let to = tempfile::tempdir().unwrap();
        fs::create_dir(to.path().join("w")).unwrap();
        unpack(&archive, &to.path().join("w"), &Method::Gzip, &Stop::never()).unwrap();
        check(to.path());
    }

    #[test]
    fn a_broken_archive_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("a");
        fs::write(&archive, "no archive at all").unwrap();
        for method in [Method::Gzip, Method::on("/usr/bin:/bin")] {
            assert!(unpack(&archive, folder.path(), &method, &Stop::never()).is_err());
        }
    }
}

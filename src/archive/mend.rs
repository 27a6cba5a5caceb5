//! Mending an archive from a whole copy of it.
//!
//! The old file is never written to. A donor is compared with everything of it that is still whole, copied
//! beside it, synced, checked, and renamed over it: whoever looks sees the old file or the new one, and
//! other names of the old inode (Nix links equal files together) keep what they had.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::check::{self, CheckError, Report, check};
use super::{nix, words};

/// Where a whole copy may come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `nix store repair` with the configured substituters.
    Nix,
    /// A file, or a directory that holds a file of the same name (at any depth).
    Path(PathBuf),
}

impl Source {
    /// Reads a source as the command line has it.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        if text == "nix" { Self::Nix } else { Self::Path(text.into()) }
    }
}

/// What a mend did.
#[derive(Debug)]
pub enum Mended {
    /// It was sound already.
    Sound(Report),
    /// What would be done.
    Would {
        /// The archive as it is.
        before: Report,
        /// In words.
        plan: String,
    },
    /// It is sound now.
    Done {
        /// As it was.
        before: Report,
        /// As it is.
        after: Report,
        /// Where the bytes came from, in words.
        source: String,
        /// Things to know.
        notices: Vec<String>,
    },
}

/// Why an archive was not mended.
#[derive(Debug, thiserror::Error)]
pub enum MendError {
    /// The file could not be looked at.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// A file could not be read or written.
    #[error("{}: {doing}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// No source could give a whole copy; the file is as it was.
    #[error("{}: not mended, and left as it is: no source has a whole copy of it{}", path.display(), reasons.iter().map(|reason| format!("\n  {reason}")).collect::<String>())]
    NoSource {
        /// The file.
        path: PathBuf,
        /// Why each source was of no use.
        reasons: Vec<String>,
    },
}

/// Mends the archive at `path` from the first of `sources` that has a whole copy.
///
/// Waits while another mend works in the same directory; `notice` is told so.
///
/// # Errors
/// See [`MendError`]. Whatever fails, the file is either as it was or whole.
pub fn mend(
    path: &Path,
    sources: &[Source],
    dry_run: bool,
    notice: &mut dyn FnMut(&str),
) -> Result<Mended, MendError> {
    // A link stays a link: what it leads to is mended.
    let real =
        std::fs::canonicalize(path).map_err(|source| CheckError::Io { path: path.to_owned(), source })?;
    let mut before = check(&real)?;
    before.path = path.to_owned();
    if before.sound {
        return Ok(Mended::Sound(before));
    }
    let _lock = if dry_run { None } else { Some(lock(&real, notice)?) };
    if !dry_run {
        // While we waited, another mend may have done it.
        before = check(&real)?;
        before.path = path.to_owned();
        if before.sound {
            return Ok(Mended::Sound(before));
        }
    }
    let mut reasons = Vec::new();
    for source in sources {
        let attempt = match source {
            Source::Nix => from_nix(&real, &before, dry_run),
            Source::Path(donor) => from_path(&real, &before, donor, dry_run),
        };
        match attempt {
            Ok(mended) => return Ok(mended),
            Err(Refused::Because(reason)) => reasons.push(reason),
            Err(Refused::Failed(error)) => return Err(error),
        }
    }
    Err(MendError::NoSource { path: path.to_owned(), reasons })
}

/// Why a source did not lead to a mend.
enum Refused {
    /// The next one may.
    Because(String),
    /// None will.
    Failed(MendError),
}

impl From<MendError> for Refused {
    fn from(error: MendError) -> Self {
        Self::Failed(error)
    }
}

fn failed<'a>(path: &'a Path, doing: &'static str) -> impl Fn(io::Error) -> MendError + 'a {
    move |source| MendError::Io { path: path.to_owned(), doing, source }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// One mend at a time in a directory. The lock is on the directory itself: nothing is left behind by it.
fn lock(path: &Path, notice: &mut dyn FnMut(&str)) -> Result<File, MendError> {
    let directory = File::open(folder(path)).map_err(failed(folder(path), "opening the directory"))?;
    match directory.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            notice(&format!("{}: another mend works in this directory; waiting for it", path.display()));
            directory.lock().map_err(failed(path, "waiting for another mend"))?;
        }
        Err(TryLockError::Error(source)) => return Err(failed(path, "locking the directory")(source)),
    }
    Ok(directory)
}

fn from_nix(real: &Path, before: &Report, dry_run: bool) -> Result<Mended, Refused> {
    let Some(store_path) = nix::store_path(real) else {
        return Err(Refused::Because(format!(
            "nix: {} is not in the Nix store; give --from FILE or DIR",
            real.display()
        )));
    };
    if dry_run {
        let plan = format!("would run `nix store repair {}`", store_path.display());
        return Ok(Mended::Would { before: before.clone(), plan });
    }
    nix::repair(&store_path).map_err(|said| Refused::Because(format!("nix: {said}")))?;
    let mut after = check(real).map_err(MendError::from)?;
    after.path.clone_from(&before.path);
    if !after.sound {
        let why = "nix: the path was repaired and is still not sound: it was built or stored like this; give --from, or rebuild it with `nix build --repair`";
        return Err(Refused::Because(why.to_owned()));
    }
    let source = format!("nix store repair {}", store_path.display());
    Ok(Mended::Done { before: before.clone(), after, source, notices: Vec::new() })
}

fn from_path(real: &Path, before: &Report, given: &Path, dry_run: bool) -> Result<Mended, Refused> {
    let shown = given.display();
    if given.is_dir() {
        let name = real.file_name().unwrap_or_default();
        let donors: Vec<PathBuf> = super::find::archives_below(given)
            .archives
            .into_iter()
            .filter(|path| path.file_name() == Some(name))
            .collect();
        let direct = given.join(name);
        if donors.is_empty() && !direct.is_file() {
            return Err(Refused::Because(format!("{shown}: no file {} in it", name.display())));
        }
        let donors = if donors.is_empty() { vec![direct] } else { donors };
        let mut reasons = Vec::new();
        for donor in donors {
            match from_file(real, before, &donor, dry_run) {
                Err(Refused::Because(reason)) => reasons.push(reason),
                other => return other,
            }
        }
        return Err(Refused::Because(reasons.join("\n  ")));
    }
    from_file(real, before, given, dry_run)
}

fn from_file(real: &Path, before: &Report, donor: &Path, dry_run: bool) -> Result<Mended, Refused> {
    let shown = donor.display();
    let because = |reason: String| Refused::Because(format!("{shown}: {reason}"));
    let whole = check(donor).map_err(|error| Refused::Because(error.to_string()))?;
    if !whole.sound {
        let wrong =
            whole.faults.first().map(|fault| words::fault_text(fault, whole.size)).unwrap_or_default();
        return Err(because(format!("it is not sound itself: {wrong}")));
    }
    let (old, new) =
        (check::open(real).map_err(MendError::from)?, check::open(donor).map_err(MendError::from)?);
    let old_meta = old.metadata().map_err(failed(real, "looking at it"))?;
    let new_meta = new.metadata().map_err(failed(donor, "looking at it"))?;
    if (old_meta.dev(), old_meta.ino()) == (new_meta.dev(), new_meta.ino()) {
        return Err(because("it is the same file".to_owned()));
    }
    if whole.size < before.size || before.lost.is_some_and(|lost| whole.size < lost.size_at_least) {
        return Err(because(format!(
            "it is too small to be a whole copy: {} bytes",
            words::grouped(whole.size)
        )));
    }
    // Everything of the old file that is still whole must be in the donor, byte for byte: magic, symbol
    // table, name table and all members before the break. Where the file was cut, that is all there is.
    let vouched =
        match before.break_point() {
            Some(fault) if whole.size > before.size && fault.what.is_cut() => before.size,
            Some(fault) => fault.position.min(before.whole_until),
            None => return Err(because(
                "the archive is not cut, so that no copy can be compared with it; rebuild it or run ranlib"
                    .to_owned(),
            )),
        };
    if vouched <= 68 && real.file_name() != donor.file_name() {
        return Err(because(
            "nothing of the old file is left that could vouch for it, and its name is another".to_owned(),
        ));
    }
    if let Some(position) = first_difference(&old, &new, vouched).map_err(failed(donor, "comparing"))? {
        return Err(because(format!(
            "it is another archive: the first difference is at position {}",
            words::grouped(position)
        )));
    }
    let source = format!("{shown}, equal in the first {} bytes", words::grouped(vouched));
    if dry_run {
        let plan = format!(
            "would replace it by {source}: {} bytes, {} members, sound",
            words::grouped(whole.size),
            words::grouped(whole.members)
        );
        return Ok(Mended::Would { before: before.clone(), plan });
    }
    replace(real, &old, &new, &whole)?;
    let mut after = check(real).map_err(MendError::from)?;
    after.path.clone_from(&before.path);
    let mut notices = Vec::new();
    if old_meta.nlink() > 1 {
        notices.push(format!(
            "{}: {} other name(s) of the same file were left as they are; check them too (the Nix store keeps one in .links)",
            real.display(),
            old_meta.nlink() - 1
        ));
    }
    Ok(Mended::Done { before: before.clone(), after, source, notices })
}

/// The first position below `end` at which two files differ.
fn first_difference(left: &File, right: &File, end: u64) -> io::Result<Option<u64>> {
    let (mut a, mut b) = (vec![0; 128 * 1024], vec![0; 128 * 1024]);
    let mut at = 0;
    while at < end {
        let take = (end - at).min(a.len() as u64) as usize;
        let (Some(a), Some(b)) = (a.get_mut(..take), b.get_mut(..take)) else { break };
        left.read_exact_at(a, at)?;
        right.read_exact_at(b, at)?;
        if let Some(index) = a.iter().zip(b.iter()).position(|(a, b)| a != b) {
            return Ok(Some(at + index as u64));
        }
        at += take as u64;
    }
    Ok(None)
}

/// Puts a copy of `donor` in the place of `real`, with mode, owner and times of the old file.
fn replace(real: &Path, old: &File, donor: &File, whole: &Report) -> Result<(), Refused> {
    let directory = folder(real);
    let old_meta = old.metadata().map_err(failed(real, "looking at it"))?;
    let folder_meta = std::fs::metadata(directory).map_err(failed(directory, "looking at the directory"))?;
    let space = rustix::fs::statvfs(directory)
        .map_err(|error| failed(directory, "asking for free space")(error.into()))?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    if free < whole.size {
        let error = io::Error::new(
            io::ErrorKind::StorageFull,
            format!("{} bytes are needed and {} are free", words::grouped(whole.size), words::grouped(free)),
        );
        return Err(failed(directory, "making a copy beside it")(error).into());
    }
    let beside = Beside::new(real)?;
    let mut copy = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside.path)
        .map_err(failed(&beside.path, "making a copy beside it"))?;
    let copied = copy_all(donor, &mut copy, whole.size).map_err(failed(&beside.path, "copying"))?;
    if copied != whole.size {
        return Err(Refused::Because(format!("{}: it changed while it was copied", whole.path.display())));
    }
    let owner = std::os::unix::fs::fchown(&copy, Some(old_meta.uid()), Some(old_meta.gid()));
    // Only root may give files away; anyone else owns both already, or cannot keep the owner.
    if let Err(error) = owner
        && rustix::process::geteuid().is_root()
    {
        return Err(failed(&beside.path, "setting the owner")(error).into());
    }
    copy.set_permissions(Permissions::from_mode(old_meta.mode() & 0o7777))
        .map_err(failed(&beside.path, "setting the mode"))?;
    set_times(&copy, &old_meta).map_err(failed(&beside.path, "setting the times"))?;
    copy.sync_all().map_err(failed(&beside.path, "syncing"))?;
    let proof = check(&beside.path).map_err(MendError::from)?;
    if !proof.sound {
        return Err(Refused::Because(format!(
            "{}: its copy is not sound: it changed while it was copied",
            whole.path.display()
        )));
    }
    std::fs::rename(&beside.path, real).map_err(failed(real, "putting the copy in its place"))?;
    let handle = File::open(directory).map_err(failed(directory, "opening the directory"))?;
    // The Nix store has its directories dated as its files are.
    let _ = set_times(&handle, &folder_meta);
    handle.sync_all().map_err(failed(directory, "syncing the directory"))?;
    Ok(())
}

fn copy_all(donor: &File, copy: &mut File, size: u64) -> io::Result<u64> {
    let mut buffer = vec![0; 256 * 1024];
    let mut at = 0;
    while at < size {
        let take = (size - at).min(buffer.len() as u64) as usize;
        let read = donor.read_at(buffer.get_mut(..take).unwrap_or_default(), at)?;
        if read == 0 {
            break;
        }
        copy.write_all(buffer.get(..read).unwrap_or_default())?;
        at += read as u64;
    }
    Ok(at)
}

fn set_times(file: &File, like: &std::fs::Metadata) -> io::Result<()> {
    let times = std::fs::FileTimes::new().set_accessed(like.accessed()?).set_modified(like.modified()?);
    file.set_times(times)
}

/// The copy beside the archive: a fixed name, so that what a killed mend left is found by the next one, and a
/// directory that is writable for the moment.
struct Beside {
    path: PathBuf,
    restore: Option<(PathBuf, Permissions)>,
}

impl Beside {
    fn new(real: &Path) -> Result<Self, MendError> {
        let mut name = std::ffi::OsString::from(".");
        name.push(real.file_name().unwrap_or_default());
        name.push(".sower-mend");
        let directory = folder(real);
        let mode = std::fs::metadata(directory)
            .map_err(failed(directory, "looking at the directory"))?
            .permissions();
        let mut beside = Self { path: directory.join(name), restore: None };
        if mode.mode() & 0o200 == 0 && !rustix::process::geteuid().is_root() {
            let writable = Permissions::from_mode(mode.mode() | 0o200);
            std::fs::set_permissions(directory, writable)
                .map_err(failed(directory, "making the directory writable"))?;
            beside.restore = Some((directory.to_owned(), mode));
        }
        match std::fs::remove_file(&beside.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed(&beside.path, "removing what an earlier mend left")(error))
            }
            _ => Ok(beside),
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // After the rename there is nothing by that name.
        let _ = std::fs::remove_file(&self.path);
        if let Some((directory, mode)) = self.restore.take() {
            let _ = std::fs::set_permissions(directory, mode);
        }
    }
}

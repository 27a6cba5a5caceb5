//! Which file it was: what failed names no file, or not the one, and a look at the disk can tell.
//!
//! A step has failed already, so this may take a moment, but no more: what it looks at is bounded by number and time.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{About, Diagnosis};
use crate::archive::check::check;
use crate::archive::explain;
use crate::archive::nix::store_directory;
use crate::limits::programs;
use crate::limits::size::Size;

/// How long may be looked for a file.
const TIME: Duration = Duration::from_secs(5);
/// Entries of folders that are looked at.
const ENTRIES_AT_MOST: usize = 300_000;
/// From this size on GHC has been seen to give up on an interface.
const LARGE_INTERFACE: u64 = 274_000_000;
/// Mounts that are asked.
const MOUNTS_AT_MOST: usize = 200;
/// A disk with less room than this is full, if that is less than a fiftieth of it.
const FULL: u64 = 16 << 20;

/// Where to look.
#[derive(Debug, Clone, Copy)]
pub struct Places<'p> {
    /// Where the step works.
    pub workspace: &'p Path,
    /// Where it finds programs.
    pub path: &'p OsStr,
    /// What else may be full: `TMPDIR` and the like.
    pub others: &'p [PathBuf],
}

/// Adds to a diagnosis what the disk tells.
pub fn look(found: &mut Diagnosis, rows: &str, places: &Places<'_>) {
    match found.about {
        About::Other => {}
        About::Disk => disks(found, places),
        About::Interface => interfaces(found, places),
        About::Archive => archives(found, rows, places),
    }
}

fn disks(found: &mut Diagnosis, places: &Places<'_>) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounted = mounts.lines().filter_map(disk_of).take(MOUNTS_AT_MOST);
    let all = [places.workspace.to_owned()].into_iter().chain(places.others.iter().cloned()).chain(mounted);
    let mut full: Vec<String> = Vec::new();
    let mut seen = Vec::new();
    for place in all {
        let (Ok(disk), Ok(meta)) = (rustix::fs::statvfs(&place), fs::metadata(&place)) else { continue };
        let device = std::os::unix::fs::MetadataExt::dev(&meta);
        if seen.contains(&device) {
            continue;
        }
        seen.push(device);
        let size = disk.f_blocks.saturating_mul(disk.f_frsize);
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < FULL.min(size / 50) {
            full.push(format!("the disk of {} has {} of {} left", place.display(), Size(free), Size(size)));
        } else if disk.f_files > 0 && disk.f_favail == 0 {
            full.push(format!("the disk of {} has no inode left", place.display()));
        }
    }
    if !full.is_empty() {
        full.truncate(4);
        found.cause = format!("{}: {}", found.cause, full.join(", "));
    }
}

/// The place of a mount that can be written and is a disk or memory: asking others may hang, and some are always full.
fn disk_of(line: &str) -> Option<PathBuf> {
    let mut fields = line.split(' ');
    let (source, place, kind, options) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let disk = source.starts_with("/dev/") || matches!(kind, "tmpfs" | "overlay" | "zfs" | "btrfs");
    let writable = options.split(',').any(|option| option == "rw");
    (disk && writable && !place.contains('\\')).then(|| PathBuf::from(place))
}

fn interfaces(found: &mut Diagnosis, places: &Places<'_>) {
    let mut walk = Walk::new("hi");
    walk.below(places.workspace);
    let large: Vec<String> = walk
        .found
        .iter()
        .filter_map(|path| {
            let size = fs::metadata(path).ok()?.len();
            (size >= LARGE_INTERFACE).then(|| format!("{} has {} MB", path.display(), size / 1_000_000))
        })
        .take(3)
        .collect();
    if !large.is_empty() {
        found.cause = format!(
            "{}; {}, and GHC was seen to give up on interfaces beyond 274 MB",
            found.cause,
            large.join(", ")
        );
    }
}

fn archives(found: &mut Diagnosis, rows: &str, places: &Places<'_>) {
    let position = rows.lines().rev().find_map(explain::position_in);
    // Most readers name it themselves.
    if position.is_none() && found.cause.contains(".a") {
        return;
    }
    let mut walk = Walk::new("a");
    walk.below(places.workspace);
    for compiler in programs::reachable(places.path) {
        // …/lib/ghc/bin/ghc: the libraries lie beside it.
        if let Some(libraries) = compiler.parent().and_then(Path::parent) {
            walk.below(libraries);
        }
    }
    if position.is_some() {
        walk.below(&store_directory());
    }
    // Path, and what is said of it.
    let cut: Vec<(PathBuf, String)> = match position {
        Some(position) => {
            let likely: Vec<PathBuf> =
                walk.found.iter().filter(|path| may_break_at(path, position)).take(20).cloned().collect();
            explain::position(&likely, position, &mut |_| {})
                .into_iter()
                .map(|culprit| {
                    let path = culprit.path.display();
                    let said = match &culprit.member {
                        Some(_) => format!("{path} (in {})", culprit.place()),
                        None => path.to_string(),
                    };
                    (culprit.path, said)
                })
                .collect()
        }
        None => walk
            .found
            .iter()
            .take_while(|_| walk.began.elapsed() < TIME)
            .filter(|path| check(path).is_ok_and(|report| report.break_point().is_some()))
            .take(3)
            .map(|path| (path.clone(), path.display().to_string()))
            .collect(),
    };
    if cut.is_empty() {
        if position.is_some() {
            found.cause = format!(
                "{}. No archive was found here that is cut there (one in a sandbox that is gone cannot be); an interface \
                 file (.hi) beyond 274 MB was reported to end in the same words",
                found.cause
            );
        }
        return;
    }
    let names: Vec<&str> = cut.iter().map(|(_, said)| said.as_str()).collect();
    found.cause = format!("{}: {}", found.cause, names.join(", "));
    found.advice = format!(
        "See it with `sower archive check {0}`, mend it with `sower archive patch {0}`, or have it built again",
        cut[0].0.display()
    );
}

/// Whether a member whose content begins at `position` runs past the end of the file, by its header alone.
fn may_break_at(path: &Path, position: u64) -> bool {
    const HEADER: u64 = 60;
    let Ok(file) = File::open(path) else { return false };
    let Ok(meta) = file.metadata() else { return false };
    let Some(at) = position.checked_sub(HEADER) else { return false };
    let mut header = [0; HEADER as usize];
    if file.read_exact_at(&mut header, at).is_err() {
        // The header itself may be what is cut.
        return meta.len() >= at && meta.len() < position + HEADER;
    }
    if !header.ends_with(b"`\n") {
        return meta.len() < position + HEADER;
    }
    let size = std::str::from_utf8(&header[48..58]).ok().and_then(|size| size.trim().parse::<u64>().ok());
    size.is_none_or(|size| position.saturating_add(size) > meta.len())
}

/// Looks for files by the end of their name.
struct Walk {
    extension: &'static str,
    found: Vec<PathBuf>,
    entries: usize,
    began: Instant,
}

impl Walk {
    fn new(extension: &'static str) -> Self {
        Self { extension, found: Vec::new(), entries: 0, began: Instant::now() }
    }

    fn below(&mut self, directory: &Path) {
        let mut folders = vec![directory.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                self.entries += 1;
                if self.entries > ENTRIES_AT_MOST || self.began.elapsed() > TIME {
                    return;
                }
                let Ok(kind) = entry.file_type() else { continue };
                let path = entry.path();
                if kind.is_dir() {
                    folders.push(path);
                } else if kind.is_file() && path.extension() == Some(OsStr::new(self.extension)) {
                    self.found.push(path);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_that_is_cut_at_a_position_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let whole = |content: &[u8]| {
            let mut archive = b"!<arch>\n".to_vec();
            archive.extend(
                format!("{:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", "a.o/", 0, 0, 0, 644, content.len()).bytes(),
            );
            archive.extend(content);
            archive
        };
        fs::write(directory.path().join("good.a"), whole(&[7; 100])).unwrap();
        fs::write(directory.path().join("cut.a"), &whole(&[7; 100])[..120]).unwrap();
        let places = Places { workspace: directory.path(), path: OsStr::new(""), others: &[] };
        let rows = "ghc: panic!\n\tData.Binary.Get.runGet at position 68: not enough bytes\n";
        let mut found = Diagnosis { cause: "cut".into(), advice: String::new(), about: About::Archive };
        look(&mut found, rows, &places);
        assert!(
            found.cause.ends_with("/cut.a (in a.o)") && found.advice.contains("archive patch"),
            "{found}"
        );
        let mut found = Diagnosis { cause: "cut".into(), advice: String::new(), about: About::Archive };
        look(&mut found, &rows.replace("68", "99999999999999"), &places);
        assert!(found.cause.contains("No archive was found here"), "{found}");
    }

    #[test]
    fn disks_are_told_from_what_is_no_disk() {
        let place = |line: &str| disk_of(line).map(|place| place.display().to_string());
        assert_eq!(place("/dev/vda1 / ext4 rw,relatime 0 0").as_deref(), Some("/"));
        assert_eq!(place("none /w/t tmpfs rw,size=1024k 0 0").as_deref(), Some("/w/t"));
        for line in
            ["/dev/loop0 /snap squashfs ro 0 0", "host:/x /mnt nfs4 rw 0 0", "proc /proc proc rw 0 0", ""]
        {
            assert_eq!(place(line), None, "{line}");
        }
    }

    #[test]
    fn an_interface_beyond_what_ghc_reads_is_named() {
        let directory = tempfile::tempdir().unwrap();
        File::create(directory.path().join("Types.hi")).unwrap().set_len(300_000_000).unwrap();
        fs::write(directory.path().join("Small.hi"), "").unwrap();
        let places = Places { workspace: directory.path(), path: OsStr::new(""), others: &[] };
        let mut found = Diagnosis { cause: "bad".into(), advice: String::new(), about: About::Interface };
        look(&mut found, "", &places);
        assert!(found.cause.contains("Types.hi has 300 MB") && !found.cause.contains("Small"), "{found}");
    }
}

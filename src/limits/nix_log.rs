//! What Nix commands of a job build, told by Nix itself: from 2.30 on it writes its structured log to a socket that its
//! configuration names (`json-log-path`), whoever started it and by whatever path.
//!
//! Commands that the launcher of [`super::follow`] catches are told by that one; the rest prints as it always does, and each
//! build gets a line when it ends and a row of the job's table.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::admission::Peaks;
use super::nix_build::Builds;

/// How often builders are measured.
const MEASURE: Duration = Duration::from_millis(500);
/// A longer row is cut.
const ROW_AT_MOST: u64 = 1 << 20;
/// Nix commands of a job that are listened to at a time.
const AT_A_TIME: usize = 64;
/// The kernel takes no longer path for a socket.
const PATH_AT_MOST: usize = 100;

/// Listens until it is dropped.
#[derive(Debug)]
pub struct NixLog {
    place: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    builds: Mutex<Builds>,
    out: Mutex<File>,
    stop: AtomicBool,
}

/// Whether the Nix on a search path can be told where to write its log.
#[must_use]
pub fn is_known_to(path: &OsStr) -> bool {
    let Ok(nix) = which::which_in("nix", Some(path), "/") else { return false };
    // A Nix out of a store is named after its version: no program has to be started for it before each job.
    let named = std::fs::canonicalize(&nix).ok().and_then(|real| version_of_store_path(&real));
    named.or_else(|| {
        let said = Command::new(nix).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output();
        version(&String::from_utf8_lossy(&said.ok()?.stdout))
    }) >= Some((2, 30))
}

/// `…/HASH-nix-2.34.8/bin/nix`.
fn version_of_store_path(nix: &Path) -> Option<(u32, u32)> {
    let name = nix.parent()?.parent()?.file_name()?.to_str()?;
    version(name.split_once('-')?.1.strip_prefix("nix-")?)
}

/// `nix (Nix) 2.34.8`.
fn version(said: &str) -> Option<(u32, u32)> {
    let number = said.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let mut parts = number.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

impl NixLog {
    /// Listens at `place`; what is to be told goes to `out`.
    ///
    /// # Errors
    /// When there can be no such socket.
    pub fn listen(place: &Path, out: OwnedFd) -> io::Result<Self> {
        if place.as_os_str().len() > PATH_AT_MOST {
            return Err(io::Error::new(io::ErrorKind::InvalidFilename, "the path is too long for a socket"));
        }
        let listener = UnixListener::bind(place)?;
        let shared = Arc::new(Shared {
            builds: Mutex::new(Builds::new(Peaks::default(), false)),
            out: Mutex::new(out.into()),
            stop: AtomicBool::new(false),
        });
        let served = Arc::clone(&shared);
        std::thread::Builder::new().name("nix-log".to_owned()).spawn(move || {
            let talking = Arc::new(());
            for stream in listener.incoming() {
                if served.stop.load(Ordering::Relaxed) {
                    break;
                }
                let (Ok(stream), true) = (stream, Arc::strong_count(&talking) <= AT_A_TIME) else { continue };
                let (served, talking) = (Arc::clone(&served), Arc::clone(&talking));
                // Without a thread this command is not told; it builds all the same.
                let _ = std::thread::Builder::new().name("nix-log".to_owned()).spawn(move || {
                    served.hear(&stream);
                    drop(talking);
                });
            }
        })?;
        Ok(Self { place: place.to_owned(), shared })
    }

    /// A variable `NIX_CONFIG` with the place of this log added.
    #[must_use]
    pub fn config(&self, before: &str) -> String {
        let separator = if before.is_empty() || before.ends_with('\n') { "" } else { "\n" };
        format!("{before}{separator}json-log-path = {}\n", self.place.display())
    }

    /// A table of what was built, as Markdown; `None` when nothing was.
    #[must_use]
    pub fn markdown(&self) -> Option<String> {
        self.shared.builds().markdown()
    }
}

impl Drop for NixLog {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the listener.
        let _ = UnixStream::connect(&self.place);
        let _ = std::fs::remove_file(&self.place);
    }
}

impl Shared {
    fn builds(&self) -> MutexGuard<'_, Builds> {
        self.builds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hears one Nix command to its end.
    fn hear(&self, stream: &UnixStream) {
        let mut nix = None;
        let _ = stream.set_read_timeout(Some(MEASURE));
        let mut reader = BufReader::new(stream);
        let mut row = Vec::new();
        loop {
            match reader.by_ref().take(ROW_AT_MOST).read_until(b'\n', &mut row) {
                Ok(0) => break,
                Ok(_) => {
                    let text = String::from_utf8_lossy(&row);
                    nix = nix.or_else(|| process_of(&text));
                    let said = self.builds().take(&format!("@nix {}", text.trim_end()));
                    if let Some(said) =
                        said.filter(|said| said.contains(": ended after ") && !said.contains("> "))
                    {
                        self.tell(&said);
                    }
                    row.clear();
                }
                // A part of a row may be there already; the rest is added to it.
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if let Some(nix) = nix {
                        self.builds().measure(nix);
                    }
                    if self.stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
                Err(_) => break,
            }
        }
    }

    fn tell(&self, text: &str) {
        // A line that is this short goes into a pipe in one piece.
        let _ =
            self.out.lock().unwrap_or_else(PoisonError::into_inner).write_all(format!("{text}\n").as_bytes());
    }
}

/// The number of the Nix process: the upper half of the numbers that it gives to what it does (`nextId` in its
/// `libutil/logging.cc`).
fn process_of(row: &str) -> Option<u32> {
    let digits = row.split_once("\"id\":")?.1;
    let end = digits.find(|c: char| !c.is_ascii_digit())?;
    u32::try_from(digits[..end].parse::<u64>().ok()? >> 32).ok().filter(|pid| *pid > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nix_writes_to_the_socket_is_told_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let place = directory.path().join("nix");
        let log = NixLog::listen(&place, write).unwrap();
        assert_eq!(log.config("a = 1"), format!("a = 1\njson-log-path = {}\n", place.display()));
        let mut nix = UnixStream::connect(&place).unwrap();
        let path = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-app-1.drv";
        writeln!(nix, r#"{{"action":"start","fields":["{path}"],"id":7,"level":3,"type":105}}"#).unwrap();
        writeln!(nix, r#"{{"action":"result","fields":["x: ended after y"],"id":7,"type":101}}"#).unwrap();
        writeln!(nix, "rubbish\n{{\"action\":\"stop\",\"id\":7}}").unwrap();
        drop(nix);
        let mut line = String::new();
        BufReader::new(File::from(read)).read_line(&mut line).unwrap();
        assert!(line.starts_with("app-1: ended after "), "{line}");
        assert!(log.markdown().unwrap().contains("| app-1 | built |"));
        drop(log);
        assert!(!place.exists());
        assert!(
            NixLog::listen(&directory.path().join("x".repeat(200)), rustix::pipe::pipe().unwrap().1).is_err()
        );
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(version("nix (Nix) 2.34.8\n"), Some((2, 34)));
        assert_eq!(version("nix (Nix) 2.8.0"), Some((2, 8)));
        assert_eq!(version("nix (Determinate Nix 3.1.0) 2.30.1"), Some((3, 1)));
        assert_eq!(version(""), None);
        let stored = |path: &str| version_of_store_path(Path::new(path));
        assert_eq!(stored("/nix/store/0c4v9j8w-nix-2.34.8/bin/nix"), Some((2, 34)));
        assert_eq!(stored("/nix/store/0c4v9j8w-lix-2.93.0/bin/nix"), None, "another program, which is asked");
        assert_eq!(stored("/nix/store/0c4v9j8w-nix-wrapped/bin/nix"), None);
        assert_eq!(stored("/usr/bin/nix"), None);
        assert_eq!(process_of(r#"{"action":"stop","id":96658238996480}"#), Some(22505));
        assert_eq!(process_of(r#"{"action":"msg"}"#), None);
    }
}

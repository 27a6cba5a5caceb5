//! helm on the far side, in a session of its own: a connection that is lost takes nothing with it.
//!
//! What helm says and how it ends goes into files there, which are looked at from here. The chart and the files of
//! values are sent first.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::place::Far;
use super::{Error, Request};
use crate::ssh::quoted;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The most that is read of helm's words in one look, in bytes.
const WORDS: usize = 64 << 10;

/// A directory of the far side with a chart and values, removed when this is dropped.
pub(super) struct Sent {
    far: Arc<Far>,
    directory: String,
}

impl Sent {
    /// Sends the chart, if it is one of this host, and the files of values. The request then names what is there.
    pub(super) fn send(far: &Arc<Far>, request: &mut Request) -> Result<Self, Error> {
        let connection = far.connection()?;
        let made =
            connection.output("umask 077; mktemp -d \"${TMPDIR:-/tmp}/sower-deploy-XXXXXXXX\"", &[], 4096)?;
        let directory = String::from_utf8_lossy(&made.stdout).trim().to_owned();
        if !made.exit.success() || !directory.starts_with('/') {
            return Err(Error::Argument(format!("{} has no room for a directory in /tmp", far.host())));
        }
        let sent = Self { far: Arc::clone(far), directory };
        let mut sftp = connection.sftp()?;
        let chart = Path::new(&request.chart);
        if chart.exists() {
            let packed = if chart.is_dir() { packed(chart)? } else { read(chart)? };
            let there = format!("{}/chart.tgz", sent.directory);
            sftp.write(&there, 0o600, &mut packed.as_slice())?;
            request.chart = there;
        }
        for (index, path) in request.values.iter_mut().enumerate() {
            let content = read(path)?;
            let there = format!("{}/values-{index}.yaml", sent.directory);
            sftp.write(&there, 0o600, &mut content.as_slice())?;
            *path = there.into();
        }
        Ok(sent)
    }

    /// Starts a helm there; `line` gets each line of its stderr, `end` is called when it has ended.
    pub(super) fn start(
        &self,
        command: &Command,
        mut line: impl FnMut(String) + Send + 'static,
        end: impl FnOnce() + Send + 'static,
    ) -> Result<Detached, Error> {
        let directory = quoted(&self.directory);
        let inner = format!(
            "{} >/dev/null 2>err </dev/null & echo $! >pid; wait $!; echo $? >code.new; mv code.new code",
            self.far.line(command)
        );
        // Only the helm goes into the background, with nothing of this channel in its hands: a list of commands there
        // would be a shell that keeps the channel open until helm has ended.
        let launch = format!(
            "cd {directory} && rm -f err pid code && : >err || exit 1\n\
             setsid sh -c {} >/dev/null 2>&1 </dev/null &",
            quoted(&inner)
        );
        let launched = self.far.connection()?.output(&format!("sh -c {}", quoted(&launch)), &[], 4096)?;
        if !launched.exit.success() {
            let said = String::from_utf8_lossy(&launched.stderr).trim().to_owned();
            return Err(Error::Helm { what: "start", message: said });
        }
        let state = Arc::new(State::default());
        let (watched, far, place) = (Arc::clone(&state), Arc::clone(&self.far), directory.clone());
        thread::spawn(move || {
            let mut words = Words::default();
            loop {
                thread::sleep(LOOK_EVERY);
                let look = format!(
                    "cd {place} || exit 9; code=$(cat code 2>/dev/null); tail -c +{} err | head -c 32000; printf '\\n\\0%s' \"$code\"",
                    words.seen + 1
                );
                let Ok(connection) = far.connection() else {
                    line(format!("{} cannot be reached any more; helm goes on there", far.host()));
                    watched.lost.store(true, Ordering::SeqCst);
                    break;
                };
                let Ok(output) = connection.output(&look, &[], WORDS) else { continue };
                if let Some(code) = words.take(&output.stdout, &mut line) {
                    watched.success.store(code == "0", Ordering::SeqCst);
                    break;
                }
            }
            watched.ended.store(true, Ordering::SeqCst);
            end();
        });
        Ok(Detached { state, far: Arc::clone(&self.far), directory })
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if let Some(connection) = self.far.last_connection() {
            // Nobody is left to hear of a failure; it is a directory in /tmp.
            let _ = connection.output(&format!("rm -rf {}", quoted(&self.directory)), &[], 1024);
        }
    }
}

/// What was said so far.
#[derive(Default)]
struct Words {
    seen: usize,
    rest: Vec<u8>,
}

impl Words {
    /// Takes the answer of one look: new words, then a line end, a NUL and the exit code, if there is one.
    fn take(&mut self, answer: &[u8], line: &mut impl FnMut(String)) -> Option<String> {
        let cut = answer.iter().rposition(|byte| *byte == 0)?;
        let (words, code) = (&answer[..cut.saturating_sub(1)], &answer[cut + 1..]);
        self.seen += words.len();
        self.rest.extend(words);
        let code = String::from_utf8_lossy(code).trim().to_owned();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let text: Vec<u8> = self.rest.drain(..=end).collect();
            line(String::from_utf8_lossy(&text).trim_end().to_owned());
        }
        if code.is_empty() {
            return None;
        }
        if !self.rest.is_empty() {
            line(String::from_utf8_lossy(&self.rest).into_owned());
        }
        Some(code)
    }
}

#[derive(Default)]
struct State {
    ended: AtomicBool,
    success: AtomicBool,
    lost: AtomicBool,
}

/// A helm that runs on the far side.
pub(super) struct Detached {
    state: Arc<State>,
    far: Arc<Far>,
    directory: String,
}

impl Detached {
    /// Sends it a signal, such as `TERM`.
    pub(super) fn signal(&self, name: &str) {
        if let Ok(connection) = self.far.connection() {
            // It may just have ended.
            let _ =
                connection.output(&format!("kill -s {name} \"$(cat {}/pid)\"", self.directory), &[], 1024);
        }
    }

    /// Whether it has ended, and well; a helm that nobody can be asked about counts as ended badly.
    pub(super) fn ended(&self) -> Option<bool> {
        let ended = self.state.ended.load(Ordering::SeqCst);
        ended.then(|| self.state.success.load(Ordering::SeqCst) && !self.state.lost.load(Ordering::SeqCst))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::File { path: path.to_owned(), source })
}

/// A chart directory as helm packs it: below a directory of its name.
fn packed(chart: &Path) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::File { path: chart.to_owned(), source };
    let name = std::fs::canonicalize(chart).map_err(failed)?;
    let name = name.file_name().unwrap_or("chart".as_ref()).to_owned();
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    tar.follow_symlinks(true);
    tar.append_dir_all(Path::new(&name), chart).map_err(failed)?;
    let mut gzip = tar.into_inner().map_err(failed)?;
    gzip.flush().map_err(failed)?;
    gzip.finish().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_line_by_line_and_then_the_code() {
        let mut lines = Vec::new();
        let mut words = Words::default();
        assert_eq!(words.take(b"one\ntw\n\0", &mut |line| lines.push(line)), None);
        assert_eq!(words.seen, 6);
        assert_eq!(words.take(b"o\nthree\n\x001\n", &mut |line| lines.push(line)), Some("1".to_owned()));
        assert_eq!(lines, ["one", "two", "three"]);
    }
}

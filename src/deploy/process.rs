//! Children whose output is bounded, and who are asked to end before anybody is made to.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use rustix::process::{Pid, Signal};

use super::place::Place;
use super::{Error, KUBECONFIG_VARIABLE};

/// The most that is kept of what a program says on stderr, in bytes.
const STDERR_LIMIT: usize = 64 << 10;
/// The longest line that is read in one piece, in bytes. A longer one is cut into several.
const LINE_LIMIT: usize = 16 << 10;

/// A program that ran to its end.
pub(super) struct Captured<T> {
    /// Whether it exited with 0.
    pub(super) success: bool,
    /// What was made of its stdout.
    pub(super) stdout: T,
    /// The first 64 KiB of its stderr.
    pub(super) stderr: String,
}

/// A command that does not see the secrets in this program's own environment, nor its stdin or its
/// terminal's Ctrl-C.
pub(super) fn command(program: &std::path::Path) -> Command {
    let mut command = Command::new(program);
    for secret in [KUBECONFIG_VARIABLE, crate::ssh::KEY_VARIABLE, crate::ssh::PASSPHRASE_VARIABLE] {
        command.env_remove(secret);
    }
    command.stdin(Stdio::null()).process_group(0);
    command
}

/// The most that is kept of what a program on the far side says on stdout, in bytes.
const FAR_LIMIT: usize = 64 << 20;

/// Runs a program to its end where it is to run; `read` gets its stdout.
///
/// # Errors
/// If it does not start or cannot be waited for. A program that fails is not an error.
pub(super) fn capture_at<T>(
    place: &Place,
    command: &mut Command,
    read: impl FnOnce(&mut dyn Read) -> T,
) -> Result<Captured<T>, Error> {
    match place {
        Place::Here => capture(command, read),
        Place::There(far) => {
            let output = far.connection()?.output(&far.line(command), &[], FAR_LIMIT)?;
            let mut stderr = output.stderr;
            stderr.truncate(STDERR_LIMIT);
            Ok(Captured {
                success: output.exit.success(),
                stdout: read(&mut output.stdout.as_slice()),
                stderr: String::from_utf8_lossy(&stderr).into_owned(),
            })
        }
    }
}

/// Runs a program on this host to its end; `read` gets its stdout as it comes.
///
/// # Errors
/// If it does not start or cannot be waited for. A program that fails is not an error.
pub(super) fn capture<T>(
    command: &mut Command,
    read: impl FnOnce(&mut dyn Read) -> T,
) -> Result<Captured<T>, Error> {
    let name = program_name(command);
    let failed = |source| Error::Process { program: name.clone(), source };
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    let stderr = child.stderr.take();
    let stderr =
        thread::spawn(move || stderr.map(|pipe| keep_beginning(pipe, STDERR_LIMIT)).unwrap_or_default());
    let mut stdout = child.stdout.take();
    let result = match &mut stdout {
        Some(pipe) => read(pipe),
        None => read(&mut io::empty()),
    };
    // A reader that stopped early must not leave the program waiting for room in the pipe.
    drop(stdout);
    let status = child.wait().map_err(failed)?;
    let stderr = stderr.join().unwrap_or_default();
    Ok(Captured {
        success: status.success(),
        stdout: result,
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    })
}

/// Reads at most `limit` bytes as text.
pub(super) fn text(limit: usize) -> impl FnOnce(&mut dyn Read) -> String {
    move |pipe| String::from_utf8_lossy(&keep_beginning(pipe, limit)).into_owned()
}

/// The same as bytes.
pub(super) fn bytes(limit: usize) -> impl FnOnce(&mut dyn Read) -> Vec<u8> {
    move |pipe| keep_beginning(pipe, limit)
}

/// Reads everything and keeps the first `limit` bytes.
fn keep_beginning(mut pipe: impl Read, limit: usize) -> Vec<u8> {
    let mut kept = Vec::new();
    // What was read before an error is still worth keeping.
    let _ = pipe.by_ref().take(limit as u64).read_to_end(&mut kept);
    let _ = io::copy(&mut pipe, &mut io::sink());
    kept
}

/// A program that runs for a while and says things on stderr; its stdout goes nowhere.
pub(super) struct Running {
    child: Child,
    name: String,
}

impl Running {
    /// Starts a program. `line` is called in a thread of its own with each line of stderr, and `end` after the last.
    pub(super) fn start(
        command: &mut Command,
        mut line: impl FnMut(String) + Send + 'static,
        end: impl FnOnce() + Send + 'static,
    ) -> Result<Self, Error> {
        let name = program_name(command);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| Error::Process { program: name.clone(), source })?;
        let stderr = child.stderr.take();
        thread::spawn(move || {
            if let Some(pipe) = stderr {
                let mut pipe = BufReader::new(pipe);
                while let Some(text) = next_line(&mut pipe) {
                    line(text);
                }
            }
            end();
        });
        Ok(Self { child, name })
    }

    /// Asks the program to end (SIGTERM). helm then marks the release as failed by itself; a SIGKILL would leave it
    /// locked.
    pub(super) fn ask_to_end(&self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may just have ended by itself; it is not reaped yet, so the number is still its own.
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
    }

    /// Ends the program at once (SIGKILL), for when it was asked and does not.
    pub(super) fn kill(&mut self) {
        // It may just have ended by itself.
        let _ = self.child.kill();
    }

    /// The exit status, if the program has ended.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.child.try_wait().map_err(|source| Error::Process { program: self.name.clone(), source })
    }
}

fn next_line(pipe: &mut impl BufRead) -> Option<String> {
    let mut line = Vec::new();
    let read = pipe.by_ref().take(LINE_LIMIT as u64).read_until(b'\n', &mut line).ok()?;
    (read > 0).then(|| String::from_utf8_lossy(&line).trim_end().to_owned())
}

fn program_name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn output_beyond_the_limit_is_dropped_and_does_not_block() {
        let mut shell = command(Path::new("/bin/sh"));
        shell.args(["-c", "head -c 1000000 /dev/zero | tr '\\0' x; head -c 1000000 /dev/zero >&2; exit 3"]);
        let captured = capture(&mut shell, text(10)).unwrap();
        assert!(!captured.success);
        assert_eq!(captured.stdout, "xxxxxxxxxx");
        assert_eq!(captured.stderr.len(), STDERR_LIMIT);
    }

    #[test]
    fn lines_come_one_by_one_and_then_the_end() {
        let (send, receive) = mpsc::channel();
        let last = send.clone();
        let mut shell = command(Path::new("/bin/sh"));
        shell.args(["-c", "echo one >&2; echo hidden; printf two >&2"]);
        let line = move |text| send.send(Some(text)).unwrap();
        let mut running = Running::start(&mut shell, line, move || last.send(None).unwrap()).unwrap();
        let lines: Vec<_> = receive.iter().collect();
        assert_eq!(lines, [Some("one".to_owned()), Some("two".to_owned()), None]);
        assert!(running.child.wait().unwrap().success());
    }

    #[test]
    fn a_program_is_asked_to_end() {
        let mut shell = command(Path::new("/bin/sh"));
        shell.args(["-c", "trap 'exit 7' TERM; echo ready >&2; while :; do sleep 0.05; done"]);
        let (send, receive) = mpsc::channel();
        let mut running = Running::start(&mut shell, move |text| send.send(text).unwrap(), || ()).unwrap();
        assert_eq!(receive.recv().unwrap(), "ready");
        running.ask_to_end();
        assert_eq!(running.child.wait().unwrap().code(), Some(7));
    }
}

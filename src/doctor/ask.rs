//! Programs that are asked for a few words, with a time limit: one that hangs is a finding, not a reason to hang.

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take to say its version.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// How the error begins of a program that took longer.
pub(super) const SLOW: &str = "no answer within";
/// The most that is read of what it says, in bytes.
const LIMIT: u64 = 256 << 10;

/// What a program said.
#[derive(Debug, Clone, Default)]
pub(super) struct Said {
    /// Whether it exited with 0.
    pub(super) success: bool,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Said {
    /// The first line that is not empty.
    pub(super) fn first_line(&self) -> String {
        let lines = self.stdout.lines().chain(self.stderr.lines());
        let line = lines.map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        line.chars().take(120).collect()
    }
}

/// Runs a program to its end.
///
/// # Errors
/// Why there is no answer, in a few words.
pub(super) fn ask(program: &Path, arguments: &[impl AsRef<OsStr>]) -> Result<Said, String> {
    let mut command = Command::new(program);
    command.args(arguments);
    ask_command(command)
}

/// As [`ask`], with an environment of its own.
pub(super) fn ask_command(mut command: Command) -> Result<Said, String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("does not start: {error}"))?;
    let read = |pipe: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(pipe) = pipe {
                // What was read before an error is still worth keeping.
                let _ = pipe.take(LIMIT).read_to_end(&mut bytes);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = read(child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>));
    let stderr = read(child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>));
    let success = wait(&mut child)?;
    Ok(Said { success, stdout: stdout.join().unwrap_or_default(), stderr: stderr.join().unwrap_or_default() })
}

fn wait(child: &mut Child) -> Result<bool, String> {
    let until = Instant::now() + PATIENCE;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status.success()),
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{SLOW} {} s", PATIENCE.as_secs()));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

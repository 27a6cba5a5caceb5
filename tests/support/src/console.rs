//! A shell in a virtual machine, by its second serial line: one command after the other, each with its output and its
//! exit code.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::Trouble;
use crate::machine::Machine;

/// Answers the line in the machine: to be started by its first process, with the root of the system as `/`.
pub const SHELL: &str = "export PATH=/usr/sbin:/usr/bin:/sbin:/bin; stty raw -echo </dev/ttyS1; while :; do cat </dev/ttyS1 | /bin/sh >/dev/ttyS1 2>&1; sleep 1; done";

/// How often a shell that does not answer yet is asked again.
const AGAIN: Duration = Duration::from_secs(5);

/// The line, and how many commands went over it.
#[derive(Debug)]
pub struct Console {
    line: UnixStream,
    count: u32,
}

/// What became of a command.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Its exit code.
    pub code: i32,
    /// What it printed, on both streams.
    pub said: String,
}

impl Console {
    /// Connects, and waits until a shell answers.
    ///
    /// # Errors
    /// When none does within `timeout`.
    pub fn open(machine: &Machine, timeout: Duration) -> Result<Self, Trouble> {
        let mut console = Self { line: machine.second_line()?, count: 0 };
        let began = Instant::now();
        // What is written before the shell is there may be lost.
        while console.run("true", AGAIN).is_err() {
            if began.elapsed() >= timeout {
                return Err("no shell answers in the machine".into());
            }
        }
        Ok(console)
    }

    /// Runs a command of one line.
    ///
    /// # Errors
    /// When it has not ended after `timeout`.
    pub fn run(&mut self, command: &str, timeout: Duration) -> Result<Ended, Trouble> {
        self.count += 1;
        // In two parts, so that an echo of the command is not taken for its end.
        let mark = format!("ended {} ", self.count);
        writeln!(self.line, "{{ {command}; }} </dev/null; echo ended' '{} $?.", self.count)?;
        let until = Instant::now() + timeout;
        let mut read = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let text = String::from_utf8_lossy(&read);
            if let Some((said, behind)) = text.rsplit_once(&mark)
                && let Some((code, _)) = behind.split_once('.')
            {
                return Ok(Ended { code: code.trim().parse()?, said: said.replace('\r', "") });
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("{command:?} has not ended; it said: {text}").into());
            }
            self.line.set_read_timeout(Some(left))?;
            match self.line.read(&mut buffer) {
                Ok(0) => return Err("the machine is off".into()),
                Ok(count) => read.extend_from_slice(&buffer[..count]),
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

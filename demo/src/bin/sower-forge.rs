//! The small forge of the demo on its own, for `make bench` and the test of the static binary.
//!
//! Prints its address and registration token. Each line that it then reads names a workflow file with one job:
//! it starts a run of it, waits for its end, prints the result, and the log if that was no success. Ends with its
//! standard input.

use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::time::Duration;

use sower_test_support::{Forge, Options, Status, Version};

/// Longest that a run may take. A figure of a million rows on a busy machine takes a while.
const LIMIT: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sower-forge: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), Box<dyn std::error::Error>> {
    let mut forge = Forge::start(Options { version: Version::V1_27, ..Options::default() })?;
    forge.lenient();
    let mut out = io::stdout().lock();
    writeln!(out, "{} {}", forge.url(), forge.registration_token())?;
    for line in io::stdin().lock().lines() {
        let path = line?;
        let yaml = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        let id = forge.submit(&path, &yaml)?;
        let run = forge.wait_done(id, LIMIT)?;
        writeln!(out, "{}", run.status)?;
        if run.status != Status::Success {
            eprintln!("{}", forge.describe());
        }
        let violations = forge.violations();
        if !violations.is_empty() {
            return Err(format!("the runner broke rules of the protocol:\n{}", violations.join("\n")).into());
        }
    }
    Ok(())
}

//! `sower config`: check a configuration, show what is in force, print the documented one.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use super::{Failure, Outcome};
use crate::config::{Config, DEFAULT_PATH, Error, Setting, settings};
use crate::gitea::{Registration, faults};

/// Check the runner's configuration, show what is in force, or print a documented one.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Say what is wrong or odd in a configuration: a line for each finding
    Check(File),
    /// Print the value of every key that is in force, and whether the file or the default gives it
    Show(File),
    /// Print the documented configuration with every key and its default
    Example,
}

#[derive(Debug, clap::Args)]
struct File {
    /// The configuration [default: /etc/sower/config.yaml, or the built-in values where there is none]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  sower config check
  sower config show -c config.yaml --json
  sower config example

Exit code: 0 no errors, 1 errors, 2 the file could not be read.";

pub(super) fn run(args: &Args) -> Outcome {
    let mut out = io::stdout().lock();
    let done = match &args.command {
        Command::Check(file) => check(file, &mut out)?,
        Command::Show(file) => show(file, &mut out)?,
        Command::Example => {
            written(out.write_all(Config::EXAMPLE.as_bytes()))?;
            ExitCode::SUCCESS
        }
    };
    written(out.flush())?;
    Ok(done)
}

/// One thing that is wrong or odd.
struct Found {
    error: bool,
    text: String,
}

fn check(file: &File, out: &mut dyn Write) -> Outcome {
    let mut found = Vec::new();
    match Config::load(file.config.as_deref()) {
        Err(error @ Error::Io { .. }) => return Err(Failure::wrong_question(error)),
        Err(Error::Wrong(findings)) => {
            found.extend(findings.iter().map(|finding| Found { error: true, text: finding.to_string() }));
        }
        Ok((config, warnings)) => {
            found.extend(warnings.iter().map(|warning| Found { error: false, text: warning.to_string() }));
            found.extend(faults(&config).into_iter().map(|text| Found { error: true, text }));
            match Registration::read(&config.runner.file) {
                Ok(registration) if registration.labels.is_empty() && config.runner.labels.is_empty() => {
                    let text = "runner.labels: no label here and none in the registration, so no job would \
                                ever be for this runner";
                    found.push(Found { error: true, text: text.to_owned() });
                }
                Ok(_) => {}
                // Not yet registered is no fault of the configuration.
                Err(error) => found.push(Found { error: false, text: format!("runner.file: {error}") }),
            }
        }
    }
    for found in &found {
        let severity = if found.error { "error" } else { "warning" };
        let line = if file.json {
            serde_json::json!({ "severity": severity, "message": found.text }).to_string()
        } else {
            format!("{severity}: {}", found.text)
        };
        written(writeln!(out, "{line}"))?;
    }
    let errors = found.iter().filter(|found| found.error).count();
    if !file.json {
        let name = file.config.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_PATH));
        let warnings = found.len() - errors;
        written(writeln!(out, "{}: {errors} errors, {warnings} warnings", name.display()))?;
    }
    Ok(if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(file: &File, out: &mut dyn Write) -> Outcome {
    let settings = settings(file.config.as_deref()).map_err(|error| match error {
        Error::Io { .. } => Failure::wrong_question(error),
        Error::Wrong(_) => Failure::not_well(error),
    })?;
    for Setting { key, value, from_file } in settings {
        let source = if from_file { "file" } else { "default" };
        let line = if file.json {
            serde_json::json!({ "key": key, "value": value, "source": source }).to_string()
        } else {
            let setting = format!("{key}: {value}");
            if from_file { setting } else { format!("{setting:<48}  # default") }
        };
        written(writeln!(out, "{line}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A reader that has seen enough is no failure.
fn written(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::not_well(format!("cannot print: {error}")))
        }
        _ => Ok(()),
    }
}

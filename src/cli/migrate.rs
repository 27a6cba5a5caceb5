//! `sower migrate`: Take over from act_runner.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{Failure, Outcome};
use crate::config::{Config, DEFAULT_PATH, Fate, migrate, split_labels};
use crate::gitea::Registration;
use crate::supervisor::StateDir;

/// Take over from act_runner: read its configuration and registration, say what is taken and what is not done here.
///
/// Without --write nothing is written. The runner keeps its name, its number and its labels in Gitea: stop act_runner
/// before sower is started, since both would be the same runner.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// act_runner's configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// act_runner's registration, its file `.runner`
    #[arg(long, value_name = "FILE", required_unless_present = "config")]
    runner: Option<PathBuf>,
    /// Write the new configuration and registration
    #[arg(long)]
    write: bool,
    /// Where the new configuration goes
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    to_config: PathBuf,
    /// Where the new registration goes
    #[arg(long, value_name = "FILE", default_value = "/var/lib/sower/.runner")]
    to_runner: PathBuf,
    /// Replace files that are there
    #[arg(long, requires = "write")]
    force: bool,
}

const EXAMPLES: &str = "\
Examples:
  sower migrate --config /etc/act_runner/config.yaml --runner /var/lib/act_runner/.runner
  sower migrate --config /etc/act_runner/config.yaml --runner /var/lib/act_runner/.runner --write

Exit code: 0 done, 1 a file could not be written, 2 the question was wrong.";

pub(super) fn run(args: &Args) -> Outcome {
    let mut text = String::new();
    let mut new_config = None;
    if let Some(path) = &args.config {
        let old = std::fs::read(path)
            .map_err(|error| Failure::wrong_question(format!("{}: {error}", path.display())))?;
        let migrated = migrate(&old).map_err(|error| {
            Failure::wrong_question(format!("{}:{}: {}", path.display(), error.place, error.message))
        })?;
        for moved in &migrated.keys {
            let (mark, why) = match &moved.fate {
                Fate::Taken => ("taken", ""),
                Fate::Default => ("default", ""),
                Fate::NoEffect(why) => ("not done", why.as_str()),
                Fate::Left(why) => ("left out", why.as_str()),
            };
            let line = format!("{mark:<8}  {}:{}: {}  {why}", path.display(), moved.line, moved.key);
            let _ = writeln!(text, "{}", line.trim_end());
        }
        let head = "# Taken from act_runner's configuration. `sower config example` prints every key with its default.\n";
        let place = if args.to_runner == Path::new("/var/lib/sower/.runner") {
            String::new()
        } else {
            format!("  file: {}\n", args.to_runner.display())
        };
        let body = if place.is_empty() || migrated.text.contains("runner:\n") {
            migrated.text.replacen("runner:\n", &format!("runner:\n{place}"), 1)
        } else {
            format!("runner:\n{place}{}", migrated.text)
        };
        new_config = Some(format!("{head}{body}"));
    }
    let mut new_registration = None;
    if let Some(path) = &args.runner {
        let mut registration = Registration::read(path).map_err(Failure::wrong_question)?;
        let (taken, left) = split_labels(&registration.labels);
        registration.labels = taken;
        let _ = writeln!(
            text,
            "taken     {}: runner {} of {}, labels {}",
            path.display(),
            registration.name,
            registration.address,
            if registration.labels.is_empty() { "none".to_owned() } else { registration.labels.join(", ") }
        );
        for label in left {
            let name = label.split(':').next().unwrap_or_default();
            let _ = writeln!(
                text,
                "not done  {}: label {label}: jobs run on the host only; where its workflows can, add {name}:host under \
                 runner.labels",
                path.display()
            );
        }
        new_registration = Some(registration);
    }
    print!("{text}");
    if !args.write {
        if let Some(config) = &new_config {
            print!("\n{}:\n{}", args.to_config.display(), indented(config));
        }
        println!("\nnothing is written; --write does");
        return Ok(ExitCode::SUCCESS);
    }
    if !args.force {
        let targets =
            [(new_config.is_some(), &args.to_config), (new_registration.is_some(), &args.to_runner)];
        if let Some((_, path)) = targets.iter().find(|(wanted, path)| *wanted && path.exists()) {
            return Err(Failure::wrong_question(format!(
                "{}: is there already; --force replaces it",
                path.display()
            )));
        }
    }
    if let Some(config) = &new_config {
        Config::parse(&args.to_config, config.as_bytes()).map_err(Failure::not_well)?;
        write(&args.to_config, config)
            .map_err(|error| Failure::not_well(format!("{}: {error}", args.to_config.display())))?;
        println!("written   {}", args.to_config.display());
    }
    if let Some(registration) = &new_registration {
        let folder = args.to_runner.parent().unwrap_or(Path::new("."));
        StateDir::open(folder).map_err(Failure::not_well)?;
        registration.write(&args.to_runner).map_err(Failure::not_well)?;
        println!("written   {}", args.to_runner.display());
    }
    println!("next      stop act_runner, then: sower doctor, and start sower");
    Ok(ExitCode::SUCCESS)
}

/// `envs` may hold secrets: nobody else reads the file.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut file =
        std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Values of `envs` are not shown.
fn indented(config: &str) -> String {
    config
        .lines()
        .map(|line| {
            let shown = if line.starts_with("  envs: {") { "  envs: {…}" } else { line };
            format!("    {shown}\n")
        })
        .collect()
}

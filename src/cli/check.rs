//! `sower check`: say what is wrong with workflow files before they run.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{Failure, Outcome};
use crate::config::Config;
use crate::gitea::Registration;
use crate::workflow::{Around, Diagnostic, Severity, check_action_in, check_workflow_in, snippet};

/// Say what is wrong with workflow files: a line for each finding.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Workflow files, action.yml files, or folders; without any, the workflows of this repository.
    #[arg(value_name = "FILE|DIR")]
    paths: Vec<PathBuf>,
    /// Print one JSON object for each finding.
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// The runner's configuration: a label that `runs-on` asks for and the runner does not have is an error.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How findings are printed: plain lines, or workflow commands that annotate a run.
    #[arg(long, value_enum, default_value_t = Format::Plain)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Plain,
    Json,
    Gitea,
}

const EXAMPLES: &str = "\
Examples:
  sower check
  sower check .gitea/workflows/deploy.yaml --json
  sower check --format gitea    # in a step of a job
  sower check --config /etc/sower/config.yaml    # labels too

Exit code: 0 no errors, 1 errors, 2 a file could not be read or nothing was found.";

/// How large a file may be that is only looked at for what it declares, in bytes.
const LARGEST_NEIGHBOUR: u64 = 1 << 20;

/// Where a repository keeps its workflows.
const FOLDERS: [&str; 2] = [".gitea/workflows", ".github/workflows"];

pub(super) fn run(args: &Args) -> Outcome {
    let format = if args.json { Format::Json } else { args.format };
    let served = args.config.as_deref().map(served_labels).transpose()?;
    let mut files = Vec::new();
    let mut unreadable = Vec::new();
    if args.paths.is_empty() {
        files.extend(of_repository());
        if files.is_empty() {
            let message = format!("no workflows in {} or {} here; name a file", FOLDERS[0], FOLDERS[1]);
            return Err(Failure::wrong_question(message));
        }
    }
    for path in &args.paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let found = below(path);
        if found.is_empty() {
            unreadable.push(format!("{}: no workflow files in this folder", path.display()));
        }
        files.extend(found);
    }
    let mut out = io::BufWriter::new(io::stdout().lock());
    let snippets = format == Format::Plain && io::stdout().is_terminal();
    let mut errors = 0;
    for file in &files {
        let name = file.to_string_lossy();
        let text = match fs::read(file) {
            Ok(text) => text,
            Err(error) => {
                unreadable.push(format!("{name}: {error}"));
                continue;
            }
        };
        let root = root_of(file);
        let read = |path: &str| root.as_ref().and_then(|root| neighbour(&root.join(path)));
        let around = Around { served: served.as_deref(), read: Some(&read) };
        let found = match is_action(file) {
            true => check_action_in(&text, &name, around),
            false => check_workflow_in(&text, &name, around),
        };
        errors += found.iter().filter(|found| found.severity == Severity::Error).count();
        let source = snippets.then(|| String::from_utf8_lossy(&text));
        for diagnostic in &found {
            let mut line = line(diagnostic, format);
            if let Some(source) = &source {
                line.push_str(&snippet(diagnostic, source));
            }
            if let Err(error) = out.write_all(line.as_bytes()) {
                return stop(&error);
            }
        }
    }
    if let Err(error) = out.flush() {
        return stop(&error);
    }
    if !unreadable.is_empty() {
        return Err(Failure::wrong_question(unreadable.join("\nsower: ")));
    }
    Ok(ExitCode::from(u8::from(errors > 0)))
}

/// The workflows of the repository around the current folder.
fn of_repository() -> Vec<PathBuf> {
    let mut root = PathBuf::new();
    for folder in std::env::current_dir().unwrap_or_default().ancestors() {
        let found: Vec<PathBuf> = FOLDERS.iter().flat_map(|name| yaml_files(&root.join(name))).collect();
        if !found.is_empty() || folder.join(".git").exists() {
            return found;
        }
        root.push("..");
    }
    Vec::new()
}

/// The root of the repository that a file lies in: where its workflows say so, or where git does.
fn root_of(file: &Path) -> Option<PathBuf> {
    let folder = std::path::absolute(file).ok()?.parent()?.to_owned();
    let of_workflows = FOLDERS.iter().find(|name| folder.ends_with(name));
    if of_workflows.is_some() {
        return Some(folder.parent()?.parent()?.to_owned());
    }
    folder.ancestors().find(|folder| folder.join(".git").exists()).map(Path::to_owned)
}

/// Another file of the repository, if it is one that can be read at once: no device, no pipe, nothing large.
fn neighbour(path: &Path) -> Option<Vec<u8>> {
    let metadata = fs::metadata(path).ok()?;
    (metadata.is_file() && metadata.len() <= LARGEST_NEIGHBOUR).then(|| fs::read(path).ok()).flatten()
}

/// The labels that a configuration gives the runner, or those that it was registered with.
fn served_labels(path: &Path) -> Result<Vec<String>, Failure> {
    let (config, _) = Config::read(path).map_err(Failure::wrong_question)?;
    let mut labels: Vec<String> = config.runner.labels.iter().map(|label| label.name.clone()).collect();
    if labels.is_empty()
        && let Ok(registration) = Registration::read(&config.runner.file)
    {
        let name = |label: &String| label.split(':').next().unwrap_or_default().to_owned();
        labels = registration.labels.iter().map(name).collect();
    }
    if labels.is_empty() {
        let message =
            format!("{}: there is no label in it, and the runner is not registered", path.display());
        return Err(Failure::wrong_question(message));
    }
    Ok(labels)
}

/// What to do when the findings cannot be written: whoever closed the pipe has seen enough.
fn stop(error: &io::Error) -> Outcome {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Ok(ExitCode::FAILURE);
    }
    Err(Failure::wrong_question(format!("cannot write the findings: {error}")))
}

fn line(diagnostic: &Diagnostic, format: Format) -> String {
    let Diagnostic { file, place, severity, message, rule } = diagnostic;
    match format {
        // One line, whatever the message quotes.
        Format::Plain => format!("{diagnostic} [{rule}]").replace(char::is_control, " ") + "\n",
        Format::Json => {
            let object = serde_json::json!({
                "file": file,
                "line": place.line,
                "column": place.column,
                "severity": severity.to_string(),
                "message": message,
                "rule": rule,
            });
            format!("{object}\n")
        }
        Format::Gitea => format!(
            "::{severity} file={},line={},col={}::{} [{rule}]\n",
            escape(file, true),
            place.line,
            place.column,
            escape(message, false)
        ),
    }
}

/// Escapes the data or a property of a workflow command.
fn escape(text: &str, property: bool) -> String {
    let text = text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    if property { text.replace(':', "%3A").replace(',', "%2C") } else { text }
}

fn is_action(file: &Path) -> bool {
    matches!(file.file_name().and_then(|name| name.to_str()), Some("action.yml" | "action.yaml"))
}

fn is_yaml(file: &Path) -> bool {
    matches!(file.extension().and_then(|extension| extension.to_str()), Some("yml" | "yaml"))
}

/// The YAML files right in a folder, by name; none if there is no such folder.
fn yaml_files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| is_yaml(path) && path.is_file())
        .collect();
    files.sort();
    files
}

/// The workflows of a repository or a folder; in folders below, whatever looks like a workflow or action.
fn below(folder: &Path) -> Vec<PathBuf> {
    let of_repository: Vec<PathBuf> =
        FOLDERS.iter().flat_map(|name| yaml_files(&folder.join(name))).collect();
    if !of_repository.is_empty() {
        return of_repository;
    }
    let mut found = yaml_files(folder);
    let mut open = VecDeque::from([folder.to_path_buf()]);
    while let Some(current) = open.pop_front() {
        if current != folder {
            found.extend(yaml_files(&current).into_iter().filter(|file| looks_right(file)));
        }
        let mut inner: Vec<PathBuf> = fs::read_dir(&current)
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter(|entry| entry.file_name() != ".git" && entry.file_name() != "node_modules")
            .map(|entry| entry.path())
            .collect();
        inner.sort();
        open.extend(inner);
    }
    found
}

fn looks_right(file: &Path) -> bool {
    is_action(file)
        || fs::read(file).is_ok_and(|text| {
            text.split(|byte| *byte == b'\n')
                .any(|line| line.starts_with(b"jobs:") || line.starts_with(b"on:"))
        })
}

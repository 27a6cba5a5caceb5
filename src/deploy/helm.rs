//! helm: found on PATH, asked for its version once, called.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use super::manifest::{self, RenderedObject};
use super::place::Place;
use super::process::{self, Captured};
use super::render::MANIFEST_LIMIT;
use super::{Access, Error, Request};

/// The oldest helm 3 that is known to answer as expected here.
const OLDEST_THREE: (u32, u32) = (3, 12);
/// The most that is read of a release's history, in bytes.
const HISTORY_LIMIT: usize = 1 << 20;

/// The helm that is on PATH, here or on the far side.
#[derive(Clone)]
pub struct Helm {
    path: PathBuf,
    version: String,
    place: Place,
}

/// One revision of a release, as `helm history` tells it. It carries no values.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Revision {
    /// Number of the revision, from 1.
    pub revision: u64,
    /// `deployed`, `failed`, `superseded`, `pending-upgrade`, …
    pub status: String,
    /// When it was last touched, with an offset, as helm writes it.
    #[serde(default)]
    pub updated: String,
}

impl Helm {
    /// Looks for helm where it is to run and asks for its version.
    ///
    /// # Errors
    /// If there is none, or one that is too old or of an unknown major version.
    pub fn find(access: &Access) -> Result<Self, Error> {
        let path = match &access.place {
            Place::Here => which::which("helm").map_err(|_| Error::MissingProgram {
                program: "helm",
                remedy: "install helm 3.12 or newer, or helm 4 (https://helm.sh/docs/intro/install)",
            })?,
            Place::There(_) => PathBuf::from("helm"),
        };
        let version = match known_before(&path) {
            Some(version) => version,
            None => {
                let mut command = process::command(&path);
                command.args(["version", "--short"]);
                let answer = process::capture_at(&access.place, &mut command, process::text(1024))?;
                let version = answer.stdout.trim().trim_start_matches('v');
                let version = version.split('+').next().unwrap_or_default().to_owned();
                remember(&path, &version);
                version
            }
        };
        if !known(&version) {
            let version = if version.is_empty() { "of an unknown version".to_owned() } else { version };
            return Err(Error::HelmVersion { path, version });
        }
        Ok(Self { path, version, place: access.place.clone() })
    }

    /// The version, such as `3.17.2`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Where it runs.
    pub(super) const fn place(&self) -> &Place {
        &self.place
    }

    /// `helm upgrade --install … --wait`, not started yet. What it prints of the release goes nowhere.
    pub(super) fn upgrade(&self, request: &Request) -> Command {
        let mut command = process::command(&self.path);
        command.args(["upgrade", "--install", "--wait", "--timeout"]);
        command.arg(format!("{}s", request.timeout.as_secs()));
        command.arg("--history-max").arg(request.history_max.to_string());
        if request.create_namespace {
            command.arg("--create-namespace");
        }
        request.access.apply(&mut command, "--kube-context");
        add_release(&mut command, request);
        command
    }

    /// `helm template`: what the chart would create, as YAML. Talks to no cluster.
    pub(super) fn template(&self, request: &Request) -> Command {
        let mut command = process::command(&self.path);
        command.arg("template");
        add_release(&mut command, request);
        command
    }

    /// The newest revisions of the release, the newest first; none if there is no such release.
    ///
    /// # Errors
    /// If helm fails otherwise or answers something else.
    pub(super) fn history(&self, request: &Request, most: u32) -> Result<Vec<Revision>, Error> {
        let mut command = process::command(&self.path);
        command.args(["history", "--output", "json", "--max"]).arg(most.to_string());
        request.access.apply(&mut command, "--kube-context");
        command.arg("--namespace").arg(&request.namespace).arg("--").arg(&request.release);
        let Captured { success, stdout, stderr } =
            process::capture_at(&self.place, &mut command, process::text(HISTORY_LIMIT))?;
        if !success {
            if stderr.contains("release: not found") {
                return Ok(Vec::new());
            }
            return Err(Error::Helm { what: "history", message: stderr.trim().to_owned() });
        }
        let mut revisions: Vec<Revision> = serde_json::from_str(&stdout)
            .map_err(|error| Error::Helm { what: "history", message: error.to_string() })?;
        revisions.sort_by_key(|revision| std::cmp::Reverse(revision.revision));
        Ok(revisions)
    }
}

impl Helm {
    /// `helm rollback` to that revision, not started yet.
    pub(super) fn rollback(&self, request: &Request, revision: u64, wait: bool) -> Command {
        let mut command = process::command(&self.path);
        command.args(["rollback", "--history-max"]).arg(request.history_max.to_string());
        if wait {
            command.arg("--wait").arg("--timeout").arg(format!("{}s", request.timeout.as_secs()));
        }
        request.access.apply(&mut command, "--kube-context");
        command.arg("--namespace").arg(&request.namespace);
        command.arg("--").arg(&request.release).arg(revision.to_string());
        command
    }

    /// `helm uninstall`, not started yet.
    pub(super) fn uninstall(&self, request: &Request) -> Command {
        let mut command = process::command(&self.path);
        command.arg("uninstall");
        request.access.apply(&mut command, "--kube-context");
        command.arg("--namespace").arg(&request.namespace).arg("--").arg(&request.release);
        command
    }

    /// Runs one of these to its end.
    ///
    /// # Errors
    /// If it fails, with the last thing that helm says.
    pub(super) fn finish(&self, what: &'static str, command: &mut Command) -> Result<(), Error> {
        let Captured { success, stderr, .. } = process::capture_at(&self.place, command, |pipe| {
            drop(std::io::copy(pipe, &mut std::io::sink()))
        })?;
        if success {
            return Ok(());
        }
        let message = stderr.lines().next_back().unwrap_or("it said nothing");
        Err(Error::Helm { what, message: message.trim_start_matches("Error: ").to_owned() })
    }

    /// The objects of a revision.
    ///
    /// # Errors
    /// If helm does not find it.
    pub(super) fn manifest(&self, request: &Request, revision: u64) -> Result<Vec<RenderedObject>, Error> {
        let mut command = process::command(&self.path);
        command.args(["get", "manifest", "--revision"]).arg(revision.to_string());
        request.access.apply(&mut command, "--kube-context");
        command.arg("--namespace").arg(&request.namespace).arg("--").arg(&request.release);
        let Captured { success, stdout, stderr } =
            process::capture_at(&self.place, &mut command, process::text(MANIFEST_LIMIT))?;
        if success {
            return Ok(manifest::with_fields(&stdout));
        }
        Err(Error::Helm { what: "get manifest", message: stderr.trim().to_owned() })
    }
}

/// What `upgrade` and `template` have in common: release, chart, namespace and values.
fn add_release(command: &mut Command, request: &Request) {
    command.arg("--namespace").arg(&request.namespace);
    for path in &request.values {
        command.arg("--values").arg(path);
    }
    for value in &request.set {
        command.arg("--set").arg(value);
    }
    for value in &request.set_string {
        command.arg("--set-string").arg(value);
    }
    command.arg("--").arg(&request.release).arg(&request.chart);
}

/// What this very file was found to be before: asking costs a program start. Scripts may answer differently each time.
fn known_before(path: &Path) -> Option<String> {
    let note = std::fs::read_to_string(super::claim::state_directory()?.join("helm-version")).ok()?;
    let (mark, version) = note.split_once('\n')?;
    (mark == mark_of(path)? && known(version)).then(|| version.to_owned())
}

fn remember(path: &Path, version: &str) {
    let (Some(directory), Some(mark)) = (super::claim::state_directory(), mark_of(path)) else { return };
    // Only time is lost without it. Renamed into place, so that nobody reads half of it.
    let Ok(mut file) = tempfile::NamedTempFile::new_in(&directory) else { return };
    if std::io::Write::write_all(&mut file, format!("{mark}\n{version}").as_bytes()).is_ok() {
        let _ = file.persist(directory.join("helm-version"));
    }
}

/// Tells one file from another: path, size and time of change; none for what is no program of that size.
fn mark_of(path: &Path) -> Option<String> {
    let metadata = std::fs::metadata(path).ok()?;
    let size = metadata.len();
    let modified = metadata.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?.as_nanos();
    (size > 1 << 20).then(|| format!("{} {size} {modified}", path.display()))
}

fn known(version: &str) -> bool {
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(3), Some(minor)) => (3, minor) >= OLDEST_THREE,
        (Some(4), Some(_)) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_are_known() {
        for version in ["3.12.0", "3.17.2", "4.1.4", "4.0.0-rc.1"] {
            assert!(known(version), "{version}");
        }
        for version in ["", "2.16.1", "3.11.3", "5.0.0", "unknown", "3"] {
            assert!(!known(version), "{version}");
        }
    }
}

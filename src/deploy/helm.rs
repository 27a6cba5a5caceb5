//! helm: found on PATH, asked for its version once, called.

use std::path::PathBuf;
use std::process::Command;

use serde::Deserialize;

use super::process::{self, Captured};
use super::{Error, Request};

/// The oldest helm 3 that is known to answer as expected here.
const OLDEST_THREE: (u32, u32) = (3, 12);
/// The most that is read of a release's history, in bytes.
const HISTORY_LIMIT: usize = 1 << 20;

/// The helm that is on PATH.
#[derive(Debug, Clone)]
pub struct Helm {
    path: PathBuf,
    version: String,
}

/// One revision of a release, as `helm history` tells it. It carries no values.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Revision {
    /// Number of the revision, from 1.
    pub revision: u64,
    /// `deployed`, `failed`, `superseded`, `pending-upgrade`, …
    pub status: String,
}

impl Helm {
    /// Looks for helm on PATH and asks for its version.
    ///
    /// # Errors
    /// If there is none, or one that is too old or of an unknown major version.
    pub fn find() -> Result<Self, Error> {
        let path = which::which("helm").map_err(|_| Error::MissingProgram {
            program: "helm",
            remedy: "install helm 3.12 or newer, or helm 4 (https://helm.sh/docs/intro/install)",
        })?;
        let mut command = process::command(&path);
        let answer = process::capture(command.args(["version", "--short"]), process::text(1024))?;
        let version = answer.stdout.trim().trim_start_matches('v');
        let version = version.split('+').next().unwrap_or_default().to_owned();
        if !known(&version) {
            let version = if version.is_empty() { "of an unknown version".to_owned() } else { version };
            return Err(Error::HelmVersion { path, version });
        }
        Ok(Self { path, version })
    }

    /// The version, such as `3.17.2`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// `helm upgrade --install … --wait`, not started yet.
    pub(super) fn upgrade(&self, request: &Request) -> Command {
        let mut command = process::command(&self.path);
        command.args(["upgrade", "--install", "--wait", "--timeout"]);
        command.arg(format!("{}s", request.timeout.as_secs()));
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
            process::capture(&mut command, process::text(HISTORY_LIMIT))?;
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

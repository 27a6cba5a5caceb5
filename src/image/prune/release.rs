//! What a Helm release runs: helm is asked for the manifests of the revision that is deployed and of the one before
//! it, to which a rollback would go.

use std::io::Read as _;
use std::process::{Command, Stdio};

use crate::image::Error;

/// The most that is read of what helm says, in bytes.
const MAX_ANSWER: u64 = 16 << 20;

#[derive(serde::Deserialize)]
struct Revision {
    revision: u64,
    status: String,
}

/// The manifests of `[NAMESPACE/]RELEASE`, as text.
///
/// # Errors
/// When helm is not there, or knows no such release: what it runs is not known then, so nothing may be deleted.
pub fn images(release: &str) -> Result<Vec<String>, Error> {
    let (namespace, name) = match release.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, release),
    };
    let history = helm(namespace, &["history", "--max", "20", "--output", "json", "--", name])?;
    let mut revisions: Vec<Revision> = serde_json::from_str(&history)
        .map_err(|error| Error::Unsure(format!("helm history {name}: {error}")))?;
    revisions.sort_by_key(|revision| std::cmp::Reverse(revision.revision));
    let runs = revisions.iter().find(|revision| revision.status == "deployed");
    let before = revisions.iter().find(|revision| revision.status == "superseded");
    // While an upgrade is under way, or after one that failed, what is newest may run, too.
    let newest = revisions.first();
    let mut wanted: Vec<u64> = [runs, before, newest].into_iter().flatten().map(|r| r.revision).collect();
    wanted.sort_unstable();
    wanted.dedup();
    if wanted.is_empty() {
        return Err(Error::Unsure(format!("helm knows no revision of the release {release}")));
    }
    let manifest = |revision: u64| {
        helm(namespace, &["get", "manifest", "--revision", &revision.to_string(), "--", name])
    };
    wanted.into_iter().map(manifest).collect()
}

fn helm(namespace: Option<&str>, arguments: &[&str]) -> Result<String, Error> {
    let what = arguments[..arguments.len().min(2)].join(" ");
    let failed = |why: &dyn std::fmt::Display| Error::Unsure(format!("helm {what}: {why}"));
    let mut command = Command::new("helm");
    command.args(&arguments[..arguments.len() - 2]);
    if let Some(namespace) = namespace {
        command.args(["--namespace", namespace]);
    }
    command.args(&arguments[arguments.len() - 2..]);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&error))?;
    let errors = child.stderr.take();
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        if let Some(pipe) = errors {
            // What could be read of it is better than nothing.
            let _ = pipe.take(64 * 1024).read_to_string(&mut text);
        }
        text
    });
    let mut text = String::new();
    let read = child.stdout.take().map_or(Ok(0), |pipe| pipe.take(MAX_ANSWER).read_to_string(&mut text));
    let status = child.wait().map_err(|error| failed(&error))?;
    let errors = errors.join().unwrap_or_default();
    read.map_err(|error| failed(&error))?;
    if !status.success() {
        return Err(failed(&errors.trim().lines().last().unwrap_or("failed")));
    }
    Ok(text)
}

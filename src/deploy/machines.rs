//! What kinds of machines the nodes of a cluster are. They hardly ever change, and asking costs a program start: the
//! answer is kept for a day.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use super::Request;
use super::claim::{name_of, state_directory};
use super::kubectl::Kubectl;

/// How long an answer is kept.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// What was last answered; empty if that is too long ago.
pub(super) fn remembered(request: &Request) -> Vec<String> {
    let Some(path) = path(request) else { return Vec::new() };
    let age =
        fs::metadata(&path).and_then(|metadata| metadata.modified()).ok().and_then(|at| at.elapsed().ok());
    match age {
        Some(age) if age < KEPT => {
            let text = fs::read_to_string(path).unwrap_or_default();
            text.split_whitespace().map(str::to_owned).collect()
        }
        _ => Vec::new(),
    }
}

/// Asks, and keeps the answer; empty if that may not be asked.
pub(super) fn ask(kubectl: &Kubectl, request: &Request) -> Vec<String> {
    let mut machines = kubectl.machines();
    machines.sort();
    machines.dedup();
    if let Some(path) = path(request).filter(|_| !machines.is_empty())
        && let Some(directory) = path.parent()
        && let Ok(mut file) = tempfile::NamedTempFile::new_in(directory)
        // Only time is lost without it. Renamed into place, so that nobody reads half of it.
        && file.write_all(machines.join(" ").as_bytes()).is_ok()
    {
        let _ = file.persist(path);
    }
    machines
}

fn path(request: &Request) -> Option<PathBuf> {
    Some(state_directory()?.join(format!("machines-{}", name_of(&[&request.access.identity]))))
}

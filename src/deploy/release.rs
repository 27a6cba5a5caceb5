//! The state of a release: in words, freed when it is locked, and taken back to what was good.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::claim::Note;
use super::helm::{Helm, Revision};
use super::kubectl::Kubectl;
use super::{Error, Request};

/// How often a lock that somebody else holds is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What became of a lock.
pub(super) enum Lock {
    /// There is none (any more). The history, the newest revision first.
    Free(Vec<Revision>),
    /// Somebody else's, in words.
    Held(String),
    /// A signal came while it was waited for.
    Interrupted,
}

/// Whether the newest revision locks the release. Older pending ones mean nothing.
pub(super) fn locks(revisions: &[Revision]) -> bool {
    revisions.first().is_some_and(|newest| newest.status.starts_with("pending-"))
}

/// The newest revision that was good, as far as helm knows.
pub(super) fn good(revisions: &[Revision]) -> Option<&Revision> {
    let with = |status: &str| revisions.iter().find(|revision| revision.status == status);
    with("deployed").or_else(|| with("superseded"))
}

/// Frees a release that somebody left locked; waits for one that is held. `left` is what the last deployment from here
/// noted and did not take back: it and its helm are gone, or the note could not have been read.
pub(super) fn unlock(
    mut revisions: Vec<Revision>,
    left: Option<&Note>,
    helm: &Helm,
    kubectl: &Kubectl,
    request: &Request,
    interrupted: &AtomicBool,
    say: &mut dyn FnMut(&str),
) -> Result<Lock, Error> {
    let began = Instant::now();
    let mut said = false;
    while locks(&revisions) {
        let Some(newest) = revisions.first().cloned() else { break };
        let ours = left.filter(|note| note.before.is_some_and(|before| newest.revision == before + 1));
        let proof = match ours {
            Some(note) => Some(format!(
                "the deployment of process {} on this host (since {}) made it and is gone, and so is its helm",
                note.process, note.began
            )),
            None => request.break_lock.then(|| "--break-lock was given".to_owned()),
        };
        let words = format!("revision {} is {} since {}", newest.revision, newest.status, newest.updated);
        if let Some(proof) = proof {
            say(&format!("release {} is locked: {words}; {proof}", request.release));
            say(&free(&revisions, helm, kubectl, request)?);
            return Ok(Lock::Free(helm.history(request, request.history_max.max(10))?));
        }
        if began.elapsed() >= request.timeout {
            return Ok(Lock::Held(words));
        }
        if !said {
            say(&format!("release {} is locked by somebody else: {words}; waiting for it", request.release));
            said = true;
        }
        if interrupted.swap(false, Ordering::SeqCst) {
            return Ok(Lock::Interrupted);
        }
        thread::sleep(LOOK_EVERY.min(request.timeout.saturating_sub(began.elapsed())));
        revisions = helm.history(request, request.history_max.max(10))?;
    }
    Ok(Lock::Free(revisions))
}

/// Takes the lock off. What is said of it comes back.
pub(super) fn free(
    revisions: &[Revision],
    helm: &Helm,
    kubectl: &Kubectl,
    request: &Request,
) -> Result<String, Error> {
    let release = &request.release;
    let newest = revisions.first().map_or(0, |newest| newest.revision);
    if let Some(good) = good(revisions) {
        helm.finish("rollback", &mut helm.rollback(request, good.revision, false))?;
        return Ok(format!("release {release} is freed: rolled back to revision {}", good.revision));
    }
    // Nothing was ever good. Its objects stay, and the next deployment takes them over.
    match kubectl.forget(release, newest) {
        Ok(()) => Ok(format!(
            "release {release} is freed: the record of its revision {newest} is removed, what it made stays"
        )),
        // Records may be kept elsewhere than in Secrets.
        Err(_) => {
            helm.finish("uninstall", &mut helm.uninstall(request))?;
            Ok(format!(
                "release {release} is freed: it was uninstalled, because none of its revisions was ever good"
            ))
        }
    }
}

/// The state of a release in words, from its history, the newest revision first.
pub(super) fn describe(release: &str, revisions: &[Revision]) -> String {
    let Some(newest) = revisions.first() else {
        return format!("release {release} does not exist");
    };
    let mut text = format!("release {release} is at revision {} ({})", newest.revision, newest.status);
    if locks(revisions) {
        text.push_str(", which locks it");
    }
    match revisions.iter().find(|revision| revision.status == "deployed") {
        Some(good) if good.revision != newest.revision => {
            text.push_str(&format!("; the last good one is {}", good.revision));
        }
        Some(_) => {}
        None => text.push_str("; none of its revisions was ever good"),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(revision: u64, status: &str) -> Revision {
        Revision { revision, status: status.to_owned(), updated: String::new() }
    }

    #[test]
    fn the_state_of_a_release_in_words() {
        assert_eq!(describe("app", &[]), "release app does not exist");
        assert_eq!(describe("app", &[revision(4, "deployed")]), "release app is at revision 4 (deployed)");
        assert_eq!(
            describe(
                "app",
                &[revision(5, "pending-upgrade"), revision(4, "failed"), revision(3, "deployed")]
            ),
            "release app is at revision 5 (pending-upgrade), which locks it; the last good one is 3"
        );
        assert_eq!(
            describe("app", &[revision(1, "failed")]),
            "release app is at revision 1 (failed); none of its revisions was ever good"
        );
    }

    #[test]
    fn only_the_newest_revision_locks() {
        assert!(locks(&[revision(2, "pending-upgrade"), revision(1, "deployed")]));
        assert!(!locks(&[revision(3, "deployed"), revision(2, "pending-upgrade")]));
        assert!(!locks(&[]));
        let history = [revision(4, "pending-rollback"), revision(3, "failed"), revision(2, "superseded")];
        assert_eq!(good(&history).map(|revision| revision.revision), Some(2));
    }
}

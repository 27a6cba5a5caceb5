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

/// How long helm waits unless it is told otherwise.
const HELM_TIMEOUT: Duration = Duration::from_secs(300);

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
/// noted and did not take back: it and its helm are gone, or the note could not have been read. `hooks` is how many Jobs
/// the chart runs besides: helm waits for each of them as long as for the rest.
pub(super) fn unlock(
    mut revisions: Vec<Revision>,
    left: Option<&Note>,
    hooks: usize,
    tools: (&Helm, &Kubectl),
    request: &Request,
    interrupted: &AtomicBool,
    say: &mut dyn FnMut(&str),
) -> Result<Lock, Error> {
    let (helm, kubectl) = tools;
    let began = Instant::now();
    let stale = request.stale_lock.unwrap_or_else(|| stale_after(request.timeout, hooks));
    let mut said = String::new();
    // A helm that was seen holding the pending revision, and how often it was not to be seen any more since.
    let mut seen: Option<(u64, String, u32)> = None;
    while locks(&revisions) {
        let Some(newest) = revisions.first().cloned() else { break };
        let words = format!("revision {} is {} since {}", newest.revision, newest.status, newest.updated);
        let at_work = request.access.helm_at_work(&request.release, &request.namespace);
        let age = age(&newest.updated, jiff::Timestamp::now());
        let ours = left.filter(|note| note.before.is_some_and(|before| newest.revision == before + 1));
        match (&at_work, &mut seen) {
            (Some(who), _) => seen = Some((newest.revision, who.clone(), 0)),
            (None, Some((_, _, missed))) => *missed += 1,
            (None, None) => {}
        }
        // The first time it may just have ended in order, after the history was asked for.
        let gone = seen.as_ref().filter(|(revision, _, missed)| *revision == newest.revision && *missed > 1);
        let proof = match (&at_work, ours) {
            _ if request.break_lock => Some("--break-lock was given".to_owned()),
            _ if gone.is_some() => gone.map(|(_, who, _)| format!("{who}, held it and is gone")),
            (Some(_), _) => None,
            (None, Some(note)) => Some(format!(
                "the deployment of process {} on this host (since {}) made it and is gone, and so is its helm",
                note.process, note.began
            )),
            (None, None) => age.filter(|age| *age >= stale).map(|age| {
                let limit = match request.stale_lock {
                    Some(_) => "more than --stale-lock allows",
                    None => "longer than a helm with this --timeout could take",
                };
                format!(
                    "that is {} ago, {limit}, and no helm on this host works on it: it is taken to be dead",
                    rounded(age)
                )
            }),
        };
        if let Some(proof) = proof {
            say(&format!("release {} is locked: {words}; {proof}", request.release));
            say(&free(&revisions, helm, kubectl, request)?);
            return Ok(Lock::Free(helm.history(request, request.history_max.max(10))?));
        }
        // A lock is waited for until it is stale; a helm that is seen at work as long as a deployment may take.
        let patience = if at_work.is_some() { request.timeout } else { request.timeout.max(stale) };
        let who = match &at_work {
            Some(who) => format!("{words}, by {who}"),
            None => words,
        };
        if began.elapsed() >= patience {
            return Ok(Lock::Held(who));
        }
        if said != who {
            let until = match (&at_work, age) {
                (None, Some(age)) => format!(
                    "waiting for it; in {} it is taken for one that a dead helm left (--break-lock: at once)",
                    rounded(stale.saturating_sub(age))
                ),
                _ => "waiting for it".to_owned(),
            };
            say(&format!("release {} is locked by somebody else: {who}; {until}", request.release));
            said = who;
        }
        if interrupted.swap(false, Ordering::SeqCst) {
            return Ok(Lock::Interrupted);
        }
        thread::sleep(LOOK_EVERY.min(patience.saturating_sub(began.elapsed())));
        revisions = helm.history(request, request.history_max.max(10))?;
    }
    Ok(Lock::Free(revisions))
}

/// How long a helm with this time-out can hold a release: it waits for each hook and then for the rest. Others may be
/// more patient, so it is never less than helm's own default.
fn stale_after(timeout: Duration, hooks: usize) -> Duration {
    let waits = u32::try_from(hooks).unwrap_or(u32::MAX).saturating_add(1);
    timeout.saturating_mul(waits).max(HELM_TIMEOUT)
}

/// How long ago that was. Helm writes the time with the offset of whoever ran it; a clock that is ahead counts as none.
fn age(updated: &str, now: jiff::Timestamp) -> Option<Duration> {
    let updated: jiff::Timestamp = updated.parse().ok()?;
    Some(now.duration_since(updated).try_into().unwrap_or(Duration::ZERO))
}

fn rounded(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
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
    fn a_lock_is_stale_when_no_helm_could_still_hold_it() {
        let seconds = Duration::from_secs;
        assert_eq!(stale_after(seconds(20), 0), seconds(300));
        assert_eq!(stale_after(seconds(300), 2), seconds(900));
        let now = "2026-01-02T03:04:05Z".parse().unwrap();
        // As helm 3 and helm 4 write it.
        assert_eq!(age("2026-01-02T04:03:05.123456789+01:00", now), Some(Duration::new(59, 876_543_211)));
        assert_eq!(age("2026-01-02T03:05:05Z", now), Some(Duration::ZERO));
        assert_eq!(age("yesterday", now), None);
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

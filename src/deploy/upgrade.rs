//! One deployment from beginning to end: helm runs, the rollout is watched, a failure is explained.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::diagnosis::{Cause, Kind, diagnose, diagnose_helm};
use super::evidence::Evidence;
use super::helm::{Helm, Revision};
use super::kubectl::Kubectl;
use super::process::Running;
use super::rollout::{Changes, Rollout};
use super::{Error, Request};

/// How long to wait between two looks at the pods, at first. A kubectl costs a tenth of a second of CPU time.
const LOOK_SOON: Duration = Duration::from_secs(1);
/// How long to wait between two looks at the pods of a rollout that takes its time.
const LOOK_LATER: Duration = Duration::from_secs(3);
/// How often a signal is looked for.
const SIGNAL_EVERY: Duration = Duration::from_millis(50);
/// How many of helm's last lines are kept.
const HELM_LINES: usize = 40;
/// How far back the release's history is asked for.
const HISTORY: u32 = 10;

/// How a deployment ended.
#[derive(Debug)]
pub enum Outcome {
    /// helm says that all is ready.
    Deployed(Deployed),
    /// It failed, and here is why.
    Failed(Box<Failed>),
    /// A signal came; helm was told and has ended.
    Cancelled {
        /// In which state the release is now, if that could be asked.
        state: String,
    },
}

/// A release that is ready.
#[derive(Debug)]
pub struct Deployed {
    /// The new revision.
    pub revision: u64,
    /// Its workloads and pods.
    pub rollout: Rollout,
    /// How long it took.
    pub took: Duration,
}

/// A deployment that failed.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub cause: Cause,
    /// What the cause was told from.
    pub evidence: Evidence,
    /// In which state the release is now.
    pub state: String,
    /// How long it took.
    pub took: Duration,
}

enum News {
    Helm(String),
    HelmEnded,
    Look(Rollout),
}

/// Deploys, and calls `say` with each line of progress. When `interrupted` becomes true helm is asked to end, and
/// waited for: a helm that is killed leaves its release locked.
///
/// # Errors
/// If it could not be tried: a missing program, an argument that cannot be.
pub fn deploy(
    request: &Request,
    helm: &Helm,
    interrupted: &AtomicBool,
    say: &mut dyn FnMut(&str),
) -> Result<Outcome, Error> {
    request.check()?;
    let kubectl = Kubectl::find(request)?;
    say(&format!(
        "release {} in namespace {}: helm {} installs or upgrades it from {}",
        request.release,
        request.namespace,
        helm.version(),
        request.chart
    ));
    let began = Instant::now();
    let (send, news) = mpsc::channel();
    let lines = send.clone();
    let end = send.clone();
    let mut running = Running::start(
        &mut helm.upgrade(request),
        move |line| drop(lines.send(News::Helm(line))),
        move || drop(end.send(News::HelmEnded)),
    )?;
    let watcher = watch(kubectl.clone(), request.release.clone(), send);
    let followed = follow(&mut running, &news, interrupted, say);
    // Dropping its end stops the watcher at its next look; nobody waits for it.
    drop(watcher);
    let (success, cancelled, helm_words) = followed?;
    let took = began.elapsed();
    if success {
        let rollout = Rollout::of(&request.release, &kubectl.workloads()?);
        let revision = helm.history(request, 1)?.first().map_or(0, |revision| revision.revision);
        return Ok(Outcome::Deployed(Deployed { revision, rollout, took }));
    }
    if cancelled {
        return Ok(Outcome::Cancelled { state: release_state(helm, request) });
    }
    // Where helm got nowhere, the pods are those of an older revision and prove nothing.
    let (cause, evidence) = match diagnose_helm(&helm_words) {
        Some(cause) => (cause, Evidence { helm: helm_words, ..Evidence::default() }),
        None => {
            let evidence = Evidence::collect(&kubectl, request, helm_words);
            (diagnose(&evidence), evidence)
        }
    };
    // A cluster that does not answer would be waited for once more.
    let state = if matches!(cause.kind, Kind::Unreachable | Kind::Kubeconfig | Kind::Credentials) {
        format!("the state of release {} is not known", request.release)
    } else {
        release_state(helm, request)
    };
    Ok(Outcome::Failed(Box::new(Failed { cause, evidence, state, took })))
}

/// Passes on what helm and the watcher say until helm has ended: whether it succeeded, whether it was told to end, and
/// its last words.
fn follow(
    running: &mut Running,
    news: &Receiver<News>,
    interrupted: &AtomicBool,
    say: &mut dyn FnMut(&str),
) -> Result<(bool, bool, String), Error> {
    let mut changes = Changes::default();
    let mut words: VecDeque<String> = VecDeque::new();
    let mut cancelled = false;
    loop {
        if interrupted.swap(false, Ordering::SeqCst) {
            cancelled = true;
            say("asked to end: helm is told and may finish what it must");
            running.ask_to_end();
        }
        match news.recv_timeout(SIGNAL_EVERY) {
            Ok(News::Helm(line)) => {
                say(&format!("helm: {line}"));
                if words.len() == HELM_LINES {
                    words.pop_front();
                }
                words.push_back(line);
            }
            Ok(News::Look(rollout)) => changes.since_last(&rollout).iter().for_each(|line| say(line)),
            Ok(News::HelmEnded) => break,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                // A grandchild may keep stderr open after helm is gone.
                if running.ended()?.is_some() {
                    break;
                }
            }
        }
    }
    let status = running.wait()?;
    let words: Vec<String> = words.into();
    Ok((status.success(), cancelled, words.join("\n")))
}

/// Looks at the pods again and again, in a thread of its own, until the returned sender is dropped.
fn watch(kubectl: Kubectl, release: String, news: Sender<News>) -> Sender<()> {
    let (stop, stopped) = mpsc::channel::<()>();
    thread::spawn(move || {
        let began = Instant::now();
        loop {
            // An API server that does not answer is helm's to complain about.
            if let Ok(objects) = kubectl.workloads()
                && news.send(News::Look(Rollout::of(&release, &objects))).is_err()
            {
                return;
            }
            let pause = (began.elapsed() / 10).clamp(LOOK_SOON, LOOK_LATER);
            if stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    });
    stop
}

fn release_state(helm: &Helm, request: &Request) -> String {
    match helm.history(request, HISTORY) {
        Ok(revisions) => describe(&request.release, &revisions),
        Err(error) => format!("the state of release {} is not known: {error}", request.release),
    }
}

/// The state of a release in words, from its history, the newest revision first.
fn describe(release: &str, revisions: &[Revision]) -> String {
    let Some(newest) = revisions.first() else {
        return format!("release {release} does not exist");
    };
    let mut text = format!("release {release} is at revision {} ({})", newest.revision, newest.status);
    if newest.status.starts_with("pending-") {
        // Older pending revisions mean nothing; only the newest locks.
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
        Revision { revision, status: status.to_owned() }
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
}

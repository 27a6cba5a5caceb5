//! After a failure: the evidence, what it proves, what changed, and going back. Also what is said of deployments that were
//! refused or cancelled.

use std::thread;
use std::time::{Duration, Instant};

use super::{Deployment, Failed, Outcome};
use crate::deploy::diagnosis::{Cause, Kind, diagnose, diagnose_helm};
use crate::deploy::evidence::Evidence;
use crate::deploy::helm::Revision;
use crate::deploy::hidden::Hidden;
use crate::deploy::report::changed;
use crate::deploy::{Error, manifest, registry, release};

/// What is known of a failure before anything is done about it.
pub(super) struct Known {
    pub(super) cause: Cause,
    pub(super) evidence: Evidence,
    /// What changed against the last good revision, if it was asked.
    pub(super) changes: Option<Vec<String>>,
    pub(super) took: Duration,
    /// Whether it was said already.
    pub(super) told: bool,
}

impl Known {
    /// Why, what to do about it, and what that was told from.
    fn tell(&self, say: &mut dyn FnMut(&str)) {
        say(&format!("failed after {:.1} s: {}", self.took.as_secs_f64(), self.cause.sentence));
        say(&format!("what to do: {}", self.cause.remedy));
        self.evidence.to_string().lines().for_each(say);
    }
}

impl Deployment<'_> {
    /// Secures the evidence of a rollout that does not become well, and says at once what it proves.
    pub(super) fn given_up(&self, before: &[Revision], mut why: String, say: &mut dyn FnMut(&str)) -> Known {
        self.hidden.hide(&mut why);
        say(&format!("this does not heal by itself: {why}"));
        let mut known = self.looked_into(before, String::new(), &mut |known| {
            if known.cause.kind == Kind::Unknown {
                known.cause.sentence.clone_from(&why);
            }
            known.tell(say);
        });
        known.told = true;
        changed(known.changes.as_deref().unwrap_or_default()).lines().for_each(say);
        known
    }

    /// All that can still be learned, without the values of Secrets, and what it proves. `words` are helm's last. `soon` is
    /// called when all but what changed is known.
    pub(super) fn looked_into(
        &self,
        before: &[Revision],
        words: String,
        soon: &mut dyn FnMut(&mut Known),
    ) -> Known {
        let newest = before.first().map_or(0, |newest| newest.revision);
        let good = release::good(before).map(|good| good.revision);
        thread::scope(|scope| {
            let hidden = scope.spawn(|| self.all_hidden());
            let changes = good.map(|good| scope.spawn(move || self.changes(good, newest + 1)));
            let mut evidence = Evidence::collect(&self.kubectl, self.request, &self.hooks, words);
            evidence.hide(hidden.join().unwrap_or(&self.hidden));
            let cause = self.diagnosed(&evidence);
            let mut known = Known { cause, evidence, changes: None, took: self.began.elapsed(), told: false };
            soon(&mut known);
            known.changes = changes.and_then(|changes| changes.join().ok());
            known
        })
    }

    /// The values of the chart's Secrets and of those of the namespace.
    pub(super) fn all_hidden(&self) -> &Hidden {
        self.all_hidden.get_or_init(|| {
            let mut hidden = self.hidden.clone();
            hidden.add(self.kubectl.secret_values());
            hidden
        })
    }

    pub(super) fn diagnosed(&self, evidence: &Evidence) -> Cause {
        let cause = diagnose(evidence);
        // containerd tries a mirror, and then tells only what the default host said. The registry itself knows.
        if cause.kind == Kind::ImagePull {
            let image =
                evidence.pods.iter().flat_map(|pod| &pod.containers).find(|container| {
                    matches!(container.reason.as_str(), "ErrImagePull" | "ImagePullBackOff")
                });
            if let Some(container) = image
                && registry::says_missing(&container.image, &self.request.registry)
            {
                return Cause::new(
                    Kind::ImageMissing,
                    format!(
                        "the image {} is not in the registry (the node says: {})",
                        container.image, cause.sentence
                    ),
                    "push it before the deployment (`sower image push`), or correct the tag that the chart is given",
                );
            }
        }
        cause
    }

    /// After the evidence: what changed, going back, and the state of it all.
    pub(super) fn failed(
        &self,
        before: &[Revision],
        known: Known,
        say: &mut dyn FnMut(&str),
    ) -> (Failed, bool) {
        // Going back may take its time; why it is gone back is known now.
        let unreachable = matches!(
            known.cause.kind,
            Kind::Unreachable | Kind::Kubeconfig | Kind::Credentials | Kind::Certificate
        );
        if !known.told && !unreachable {
            known.tell(say);
            changed(known.changes.as_deref().unwrap_or_default()).lines().for_each(&mut *say);
        }
        let Known { cause, evidence, changes, took, told } = known;
        let asked = changes.is_some();
        let changes = changes.unwrap_or_default();
        let mut failed =
            Failed { cause, evidence, changes, undone: None, state: String::new(), took, told: true };
        // A cluster that does not answer would be waited for once more.
        if unreachable {
            failed.told = told;
            failed.state = format!(
                "the state of release {} is not known; if this left it locked, the next deployment from here frees it",
                self.request.release
            );
            return (failed, true);
        }
        let (history, mut undone) = self.freed(say);
        let newest_before = before.first().map_or(0, |newest| newest.revision);
        let bad = history.iter().find(|revision| revision.revision == newest_before + 1);
        let good = release::good(before);
        if let (Some(bad), Some(good), false) = (bad, good, asked) {
            failed.changes = self.changes(good.revision, bad.revision);
            changed(&failed.changes).lines().for_each(&mut *say);
        }
        if bad.is_some() && undone.is_none() && self.request.rollback {
            undone = Some(match good {
                Some(good) => self.roll_back(good.revision, say),
                None => {
                    "there is no good revision to go back to: what was made stays as it is, and the next \
                         deployment takes it over"
                        .to_owned()
                }
            });
        }
        let (state, locked) = self.state();
        (failed.undone, failed.state) = (undone, state);
        (failed, locked)
    }

    /// What changed between two revisions.
    pub(super) fn changes(&self, good: u64, bad: u64) -> Vec<String> {
        thread::scope(|scope| {
            let old = scope.spawn(|| self.helm.manifest(self.request, good));
            let new = self.helm.manifest(self.request, bad);
            match (old.join(), new) {
                (Ok(Ok(old)), Ok(new)) => {
                    let mut lines = manifest::differences(&old, &new);
                    let hidden = self.all_hidden();
                    lines.iter_mut().for_each(|line| hidden.hide(line));
                    lines
                }
                _ => Vec::new(),
            }
        })
    }

    pub(super) fn roll_back(&self, revision: u64, say: &mut dyn FnMut(&str)) -> String {
        say(&format!("going back to revision {revision}"));
        let began = Instant::now();
        let result = self.helm.finish("rollback", &mut self.helm.rollback(self.request, revision, true));
        let seconds = began.elapsed().as_secs_f64();
        let pods = self.look().map(|rollout| {
            let (all, ready) = (rollout.pods().count(), rollout.pods().filter(|pod| pod.ready).count());
            (all, ready, rollout.images())
        });
        match (result, pods) {
            (Ok(()), Ok((all, ready, images))) => format!(
                "rolled back to revision {revision} in {seconds:.1} s: {ready} of {all} pods ready, image {}",
                images.join(", ")
            ),
            (Ok(()), Err(_)) => format!("rolled back to revision {revision} in {seconds:.1} s"),
            (Err(error), Ok((all, ready, _))) => format!(
                "rolling back to revision {revision} FAILED after {seconds:.1} s: {error}; {ready} of {all} pods ready"
            ),
            (Err(error), Err(_)) => format!("rolling back to revision {revision} FAILED: {error}"),
        }
    }

    /// The history, freed of a lock that the helm of this deployment left.
    pub(super) fn freed(&self, say: &mut dyn FnMut(&str)) -> (Vec<Revision>, Option<String>) {
        let ask = || self.helm.history(self.request, self.request.history_max.max(10)).unwrap_or_default();
        let history = ask();
        if !release::locks(&history) {
            return (history, None);
        }
        match release::free(&history, self.helm, &self.kubectl, self.request) {
            Ok(words) => {
                say(&words);
                (ask(), Some(words))
            }
            Err(error) => {
                say(&format!("the release is locked and could not be freed: {error}"));
                (history, None)
            }
        }
    }

    pub(super) fn state_after(&self, say: &mut dyn FnMut(&str)) -> (String, bool) {
        let (_, _) = self.freed(say);
        self.state()
    }

    pub(super) fn state(&self) -> (String, bool) {
        let release = &self.request.release;
        match self.helm.history(self.request, self.request.history_max.max(10)) {
            Ok(history) => (release::describe(release, &history), release::locks(&history)),
            Err(_) => (
                format!(
                    "the state of release {release} is not known, because the cluster does not answer; if this left it \
                     locked, the next deployment from here frees it"
                ),
                true,
            ),
        }
    }

    /// Refused before anything was changed.
    pub(super) fn refused(&self, cause: Cause) -> Outcome {
        let state = "nothing was changed".to_owned();
        Outcome::Failed(Box::new(Failed::new(cause, self.began.elapsed(), state)))
    }

    pub(super) fn cancelled(&self, state: &str) -> Outcome {
        Outcome::Cancelled { state: state.to_owned() }
    }

    /// A cluster that does not know the user says no more; the kubeconfig may.
    pub(super) fn expired(&self, cause: Cause) -> Cause {
        let end = match cause.kind {
            Kind::Credentials | Kind::Certificate => self.request.access.expired(),
            _ => None,
        };
        let Some(end) = end else { return cause };
        Cause::new(
            Kind::Certificate,
            format!(
                "the certificate of the kubeconfig's user has expired on {end}: the cluster does not know it any more"
            ),
            "renew it (k3s renews its own when it is restarted, then /etc/rancher/k3s/k3s.yaml is to be fetched again; \
             kubeadm: `kubeadm certs renew admin.conf`)",
        )
    }

    /// The first question already got no answer.
    pub(super) fn unreachable(&self, error: &Error) -> Outcome {
        let said = match error {
            Error::Helm { message, .. } => message.clone(),
            other => other.to_string(),
        };
        let cause = diagnose_helm(&said).unwrap_or_else(|| {
            Cause::new(Kind::Unknown, said.trim_start_matches("Error: ").to_owned(), "see what helm says")
        });
        let cause = self.expired(cause);
        let cause = match self.request.access.trouble() {
            Some(trouble) => Cause::new(
                Kind::Connection,
                format!("there is no way to the cluster: {trouble}"),
                "see that the API server listens there, as seen from the host that SSH leads to",
            ),
            None => cause,
        };
        self.refused(cause)
    }
}

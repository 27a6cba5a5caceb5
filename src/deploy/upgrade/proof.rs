//! After a green helm: whether pods stay up, and whether the application answers.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::{Deployed, Deployment, Failed, LOOK_SOON, Outcome, SIGNAL_EVERY};
use crate::deploy::diagnosis::{Cause, Kind};
use crate::deploy::helm::Revision;
use crate::deploy::request::SETTLE;
use crate::deploy::rollout::{Changes, Rollout};
use crate::deploy::smoke::Wrong;
use crate::deploy::{Error, in_use};

/// How pods fared that were ready.
enum Settled {
    Well(Rollout),
    Ill(String),
    Interrupted,
}

impl Deployment<'_> {
    /// After a green helm: the pods are watched, the application is asked.
    pub(super) fn prove(
        &self,
        before: &[Revision],
        took: Duration,
        say: &mut dyn FnMut(&str),
    ) -> Result<(Outcome, bool), Error> {
        let revision = before.first().map_or(0, |newest| newest.revision) + 1;
        let mut rollout = match self.look_again() {
            Ok(rollout) => rollout,
            Err(error) => {
                let cause = Cause::new(
                    Kind::Connection,
                    format!("revision {revision} is deployed, but its pods could not be looked at: {error}"),
                    "see that the cluster can be reached; nothing was taken back",
                );
                return Ok((Outcome::Failed(Box::new(self.unproven(revision, cause))), false));
            }
        };
        let unprobed = rollout.unprobed();
        for who in &unprobed {
            say(&format!("{who} has no readiness probe: that it is ready only says that it has begun"));
        }
        let settle = match self.request.settle {
            Some(settle) => settle,
            None if unprobed.is_empty() => Duration::ZERO,
            None => SETTLE,
        };
        let mut failure = None;
        if !settle.is_zero() {
            say(&format!(
                "helm is content after {:.1} s; the pods are watched for {} s more",
                took.as_secs_f64(),
                settle.as_secs()
            ));
            match self.settle(&rollout, settle, say)? {
                Settled::Well(last) => rollout = last,
                Settled::Ill(why) => failure = Some(why),
                Settled::Interrupted => {
                    return Ok((
                        self.cancelled(&format!(
                            "revision {revision} is deployed, and was not watched to the end"
                        )),
                        false,
                    ));
                }
            }
        }
        let mut answered = None;
        let mut cause = None;
        match (&failure, &self.request.smoke) {
            (Some(_), _) | (None, None) => {}
            (None, Some(smoke)) => {
                let stop = || self.interrupted.load(Ordering::SeqCst);
                let asked = smoke.ask(&self.request.access, &stop);
                match asked.unwrap_or_else(|error| Err(Wrong(error.to_string()))) {
                    Ok(answer) => {
                        say(&format!("{} answers with status {}", answer.url, answer.status));
                        answered = Some(answer);
                    }
                    Err(_) if stop() => {
                        return Ok((
                            self.cancelled(&format!(
                                "revision {revision} is deployed, and did not answer yet"
                            )),
                            false,
                        ));
                    }
                    Err(Wrong(why)) => {
                        cause = Some(Cause::new(
                            Kind::Check,
                            format!("the pods are ready, but {why}"),
                            match smoke.host {
                                Some(_) => {
                                    "see the application's log above, and whether its Service and Ingress lead to it"
                                }
                                None => {
                                    "see the application's log above, and whether its Service and Ingress lead to it; \
                                     an ingress knows it by its name: --check-host"
                                }
                            },
                        ));
                        failure = Some(why);
                    }
                }
            }
        }
        let Some(why) = failure else {
            in_use::note(self.request, &rollout);
            let deployed = Deployed { revision, rollout, took, settled: settle, answered };
            return Ok((Outcome::Deployed(Box::new(deployed)), false));
        };
        say(&format!("helm was content, but {why}"));
        let mut known = self.looked_into(before, String::new(), &mut |_| {});
        if known.evidence.pods.is_empty() {
            known.evidence.add_logs(&self.kubectl, &rollout);
            known.evidence.hide(self.all_hidden());
        }
        match cause {
            Some(cause) => known.cause = cause,
            None if known.cause.kind == Kind::Unknown => known.cause.sentence = why,
            None => {}
        }
        let (failed, locked) = self.failed(before, known, say);
        Ok((Outcome::Failed(Box::new(failed)), locked))
    }

    pub(super) fn look(&self) -> Result<Rollout, Error> {
        Ok(Rollout::of(&self.request.release, &self.kubectl.workloads()?, &self.hooks))
    }

    /// The same; a connection that was just lost is made anew for the next question.
    fn look_again(&self) -> Result<Rollout, Error> {
        let mut tries = 3;
        loop {
            match self.look() {
                Err(_) if tries > 1 => thread::sleep(LOOK_SOON),
                answer => return answer,
            }
            tries -= 1;
        }
    }

    /// helm was content, and that is all that is known.
    fn unproven(&self, revision: u64, cause: Cause) -> Failed {
        let state = format!("release {} is at revision {revision} (deployed)", self.request.release);
        Failed::new(cause, self.began.elapsed(), state)
    }

    /// Watches pods that are ready: whether they stay, and are not started again.
    fn settle(&self, first: &Rollout, time: Duration, say: &mut dyn FnMut(&str)) -> Result<Settled, Error> {
        let began = Instant::now();
        let restarts = |rollout: &Rollout| rollout.pods().map(|pod| pod.restarts).sum::<u64>();
        let at_first = restarts(first);
        let mut changes = Changes::default();
        changes.since_last(first);
        let mut last = first.clone();
        loop {
            let left = time.saturating_sub(began.elapsed());
            let until = Instant::now() + left.min(LOOK_SOON);
            while Instant::now() < until {
                if self.interrupted.load(Ordering::SeqCst) {
                    return Ok(Settled::Interrupted);
                }
                thread::sleep(SIGNAL_EVERY.min(until.saturating_duration_since(Instant::now())));
            }
            // One answer that does not come is not the pods' fault.
            if let Ok(rollout) = self.look() {
                changes.since_last(&rollout).iter().for_each(|line| say(line));
                let ended = rollout.pods().find(|pod| {
                    let statuses = pod.object.status.container_statuses.iter();
                    statuses
                        .clone()
                        .any(|status| status.state.terminated.as_ref().is_some_and(|end| end.exit_code != 0))
                });
                if let Some(pod) = ended {
                    return Ok(Settled::Ill(format!("pod {} does not stay up: {}", pod.name, pod.state)));
                }
                if restarts(&rollout) > at_first {
                    return Ok(Settled::Ill("a container was started again".to_owned()));
                }
                last = rollout;
            }
            if began.elapsed() >= time {
                break;
            }
        }
        let unready = last.pods().find(|pod| !pod.ready);
        let why = unready.map(|pod| format!("pod {} is not ready any more: {}", pod.name, pod.state));
        Ok(why.map_or(Settled::Well(last), Settled::Ill))
    }
}

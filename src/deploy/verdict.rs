//! Whether a rollout can still become well, or waiting longer is of no use.
//!
//! Only what was seen not to heal by itself ends a deployment early; everything else has until the time-out. Some things
//! look bad for a moment in good rollouts too (a Secret that an operator makes, a node whose old pod is about to go), so
//! that they must stay for a while.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::objects::{ContainerStatus, Object};
use super::rollout::{ReleasePod, Rollout};

/// How long something that could pass must stay.
const FOR_A_WHILE: Duration = Duration::from_secs(3);
/// How long something that was asked about because it did not move must stay besides.
const A_MOMENT: Duration = Duration::from_millis(500);
/// How long something that a scheduler or an operator may yet solve must stay.
const FOR_LONGER: Duration = Duration::from_millis(3500);
/// How long pods that were there before must stay as bad as they were: until then helm may not have come to them.
const OLD_PODS: Duration = Duration::from_secs(10);

/// How long hooks that come first may take to show.
const EARLY_HOOKS: Duration = Duration::from_secs(60);

/// Something that is wrong now.
struct Wrong {
    key: String,
    words: String,
    /// For how long it must be.
    patience: Duration,
    /// Whether it may be from before.
    old: bool,
}

/// Remembers since when something is wrong.
pub(super) struct Watchful {
    /// Pods and jobs that were there before helm began.
    before: HashSet<String>,
    /// How often a container may be started again.
    restarts: u64,
    /// Restarts that were counted before.
    counted: HashMap<String, u64>,
    since: HashMap<String, Instant>,
    began: Instant,
    /// When a hook was last at work: what comes after it has not begun.
    hook_seen: Option<Instant>,
    has_early_hooks: bool,
}

impl Watchful {
    /// `before`: the namespace as it was before helm began.
    pub(super) fn new(before: &[Object], restarts: u64, has_early_hooks: bool) -> Self {
        let of = |kind: &'static str| before.iter().filter(move |object| object.kind == kind);
        Self {
            before: of("Pod").chain(of("Job")).map(|object| object.metadata.uid.clone()).collect(),
            restarts,
            counted: of("Pod").map(|pod| (pod.metadata.uid.clone(), restarts_of(pod))).collect(),
            since: HashMap::new(),
            began: Instant::now(),
            hook_seen: None,
            has_early_hooks,
        }
    }

    /// Why waiting is of no use, in words; `None` as long as it may be.
    pub(super) fn hopeless(&mut self, rollout: &Rollout) -> Option<String> {
        self.hopeless_at(rollout, Instant::now())
    }

    fn hopeless_at(&mut self, rollout: &Rollout, now: Instant) -> Option<String> {
        let mut wrong: Vec<Wrong> = Vec::new();
        let leaving = rollout.leaving;
        for workload in &rollout.workloads {
            let title = workload.title();
            let is_hook = workload.kind == "job";
            if is_hook && self.before.contains(&workload.object.metadata.uid) {
                continue;
            }
            if is_hook && workload.object.condition("Complete").is_none_or(|done| done.status != "True") {
                self.hook_seen = Some(now);
            }
            for pod in &workload.pods {
                let uid = &pod.object.metadata.uid;
                let old = self.before.contains(uid);
                if pod.is_leaving() {
                    continue;
                }
                if let Some((what, patience)) = self.of_pod(pod, leaving, is_hook) {
                    let words = format!("pod/{}: {}", pod.name, pod.state);
                    wrong.push(Wrong { key: format!("{uid} {what}"), words, patience, old });
                }
            }
            for (uid, name) in std::iter::once((&workload.object.metadata.uid, title.clone())).chain(
                workload.pods.iter().map(|pod| (&pod.object.metadata.uid, format!("pod/{}", pod.name))),
            ) {
                if let Some(why) = rollout.obstacles.get(uid) {
                    wrong.push(Wrong {
                        key: format!("{uid} obstacle"),
                        words: format!("{name}: {why}"),
                        patience: A_MOMENT,
                        old: self.before.contains(uid),
                    });
                }
            }
            for condition in &workload.object.status.conditions {
                match (condition.kind.as_str(), condition.status.as_str(), condition.reason.as_str()) {
                    ("ReplicaFailure", "True", _) if !leaving => {
                        let (key, patience) = (format!("{title} refused"), FOR_A_WHILE);
                        wrong.push(Wrong {
                            key,
                            words: format!("{title}: {}", condition.message),
                            patience,
                            old: false,
                        });
                    }
                    // The chart's own patience is at its end. Before helm has changed it, it may be that of the last time.
                    ("Progressing", "False", "ProgressDeadlineExceeded") => {
                        let (key, patience) = (format!("{title} deadline"), Duration::ZERO);
                        wrong.push(Wrong {
                            key,
                            words: format!("{title}: {}", condition.message),
                            patience,
                            old: true,
                        });
                    }
                    _ => {}
                }
            }
        }
        self.since.retain(|key, _| wrong.iter().any(|known| known.key == *key));
        for known in &wrong {
            self.since.entry(known.key.clone()).or_insert(now);
        }
        let old_pods = self.old_pods_count_from();
        let over = |known: &&Wrong| {
            let long =
                self.since.get(&known.key).is_some_and(|since| now.duration_since(*since) >= known.patience);
            long && (!known.old || now >= old_pods)
        };
        wrong.iter().find(over).map(|known| known.words.clone())
    }

    /// From when on pods that were there before count: while hooks that come first may be at work, helm has not come to
    /// them.
    fn old_pods_count_from(&self) -> Instant {
        match (self.has_early_hooks, self.hook_seen) {
            (true, None) => self.began + EARLY_HOOKS,
            (_, seen) => seen.unwrap_or(self.began) + OLD_PODS,
        }
    }

    /// What is wrong with a pod, and for how long it must be.
    fn of_pod(&self, pod: &ReleasePod, leaving: bool, is_hook: bool) -> Option<(String, Duration)> {
        let object = &pod.object;
        if let Some(condition) = object.condition("PodScheduled")
            && condition.status == "False"
            && condition.reason == "Unschedulable"
        {
            // A volume may be on its way, and so may the room that an old pod leaves.
            let passing = leaving || condition.message.contains("PersistentVolumeClaim");
            return (!passing).then(|| ("unschedulable".to_owned(), FOR_LONGER));
        }
        if object.status.phase == "Failed" && !is_hook {
            return Some(("failed".to_owned(), FOR_A_WHILE));
        }
        let statuses = object.status.init_container_statuses.iter().chain(&object.status.container_statuses);
        statuses.filter_map(|status| self.of_container(object, status)).min_by_key(|(_, patience)| *patience)
    }

    fn of_container(&self, pod: &Object, status: &ContainerStatus) -> Option<(String, Duration)> {
        let already = self.counted.get(&pod.metadata.uid).copied().unwrap_or(0);
        let ended = status.state.terminated.as_ref().is_some_and(|end| end.exit_code != 0);
        let often = status.restart_count.saturating_sub(already) >= self.restarts;
        let Some(waiting) = &status.state.waiting else {
            return (ended && often && self.restarts > 0).then(|| ("crash".to_owned(), Duration::ZERO));
        };
        let patience = match waiting.reason.as_str() {
            "ErrImagePull" | "ImagePullBackOff" if will_not_be_pulled(&waiting.message) => Duration::ZERO,
            "InvalidImageName" | "ErrImageNeverPull" => Duration::ZERO,
            "CreateContainerConfigError" => FOR_A_WHILE,
            // The runtime tries again, and some of its reasons pass; a program that is not there does not appear.
            "RunContainerError" | "CreateContainerError" | "StartError" => FOR_A_WHILE,
            "CrashLoopBackOff" if often => Duration::ZERO,
            _ => return None,
        };
        // One name for the two that take turns.
        let name =
            if waiting.reason == "ErrImagePull" { "ImagePullBackOff" } else { waiting.reason.as_str() };
        Some((format!("{} {name}", status.name), patience))
    }
}

fn restarts_of(pod: &Object) -> u64 {
    let statuses = pod.status.init_container_statuses.iter().chain(&pod.status.container_statuses);
    statuses.map(|status| status.restart_count).max().unwrap_or(0)
}

/// Whether trying again would pull the image. A registry that is down may come back.
fn will_not_be_pulled(message: &str) -> bool {
    const NEVER: [&str; 9] = [
        ": not found",
        "manifest unknown",
        "401 Unauthorized",
        "403 Forbidden",
        "failed to authorize",
        "authentication required",
        "insufficient_scope",
        "HTTP response to HTTPS client",
        "no match for platform",
    ];
    NEVER.iter().any(|words| message.contains(words))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn namespace(status: &Value, conditions: &Value) -> Vec<Object> {
        let objects = json!([
            {
                "kind": "Deployment",
                "metadata": {"name": "app", "uid": "d", "annotations": {
                    "meta.helm.sh/release-name": "web", "deployment.kubernetes.io/revision": "1"}},
                "spec": {"replicas": 1},
                "status": {"conditions": conditions},
            },
            {
                "kind": "ReplicaSet",
                "metadata": {"name": "app-1", "uid": "r", "ownerReferences": [{"uid": "d"}],
                             "annotations": {"deployment.kubernetes.io/revision": "1"}},
            },
            {"kind": "Pod", "metadata": {"name": "app-1-x", "uid": "p", "ownerReferences": [{"uid": "r"}]}, "status": status},
        ]);
        serde_json::from_value(objects).unwrap()
    }

    fn waiting(reason: &str, message: &str, restarts: u64) -> Value {
        json!({"phase": "Pending", "containerStatuses": [{
            "name": "app", "restartCount": restarts, "state": {"waiting": {"reason": reason, "message": message}}}]})
    }

    /// After how many seconds of seeing this it is given up, looking each second for a minute.
    fn given_up(before: &[Object], status: &Value, conditions: &Value) -> Option<u64> {
        let mut watchful = Watchful::new(before, 2, false);
        let rollout = Rollout::of("web", &namespace(status, conditions), &[]);
        let start = watchful.began;
        (0..60).find(|second| watchful.hopeless_at(&rollout, start + Duration::from_secs(*second)).is_some())
    }

    #[test]
    fn what_does_not_heal_is_given_up_within_seconds() {
        let cases = [
            (waiting("ErrImagePull", "x: registry.test/app:7: not found", 0), Some(0)),
            (waiting("ImagePullBackOff", "x: http: server gave HTTP response to HTTPS client", 0), Some(0)),
            (waiting("ImagePullBackOff", "x: 401 Unauthorized", 0), Some(0)),
            (waiting("ImagePullBackOff", "dial tcp 10.0.0.1:443: connect: connection refused", 0), None),
            (waiting("InvalidImageName", "", 0), Some(0)),
            (waiting("CreateContainerConfigError", "secret \"x\" not found", 0), Some(3)),
            (waiting("CrashLoopBackOff", "", 1), None),
            (waiting("CrashLoopBackOff", "", 2), Some(0)),
            (waiting("ContainerCreating", "", 0), None),
        ];
        for (status, when) in cases {
            assert_eq!(given_up(&[], &status, &json!([])), when, "{status}");
        }
        let unschedulable = |message: &str| {
            json!({"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]})
        };
        assert_eq!(given_up(&[], &unschedulable("0/1 nodes: Insufficient cpu"), &json!([])), Some(4));
        let volume = unschedulable("pod has unbound immediate PersistentVolumeClaims");
        assert_eq!(given_up(&[], &volume, &json!([])), None);
        let quota = json!([{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"}]);
        assert_eq!(given_up(&[], &json!({"phase": "Running"}), &quota), Some(3));
    }

    #[test]
    fn what_was_there_before_gets_time_until_helm_has_come_to_it() {
        let status = waiting("ImagePullBackOff", "registry.test/app:7: not found", 0);
        let before = namespace(&status, &json!([]));
        let when = given_up(&before, &status, &json!([])).unwrap();
        assert_eq!(when, 10);
        // Restarts from before do not count.
        let crashing = waiting("CrashLoopBackOff", "", 9);
        assert_eq!(given_up(&namespace(&crashing, &json!([])), &crashing, &json!([])), None);
    }
}

//! What keeps things from moving that their states do not tell: pods that are not made (quota, admission), volumes that
//! are not mounted. Only events say it, and they are asked for only about what is stuck.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::kubectl::Kubectl;
use super::objects::Event;
use super::rollout::{Rollout, Workload};

/// How long something may take before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(2);
/// The most objects that are asked about in one look: each costs a program start.
const MOST: usize = 2;

/// Remembers since when what is stuck.
#[derive(Default)]
pub(super) struct Stuck {
    since: HashMap<String, Instant>,
}

impl Stuck {
    /// Asks about what is stuck, and notes the answers in the rollout.
    pub(super) fn look(&mut self, rollout: &mut Rollout, kubectl: &Kubectl) {
        let now = Instant::now();
        let waiting: Vec<(String, &'static str, String)> = waiting(rollout);
        self.since.retain(|uid, _| waiting.iter().any(|(known, ..)| known == uid));
        for (uid, ..) in &waiting {
            self.since.entry(uid.clone()).or_insert(now);
        }
        let long = |uid: &String| self.since.get(uid).is_some_and(|since| now - *since >= PATIENCE);
        for (uid, kind, name) in waiting.iter().filter(|(uid, ..)| long(uid)).take(MOST) {
            let Ok(events) = kubectl.events(kind, name) else { continue };
            if let Some(why) = events.iter().rev().find_map(reason) {
                rollout.obstacles.insert(uid.clone(), why);
            }
        }
    }
}

/// Workloads without pods of their own, and pods whose containers are not made: uid, kind and name.
fn waiting(rollout: &Rollout) -> Vec<(String, &'static str, String)> {
    let mut found = Vec::new();
    for workload in &rollout.workloads {
        if lacks_pods(workload) && !rollout.leaving {
            // A Deployment says so itself.
            let kind = match workload.kind.as_str() {
                "statefulset" => Some("StatefulSet"),
                "daemonset" => Some("DaemonSet"),
                "job" => Some("Job"),
                _ => None,
            };
            let object = &workload.object.metadata;
            found.extend(kind.map(|kind| (object.uid.clone(), kind, object.name.clone())));
        }
        for pod in &workload.pods {
            let status = &pod.object.status;
            let mut statuses = status.init_container_statuses.iter().chain(&status.container_statuses);
            // Where nothing runs and nothing has run, a volume may be what is waited for.
            let idle = statuses.clone().next().is_some()
                && statuses.all(|status| {
                    status.state.waiting.as_ref().is_some_and(|waiting| {
                        matches!(waiting.reason.as_str(), "ContainerCreating" | "PodInitializing")
                    })
                });
            if idle && !pod.is_leaving() {
                found.push((pod.object.metadata.uid.clone(), "Pod", pod.name.clone()));
            }
        }
    }
    found
}

fn lacks_pods(workload: &Workload) -> bool {
    if workload.kind == "job" {
        let over = ["Complete", "Failed", "Suspended"]
            .iter()
            .any(|kind| workload.object.condition(kind).is_some_and(|condition| condition.status == "True"));
        return workload.pods.is_empty() && !over;
    }
    (workload.pods.len() as u64) < workload.wanted
}

/// What a warning says that does not pass by itself.
fn reason(event: &Event) -> Option<String> {
    let lasting = match event.reason.as_str() {
        "FailedCreate" => true,
        // Others pass: a volume that another node still has.
        "FailedMount" => event.message.contains("not found") || event.message.contains("non-existent"),
        _ => false,
    };
    (lasting && event.kind == "Warning")
        .then(|| format!("{}: {}", event.reason, event.message.trim().replace('\n', " ")))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn only_what_has_nothing_is_asked_about() {
        let workload = |kind: &str, more: Value| {
            let mut object = json!({"kind": kind, "metadata": {"name": "x", "uid": kind,
                "annotations": {"meta.helm.sh/release-name": "web"}}});
            object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            object
        };
        let pod = |reason: &str| {
            json!({"kind": "Pod", "metadata": {"name": "x-0", "uid": "p", "ownerReferences": [{"uid": "StatefulSet"}]},
                   "status": {"containerStatuses": [{"name": "a", "state": {"waiting": {"reason": reason}}}]}})
        };
        let asked = |objects: Value| {
            let rollout = Rollout::of("web", &serde_json::from_value::<Vec<_>>(objects).unwrap(), &[]);
            waiting(&rollout).into_iter().map(|(uid, ..)| uid).collect::<Vec<_>>()
        };
        let set = workload("StatefulSet", json!({"spec": {"replicas": 1}}));
        assert_eq!(asked(json!([set])), ["StatefulSet"]);
        assert_eq!(asked(json!([set, pod("ContainerCreating")])), ["p"]);
        assert_eq!(asked(json!([set, pod("ErrImagePull")])), Vec::<String>::new());
        assert_eq!(asked(json!([workload("Job", json!({}))])), ["Job"]);
        let done = json!({"status": {"conditions": [{"type": "Complete", "status": "True"}]}});
        assert_eq!(asked(json!([workload("Job", done)])), Vec::<String>::new());
    }
}

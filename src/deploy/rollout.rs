//! The release's workloads and pods now, and what changed since the last look.

use std::collections::BTreeMap;

use serde::Serialize;

use super::objects::{ContainerStatus, Object, Terminated};

/// The workloads of a release at one moment.
#[derive(Debug, Default, Clone)]
pub struct Rollout {
    /// Deployments, StatefulSets and DaemonSets by name, and the hooks' Jobs.
    pub workloads: Vec<Workload>,
    /// Whether pods of the release are on their way out, and their room will be free.
    pub(super) leaving: bool,
    /// What keeps workloads and pods from moving, by uid, as their events tell it.
    pub(super) obstacles: BTreeMap<String, String>,
}

/// A Deployment, StatefulSet or DaemonSet.
#[derive(Debug, Clone)]
pub struct Workload {
    /// In lower case, such as `deployment`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// How many pods it wants.
    pub wanted: u64,
    /// How many pods are ready, those of older revisions included.
    pub ready: u64,
    /// How many pods are of the newest revision.
    pub updated: u64,
    /// The pods of the newest revision.
    pub pods: Vec<ReleasePod>,
    pub(super) object: Object,
    /// The newest ReplicaSet of a Deployment.
    pub(super) replica_set: Option<Object>,
}

/// A pod of the release.
#[derive(Debug, Clone, Serialize)]
pub struct ReleasePod {
    /// Its name.
    pub name: String,
    /// Whether all its containers are ready.
    pub ready: bool,
    /// How often its containers were started again.
    pub restarts: u64,
    /// In words, such as `running, ready`.
    pub state: String,
    /// The images that its containers name.
    pub images: Vec<String>,
    /// The digests of the images that run, as far as they are known.
    pub digests: Vec<String>,
    #[serde(skip)]
    pub(super) object: Object,
}

impl Rollout {
    /// Picks what belongs to `release` from the objects of its namespace. Ownership is followed from what helm marked
    /// as its own, because labels are the chart author's business.
    /// Hooks have no such mark: `hooks` are the names of their Jobs.
    pub(super) fn of(release: &str, objects: &[Object], hooks: &[String]) -> Self {
        let is_part = |object: &&Object| match object.kind.as_str() {
            "Deployment" | "StatefulSet" | "DaemonSet" => object.metadata.annotations.release == release,
            "Job" => object.metadata.annotations.release == release || hooks.contains(&object.metadata.name),
            _ => false,
        };
        let mut workloads: Vec<Workload> =
            objects.iter().filter(is_part).map(|object| Workload::of(object, objects)).collect();
        let owned = |pod: &Object| {
            let parents = workloads.iter().map(|workload| workload.object.metadata.uid.as_str());
            let sets = objects.iter().filter(|set| {
                set.kind == "ReplicaSet"
                    && workloads.iter().any(|workload| set.belongs_to(&workload.object.metadata.uid))
            });
            parents.chain(sets.map(|set| set.metadata.uid.as_str())).any(|uid| pod.belongs_to(uid))
        };
        let leaving = objects.iter().any(|object| {
            object.kind == "Pod" && object.metadata.deletion_timestamp.is_some() && owned(object)
        });
        workloads.sort_by(|a, b| (&a.kind, &a.name).cmp(&(&b.kind, &b.name)));
        Self { workloads, leaving, obstacles: BTreeMap::new() }
    }

    /// The workloads that run on, without Jobs.
    pub fn services(&self) -> impl Iterator<Item = &Workload> {
        self.workloads.iter().filter(|workload| workload.kind != "job")
    }

    /// Whether an object of that kind and name is part of it.
    pub(super) fn has(&self, kind: &str, name: &str) -> bool {
        self.workloads.iter().any(|workload| match kind {
            "Pod" => workload.pods.iter().any(|pod| pod.name == name),
            "ReplicaSet" => workload.replica_set.as_ref().is_some_and(|set| set.metadata.name == name),
            kind => workload.object.kind == kind && workload.name == name,
        })
    }

    /// The pods of the newest revisions, without those that are being removed: a revision that is gone back to may
    /// still have some of its first time, and they look ready to their end.
    pub fn pods(&self) -> impl Iterator<Item = &ReleasePod> {
        self.services().flat_map(|workload| &workload.pods).filter(|pod| !pod.is_leaving())
    }

    /// Containers without a readiness probe, as `container app of deployment/app`: that they are ready says only that
    /// they have begun.
    #[must_use]
    pub fn unprobed(&self) -> Vec<String> {
        let mut found = Vec::new();
        for workload in self.services() {
            let Some(pod) = workload.pods.first() else { continue };
            let unprobed =
                pod.object.spec.containers.iter().filter(|container| container.readiness_probe.is_none());
            found.extend(
                unprobed.map(|container| format!("container {} of {}", container.name, workload.title())),
            );
        }
        found
    }

    /// The images that the pods name, each once.
    #[must_use]
    pub fn images(&self) -> Vec<String> {
        let mut images: Vec<String> = self.pods().flat_map(|pod| pod.images.iter().cloned()).collect();
        images.sort();
        images.dedup();
        images
    }

    /// Each thing that can change, with its state in words.
    fn lines(&self) -> impl Iterator<Item = (String, String)> + '_ {
        self.workloads.iter().flat_map(|workload| {
            let pods = workload.pods.iter().map(|pod| (format!("pod/{}", pod.name), pod.state.clone()));
            std::iter::once((workload.title(), workload.state())).chain(pods)
        })
    }
}

impl Workload {
    fn of(object: &Object, all: &[Object]) -> Self {
        let status = &object.status;
        let daemons = object.kind == "DaemonSet";
        let replica_set = all
            .iter()
            .filter(|other| other.kind == "ReplicaSet" && other.belongs_to(&object.metadata.uid))
            .find(|other| other.metadata.annotations.revision == object.metadata.annotations.revision);
        // A Deployment's pods belong to a ReplicaSet; the others own theirs directly.
        let owner = match (object.kind.as_str(), replica_set) {
            ("Deployment", Some(set)) => set.metadata.uid.as_str(),
            ("Deployment", None) => "",
            _ => object.metadata.uid.as_str(),
        };
        let mut pods: Vec<ReleasePod> = all
            .iter()
            .filter(|other| other.kind == "Pod" && other.belongs_to(owner))
            .map(|pod| ReleasePod::of(pod.clone()))
            .collect();
        pods.sort_by(|a, b| a.name.cmp(&b.name));
        Self {
            kind: object.kind.to_lowercase(),
            name: object.metadata.name.clone(),
            wanted: status.desired_number_scheduled.or(object.spec.replicas).unwrap_or(1),
            ready: if daemons { status.number_ready } else { status.ready_replicas },
            updated: if daemons { status.updated_number_scheduled } else { status.updated_replicas },
            pods,
            object: object.clone(),
            replica_set: replica_set.cloned(),
        }
    }

    /// Such as `deployment/app`.
    #[must_use]
    pub fn title(&self) -> String {
        format!("{}/{}", self.kind, self.name)
    }

    /// Whether all pods of the newest revision are ready.
    pub(super) fn is_ready(&self) -> bool {
        self.pods.iter().filter(|pod| pod.ready && !pod.is_leaving()).count() as u64 >= self.wanted
    }

    pub(super) fn state(&self) -> String {
        if self.kind == "job" {
            let condition = |kind| self.object.condition(kind).filter(|condition| condition.status == "True");
            return match (condition("Complete"), condition("Failed")) {
                (Some(_), _) => "done".to_owned(),
                (None, Some(failed)) => format!("failed: {}: {}", failed.reason, failed.message),
                (None, None) => "at work".to_owned(),
            };
        }
        let Self { wanted, ready, updated, .. } = self;
        format!("{updated} of {wanted} new, {ready} ready")
    }
}

impl ReleasePod {
    fn of(object: Object) -> Self {
        let statuses = &object.status.container_statuses;
        Self {
            name: object.metadata.name.clone(),
            ready: !statuses.is_empty() && statuses.iter().all(|status| status.ready),
            restarts: restarts(&object),
            state: state(&object),
            images: object.spec.containers.iter().map(|container| container.image.clone()).collect(),
            digests: statuses
                .iter()
                .map(|status| status.image_id.clone())
                .filter(|id| !id.is_empty())
                .collect(),
            object,
        }
    }

    /// Whether it is being removed.
    pub(super) const fn is_leaving(&self) -> bool {
        self.object.metadata.deletion_timestamp.is_some()
    }
}

/// What changed from one look to the next, one line each. The first look gives no lines for what is well already.
#[derive(Debug, Default)]
pub(super) struct Changes {
    seen: Option<BTreeMap<String, String>>,
}

impl Changes {
    pub(super) fn since_last(&mut self, rollout: &Rollout) -> Vec<String> {
        let now: BTreeMap<String, String> = rollout.lines().collect();
        let lines = match &self.seen {
            // The pods of the last revision: they were here before.
            None => Vec::new(),
            Some(before) => rollout
                .lines()
                .filter(|(title, state)| before.get(title) != Some(state))
                .map(|(title, state)| format!("{title}: {state}"))
                .collect(),
        };
        self.seen = Some(now);
        lines
    }
}

fn restarts(pod: &Object) -> u64 {
    let statuses = pod.status.init_container_statuses.iter().chain(&pod.status.container_statuses);
    statuses.map(|status| status.restart_count).sum()
}

/// A pod's state in words.
fn state(pod: &Object) -> String {
    if pod.metadata.deletion_timestamp.is_some() {
        return "is being removed".to_owned();
    }
    if let Some(condition) = pod.condition("PodScheduled")
        && condition.status == "False"
    {
        return format!("no node for it: {}", scheduling(&condition.message));
    }
    if pod.status.container_statuses.is_empty() {
        let reason = pod.status.reason.as_deref().unwrap_or(&pod.status.phase);
        return match &pod.status.message {
            Some(message) => format!("{}: {message}", reason.to_lowercase()),
            None => reason.to_lowercase(),
        };
    }
    // While an initial container is at work the others only wait for it.
    let initial = pod.status.init_container_statuses.iter().find(|status| {
        status.state.terminated.as_ref().is_none_or(|end| end.exit_code != 0) && !status.ready
    });
    if let Some(status) = initial {
        return format!("initial container {}: {}", status.name, container_state(status));
    }
    let statuses = &pod.status.container_statuses;
    let mut text = match statuses.as_slice() {
        [one] => container_state(one),
        many => {
            let parts: Vec<_> =
                many.iter().map(|status| format!("{} {}", status.name, container_state(status))).collect();
            parts.join("; ")
        }
    };
    match restarts(pod) {
        0 => {}
        1 => text.push_str(", 1 restart"),
        count => text.push_str(&format!(", {count} restarts")),
    }
    text
}

/// What the scheduler says, without what it thinks about making room: that comes in the same words every time.
pub(super) fn scheduling(message: &str) -> &str {
    let ends = ["no new claims to deallocate", "preemption: "].iter().filter_map(|words| message.find(words));
    let end = ends.min().unwrap_or(message.len());
    message[..end].trim_end_matches([' ', ',', '.'])
}

fn container_state(status: &ContainerStatus) -> String {
    if let Some(waiting) = &status.state.waiting {
        return match waiting.reason.as_str() {
            "" | "ContainerCreating" | "PodInitializing" => "starting".to_owned(),
            // Two names for one thing, in turns: only one of them would make a line each time.
            "ErrImagePull" | "ImagePullBackOff" => pull_state(&waiting.message),
            "CrashLoopBackOff" => match &status.last_state.terminated {
                Some(end) => format!("waits to be started again after it {}", ended(end)),
                None => "waits to be started again".to_owned(),
            },
            reason => format!("{reason}: {}", waiting.message),
        };
    }
    if let Some(end) = &status.state.terminated {
        return ended(end);
    }
    match (status.state.running.is_some(), status.ready) {
        (true, true) => "running, ready".to_owned(),
        (true, false) => "running, not ready yet".to_owned(),
        (false, _) => "starting".to_owned(),
    }
}

fn pull_state(message: &str) -> String {
    match pull_cause(message) {
        Some(cause) => format!("cannot pull its image: {cause}"),
        None => "cannot pull its image".to_owned(),
    }
}

/// What lies behind a failed pull: the end of a long chain of `X: Y: Z`. The bare back-off message has none.
pub(super) fn pull_cause(message: &str) -> Option<String> {
    let parts: Vec<&str> = message.trim().split(": ").collect();
    match parts.as_slice() {
        [.., before, last] => Some(format!("{before}: {last}")),
        _ => None,
    }
}

pub(super) fn ended(end: &Terminated) -> String {
    match (end.reason.as_str(), end.exit_code) {
        ("OOMKilled", _) => "was killed for want of memory (OOMKilled)".to_owned(),
        ("Completed", 0) => "ended with exit code 0".to_owned(),
        ("Error" | "Completed" | "", code) => format!("ended with exit code {code}"),
        (reason, code) => format!("ended with exit code {code} ({reason})"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn deployment(revision: &str) -> Value {
        json!({
            "kind": "Deployment",
            "metadata": {
                "name": "app", "uid": "d1",
                "annotations": {"meta.helm.sh/release-name": "web", "deployment.kubernetes.io/revision": revision},
            },
            "spec": {"replicas": 1, "template": {"spec": {"containers": []}}},
            "status": {"readyReplicas": 1, "updatedReplicas": 1, "conditions": null},
        })
    }

    fn replica_set(revision: &str) -> Value {
        json!({
            "kind": "ReplicaSet",
            "metadata": {
                "name": format!("app-{revision}"), "uid": format!("r{revision}"),
                "annotations": {"deployment.kubernetes.io/revision": revision},
                "ownerReferences": [{"uid": "d1"}],
            },
        })
    }

    fn pod(revision: &str, status: &Value) -> Value {
        json!({
            "kind": "Pod",
            "metadata": {"name": format!("app-{revision}-x"), "ownerReferences": [{"uid": format!("r{revision}")}]},
            "spec": {"containers": [{"name": "app", "image": format!("app:{revision}"), "env": [{"name": "K", "value": "v"}]}]},
            "status": {"phase": "Running", "containerStatuses": [status]},
        })
    }

    fn rollout(objects: &[Value]) -> Rollout {
        let objects: Vec<Object> =
            objects.iter().map(|object| serde_json::from_value(object.clone()).unwrap()).collect();
        Rollout::of("web", &objects, &[])
    }

    fn running() -> Value {
        json!({"name": "app", "ready": true, "restartCount": 0, "state": {"running": {"startedAt": "now"}}})
    }

    #[test]
    fn only_pods_of_the_newest_revision_count() {
        let mut other = deployment("2");
        other["metadata"]["annotations"]["meta.helm.sh/release-name"] = json!("other");
        let rollout = rollout(&[
            deployment("2"),
            other,
            replica_set("1"),
            replica_set("2"),
            pod("1", &running()),
            pod("2", &running()),
        ]);
        assert_eq!(rollout.workloads.len(), 1);
        assert_eq!(rollout.pods().map(|pod| pod.name.as_str()).collect::<Vec<_>>(), ["app-2-x"]);
        assert_eq!(rollout.images(), ["app:2"]);
        assert!(rollout.pods().all(|pod| pod.ready));
    }

    #[test]
    fn pods_that_are_being_removed_do_not_count() {
        let mut leaving = pod("1", &running());
        leaving["metadata"]["name"] = json!("app-1-old");
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let only = rollout(&[deployment("1"), replica_set("1"), leaving.clone()]);
        assert_eq!(only.pods().count(), 0);
        assert!(!only.workloads[0].is_ready());
        let both = rollout(&[deployment("1"), replica_set("1"), leaving, pod("1", &running())]);
        assert_eq!(both.pods().map(|pod| pod.name.as_str()).collect::<Vec<_>>(), ["app-1-x"]);
        assert!(both.workloads[0].is_ready());
    }

    #[test]
    fn each_change_is_one_line_and_the_first_look_none() {
        let mut changes = Changes::default();
        let before = rollout(&[deployment("1"), replica_set("1"), pod("1", &running())]);
        assert_eq!(changes.since_last(&before), Vec::<String>::new());
        assert_eq!(changes.since_last(&before), Vec::<String>::new());

        let waiting = |reason: &str| {
            let message = "Back-off pulling image \"app:2\": ErrImagePull: failed: app:2: not found";
            json!({"name": "app", "state": {"waiting": {"reason": reason, "message": message}}})
        };
        let new = |status: &Value| rollout(&[deployment("2"), replica_set("2"), pod("2", status)]);
        assert_eq!(
            changes.since_last(&new(&waiting("ErrImagePull"))),
            ["pod/app-2-x: cannot pull its image: app:2: not found"]
        );
        // The other name of the same state.
        assert_eq!(changes.since_last(&new(&waiting("ImagePullBackOff"))), Vec::<String>::new());

        let crashed = json!({
            "name": "app", "restartCount": 2,
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
            "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
        });
        assert_eq!(
            changes.since_last(&new(&crashed)),
            [
                "pod/app-2-x: waits to be started again after it was killed for want of memory (OOMKilled), 2 restarts"
            ]
        );
    }

    #[test]
    fn a_pod_that_no_node_takes_says_why() {
        let mut pending = pod("1", &running());
        pending["status"] = json!({
            "phase": "Pending",
            "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                            "message": "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."}],
        });
        let rollout = rollout(&[deployment("1"), replica_set("1"), pending]);
        let states: Vec<_> = rollout.pods().map(|pod| pod.state.as_str()).collect();
        assert_eq!(states, ["no node for it: 0/1 nodes are available: 1 Insufficient cpu"]);
    }
}

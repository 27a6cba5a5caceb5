//! What can still be learned about a rollout that failed: states, exit codes, log lines, events.
//!
//! Collected before anything is undone, because undoing destroys it. Every list is bounded.

use serde::Serialize;

use super::kubectl::Kubectl;
use super::objects::{ContainerStatus, Event, Object, Terminated};
use super::rollout::{ReleasePod, Rollout, Workload};
use super::{Error, Request};

/// How many lines of a container's log are kept.
const LOG_LINES: usize = 50;
/// How many events of one object are kept.
const EVENTS: usize = 6;
/// How many pods are looked at; of many pods that fail alike the first few tell it all.
const PODS: usize = 3;

/// What was found.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Evidence {
    /// What helm said last, as it said it.
    pub helm: String,
    /// Pods of the newest revision that are not well.
    pub pods: Vec<PodEvidence>,
    /// Warnings about Deployments and ReplicaSets, and their failed conditions.
    pub workloads: Vec<String>,
    /// Why there is less evidence than there could be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incomplete: Option<String>,
}

/// A pod that is not well.
#[derive(Debug, Default, Clone, Serialize)]
pub struct PodEvidence {
    /// Its name.
    pub name: String,
    /// Its state in words.
    pub state: String,
    /// The hook's Job whose pod it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
    /// Why no node took it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unscheduled: Option<String>,
    /// Its containers that are not well.
    pub containers: Vec<ContainerEvidence>,
    /// Its last events, the oldest first, as `Reason: message`.
    pub events: Vec<String>,
}

/// A container that is not well.
#[derive(Debug, Default, Clone, Serialize)]
pub struct ContainerEvidence {
    /// Its name.
    pub name: String,
    /// The image that it names.
    pub image: String,
    /// The reason for which it waits or ended, such as `ImagePullBackOff`; empty if it runs.
    pub reason: String,
    /// The message that goes with it.
    pub message: String,
    /// The exit code of its last end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// Whether the system killed it for want of memory.
    pub out_of_memory: bool,
    /// Its memory limit, as the chart wrote it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<String>,
    /// How often it was started again.
    pub restarts: u64,
    /// Whether it has a readiness probe.
    pub readiness_probe: bool,
    /// The last lines of its log: of the run that ended, if one did.
    pub log: Vec<String>,
    /// Why the log could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_error: Option<String>,
}

impl Evidence {
    /// Asks the cluster. What it does not answer is missing and said to be.
    pub(super) fn collect(kubectl: &Kubectl, request: &Request, hooks: &[String], helm: String) -> Self {
        let mut evidence = Self { helm, ..Self::default() };
        if let Err(error) = evidence.ask(kubectl, request, hooks) {
            evidence.incomplete = Some(error.to_string());
        }
        evidence
    }

    /// The logs of pods that look well, for when the application is the one that does not.
    pub(super) fn add_logs(&mut self, kubectl: &Kubectl, rollout: &Rollout) {
        for pod in rollout.pods().take(PODS) {
            let mut found =
                PodEvidence { name: pod.name.clone(), state: pod.state.clone(), ..PodEvidence::default() };
            for status in &pod.object.status.container_statuses {
                let mut container = ContainerEvidence::of(status, &pod.object);
                match container_log(kubectl, &pod.name, status) {
                    Ok(log) => container.log = log,
                    Err(error) => container.log_error = Some(error.to_string()),
                }
                found.containers.push(container);
            }
            self.pods.push(found);
        }
    }

    fn ask(&mut self, kubectl: &Kubectl, request: &Request, hooks: &[String]) -> Result<(), Error> {
        let rollout = Rollout::of(&request.release, &kubectl.workloads()?, hooks);
        // A hook that did not end well is why nothing after it was begun.
        let failed_hook = |workload: &&Workload| {
            workload.kind == "job"
                && workload.object.condition("Complete").is_none_or(|done| done.status != "True")
        };
        let of_hooks = rollout.workloads.iter().filter(failed_hook).flat_map(|job| {
            job.pods
                .iter()
                .filter(|pod| pod.object.status.phase != "Succeeded")
                .map(|pod| (pod, Some(job.title())))
        });
        let of_services = rollout.pods().filter(|pod| !pod.ready || pod.restarts > 0).map(|pod| (pod, None));
        for (pod, hook) in of_hooks.chain(of_services).take(PODS) {
            let mut found = PodEvidence::of(pod, kubectl)?;
            found.hook = hook;
            self.pods.push(found);
        }
        for workload in &rollout.workloads {
            let ready = workload.pods.iter().filter(|pod| pod.ready).count() as u64;
            if workload.kind == "job" {
                if workload.object.condition("Failed").is_some() {
                    self.workloads.push(format!("{}: {}", workload.title(), workload.state()));
                }
                continue;
            }
            if ready >= workload.wanted {
                continue;
            }
            let title = workload.title();
            for condition in &workload.object.status.conditions {
                let failed = matches!(
                    (condition.kind.as_str(), condition.status.as_str()),
                    ("Progressing", "False") | ("ReplicaFailure", "True")
                );
                if failed {
                    self.workloads.push(format!("{title}: {}: {}", condition.reason, condition.message));
                }
            }
            // Where pods could not even be made (quota, admission), only their maker knows.
            if let Some(set) = &workload.replica_set {
                let name = &set.metadata.name;
                let events = kubectl.events("ReplicaSet", name)?;
                self.workloads.extend(
                    last_warnings(&events).into_iter().map(|event| format!("replicaset/{name}: {event}")),
                );
            }
        }
        Ok(())
    }
}

impl PodEvidence {
    fn of(pod: &ReleasePod, kubectl: &Kubectl) -> Result<Self, Error> {
        let object = &pod.object;
        let unscheduled = object
            .condition("PodScheduled")
            .filter(|condition| condition.status == "False")
            .map(|condition| condition.message.clone());
        let initial = object.status.init_container_statuses.iter().filter(|status| {
            !status.ready && status.state.terminated.as_ref().is_none_or(|end| end.exit_code != 0)
        });
        let main = object
            .status
            .container_statuses
            .iter()
            .filter(|status| !status.ready || status.restart_count > 0);
        let mut containers = Vec::new();
        for status in initial.chain(main) {
            let mut container = ContainerEvidence::of(status, object);
            if container.has_run(status) {
                match container_log(kubectl, &pod.name, status) {
                    Ok(log) => container.log = log,
                    Err(error) => container.log_error = Some(error.to_string()),
                }
            }
            containers.push(container);
        }
        let events = last_events(&kubectl.events("Pod", &pod.name)?);
        Ok(Self {
            name: pod.name.clone(),
            state: pod.state.clone(),
            hook: None,
            unscheduled,
            containers,
            events,
        })
    }
}

impl ContainerEvidence {
    pub(super) fn of(status: &ContainerStatus, pod: &Object) -> Self {
        let declared = pod
            .spec
            .containers
            .iter()
            .chain(&pod.spec.init_containers)
            .find(|container| container.name == status.name);
        let ends = [&status.state.terminated, &status.last_state.terminated];
        let end = ends.into_iter().flatten().next();
        let (reason, message) = match (&status.state.waiting, &status.state.terminated) {
            (Some(waiting), _) => (waiting.reason.clone(), waiting.message.clone()),
            (None, Some(Terminated { reason, message, .. })) => (reason.clone(), message.clone()),
            (None, None) => (String::new(), String::new()),
        };
        Self {
            name: status.name.clone(),
            image: declared.map(|container| container.image.clone()).unwrap_or_default(),
            reason,
            message,
            exit_code: end.map(|end| end.exit_code),
            out_of_memory: end.is_some_and(|end| end.reason == "OOMKilled"),
            memory_limit: declared.and_then(|container| container.resources.limits.get("memory").cloned()),
            restarts: status.restart_count,
            readiness_probe: declared.is_some_and(|container| container.readiness_probe.is_some()),
            log: Vec::new(),
            log_error: None,
        }
    }

    fn has_run(&self, status: &ContainerStatus) -> bool {
        self.exit_code.is_some() || status.state.running.is_some()
    }
}

/// The log of the run that ended last; of the one that runs if none ended.
fn container_log(kubectl: &Kubectl, pod: &str, status: &ContainerStatus) -> Result<Vec<String>, Error> {
    let previous = status.restart_count > 0 && status.state.terminated.is_none();
    match kubectl.log(pod, &status.name, LOG_LINES, previous) {
        // The run before may have been cleared away already.
        Err(_) if previous => kubectl.log(pod, &status.name, LOG_LINES, false),
        answer => answer,
    }
}

fn last_events(events: &[Event]) -> Vec<String> {
    events[events.len().saturating_sub(EVENTS)..].iter().map(line).collect()
}

fn last_warnings(events: &[Event]) -> Vec<String> {
    let warnings: Vec<_> = events.iter().filter(|event| event.kind == "Warning").map(line).collect();
    warnings[warnings.len().saturating_sub(EVENTS)..].to_vec()
}

fn line(event: &Event) -> String {
    match event.count {
        Some(count) if count > 1 => format!("{}: {} ({count} times)", event.reason, event.message),
        _ => format!("{}: {}", event.reason, event.message),
    }
}

//! What can still be learned about a rollout that failed: states, exit codes, log lines, events.
//!
//! Collected before anything is undone, because undoing destroys it. Every list is bounded, and all that does not depend
//! on another answer is asked for at the same time.

use std::thread;

use serde::Serialize;

use super::hidden::Hidden;
use super::kubectl::Kubectl;
use super::objects::{ContainerStatus, Event, Object, Terminated};
use super::rollout::{ReleasePod, Rollout, Workload, scheduling};
use super::{Error, Request};

/// How many lines of a container's log are kept.
const LOG_LINES: usize = 50;
/// How many events of one object are kept.
const EVENTS: usize = 6;
/// How many pods are looked at; of many pods that fail alike the first few tell it all.
const PODS: usize = 3;
/// How many workloads are asked about that have not enough pods.
const WORKLOADS: usize = 6;

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
    /// The last lines of the run that is at work now, if `log` is of the one before it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub log_now: Vec<String>,
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

    /// Hides values in all that others said.
    pub(super) fn hide(&mut self, hidden: &Hidden) {
        let Self { helm, pods, workloads, incomplete: _ } = self;
        hidden.hide(helm);
        workloads.iter_mut().for_each(|line| hidden.hide(line));
        for pod in pods {
            let PodEvidence { name: _, hook: _, state, unscheduled, containers, events } = pod;
            hidden.hide(state);
            unscheduled.iter_mut().chain(events).for_each(|line| hidden.hide(line));
            for container in containers {
                hidden.hide(&mut container.message);
                container.log.iter_mut().chain(&mut container.log_now).for_each(|line| hidden.hide(line));
            }
        }
    }

    /// The logs of pods that look well, for when the application is the one that does not.
    pub(super) fn add_logs(&mut self, kubectl: &Kubectl, rollout: &Rollout) {
        for pod in rollout.pods().take(PODS) {
            let mut found =
                PodEvidence { name: pod.name.clone(), state: pod.state.clone(), ..PodEvidence::default() };
            for status in &pod.object.status.container_statuses {
                let mut container = ContainerEvidence::of(status, &pod.object);
                container.read_log(kubectl, &pod.name, status);
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
        let lacking = rollout.workloads.iter().filter(|workload| match workload.kind.as_str() {
            "job" => {
                workload.object.condition("Failed").is_none()
                    && workload.pods.is_empty()
                    && failed_hook(workload)
            }
            _ => !workload.is_ready(),
        });
        let (pods, warnings) = thread::scope(|scope| {
            let pods: Vec<_> = (of_hooks.chain(of_services).take(PODS))
                .map(|(pod, hook)| scope.spawn(move || PodEvidence::of(pod, hook, kubectl)))
                .collect();
            let warnings: Vec<_> = (lacking.take(WORKLOADS))
                .map(|workload| scope.spawn(move || (workload.title(), warnings(kubectl, workload))))
                .collect();
            let pods: Vec<_> = pods.into_iter().filter_map(|asked| asked.join().ok()).collect();
            let warnings: Vec<_> = warnings.into_iter().filter_map(|asked| asked.join().ok()).collect();
            (pods, warnings)
        });
        for workload in &rollout.workloads {
            let title = workload.title();
            if workload.kind == "job" {
                if workload.object.condition("Failed").is_some() {
                    self.workloads.push(format!("{title}: {}", workload.state()));
                }
            } else if !workload.is_ready() {
                for condition in &workload.object.status.conditions {
                    let failed = matches!(
                        (condition.kind.as_str(), condition.status.as_str()),
                        ("Progressing", "False") | ("ReplicaFailure", "True")
                    );
                    if failed {
                        self.workloads.push(format!("{title}: {}: {}", condition.reason, condition.message));
                    }
                }
            }
            if let Some((_, Ok(lines))) = warnings.iter().find(|(of, _)| *of == title) {
                self.workloads.extend(lines.iter().cloned());
            }
        }
        for pod in pods {
            self.pods.push(pod?);
        }
        warnings.into_iter().try_for_each(|(_, warnings)| warnings.map(drop))
    }
}

/// Where pods could not even be made (quota, admission), only their maker knows.
fn warnings(kubectl: &Kubectl, workload: &Workload) -> Result<Vec<String>, Error> {
    let maker = workload.replica_set.as_ref().unwrap_or(&workload.object);
    let kind = if workload.replica_set.is_some() { "ReplicaSet" } else { maker.kind.as_str() };
    let name = &maker.metadata.name;
    let events = kubectl.events(kind, name)?;
    let title = kind.to_lowercase();
    Ok(last_warnings(&events).into_iter().map(|event| format!("{title}/{name}: {event}")).collect())
}

impl PodEvidence {
    fn of(pod: &ReleasePod, hook: Option<String>, kubectl: &Kubectl) -> Result<Self, Error> {
        let object = &pod.object;
        let unscheduled = object
            .condition("PodScheduled")
            .filter(|condition| condition.status == "False")
            .map(|condition| scheduling(&condition.message).to_owned());
        let initial = object.status.init_container_statuses.iter().filter(|status| {
            !status.ready && status.state.terminated.as_ref().is_none_or(|end| end.exit_code != 0)
        });
        let main = object
            .status
            .container_statuses
            .iter()
            .filter(|status| !status.ready || status.restart_count > 0);
        let (events, containers) = thread::scope(|scope| {
            let events = scope.spawn(|| kubectl.events("Pod", &pod.name));
            let containers: Vec<_> = (initial.chain(main))
                .map(|status| {
                    scope.spawn(move || {
                        let mut container = ContainerEvidence::of(status, object);
                        if container.has_run(status) {
                            container.read_log(kubectl, &pod.name, status);
                        }
                        container
                    })
                })
                .collect();
            let containers = containers.into_iter().filter_map(|asked| asked.join().ok()).collect();
            (events.join().unwrap_or_else(|_| Ok(Vec::new())), containers)
        });
        Ok(Self {
            name: pod.name.clone(),
            state: pod.state.clone(),
            hook,
            unscheduled,
            containers,
            events: last_events(&events?),
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
            log_now: Vec::new(),
            log_error: None,
        }
    }

    /// Asks for the log of the run that ended last, and of the one that is at work after it.
    fn read_log(&mut self, kubectl: &Kubectl, pod: &str, status: &ContainerStatus) {
        let previous = status.restart_count > 0 && status.state.terminated.is_none();
        let runs = previous && status.state.running.is_some();
        let ask = |previous| kubectl.log(pod, &status.name, LOG_LINES, previous);
        let (mut first, now) = thread::scope(|scope| {
            let now = runs.then(|| scope.spawn(|| ask(false)));
            (ask(previous), now.and_then(|now| now.join().ok()).and_then(Result::ok))
        });
        if first.as_ref().map_or(true, Vec::is_empty) {
            // The run before may have been cleared away already; or it was started again since it was looked at.
            let other = if runs { now } else { ask(!previous).ok() };
            if let Some(log) = other.filter(|log| !log.is_empty()) {
                first = Ok(log);
            }
        } else if let Some(now) = now {
            self.log_now = now;
        }
        match first {
            Ok(log) => self.log = log,
            Err(error) => self.log_error = Some(error.to_string()),
        }
    }

    fn has_run(&self, status: &ContainerStatus) -> bool {
        self.exit_code.is_some() || status.state.running.is_some()
    }
}

fn last_events(events: &[Event]) -> Vec<String> {
    events[events.len().saturating_sub(EVENTS)..].iter().map(line).collect()
}

/// The last warnings; those that differ in nothing but the name of the pod that was to be made are one.
fn last_warnings(events: &[Event]) -> Vec<String> {
    let mut found: Vec<(String, Event)> = Vec::new();
    for event in events.iter().filter(|event| event.kind == "Warning") {
        let key = alike(&event.message);
        let mut event = event.clone();
        if let Some(at) = found.iter().position(|(known, _)| *known == key) {
            let (_, before) = found.remove(at);
            event.count = Some(event.count.unwrap_or(1) + before.count.unwrap_or(1));
        }
        event.message = event.message.trim_start_matches(COMBINED).to_owned();
        found.push((key, event));
    }
    found[found.len().saturating_sub(EVENTS)..].iter().map(|(_, event)| line(event)).collect()
}

/// What the API server puts before an event that stands for several.
pub(super) const COMBINED: &str = "(combined from similar events): ";

/// A message without what is in quotes: the names of pods, which are new each time.
pub(super) fn alike(message: &str) -> String {
    message.trim_start_matches(COMBINED).split('"').step_by(2).collect()
}

fn line(event: &Event) -> String {
    match event.count {
        Some(count) if count > 1 => format!("{}: {} ({count} times)", event.reason, event.message),
        _ => format!("{}: {}", event.reason, event.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_that_are_alike_are_one() {
        let event = |message: &str, count| Event {
            kind: "Warning".to_owned(),
            reason: "FailedCreate".to_owned(),
            message: message.to_owned(),
            count,
            ..Event::default()
        };
        let events = [
            event("Error creating: pods \"a-1\" is forbidden: exceeded quota", None),
            event("Error creating: pods \"a-2\" is forbidden: exceeded quota", Some(1)),
            event("no", None),
            event(
                "(combined from similar events): Error creating: pods \"a-3\" is forbidden: exceeded quota",
                Some(4),
            ),
        ];
        assert_eq!(
            last_warnings(&events),
            [
                "FailedCreate: no",
                "FailedCreate: Error creating: pods \"a-3\" is forbidden: exceeded quota (6 times)"
            ]
        );
    }
}

//! From evidence to one cause, in one sentence, and what to do about it.
//!
//! Pure: evidence in, cause out. Each rule matches words that real clusters and real helms were seen to say.

use serde::Serialize;

use super::evidence::{ContainerEvidence, Evidence, PodEvidence};
use super::rollout::pull_cause;

/// Why a deployment failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// The kind of cause, for programs.
    pub kind: Kind,
    /// What happened, in one sentence without a full stop.
    pub sentence: String,
    /// What to do about it, in one sentence without a full stop.
    pub remedy: String,
}

/// The kinds of causes that are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The cluster does not answer.
    Unreachable,
    /// The cluster does not know who we are.
    Credentials,
    /// The cluster does not let us.
    Forbidden,
    /// Another helm holds the release, or died holding it.
    Locked,
    /// The chart does not render, or the cluster does not know its kinds.
    Chart,
    /// The image, or its tag, is not in the registry.
    ImageMissing,
    /// The image cannot be pulled for another reason.
    ImagePull,
    /// The container's configuration names something that is not there.
    Configuration,
    /// The container's program cannot be started.
    Start,
    /// The container was killed for want of memory.
    OutOfMemory,
    /// The container ends again and again.
    Crash,
    /// The container runs and its probe fails.
    Probe,
    /// No node has room for the pod.
    Unschedulable,
    /// The pods could not be made.
    PodsRefused,
    /// None of the above.
    Unknown,
}

impl Cause {
    fn new(kind: Kind, sentence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { kind, sentence: sentence.into(), remedy: remedy.into() }
    }
}

/// The most specific cause that the evidence supports.
pub(super) fn diagnose(evidence: &Evidence) -> Cause {
    // What keeps helm from starting at all: then the pods are those of an older revision and prove nothing.
    if let Some(cause) = before_the_rollout(&evidence.helm) {
        return cause;
    }
    let of_pods = evidence.pods.iter().filter_map(of_pod).min_by_key(|cause| rank(cause.kind));
    of_pods.or_else(|| of_workloads(evidence)).unwrap_or_else(|| unknown(evidence))
}

/// Causes that explain others come first: a pod that cannot be pulled makes its neighbour fail its probe.
fn rank(kind: Kind) -> u8 {
    match kind {
        Kind::Unknown => 2,
        Kind::Probe => 1,
        _ => 0,
    }
}

fn before_the_rollout(helm: &str) -> Option<Cause> {
    let last = helm.lines().rev().find(|line| line.starts_with("Error:")).unwrap_or(helm).trim();
    let has = |text: &str| helm.contains(text);
    let cause = if has("another operation (install/upgrade/rollback) is in progress") {
        Cause::new(
            Kind::Locked,
            "another helm works on this release, or died while it did",
            "wait for the other one; if there is none, `helm history` shows the last deployed revision: \
             `helm rollback RELEASE REVISION` frees the release (`helm uninstall` after a first install)",
        )
    } else if has("luster unreachable") || has("connect: connection refused") && !has("ErrImagePull") {
        Cause::new(
            Kind::Unreachable,
            format!("the cluster cannot be reached: {}", tail(last)),
            "see that the kubeconfig names the right server, that it listens there and that this host may connect",
        )
    } else if has("the server has asked for the client to provide credentials") || has("Unauthorized") {
        Cause::new(
            Kind::Credentials,
            "the cluster does not accept the credentials of the kubeconfig",
            "renew the token or certificate in the kubeconfig",
        )
    } else if has(" is forbidden: ") && !has("exceeded quota") {
        Cause::new(
            Kind::Forbidden,
            format!("the cluster refuses: {}", tail_from(last, " is forbidden: ")),
            "give the kubeconfig's user a Role in this namespace for secrets, configmaps, services, pods, events and \
             the workloads of the chart",
        )
    } else if has("create: failed to create: namespaces") || has("namespaces \"") && has("not found") {
        Cause::new(
            Kind::Configuration,
            format!("the namespace is not there: {}", tail(last)),
            "create it, or deploy with --create-namespace",
        )
    } else if has("resource mapping not found") || has("unable to build kubernetes objects") {
        Cause::new(
            Kind::Chart,
            format!("the cluster does not take what the chart creates: {last}"),
            "correct the manifest, or install the CRDs that it needs first",
        )
    } else if has("template: ")
        || has("values don't meet the specifications")
        || has("Chart.yaml file is missing")
    {
        Cause::new(
            Kind::Chart,
            format!("the chart does not render: {last}"),
            "`sower deploy helm --render-only` with the same arguments shows it without a cluster",
        )
    } else {
        return None;
    };
    Some(cause)
}

fn of_pod(pod: &PodEvidence) -> Option<Cause> {
    if let Some(message) = &pod.unscheduled {
        return Some(Cause::new(
            Kind::Unschedulable,
            format!("no node takes pod {}: {message}", pod.name),
            "lower the pod's requests, or give the cluster room",
        ));
    }
    pod.containers
        .iter()
        .filter_map(|container| of_container(pod, container))
        .min_by_key(|cause| rank(cause.kind))
}

fn of_container(pod: &PodEvidence, container: &ContainerEvidence) -> Option<Cause> {
    let who = format!("container {} of pod {}", container.name, pod.name);
    match container.reason.as_str() {
        "ErrImagePull" | "ImagePullBackOff" => return Some(of_pull(pod, container)),
        "InvalidImageName" => {
            return Some(Cause::new(
                Kind::ImagePull,
                format!("{who} names an image that cannot be: {}", container.image),
                "correct the image's name in the chart or in --set",
            ));
        }
        "CreateContainerConfigError" => {
            return Some(Cause::new(
                Kind::Configuration,
                format!("{who} cannot be made: {}", container.message),
                "create the Secret or ConfigMap, or the key in it, in this namespace",
            ));
        }
        "RunContainerError" | "StartError" | "CreateContainerError" | "ContainerCannotRun" => {
            return Some(Cause::new(
                Kind::Start,
                format!(
                    "{who} does not start: {}",
                    container.message.lines().next_back().unwrap_or_default()
                ),
                "see that the program is in the image, executable and built for the node's architecture",
            ));
        }
        _ => {}
    }
    if container.out_of_memory {
        let limit = container
            .memory_limit
            .as_deref()
            .map_or_else(String::new, |limit| format!(" (its limit is {limit})"));
        return Some(Cause::new(
            Kind::OutOfMemory,
            format!("{who} was killed for want of memory{limit}"),
            "raise the container's memory limit, or lower what the program takes",
        ));
    }
    // Killed by its own liveness probe: 137 or 143, and the event says so.
    if let Some(event) = pod.events.iter().rev().find(|event| event.contains("Liveness probe failed")) {
        return Some(of_probe(&who, event, "Liveness"));
    }
    if let Some(code) = container.exit_code {
        let last = container.log.iter().rev().find(|line| !line.trim().is_empty());
        let words =
            last.map_or_else(|| "; it logged nothing".to_owned(), |line| format!("; its last words: {line}"));
        let times = match container.restarts {
            0 => String::new(),
            1 => ", once started again".to_owned(),
            restarts => format!(", {restarts} times started again"),
        };
        return Some(Cause::new(
            Kind::Crash,
            format!("{who} ended with exit code {code}{times}{words}"),
            "mend what its log complains about; the deployment did arrive, the program does not stay up",
        ));
    }
    let event = pod.events.iter().rev().find(|event| event.contains("probe failed"))?;
    Some(of_probe(&who, event, "Readiness"))
}

fn of_probe(who: &str, event: &str, which: &str) -> Cause {
    let words = event.strip_prefix("Unhealthy: ").unwrap_or(event);
    Cause::new(
        Kind::Probe,
        format!("{who} runs, but: {words}"),
        format!(
            "see that the {} probe asks the right port and path, and allows for the time that the start takes",
            which.to_lowercase()
        ),
    )
}

fn of_pull(pod: &PodEvidence, container: &ContainerEvidence) -> Cause {
    let image = &container.image;
    let who = format!("container {} of pod {}", container.name, pod.name);
    // The back-off message may be bare; then the first event has the whole chain.
    let event = pod.events.iter().find(|event| event.contains("Failed to pull image"));
    let words = pull_cause(&container.message)
        .filter(|words| !words.starts_with("Back-off"))
        .or_else(|| event.and_then(|event| pull_cause(event)))
        .unwrap_or_else(|| container.message.clone());
    let all = format!("{}\n{}", container.message, event.map_or("", String::as_str));
    let has = |text: &str| all.contains(text);
    if has("HTTP response to HTTPS client") {
        return Cause::new(
            Kind::ImagePull,
            format!("{who}: the node asks for {image} over https, and the registry speaks plain http"),
            "give the node a mirror entry for the registry (k3s: /etc/rancher/k3s/registries.yaml), or the registry a \
             certificate",
        );
    }
    if has("401 Unauthorized")
        || has("403 Forbidden")
        || has("failed to authorize")
        || has("authentication required")
    {
        return Cause::new(
            Kind::ImagePull,
            format!("{who}: the registry does not let the node have {image}: {words}"),
            "give the pod an imagePullSecret, or the node credentials for the registry",
        );
    }
    if has(": not found") || has("manifest unknown") {
        return Cause::new(
            Kind::ImageMissing,
            format!("{who}: the image {image} is not in the registry"),
            "push it before the deployment (`sower image push`), or correct the tag that the chart is given",
        );
    }
    Cause::new(
        Kind::ImagePull,
        format!("{who}: the node cannot pull {image}: {words}"),
        "see that the node can reach the registry under that name",
    )
}

fn of_workloads(evidence: &Evidence) -> Option<Cause> {
    let refused = evidence.workloads.iter().find(|line| line.contains("FailedCreate"))?;
    Some(Cause::new(
        Kind::PodsRefused,
        format!("the cluster refuses to make the pods: {}", refused.trim()),
        "raise the quota, or change what the policy objects to",
    ))
}

fn unknown(evidence: &Evidence) -> Cause {
    let helm =
        evidence.helm.lines().rev().find(|line| line.starts_with("Error:")).unwrap_or("helm did not say why");
    let sentence = match evidence.pods.first() {
        Some(pod) => format!("pod {} is not ready ({})", pod.name, pod.state),
        None => helm.trim_start_matches("Error: ").to_owned(),
    };
    Cause::new(
        Kind::Unknown,
        sentence,
        "see the evidence above; a longer --timeout helps if all it needs is time",
    )
}

/// The end of a chain of `X: Y: Z`.
fn tail(line: &str) -> &str {
    line.split_once("unreachable: ").map_or(line, |(_, rest)| rest).trim_start_matches("Error: ")
}

fn tail_from<'a>(line: &'a str, mark: &str) -> &'a str {
    line.split_once(mark).map_or(line, |(_, rest)| rest)
}

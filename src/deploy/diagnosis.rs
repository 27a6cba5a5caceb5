//! From evidence to one cause, in one sentence, and what to do about it.
//!
//! Pure: evidence in, cause out. Each rule matches words that real clusters and real helms were seen to say.

use serde::Serialize;

use super::evidence::{ContainerEvidence, Evidence, PodEvidence};
use super::pull::mirror_entry;
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
    /// What to put where, ready to paste.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paste: Option<String>,
}

/// The kinds of causes that are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// There is no kubeconfig, or not in it what is asked for.
    Kubeconfig,
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
    /// A quota does not allow what the chart creates.
    Quota,
    /// An admission rule refuses what the chart creates.
    Admission,
    /// A hook of the chart failed.
    Hook,
    /// The program is built for another kind of machine.
    Architecture,
    /// All is ready, and the application does not answer as it should.
    Check,
    /// The way to the cluster was lost.
    Connection,
    /// The certificate of the cluster, or of the kubeconfig's user, is not or not any more good.
    Certificate,
    /// None of the above.
    Unknown,
}

const QUOTA: &str =
    "raise the quota (`kubectl describe quota` shows what it allows and what is used), or ask for less";

impl Cause {
    pub(super) fn new(kind: Kind, sentence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { kind, sentence: sentence.into(), remedy: remedy.into(), paste: None }
    }
}

/// The most specific cause that the evidence supports.
pub(super) fn diagnose(evidence: &Evidence) -> Cause {
    let of_pods = evidence.pods.iter().filter_map(of_pod).min_by_key(|cause| rank(cause.kind));
    of_pods
        .or_else(|| of_workloads(evidence))
        .or_else(|| of_hooks(&evidence.helm))
        .unwrap_or_else(|| unknown(evidence))
}

/// Causes that explain others come first: a pod that cannot be pulled makes its neighbour fail its probe.
fn rank(kind: Kind) -> u8 {
    match kind {
        Kind::Unknown => 2,
        Kind::Probe => 1,
        _ => 0,
    }
}

/// What kept helm from changing anything, told from its last words.
pub(super) fn diagnose_helm(helm: &str) -> Option<Cause> {
    let last = helm.lines().rev().find(|line| line.starts_with("Error:")).unwrap_or(helm).trim();
    let last = last.trim_start_matches("Error: ");
    let last = ["UPGRADE FAILED: ", "INSTALLATION FAILED: "]
        .iter()
        .fold(last, |last, start| last.strip_prefix(*start).unwrap_or(last));
    let has = |text: &str| helm.contains(text);
    let cause = if has("another operation (install/upgrade/rollback) is in progress") {
        Cause::new(
            Kind::Locked,
            "another helm works on this release, or died while it did",
            "wait for the other one; if there is none, `helm history` shows the last deployed revision: \
             `helm rollback RELEASE REVISION` frees the release (`helm uninstall` after a first install)",
        )
    } else if has("http://localhost:8080/version") {
        // Where helm and kubectl look when nobody tells them anything.
        Cause::new(
            Kind::Kubeconfig,
            "there is no kubeconfig: neither --kubeconfig, nor SOWER_KUBECONFIG, nor KUBECONFIG, nor ~/.kube/config",
            "give one of them (k3s: /etc/rancher/k3s/k3s.yaml)",
        )
    } else if has("context \"") && has("\" does not exist") {
        Cause::new(
            Kind::Kubeconfig,
            format!("the kubeconfig is of no use: {}", tail(last)),
            "`kubectl config get-contexts` lists the contexts that it has",
        )
    } else if has("x509: ") {
        let what = last.rsplit("x509: ").next().unwrap_or(last);
        Cause::new(
            Kind::Certificate,
            format!("the certificate of the cluster's API server is not accepted: {what}"),
            if what.contains("expired") || what.contains("not yet valid") {
                "renew it (k3s: it does so when it is restarted within 90 days of the end, or `k3s certificate rotate`); \
                 see that the clocks of both hosts are right"
            } else if what.contains("unknown authority") {
                "the kubeconfig is of another cluster, or of the time before the cluster was set up anew: fetch it again"
            } else {
                "name the server in the kubeconfig as its certificate does, or set tls-server-name there"
            },
        )
    } else if has("tls: ")
        && (has("expired certificate") || has("bad certificate") || has("certificate required"))
    {
        Cause::new(
            Kind::Certificate,
            format!("the cluster does not accept the certificate of the kubeconfig's user: {}", tail(last)),
            "renew the user's certificate in the kubeconfig (k3s: fetch /etc/rancher/k3s/k3s.yaml again)",
        )
    } else if has("the server has asked for the client to provide credentials") || has("Unauthorized") {
        Cause::new(
            Kind::Credentials,
            "the cluster does not accept the credentials of the kubeconfig",
            "renew the token or certificate in the kubeconfig",
        )
    } else if has("luster unreachable") || has("connect: connection refused") && !has("ErrImagePull") {
        Cause::new(
            Kind::Unreachable,
            format!("the cluster cannot be reached: {}", tail(last)),
            "see that the kubeconfig names the right server, that it listens there and that this host may connect",
        )
    } else if has("admission webhook") && has("denied")
        || has("ValidatingAdmissionPolicy")
        || has("violates PodSecurity")
    {
        let words = last.rsplit_once("forbidden: ").map_or_else(|| tail(last), |(_, words)| words);
        Cause::new(
            Kind::Admission,
            format!("an admission rule of the cluster refuses what the chart creates: {words}"),
            "change what the rule objects to in the chart, or the rule",
        )
    } else if has("exceeded quota") {
        Cause::new(
            Kind::Quota,
            format!("a quota does not allow what the chart creates: {}", tail_from(last, " is forbidden: ")),
            QUOTA,
        )
    } else if has(" is forbidden: ") {
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
    } else if has("cannot patch") && has("field is immutable") {
        Cause::new(
            Kind::Chart,
            format!("the chart changes what cannot be changed: {last}"),
            "delete that object (its pods go with it) and deploy again, or take the change back",
        )
    } else if has("resource mapping not found")
        || has("unable to build kubernetes objects")
        || has("failed to create resource: ")
        || has("unable to convert unstructured object")
        || has(" is invalid: ")
    {
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

/// A hook that left nothing to look at.
fn of_hooks(helm: &str) -> Option<Cause> {
    let line = helm.lines().rev().find(|line| line.contains("hooks failed") || line.contains("hook"))?;
    let words = line.trim_start_matches("Error: ");
    line.contains("failed").then(|| {
        Cause::new(
            Kind::Hook,
            format!("a hook of the chart failed: {words}"),
            "see the Job that it names, and its log",
        )
    })
}

fn of_pod(pod: &PodEvidence) -> Option<Cause> {
    let cause = cause_of_pod(pod)?;
    let Some(hook) = &pod.hook else { return Some(cause) };
    // What is wrong with the pod is why the hook failed.
    let kind = if cause.kind == Kind::Crash { Kind::Hook } else { cause.kind };
    let remedy = if cause.kind == Kind::Crash {
        "mend what its log complains about; what comes after the hook was not begun".to_owned()
    } else {
        cause.remedy
    };
    Some(Cause { kind, sentence: format!("hook {hook}: {}", cause.sentence), remedy, paste: cause.paste })
}

fn cause_of_pod(pod: &PodEvidence) -> Option<Cause> {
    if let Some(message) = &pod.unscheduled {
        return Some(Cause::new(
            Kind::Unschedulable,
            format!("no node takes pod {}: {message}", pod.name),
            "lower the pod's requests, or give the cluster room",
        ));
    }
    let of_containers = pod.containers.iter().filter_map(|container| of_container(pod, container));
    of_containers.min_by_key(|cause| rank(cause.kind)).or_else(|| of_volume(pod))
}

/// A pod that waits for a volume.
fn of_volume(pod: &PodEvidence) -> Option<Cause> {
    let event = pod.events.iter().rev().find_map(|event| event.strip_prefix("FailedMount: "))?;
    let remedy = if event.contains("not found") || event.contains("non-existent") {
        "create the Secret or ConfigMap that the volume names, or the key in it, in this namespace"
    } else {
        "see that the volume is there and that the node may mount it (`kubectl describe pod`)"
    };
    Some(Cause::new(
        Kind::Configuration,
        format!("pod {} waits for a volume that cannot be mounted: {event}", pod.name),
        remedy,
    ))
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
    let said = |words: &str| {
        container.log.iter().any(|line| line.contains(words)) || container.message.contains(words)
    };
    if said("exec format error") {
        return Some(Cause::new(
            Kind::Architecture,
            format!("{who} cannot run: its program is built for another kind of machine (exec format error)"),
            "build the image for the node's architecture (`kubectl get nodes -o wide` shows it)",
        ));
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
        let registry = image.split('/').next().unwrap_or(image);
        return Cause {
            paste: Some(format!(
                "# /etc/rancher/k3s/registries.yaml on each node; then: systemctl restart k3s (agents: k3s-agent)\n{}",
                mirror_entry(registry)
            )),
            ..Cause::new(
                Kind::ImagePull,
                format!("{who}: the node asks for {image} over https, and the registry speaks plain http"),
                "give the node a mirror entry for the registry, or the registry a certificate",
            )
        };
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
    let refused = evidence.workloads.iter().rev().find(|line| line.contains("FailedCreate"))?.trim();
    let has = |words: &str| refused.contains(words);
    let remedy = if has("exceeded quota") {
        QUOTA
    } else if has("must specify") {
        "the namespace has a quota, so that each container must say what it asks for: set resources in the chart"
    } else if has("usage per") {
        "the namespace has a LimitRange (`kubectl describe limitrange`): change it, or the container's resources"
    } else if has("violates PodSecurity") {
        "give the pod the securityContext that it wants, or the namespace another level \
         (label pod-security.kubernetes.io/enforce)"
    } else if has("error looking up service account") {
        "create the ServiceAccount that the pods name, or have the chart create it"
    } else if has("admission webhook") || has("ValidatingAdmissionPolicy") {
        "change what the rule objects to, or the rule"
    } else {
        "change what the cluster objects to"
    };
    // `replicaset/app-1: FailedCreate: Error creating: …`
    let (maker, words) = refused.split_once(": ").unwrap_or(("", refused));
    let words = ["FailedCreate: ", "Error creating: "]
        .iter()
        .fold(words, |words, start| words.strip_prefix(start).unwrap_or(words));
    let sentence = format!("the cluster refuses to make the pods of {maker}: {words}");
    Some(Cause::new(Kind::PodsRefused, sentence, remedy))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn container(reason: &str, message: &str) -> ContainerEvidence {
        ContainerEvidence {
            name: "app".to_owned(),
            image: "registry.test/app:7".to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            ..ContainerEvidence::default()
        }
    }

    fn evidence(container: ContainerEvidence, events: &[&str]) -> Evidence {
        let pod = PodEvidence {
            name: "app-1".to_owned(),
            containers: vec![container],
            events: events.iter().map(|event| (*event).to_owned()).collect(),
            ..PodEvidence::default()
        };
        Evidence {
            helm: "Error: UPGRADE FAILED: context deadline exceeded".to_owned(),
            pods: vec![pod],
            ..Evidence::default()
        }
    }

    /// What containerd, runc and the kubelet were seen to say.
    #[test]
    fn the_words_of_a_real_node_are_understood() {
        let pull = "Back-off pulling image \"registry.test/app:7\": ErrImagePull: rpc error: code = NotFound desc = failed \
                    to pull and unpack image \"registry.test/app:7\": failed to resolve reference \"registry.test/app:7\": ";
        let cases = [
            ("ImagePullBackOff", format!("{pull}registry.test/app:7: not found"), Kind::ImageMissing, "is not in the registry"),
            (
                "ImagePullBackOff",
                format!("{pull}failed to do request: Head \"https://registry.test/v2/\": http: server gave HTTP response to HTTPS client"),
                Kind::ImagePull,
                "plain http",
            ),
            (
                "ErrImagePull",
                format!("{pull}pulling from host registry.test failed with status code [manifests 7]: 401 Unauthorized"),
                Kind::ImagePull,
                "does not let the node have",
            ),
            (
                "ImagePullBackOff",
                format!("{pull}failed to do request: Head \"https://x/v2/\": dial tcp: lookup x on 10.0.0.1:53: no such host"),
                Kind::ImagePull,
                "no such host",
            ),
            ("InvalidImageName", "couldn't parse image name".to_owned(), Kind::ImagePull, "registry.test/app:7"),
            ("CreateContainerConfigError", "secret \"missing\" not found".to_owned(), Kind::Configuration, "secret \"missing\""),
            (
                "RunContainerError",
                "failed to create containerd task: exec: \"/bin/nothere\": stat /bin/nothere: no such file or directory".to_owned(),
                Kind::Start,
                "/bin/nothere",
            ),
        ];
        for (reason, message, kind, words) in cases {
            let cause = diagnose(&evidence(container(reason, &message), &[]));
            assert_eq!(cause.kind, kind, "{message}");
            assert!(cause.sentence.contains(words), "{}", cause.sentence);
        }
    }

    #[test]
    fn a_bare_back_off_is_explained_by_its_event() {
        let bare = container("ImagePullBackOff", "Back-off pulling image \"registry.test/app:7\"");
        let event = "Failed: Failed to pull image \"registry.test/app:7\": rpc error: registry.test/app:7: not found (3 times)";
        assert_eq!(diagnose(&evidence(bare, &[event])).kind, Kind::ImageMissing);
    }

    #[test]
    fn a_crash_is_told_by_its_last_words() {
        let mut crashed = container("CrashLoopBackOff", "back-off 10s restarting failed container");
        crashed.exit_code = Some(3);
        crashed.restarts = 2;
        crashed.log = vec!["starting".to_owned(), "DATABASE_URL is not set".to_owned(), String::new()];
        let cause = diagnose(&evidence(crashed, &["Unhealthy: Readiness probe failed: connection refused"]));
        assert_eq!(cause.kind, Kind::Crash);
        assert_eq!(
            cause.sentence,
            "container app of pod app-1 ended with exit code 3, 2 times started again; its last words: DATABASE_URL is not set"
        );
    }

    #[test]
    fn want_of_memory_is_told_with_the_limit() {
        let mut killed = container("CrashLoopBackOff", "");
        killed.exit_code = Some(137);
        killed.out_of_memory = true;
        killed.memory_limit = Some("64Mi".to_owned());
        let cause = diagnose(&evidence(killed, &[]));
        assert_eq!(cause.kind, Kind::OutOfMemory);
        assert!(cause.sentence.contains("64Mi"), "{}", cause.sentence);
    }

    #[test]
    fn a_volume_that_cannot_be_mounted_is_the_cause_of_a_pod_that_does_not_start() {
        let event =
            "FailedMount: MountVolume.SetUp failed for volume \"v\" : secret \"gone\" not found (4 times)";
        let cause = diagnose(&evidence(container("ContainerCreating", ""), &[event]));
        assert_eq!(cause.kind, Kind::Configuration);
        assert!(cause.sentence.contains("secret \"gone\" not found"), "{}", cause.sentence);
    }

    #[test]
    fn pods_that_are_refused_are_explained_by_their_maker() {
        let cases = [
            ("pods \"a\" is forbidden: exceeded quota: small, requested: pods=1", "raise the quota"),
            ("pods \"a\" is forbidden: failed quota: small: must specify cpu for: app", "set resources"),
            (
                "pods \"a\" is forbidden: violates PodSecurity \"restricted:latest\": runAsNonRoot",
                "securityContext",
            ),
            (
                "pods \"a\" is forbidden: error looking up service account web/x: serviceaccount \"x\" not found",
                "ServiceAccount",
            ),
            ("admission webhook \"v.test\" denied the request: no", "or the rule"),
        ];
        for (message, remedy) in cases {
            let evidence = Evidence {
                workloads: vec![format!(
                    "statefulset/app: FailedCreate: create Pod a failed error: {message}"
                )],
                ..Evidence::default()
            };
            let cause = diagnose(&evidence);
            assert_eq!(cause.kind, Kind::PodsRefused);
            assert!(cause.sentence.contains(message) && cause.remedy.contains(remedy), "{cause:?}");
        }
    }

    #[test]
    fn a_probe_is_blamed_only_when_nothing_else_is() {
        let event = "Unhealthy: Readiness probe failed: HTTP probe failed with statuscode: 404 (9 times)";
        assert_eq!(diagnose(&evidence(container("", ""), &[event])).kind, Kind::Probe);
        let mut both = evidence(container("", ""), &[event]);
        both.pods[0].containers.push(container("CreateContainerConfigError", "secret \"missing\" not found"));
        assert_eq!(diagnose(&both).kind, Kind::Configuration);
    }

    #[test]
    fn what_helm_says_before_it_changes_anything() {
        let cases = [
            (
                "Error: UPGRADE FAILED: another operation (install/upgrade/rollback) is in progress",
                Kind::Locked,
            ),
            (
                "Error: Kubernetes cluster unreachable: Get \"https://127.0.0.1:6443/version\": dial tcp 127.0.0.1:6443: connect: connection refused",
                Kind::Unreachable,
            ),
            (
                "Error: kubernetes cluster unreachable: Get \"https://x/version\": tls: failed to verify certificate: x509: certificate has expired",
                Kind::Certificate,
            ),
            (
                "Error: kubernetes cluster unreachable: the server has asked for the client to provide credentials",
                Kind::Credentials,
            ),
            (
                "Error: query: failed to query with labels: secrets is forbidden: User \"ci\" cannot list resource \"secrets\"",
                Kind::Forbidden,
            ),
            (
                "Error: UPGRADE FAILED: deployments.apps \"app\" is forbidden: ValidatingAdmissionPolicy 'no' with binding \
                 'no' denied request: images called bad are not allowed",
                Kind::Admission,
            ),
            (
                "Error: UPGRADE FAILED: failed to create resource: admission webhook \"v.test\" denied the request: no",
                Kind::Admission,
            ),
            (
                "Error: INSTALLATION FAILED: failed to create resource: services \"a\" is forbidden: exceeded quota: small",
                Kind::Quota,
            ),
            ("Error: create: failed to create: namespaces \"web\" not found", Kind::Configuration),
            (
                "Error: unable to build kubernetes objects from release manifest: resource mapping not found for name: \"r\"",
                Kind::Chart,
            ),
            (
                "Error: UPGRADE FAILED: failed to create resource: failed to convert new object (web/bad; /v1, Kind=Secret) to \
                 proper version: error decoding from json: illegal base64 data at input byte 7",
                Kind::Chart,
            ),
            (
                "Error: INSTALLATION FAILED: template: app/templates/x.yaml:3:5: executing \"app\" at <.Values.a.b>: nil pointer",
                Kind::Chart,
            ),
            (
                "Error: kubernetes cluster unreachable: Get \"http://localhost:8080/version\": connection refused",
                Kind::Kubeconfig,
            ),
        ];
        for (said, kind) in cases {
            assert_eq!(diagnose_helm(said).map(|cause| cause.kind), Some(kind), "{said}");
        }
        assert_eq!(diagnose_helm("Error: UPGRADE FAILED: context deadline exceeded"), None);
    }

    #[test]
    fn without_any_evidence_helm_is_quoted() {
        let evidence = Evidence {
            helm: "level=WARN\nError: UPGRADE FAILED: timed out".to_owned(),
            ..Evidence::default()
        };
        let cause = diagnose(&evidence);
        assert_eq!((cause.kind, cause.sentence.as_str()), (Kind::Unknown, "UPGRADE FAILED: timed out"));
    }
}

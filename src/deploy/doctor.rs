//! Whether a deployment could be made: the programs, the way to the cluster, the rights there, the release's state.
//! Nothing is changed.

use std::path::Path;
use std::process::Command;

use super::access::{Access, Ways};
use super::helm::Helm;
use super::kubeconfig::VARIABLE;
use super::place::Place;
use super::process::{self, Captured};
use crate::ssh;

/// Most of an answer that is read, in bytes.
const LIMIT: usize = 1 << 20;
/// What a deployment does, in kubectl's words.
const RIGHTS: [[&str; 2]; 5] = [
    ["create", "deployments.apps"],
    ["patch", "deployments.apps"],
    ["create", "secrets"],
    ["list", "pods"],
    ["get", "pods/log"],
];

/// Something that was looked at.
#[derive(Debug, Clone)]
pub struct Look {
    /// What.
    pub what: &'static str,
    /// What was seen.
    pub seen: String,
    /// What to do; `None` where all is well.
    pub remedy: Option<String>,
    /// A deployment fails of it.
    pub fails: bool,
}

impl Look {
    fn well(what: &'static str, seen: impl Into<String>) -> Self {
        Self { what, seen: seen.into(), remedy: None, fails: false }
    }

    fn odd(what: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..Self::well(what, seen) }
    }

    fn bad(what: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { fails: true, ..Self::odd(what, seen, remedy) }
    }
}

/// Looks at a namespace, and a release in it if one is named.
#[must_use]
pub fn examine(namespace: &str, release: Option<&str>, through: Option<ssh::Target>) -> Vec<Look> {
    let mut looks = Vec::new();
    let content = std::env::var(VARIABLE).ok().filter(|content| !content.trim().is_empty());
    let ways = Ways {
        content: content.map(ssh::Secret::new),
        ssh: through.map(|target| (target, ssh::Options::from_environment())),
        ..Ways::default()
    };
    let access = match Access::open(ways) {
        Ok(access) => access,
        Err(error) => {
            looks.push(Look::bad(
                "way",
                error.to_string(),
                "a kubeconfig in KUBECONFIG or SOWER_KUBECONFIG, or --ssh HOST",
            ));
            return looks;
        }
    };
    match Helm::find(&access) {
        Ok(helm) => looks.push(Look::well("helm", helm.version())),
        Err(error) => looks.push(Look::bad("helm", error.to_string(), "https://helm.sh/docs/intro/install")),
    }
    let kubectl = match &access.place {
        Place::Here => which::which("kubectl").ok(),
        Place::There(_) => Some("kubectl".into()),
    };
    let Some(kubectl) = kubectl else {
        looks.push(Look::bad("kubectl", "not on PATH", "https://kubernetes.io/docs/tasks/tools"));
        return looks;
    };
    match ask(&access, &kubectl, &["version", "--output=yaml", "--request-timeout=5s"]) {
        Ok(said) => looks.push(Look::well("cluster", server(&said))),
        Err(why) => {
            looks.push(Look::bad("cluster", why, "the right kubeconfig, or the way to it: --ssh HOST"));
            return looks;
        }
    }
    match ask(&access, &kubectl, &["get", "namespace", namespace, "--output=name"]) {
        Ok(_) => looks.push(Look::well("namespace", namespace)),
        Err(why) => {
            looks.push(Look::odd("namespace", why, "create-namespace: true, or kubectl create namespace …"))
        }
    }
    looks.push(rights(&access, &kubectl, namespace));
    if let Some(release) = release {
        looks.push(state(&access, namespace, release));
    }
    looks
}

fn ask(access: &Access, program: &Path, arguments: &[&str]) -> Result<String, String> {
    let mut command = process::command(program);
    access.apply(&mut command, "--context");
    command.args(arguments);
    captured(access, &mut command)
}

fn captured(access: &Access, command: &mut Command) -> Result<String, String> {
    match process::capture_at(&access.place, command, process::text(LIMIT)) {
        Ok(Captured { success: true, stdout, .. }) => Ok(stdout),
        Ok(Captured { stdout, stderr, .. }) => {
            let said = if stderr.trim().is_empty() { stdout } else { stderr };
            Err(said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no answer").to_owned())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// The server's version out of kubectl's YAML.
fn server(said: &str) -> String {
    let server = said.split_once("serverVersion:").map_or("", |(_, server)| server);
    let version = server.lines().find_map(|line| line.trim().strip_prefix("gitVersion:"));
    format!("Kubernetes {}", version.unwrap_or("of an unknown version").trim())
}

fn rights(access: &Access, kubectl: &Path, namespace: &str) -> Look {
    let missing: Vec<String> = std::thread::scope(|scope| {
        let asked: Vec<_> = RIGHTS
            .iter()
            .map(|[verb, what]| {
                let question = ["auth", "can-i", verb, what, "--namespace", namespace];
                scope
                    .spawn(move || ask(access, kubectl, &question).is_err().then(|| format!("{verb} {what}")))
            })
            .collect();
        asked.into_iter().filter_map(|answer| answer.join().ok().flatten()).collect()
    });
    if missing.is_empty() {
        return Look::well("rights", "deployments, secrets, pods and their logs");
    }
    Look::bad(
        "rights",
        format!("not allowed: {}", missing.join(", ")),
        format!("kubectl create rolebinding deployer --clusterrole=admin --user=… --namespace {namespace}"),
    )
}

fn state(access: &Access, namespace: &str, release: &str) -> Look {
    let mut command = process::command(Path::new("helm"));
    access.apply(&mut command, "--kube-context");
    command.args(["history", release, "--namespace", namespace, "--max", "1", "--output", "json"]);
    match captured(access, &mut command) {
        Ok(said) => {
            let status = serde_json::from_str::<serde_json::Value>(&said)
                .ok()
                .and_then(|history| history.get(0)?.get("status")?.as_str().map(str::to_owned))
                .unwrap_or_else(|| "unknown".to_owned());
            if status.starts_with("pending") {
                return Look::odd(
                    "release",
                    format!("{release} is {status}: somebody deploys, or was killed"),
                    "the next sower deploy helm frees it when nobody deploys",
                );
            }
            Look::well("release", format!("{release} is {status}"))
        }
        Err(why) if why.contains("not found") => Look::well("release", format!("{release} is new")),
        Err(why) => Look::odd("release", why, "helm history says more"),
    }
}

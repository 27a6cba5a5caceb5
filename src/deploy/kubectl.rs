//! kubectl: the same cluster as helm, asked for JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde::de::DeserializeOwned;

use super::manifest::decoded;
use super::objects::{Event, EventList, List, Object};
use super::place::Place;
use super::process::{self, Captured};
use super::{Error, Request};

/// The most that is read of one answer, in bytes: a namespace with thousands of pods.
const ANSWER_LIMIT: u64 = 64 << 20;
/// The most that is read of a container's log, in bytes.
const LOG_LIMIT: usize = 64 << 10;
/// The most that is read of the names of keys, in bytes.
const KEYS_LIMIT: usize = 4 << 20;
/// How long the API server may take for one answer.
const REQUEST_TIMEOUT: &str = "--request-timeout=10s";

/// The kubectl that is on PATH, bound to a cluster and a namespace.
#[derive(Clone)]
pub(super) struct Kubectl {
    path: PathBuf,
    place: Place,
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
    namespace: String,
}

impl Kubectl {
    /// Looks for kubectl on PATH.
    pub(super) fn find(request: &Request) -> Result<Self, Error> {
        let path = match &request.access.place {
            Place::Here => which::which("kubectl").map_err(|_| Error::MissingProgram {
                program: "kubectl",
                remedy: "it tells what becomes of the pods; install it (https://kubernetes.io/docs/tasks/tools) or, \
                         on a k3s host, link it to k3s",
            })?,
            Place::There(_) => PathBuf::from("kubectl"),
        };
        Ok(Self {
            path,
            place: request.access.place.clone(),
            kubeconfig: request.access.kubeconfig.as_ref().map(|kubeconfig| kubeconfig.path().to_owned()),
            context: request.access.context.clone(),
            namespace: request.namespace.clone(),
        })
    }

    /// The workloads, ReplicaSets and pods of the namespace.
    pub(super) fn workloads(&self) -> Result<Vec<Object>, Error> {
        let mut command = self.command();
        command.args([
            "get",
            "deployments,statefulsets,daemonsets,replicasets,jobs,pods",
            "--output",
            "json",
        ]);
        Ok(self.json::<List>(&mut command, "get pods")?.items)
    }

    /// The events about one object, the oldest first.
    pub(super) fn events(&self, kind: &str, name: &str) -> Result<Vec<Event>, Error> {
        let mut command = self.command();
        command.args(["get", "events", "--output", "json", "--field-selector"]);
        command.arg(format!("involvedObject.kind={kind},involvedObject.name={name}"));
        let mut events = self.json::<EventList>(&mut command, "get events")?.items;
        events.sort_by(|a, b| a.when().cmp(b.when()));
        Ok(events)
    }

    /// The last lines of a container's log: of the run before this one if `previous`.
    pub(super) fn log(
        &self,
        pod: &str,
        container: &str,
        lines: usize,
        previous: bool,
    ) -> Result<Vec<String>, Error> {
        let mut command = self.command();
        command.args(["logs", pod, "--container", container]);
        command.arg(format!("--tail={lines}")).arg(format!("--limit-bytes={LOG_LIMIT}"));
        if previous {
            command.arg("--previous");
        }
        let Captured { success, stdout, stderr } =
            process::capture_at(&self.place, &mut command, process::text(LOG_LIMIT))?;
        // The kubelet says this as if it were the log, and kubectl exits with 0.
        let no_log = stdout.starts_with("unable to retrieve container logs");
        if !success || no_log {
            let said = if no_log { &stdout } else { &stderr };
            return Err(Error::Kubectl { what: "logs", message: last_line(said) });
        }
        Ok(stdout.lines().map(str::to_owned).collect())
    }

    fn command(&self) -> Command {
        let mut command = process::command(&self.path);
        self.add_way(&mut command);
        command.arg(REQUEST_TIMEOUT);
        command
    }

    fn add_way(&self, command: &mut Command) {
        if let Some(kubeconfig) = &self.kubeconfig {
            command.arg("--kubeconfig").arg(kubeconfig);
        }
        if let Some(context) = &self.context {
            command.arg("--context").arg(context);
        }
        command.arg("--namespace").arg(&self.namespace);
    }
}

/// Names of Secrets and ConfigMaps with the names of their keys. The template is filled in by kubectl, so that no value
/// ever leaves it.
const KEYS: &str = "go-template={{range .items}}{{.kind}} {{.metadata.name}}{{range $key, $value := .data}} {{$key}}\
     {{end}}{{range $key, $value := .binaryData}} {{$key}}{{end}}\n{{end}}";

/// The values of Secrets, in base64, one a line.
const VALUES: &str = "go-template={{range .items}}{{if ne .type \"helm.sh/release.v1\"}}{{range .data}}{{.}}\n{{end}}{{end}}{{end}}";

/// The keys of the Secrets and ConfigMaps of a namespace, by kind and name.
pub(super) type Keys = BTreeMap<(String, String), BTreeSet<String>>;

impl Kubectl {
    /// The keys of all Secrets and ConfigMaps.
    pub(super) fn keys(&self) -> Result<Keys, Error> {
        let mut command = self.command();
        command.args(["get", "secrets,configmaps", "--output", KEYS]);
        let Captured { success, stdout, stderr } =
            process::capture_at(&self.place, &mut command, process::text(KEYS_LIMIT))?;
        if !success {
            return Err(Error::Kubectl { what: "get secrets", message: last_line(&stderr) });
        }
        let line = |line: &str| {
            let mut words = line.split(' ').map(str::to_owned);
            Some(((words.next()?, words.next()?), words.collect()))
        };
        Ok(stdout.lines().filter_map(line).collect())
    }

    /// The values of all Secrets, to be hidden in what others say; helm's own records are left out.
    pub(super) fn secret_values(&self) -> Vec<String> {
        let mut command = self.command();
        command.args(["get", "secrets", "--output", VALUES]);
        let answer = process::capture_at(&self.place, &mut command, process::text(KEYS_LIMIT));
        let Ok(Captured { success: true, stdout, .. }) = answer else { return Vec::new() };
        stdout.lines().filter_map(decoded).collect()
    }

    /// The kinds of machines that the nodes are, such as `amd64`; none if that may not be asked.
    pub(super) fn machines(&self) -> Vec<String> {
        let mut command = self.command();
        command.args(["get", "nodes", "--output", "jsonpath={.items[*].status.nodeInfo.architecture}"]);
        match process::capture_at(&self.place, &mut command, process::text(KEYS_LIMIT)) {
            Ok(Captured { success: true, stdout, .. }) => {
                stdout.split_whitespace().map(str::to_owned).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether the namespace is there; `None` if that may not be asked.
    pub(super) fn has_namespace(&self, name: &str) -> Option<bool> {
        let mut command = self.command();
        command.args(["get", "namespace", name, "--output", "name"]);
        let answer = process::capture_at(&self.place, &mut command, process::text(1024)).ok()?;
        match answer.success {
            true => Some(true),
            false => answer.stderr.contains("NotFound").then_some(false),
        }
    }

    /// Removes the record of one revision, and nothing else.
    pub(super) fn forget(&self, release: &str, revision: u64) -> Result<(), Error> {
        let mut command = self.command();
        command
            .args(["delete", "secret", "--wait=false"])
            .arg(format!("sh.helm.release.v1.{release}.v{revision}"));
        let Captured { success, stderr, .. } =
            process::capture_at(&self.place, &mut command, process::text(1024))?;
        if success {
            return Ok(());
        }
        Err(Error::Kubectl { what: "delete secret", message: last_line(&stderr) })
    }

    /// Follows the events of the namespace from now on; `None` where that cannot be done.
    pub(super) fn follow_events(&self, mut each: impl FnMut(Event) + Send + 'static) -> Option<Follower> {
        if !matches!(self.place, Place::Here) {
            return None;
        }
        let mut command = process::command(&self.path);
        self.add_way(&mut command);
        command.args(["get", "events", "--watch-only", "--output", "json"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
        let stdout = child.stdout.take()?;
        std::thread::spawn(move || {
            let events = serde_json::Deserializer::from_reader(BufReader::new(stdout)).into_iter::<Event>();
            events.map_while(Result::ok).for_each(&mut each);
        });
        Some(Follower(child))
    }

    fn json<T: DeserializeOwned>(&self, command: &mut Command, what: &'static str) -> Result<T, Error> {
        let failed = |message: String| Error::Kubectl { what, message };
        let read = |pipe: &mut dyn Read| serde_json::from_reader(BufReader::new(pipe.take(ANSWER_LIMIT)));
        let Captured { success, stdout, stderr } = process::capture_at(&self.place, command, read)?;
        if !success {
            return Err(failed(last_line(&stderr)));
        }
        stdout.map_err(|error| failed(error.to_string()))
    }
}

/// A kubectl that watches, ended when this is dropped.
pub(super) struct Follower(Child);

impl Drop for Follower {
    fn drop(&mut self) {
        // It only reads: nothing is lost with it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn last_line(said: &str) -> String {
    said.lines().next_back().unwrap_or("it said nothing").to_owned()
}

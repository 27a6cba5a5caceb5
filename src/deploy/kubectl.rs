//! kubectl: the same cluster as helm, asked for JSON.

use std::io::{BufReader, Read};
use std::path::PathBuf;
use std::process::Command;

use serde::de::DeserializeOwned;

use super::objects::{Event, EventList, List, Object};
use super::process::{self, Captured};
use super::{Error, Request};

/// The most that is read of one answer, in bytes: a namespace with thousands of pods.
const ANSWER_LIMIT: u64 = 64 << 20;
/// The most that is read of a container's log, in bytes.
const LOG_LIMIT: usize = 64 << 10;
/// How long the API server may take for one answer.
const REQUEST_TIMEOUT: &str = "--request-timeout=10s";

/// The kubectl that is on PATH, bound to a cluster and a namespace.
#[derive(Debug, Clone)]
pub(super) struct Kubectl {
    path: PathBuf,
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
    namespace: String,
}

impl Kubectl {
    /// Looks for kubectl on PATH.
    pub(super) fn find(request: &Request) -> Result<Self, Error> {
        let path = which::which("kubectl").map_err(|_| Error::MissingProgram {
            program: "kubectl",
            remedy: "it tells what becomes of the pods; install it (https://kubernetes.io/docs/tasks/tools) or, \
                     on a k3s host, link it to k3s",
        })?;
        Ok(Self {
            path,
            kubeconfig: request.access.kubeconfig.as_ref().map(|kubeconfig| kubeconfig.path().to_owned()),
            context: request.access.context.clone(),
            namespace: request.namespace.clone(),
        })
    }

    /// The workloads, ReplicaSets and pods of the namespace.
    pub(super) fn workloads(&self) -> Result<Vec<Object>, Error> {
        let mut command = self.command();
        command.args(["get", "deployments,statefulsets,daemonsets,replicasets,pods", "--output", "json"]);
        Ok(json::<List>(&mut command, "get pods")?.items)
    }

    /// The events about one object, the oldest first.
    pub(super) fn events(&self, kind: &str, name: &str) -> Result<Vec<Event>, Error> {
        let mut command = self.command();
        command.args(["get", "events", "--output", "json", "--field-selector"]);
        command.arg(format!("involvedObject.kind={kind},involvedObject.name={name}"));
        let mut events = json::<EventList>(&mut command, "get events")?.items;
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
        let Captured { success, stdout, stderr } = process::capture(&mut command, process::text(LOG_LIMIT))?;
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
        if let Some(kubeconfig) = &self.kubeconfig {
            command.arg("--kubeconfig").arg(kubeconfig);
        }
        if let Some(context) = &self.context {
            command.arg("--context").arg(context);
        }
        command.arg("--namespace").arg(&self.namespace).arg(REQUEST_TIMEOUT);
        command
    }
}

fn json<T: DeserializeOwned>(command: &mut Command, what: &'static str) -> Result<T, Error> {
    let failed = |message: String| Error::Kubectl { what, message };
    let read = |pipe: &mut dyn Read| serde_json::from_reader(BufReader::new(pipe.take(ANSWER_LIMIT)));
    let Captured { success, stdout, stderr } = process::capture(command, read)?;
    if !success {
        return Err(failed(last_line(&stderr)));
    }
    stdout.map_err(|error| failed(error.to_string()))
}

fn last_line(said: &str) -> String {
    said.lines().next_back().unwrap_or("it said nothing").to_owned()
}

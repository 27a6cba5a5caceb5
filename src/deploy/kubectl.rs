//! The same cluster as helm, asked for JSON: what pods, events, logs and keys of Secrets there are.
//!
//! Questions are paths of the Kubernetes API. [`Api`] asks them directly; where it cannot, `kubectl get --raw` does.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::sync::oneshot;

use super::api::{Api, Failure};
use super::manifest::decoded;
use super::objects::{Change, Event, EventList, HeldList, List, NodeList, Object};
use super::place::Place;
use super::process::{self, Captured};
use super::{Error, Request};

/// The most that is read of one answer, in bytes: a namespace with thousands of pods.
const ANSWER_LIMIT: usize = 64 << 20;
/// The most that is read of a container's log, in bytes.
const LOG_LIMIT: usize = 64 << 10;
/// How long the API server may take for one answer.
const REQUEST_TIMEOUT: &str = "--request-timeout=10s";

/// The kinds whose pods are looked at: where the API has them, and their name there.
const WORKLOADS: [(&str, &str, &str); 6] = [
    ("/apis/apps/v1", "deployments", "Deployment"),
    ("/apis/apps/v1", "statefulsets", "StatefulSet"),
    ("/apis/apps/v1", "daemonsets", "DaemonSet"),
    ("/apis/apps/v1", "replicasets", "ReplicaSet"),
    ("/apis/batch/v1", "jobs", "Job"),
    ("/api/v1", "pods", "Pod"),
];

/// The cluster, bound to a namespace: asked directly where that can be, else by the kubectl that is on PATH.
#[derive(Clone)]
pub(super) struct Kubectl {
    path: PathBuf,
    place: Place,
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
    namespace: String,
    api: Option<Arc<Api>>,
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
            api: request.access.api().map(Arc::new),
        })
    }

    /// Whether a question costs no program start.
    pub(super) fn is_quick(&self) -> bool {
        self.api.as_ref().is_some_and(|api| api.is_proven())
    }

    /// The workloads, ReplicaSets and pods of the namespace.
    pub(super) fn workloads(&self) -> Result<Vec<Object>, Error> {
        const WHAT: &str = "get pods";
        let paths = WORKLOADS.map(|(group, name, _)| format!("{group}/namespaces/{}/{name}", self.namespace));
        let Some(lists) = self.directly(&paths, ANSWER_LIMIT) else {
            // One program start for all of them.
            let mut command = self.command();
            let names: Vec<&str> = WORKLOADS.iter().map(|(_, name, _)| *name).collect();
            command.args(["get", &names.join(","), "--output", "json"]);
            let read = |pipe: &mut dyn Read| {
                serde_json::from_reader::<_, List>(BufReader::new(pipe.take(ANSWER_LIMIT as u64)))
            };
            let Captured { success, stdout, stderr } = process::capture_at(&self.place, &mut command, read)?;
            return match stdout {
                Ok(list) if success || stderr.contains(" is forbidden: ") && !list.items.is_empty() => {
                    Ok(list.items)
                }
                Err(error) if success => Err(Error::Kubectl { what: WHAT, message: error.to_string() }),
                _ => Err(Error::Kubectl { what: WHAT, message: last_line(&stderr) }),
            };
        };
        let mut objects = Vec::new();
        for ((_, _, kind), list) in WORKLOADS.into_iter().zip(lists) {
            let list = match list {
                // A chart without StatefulSets needs no right to see any.
                Err(Failure::Forbidden(_)) if kind != "Pod" => continue,
                list => list.map_err(|why| why.told(WHAT))?,
            };
            let mut items = parsed::<List>(&list, WHAT)?.items;
            // Those of a list do not say it themselves.
            items.iter_mut().for_each(|item| kind.clone_into(&mut item.kind));
            objects.append(&mut items);
        }
        Ok(objects)
    }

    /// The events about one object, the oldest first.
    pub(super) fn events(&self, kind: &str, name: &str) -> Result<Vec<Event>, Error> {
        let selector = format!("involvedObject.kind%3D{kind}%2CinvolvedObject.name%3D{name}");
        let path = format!("{}/events?fieldSelector={selector}", self.own());
        let mut events = self.ask::<EventList>(&path, "get events")?.items;
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
        const WHAT: &str = "logs";
        let path = format!(
            "{}/pods/{pod}/log?container={container}&tailLines={lines}&limitBytes={LOG_LIMIT}&previous={previous}",
            self.own()
        );
        let log = self.raw(&path, 2 * LOG_LIMIT, WHAT)?;
        let log = String::from_utf8_lossy(&log);
        // The kubelet says this as if it were the log, with status 200.
        if log.starts_with("unable to retrieve container logs") {
            return Err(Error::Kubectl { what: WHAT, message: last_line(&log) });
        }
        Ok(log.lines().map(str::to_owned).collect())
    }

    /// Where the API has the namespace.
    fn own(&self) -> String {
        format!("/api/v1/namespaces/{}", self.namespace)
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

/// The keys of the Secrets and ConfigMaps of a namespace, by kind and name.
pub(super) type Keys = BTreeMap<(String, String), BTreeSet<String>>;

/// helm's own records are left out: they are large, and hold the values of the chart.
const SECRETS: &str = "secrets?fieldSelector=type%21%3Dhelm.sh%2Frelease.v1";

impl Kubectl {
    /// The keys of all Secrets and ConfigMaps. Their values are passed over.
    pub(super) fn keys(&self) -> Result<Keys, Error> {
        const WHAT: &str = "get secrets";
        let paths = [SECRETS, "configmaps"].map(|name| format!("{}/{name}", self.own()));
        let lists: Vec<Vec<u8>> = match self.directly(&paths, ANSWER_LIMIT) {
            Some(lists) => {
                lists.into_iter().map(|list| list.map_err(|why| why.told(WHAT))).collect::<Result<_, _>>()?
            }
            None => paths.iter().map(|path| self.raw(path, ANSWER_LIMIT, WHAT)).collect::<Result<_, _>>()?,
        };
        let mut keys = Keys::new();
        for (kind, list) in ["Secret", "ConfigMap"].into_iter().zip(lists) {
            for held in parsed::<HeldList<IgnoredAny>>(&list, WHAT)?.items {
                let names = held.data.into_keys().chain(held.binary_data.into_keys()).collect();
                keys.insert((kind.to_owned(), held.metadata.name), names);
            }
        }
        Ok(keys)
    }

    /// The values of all Secrets, to be hidden in what others say; helm's own records are left out.
    pub(super) fn secret_values(&self) -> Vec<String> {
        let list = self.ask::<HeldList<String>>(&format!("{}/{SECRETS}", self.own()), "get secrets");
        let held = list.map(|list| list.items).unwrap_or_default();
        held.into_iter()
            .flat_map(|held| held.data.into_values())
            .filter_map(|value| decoded(&value))
            .collect()
    }

    /// The kinds of machines that the nodes are, such as `amd64`; none if that may not be asked.
    pub(super) fn machines(&self) -> Vec<String> {
        let nodes = self.ask::<NodeList>("/api/v1/nodes", "get nodes").map(|list| list.items);
        let nodes = nodes.unwrap_or_default();
        nodes
            .into_iter()
            .map(|node| node.status.node_info.architecture)
            .filter(|name| !name.is_empty())
            .collect()
    }

    /// Whether the namespace is there; `None` if that may not be asked.
    pub(super) fn has_namespace(&self, name: &str) -> Option<bool> {
        match self.raw(&format!("/api/v1/namespaces/{name}"), ANSWER_LIMIT, "get namespace") {
            Ok(_) => Some(true),
            Err(error) => {
                error.to_string().contains(&format!("namespaces {name:?} not found")).then_some(false)
            }
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
        if let Some(api) = self.api.clone().filter(|api| api.is_proven()) {
            let (stop, stopped) = oneshot::channel();
            let list = format!("{}/events?limit=1", self.own());
            let path = format!("{}/events?watch=true", self.own());
            let line = move |line: &[u8]| {
                if let Ok(Change { object }) = serde_json::from_slice(line) {
                    each(object);
                }
            };
            std::thread::spawn(move || api.follow(&list, &path, stopped, line));
            return Some(Follower::Thread(stop));
        }
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
        Some(Follower::Program(child))
    }

    fn ask<T: DeserializeOwned>(&self, path: &str, what: &'static str) -> Result<T, Error> {
        parsed(&self.raw(path, ANSWER_LIMIT, what)?, what)
    }

    /// What the API has at a path.
    fn raw(&self, path: &str, limit: usize, what: &'static str) -> Result<Vec<u8>, Error> {
        if let Some(answer) = self.directly(&[path.to_owned()], limit).and_then(|mut answers| answers.pop()) {
            return answer.map_err(|why| why.told(what));
        }
        let mut command = self.command();
        command.args(["get", "--raw", path]);
        let Captured { success, stdout, stderr } =
            process::capture_at(&self.place, &mut command, process::bytes(limit))?;
        if success {
            return Ok(stdout);
        }
        Err(Error::Kubectl { what, message: last_line(&stderr) })
    }

    /// The same of several paths, without kubectl. `None`: kubectl is to be asked.
    fn directly(&self, paths: &[String], limit: usize) -> Option<Vec<Result<Vec<u8>, Failure>>> {
        let answers = self.api.as_ref()?.get(paths, limit);
        (!answers.iter().any(|answer| matches!(answer, Err(Failure::Unproven)))).then_some(answers)
    }
}

fn parsed<T: DeserializeOwned>(answer: &[u8], what: &'static str) -> Result<T, Error> {
    serde_json::from_slice(answer).map_err(|error| Error::Kubectl { what, message: error.to_string() })
}

/// Something that watches, ended when this is dropped.
pub(super) enum Follower {
    /// It ends when the other end of this is gone.
    Thread(#[expect(dead_code, reason = "dropping it is what it is for")] oneshot::Sender<()>),
    Program(Child),
}

impl Drop for Follower {
    fn drop(&mut self) {
        if let Self::Program(child) = self {
            // It only reads: nothing is lost with it.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn last_line(said: &str) -> String {
    said.lines().next_back().unwrap_or("it said nothing").to_owned()
}

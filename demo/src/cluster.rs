//! The Kubernetes of the demo: started and ended by `tests/kubernetes/cluster.sh`.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::processes::{self, Interrupt};
use crate::screen::Screen;
use crate::trouble::{At, Trouble};

/// First of the six ports of the demo's cluster; that of the tests has others, so both may run.
const PORT: u16 = 27500;

/// The cluster while it runs.
pub(crate) struct Cluster {
    script: PathBuf,
    state: PathBuf,
    log: PathBuf,
    starting: Option<Child>,
}

impl Cluster {
    /// Whether its programs are built below `target`.
    pub(crate) fn is_built(target: &Path) -> bool {
        target.join("kubernetes/bin/kubernetes").exists()
    }

    /// Begins to start it; [`Cluster::wait`] waits for its node.
    pub(crate) fn start(
        source: &Path,
        target: &Path,
        registry: SocketAddr,
        log: &Path,
    ) -> Result<Self, Trouble> {
        let mut cluster = Self {
            script: source.join("tests/kubernetes/cluster.sh"),
            // The kubelet's sockets want a short path.
            state: target.join("kubernetes/demo"),
            log: log.to_owned(),
            starting: None,
        };
        let mut command = cluster.command("up");
        command.env("SOWER_REGISTRY_PORT", registry.port().to_string());
        command.stdout(processes::append(log)?).stderr(processes::append(log)?);
        cluster.starting = Some(processes::start(&mut command)?);
        Ok(cluster)
    }

    /// Waits until its node is ready.
    pub(crate) fn wait(&mut self, screen: &mut Screen, interrupt: &Interrupt) -> Result<(), Trouble> {
        let Some(starting) = &mut self.starting else { return Ok(()) };
        let ended = interrupt.wait_for("a ready cluster", START_LIMIT, || {
            screen.going_on("waiting for Kubernetes");
            starting.try_wait().ok().flatten()
        })?;
        self.starting = None;
        if ended.success() {
            return Ok(());
        }
        Err(Trouble::Failed(format!("the cluster does not start:\n{}", processes::tail(&self.log))))
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.script);
        command.arg(verb).env("SOWER_CLUSTER_PORT", PORT.to_string()).env("SOWER_CLUSTER_STATE", &self.state);
        command
    }

    /// Its kubeconfig, with everything inside.
    pub(crate) fn kubeconfig(&self) -> Result<String, Trouble> {
        let path = self.state.join("kubeconfig");
        fs::read_to_string(&path).at(&path)
    }

    /// The node pulls images of `forge` (host:port) from `registry`: what `registries.yaml` does on a k3s host. A pull
    /// would meet the forge's wrong token realm otherwise, as a push does.
    pub(crate) fn mirror(&self, forge: &str, registry: SocketAddr) -> Result<(), Trouble> {
        let folder = self.state.join("certs.d").join(forge);
        fs::create_dir_all(&folder).at(&folder)?;
        let path = folder.join("hosts.toml");
        let text = format!("[host.\"http://{registry}\"]\ncapabilities = [\"pull\", \"resolve\"]\n");
        fs::write(&path, text).at(&path)
    }

    /// What kubectl prints.
    pub(crate) fn kubectl(&self, arguments: &[&str], interrupt: &Interrupt) -> Result<String, Trouble> {
        interrupt.run(self.command("kubectl").args(arguments), &self.log)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(starting) = &mut self.starting {
            processes::end_tree(starting.id());
            let _ = starting.wait();
        }
        let Ok(log) = processes::append(&self.log) else { return };
        let Ok(mut child) = processes::start(self.command("down").stdout(Stdio::null()).stderr(log)) else {
            return;
        };
        // What it could not end, it has said in its log.
        let _ = child.wait();
    }
}

/// How long the cluster may take to be ready.
const START_LIMIT: Duration = Duration::from_secs(120);
/// How long a pod may take to be there.
pub(crate) const POD_LIMIT: Duration = Duration::from_secs(60);

//! Where helm and kubectl run: on this host, or on one that is reached over SSH.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Error;
use crate::ssh::{self, Connection, quoted};

/// How long a lost connection is tried to be made anew.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long to wait between two tries.
const PAUSE: Duration = Duration::from_secs(2);
/// The most that is read of the answers to small questions, in bytes.
const SMALL: usize = 64 << 10;

/// Where programs run.
#[derive(Clone, Default)]
pub(super) enum Place {
    /// On this host.
    #[default]
    Here,
    /// On the far side of an SSH connection.
    There(Arc<Far>),
}

/// A host that programs run on, over a connection that is made anew when it is lost.
pub(super) struct Far {
    target: ssh::Target,
    options: ssh::Options,
    connection: Mutex<Arc<Connection>>,
    rebuilt: AtomicU32,
    /// Words that stand before each command: where kubectl and helm look.
    environment: String,
    /// How the programs are called there.
    helm: String,
    kubectl: String,
}

/// What is where on the far side. Shells that are not for people often have a short PATH.
const LOOK: &str = r#"
PATH="$PATH:/usr/local/bin:/usr/local/sbin:/opt/bin:/var/lib/rancher/rke2/bin"
echo "path=$PATH"
echo "helm=$(command -v helm)"
kubectl=$(command -v kubectl) || kubectl=$(command -v k3s) && case $kubectl in */k3s) kubectl="$kubectl kubectl" ;; esac
echo "kubectl=$kubectl"
if [ -z "$KUBECONFIG" ] && [ ! -e "$HOME/.kube/config" ] && [ -r /etc/rancher/k3s/k3s.yaml ]; then
    KUBECONFIG=/etc/rancher/k3s/k3s.yaml
fi
echo "kubeconfig=$KUBECONFIG"
# What deployments left whose connection did not come back.
find "${TMPDIR:-/tmp}" -maxdepth 1 \( -name 'sower-kubeconfig-????????' -o -name 'sower-deploy-????????' \) \
    -user "$(id -u)" -mmin +1440 -exec rm -rf {} + 2>/dev/null
"#;

impl Far {
    /// Connects and looks for helm and kubectl there.
    pub(super) fn open(target: ssh::Target, options: ssh::Options) -> Result<Self, Error> {
        let connection = Connection::open(&target, &options)?;
        let found = connection.output("sh", LOOK.as_bytes(), SMALL)?;
        let found = String::from_utf8_lossy(&found.stdout).into_owned();
        let value = |name: &str| {
            let line = found.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_default().to_owned()
        };
        let missing = |program| {
            Error::Argument(format!(
                "{} has no {program} in its PATH: install it there, or leave --remote out",
                connection.host()
            ))
        };
        let (helm, kubectl) = (value("helm"), value("kubectl"));
        if helm.is_empty() {
            return Err(missing("helm"));
        }
        if kubectl.is_empty() {
            return Err(missing("kubectl or k3s"));
        }
        // `env`, because not every login shell takes assignments before a command.
        let mut environment = format!("env PATH={}", quoted(&value("path")));
        let kubeconfig = value("kubeconfig");
        if !kubeconfig.is_empty() {
            environment.push_str(&format!(" KUBECONFIG={}", quoted(&kubeconfig)));
        }
        let connection = Mutex::new(Arc::new(connection));
        let rebuilt = AtomicU32::new(0);
        Ok(Self { target, options, connection, rebuilt, environment, helm, kubectl })
    }

    /// Name and port, for messages.
    pub(super) fn host(&self) -> String {
        self.current().host().to_owned()
    }

    /// The connection for clearing up, made anew once if it was lost. A host that is gone is not waited for.
    pub(super) fn last_connection(&self) -> Option<Arc<Connection>> {
        let current = self.current();
        if current.end().is_none() {
            return Some(current);
        }
        Connection::open(&self.target, &self.options).ok().map(Arc::new)
    }

    /// How often the connection was lost and made anew.
    pub(super) fn rebuilt(&self) -> u32 {
        self.rebuilt.load(Ordering::Relaxed)
    }

    fn current(&self) -> Arc<Connection> {
        Arc::clone(&self.connection.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The connection, made anew if it was lost; tried for a minute.
    pub(super) fn connection(&self) -> Result<Arc<Connection>, Error> {
        let began = Instant::now();
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        while connection.end().is_some() {
            match Connection::open(&self.target, &self.options) {
                Ok(new) => {
                    *connection = Arc::new(new);
                    self.rebuilt.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if began.elapsed() > PATIENCE => return Err(error.into()),
                Err(_) => thread::sleep(PAUSE),
            }
        }
        Ok(Arc::clone(&connection))
    }

    /// The command as a line for the shell there.
    pub(super) fn line(&self, command: &Command) -> String {
        let program = command.get_program().to_string_lossy();
        let program = match program.as_ref() {
            "helm" => self.helm.clone(),
            "kubectl" => self.kubectl.clone(),
            other => quoted(other),
        };
        let mut line = format!("{} {program}", self.environment);
        for argument in command.get_args() {
            line.push(' ');
            line.push_str(&quoted(&argument.to_string_lossy()));
        }
        line
    }
}

/// A file of the far side that only this user can read, removed when this is dropped.
pub(super) struct FarFile {
    far: Arc<Far>,
    path: PathBuf,
}

impl FarFile {
    /// Makes it. The content goes through the program's stdin: nobody sees it among the arguments.
    pub(super) fn write(far: &Arc<Far>, content: &str) -> Result<Self, Error> {
        const MAKE: &str = "umask 077; file=$(mktemp \"${TMPDIR:-/tmp}/sower-kubeconfig-XXXXXXXX\") && cat >\"$file\" \
                            && echo \"$file\"";
        let made = far.connection()?.output(&format!("sh -c {}", quoted(MAKE)), content.as_bytes(), 4096)?;
        let path = String::from_utf8_lossy(&made.stdout).trim().to_owned();
        if !made.exit.success() || !path.starts_with('/') {
            return Err(Error::Argument(format!("{} has no room for a file in /tmp", far.host())));
        }
        Ok(Self { far: Arc::clone(far), path: path.into() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for FarFile {
    fn drop(&mut self) {
        if let Some(connection) = self.far.last_connection() {
            let path = quoted(&self.path.to_string_lossy());
            // Nobody is left to hear of a failure.
            let _ = connection.output(&format!("rm -f {path}"), &[], 1024);
        }
    }
}

impl From<ssh::Error> for Error {
    fn from(error: ssh::Error) -> Self {
        Self::Ssh(Box::new(error))
    }
}

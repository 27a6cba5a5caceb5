//! The way to the cluster: directly, through a tunnel over SSH, or with helm and kubectl on the far side.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use super::api::Api;
use super::kubeconfig::Opened;
use super::place::{Far, FarFile, Place};
use super::{Error, Kubeconfig};
use crate::ssh::{self, Connection, Tunnel};

/// The most that is read of a kubeconfig, in bytes.
const KUBECONFIG_LIMIT: usize = 1 << 20;
/// Where a user's kubeconfig may be on the far side. `sudo -n` asks for no password: it works or it does not.
const FAR_KUBECONFIG: &str = r#"
for file in "$KUBECONFIG" "$HOME/.kube/config" /etc/rancher/k3s/k3s.yaml /etc/rancher/rke2/rke2.yaml; do
    if [ -n "$file" ] && [ -r "$file" ]; then exec cat "$file"; fi
done
exec sudo -n cat /etc/rancher/k3s/k3s.yaml
"#;

/// The way to the cluster. With nothing given, helm and kubectl look where they always do
/// (`KUBECONFIG`, `~/.kube/config`).
#[derive(Default)]
pub struct Access {
    /// The kubeconfig.
    pub(super) kubeconfig: Option<Kubeconfig>,
    /// The context of the kubeconfig, if not its current one.
    pub(super) context: Option<String>,
    pub(super) place: Place,
    /// What the cluster is called in this host's own notes: the same for each deployment to it.
    pub(super) identity: String,
    tunnel: Option<(Arc<Connection>, Tunnel)>,
}

/// What is given of the way.
#[derive(Debug, Default)]
pub struct Ways {
    /// A kubeconfig file; of the far side with `remote`.
    pub kubeconfig: Option<PathBuf>,
    /// The content of a kubeconfig.
    pub content: Option<ssh::Secret>,
    /// The context of the kubeconfig, if not its current one.
    pub context: Option<String>,
    /// A host to go through.
    pub ssh: Option<(ssh::Target, ssh::Options)>,
    /// Run helm and kubectl there.
    pub remote: bool,
}

impl Access {
    /// Opens the way.
    ///
    /// # Errors
    /// If a file is missing, the host does not let us in, or there is no kubeconfig there.
    pub fn open(ways: Ways) -> Result<Self, Error> {
        let Ways { kubeconfig, content, context, ssh, remote } = ways;
        let Some((target, options)) = ssh else {
            let kubeconfig = match (kubeconfig, content) {
                (Some(path), _) => Some(Kubeconfig::file(&path)?),
                (None, Some(content)) => Some(Kubeconfig::content(content.expose())?),
                (None, None) => None,
            };
            let identity = identity(kubeconfig.as_ref(), context.as_deref());
            return Ok(Self { kubeconfig, context, identity, ..Self::default() });
        };
        if remote {
            let identity = format!("ssh {target}");
            if let Some(content) = &content {
                Kubeconfig::check(content.expose())?;
            }
            let far = Arc::new(Far::open(target, options)?);
            let kubeconfig = match (kubeconfig, content) {
                (Some(path), _) => Some(Kubeconfig::there(path)),
                (None, Some(content)) => Some(Kubeconfig::lent(FarFile::write(&far, content.expose())?)),
                (None, None) => None,
            };
            return Ok(Self { kubeconfig, context, place: Place::There(far), identity, tunnel: None });
        }
        let connection = Arc::new(Connection::open(&target, &options)?);
        let mut opened = match (&kubeconfig, content) {
            (Some(path), _) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| Error::File { path: path.clone(), source })?;
                let mut opened = Opened::read(&text, context.as_deref())?;
                let directory = path.parent().unwrap_or(Path::new("/"));
                let directory = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
                opened.settle_files(Some(&directory))?;
                opened
            }
            (None, Some(content)) => Opened::read(content.expose(), context.as_deref())?,
            (None, None) => fetched(&connection, context.as_deref())?,
        };
        if kubeconfig.is_none() {
            opened.settle_files(None)?;
        }
        let (host, port) = opened.endpoint()?;
        let tunnel = connection.tunnel(&host, port)?;
        let identity = format!("ssh {target} {}", opened.server());
        let kubeconfig = opened.moved(&format!("https://{}", tunnel.address()))?;
        Ok(Self {
            kubeconfig: Some(kubeconfig),
            context,
            place: Place::Here,
            identity,
            tunnel: Some((connection, tunnel)),
        })
    }

    /// Adds the kubeconfig and the context to a command line; helm and kubectl name the latter differently.
    pub(super) fn apply(&self, command: &mut Command, context_flag: &str) {
        if let Some(kubeconfig) = &self.kubeconfig {
            command.arg("--kubeconfig").arg(kubeconfig.path());
        }
        if let Some(context) = &self.context {
            command.arg(context_flag).arg(context);
        }
    }

    /// When the certificate of the kubeconfig's user expired, if it did.
    pub(super) fn expired(&self) -> Option<jiff::Timestamp> {
        // A kubeconfig of the far side is not read here.
        let Place::Here = self.place else { return None };
        let end = opened(self.kubeconfig.as_ref(), self.context.as_deref())?.user_certificate_end()?;
        (end < jiff::Timestamp::now()).then_some(end)
    }

    /// The API server, if it can be asked without kubectl.
    pub(super) fn api(&self) -> Option<Api> {
        // What is of the far side is not read here.
        let Place::Here = self.place else { return None };
        // Several files are put together by kubectl.
        let several =
            || std::env::var_os("KUBECONFIG").is_some_and(|files| std::env::split_paths(&files).count() > 1);
        if self.kubeconfig.is_none() && several() {
            return None;
        }
        let path = path(self.kubeconfig.as_ref())?;
        let mut opened = opened(self.kubeconfig.as_ref(), self.context.as_deref())?;
        opened.settle_files(Some(std::path::absolute(path).ok()?.parent()?)).ok()?;
        Api::new(&opened)
    }

    /// How often the connection to the host was lost and made anew.
    pub(super) fn rebuilt(&self) -> u32 {
        match (&self.tunnel, &self.place) {
            (Some((_, tunnel)), _) => tunnel.rebuilt(),
            (None, Place::There(far)) => far.rebuilt(),
            (None, Place::Here) => 0,
        }
    }

    /// What is or was wrong with the way itself, for a failure that it may have caused.
    pub(super) fn trouble(&self) -> Option<String> {
        let (connection, tunnel) = self.tunnel.as_ref()?;
        let lost = connection
            .end()
            .map(|end| format!("the SSH connection to {} was lost: {end}", connection.host()));
        match tunnel.rebuilt() {
            0 => tunnel.trouble().or(lost),
            times => {
                let trouble = tunnel.trouble().or(lost).unwrap_or_default();
                Some(format!("{trouble} (the tunnel was made anew {times} times)"))
            }
        }
    }

    /// Runs a few lines of shell on the host that SSH leads to, if there is one. Its name, and the beginning of what they
    /// print.
    pub(super) fn ask_far_side(&self, script: &str, limit: usize) -> Option<(String, String)> {
        let connection = match (&self.tunnel, &self.place) {
            (Some((connection, _)), _) => Arc::clone(connection),
            (None, Place::There(far)) => far.connection().ok()?,
            (None, Place::Here) => return None,
        };
        let output = connection.output("sh", script.as_bytes(), limit).ok()?;
        let host = connection.host().to_owned();
        Some((host, String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    /// A SOCKS proxy whose connections come out at the far side, if there is one.
    pub(super) fn proxy(&self) -> Result<Option<Tunnel>, Error> {
        match (&self.tunnel, &self.place) {
            (Some((connection, _)), _) => Ok(Some(connection.proxy()?)),
            (None, Place::There(far)) => Ok(Some(far.connection()?.proxy()?)),
            (None, Place::Here) => Ok(None),
        }
    }
}

/// The far side's own kubeconfig.
fn fetched(connection: &Connection, context: Option<&str>) -> Result<Opened, Error> {
    let output = connection.output("sh", FAR_KUBECONFIG.as_bytes(), KUBECONFIG_LIMIT)?;
    if !output.exit.success() {
        return Err(Error::Argument(format!(
            "{} has no kubeconfig that this user may read ($KUBECONFIG, ~/.kube/config, /etc/rancher/k3s/k3s.yaml): \
             give one, or let the user read it",
            connection.host()
        )));
    }
    Opened::read(&String::from_utf8_lossy(&output.stdout), context)
}

/// The server of the kubeconfig: enough to tell two clusters apart.
fn identity(kubeconfig: Option<&Kubeconfig>, context: Option<&str>) -> String {
    opened(kubeconfig, context).map_or_else(|| "default".to_owned(), |opened| opened.server().to_owned())
}

/// The kubeconfig that helm and kubectl use on this host.
fn opened(kubeconfig: Option<&Kubeconfig>, context: Option<&str>) -> Option<Opened> {
    let content = std::fs::read_to_string(path(kubeconfig)?).ok()?;
    Opened::read(&content, context).ok()
}

/// Where it is.
fn path(kubeconfig: Option<&Kubeconfig>) -> Option<PathBuf> {
    match kubeconfig {
        Some(kubeconfig) => Some(kubeconfig.path().to_owned()),
        None => std::env::var_os("KUBECONFIG")
            .and_then(|paths| std::env::split_paths(&paths).next())
            .filter(|path| !path.as_os_str().is_empty())
            .or_else(|| std::env::home_dir().map(|home| home.join(".kube/config"))),
    }
}

//! The way to the cluster: a kubeconfig file, one that came as the content of a secret, or one of the far side with
//! its server moved to this end of a tunnel.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::fs::OFlags;
use serde_json::{Map, Value, json};
use tempfile::NamedTempFile;

use super::place::FarFile;
use super::{Error, expiry};
use crate::yaml;

/// The environment variable that may hold a whole kubeconfig. It is not handed on to helm or kubectl.
pub const VARIABLE: &str = "SOWER_KUBECONFIG";

/// What names of files for the moment begin with.
const PREFIX: &str = "sower-kubeconfig-";
/// A file may be made already and not held yet.
const YOUNG: Duration = Duration::from_secs(60);
/// Links are not followed, and nothing is waited for.
const NO_LINK: i32 = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).bits().cast_signed();

/// A kubeconfig as a file. One that was given as content is removed when this is dropped.
pub struct Kubeconfig(Source);

enum Source {
    File(PathBuf),
    Moment(NamedTempFile),
    /// A file of the far side, where helm and kubectl run.
    There(PathBuf),
    /// The same, for the moment.
    Lent(FarFile),
}

impl Kubeconfig {
    /// A kubeconfig that is a file already.
    ///
    /// # Errors
    /// If there is no such file.
    pub fn file(path: &Path) -> Result<Self, Error> {
        std::fs::File::open(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
        Ok(Self(Source::File(path.to_owned())))
    }

    /// A file of the far side, not looked at.
    #[must_use]
    pub const fn there(path: PathBuf) -> Self {
        Self(Source::There(path))
    }

    /// A file of the far side that was made for this.
    pub(super) const fn lent(file: FarFile) -> Self {
        Self(Source::Lent(file))
    }

    /// Whether that is a kubeconfig at first sight.
    ///
    /// # Errors
    /// If not. Nothing of it is quoted: whatever it is, it came as a secret.
    pub(super) fn check(content: &str) -> Result<(), Error> {
        if content.contains("clusters") {
            return Ok(());
        }
        Err(Error::Argument(format!(
            "the content of {VARIABLE} is not a kubeconfig: it has no `clusters` (a path goes into --kubeconfig)"
        )))
    }

    /// Writes `content` to a file that only this user can read (mode 0600).
    ///
    /// # Errors
    /// If the content is no kubeconfig at first sight, or the file cannot be written.
    pub fn content(content: &str) -> Result<Self, Error> {
        Self::check(content)?;
        let directory = std::env::temp_dir();
        let failed = |source| Error::File { path: directory.clone(), source };
        // tempfile creates with mode 0600 from the start.
        let mut file = tempfile::Builder::new().prefix(PREFIX).tempfile_in(&directory).map_err(failed)?;
        // Held as long as it is of use: see `sweep`.
        let _ = file.as_file().try_lock();
        file.write_all(content.as_bytes()).and_then(|()| file.flush()).map_err(failed)?;
        sweep(&directory);
        Ok(Self(Source::Moment(file)))
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        match &self.0 {
            Source::File(path) | Source::There(path) => path,
            Source::Moment(file) => file.path(),
            Source::Lent(file) => file.path(),
        }
    }
}

/// Removes what deployments left that were killed: files of this name that nobody holds.
fn sweep(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().as_bytes().starts_with(PREFIX.as_bytes()))
    {
        // A directory of everybody's: what is there under this name may be a link, or somebody else's.
        let opened = OpenOptions::new().read(true).write(true).custom_flags(NO_LINK).open(entry.path());
        let Ok(file) = opened else { continue };
        let old = file
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > YOUNG));
        if old && file.try_lock().is_ok() {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

impl fmt::Debug for Kubeconfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kubeconfig({})", self.path().display())
    }
}

/// A kubeconfig that was read, so that its server can be moved. It holds secrets: no `Debug`.
pub(super) struct Opened {
    document: Value,
    context: usize,
    cluster: usize,
}

impl Opened {
    /// Reads a kubeconfig; `context` picks the cluster, else its current one.
    ///
    /// # Errors
    /// If it is none, or has no such context. Nothing of it is quoted but names.
    pub(super) fn read(content: &str, context: Option<&str>) -> Result<Self, Error> {
        let wrong = |what: String| Error::Argument(format!("the kubeconfig is of no use: {what}"));
        let node =
            yaml::parse(content).map_err(|error| wrong(format!("it is not YAML at {}", error.place)))?;
        let document = value(&node);
        let context = context.or_else(|| document["current-context"].as_str()).unwrap_or_default().to_owned();
        let named = |list: &str, name: &str| {
            let items = document[list].as_array().map(Vec::as_slice).unwrap_or_default();
            items.iter().position(|item| item["name"] == name)
        };
        let at = named("contexts", &context)
            .ok_or_else(|| wrong(format!("context \"{context}\" does not exist")))?;
        let cluster = document["contexts"][at]["context"]["cluster"].as_str().unwrap_or_default();
        let cluster = named("clusters", cluster)
            .ok_or_else(|| wrong(format!("context \"{context}\" names a cluster that is not in it")))?;
        Ok(Self { document, context: at, cluster })
    }

    /// What it says of the cluster and of the user; null where it says nothing.
    pub(super) fn parts(&self) -> (&Value, &Value) {
        let name = &self.document["contexts"][self.context]["context"]["user"];
        let users = self.document["users"].as_array().map(Vec::as_slice).unwrap_or_default();
        let user = users.iter().find(|user| user["name"] == *name).map_or(&Value::Null, |user| &user["user"]);
        (&self.document["clusters"][self.cluster]["cluster"], user)
    }

    /// Until when the certificate of the user is good, if it has one here.
    pub(super) fn user_certificate_end(&self) -> Option<jiff::Timestamp> {
        let (_, user) = self.parts();
        let pem = match (&user["client-certificate-data"], &user["client-certificate"]) {
            (Value::String(data), _) => BASE64.decode(data.trim()).ok()?,
            (_, Value::String(path)) => std::fs::read(path).ok()?,
            _ => return None,
        };
        expiry::of_pem(&String::from_utf8_lossy(&pem))
    }

    /// The server's URL.
    pub(super) fn server(&self) -> &str {
        self.document["clusters"][self.cluster]["cluster"]["server"].as_str().unwrap_or_default()
    }

    /// Host and port of the server.
    pub(super) fn endpoint(&self) -> Result<(String, u16), Error> {
        let server = self.server();
        let url = reqwest::Url::parse(server).ok();
        let endpoint = url.as_ref().and_then(|url| {
            let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
            Some((host, url.port_or_known_default()?))
        });
        endpoint.ok_or_else(|| {
            Error::Argument(format!("the kubeconfig is of no use: its server {server:?} is no URL"))
        })
    }

    /// Makes file names that are relative to `directory` absolute; without one (the file is of the far side) they are
    /// of no use here.
    pub(super) fn settle_files(&mut self, directory: Option<&Path>) -> Result<(), Error> {
        const FILES: [(&str, &str, &[&str]); 2] = [
            ("clusters", "cluster", &["certificate-authority"]),
            ("users", "user", &["client-certificate", "client-key", "tokenFile"]),
        ];
        for (list, inner, keys) in FILES {
            let Some(items) = self.document.get_mut(list).and_then(Value::as_array_mut) else { continue };
            for item in items {
                for key in keys {
                    let Some(file) = item.get_mut(inner).and_then(|inner| inner.get_mut(*key)) else {
                        continue;
                    };
                    let Some(path) = file.as_str() else { continue };
                    let Some(directory) = directory else {
                        return Err(Error::Argument(format!(
                            "the kubeconfig of the far side names files there ({path}): make one with everything \
                             inside (`kubectl config view --raw --flatten`) and give it, or use --remote"
                        )));
                    };
                    *file = json!(directory.join(path));
                }
            }
        }
        Ok(())
    }

    /// The same with another server; the certificate is still checked against the name of the old one.
    pub(super) fn moved(mut self, server: &str) -> Result<Kubeconfig, Error> {
        let (host, _) = self.endpoint()?;
        if let Some(cluster) = self.document["clusters"][self.cluster]["cluster"].as_object_mut() {
            cluster.insert("server".to_owned(), json!(server));
            if cluster.get("insecure-skip-tls-verify") != Some(&Value::Bool(true)) {
                cluster.entry("tls-server-name").or_insert_with(|| json!(host));
            }
            // It is not on the way any more.
            cluster.remove("proxy-url");
        }
        // JSON is YAML.
        Kubeconfig::content(&self.document.to_string())
    }
}

fn value(node: &yaml::Node) -> Value {
    match &node.kind {
        yaml::Kind::Null => Value::Null,
        yaml::Kind::Bool(value) => json!(value),
        yaml::Kind::Number { value, text } => serde_json::from_str(text).unwrap_or_else(|_| json!(value)),
        yaml::Kind::String(text) => json!(text),
        yaml::Kind::Sequence(items) => Value::Array(items.iter().map(self::value).collect()),
        yaml::Kind::Mapping(entries) => {
            let entries = entries.iter().map(|(key, node)| (key.text.clone(), self::value(node)));
            Value::Object(entries.collect::<Map<_, _>>())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn content_is_a_private_file_for_the_moment() {
        let kubeconfig = Kubeconfig::content("apiVersion: v1\nclusters: []\n").unwrap();
        let path = kubeconfig.path().to_owned();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "apiVersion: v1\nclusters: []\n");
        drop(kubeconfig);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_killed_deployment_left_is_removed_and_what_is_held_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let old = std::time::SystemTime::now() - Duration::from_secs(3600);
        let make = |name: &str| {
            let path = dir.path().join(name);
            let file = std::fs::File::create(&path).unwrap();
            file.set_modified(old).unwrap();
            (path, file)
        };
        let (left, _) = make("sower-kubeconfig-left");
        let (held, file) = make("sower-kubeconfig-held");
        file.try_lock().unwrap();
        let (other, _) = make("kubeconfig");
        let link = dir.path().join("sower-kubeconfig-link");
        std::os::unix::fs::symlink(&other, &link).unwrap();
        sweep(dir.path());
        assert_eq!((left.exists(), held.exists(), other.exists(), link.exists()), (false, true, true, true));
    }

    #[test]
    fn content_that_is_something_else_is_not_quoted() {
        let error = Kubeconfig::content("hunter2").unwrap_err();
        assert!(error.is_wrong_question());
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn json_is_a_kubeconfig_too() {
        Kubeconfig::content(r#"{"apiVersion": "v1", "clusters": []}"#).unwrap();
    }

    const K3S: &str = "\
apiVersion: v1
clusters:
- {name: other, cluster: {server: 'https://other.test'}}
- name: default
  cluster:
    certificate-authority-data: Y2E=
    server: https://127.0.0.1:6443
contexts:
- {name: default, context: {cluster: default, user: default}}
- {name: second, context: {cluster: other, user: default}}
current-context: default
kind: Config
users:
- {name: default, user: {client-certificate: cert.pem, token: hunter2}}
";

    #[test]
    fn the_server_of_the_context_is_moved_and_its_name_kept() {
        let mut opened = Opened::read(K3S, None).unwrap();
        assert_eq!(opened.endpoint().unwrap(), ("127.0.0.1".to_owned(), 6443));
        assert!(opened.settle_files(None).is_err());
        opened.settle_files(Some(Path::new("/keys"))).unwrap();
        let moved = opened.moved("https://127.0.0.1:40000").unwrap();
        let content: Value = serde_json::from_str(&std::fs::read_to_string(moved.path()).unwrap()).unwrap();
        let cluster = &content["clusters"][1]["cluster"];
        assert_eq!(cluster["server"], "https://127.0.0.1:40000");
        assert_eq!(cluster["tls-server-name"], "127.0.0.1");
        assert_eq!(content["clusters"][0]["cluster"]["server"], "https://other.test");
        assert_eq!(content["users"][0]["user"]["client-certificate"], "/keys/cert.pem");
        assert_eq!(Opened::read(K3S, Some("second")).unwrap().endpoint().unwrap().1, 443);
        let error = Opened::read(K3S, Some("third")).err().unwrap().to_string();
        assert!(error.contains("context \"third\" does not exist") && !error.contains("hunter2"), "{error}");
    }
}

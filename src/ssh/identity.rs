//! The keys that are offered to a host: from a secret, from files, from the agent.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::{AgentClient, AgentStream};
use russh::keys::{self, PrivateKey, PublicKey};

use super::config::home;
use super::{Error, Options};

/// The environment variable that may hold a whole private key.
pub const KEY_VARIABLE: &str = "SOWER_SSH_KEY";
/// The environment variable that may hold the passphrase of a private key.
pub const PASSPHRASE_VARIABLE: &str = "SOWER_SSH_PASSPHRASE";

/// The usual names in `~/.ssh`.
const USUAL: [&str; 3] = ["id_ed25519", "id_ecdsa", "id_rsa"];
/// The largest key file that is read, in bytes.
const LARGEST: u64 = 64 << 10;

/// An agent that is connected.
pub(super) type Agent = AgentClient<Box<dyn AgentStream + Send + Unpin>>;

/// A key that can be offered.
pub(super) struct Identity {
    /// Where it comes from, for people.
    pub(super) what: String,
    pub(super) key: Key,
}

pub(super) enum Key {
    Private(Arc<PrivateKey>),
    /// The agent signs for it.
    Agent(PublicKey),
}

/// What may be offered to a host, in order, and what could not be.
#[derive(Default)]
pub(super) struct Identities {
    pub(super) offered: Vec<Identity>,
    pub(super) agent: Option<Agent>,
    /// Why a key is missing, for the message when nothing is accepted.
    pub(super) notes: Vec<String>,
}

impl Identities {
    /// The key of the secret, then the files that were named, then the agent's, then the usual files. Files that were
    /// named and cannot be used are errors, unless the agent has them.
    pub(super) async fn gather(options: &Options, files: &[PathBuf], only: bool) -> Result<Self, Error> {
        let mut found = Self::default();
        if let Some(secret) = &options.key {
            found.private(KEY_VARIABLE.to_owned(), parse(KEY_VARIABLE, &secret.0, options)?);
        }
        let held = match &options.agent {
            Some(socket) => found.ask_agent(socket).await,
            None => Vec::new(),
        };
        for path in files {
            let public = public_half(path);
            let what = path.display().to_string();
            if let Some(public) =
                public.filter(|public| held.iter().any(|(key, _)| key.key_data() == public.key_data()))
            {
                found.offered.push(Identity { what, key: Key::Agent(public) });
                continue;
            }
            found.private(what.clone(), parse(&what, &read(path)?, options)?);
        }
        if !only {
            for (public, comment) in held {
                if !found.has(&public) {
                    let what = format!("{comment} of the agent");
                    found.offered.push(Identity { what, key: Key::Agent(public) });
                }
            }
        }
        if files.is_empty() && options.key.is_none() {
            found.usual_files(options);
        }
        Ok(found)
    }

    fn private(&mut self, what: String, key: PrivateKey) {
        self.offered.push(Identity { what, key: Key::Private(Arc::new(key)) });
    }

    fn has(&self, public: &PublicKey) -> bool {
        self.offered.iter().any(|identity| match &identity.key {
            Key::Private(key) => key.public_key().key_data() == public.key_data(),
            Key::Agent(key) => key.key_data() == public.key_data(),
        })
    }

    async fn ask_agent(&mut self, socket: &Path) -> Vec<(PublicKey, String)> {
        let asked = async {
            let mut agent = AgentClient::connect_uds(socket).await?.dynamic();
            let identities = agent.request_identities().await?;
            Ok::<_, keys::Error>((agent, identities))
        };
        match asked.await {
            Ok((agent, identities)) => {
                self.agent = Some(agent);
                let keys = identities.into_iter().filter_map(|identity| match identity {
                    AgentIdentity::PublicKey { key, comment } => Some((key, comment)),
                    AgentIdentity::Certificate { .. } => None,
                });
                keys.collect()
            }
            Err(error) => {
                self.notes.push(format!("the agent could not be asked: {error}"));
                Vec::new()
            }
        }
    }

    fn usual_files(&mut self, options: &Options) {
        let Some(directory) = home().map(|home| home.join(".ssh")) else { return };
        for path in USUAL.map(|name| directory.join(name)) {
            if !path.is_file() || public_half(&path).is_some_and(|public| self.has(&public)) {
                continue;
            }
            let what = path.display().to_string();
            match read(&path).and_then(|content| parse(&what, &content, options)) {
                Ok(key) => self.private(what, key),
                Err(error) => self.notes.push(error.to_string()),
            }
        }
    }
}

fn read(path: &Path) -> Result<String, Error> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(failed)?.len() > LARGEST {
        return Err(failed(std::io::Error::other("larger than 64 KiB: this is no private key")));
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// The public key beside a private one.
fn public_half(path: &Path) -> Option<PublicKey> {
    let mut name = path.as_os_str().to_owned();
    name.push(".pub");
    PublicKey::from_openssh(&read(Path::new(&name)).ok()?).ok()
}

fn parse(what: &str, content: &str, options: &Options) -> Result<PrivateKey, Error> {
    let wrong = |message: String| Error::Key { what: what.to_owned(), message };
    // Secrets are often pasted with the line ends of another system, or without the last one.
    let content = format!("{}\n", content.replace("\r\n", "\n").trim());
    if !content.contains("PRIVATE KEY") && !content.starts_with("PuTTY-User-Key-File-") {
        return Err(wrong(
            "this is no private key (it has no line `-----BEGIN … PRIVATE KEY-----`)".to_owned(),
        ));
    }
    let passphrase = options.passphrase.as_ref().map(|secret| secret.0.as_str());
    let encrypted = || {
        wrong(format!(
            "it is encrypted: its passphrase goes into {PASSPHRASE_VARIABLE}, or the key into the agent"
        ))
    };
    match keys::decode_secret_key(&content, passphrase) {
        Ok(key) if key.is_encrypted() => Err(encrypted()),
        Ok(key) => Ok(key),
        Err(keys::Error::KeyIsEncrypted) => Err(encrypted()),
        // The decoder would try a passphrase on a key that has none only to find nothing to decrypt.
        Err(_) if passphrase.is_some() && is_plain(&content) => {
            keys::decode_secret_key(&content, None).map_err(|error| wrong(error.to_string()))
        }
        Err(error) if passphrase.is_some() => Err(wrong(format!("{error}: the passphrase may be wrong"))),
        Err(error) => Err(wrong(error.to_string())),
    }
}

fn is_plain(content: &str) -> bool {
    keys::decode_secret_key(content, None).is_ok_and(|key| !key.is_encrypted())
}

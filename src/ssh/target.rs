//! Which host, and how the connection is made.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::Error;
use super::identity::{KEY_VARIABLE, PASSPHRASE_VARIABLE};

/// A host as people name it: an address, a name, or an alias of `~/.ssh/config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The user there; if not given, the alias's, else the one that this program runs as.
    pub user: Option<String>,
    /// Name, address or alias.
    pub host: String,
    /// The port; if not given, the alias's, else 22.
    pub port: Option<u16>,
}

impl FromStr for Target {
    type Err = Error;

    /// Reads `[user@]host[:port]`, `ssh://[user@]host[:port][/]`; an IPv6 address with a port stands in brackets.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Target(text.to_owned());
        let rest = text.strip_prefix("ssh://").map_or(text, |rest| rest.trim_end_matches('/'));
        let (user, rest) = match rest.rsplit_once('@') {
            Some((user, rest)) => (Some(user.to_owned()), rest),
            None => (None, rest),
        };
        let (host, port) = if let Some(inner) = rest.strip_prefix('[') {
            let (host, tail) = inner.split_once(']').ok_or_else(wrong)?;
            match tail.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if tail.is_empty() => (host, None),
                None => return Err(wrong()),
            }
        } else {
            match rest.split_once(':') {
                // More than one colon without brackets: an IPv6 address alone.
                Some((_, tail)) if tail.contains(':') => (rest, None),
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            }
        };
        let port = port.map(|port| port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong));
        let well = |text: &str| {
            !text.is_empty()
                && !text.starts_with('-')
                && !text.contains(|c: char| c.is_whitespace() || c == '/')
        };
        if !well(host) || !user.as_deref().is_none_or(well) {
            return Err(wrong());
        }
        Ok(Self { user, host: host.to_owned(), port: port.transpose()? })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match self.port {
            Some(port) if self.host.contains(':') => write!(f, "[{}]:{port}", self.host),
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

/// Text that is never shown.
#[derive(Clone)]
pub struct Secret(pub(super) String);

impl Secret {
    /// Takes the text in.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for where it is needed.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// How connections are made.
#[derive(Debug, Clone)]
pub struct Options {
    /// The file of host aliases; `None`: `~/.ssh/config`, if it is there.
    pub config: Option<PathBuf>,
    /// Files of known host keys; none: those of the alias, else `~/.ssh/known_hosts` and `/etc/ssh/ssh_known_hosts`.
    pub known_hosts: Vec<PathBuf>,
    /// `SHA256:…`: the only host key that is accepted, whatever known_hosts says. Jump hosts go by known_hosts.
    pub fingerprint: Option<String>,
    /// Private key files; none: those of the alias, else the usual ones in `~/.ssh`.
    pub identities: Vec<PathBuf>,
    /// Content of a private key, offered before all others.
    pub key: Option<Secret>,
    /// Opens private keys that are encrypted.
    pub passphrase: Option<Secret>,
    /// The socket of the agent; by default what `SSH_AUTH_SOCK` names.
    pub agent: Option<PathBuf>,
    /// How long connecting and logging in may take.
    pub connect_timeout: Duration,
    /// How often a silent host is asked whether it is still there; after three times without an answer the connection is
    /// lost.
    pub keep_alive: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            config: None,
            known_hosts: Vec::new(),
            fingerprint: None,
            identities: Vec::new(),
            key: None,
            passphrase: None,
            agent: std::env::var_os("SSH_AUTH_SOCK").filter(|path| !path.is_empty()).map(PathBuf::from),
            connect_timeout: Duration::from_secs(15),
            keep_alive: Duration::from_secs(10),
        }
    }
}

impl Options {
    /// The defaults, with key and passphrase from the environment (`SOWER_SSH_KEY`, `SOWER_SSH_PASSPHRASE`).
    #[must_use]
    pub fn from_environment() -> Self {
        let secret = |name| std::env::var(name).ok().filter(|text| !text.trim().is_empty()).map(Secret);
        Self { key: secret(KEY_VARIABLE), passphrase: secret(PASSPHRASE_VARIABLE), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_as_people_write_them() {
        for (text, user, host, port) in [
            ("coulomb", None, "coulomb", None),
            ("root@h.test:2222", Some("root"), "h.test", Some(2222)),
            ("ssh://deploy@10.0.0.1:22/", Some("deploy"), "10.0.0.1", Some(22)),
            ("a@[::1]:22", Some("a"), "::1", Some(22)),
            ("fe80::1", None, "fe80::1", None),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!(
                (target.user.as_deref(), target.host.as_str(), target.port),
                (user, host, port),
                "{text}"
            );
        }
        for text in
            ["", "@h", "h:", "h:0", "h:99999", "-oProxyCommand=x", "a b", "u@-x", "ssh://", "[::1", "h/x"]
        {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let options = Options { key: Some(Secret::new("hunter2".to_owned())), ..Options::default() };
        assert!(!format!("{options:?}").contains("hunter2"));
    }
}

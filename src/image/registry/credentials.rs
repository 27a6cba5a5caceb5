//! User and password for one registry, and where they are looked for.
//!
//! They never come from the argument list, are never printed (`Debug` hides them), and are sent to the origin
//! they are for only; see [`super::location`].

use std::fmt;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::image::{Error, Repository};

/// A user name and a password or personal access token.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    username: String,
    password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// Environment variable with the user name.
pub const USERNAME: &str = "SOWER_REGISTRY_USERNAME";
/// Environment variable with the password or token.
pub const PASSWORD: &str = "SOWER_REGISTRY_PASSWORD";

const MAX_CONFIG: u64 = 1 << 20;

impl Credentials {
    /// Both parts, neither empty.
    #[must_use]
    pub fn new(username: &str, password: &str) -> Self {
        Self { username: username.to_owned(), password: password.to_owned() }
    }

    /// The value of an `Authorization: Basic` header.
    pub(super) fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.username, self.password)))
    }

    /// The first that is there: `given` (flag and standard input), the environment, docker's `config.json`.
    ///
    /// # Errors
    /// When a user comes without a password or the other way round, or `config.json` cannot be read.
    pub fn find(
        repository: &Repository,
        username: Option<String>,
        password: Option<String>,
    ) -> Result<Option<Self>, Error> {
        let set = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        let username = username.or_else(|| set(USERNAME));
        let password = password.or_else(|| set(PASSWORD));
        match (username, password) {
            (Some(username), Some(password)) => {
                if username.contains(':') {
                    return Err(Error::Credentials("a user name cannot hold a colon".to_owned()));
                }
                Ok(Some(Self { username, password }))
            }
            (Some(_), None) => Err(Error::Credentials(format!(
                "a user name without a password; set {PASSWORD} or give it on standard input with --password-stdin"
            ))),
            (None, Some(_)) => Err(Error::Credentials(format!(
                "a password without a user name; set {USERNAME} or give --username"
            ))),
            (None, None) => Self::from_docker_config(&repository.host),
        }
    }

    fn from_docker_config(host: &str) -> Result<Option<Self>, Error> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let directory = set("DOCKER_CONFIG").or_else(|| set("HOME").map(|home| home.join(".docker")));
        let Some(path) = directory.map(|directory| directory.join("config.json")) else { return Ok(None) };
        let file = match std::fs::File::open(&path) {
            Ok(file) => std::io::Read::take(file, MAX_CONFIG),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(&path, error)),
        };
        // serde's own message may quote what it stumbles over, so only the place is told.
        let config: DockerConfig = serde_json::from_reader(file).map_err(|error| {
            Error::Credentials(format!("{}: not JSON at line {}", path.display(), error.line()))
        })?;
        for (server, entry) in &config.auths {
            let server = server.split_once("://").map_or(server.as_str(), |(_, rest)| rest);
            if server.split('/').next().is_none_or(|server| !server.eq_ignore_ascii_case(host)) {
                continue;
            }
            let Some(auth) = entry.auth.as_deref().filter(|auth| !auth.is_empty()) else { continue };
            let decoded = STANDARD.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
            let Some((username, password)) = pair else {
                return Err(Error::Credentials(format!(
                    "{}: auths.{host}.auth is not base64 of user:password",
                    path.display()
                )));
            };
            return Ok(Some(Self::new(username, password.trim_end_matches('\0'))));
        }
        Ok(None)
    }
}

#[derive(serde::Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: indexmap::IndexMap<String, DockerAuth>,
}

#[derive(serde::Deserialize)]
struct DockerAuth {
    auth: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Credentials::new("dev", "s3cret")), "Credentials(…)");
    }
}

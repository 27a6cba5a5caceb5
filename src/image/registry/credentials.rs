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
    /// The password is a bearer token, to be used as it is.
    token: bool,
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
/// Environment variable with a bearer token that needs no token service.
pub const TOKEN: &str = "SOWER_REGISTRY_TOKEN";
/// What a credential helper says instead of a user when the secret is a refresh token.
const REFRESH: &str = "<token>";
/// The most that a credential helper may answer, in bytes.
const MAX_ANSWER: u64 = 64 * 1024;

const MAX_CONFIG: u64 = 1 << 20;

impl Credentials {
    /// Both parts, neither empty.
    #[must_use]
    pub fn new(username: &str, password: &str) -> Self {
        Self { username: username.to_owned(), password: password.to_owned(), token: false }
    }

    /// A bearer token that somebody fetched already.
    #[must_use]
    pub fn token(token: &str) -> Self {
        Self { username: String::new(), password: token.to_owned(), token: true }
    }

    /// Whether the password is the token that Gitea gave this job.
    pub(super) fn are_the_jobs_own(&self) -> bool {
        ["GITHUB_TOKEN", "GITEA_TOKEN", "ACTIONS_RUNTIME_TOKEN"]
            .iter()
            .any(|name| std::env::var(name).is_ok_and(|value| value == self.password && !value.is_empty()))
    }

    pub(super) fn is_token(&self) -> bool {
        self.token
    }

    /// The value of an `Authorization: Bearer` header.
    pub(super) fn bearer(&self) -> String {
        format!("Bearer {}", self.password)
    }

    /// The value of an `Authorization: Basic` header.
    pub(super) fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.username, self.password)))
    }

    /// The first that is there: `given` (flag and standard input), the environment, docker's `config.json` and the
    /// credential helpers it names.
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
                Ok(Some(Self::new(&username, &password)))
            }
            (Some(_), None) => Err(Error::Credentials(format!(
                "a user name without a password; set {PASSWORD} or give it on standard input with --password-stdin"
            ))),
            (None, Some(_)) => Err(Error::Credentials(format!(
                "a password without a user name; set {USERNAME} or give --username"
            ))),
            (None, None) => match set(TOKEN) {
                Some(token) => Ok(Some(Self::token(&token))),
                None => Self::from_docker_config(&repository.host),
            },
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
        // A helper for this registry, as docker does, goes before what stands in the file.
        let helper = config.helpers.iter().find(|(server, _)| is_host(server, host)).map(|(_, name)| name);
        if let Some(helper) = helper.or(config.store.as_ref()).filter(|name| !name.is_empty())
            && let Some(found) = Self::from_helper(helper, host)?
        {
            return Ok(Some(found));
        }
        for (server, entry) in &config.auths {
            if !is_host(server, host) {
                continue;
            }
            let Some(auth) = entry.auth.as_deref().filter(|auth| !auth.is_empty()) else {
                // As Kubernetes' pull secrets may have it.
                if let (Some(username), Some(password)) = (&entry.username, &entry.password) {
                    return Ok(Some(Self::new(username, password)));
                }
                continue;
            };
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

impl Credentials {
    /// Asks `docker-credential-NAME get`, which takes the registry's name on standard input. `None`: it has none.
    fn from_helper(name: &str, host: &str) -> Result<Option<Self>, Error> {
        use std::io::{Read as _, Write as _};
        use std::process::{Command, Stdio};
        #[derive(serde::Deserialize)]
        struct Answer {
            #[serde(rename = "Username")]
            username: String,
            #[serde(rename = "Secret")]
            secret: String,
        }
        let program = format!("docker-credential-{name}");
        let failed = |why: &dyn fmt::Display| Error::Credentials(format!("{program} get: {why}"));
        if name.contains('/') {
            return Err(failed(&"the name of a helper has no slash"));
        }
        let mut child = Command::new(&program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| failed(&error))?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read it says so in its own way.
            let _ = stdin.write_all(host.as_bytes());
        }
        let mut answer = String::new();
        let read = child.stdout.take().map(|out| out.take(MAX_ANSWER).read_to_string(&mut answer));
        let status = child.wait().map_err(|error| failed(&error))?;
        if !status.success() {
            // "credentials not found in native keychain" is an answer; the exit code is the same for all.
            return if answer.contains("not found") { Ok(None) } else { Err(failed(&status)) };
        }
        if let Some(Err(error)) = read {
            return Err(failed(&error));
        }
        // What it said is not shown: it may hold the secret.
        let answer: Answer = serde_json::from_str(&answer).map_err(|_| failed(&"the answer is not JSON"))?;
        if answer.username == REFRESH {
            return Err(failed(
                &"holds a refresh token, which is not supported; store a user and a password",
            ));
        }
        Ok(Some(Self::new(&answer.username, &answer.secret)))
    }
}

/// Whether a server of docker's configuration is this registry: `https://host/v1/` means `host`.
fn is_host(server: &str, host: &str) -> bool {
    let server = server.split_once("://").map_or(server, |(_, rest)| rest);
    server.split('/').next().is_some_and(|server| server.eq_ignore_ascii_case(host))
}

#[derive(serde::Deserialize)]
struct DockerConfig {
    #[serde(default, rename = "credHelpers")]
    helpers: indexmap::IndexMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
    #[serde(default)]
    auths: indexmap::IndexMap<String, DockerAuth>,
}

#[derive(serde::Deserialize)]
struct DockerAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Credentials::new("dev", "s3cret")), "Credentials(…)");
    }
}

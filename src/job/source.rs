//! Where actions come from: reading `uses`, and fetching a repository by the git program.
//!
//! A repository is fetched once for each commit, shallow, into a directory that never changes afterwards; jobs share
//! it. Git is given its token through its environment, so it never stands in an argument or in a file.

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::spec::ActionSources;

/// What `uses` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uses {
    /// A directory of the workspace.
    Local(PathBuf),
    /// A container image.
    Docker(String),
    /// A directory of a repository at a ref.
    Repository(RepositoryAction),
}

/// An action in a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryAction {
    /// URL to clone, without credentials.
    pub url: String,
    /// `owner/name`.
    pub name: String,
    /// Directory in the repository; empty for its root.
    pub path: PathBuf,
    /// Branch, tag or commit.
    pub reference: String,
}

/// Why an action cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `uses` is of no known form.
    #[error(
        "cannot read uses: {0:?}; expected ./path, owner/repository[/path]@ref, https://host/owner/repository[/path]@ref or docker://image"
    )]
    Form(String),
    /// Git could not fetch it.
    #[error("cannot fetch {url} at {reference:?}: {reason}")]
    Fetch {
        /// The repository.
        url: String,
        /// The ref.
        reference: String,
        /// Git's last words.
        reason: String,
    },
    /// A file could not be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Uses {
    /// Reads the value of `uses`.
    ///
    /// # Errors
    /// When it is of no known form.
    pub fn parse(uses: &str, sources: &ActionSources) -> Result<Self, Error> {
        let form = || Error::Form(uses.to_owned());
        if let Some(path) = uses.strip_prefix("./") {
            let path = PathBuf::from(path);
            let inside =
                path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
            return if inside { Ok(Self::Local(path)) } else { Err(form()) };
        }
        if let Some(image) = uses.strip_prefix("docker://") {
            return Ok(Self::Docker(image.to_owned()));
        }
        let (what, reference) = uses.rsplit_once('@').ok_or_else(form)?;
        if reference.is_empty() || reference.starts_with('-') || reference.contains(char::is_whitespace) {
            return Err(form());
        }
        let (base, rest) = match what.find("://") {
            Some(scheme) if matches!(&what[..scheme], "http" | "https") => {
                let host = what[scheme + 3..].find('/').ok_or_else(form)? + scheme + 3;
                (what[..host].to_owned(), &what[host + 1..])
            }
            Some(_) => return Err(form()),
            None => (sources.default_url.trim_end_matches('/').to_owned(), what),
        };
        let mut parts = rest.split('/');
        let owner = parts.next().filter(|part| is_name(part)).ok_or_else(form)?;
        let repository = parts.next().filter(|part| is_name(part)).ok_or_else(form)?;
        let path: PathBuf = parts.collect();
        if !path.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(form());
        }
        let name = format!("{owner}/{}", repository.strip_suffix(".git").unwrap_or(repository));
        let base = match &sources.github_mirror {
            Some(mirror) if base == "https://github.com" => mirror.trim_end_matches('/').to_owned(),
            _ => base,
        };
        Ok(Self::Repository(RepositoryAction {
            url: format!("{base}/{name}"),
            name,
            path,
            reference: reference.to_owned(),
        }))
    }
}

fn is_name(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with(['.', '-'])
        && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

/// The git program with an environment that asks nobody anything.
#[derive(Debug, Clone)]
pub struct Git {
    path: String,
    home: PathBuf,
    /// `http.<url>.extraheader` and its value, for one instance.
    header: Option<(String, String)>,
}

impl Git {
    /// Git as found on this PATH.
    #[must_use]
    pub fn new(path: &str, home: &Path) -> Self {
        Self { path: path.to_owned(), home: home.to_owned(), header: None }
    }

    /// Sends the token to this instance, and to no other.
    #[must_use]
    pub fn with_token(mut self, instance_url: &str, token: &str) -> Self {
        if !token.is_empty() && !instance_url.is_empty() {
            let base = instance_url.trim_end_matches('/');
            self.header = Some((
                format!("http.{base}/.extraheader"),
                format!("AUTHORIZATION: basic {}", STANDARD.encode(format!("x-access-token:{token}"))),
            ));
        }
        self
    }

    /// The header that carries the token, as a configuration key and its value.
    #[must_use]
    pub fn header(&self) -> Option<&(String, String)> {
        self.header.as_ref()
    }

    /// Runs git and gives its standard output.
    ///
    /// # Errors
    /// With git's last words when it fails, or why it cannot be started.
    pub fn run(&self, directory: &Path, arguments: &[&str]) -> Result<String, String> {
        let program = super::shell::find("git", &self.path)
            .ok_or_else(|| format!("there is no git on PATH ({}); install git on this host", self.path))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(directory)
            .env_clear()
            .env("PATH", &self.path)
            .env("HOME", &self.home)
            .env("LC_ALL", "C")
            .env("GIT_TERMINAL_PROMPT", "0")
            .stdin(Stdio::null());
        if let Some((key, value)) = &self.header {
            command
                .env("GIT_CONFIG_COUNT", "1")
                .env("GIT_CONFIG_KEY_0", key)
                .env("GIT_CONFIG_VALUE_0", value);
        }
        let output = command.output().map_err(|error| format!("cannot start git: {error}"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        let mut last: Vec<&str> =
            words.lines().rev().filter(|line| !line.trim().is_empty()).take(3).collect();
        last.reverse();
        Err(if last.is_empty() { format!("git ended with {}", output.status) } else { last.join("; ") })
    }
}

/// A repository at a commit, on disk.
#[derive(Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Its files. Shared: nobody may write there.
    pub directory: PathBuf,
    /// The commit.
    pub commit: String,
    /// It was there already.
    pub cached: bool,
}

/// Sees that a repository is in the cache at the commit that the reference names.
///
/// # Errors
/// When git cannot fetch it and it is not cached either.
pub fn fetch(action: &RepositoryAction, cache: &Path, git: &Git) -> Result<Fetched, Error> {
    let failed =
        |reason| Error::Fetch { url: action.url.clone(), reference: action.reference.clone(), reason };
    let host_and_name = action.url.split_once("://").map_or(action.url.as_str(), |(_, rest)| rest);
    let place = cache.join(host_and_name.replace(':', "+"));
    fs::create_dir_all(&place).map_err(|source| Error::Io { path: place.clone(), source })?;
    let commit = resolve(action, &place, git).map_err(failed)?;
    let directory = place.join(&commit);
    if directory.is_dir() {
        return Ok(Fetched { directory, commit, cached: true });
    }
    // Two jobs may want the same action at the same time: one fetches, the other waits and finds it.
    let lock_path = place.join(".lock");
    let lock = File::create(&lock_path).map_err(|source| Error::Io { path: lock_path.clone(), source })?;
    lock.lock().map_err(|source| Error::Io { path: lock_path, source })?;
    if directory.is_dir() {
        return Ok(Fetched { directory, commit, cached: true });
    }
    let io = |source| Error::Io { path: place.clone(), source };
    let fresh = tempfile::Builder::new().prefix(".fetch-").tempdir_in(&place).map_err(io)?;
    let into = fresh.path();
    git.run(into, &["init", "--quiet"]).map_err(failed)?;
    // Not every server gives out a commit by its name, and a plain file server cannot shorten a history.
    git.run(into, &["fetch", "--quiet", "--depth=1", "--no-tags", &action.url, &commit])
        .or_else(|_| {
            git.run(into, &["fetch", "--quiet", "--depth=1", "--no-tags", &action.url, &action.reference])
        })
        .or_else(|_| git.run(into, &["fetch", "--quiet", "--no-tags", &action.url, &action.reference]))
        .map_err(failed)?;
    git.run(into, &["checkout", "--quiet", "--detach", "FETCH_HEAD"]).map_err(failed)?;
    fs::rename(fresh.keep(), &directory).map_err(io)?;
    Ok(Fetched { directory, commit, cached: false })
}

/// The commit that a reference names now: by itself, or as the server says.
fn resolve(action: &RepositoryAction, place: &Path, git: &Git) -> Result<String, String> {
    let reference = action.reference.as_str();
    if matches!(reference.len(), 40 | 64) && reference.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(reference.to_ascii_lowercase());
    }
    let listed = git.run(place, &["ls-remote", "--quiet", &action.url])?;
    let find = |name: &str| {
        listed.lines().find_map(|line| {
            let (commit, found) = line.split_once('\t')?;
            (found == name).then(|| commit.to_owned())
        })
    };
    let hexadecimal = reference.len() >= 7 && reference.bytes().all(|byte| byte.is_ascii_hexdigit());
    find(&format!("refs/tags/{reference}^{{}}"))
        .or_else(|| find(&format!("refs/tags/{reference}")))
        .or_else(|| find(&format!("refs/heads/{reference}")))
        .or_else(|| find(reference))
        .or_else(|| {
            // A short commit, as long as a branch or a tag points at it.
            let commit =
                listed.split_ascii_whitespace().find(|word| hexadecimal && word.starts_with(reference))?;
            (commit.len() >= 40).then(|| commit.to_owned())
        })
        .ok_or_else(|| format!("the repository has no branch or tag {reference:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(uses: &str) -> String {
        let sources =
            ActionSources { default_url: "https://github.com".to_owned(), ..ActionSources::default() };
        match Uses::parse(uses, &sources) {
            Ok(Uses::Local(path)) => format!("local {}", path.display()),
            Ok(Uses::Docker(image)) => format!("docker {image}"),
            Ok(Uses::Repository(action)) => {
                format!("{} {} {} {}", action.url, action.name, action.path.display(), action.reference)
            }
            Err(_) => "error".to_owned(),
        }
    }

    #[test]
    fn forms_of_uses() {
        assert_eq!(parse("./.gitea/actions/x"), "local .gitea/actions/x");
        assert_eq!(parse("docker://alpine:3"), "docker alpine:3");
        assert_eq!(parse("actions/cache/save@v4"), "https://github.com/actions/cache actions/cache save v4");
        assert_eq!(parse("http://localhost:3000/o/r@main"), "http://localhost:3000/o/r o/r  main");
        assert_eq!(parse("https://h/o/r.git/a/b@feature/x"), "https://h/o/r o/r a/b feature/x");
        for wrong in [
            "actions/cache",
            "a@v1",
            "./../x",
            "o/r/../../x@v1",
            "o/r@",
            "o/r@-x",
            "ssh://h/o/r@v1",
            "",
            "@",
            "o/-r@v1",
            "https://h@v1",
        ] {
            assert_eq!(parse(wrong), "error", "{wrong}");
        }
    }

    #[test]
    fn a_repository_is_fetched_once_for_each_commit() {
        let dir = tempfile::tempdir().unwrap();
        let repository = dir.path().join("owner/name");
        fs::create_dir_all(&repository).unwrap();
        let git = Git::new("/usr/bin:/bin", dir.path());
        let run = |arguments: &[&str]| git.run(&repository, arguments).unwrap();
        run(&["init", "--quiet", "-b", "main"]);
        fs::write(repository.join("action.yml"), "name: x\n").unwrap();
        run(&["add", "."]);
        run(&["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "-m", "one"]);
        run(&["-c", "user.name=t", "-c", "user.email=t@example.org", "tag", "-a", "-m", "t", "v1"]);
        let head = run(&["rev-parse", "HEAD"]).trim().to_owned();
        let action = |reference: &str| RepositoryAction {
            url: format!("file://{}", repository.display()),
            name: "owner/name".to_owned(),
            path: PathBuf::new(),
            reference: reference.to_owned(),
        };
        let cache = dir.path().join("cache");
        let first = fetch(&action("v1"), &cache, &git).unwrap();
        assert_eq!((first.commit.as_str(), first.cached), (head.as_str(), false));
        assert!(first.directory.join("action.yml").is_file());
        for reference in ["main", &head, &head[..8]] {
            assert!(fetch(&action(reference), &cache, &git).unwrap().cached, "{reference}");
        }
        let error = fetch(&action("v2"), &cache, &git).unwrap_err().to_string();
        assert!(error.contains("no branch or tag \"v2\""), "{error}");
    }
}

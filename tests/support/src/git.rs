//! Bare repositories, served by `git http-backend`; a push starts the workflows that it brings.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use crate::forge::USER;
use crate::http::{Abort, Body, Caller, Site, bytes, collect, header, not_found, text};
use crate::runs::Origin;
use crate::workflow::Trigger;

const NO_COMMIT: &str = "0000000000000000000000000000000000000000";

/// A repository of the stand-in.
#[derive(Debug, Clone)]
pub struct Repository {
    pub(crate) name: String,
    pub(crate) base: String,
    pub(crate) token: String,
    pub(crate) path: PathBuf,
}

impl Repository {
    /// `owner/name`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address for reading, without any secret in it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}/{}.git", self.base, self.name)
    }

    /// The address for pushing: it holds the access token of the user.
    #[must_use]
    pub fn push_url(&self) -> String {
        let url = self.url();
        match url.split_once("://") {
            Some((scheme, rest)) => format!("{scheme}://{USER}:{}@{rest}", self.token),
            None => url,
        }
    }

    /// The bare repository on disk.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Pushes one more commit with these files to `main`; answers the commit.
    ///
    /// # Errors
    /// When git fails.
    pub fn push(&self, files: &[(&str, &str)]) -> Result<String, GitError> {
        push_files(&self.push_url(), "main", files)
    }
}

/// git did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// git could not be started, or a file could not be written.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// git ended with an error.
    #[error("git {command} failed: {output}")]
    Failed {
        /// The subcommand.
        command: String,
        /// What git said.
        output: String,
    },
}

/// Puts `files` on top of `branch` of any git server and pushes; answers the commit.
///
/// # Errors
/// When git fails. What git says is in the error, without the address.
pub fn push_files(url: &str, branch: &str, files: &[(&str, &str)]) -> Result<String, GitError> {
    let io = |what: &str| {
        let what = what.to_owned();
        move |source| GitError::Io { what, source }
    };
    let tree = tempfile::tempdir().map_err(io("a folder for the commit"))?;
    let git = |arguments: &[&str]| run_git(tree.path(), arguments, url);
    git(&["init", "-q", "-b", branch])?;
    // The branch need not exist yet.
    if git(&["fetch", "-q", "--depth=1", url, branch]).is_ok() {
        git(&["reset", "-q", "--hard", "FETCH_HEAD"])?;
    }
    for (name, content) in files {
        let path = tree.path().join(name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(io(name))?;
        }
        std::fs::write(&path, content).map_err(io(name))?;
    }
    git(&["add", "-A", "-f"])?;
    git(&["commit", "-q", "--allow-empty", "-m", "Change something"])?;
    git(&["push", "-q", url, branch])?;
    Ok(git(&["rev-parse", "HEAD"])?.trim().to_owned())
}

fn run_git(folder: &Path, arguments: &[&str], secret: &str) -> Result<String, GitError> {
    let output = base_command()
        .current_dir(folder)
        .args(["-c", "user.name=dev", "-c", "user.email=dev@example.invalid", "-c", "commit.gpgsign=false"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| GitError::Io { what: "starting git".to_owned(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).replace(secret, "<url>");
    Err(GitError::Failed { command: arguments.first().copied().unwrap_or_default().to_owned(), output: said })
}

/// git without anybody's configuration.
fn base_command() -> Command {
    let mut command = Command::new("git");
    command
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env_remove("GIT_DIR")
        .env_remove("GIT_WORK_TREE")
        .env_remove("GIT_INDEX_FILE");
    command
}

/// Makes a bare repository unless it is there.
pub(crate) fn create(path: &Path) -> io::Result<()> {
    if path.join("HEAD").exists() {
        return Ok(());
    }
    std::fs::create_dir_all(path)?;
    let output = base_command()
        .args(["init", "-q", "--bare", "-b", "main"])
        .arg(path)
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    Ok(())
}

/// Whether a name can be that of a repository: `owner/name` of plain characters.
pub(crate) fn is_name(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    name.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name))
}

/// A request for a repository.
pub(crate) struct Target {
    name: String,
    /// What follows the repository's name, with a slash at the front.
    rest: &'static str,
}

/// Reads `/owner/name[.git]/<what git asks for>`.
pub(crate) fn route(path: &str) -> Option<Target> {
    let (rest, name) = ["/info/refs", "/git-upload-pack", "/git-receive-pack"]
        .into_iter()
        .find_map(|rest| Some((rest, path.strip_suffix(rest)?)))?;
    let name = name.strip_prefix('/')?;
    let name = name.strip_suffix(".git").unwrap_or(name);
    is_name(name).then(|| Target { name: name.to_owned(), rest })
}

pub(crate) async fn serve(
    site: &Arc<Site>,
    target: Target,
    request: Request<Incoming>,
) -> Result<Response<Body>, Abort> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let writes = target.rest == "/git-receive-pack" || query.contains("service=git-receive-pack");
    let closed = site.shared.lock().options.private;
    let caller = site.caller(request.headers());
    if caller == Caller::Wrong || ((writes || closed) && caller != Caller::Known) {
        let reply = text(StatusCode::UNAUTHORIZED, "Unauthorized\n");
        return Ok(header(reply, "www-authenticate", "Basic realm=\"Gitea\""));
    }
    let path = site.repositories.join(format!("{}.git", target.name));
    if !path.join("HEAD").exists() {
        return Ok(not_found());
    }
    if !writes || target.rest == "/info/refs" {
        return backend(site, &target, &query, request).await;
    }
    // One push at a time, so that the refs before and after belong together.
    let _turn = site.pushes.lock().await;
    let before = refs(&path);
    let response = backend(site, &target, &query, request).await?;
    for (reference, sha) in refs(&path) {
        let old = before.get(&reference).map_or(NO_COMMIT, String::as_str);
        if old != sha {
            pushed(site, &target.name, &path, &reference, old, &sha);
        }
    }
    Ok(response)
}

/// Runs `git http-backend` for one request, as a web server runs a CGI program.
async fn backend(
    site: &Site,
    target: &Target,
    query: &str,
    request: Request<Incoming>,
) -> Result<Response<Body>, Abort> {
    let (parts, body) = request.into_parts();
    let body = collect(body).await?;
    let header_of = |name: &str| {
        parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let mut command = tokio::process::Command::from(base_command());
    command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", &site.repositories)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("PATH_INFO", format!("/{}.git{}", target.name, target.rest))
        .env("QUERY_STRING", query)
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("CONTENT_TYPE", header_of("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header_of("content-encoding"))
        .env("GIT_PROTOCOL", header_of("git-protocol"))
        .env("REMOTE_USER", USER)
        .env("REMOTE_ADDR", "127.0.0.1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let Ok(mut child) = command.spawn() else {
        return Ok(text(StatusCode::INTERNAL_SERVER_ERROR, "git http-backend cannot be started\n"));
    };
    let stdin = child.stdin.take();
    let feed = async move {
        if let Some(mut stdin) = stdin {
            // git may have read enough and closed its end.
            let _ = stdin.write_all(&body).await;
        }
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), feed);
    let output = output.map_err(|_| Abort)?.stdout;
    Ok(from_cgi(&output))
}

/// Makes a response of what a CGI program printed.
fn from_cgi(output: &[u8]) -> Response<Body> {
    let Some(end) = output.windows(4).position(|four| four == b"\r\n\r\n") else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "git http-backend said nothing\n");
    };
    let mut response = bytes(StatusCode::OK, output[end + 4..].to_vec());
    for line in String::from_utf8_lossy(&output[..end]).lines() {
        let Some((name, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        if name.eq_ignore_ascii_case("status") {
            let code = value.split(' ').next().and_then(|code| code.parse().ok());
            *response.status_mut() = code
                .and_then(|code| StatusCode::from_u16(code).ok())
                .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        } else {
            response = header(response, name, value);
        }
    }
    response
}

fn refs(path: &Path) -> BTreeMap<String, String> {
    let listed =
        run_git(path, &["for-each-ref", "--format=%(objectname) %(refname)"], "").unwrap_or_default();
    listed
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(sha, name)| (name.to_owned(), sha.to_owned()))
        .collect()
}

/// Starts the workflows of a commit that was just pushed.
fn pushed(site: &Site, repository: &str, path: &Path, reference: &str, old: &str, sha: &str) {
    let event = push_event(site, repository, path, reference, old, sha);
    let title =
        event["head_commit"]["message"].as_str().unwrap_or_default().lines().next().unwrap_or_default();
    for (file, yaml) in workflows(path, sha) {
        let origin = Origin {
            repository: repository.to_owned(),
            workflow: file.clone(),
            title: title.to_owned(),
            event_name: "push",
            reference: reference.to_owned(),
            sha: sha.to_owned(),
            event: event.clone(),
        };
        site.shared.change(|state| {
            if let Err(problem) = state.start_run(origin, yaml.as_bytes(), &Trigger::Push(reference)) {
                state.rejected.push(format!("{file}: {problem}"));
            }
        });
    }
}

/// The workflow files of a commit: name and content.
pub(crate) fn workflows(path: &Path, sha: &str) -> Vec<(String, String)> {
    let folders = [".gitea/workflows", ".github/workflows"];
    for folder in folders {
        let listed =
            run_git(path, &["ls-tree", "--name-only", sha, &format!("{folder}/")], "").unwrap_or_default();
        let files: Vec<(String, String)> = listed
            .lines()
            .filter(|file| file.ends_with(".yml") || file.ends_with(".yaml"))
            .filter_map(|file| {
                let content = run_git(path, &["show", &format!("{sha}:{file}")], "").ok()?;
                Some((file.rsplit('/').next().unwrap_or(file).to_owned(), content))
            })
            .collect();
        // As on the real server the second folder counts only when the first has none.
        if !files.is_empty() {
            return files;
        }
    }
    Vec::new()
}

/// The commit that a ref stands at.
pub(crate) fn resolve(path: &Path, reference: &str) -> Option<String> {
    Some(run_git(path, &["rev-parse", "--verify", "-q", reference], "").ok()?.trim().to_owned())
}

/// The webhook payload of a push, in the parts of it that workflows use.
fn push_event(
    site: &Site,
    repository: &str,
    path: &Path,
    reference: &str,
    old: &str,
    sha: &str,
) -> serde_json::Value {
    let base = site.shared.lock().base.clone();
    let shown = run_git(path, &["log", "-1", "--format=%an%n%ae%n%cI%n%B", sha], "").unwrap_or_default();
    let mut lines = shown.splitn(4, '\n');
    let mut next = || lines.next().unwrap_or_default().to_owned();
    let (name, email, time, message) = (next(), next(), next(), next());
    let files = |filter: &str| -> Vec<String> {
        let arguments = [
            "diff-tree",
            "--root",
            "--no-commit-id",
            "--name-only",
            "-r",
            &format!("--diff-filter={filter}"),
            sha,
        ];
        run_git(path, &arguments, "").unwrap_or_default().lines().map(str::to_owned).collect()
    };
    let person = json!({"name": name, "email": email, "username": ""});
    let commit = json!({
        "id": sha,
        "message": format!("{}\n", message.trim_end()),
        "url": format!("{base}/{repository}/commit/{sha}"),
        "author": person,
        "committer": person,
        "verification": null,
        "timestamp": time,
        "added": files("A"),
        "removed": files("D"),
        "modified": files("M"),
    });
    let user = user(&base);
    json!({
        "ref": reference,
        "before": old,
        "after": sha,
        "compare_url": format!("{base}/{repository}/compare/{old}...{sha}"),
        "commits": [commit],
        "total_commits": 1,
        "head_commit": commit,
        "repository": repository_json(&base, repository),
        "pusher": user,
        "sender": user,
    })
}

/// The user as REST and events show it.
pub(crate) fn user(base: &str) -> serde_json::Value {
    json!({
        "id": 1,
        "login": USER,
        "username": USER,
        "full_name": "",
        "email": format!("{USER}@example.invalid"),
        "avatar_url": "",
        "html_url": format!("{base}/{USER}"),
    })
}

/// A repository as REST and events show it.
pub(crate) fn repository_json(base: &str, repository: &str) -> serde_json::Value {
    let (owner, name) = repository.split_once('/').unwrap_or(("", repository));
    let mut owner_json = user(base);
    owner_json["login"] = owner.into();
    owner_json["username"] = owner.into();
    json!({
        "id": 1,
        "name": name,
        "full_name": repository,
        "owner": owner_json,
        "private": false,
        "fork": false,
        "default_branch": "main",
        "html_url": format!("{base}/{repository}"),
        "clone_url": format!("{base}/{repository}.git"),
        "url": format!("{base}/api/v1/repos/{repository}"),
    })
}

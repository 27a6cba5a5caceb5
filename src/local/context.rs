//! What a local run knows of the repository and of its event: the `github` context, secrets, variables and inputs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::job::source::Git;
use crate::job::spec::NativePolicy;

/// The question was wrong: something that was asked for is not there or cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Question(pub String);

/// What the command line says of the event.
#[derive(Debug, Clone, Default)]
pub struct Event {
    /// Its name, such as `push`.
    pub name: String,
    /// A file with its payload.
    pub file: Option<PathBuf>,
    /// Inputs of `workflow_dispatch`.
    pub inputs: Vec<(String, String)>,
    /// Ask no server for actions that are cached.
    pub offline: bool,
    /// Addresses that stand in for others when actions are fetched.
    pub mirrors: BTreeMap<String, String>,
}

/// Everything that jobs of a local run share.
#[derive(Debug, Clone)]
pub struct Context {
    /// The working tree.
    pub root: PathBuf,
    /// Name of the event.
    pub event: String,
    /// The `github` context.
    pub github: Map<String, Value>,
    /// Inputs as given; their types are the workflow's to say.
    pub inputs: Vec<(String, String)>,
    /// Which of them the command line names: those a workflow has to declare.
    pub asked_inputs: Vec<String>,
    /// The `vars` context.
    pub vars: BTreeMap<String, String>,
    /// Variables for every step.
    pub env: BTreeMap<String, String>,
    /// Ask no server for actions that are cached.
    pub offline: bool,
    /// Addresses that stand in for others when actions are fetched.
    pub mirrors: BTreeMap<String, String>,
    /// When built-in actions are used instead of the originals.
    pub native: NativePolicy,
    secrets: BTreeMap<String, String>,
    git: Git,
    /// The payload was made up here.
    made_up: bool,
}

/// Where a working tree stands.
struct Head {
    root: Option<String>,
    sha: Option<String>,
    /// `None` where no branch is checked out.
    branch: Option<String>,
}

impl Head {
    fn ask(ask: &impl Fn(&[&str]) -> Option<String>) -> Self {
        let all = ask(&["rev-parse", "--show-toplevel", "HEAD", "--symbolic-full-name", "HEAD"]);
        let lines: Option<[String; 3]> =
            all.and_then(|all| all.lines().map(str::to_owned).collect::<Vec<_>>().try_into().ok());
        match lines {
            Some([root, sha, name]) => {
                let branch = name.strip_prefix("refs/heads/").map(str::to_owned);
                Self { root: Some(root), sha: Some(sha), branch }
            }
            // There is no commit yet, or no repository.
            None => Self {
                root: ask(&["rev-parse", "--show-toplevel"]),
                sha: None,
                branch: ask(&["symbolic-ref", "--short", "HEAD"]),
            },
        }
    }
}

impl Context {
    /// Reads the repository around a directory.
    ///
    /// # Errors
    /// When the event's file cannot be read or is no JSON object.
    pub fn new(
        directory: &Path,
        event: &Event,
        secrets: BTreeMap<String, String>,
        vars: BTreeMap<String, String>,
        env: BTreeMap<String, String>,
    ) -> Result<Self, Question> {
        let path = std::env::var("PATH").unwrap_or_else(|_| crate::job::environment::DEFAULT_PATH.to_owned());
        let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
        let git = Git::new(&path, &home);
        let ask = |arguments: &[&str]| git.run(directory, arguments).ok().map(|text| text.trim().to_owned());
        // Each start of git takes as long as a short step: two at a time, and one for three answers.
        let (origin, head) = std::thread::scope(|scope| {
            let origin = scope.spawn(|| ask(&["remote", "get-url", "origin"]));
            let head = Head::ask(&ask);
            (origin.join().ok().flatten(), head)
        });
        let root = head.root.map_or_else(|| directory.to_owned(), PathBuf::from);
        let (server, repository) = origin.and_then(|url| parse_remote(&url)).unwrap_or_else(|| {
            let name = root.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            ("https://github.com".to_owned(), format!("local/{name}"))
        });
        let owner = repository.split('/').next().unwrap_or_default().to_owned();
        let sha = head.sha.unwrap_or_default();
        let branch = head.branch.unwrap_or_else(|| "main".to_owned());
        let reference = format!("refs/heads/{branch}");
        let actor = std::env::var("USER").unwrap_or_else(|_| "sower".to_owned());

        let mut payload = match &event.file {
            Some(file) => read_event(file)?,
            None => json!({
                "ref": reference,
                "after": sha,
                "repository": {
                    "name": repository.split('/').next_back(), "full_name": repository, "default_branch": branch,
                    "html_url": format!("{server}/{repository}"), "owner": {"login": owner},
                },
                "pusher": {"login": actor},
                "sender": {"login": actor},
            }),
        };
        let made_up = event.file.is_none();
        if made_up && event.name.starts_with("pull_request") {
            let base = ask(&["symbolic-ref", "--short", "refs/remotes/origin/HEAD"]);
            let base = base.as_deref().and_then(|name| name.strip_prefix("origin/")).unwrap_or("main");
            payload["action"] = "opened".into();
            payload["number"] = 1.into();
            payload["ref"] = "refs/pull/1/head".into();
            payload["pull_request"] = json!({
                "number": 1, "state": "open", "title": branch, "user": {"login": actor},
                "base": {"ref": base, "sha": ask(&["merge-base", &format!("origin/{base}"), "HEAD"])},
                "head": {"ref": branch, "sha": sha},
            });
        }
        if !event.inputs.is_empty() {
            payload["inputs"] = event
                .inputs
                .iter()
                .map(|(name, value)| (name.clone(), Value::from(value.as_str())))
                .collect();
        }
        let inputs = payload["inputs"].as_object().map(|inputs| {
            inputs
                .iter()
                .map(|(name, value)| {
                    (name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned))
                })
                .collect()
        });
        let text = |pointer: &str| payload.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let base_ref = text("/pull_request/base/ref").unwrap_or_default();
        let head_ref = text("/pull_request/head/ref").unwrap_or_default();
        let reference = text("/ref").filter(|given| given.starts_with("refs/")).unwrap_or(reference);
        let (kind, short) = match reference.strip_prefix("refs/tags/") {
            Some(tag) => ("tag", tag.to_owned()),
            None => {
                let short =
                    ["refs/heads/", "refs/pull/"].iter().find_map(|kind| reference.strip_prefix(kind));
                ("branch", short.unwrap_or(&reference).to_owned())
            }
        };
        let github = json!({
            "actor": actor, "triggering_actor": actor,
            "api_url": format!("{server}/api/v1"), "server_url": server, "graphql_url": "",
            "base_ref": base_ref, "head_ref": head_ref,
            "event": payload, "event_name": event.name,
            "ref": reference, "ref_name": short, "ref_type": kind, "ref_protected": false, "sha": sha,
            "repository": repository, "repository_owner": owner,
            "repositoryUrl": format!("{server}/{repository}"),
            "run_id": "1", "run_number": "1", "run_attempt": "1", "retention_days": "",
            "secret_source": "None",
            "token": secrets.get("GITHUB_TOKEN").or_else(|| secrets.get("GITEA_TOKEN")).cloned().unwrap_or_default(),
        });
        let Value::Object(github) = github else { return Err(Question("no context".to_owned())) };
        Ok(Self {
            root,
            event: event.name.clone(),
            github,
            inputs: inputs.unwrap_or_default(),
            asked_inputs: event.inputs.iter().map(|(name, _)| name.clone()).collect(),
            vars,
            env,
            offline: event.offline,
            mirrors: event.mirrors.clone(),
            native: NativePolicy::default(),
            secrets,
            git,
            made_up,
        })
    }

    /// The files that the event changed: as its payload or the repository says; `None` when neither does.
    #[must_use]
    pub fn changed_files(&self) -> Option<Vec<String>> {
        let event = self.github.get("event")?;
        let listed = |commits: &Value| -> Vec<String> {
            let commits = commits.as_array().map(Vec::as_slice).unwrap_or_default();
            let files =
                commits.iter().flat_map(|commit| ["added", "modified", "removed"].map(|kind| &commit[kind]));
            files.filter_map(Value::as_array).flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        if let Some(commits) = event.get("commits").filter(|commits| commits.is_array()) {
            let mut files = listed(commits);
            if let Some(head) = event.get("head_commit") {
                files.extend(listed(&Value::from(vec![head.clone()])));
            }
            return Some(files);
        }
        let text =
            |pointer: &str| event.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
        let ask = |arguments: &[&str]| {
            let names = self.git.run(&self.root, arguments).ok()?;
            Some(names.lines().map(str::to_owned).collect::<Vec<_>>())
        };
        let after = text("/after").or_else(|| text("/pull_request/head/sha")).unwrap_or("HEAD");
        match text("/pull_request/base/sha") {
            Some(base) => ask(&["diff", "--name-only", &format!("{base}...{after}")]),
            None if self.event.starts_with("pull_request") => None,
            None => match text("/before").filter(|before| before.bytes().any(|byte| byte != b'0')) {
                Some(before) => ask(&["diff", "--name-only", before, after]),
                None if !self.made_up => None,
                // The first commit changes all there is.
                None => ask(&["diff", "--name-only", "HEAD~1", "HEAD"])
                    .or_else(|| ask(&["ls-tree", "-r", "--name-only", "HEAD"])),
            },
        }
    }

    /// The `secrets` context.
    #[must_use]
    pub const fn secrets(&self) -> &BTreeMap<String, String> {
        &self.secrets
    }
}

fn read_event(file: &Path) -> Result<Value, Question> {
    let wrong = |reason: String| Question(format!("cannot read the event {}: {reason}", file.display()));
    let text = fs::read(file).map_err(|error| wrong(error.to_string()))?;
    let value: Value = serde_json::from_slice(&text).map_err(|error| wrong(format!("no JSON: {error}")))?;
    if value.is_object() { Ok(value) } else { Err(wrong("expected a JSON object".to_owned())) }
}

/// Server and `owner/name` of a remote, as URL or as `user@host:owner/name`.
fn parse_remote(url: &str) -> Option<(String, String)> {
    let (server, path) = match url.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => {
            let (host, path) = rest.split_once('/')?;
            // Credentials in a remote's URL are nobody's business.
            let host = host.rsplit('@').next()?;
            (format!("{scheme}://{host}"), path)
        }
        Some(("ssh", rest)) => {
            let (host, path) = rest.split_once('/')?;
            let host = host.rsplit('@').next()?.split(':').next()?;
            (format!("https://{host}"), path)
        }
        Some(_) => return None,
        None => {
            let (host, path) = url.split_once(':')?;
            (format!("https://{}", host.rsplit('@').next()?), path)
        }
    };
    let path = path.trim_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path);
    let mut parts = path.rsplit('/');
    let (name, owner) = (parts.next()?, parts.next()?);
    (!name.is_empty() && !owner.is_empty()).then(|| (server, format!("{owner}/{name}")))
}

/// Names and values of a dotenv file: `NAME=value`, `#` comments, `export`, quotes around a value.
///
/// # Errors
/// When the file cannot be read or a line is no pair.
pub fn read_dotenv(file: &Path) -> Result<Vec<(String, String)>, Question> {
    let text = fs::read_to_string(file).map_err(|error| Question(format!("{}: {error}", file.display())))?;
    let mut pairs = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let Some((name, value)) = line.split_once('=').filter(|(name, _)| !name.trim().is_empty()) else {
            return Err(Question(format!("{}, line {}: expected NAME=VALUE", file.display(), number + 1)));
        };
        let value = value.trim();
        let quoted = |quote: char| value.len() >= 2 && value.starts_with(quote) && value.ends_with(quote);
        let value = match value {
            _ if quoted('"') => value[1..value.len() - 1].replace("\\n", "\n").replace("\\\"", "\""),
            _ if quoted('\'') => value[1..value.len() - 1].to_owned(),
            plain => plain.split(" #").next().unwrap_or(plain).trim_end().to_owned(),
        };
        pairs.push((name.trim().to_owned(), value));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remotes_of_all_forms() {
        let both = |server: &str| Some((server.to_owned(), "owner/name".to_owned()));
        assert_eq!(parse_remote("https://git.example.org/owner/name.git"), both("https://git.example.org"));
        assert_eq!(
            parse_remote("http://user:token@localhost:3000/owner/name"),
            both("http://localhost:3000")
        );
        assert_eq!(parse_remote("git@git.example.org:owner/name.git"), both("https://git.example.org"));
        assert_eq!(
            parse_remote("ssh://git@git.example.org:2222/owner/name"),
            both("https://git.example.org")
        );
        assert_eq!(parse_remote("/srv/git/name"), None);
    }

    #[test]
    fn dotenv_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        fs::write(&file, "# c\nA=1\nexport B = \"x\\ny\"\nC='a # b'\nD=a # b\n\nE=\n").unwrap();
        let pairs = read_dotenv(&file).unwrap();
        let values: Vec<(&str, &str)> = pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(values, [("A", "1"), ("B", "x\ny"), ("C", "a # b"), ("D", "a"), ("E", "")]);
        fs::write(&file, "A=1\nrubbish\n").unwrap();
        assert!(read_dotenv(&file).unwrap_err().to_string().ends_with("line 2: expected NAME=VALUE"));
    }
}

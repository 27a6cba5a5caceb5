//! `actions/checkout` without Node: from the working tree (`exec`), or with the git program.
//!
//! Knows the inputs of `actions/checkout` v2 to v6 that a build host needs; one that it does not know makes the step
//! fail rather than be forgotten.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::events::Conclusion;

use super::actions::Use;
use super::executor::Executor;
use super::process::{Ended, Program};
use super::scope::Frame;
use super::shell;
use super::source::Git;
use super::steps::{Handed, Problem};

/// Inputs that ask for something the built-in checkout does not do, unless they are empty or false.
const UNSUPPORTED: [&str; 5] =
    ["ssh-key", "sparse-checkout", "filter", "ssh-known-hosts", "github-server-url"];

impl Executor<'_> {
    /// The checkout if it needs no action to be fetched: the working tree's own, or git's where there is no node.
    pub(super) fn checkout_without_fetching(&mut self, used: &Use<'_>) -> Result<Option<Handed>, Problem> {
        let own = self.fixed.github_text("repository");
        let asked = used.input("repository");
        if let Some(tree) = self.spec.actions.checkout_from.clone()
            && (asked.is_empty() || asked.eq_ignore_ascii_case(&own))
            && used.input("ref").is_empty()
        {
            return self.checkout_tree(&tree, used).map(Some);
        }
        let path = self.search_path(&[&self.env, used.env]);
        if shell::find("node", &path).is_none() {
            return self.checkout_with_git(used).map(Some);
        }
        Ok(None)
    }

    /// Where the files go.
    fn destination(&self, used: &Use<'_>) -> Result<PathBuf, Problem> {
        let path = Path::new(used.input("path"));
        let workspace = &self.spec.places.workspace;
        let inside = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if !inside && !path.starts_with(workspace) {
            return Err(Problem::Step(format!(
                "Input path: {:?} leads out of the workspace",
                used.input("path")
            )));
        }
        let destination = workspace.join(path);
        fs::create_dir_all(&destination)
            .map_err(|error| Problem::Step(format!("{}: {error}", destination.display())))?;
        Ok(destination)
    }

    /// Copies the working tree with what is not committed yet; ignored files stay behind.
    fn checkout_tree(&mut self, tree: &Path, used: &Use<'_>) -> Result<Handed, Problem> {
        let destination = self.destination(used)?;
        let path = self.search_path(&[&self.env, used.env]);
        let git = Git::new(&path, &self.spec.places.home);
        let commit = copy_tree(tree, &destination, &git).map_err(Problem::Step)?;
        self.log.text(&format!("Copied the working tree {} (at {commit})", tree.display()))?;
        let mut handed = Handed { conclusion: Some(Conclusion::Success), ..Handed::default() };
        handed.outputs.insert("ref".to_owned(), self.fixed.github_text("ref"));
        handed.outputs.insert("commit".to_owned(), commit);
        Ok(handed)
    }

    /// Fetches and checks out with git.
    pub(super) fn checkout_with_git(&mut self, used: &Use<'_>) -> Result<Handed, Problem> {
        for name in UNSUPPORTED {
            if !matches!(used.input(name), "" | "false") {
                return Err(Problem::Step(format!(
                    "The built-in checkout does not know the input {name:?}; install Node.js on this host to use the \
                     original action"
                )));
            }
        }
        let server = self.fixed.github_text("server_url");
        let server = server.trim_end_matches('/').to_owned();
        let own = self.fixed.github_text("repository");
        let repository = match used.input("repository") {
            "" => own.clone(),
            other => other.to_owned(),
        };
        let same = repository.eq_ignore_ascii_case(&own);
        let (reference, sha) = match used.input("ref") {
            "" if same => (self.fixed.github_text("ref"), self.fixed.github_text("sha")),
            "" => ("HEAD".to_owned(), String::new()),
            asked if is_commit(asked) => (String::new(), asked.to_owned()),
            asked => (asked.to_owned(), String::new()),
        };
        let destination = self.destination(used)?;
        let given = used.input("token");
        let token = if given.is_empty() { self.fixed.github_text("token") } else { given.to_owned() };
        self.log.masker.add(&token);
        let path = self.search_path(&[&self.env, used.env]);
        let git = Git::new(&path, &self.spec.places.home).with_token(&server, &token);
        let url = format!("{server}/{repository}");
        let mut session = Session { executor: self, git: &git, used, destination: &destination };

        if !destination.join(".git").exists() {
            session.must(&["init", "--quiet", "."])?;
            session.must(&["remote", "add", "origin", &url])?;
        }
        session.executor.log.text(&format!("Fetching {url}"))?;
        session.fetch(&reference, &sha)?;
        session.check_out(&reference, &sha)?;
        if !matches!(used.input("submodules"), "" | "false") {
            let recursive = if used.input("submodules") == "recursive" { "--recursive" } else { "--init" };
            session.must(&["submodule", "update", "--init", "--force", "--depth=1", recursive])?;
        }
        if used.input("lfs") == "true" {
            session.must(&["lfs", "pull"])?;
        }
        if !matches!(used.input("persist-credentials"), "false") {
            persist_credentials(&destination, &git)
                .map_err(|error| Problem::Step(format!("{}: {error}", destination.display())))?;
        }
        let commit = git.run(&destination, &["rev-parse", "HEAD"]).map_err(Problem::Step)?;
        let commit = commit.trim();
        let subject = git.run(&destination, &["log", "-1", "--format=%s"]).unwrap_or_default();
        self.log.text(&format!("HEAD is now {commit} {}", subject.trim()))?;
        let mut handed = Handed { conclusion: Some(Conclusion::Success), ..Handed::default() };
        handed.outputs.insert("ref".to_owned(), reference);
        handed.outputs.insert("commit".to_owned(), commit.to_owned());
        Ok(handed)
    }
}

/// Git commands of one checkout, whose output goes to the log and which stop when the job does.
struct Session<'s, 'e> {
    executor: &'s mut Executor<'e>,
    git: &'s Git,
    used: &'s Use<'s>,
    destination: &'s Path,
}

impl Session<'_, '_> {
    fn run(&mut self, arguments: &[&str]) -> Result<Ended, Problem> {
        let executor = &mut *self.executor;
        let mut environment = executor.environment(&Frame::default(), self.used.env);
        environment.insert("GIT_TERMINAL_PROMPT".to_owned(), "0".to_owned());
        if let Some((key, value)) = self.git.header() {
            environment.insert("GIT_CONFIG_COUNT".to_owned(), "1".to_owned());
            environment.insert("GIT_CONFIG_KEY_0".to_owned(), key.clone());
            environment.insert("GIT_CONFIG_VALUE_0".to_owned(), value.clone());
            executor.log.masker.add(value);
        }
        let path = &environment["PATH"];
        let file = shell::find("git", path).ok_or_else(|| {
            Problem::Step(format!("There is no git on PATH ({path}); install git on this host"))
        })?;
        let environment: Vec<(String, String)> = environment.into_iter().collect();
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let program = Program {
            file: &file,
            arguments: &arguments,
            environment: &environment,
            directory: self.destination,
        };
        let control = executor.cleanup_deadline.is_none().then_some(executor.control);
        executor.interpreter.begin(false, false);
        let Executor { output, interpreter, log, members, grace, .. } = executor;
        let ended = output
            .run(&program, self.used.deadline, control, *grace, members, &mut |bytes| {
                interpreter.take(bytes, log)
            })
            .map_err(|error| Problem::Step(format!("Cannot run git: {error}")))?;
        interpreter.end(log)?;
        Ok(ended)
    }

    fn must(&mut self, arguments: &[&str]) -> Result<(), Problem> {
        match self.run(arguments)? {
            Ended::Exit(0) => Ok(()),
            Ended::Cancelled => {
                self.executor.notice_cancel()?;
                Err(Problem::Step("The checkout was stopped.".to_owned()))
            }
            Ended::TimedOut => {
                Err(Problem::Step("The time limit was reached; the checkout was stopped.".to_owned()))
            }
            Ended::Exit(_) | Ended::Signal(_) => Err(Problem::Step(format!(
                "git {} failed; its words are above",
                arguments.first().unwrap_or(&"")
            ))),
        }
    }

    fn fetch(&mut self, reference: &str, sha: &str) -> Result<(), Problem> {
        let depth = match self.used.input("fetch-depth") {
            "" => 1,
            text => text.parse::<u32>().map_err(|_| {
                Problem::Step(format!("Input fetch-depth: expected a number, found {text:?}"))
            })?,
        };
        let tags = if self.used.input("fetch-tags") == "true" { "--tags" } else { "--no-tags" };
        let mut arguments = vec!["fetch", "--quiet", "--prune", "--no-recurse-submodules", "--force", tags];
        if depth == 0 {
            arguments.extend(["origin", "+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"]);
            if reference.starts_with("refs/pull/") {
                arguments.push(reference);
            }
            return self.must(&arguments);
        }
        let depth = format!("--depth={depth}");
        arguments.extend([depth.as_str(), "origin"]);
        if !sha.is_empty() {
            // The commit itself, since the branch may have moved on; not every server gives it out.
            let by_commit = [&arguments[..], &[sha]].concat();
            if self.run(&by_commit)? == Ended::Exit(0) {
                return Ok(());
            }
        }
        let name = if reference.is_empty() { "HEAD" } else { reference };
        self.must(&[&arguments[..], &[name]].concat())
    }

    fn check_out(&mut self, reference: &str, sha: &str) -> Result<(), Problem> {
        let full = self.used.input("fetch-depth") == "0";
        let target = match (sha, full) {
            ("", true) if reference != "HEAD" => {
                let short = reference.strip_prefix("refs/heads/").unwrap_or(reference);
                let branch = format!("refs/remotes/origin/{short}");
                let is_branch =
                    self.git.run(self.destination, &["rev-parse", "--verify", "--quiet", &branch]).is_ok();
                if is_branch { branch } else { reference.to_owned() }
            }
            ("", _) => "FETCH_HEAD".to_owned(),
            (sha, _) => sha.to_owned(),
        };
        match reference.strip_prefix("refs/heads/") {
            Some(branch) => self.must(&["checkout", "--quiet", "--force", "-B", branch, &target]),
            None => self.must(&["checkout", "--quiet", "--force", "--detach", &target]),
        }
    }
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Lets later git commands of the job use the token. It is written by hand: as an argument others could read it.
fn persist_credentials(repository: &Path, git: &Git) -> io::Result<()> {
    let Some((key, value)) = git.header() else { return Ok(()) };
    let Some(url) = key.strip_prefix("http.").and_then(|rest| rest.strip_suffix(".extraheader")) else {
        return Ok(());
    };
    let mut config = OpenOptions::new().append(true).open(repository.join(".git/config"))?;
    write!(config, "[http \"{url}\"]\n\textraheader = {value}\n")
}

/// Makes `destination` a repository with the files of `tree` as they are now; gives the commit.
fn copy_tree(tree: &Path, destination: &Path, git: &Git) -> Result<String, String> {
    let io = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
    let Ok(head) = git.run(tree, &["rev-parse", "HEAD"]) else {
        // No repository, or one without a commit: its files are what there is.
        copy_directory(tree, destination)?;
        return Ok(String::new());
    };
    let source = tree.to_string_lossy();
    git.run(destination, &["init", "--quiet", "."])?;
    git.run(destination, &["fetch", "--quiet", "--no-tags", &source, "HEAD"])?;
    git.run(destination, &["reset", "--quiet", "--soft", "FETCH_HEAD"])?;
    if let Ok(origin) = git.run(tree, &["remote", "get-url", "origin"]) {
        git.run(destination, &["remote", "add", "origin", origin.trim()])?;
    }
    let listed = git.run(tree, &["ls-files", "-z", "--cached", "--others", "--exclude-standard"])?;
    for name in listed.split('\0').filter(|name| !name.is_empty()) {
        let from = tree.join(name);
        let to = destination.join(name);
        // A file that is deleted but not committed is listed and not there.
        let Ok(meta) = fs::symlink_metadata(&from) else { continue };
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(|error| io(parent, error))?;
        }
        if meta.is_symlink() {
            let target = fs::read_link(&from).map_err(|error| io(&from, error))?;
            std::os::unix::fs::symlink(target, &to).map_err(|error| io(&to, error))?;
        } else if meta.is_file() {
            fs::copy(&from, &to).map_err(|error| io(&from, error))?;
        }
    }
    git.run(destination, &["reset", "--quiet"])?;
    Ok(head.trim().to_owned())
}

fn copy_directory(from: &Path, to: &Path) -> Result<(), String> {
    let io = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
    for entry in fs::read_dir(from).map_err(|error| io(from, error))? {
        let entry = entry.map_err(|error| io(from, error))?;
        if entry.file_name().as_bytes() == b".git" {
            continue;
        }
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(|error| io(&source, error))?;
        if kind.is_dir() {
            fs::create_dir_all(&target).map_err(|error| io(&target, error))?;
            copy_directory(&source, &target)?;
        } else if kind.is_symlink() {
            let link = fs::read_link(&source).map_err(|error| io(&source, error))?;
            std::os::unix::fs::symlink(link, &target).map_err(|error| io(&target, error))?;
        } else if kind.is_file() {
            fs::copy(&source, &target).map_err(|error| io(&source, error))?;
        }
    }
    Ok(())
}

//! `actions/checkout`: from the working tree (`exec`), or with the git program.
//!
//! The refs that are fetched, and what is checked out of them, are those of the original. The token is given to git by
//! a configuration file of its own that goes when the step is over, so it never stands in an argument.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use tempfile::TempDir;

use crate::job::process::{Ended, Program};
use crate::job::shell;
use crate::job::source::Git;
use crate::workflow::Condition;

use super::{AfterJob, Call, Executor, Handed, Problem};

pub(super) const INPUTS: [&str; 21] = [
    "repository",
    "ref",
    "token",
    "ssh-key",
    "ssh-known-hosts",
    "ssh-strict",
    "ssh-user",
    "persist-credentials",
    "path",
    "clean",
    "filter",
    "sparse-checkout",
    "sparse-checkout-cone-mode",
    "fetch-depth",
    "fetch-tags",
    "show-progress",
    "lfs",
    "submodules",
    "set-safe-directory",
    "github-server-url",
    "allow-unsafe-pr-checkout",
];

const TAGS: &str = "+refs/tags/*:refs/tags/*";

/// Credentials that later steps may use, until the job's end.
#[derive(Debug)]
pub(super) struct Persisted {
    repository: PathBuf,
    /// Configuration files, of the repository and of its submodules.
    configs: Vec<PathBuf>,
    /// Names of what was set there.
    keys: Vec<String>,
    /// The SSH key and known hosts.
    folder: Option<TempDir>,
}

fn step(message: impl Into<String>) -> Problem {
    Problem::Step(message.into())
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Problem + '_ {
    move |error| step(format!("{}: {error}", path.display()))
}

impl Executor<'_> {
    /// The working tree that this checkout is of, where jobs are run from one.
    pub(super) fn own_tree(&self, with: &[(String, String)]) -> Option<PathBuf> {
        let input = |name: &str| {
            let given = with.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
            given.map_or("", |(_, value)| value.trim())
        };
        let own = self.fixed.github_text("repository");
        let same = input("repository").is_empty() || input("repository").eq_ignore_ascii_case(&own);
        let tree = self.spec.actions.checkout_from.clone()?;
        (same && input("ref").is_empty()).then_some(tree)
    }

    /// `actions/checkout`.
    pub(super) fn checkout(&mut self, call: &Call<'_>) -> Result<Handed, Problem> {
        let workspace = self.spec.places.workspace.clone();
        let destination = destination(&workspace, call.input("path"))?;
        if let Some(tree) = self.own_tree(call.with) {
            return self.checkout_tree(call, &tree, &destination);
        }
        let wanted = self.wanted(call)?;
        let mut session = Session::open(self, call, &wanted, &destination)?;
        let done = session.run_all(&wanted);
        let Session { persisted, config, .. } = session;
        drop(config);
        if !persisted.keys.is_empty() {
            self.after(call, Condition::always(), AfterJob::Forget(persisted));
        }
        done
    }

    /// What the inputs ask for.
    fn wanted(&mut self, call: &Call<'_>) -> Result<Wanted, Problem> {
        let own = self.fixed.github_text("repository");
        let repository = match call.input("repository") {
            "" => own.clone(),
            other => other.to_owned(),
        };
        let plain =
            |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['?', '#']);
        if repository.split('/').count() != 2 || !repository.split('/').all(plain) {
            return Err(step(format!(
                "Invalid repository '{repository}'. Expected format {{owner}}/{{repo}}."
            )));
        }
        let same = repository.eq_ignore_ascii_case(&own);
        let (reference, commit) = match call.input("ref") {
            "" if same => {
                let (reference, commit) = (self.fixed.github_text("ref"), self.fixed.github_text("sha"));
                // Some events name a branch without its folder.
                if commit.is_empty() || reference.is_empty() || reference.starts_with("refs/") {
                    (reference, commit)
                } else {
                    (format!("refs/heads/{reference}"), commit)
                }
            }
            "" => (String::new(), String::new()),
            asked if is_commit(asked) => (String::new(), asked.to_owned()),
            asked if asked.starts_with('-') => return Err(step(format!("Input ref: {asked:?} is no ref"))),
            asked => (asked.to_owned(), String::new()),
        };
        let server = match call.input("github-server-url") {
            "" => self.fixed.github_text("server_url"),
            other => other.to_owned(),
        };
        let server = server.trim_end_matches('/').to_owned();
        let given = call.input("token");
        let token = if given.is_empty() { self.fixed.github_text("token") } else { given.to_owned() };
        self.log.masker.add(&token);
        let ssh_key = call.input("ssh-key");
        if !ssh_key.is_empty() {
            self.log.masker.add(ssh_key);
        }
        let host = server.split("://").nth(1).unwrap_or(&server).split(['/', ':']).next().unwrap_or_default();
        let user = match call.input("ssh-user") {
            "" => "git",
            user => user,
        };
        let url = if ssh_key.is_empty() {
            format!("{server}/{repository}")
        } else {
            format!("{user}@{host}:{repository}.git")
        };
        let depth = match call.input("fetch-depth") {
            "" => 1,
            text => text
                .parse::<i64>()
                .map_err(|_| step(format!("Input fetch-depth: expected a number, found {text:?}")))?,
        };
        let recursive = call.input("submodules").eq_ignore_ascii_case("recursive");
        Ok(Wanted {
            url,
            ssh_rewrites: vec![format!("git@{host}:"), format!("ssh://git@{host}/")],
            server,
            token,
            reference,
            commit,
            depth: u32::try_from(depth).unwrap_or(0),
            tags: call.flag("fetch-tags", false)?,
            progress: call.flag("show-progress", false)?,
            clean: call.flag("clean", true)?,
            persist: call.flag("persist-credentials", true)?,
            lfs: call.flag("lfs", false)?,
            safe: call.flag("set-safe-directory", true)?,
            sparse: call.lines("sparse-checkout"),
            cone: call.flag("sparse-checkout-cone-mode", true)?,
            filter: call.input("filter").to_owned(),
            submodules: recursive || call.input("submodules").eq_ignore_ascii_case("true"),
            recursive,
        })
    }

    /// Copies the working tree with what is not committed yet; ignored files stay behind.
    fn checkout_tree(&mut self, call: &Call<'_>, tree: &Path, destination: &Path) -> Result<Handed, Problem> {
        let git = Git::new(call.var("PATH"), &self.spec.places.home);
        let commit = copy_tree(tree, destination, &git).map_err(Problem::Step)?;
        self.log.text(&format!("Copied the working tree {} (at {commit})", tree.display()))?;
        let mut handed = Handed::default();
        handed.outputs.insert("ref".to_owned(), self.fixed.github_text("ref"));
        handed.outputs.insert("commit".to_owned(), commit);
        Ok(handed)
    }

    /// Takes back what later steps could use.
    pub(super) fn forget_credentials(&mut self, persisted: &Persisted) -> Result<(), Problem> {
        let path = self.search_path(&[&self.env]);
        let git = Git::new(&path, &self.spec.places.home);
        for config in persisted.configs.iter().filter(|config| config.is_file()) {
            let file = config.to_string_lossy();
            for key in &persisted.keys {
                // What a step has removed already need not be removed.
                let _ = git.run(&persisted.repository, &["config", "--file", &file, "--unset-all", key]);
            }
        }
        if let Some(folder) = &persisted.folder {
            let _ = fs::remove_dir_all(folder.path());
        }
        self.log.text(&format!("Removed the credentials from {}", persisted.repository.display()))?;
        Ok(())
    }
}

/// Where the files go.
fn destination(workspace: &Path, asked: &str) -> Result<PathBuf, Problem> {
    let path = Path::new(asked);
    let inside =
        |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    let below = if path.is_absolute() { path.strip_prefix(workspace).ok() } else { Some(path) };
    let Some(below) = below.filter(|below| inside(below)) else {
        return Err(step(format!("Repository path '{asked}' is not under '{}'", workspace.display())));
    };
    let destination = workspace.join(below);
    if destination.is_file() {
        fs::remove_file(&destination).map_err(at(&destination))?;
    }
    fs::create_dir_all(&destination).map_err(at(&destination))?;
    Ok(destination.components().collect())
}

/// What is to be fetched and how.
#[derive(Clone)]
struct Wanted {
    url: String,
    /// Beginnings of SSH addresses that mean the same server.
    ssh_rewrites: Vec<String>,
    server: String,
    token: String,
    reference: String,
    commit: String,
    /// 0 for all of the history.
    depth: u32,
    tags: bool,
    progress: bool,
    clean: bool,
    persist: bool,
    lfs: bool,
    safe: bool,
    sparse: Vec<String>,
    cone: bool,
    filter: String,
    submodules: bool,
    recursive: bool,
}

impl Wanted {
    fn header_key(&self) -> String {
        format!("http.{}/.extraheader", self.server)
    }

    /// What to fetch for one ref.
    fn refspecs(&self, reference: &str) -> Vec<String> {
        let mut specs = Vec::new();
        if self.tags {
            specs.push(TAGS.to_owned());
        }
        let commit = &self.commit;
        let from = if commit.is_empty() { reference } else { commit };
        if let Some(branch) = reference.strip_prefix("refs/heads/") {
            specs.push(format!("+{from}:refs/remotes/origin/{branch}"));
        } else if let Some(pull) = reference.strip_prefix("refs/pull/") {
            specs.push(format!("+{from}:refs/remotes/pull/{pull}"));
        } else if reference.starts_with("refs/tags/") {
            if !self.tags {
                specs.push(format!("+{reference}:{reference}"));
            }
        } else if !commit.is_empty() {
            specs.push(commit.clone());
        } else if reference.starts_with("refs/") {
            specs.push(format!("+{reference}:{reference}"));
        } else {
            specs.push(format!("+refs/heads/{reference}*:refs/remotes/origin/{reference}*"));
            if !self.tags {
                specs.push(format!("+refs/tags/{reference}*:refs/tags/{reference}*"));
            }
        }
        specs
    }

    /// What to fetch for all of the history.
    fn all_refspecs(&self, reference: &str) -> Vec<String> {
        let mut specs = vec!["+refs/heads/*:refs/remotes/origin/*".to_owned(), TAGS.to_owned()];
        if let Some(pull) = reference.strip_prefix("refs/pull/") {
            let from = if self.commit.is_empty() { reference } else { &self.commit };
            specs.push(format!("+{from}:refs/remotes/pull/{pull}"));
        }
        specs
    }
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Git commands of one checkout, whose output goes to the log and which stop when the job does.
struct Session<'s, 'e> {
    executor: &'s mut Executor<'e>,
    call: &'s Call<'s>,
    git: Git,
    destination: &'s Path,
    environment: Vec<(String, String)>,
    /// Holds the configuration file with the token.
    config: TempDir,
    persisted: Persisted,
}

impl<'s, 'e> Session<'s, 'e> {
    fn open(
        executor: &'s mut Executor<'e>,
        call: &'s Call<'s>,
        wanted: &Wanted,
        destination: &'s Path,
    ) -> Result<Self, Problem> {
        let config = executor.scratch_folder()?;
        let file = config.path().join("gitconfig");
        let mut text = String::new();
        let home = &executor.spec.places.home;
        // As the program itself would look for them.
        for own in [home.join(".config/git/config"), home.join(".gitconfig")] {
            text.push_str(&format!("[include]\n\tpath = {}\n", quoted(&own.to_string_lossy())));
        }
        if wanted.safe {
            text.push_str(&format!("[safe]\n\tdirectory = {}\n", quoted(&destination.to_string_lossy())));
        }
        let git = Git::new(call.var("PATH"), home).with_token(&wanted.server, &wanted.token);
        let header = git.header().map(|(_, value)| value.clone());
        if let Some(value) = &header {
            executor.log.masker.add(value);
            executor.log.masker.add(value.rsplit(' ').next().unwrap_or_default());
            text.push_str(&format!(
                "[http {}]\n\textraheader = {value}\n",
                quoted(&format!("{}/", wanted.server))
            ));
        }
        let mut folder = None;
        let mut environment = call.env.clone();
        environment.insert("GIT_TERMINAL_PROMPT".to_owned(), "0".to_owned());
        environment.insert("GCM_INTERACTIVE".to_owned(), "Never".to_owned());
        if call.input("ssh-key").is_empty() {
            text.push_str(&format!("[url {}]\n", quoted(&format!("{}/", wanted.server))));
            for rewrite in &wanted.ssh_rewrites {
                text.push_str(&format!("\tinsteadOf = {}\n", quoted(rewrite)));
            }
        } else {
            let keys = executor.scratch_folder()?;
            let command = ssh_command(call, keys.path(), home)?;
            text.push_str(&format!("[core]\n\tsshCommand = {}\n", quoted(&command)));
            environment.insert("GIT_SSH_COMMAND".to_owned(), command);
            folder = Some(keys);
        }
        write_secret(&file, &text).map_err(at(&file))?;
        environment.insert("GIT_CONFIG_GLOBAL".to_owned(), file.to_string_lossy().into_owned());
        if !wanted.lfs {
            environment.insert("GIT_LFS_SKIP_SMUDGE".to_owned(), "1".to_owned());
        }
        // The configuration file says all of it, to submodules and to LFS too.
        let git = Git::new(call.var("PATH"), home);
        let repository = destination.to_owned();
        let persisted = Persisted { repository, configs: Vec::new(), keys: Vec::new(), folder };
        let environment = environment.into_iter().collect();
        Ok(Self { executor, call, git, destination, environment, config, persisted })
    }

    fn run_all(&mut self, wanted: &Wanted) -> Result<Handed, Problem> {
        let executor = &mut *self.executor;
        executor.log.text(&format!("Syncing repository: {}", wanted.url))?;
        self.prepare(wanted)?;
        self.must(&["config", "--local", "gc.auto", "0"])?;
        let reference = match (&*wanted.reference, &*wanted.commit) {
            ("", "") => self.default_branch(wanted)?,
            (reference, _) => reference.to_owned(),
        };
        if wanted.lfs {
            self.must(&["lfs", "install", "--local"])?;
        }
        self.fetch(wanted, &reference)?;
        let (target, start) = self.target(wanted, &reference)?;
        if wanted.lfs && wanted.sparse.is_empty() {
            let from = start.as_deref().unwrap_or(&target);
            self.must(&["lfs", "fetch", "origin", from])?;
        }
        self.sparse(wanted)?;
        let mut arguments = vec!["checkout"];
        arguments.push(if wanted.progress { "--progress" } else { "--quiet" });
        arguments.push("--force");
        match &start {
            Some(start) => arguments.extend(["-B", &target, start]),
            None => arguments.push(&target),
        }
        self.must(&arguments)?;
        if wanted.submodules {
            self.submodules(wanted)?;
        }
        if wanted.persist {
            self.persist(wanted)?;
        }
        let shown = self.ask(&["log", "-1", "--format=%H%n%s"])?;
        let (commit, subject) = shown.split_once('\n').unwrap_or((&shown, ""));
        self.executor.log.text(&format!("HEAD is now {commit} {}", subject.trim()))?;
        let mut handed = Handed::default();
        handed.outputs.insert("ref".to_owned(), wanted.reference.clone());
        handed.outputs.insert("commit".to_owned(), commit.trim().to_owned());
        Ok(handed)
    }

    /// A repository of this URL and nothing in the way of it.
    fn prepare(&mut self, wanted: &Wanted) -> Result<(), Problem> {
        let destination = self.destination;
        let existing = destination.join(".git").is_dir()
            && self.ask(&["config", "--local", "--get", "remote.origin.url"]).ok().as_deref().map(str::trim)
                == Some(wanted.url.as_str());
        if existing && self.reuse(wanted)? {
            return Ok(());
        }
        let empty = fs::read_dir(destination).map_err(at(destination))?.next().is_none();
        if !empty {
            self.executor.log.text(&format!("Deleting the contents of '{}'", destination.display()))?;
            for entry in fs::read_dir(destination).map_err(at(destination))?.flatten() {
                let path = entry.path();
                crate::job::remove::tree(&path).map_err(at(&path))?;
            }
        }
        self.must(&["init", "--quiet", "."])?;
        self.must(&["remote", "add", "origin", &wanted.url])
    }

    /// Makes a repository that is there ready for another checkout; whether that went well.
    fn reuse(&mut self, wanted: &Wanted) -> Result<bool, Problem> {
        for lock in ["index.lock", "shallow.lock"] {
            let path = self.destination.join(".git").join(lock);
            if path.exists() {
                fs::remove_file(&path).map_err(at(&path))?;
            }
        }
        // A branch that is checked out cannot be replaced.
        if self.ask(&["rev-parse", "--verify", "--quiet", "HEAD"]).is_ok() {
            self.run(&["checkout", "--quiet", "--detach"])?;
        }
        let branches = self.ask(&["for-each-ref", "--format=%(refname:short)", "refs/heads"]);
        for branch in branches.unwrap_or_default().lines() {
            self.run(&["branch", "--quiet", "--delete", "--force", branch])?;
        }
        if !wanted.clean {
            return Ok(true);
        }
        Ok(self.run(&["clean", "-ffdxq"])? == Ended::Exit(0)
            && (self.ask(&["rev-parse", "--verify", "--quiet", "HEAD"]).is_err()
                || self.run(&["reset", "--quiet", "--hard", "HEAD"])? == Ended::Exit(0)))
    }

    /// The branch that a repository's HEAD names.
    fn default_branch(&mut self, wanted: &Wanted) -> Result<String, Problem> {
        let listed = self.ask(&["ls-remote", "--quiet", "--exit-code", "--symref", &wanted.url, "HEAD"])?;
        let branch = listed.lines().find_map(|line| line.strip_prefix("ref: ")?.strip_suffix("\tHEAD"));
        branch
            .map(|branch| branch.trim().to_owned())
            .ok_or_else(|| step(format!("{}: the default branch cannot be determined", wanted.url)))
    }

    fn fetch(&mut self, wanted: &Wanted, reference: &str) -> Result<(), Problem> {
        let deep = wanted.depth == 0;
        let specs = if deep { wanted.all_refspecs(reference) } else { wanted.refspecs(reference) };
        self.executor.log.text(&format!("Fetching {}", wanted.url))?;
        if self.fetch_specs(wanted, &specs)? != Ended::Exit(0) {
            // Not every server gives out a commit by its name.
            let by_name = Wanted { commit: String::new(), ..wanted.clone() };
            if deep || wanted.commit.is_empty() || reference.is_empty() {
                return Err(self.not_fetched(wanted, reference));
            }
            let specs = by_name.refspecs(reference);
            if self.fetch_specs(wanted, &specs)? != Ended::Exit(0) {
                return Err(failed("fetch"));
            }
        }
        if self.has_moved(wanted, reference) {
            if deep {
                let specs = wanted.refspecs(reference);
                self.fetch_specs(wanted, &specs)?;
            }
            if self.has_moved(wanted, reference) {
                return Err(step(format!(
                    "The ref '{reference}' does not point to the expected commit '{}'. The ref may have been updated \
                     after the workflow was triggered.",
                    wanted.commit
                )));
            }
        }
        Ok(())
    }

    /// Why a fetch has failed. Git has no words for a name that the server does not know.
    fn not_fetched(&self, wanted: &Wanted, reference: &str) -> Problem {
        let (branch, tag) = (format!("refs/heads/{reference}"), format!("refs/tags/{reference}"));
        let listed = self.ask(&["ls-remote", "--quiet", &wanted.url, &branch, &tag]);
        if !reference.starts_with("refs/") && listed.is_ok_and(|listed| listed.trim().is_empty()) {
            return step(format!("A branch or tag with the name '{reference}' could not be found"));
        }
        failed("fetch")
    }

    fn fetch_specs(&mut self, wanted: &Wanted, specs: &[String]) -> Result<Ended, Problem> {
        let mut arguments = vec!["-c", "protocol.version=2", "fetch"];
        // Tags come by the refs that are asked for.
        arguments.extend(["--no-tags", "--prune", "--no-recurse-submodules", "--force"]);
        arguments.push(if wanted.progress { "--progress" } else { "--quiet" });
        let filter = match (&*wanted.filter, wanted.sparse.is_empty()) {
            ("", true) => String::new(),
            ("", false) => "--filter=blob:none".to_owned(),
            (filter, _) => format!("--filter={filter}"),
        };
        if !filter.is_empty() {
            arguments.push(&filter);
        }
        let depth = format!("--depth={}", wanted.depth);
        if wanted.depth > 0 {
            arguments.push(&depth);
        } else if self.destination.join(".git/shallow").is_file() {
            arguments.push("--unshallow");
        }
        arguments.push("origin");
        arguments.extend(specs.iter().map(String::as_str));
        self.run(&arguments)
    }

    /// Whether what was fetched is not the commit that the event was about.
    fn has_moved(&mut self, wanted: &Wanted, reference: &str) -> bool {
        if wanted.commit.is_empty() {
            return false;
        }
        let name = if let Some(branch) = reference.strip_prefix("refs/heads/") {
            format!("refs/remotes/origin/{branch}")
        } else if reference.starts_with("refs/tags/") {
            format!("{reference}^{{commit}}")
        } else if reference.is_empty() {
            format!("{}^{{object}}", wanted.commit)
        } else {
            return false;
        };
        let found = self.ask(&["rev-parse", "--verify", "--quiet", &name]).unwrap_or_default();
        found.trim() != wanted.commit
    }

    /// What is checked out, and from where a branch begins.
    fn target(&mut self, wanted: &Wanted, reference: &str) -> Result<(String, Option<String>), Problem> {
        let remote = |branch: &str| format!("refs/remotes/origin/{branch}");
        if reference.is_empty() {
            return Ok((wanted.commit.clone(), None));
        }
        if let Some(branch) = reference.strip_prefix("refs/heads/") {
            return Ok((branch.to_owned(), Some(remote(branch))));
        }
        if let Some(pull) = reference.strip_prefix("refs/pull/") {
            return Ok((format!("refs/remotes/pull/{pull}"), None));
        }
        if reference.starts_with("refs/tags/") {
            return Ok((reference.to_owned(), None));
        }
        if reference.starts_with("refs/") {
            let commit = &wanted.commit;
            return Ok((if commit.is_empty() { reference.to_owned() } else { commit.clone() }, None));
        }
        let exists = |name: &str| self.ask(&["rev-parse", "--verify", "--quiet", name]).is_ok();
        let (branch, tag) = (remote(reference), format!("refs/tags/{reference}"));
        if exists(&branch) {
            Ok((reference.to_owned(), Some(branch)))
        } else if exists(&tag) {
            Ok((tag, None))
        } else {
            Err(step(format!("A branch or tag with the name '{reference}' could not be found")))
        }
    }

    fn sparse(&mut self, wanted: &Wanted) -> Result<(), Problem> {
        if wanted.sparse.is_empty() {
            let set = self.ask(&["config", "--local", "--get", "core.sparseCheckout"]).unwrap_or_default();
            return if set.trim() == "true" { self.must(&["sparse-checkout", "disable"]) } else { Ok(()) };
        }
        if wanted.cone {
            let mut arguments = vec!["sparse-checkout", "set", "--cone"];
            arguments.extend(wanted.sparse.iter().map(String::as_str));
            return self.must(&arguments);
        }
        self.must(&["config", "--local", "core.sparseCheckout", "true"])?;
        let file = self.destination.join(".git/info/sparse-checkout");
        let write = || -> io::Result<()> {
            fs::create_dir_all(self.destination.join(".git/info"))?;
            fs::write(&file, format!("{}\n", wanted.sparse.join("\n")))
        };
        write().map_err(at(&file))
    }

    fn submodules(&mut self, wanted: &Wanted) -> Result<(), Problem> {
        let recursive = wanted.recursive.then_some("--recursive");
        self.must(&["submodule", "sync"].into_iter().chain(recursive).collect::<Vec<_>>())?;
        let depth = format!("--depth={}", wanted.depth);
        let mut arguments = vec!["-c", "protocol.version=2", "submodule", "update", "--init", "--force"];
        if wanted.depth > 0 {
            arguments.push(&depth);
        }
        arguments.extend(recursive);
        self.must(&arguments)?;
        let mut arguments = vec!["submodule", "--quiet", "foreach"];
        arguments.extend(recursive);
        arguments.push("git config --local gc.auto 0");
        self.must(&arguments)
    }

    /// Lets later git commands of the job use the credentials. They are written by hand: as arguments others could
    /// read them.
    fn persist(&mut self, wanted: &Wanted) -> Result<(), Problem> {
        let mut configs = vec![self.destination.join(".git/config")];
        if wanted.submodules {
            let mut arguments = vec!["submodule", "--quiet", "foreach"];
            arguments.extend(wanted.recursive.then_some("--recursive"));
            arguments.push("git rev-parse --absolute-git-dir");
            let listed = self.ask(&arguments).unwrap_or_default();
            configs.extend(listed.lines().map(|folder| Path::new(folder.trim()).join("config")));
        }
        let mut text = String::new();
        let git = Git::new("", Path::new("/")).with_token(&wanted.server, &wanted.token);
        if let Some((_, value)) = git.header() {
            let url = quoted(&format!("{}/", wanted.server));
            text.push_str(&format!("[http {url}]\n\textraheader = {value}\n"));
            self.persisted.keys.push(wanted.header_key());
        }
        let ssh = self.environment.iter().find(|(name, _)| name == "GIT_SSH_COMMAND");
        if let (Some((_, command)), Some(_)) = (ssh, &self.persisted.folder) {
            text.push_str(&format!("[core]\n\tsshCommand = {}\n", quoted(command)));
            self.persisted.keys.push("core.sshCommand".to_owned());
        }
        if text.is_empty() {
            return Ok(());
        }
        for config in &configs {
            // What an earlier checkout has left there would be sent as well.
            let file = config.to_string_lossy();
            for key in &self.persisted.keys {
                let _ = self.git.run(self.destination, &["config", "--file", &file, "--unset-all", key]);
            }
            let append = || OpenOptions::new().append(true).open(config)?.write_all(text.as_bytes());
            append().map_err(at(config))?;
        }
        self.persisted.configs = configs;
        Ok(())
    }

    /// Asks git something; its answer is not for the log.
    fn ask(&self, arguments: &[&str]) -> Result<String, Problem> {
        let program = self.program()?;
        let output = std::process::Command::new(program)
            .args(arguments)
            .current_dir(self.destination)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(std::process::Stdio::null())
            .output()
            .map_err(|error| step(format!("Cannot run git: {error}")))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        Err(step(format!("git {} failed: {}", verb(arguments), words.trim())))
    }

    fn program(&self) -> Result<PathBuf, Problem> {
        let path = self.call.var("PATH");
        shell::find("git", path)
            .ok_or_else(|| step(format!("There is no git on PATH ({path}); install git on this host")))
    }

    fn run(&mut self, arguments: &[&str]) -> Result<Ended, Problem> {
        let file = self.program()?;
        let owned: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let program = Program {
            file: &file,
            arguments: &owned,
            environment: &self.environment,
            directory: self.destination,
        };
        let executor = &mut *self.executor;
        let control = executor.cleanup_deadline.is_none().then_some(executor.control);
        executor.interpreter.begin(false, false);
        let Executor { output, interpreter, log, members, grace, .. } = executor;
        let ended = output
            .run(&program, self.call.deadline, control, *grace, members, &mut |bytes| {
                interpreter.take(bytes, log)
            })
            .map_err(|error| step(format!("Cannot run git: {error}")))?;
        interpreter.end(log)?;
        match ended {
            Ended::Cancelled | Ended::TimedOut => Err(step("The checkout was stopped.")),
            ended => Ok(ended),
        }
    }

    fn must(&mut self, arguments: &[&str]) -> Result<(), Problem> {
        match self.run(arguments)? {
            Ended::Exit(0) => Ok(()),
            _ => Err(failed(verb(arguments))),
        }
    }
}

fn failed(verb: &str) -> Problem {
    step(format!("git {verb} failed; its words are above"))
}

/// The subcommand of git's arguments.
fn verb<'a>(arguments: &[&'a str]) -> &'a str {
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if *argument == "-c" {
            rest.next();
        } else {
            return argument;
        }
    }
    ""
}

/// Writes the SSH key and the known hosts, and gives the command that uses them.
fn ssh_command(call: &Call<'_>, folder: &Path, home: &Path) -> Result<String, Problem> {
    let key = folder.join("key");
    let hosts = folder.join("known_hosts");
    let mut known = String::new();
    for file in [home.join(".ssh/known_hosts"), PathBuf::from("/etc/ssh/ssh_known_hosts")] {
        known.push_str(&fs::read_to_string(file).unwrap_or_default());
        known.push('\n');
    }
    known.push_str(call.input("ssh-known-hosts"));
    known.push('\n');
    write_secret(&key, &format!("{}\n", call.input("ssh-key"))).map_err(at(&key))?;
    write_secret(&hosts, &known).map_err(at(&hosts))?;
    let path = call.var("PATH");
    let ssh = shell::find("ssh", path)
        .ok_or_else(|| step(format!("There is no ssh on PATH ({path}); install it to use ssh-key")))?;
    let mut command = format!("\"{}\" -i \"{}\"", ssh.display(), key.display());
    if call.flag("ssh-strict", true)? {
        command.push_str(" -o StrictHostKeyChecking=yes -o CheckHostIP=no");
    }
    command.push_str(&format!(" -o \"UserKnownHostsFile={}\"", hosts.display()));
    Ok(command)
}

fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}

/// A value of a git configuration file.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(reference: &str, commit: &str, tags: bool) -> Wanted {
        Wanted {
            url: String::new(),
            ssh_rewrites: Vec::new(),
            server: String::new(),
            token: String::new(),
            reference: reference.to_owned(),
            commit: commit.to_owned(),
            depth: 1,
            tags,
            progress: false,
            clean: true,
            persist: true,
            lfs: false,
            safe: true,
            sparse: Vec::new(),
            cone: true,
            filter: String::new(),
            submodules: false,
            recursive: false,
        }
    }

    #[test]
    fn refs_are_fetched_as_the_original_fetches_them() {
        let specs = |reference: &str, commit: &str, tags: bool| {
            wanted(reference, commit, tags).refspecs(reference).join(" ")
        };
        assert_eq!(specs("refs/heads/a/b", "c0", false), "+c0:refs/remotes/origin/a/b");
        assert_eq!(specs("refs/heads/a", "", false), "+refs/heads/a:refs/remotes/origin/a");
        assert_eq!(specs("refs/pull/3/head", "c0", false), "+c0:refs/remotes/pull/3/head");
        assert_eq!(specs("refs/tags/v1", "c0", false), "+refs/tags/v1:refs/tags/v1");
        assert_eq!(specs("refs/tags/v1", "c0", true), TAGS);
        assert_eq!(specs("", "c0", true), format!("{TAGS} c0"));
        assert_eq!(
            specs("v1", "", false),
            "+refs/heads/v1*:refs/remotes/origin/v1* +refs/tags/v1*:refs/tags/v1*"
        );
        assert_eq!(specs("refs/x/y", "", false), "+refs/x/y:refs/x/y");
    }

    #[test]
    fn files_stay_in_the_workspace() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        assert_eq!(destination(root, "").unwrap(), root);
        assert_eq!(destination(root, "./a/b").unwrap(), root.join("a/b"));
        assert_eq!(destination(root, &root.join("c").to_string_lossy()).unwrap(), root.join("c"));
        for wrong in ["../x", "/etc", "a/../../x"] {
            assert!(destination(root, wrong).is_err(), "{wrong}");
        }
        let sneaky = root.join("../x");
        assert!(destination(root, &sneaky.to_string_lossy()).is_err());
    }

    #[test]
    fn values_are_quoted_for_git() {
        assert_eq!(quoted("a \"b\" \\"), "\"a \\\"b\\\" \\\\\"");
        assert_eq!(verb(&["-c", "a=b", "fetch", "--x"]), "fetch");
    }
}

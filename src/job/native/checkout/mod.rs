//! `actions/checkout`: from the working tree (`exec`), or with the git program.
//!
//! The refs that are fetched, and what is checked out of them, are those of the original. The token is given to git by
//! a configuration file of its own that goes when the step is over, so it never stands in an argument.

mod credentials;
mod guard;
mod session;
mod tree;

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::job::source::Git;
use crate::workflow::Condition;

use super::{AfterJob, Call, Executor, Handed, Problem, major};

pub(super) use credentials::Persisted;
use session::Session;

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
        let persisted = session.close();
        if persisted.is_any() {
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
        // The names of branches may hold what Unicode counts as white space.
        let asked = call.raw("ref").trim_matches(['\t', '\n', '\x0b', '\x0c', '\r', ' ']);
        let (reference, commit) = match asked {
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
            asked if is_commit(asked) => (String::new(), asked.to_ascii_lowercase()),
            asked if asked.starts_with('-') => return Err(step(format!("Input ref: {asked:?} is no ref"))),
            asked => (asked.to_owned(), String::new()),
        };
        if !same || !asked.is_empty() {
            guard::refuse_fork_code(call, &repository, &reference, &commit)?;
        }
        let own_server = self.fixed.github_text("server_url");
        let own_server = own_server.trim_end_matches('/');
        let server = match call.input("github-server-url") {
            "" => own_server,
            other => other.trim_end_matches('/'),
        };
        let server = server.to_owned();
        let token = match call.given("token") {
            Some("") => return Err(step("Input required and not supplied: token")),
            Some(token) => token.to_owned(),
            // The job's own token is for its own server alone.
            None if server.eq_ignore_ascii_case(own_server) => self.fixed.github_text("token"),
            None => String::new(),
        };
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
        let recursive = call.input("submodules").eq_ignore_ascii_case("recursive");
        // What a name that says no version stands for is taken to be new.
        let version = call.uses.rsplit('@').next().and_then(major);
        Ok(Wanted {
            url,
            ssh_rewrites: vec![format!("git@{host}:"), format!("ssh://git@{host}/")],
            server,
            token,
            reference,
            commit,
            depth: depth(call.input("fetch-depth")),
            tags: self.says(call, "fetch-tags", false)?,
            progress: self.says(call, "show-progress", false)?,
            clean: self.says(call, "clean", true)?,
            persist: self.says(call, "persist-credentials", call.given("persist-credentials").is_none())?,
            lfs: self.says(call, "lfs", false)?,
            safe: self.says(call, "set-safe-directory", true)?,
            sparse: call.lines("sparse-checkout"),
            cone: self.says(call, "sparse-checkout-cone-mode", true)?,
            filter: call.input("filter").to_owned(),
            submodules: recursive || self.says(call, "submodules", false)?,
            recursive,
            outside: version.is_none_or(|version| version >= 6),
        })
    }

    /// An input that is true or anything else, as the original reads it; anything else than false is told.
    fn says(&mut self, call: &Call<'_>, name: &str, default: bool) -> Result<bool, Problem> {
        let text = call.input(name);
        if text.is_empty() {
            return Ok(default);
        }
        let yes = text.eq_ignore_ascii_case("true");
        if !yes && !text.eq_ignore_ascii_case("false") && !text.eq_ignore_ascii_case("recursive") {
            self.log
                .warning(&format!("Input {name}: {text:?} is neither true nor false and counts as false"))?;
        }
        Ok(yes)
    }

    /// Copies the working tree with what is not committed yet; ignored files stay behind.
    fn checkout_tree(&mut self, call: &Call<'_>, tree: &Path, destination: &Path) -> Result<Handed, Problem> {
        let git = Git::new(call.var("PATH"), &self.spec.places.home);
        let says =
            |name: &str| matches!(call.input(name).to_ascii_lowercase().as_str(), "true" | "recursive");
        let whole = !call.input("fetch-depth").is_empty() && depth(call.input("fetch-depth")) == 0;
        let wanted = tree::Copied { tags: whole || says("fetch-tags"), submodules: says("submodules") };
        let commit = tree::copy_tree(tree, destination, &git, wanted).map_err(Problem::Step)?;
        self.log.text(&format!("Copied the working tree {} (at {commit})", tree.display()))?;
        let mut handed = Handed::default();
        handed.outputs.insert("ref".to_owned(), self.fixed.github_text("ref"));
        handed.outputs.insert("commit".to_owned(), commit);
        Ok(handed)
    }
}

/// Where the files go.
fn destination(workspace: &Path, asked: &str) -> Result<PathBuf, Problem> {
    let mut destination = PathBuf::new();
    for part in workspace.join(asked).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                destination.pop();
            }
            other => destination.push(other),
        }
    }
    if !destination.starts_with(workspace) {
        let (path, workspace) = (destination.display(), workspace.display());
        return Err(step(format!("Repository path '{path}' is not under '{workspace}'")));
    }
    if destination.is_file() {
        fs::remove_file(&destination).map_err(at(&destination))?;
    }
    fs::create_dir_all(&destination).map_err(at(&destination))?;
    Ok(destination)
}

/// How many commits of the history are fetched, 0 for all of them: as JavaScript reads the number.
fn depth(text: &str) -> u32 {
    let number = if text.is_empty() { 1.0 } else { text.parse::<f64>().unwrap_or(0.0) };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
    let depth = number.floor() as u32;
    depth
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
    /// Credentials are kept outside of the repository.
    outside: bool,
}

impl Wanted {
    fn header_key(&self) -> String {
        format!("http.{}/.extraheader", self.server)
    }

    /// Has addresses of this server by SSH mean those by HTTP.
    fn rewrites(&self) -> String {
        let mut text = format!("[url {}]\n", credentials::quoted(&format!("{}/", self.server)));
        for rewrite in &self.ssh_rewrites {
            text.push_str(&format!("\tinsteadOf = {}\n", credentials::quoted(rewrite)));
        }
        text
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
            outside: true,
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
        assert_eq!(destination(root, "a/../b").unwrap(), root.join("b"));
        for wrong in ["../x", "/etc", "a/../../x"] {
            assert!(destination(root, wrong).is_err(), "{wrong}");
        }
        let sneaky = root.join("../x");
        assert!(destination(root, &sneaky.to_string_lossy()).is_err());
    }

    #[test]
    fn depths_are_read_as_the_original_reads_them() {
        let read = ["", "0", "3", "1.9", "-1", "abc", "1e1", "99999999999"].map(depth);
        assert_eq!(read, [1, 0, 3, 1, 0, 0, 10, u32::MAX]);
    }
}

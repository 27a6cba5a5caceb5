//! The git commands of one checkout. Their output goes to the log, and they stop when the job does.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::job::process::{Ended, Program};
use crate::job::shell;
use crate::job::source::Git;

use super::credentials::{Persisted, quoted, ssh_command, write_secret};
use super::{Call, Executor, Handed, Problem, Wanted, at, step};

/// How often the network is tried.
const TRIES: u32 = 3;

/// What a server says of a repository.
struct Remote {
    default_branch: Option<String>,
    /// Its objects are named by SHA-256.
    sha256: bool,
}

/// Whether it may go better in a moment: not where the server has answered that it will not.
fn passes(problem: &Problem) -> bool {
    let Problem::Step(message) = problem else { return false };
    const FINAL: [&str; 6] = [
        "not found",
        "Authentication failed",
        "could not read Username",
        "Permission denied",
        "403",
        "does not appear",
    ];
    !FINAL.iter().any(|words| message.contains(words))
}

/// Git commands of one checkout, whose output goes to the log and which stop when the job does.
pub(super) struct Session<'s, 'e> {
    pub(super) executor: &'s mut Executor<'e>,
    call: &'s Call<'s>,
    pub(super) git: Git,
    pub(super) destination: &'s Path,
    pub(super) environment: Vec<(String, String)>,
    /// Holds the configuration file with the token.
    config: TempDir,
    /// There was no repository before.
    pub(super) fresh: bool,
    pub(super) persisted: Persisted,
}

impl<'s, 'e> Session<'s, 'e> {
    pub(super) fn open(
        executor: &'s mut Executor<'e>,
        call: &'s Call<'s>,
        wanted: &Wanted,
        destination: &'s Path,
    ) -> Result<Self, Problem> {
        let config = executor.scratch()?;
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
            text.push_str(&wanted.rewrites());
        } else {
            let keys = executor.scratch()?;
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
        let persisted = Persisted::none(destination.to_owned(), folder);
        let environment = environment.into_iter().collect();
        let session = Self { executor, call, git, destination, environment, config, fresh: false, persisted };
        session.watch_for_errors()?;
        Ok(session)
    }

    /// Has what git says of errors stand out in the log.
    fn watch_for_errors(&self) -> Result<(), Problem> {
        let file = self.matcher();
        let text = r#"{"problemMatcher": [{"owner": "checkout-git", "pattern": [{"regexp": "^(?:fatal|error): (.*)$", "message": 1}]}]}"#;
        fs::write(&file, text).map_err(at(&file))
    }

    fn matcher(&self) -> PathBuf {
        self.config.path().join("matcher.json")
    }

    /// Gives what later steps may use, until it is taken back.
    pub(super) fn close(self) -> Persisted {
        let Self { persisted, config, .. } = self;
        drop(config);
        persisted
    }

    pub(super) fn run_all(&mut self, wanted: &Wanted) -> Result<Handed, Problem> {
        let executor = &mut *self.executor;
        executor.log.text(&format!("Syncing repository: {}", wanted.url))?;
        let remote = self.look(wanted)?;
        self.prepare(wanted, &remote)?;
        let reference = match (&*wanted.reference, &*wanted.commit) {
            ("", "") => remote
                .default_branch
                .clone()
                .ok_or_else(|| step(format!("{}: the default branch cannot be determined", wanted.url)))?,
            (reference, _) => reference.to_owned(),
        };
        if wanted.lfs {
            let path = self.call.var("PATH");
            if shell::find("git-lfs", path).is_none() {
                return Err(step(format!(
                    "There is no git-lfs on PATH ({path}), and lfs is true; install git-lfs on this host"
                )));
            }
            self.must(&["lfs", "install", "--local"])?;
        }
        self.fetch(wanted, &reference)?;
        let (target, start) = self.target(wanted, &reference)?;
        if wanted.lfs && wanted.sparse.is_empty() {
            let from = start.as_deref().unwrap_or(&target);
            let arguments = ["lfs", "fetch", "origin", from];
            if self.again(&arguments)? != Ended::Exit(0) {
                return Err(failed("lfs"));
            }
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
        handed.outputs.insert("ref".to_owned(), reference);
        handed.outputs.insert("commit".to_owned(), commit.trim().to_owned());
        Ok(handed)
    }

    /// What the server says before anything is fetched; it is asked only where that matters.
    fn look(&self, wanted: &Wanted) -> Result<Remote, Problem> {
        if !wanted.commit.is_empty() {
            return Ok(Remote { default_branch: None, sha256: wanted.commit.len() == 64 });
        }
        let mut tries = TRIES;
        let listed = loop {
            tries -= 1;
            match self.ask_server(&["ls-remote", "--quiet", "--symref", &wanted.url, "HEAD"]) {
                Ok(listed) => break listed,
                Err(problem) if tries == 0 || !passes(&problem) => return Err(problem),
                Err(_) => self.pause()?,
            }
        };
        let default_branch = listed
            .lines()
            .find_map(|line| line.strip_prefix("ref: ")?.strip_suffix("\tHEAD"))
            .map(|branch| branch.trim().to_owned());
        let sha256 = listed.lines().any(|line| line.find('\t') == Some(64));
        Ok(Remote { default_branch, sha256 })
    }

    /// A repository of this URL and nothing in the way of it.
    fn prepare(&mut self, wanted: &Wanted, remote: &Remote) -> Result<(), Problem> {
        let destination = self.destination;
        let existing = destination.join(".git").is_dir()
            && self.ask(&["config", "--local", "--get", "remote.origin.url"]).ok().as_deref().map(str::trim)
                == Some(wanted.url.as_str());
        if existing {
            if self.reuse(wanted)? {
                return self.must(&["config", "--local", "gc.auto", "0"]);
            }
            self.executor.log.warning(
                "Unable to clean or reset the repository. The repository will be recreated instead.",
            )?;
        }
        let empty = fs::read_dir(destination).map_err(at(destination))?.next().is_none();
        if !empty {
            self.executor.log.text(&format!("Deleting the contents of '{}'", destination.display()))?;
            for entry in fs::read_dir(destination).map_err(at(destination))?.flatten() {
                let path = entry.path();
                crate::job::remove::tree(&path).map_err(at(&path))?;
            }
        }
        let mut arguments = vec!["init", "--quiet"];
        arguments.extend(remote.sha256.then_some("--object-format=sha256"));
        // The name of a branch that will never be: without it git prints a page of advice.
        arguments.extend(["--initial-branch=none", "."]);
        self.must(&arguments)?;
        self.fresh = true;
        let config = destination.join(".git/config");
        let text = format!(
            "[gc]\n\tauto = 0\n[remote \"origin\"]\n\turl = {}\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n",
            quoted(&wanted.url)
        );
        let append = || fs::OpenOptions::new().append(true).open(&config)?.write_all(text.as_bytes());
        append().map_err(at(&config))
    }

    /// Makes a repository that is there ready for another checkout; whether that went well.
    fn reuse(&mut self, wanted: &Wanted) -> Result<bool, Problem> {
        for lock in ["index.lock", "shallow.lock"] {
            let path = self.destination.join(".git").join(lock);
            if path.exists() {
                fs::remove_file(&path).map_err(at(&path))?;
            }
        }
        // What an earlier checkout has left there would be sent as well.
        self.clear_credentials(wanted);
        // A branch that is checked out cannot be replaced.
        if self.ask(&["rev-parse", "--verify", "--quiet", "HEAD"]).is_ok() {
            self.run(&["checkout", "--quiet", "--detach"])?;
        }
        let branches = self.ask(&["for-each-ref", "--format=%(refname:short)", "refs/heads"]);
        for branch in branches.unwrap_or_default().lines() {
            self.run(&["branch", "--quiet", "--delete", "--force", branch])?;
        }
        self.make_way(&wanted.reference);
        if self.ask(&["submodule", "status"]).is_err() {
            self.executor.log.text("The submodules that are there are broken")?;
            return Ok(false);
        }
        if !wanted.clean {
            return Ok(true);
        }
        Ok(self.run(&["clean", "-ffdxq"])? == Ended::Exit(0)
            && (self.ask(&["rev-parse", "--verify", "--quiet", "HEAD"]).is_err()
                || self.run(&["reset", "--quiet", "--hard", "HEAD"])? == Ended::Exit(0)))
    }

    /// Removes remembered branches in whose place a branch of this name could not be: `a` where it is `a/b`, and the
    /// other way round.
    fn make_way(&self, reference: &str) {
        let wanted = reference.strip_prefix("refs/heads/").unwrap_or(reference);
        if wanted.is_empty() || wanted.starts_with("refs/") {
            return;
        }
        let listed = self.ask(&["for-each-ref", "--format=%(refname:lstrip=3)", "refs/remotes/origin"]);
        for branch in listed.unwrap_or_default().lines() {
            let below = |inner: &str, outer: &str| {
                inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'))
            };
            if below(wanted, branch) || below(branch, wanted) {
                let _ = self.ask(&["update-ref", "-d", &format!("refs/remotes/origin/{branch}")]);
            }
        }
    }

    fn fetch(&mut self, wanted: &Wanted, reference: &str) -> Result<(), Problem> {
        let deep = wanted.depth == 0;
        let specs = if deep { wanted.all_refspecs(reference) } else { wanted.refspecs(reference) };
        self.executor.log.text(&format!("Fetching {}", wanted.url))?;
        if self.fetch_specs(wanted, &specs)? != Ended::Exit(0) {
            // Not every server gives out a commit by its name.
            let by_name = Wanted { commit: String::new(), ..wanted.clone() };
            let other = (!deep && !wanted.commit.is_empty() && !reference.is_empty())
                .then(|| by_name.refspecs(reference));
            let mut tries = TRIES;
            loop {
                if let Some(specs) = &other
                    && self.fetch_specs(wanted, specs)? == Ended::Exit(0)
                {
                    break;
                }
                tries -= 1;
                if let Some(problem) = self.not_there(wanted, reference) {
                    return Err(problem);
                }
                if tries == 0 {
                    return Err(failed("fetch"));
                }
                self.pause()?;
                if self.fetch_specs(wanted, &specs)? == Ended::Exit(0) {
                    break;
                }
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

    /// Why it is no use to try again, if it is none: the server answers, and knows no such name.
    fn not_there(&self, wanted: &Wanted, reference: &str) -> Option<Problem> {
        let (branch, tag) = (format!("refs/heads/{reference}"), format!("refs/tags/{reference}"));
        let mut arguments = vec!["ls-remote", "--quiet", &wanted.url];
        match reference {
            "" => arguments.push("HEAD"),
            full if full.starts_with("refs/") => arguments.push(full),
            _ => arguments.extend([&*branch, &*tag]),
        }
        match self.ask_server(&arguments) {
            Err(problem) if passes(&problem) => None,
            Err(problem) => Some(problem),
            Ok(_) if reference.is_empty() => {
                Some(step(format!("{} does not give out the commit {}", wanted.url, wanted.commit)))
            }
            Ok(listed) if listed.trim().is_empty() => {
                Some(step(format!("A branch or tag with the name '{reference}' could not be found")))
            }
            Ok(_) => None,
        }
    }

    /// Waits before something is tried again.
    fn pause(&self) -> Result<(), Problem> {
        for _ in 0..50 {
            self.call.stop.check().map_err(|error| step(error.to_string()))?;
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Runs git, and again where it fails.
    fn again(&mut self, arguments: &[&str]) -> Result<Ended, Problem> {
        let mut tries = TRIES;
        loop {
            tries -= 1;
            match self.run(arguments)? {
                Ended::Exit(0) => return Ok(Ended::Exit(0)),
                ended if tries == 0 => return Ok(ended),
                _ => self.pause()?,
            }
        }
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
            if self.fresh {
                return Ok(());
            }
            // An earlier checkout may have been sparse. The setting it leaves would stay for all later ones.
            self.must(&["sparse-checkout", "disable"])?;
            let _ = self.ask(&["config", "--local", "--unset-all", "extensions.worktreeConfig"]);
            return Ok(());
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
            // As the original: what an earlier checkout has asked for stays.
            let mut file = fs::OpenOptions::new().create(true).append(true).open(&file)?;
            file.write_all(format!("\n{}\n", wanted.sparse.join("\n")).as_bytes())
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
    /// Asks git something of the repository; its answer is not for the log.
    pub(super) fn ask(&self, arguments: &[&str]) -> Result<String, Problem> {
        let output = self
            .command(arguments, self.destination)?
            .output()
            .map_err(|error| step(format!("Cannot run git: {error}")))?;
        answer(arguments, output.status.success(), &output.stdout, &output.stderr)
    }

    /// Asks git something that it has to ask the server. That may take long, and stops when the job does. The
    /// repository that the destination may lie in has no say.
    fn ask_server(&self, arguments: &[&str]) -> Result<String, Problem> {
        let folder = self.config.path();
        let file = |name: &str| {
            let path = folder.join(name);
            fs::File::options()
                .create(true)
                .truncate(true)
                .read(true)
                .write(true)
                .open(&path)
                .map_err(at(&path))
        };
        let (out, err) = (file("answer")?, file("words")?);
        let copy = |file: &fs::File| file.try_clone().map_err(at(folder));
        let mut child = self
            .command(arguments, folder)?
            .stdout(copy(&out)?)
            .stderr(copy(&err)?)
            .spawn()
            .map_err(|error| step(format!("Cannot run git: {error}")))?;
        let mut wait = Duration::from_millis(1);
        let status = loop {
            if let Some(status) =
                child.try_wait().map_err(|error| step(format!("Cannot run git: {error}")))?
            {
                break status;
            }
            if let Err(error) = self.call.stop.check() {
                let _ = child.kill();
                let _ = child.wait();
                return Err(step(error.to_string()));
            }
            std::thread::sleep(wait);
            wait = (wait * 2).min(Duration::from_millis(50));
        };
        let read = |name: &str| fs::read(folder.join(name)).map_err(at(folder));
        answer(arguments, status.success(), &read("answer")?, &read("words")?)
    }

    fn command(&self, arguments: &[&str], directory: &Path) -> Result<Command, Problem> {
        let mut command = Command::new(self.program()?);
        command
            .args(arguments)
            .current_dir(directory)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        Ok(command)
    }

    fn program(&self) -> Result<PathBuf, Problem> {
        let path = self.call.var("PATH");
        shell::find("git", path)
            .ok_or_else(|| step(format!("There is no git on PATH ({path}); install git on this host")))
    }

    fn run(&mut self, arguments: &[&str]) -> Result<Ended, Problem> {
        let file = self.program()?;
        let matcher = self.matcher();
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
        interpreter.take(format!("::add-matcher::{}\n", matcher.display()).as_bytes(), log)?;
        let ended = output
            .run(&program, self.call.deadline, control, *grace, members, &mut |bytes| {
                interpreter.take(bytes, log)
            })
            .map_err(|error| step(format!("Cannot run git: {error}")))?;
        interpreter.take(b"::remove-matcher owner=checkout-git::\n", log)?;
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

fn answer(arguments: &[&str], well: bool, out: &[u8], words: &[u8]) -> Result<String, Problem> {
    if well {
        return Ok(String::from_utf8_lossy(out).into_owned());
    }
    let words = String::from_utf8_lossy(words);
    Err(step(format!("git {} failed: {}", verb(arguments), words.trim())))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verb_is_behind_the_options() {
        assert_eq!(verb(&["-c", "a=b", "fetch", "--x"]), "fetch");
    }

    #[test]
    fn what_the_server_has_answered_is_not_asked_again() {
        assert!(passes(&step("fatal: unable to access 'http://h/': Could not connect to server")));
        assert!(!passes(&step("remote: Repository not found.\nfatal: repository 'http://h/x/' not found")));
    }
}

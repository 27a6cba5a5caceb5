//! Where actions come from: reading `uses`, and fetching a repository by the git program.
//!
//! A repository is fetched once for each commit, shallow, into a directory that never changes afterwards; jobs share
//! it. Git is given its token through its environment, so it never stands in an argument or in a file.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Component, Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::process::Control;
use super::spec::ActionSources;

/// The most that is read of what git prints, in bytes.
const MAX_PRINTED: u64 = 64 << 20;
/// How often it is looked whether git has to stop.
const LOOK: Duration = Duration::from_millis(20);

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
    /// What the URL in the workflow said before its host, for this server alone.
    pub login: Option<Login>,
}

/// A user and a password, as `user:password`.
#[derive(Clone, PartialEq, Eq)]
pub struct Login(String);

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login")
    }
}

impl RepositoryAction {
    /// Scheme and host of its URL.
    pub(super) fn server(&self) -> &str {
        let host = self.url.find("://").map_or(0, |scheme| scheme + 3);
        self.url[host..].find('/').map_or(self.url.as_str(), |end| &self.url[..host + end])
    }
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
        let mut login = None;
        let (base, rest) = match what.find("://") {
            Some(scheme) if matches!(&what[..scheme], "http" | "https") => {
                let begin = scheme + 3;
                let end = what[begin..].find('/').ok_or_else(form)? + begin;
                // Neither git's arguments nor the cache's folders are to hold a password.
                let host = match what[begin..end].rsplit_once('@') {
                    Some((user, host)) => {
                        login = Some(Login(crate::cache::decode(user)));
                        host
                    }
                    None => &what[begin..end],
                };
                (format!("{}{host}", &what[..begin]), &what[end + 1..])
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
            url: mirrored(format!("{base}/{name}"), sources),
            name,
            path,
            reference: reference.to_owned(),
            login,
        }))
    }
}

/// The URL, or what the configuration puts in its place. Of several that fit, the longest counts.
fn mirrored(url: String, sources: &ActionSources) -> String {
    let rest = |from: &str| -> Option<String> {
        let rest = url.strip_prefix(from.trim_end_matches('/'))?;
        (rest.is_empty() || rest.starts_with('/')).then(|| rest.to_owned())
    };
    let fitting = sources.mirrors.iter().filter_map(|(from, to)| Some((from.len(), to, rest(from)?)));
    match fitting.max_by_key(|(length, ..)| *length) {
        Some((_, to, rest)) => format!("{}{rest}", to.trim_end_matches('/')),
        None => url,
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
    /// When it is to be stopped.
    control: Option<Control>,
    deadline: Option<Instant>,
}

impl Git {
    /// Git as found on this PATH.
    #[must_use]
    pub fn new(path: &str, home: &Path) -> Self {
        Self { path: path.to_owned(), home: home.to_owned(), header: None, control: None, deadline: None }
    }

    /// Stops when the job is cancelled, or this time is there.
    #[must_use]
    pub fn until(mut self, control: Option<Control>, deadline: Option<Instant>) -> Self {
        (self.control, self.deadline) = (control, deadline);
        self
    }

    /// Sends this login to the action's server, and nothing to any other.
    #[must_use]
    pub fn with_login(mut self, action: &RepositoryAction) -> Self {
        if let Some(Login(login)) = &action.login {
            self.header = Some((
                format!("http.{}/.extraheader", action.server()),
                format!("AUTHORIZATION: basic {}", STANDARD.encode(login)),
            ));
        }
        self
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
            // A server that takes the question and never answers would be waited for for ever.
            .env("GIT_HTTP_LOW_SPEED_LIMIT", "1")
            .env("GIT_HTTP_LOW_SPEED_TIME", "120")
            .stdin(Stdio::null());
        if let Some((key, value)) = &self.header {
            command
                .env("GIT_CONFIG_COUNT", "1")
                .env("GIT_CONFIG_KEY_0", key)
                .env("GIT_CONFIG_VALUE_0", value);
        }
        let output = self.wait(&mut command)?;
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

impl Git {
    /// Runs it to its end, or ends it and what it has started.
    fn wait(&self, command: &mut Command) -> Result<Output, String> {
        let failed = |error: io::Error| format!("cannot start git: {error}");
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(failed)?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        std::thread::scope(|scope| {
            let stdout = scope.spawn(|| read(out));
            let stderr = scope.spawn(|| read(err));
            let mut stopped = false;
            let status = loop {
                if let Some(status) = child.try_wait().map_err(failed)? {
                    break status;
                }
                if !stopped && self.is_due() {
                    stopped = true;
                    // What it has started holds its pipes: the whole group has to go.
                    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
                    }
                }
                until_ended(&child, LOOK);
            };
            let joined = |done: std::thread::Result<io::Result<Vec<u8>>>| match done {
                Ok(done) => done.map_err(|error| format!("cannot read what git prints: {error}")),
                Err(_) => Err("cannot read what git prints".to_owned()),
            };
            let (stdout, stderr) = (joined(stdout.join())?, joined(stderr.join())?);
            if stopped {
                return Err("stopped: the job was cancelled, or this took too long".to_owned());
            }
            Ok(Output { status, stdout, stderr })
        })
    }

    fn is_due(&self) -> bool {
        self.control.as_ref().is_some_and(Control::is_cancelled)
            || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }
}

/// Waits for the end of a process, at most this long.
fn until_ended(child: &Child, at_most: Duration) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let Some(process) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
        return std::thread::sleep(at_most);
    };
    let at_most = Timespec { tv_sec: 0, tv_nsec: i64::from(at_most.subsec_nanos()) };
    // Whatever it says, it is looked again.
    let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&at_most));
}

/// All of a pipe, within bounds; what is more is let go by.
fn read(pipe: Option<impl Read>) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    if let Some(mut pipe) = pipe {
        (&mut pipe).take(MAX_PRINTED).read_to_end(&mut text)?;
        io::copy(&mut pipe, &mut io::sink())?;
    }
    Ok(text)
}

/// A repository at a commit, on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
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
pub fn fetch(action: &RepositoryAction, cache: &Path, git: &Git, offline: bool) -> Result<Fetched, Error> {
    let failed =
        |reason| Error::Fetch { url: action.url.clone(), reference: action.reference.clone(), reason };
    let host_and_name = action.url.split_once("://").map_or(action.url.as_str(), |(_, rest)| rest);
    let place = cache.join(host_and_name.trim_start_matches('/').replace(':', "+"));
    fs::create_dir_all(&place).map_err(|source| Error::Io { path: place.clone(), source })?;
    let Resolved { commit, reference } = resolve(action, &place, git, offline).map_err(failed)?;
    let directory = place.join(&commit);
    if directory.is_dir() {
        // When it was asked for last decides how long it is kept.
        let _ = File::open(&directory).and_then(|file| file.set_modified(std::time::SystemTime::now()));
        return Ok(Fetched { directory, commit, cached: true });
    }
    // Two jobs may want the same action at the same time: one fetches, the other waits and finds it.
    let lock_path = place.join(".lock");
    let lock = File::create(&lock_path).map_err(|source| Error::Io { path: lock_path.clone(), source })?;
    lock.lock().map_err(|source| Error::Io { path: lock_path, source })?;
    if directory.is_dir() {
        return Ok(Fetched { directory, commit, cached: true });
    }
    if offline {
        return Err(failed(format!("commit {commit} is not cached, and no server is to be asked (offline)")));
    }
    let io = |source| Error::Io { path: place.clone(), source };
    forget_broken_off(&place);
    let fresh = tempfile::Builder::new().prefix(".fetch-").tempdir_in(&place).map_err(io)?;
    let into = fresh.path();
    git.run(into, &["init", "--quiet"]).map_err(failed)?;
    // Not every server gives out a commit by its name, and a plain file server cannot shorten a history.
    git.run(into, &["fetch", "--quiet", "--depth=1", "--no-tags", &action.url, &commit])
        .or_else(|_| git.run(into, &["fetch", "--quiet", "--depth=1", "--no-tags", &action.url, &reference]))
        .or_else(|_| git.run(into, &["fetch", "--quiet", "--no-tags", &action.url, &reference]))
        .or_else(|_| git.run(into, &["fetch", "--quiet", "--no-tags", &action.url, ALL_BRANCHES, ALL_TAGS]))
        .map_err(failed)?;
    git.run(into, &["checkout", "--quiet", "--detach", &commit])
        .map_err(|error| failed(format!("the commit {commit} is not in what was fetched: {error}")))?;
    // It will never be looked at again whether it is whole, so a power cut must not leave half of it.
    rustix::fs::syncfs(File::open(into).map_err(io)?).map_err(|error| io(error.into()))?;
    fs::rename(fresh.keep(), &directory).map_err(io)?;
    Ok(Fetched { directory, commit, cached: false })
}

/// Removes what a fetch that was killed has left. Whoever calls holds the lock, so no other is under way.
fn forget_broken_off(place: &Path) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(".fetch-") {
            let _ = super::remove::tree(&entry.path());
        }
    }
}

/// Everything of a repository that a commit can be in.
const ALL_BRANCHES: &str = "+refs/heads/*:refs/remotes/origin/*";
const ALL_TAGS: &str = "+refs/tags/*:refs/tags/*";

/// What a reference stands for.
struct Resolved {
    commit: String,
    /// What to ask the server for when it does not give out a commit by its name.
    reference: String,
}

/// The commit that a reference names now: by itself, or as the server says. What it said is kept for when it cannot
/// be asked.
fn resolve(action: &RepositoryAction, place: &Path, git: &Git, offline: bool) -> Result<Resolved, String> {
    let reference = action.reference.as_str();
    let hexadecimal = reference.len() >= 4 && reference.bytes().all(|byte| byte.is_ascii_hexdigit());
    if hexadecimal && matches!(reference.len(), 40 | 64) {
        let commit = reference.to_ascii_lowercase();
        return Ok(Resolved { reference: commit.clone(), commit });
    }
    let kept = place.join(format!(".ref-{}", reference.replace('%', "%25").replace('/', "%2F")));
    let cached = || {
        let commit = fs::read_to_string(&kept).ok()?.trim().to_owned();
        let known = place.join(&commit).is_dir() && is_commit(&commit);
        known.then(|| Resolved { commit, reference: reference.to_owned() })
    };
    if offline {
        let none = || format!("{reference:?} is not cached, and no server is to be asked (offline)");
        return cached().ok_or_else(none);
    }
    let listed = match git.run(place, &["ls-remote", "--quiet", &action.url]) {
        Ok(listed) => listed,
        // Better the commit of last time than no build.
        Err(error) => return cached().ok_or(error),
    };
    let rows = || listed.lines().filter_map(|line| line.split_once('\t'));
    let find = |name: &str| rows().find(|(_, found)| *found == name).map(|(commit, _)| commit.to_owned());
    let named = find(&format!("refs/tags/{reference}^{{}}"))
        .or_else(|| find(&format!("refs/tags/{reference}")))
        .or_else(|| find(&format!("refs/heads/{reference}")))
        .or_else(|| find(reference))
        .map(|commit| Resolved { commit, reference: reference.to_owned() });
    let found = match named {
        Some(found) => found,
        None if hexadecimal => abbreviated(action, place, git, &listed)?,
        None => return Err(format!("the repository has no branch or tag {reference:?}")),
    };
    if !is_commit(&found.commit) {
        return Err(format!("the server names {:?} as a commit", found.commit));
    }
    // Only a help for later.
    let _ = fs::write(&kept, &found.commit);
    Ok(found)
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A commit by the first digits of its name: one that a branch or a tag points at, or any in the history.
fn abbreviated(action: &RepositoryAction, place: &Path, git: &Git, listed: &str) -> Result<Resolved, String> {
    let digits = action.reference.to_ascii_lowercase();
    let mut pointed: Vec<(&str, &str)> = listed
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .filter(|(commit, _)| commit.starts_with(&digits))
        .collect();
    pointed.sort_unstable();
    pointed.dedup_by_key(|(commit, _)| *commit);
    if let [(commit, name)] = pointed[..] {
        let reference = name.trim_end_matches("^{}").to_owned();
        return Ok(Resolved { commit: commit.to_owned(), reference });
    }
    // Names of commits only, where the server can leave out the files.
    let history = tempfile::Builder::new()
        .prefix(".history-")
        .tempdir_in(place)
        .map_err(|error| format!("{}: {error}", place.display()))?;
    let into = history.path();
    git.run(into, &["init", "--quiet", "--bare"])?;
    let all = |more: &[&str]| {
        let arguments = [&["fetch", "--quiet"], more, &[&action.url, ALL_BRANCHES, ALL_TAGS]].concat();
        git.run(into, &arguments)
    };
    all(&["--filter=tree:0"]).or_else(|_| all(&[]))?;
    let commit = git
        .run(into, &["rev-parse", "--verify", "--quiet", &format!("{digits}^{{commit}}")])
        .map_err(|_| format!("the repository has no branch, tag or commit {:?}", action.reference))?;
    let commit = commit.trim().to_owned();
    Ok(Resolved { reference: commit.clone(), commit })
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
            login: None,
        };
        let cache = dir.path().join("cache");
        let first = fetch(&action("v1"), &cache, &git, false).unwrap();
        assert_eq!((first.commit.as_str(), first.cached), (head.as_str(), false));
        assert!(first.directory.join("action.yml").is_file());
        for reference in ["main", &head, &head[..8]] {
            assert!(fetch(&action(reference), &cache, &git, false).unwrap().cached, "{reference}");
        }
        let error = fetch(&action("v2"), &cache, &git, false).unwrap_err().to_string();
        assert!(error.contains("no branch or tag \"v2\""), "{error}");

        // A commit in the history, to which nothing points any more.
        fs::write(repository.join("more"), "x").unwrap();
        run(&["add", "."]);
        run(&["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "-m", "two"]);
        let second = run(&["rev-parse", "HEAD"]).trim().to_owned();
        run(&[
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@example.org",
            "commit",
            "--quiet",
            "--allow-empty",
            "-m",
            "3",
        ]);
        let fetched = fetch(&action(&second[..9]), &cache, &git, false).unwrap();
        assert_eq!((fetched.commit.as_str(), fetched.cached), (second.as_str(), false));
        assert!(fetched.directory.join("more").is_file());

        // Without the server, what was resolved before is known still.
        fs::rename(&repository, dir.path().join("gone")).unwrap();
        for offline in [true, false] {
            assert_eq!(fetch(&action("v1"), &cache, &git, offline).unwrap().commit, head);
        }
        let error = fetch(&action("v9"), &cache, &git, true).unwrap_err().to_string();
        assert!(error.contains("not cached") && error.contains("offline"), "{error}");
    }

    #[test]
    fn a_login_is_kept_apart_from_its_url() {
        let parsed =
            Uses::parse("https://bob:p%40ss@git.example.org:8443/o/r/sub@v1", &ActionSources::default());
        let Ok(Uses::Repository(action)) = parsed else { panic!("{parsed:?}") };
        assert_eq!(action.url, "https://git.example.org:8443/o/r");
        assert!(!format!("{action:?}").contains("ss"), "{action:?}");
        let git = Git::new("", Path::new("/")).with_token("https://git.example.org", "t").with_login(&action);
        let (key, value) = git.header().unwrap();
        assert_eq!(key, "http.https://git.example.org:8443/.extraheader");
        assert_eq!(value, &format!("AUTHORIZATION: basic {}", STANDARD.encode("bob:p@ss")));
    }

    #[test]
    fn git_stops_when_the_job_does() {
        let control = Control::new().unwrap();
        control.cancel();
        let git = Git::new("/usr/bin:/bin", Path::new("/")).until(Some(control), None);
        // It would wait for its input for ever.
        let done = git.run(Path::new("/"), &["-c", "alias.wait=!sleep 1000", "wait"]);
        assert!(done.unwrap_err().contains("stopped"));
    }

    #[test]
    fn mirrors_stand_in_for_what_a_url_begins_with() {
        let mirrors =
            [("https://github.com", "https://m/gh"), ("https://github.com/actions/", "file:///srv/a")];
        let sources = ActionSources {
            default_url: "https://github.com".to_owned(),
            mirrors: mirrors.map(|(from, to)| (from.to_owned(), to.to_owned())).into(),
            ..ActionSources::default()
        };
        let url = |uses: &str| match Uses::parse(uses, &sources) {
            Ok(Uses::Repository(action)) => action.url,
            _ => "error".to_owned(),
        };
        assert_eq!(url("actions/cache/save@v4"), "file:///srv/a/cache");
        assert_eq!(url("owner/name@v1"), "https://m/gh/owner/name");
        assert_eq!(url("https://github.community/owner/name@v1"), "https://github.community/owner/name");
    }
}

//! Job processes: starting them, finding them again, ending them.
//!
//! A job runs in a process of its own that outlives the daemon. What is known of it is in its directory (see
//! [`JobDir`]), so that the next daemon finds it: by process id *and* start time, never by a bare id. A job whose
//! process is gone without a last event gets one here, so that its journal tells how it ended.

mod close;
mod directory;
pub mod history;
mod process;
mod trace;

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

pub use close::{Gone, close, end_without_journal};
pub use directory::{JobDir, Lock, Meta, StateDir};
pub use process::Identity;
pub use trace::{Trace, enter, sweep};

use crate::events::journal;
use crate::limits::scope;

/// Variables of the daemon that a job process gets. All others stay behind: they may hold the secrets of a service.
const ENVIRONMENT: [&str; 27] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NIX_SSL_CERT_FILE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "NIX_PATH",
    // Where the Nix store is, for keeping results in it.
    "NIX_REMOTE",
    "NIX_STORE_DIR",
    "NIX_STATE_DIR",
    "NIX_LOG_DIR",
    "NIX_CONF_DIR",
    "XDG_RUNTIME_DIR",
];

/// What a job process gets as `PATH` when the daemon has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process whose daemon was killed while it started it has become its program after this long.
const SHOWS_UP: Duration = Duration::from_secs(10);

/// Why a job process could not be looked after.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system said no.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another daemon works in this state directory.
    #[error("{}: held by another daemon ({holder}); stop it, or give this one a runner.file of its own", path.display())]
    Held {
        /// The lock.
        path: PathBuf,
        /// Who holds it, as far as that is known.
        holder: String,
        /// Its process id.
        pid: Option<u32>,
    },
    /// Nothing can be written.
    #[error("{}: the disk {what}", path.display())]
    NoRoom {
        /// A directory on it.
        path: PathBuf,
        /// Why not.
        what: String,
    },
    /// A task with this number is here already.
    #[error("{}: this task is here already", path.display())]
    Present {
        /// Its directory.
        path: PathBuf,
    },
    /// A file does not hold what it should.
    #[error("{}: {message}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The journal could not be read or written.
    #[error(transparent)]
    Journal(#[from] journal::Error),
    /// The job process could not be started.
    #[error("cannot start {}: {source}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

/// The program that job processes are started from.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    /// Each job gets a scope of systemd.
    scopes: bool,
}

impl Program {
    /// This very program. When it is replaced on disk, jobs still start from the one that runs: the reader of a
    /// journal must not be older than its writer.
    ///
    /// # Errors
    /// When the system does not say which program this is.
    pub fn this() -> io::Result<Self> {
        Ok(Self { path: crate::job::host::this_program()?, arguments: vec!["job".into()], scopes: false })
    }

    /// Another program; the job's directory becomes its last argument.
    pub fn other(path: impl Into<PathBuf>, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        let arguments = arguments.into_iter().map(Into::into).collect();
        Self { path: path.into(), arguments, scopes: false }
    }

    /// Whether each job that is started from now on gets a scope of systemd.
    pub fn set_scopes(&mut self, scopes: bool) {
        self.scopes = scopes;
    }

    fn command(&self, task: i64) -> Command {
        let replaced = std::env::current_exe().is_ok_and(|now| now != self.path) && !self.path.exists();
        if self.scopes {
            let mut command = scope::command(task);
            // By then it is the program that gives the scope which asks who it is.
            let this = PathBuf::from(format!("/proc/{}/exe", std::process::id()));
            command.arg(if replaced { &this } else { &self.path }).args(&self.arguments);
            return command;
        }
        let mut command = if replaced { Command::new("/proc/self/exe") } else { Command::new(&self.path) };
        // Whole, since it is how the job finds its program where /proc is not mounted.
        command.arg0(&self.path);
        command.args(&self.arguments);
        command
    }
}

/// What became of a job process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It runs.
    Alive,
    /// It is gone.
    Gone(Gone),
}

/// A job's process: one that this daemon started, one that it found, or none.
#[derive(Debug)]
pub struct JobProcess {
    dir: JobDir,
    child: Option<Child>,
    identity: Option<Identity>,
    ended: Option<Gone>,
    /// Since when something holds the job's lock that is no process of the job.
    unseen: Option<Instant>,
}

impl JobProcess {
    /// Starts the job in a directory. Its output goes to `job.log` there; the process makes its own session.
    ///
    /// # Errors
    /// When the process cannot be started, or cannot be written down for the next daemon.
    pub fn start(dir: JobDir, program: &Program) -> Result<Self, Error> {
        let path = dir.log();
        let log =
            OpenOptions::new().create(true).append(true).mode(0o600).open(&path).map_err(Error::io(&path))?;
        // The lock goes with the open file to the child: while it lives, even a daemon that died before it wrote
        // the process down leaves a trace by which the next one knows that this job runs.
        log.try_lock().map_err(|error| Error::Damaged {
            path: path.clone(),
            message: format!("the job runs already ({error})"),
        })?;
        let mut command = program.command(dir.task());
        command.arg(dir.path()).current_dir(dir.path()).env_clear();
        command.env("PATH", DEFAULT_PATH);
        for name in ENVIRONMENT {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        let second = log.try_clone().map_err(Error::io(&path))?;
        let none = crate::job::process::no_input().map_err(Error::io(Path::new("/dev/null")))?;
        command.stdin(none).stdout(log).stderr(second);
        let child =
            command.spawn().map_err(|source| Error::Start { program: program.path.clone(), source })?;
        drop(command);
        let identity = Identity::of(child.id());
        let process = Self { dir, child: Some(child), identity, ended: None, unseen: None };
        if let Some(identity) = process.identity {
            process.dir.write_identity(&identity)?;
        }
        Ok(process)
    }

    /// Finds the process of a job that an earlier daemon started.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn find(dir: JobDir) -> Result<Self, Error> {
        let identity = match dir.read_identity() {
            // What the power cut left of it.
            Err(Error::Damaged { .. }) => None,
            other => other?,
        };
        let mut process = Self { dir, child: None, identity, ended: None, unseen: None };
        // What cannot be told now is looked for again with its state.
        let _ = process.look_for_it();
        Ok(process)
    }

    /// Looks for a process that was started and not written down; whether there is one. The daemon that started it may
    /// have been killed before it had become its program: then only the lock tells of it, and it shows up later.
    fn look_for_it(&mut self) -> Result<bool, Error> {
        if self.identity.is_some() || !self.dir.is_locked()? {
            return Ok(false);
        }
        self.identity = process::find_by_argument(self.dir.path());
        if let Some(identity) = &self.identity {
            self.dir.write_identity(identity)?;
            return Ok(true);
        }
        // Something that a job process left behind may have the lock as well, but not for ever without a trace.
        Ok(self.unseen.get_or_insert_with(Instant::now).elapsed() < SHOWS_UP)
    }

    /// The job's directory.
    #[must_use]
    pub fn dir(&self) -> &JobDir {
        &self.dir
    }

    /// Its process id, if it ever had one.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.identity.map(|identity| identity.pid)
    }

    /// Whether the process runs, and how it ended if it does not. Cheap enough for a few times a second.
    pub fn state(&mut self) -> State {
        if let Some(gone) = self.ended {
            return State::Gone(gone);
        }
        // What cannot be written down has been seen all the same.
        if self.child.is_none() && self.look_for_it().unwrap_or(self.identity.is_some()) {
            return State::Alive;
        }
        let gone = if let Some(child) = &mut self.child {
            match child.try_wait() {
                Ok(None) => {
                    self.wake();
                    return State::Alive;
                }
                Ok(Some(status)) => Gone::from(status),
                Err(_) => Gone::Unknown,
            }
        } else {
            match &self.identity {
                None if self.dir.journal().exists() => Gone::Unknown,
                None => Gone::NeverStarted,
                Some(identity) if identity.is_alive() => {
                    self.wake();
                    return State::Alive;
                }
                Some(identity) if identity.is_of_this_boot() => Gone::Unknown,
                Some(_) => Gone::HostWentDown,
            }
        };
        self.ended = Some(gone);
        State::Gone(gone)
    }

    /// A step may have stopped the process that runs it, which would then never see its own time limit.
    fn wake(&self) {
        if let Some(identity) = self.identity.filter(Identity::is_stopped) {
            let _ = identity.signal(rustix::process::Signal::CONT);
        }
    }

    /// Ends what the job has left running when its process is gone; see [`sweep`]. May take some seconds.
    pub fn sweep(&mut self) -> usize {
        if self.state() == State::Alive { 0 } else { sweep(&self.dir) }
    }

    /// Asks the process to stop its job (SIGINT); it ends its steps and runs what must run after a cancel.
    ///
    /// # Errors
    /// When the process cannot be signalled. One that is gone is no error.
    pub fn cancel(&mut self) -> Result<(), Error> {
        if self.state() != State::Alive {
            return Ok(());
        }
        match &self.identity {
            Some(identity) => identity.signal(rustix::process::Signal::INT).map_err(|source| Error::Io {
                path: PathBuf::from(format!("process {}", identity.pid)),
                source,
            }),
            None => Err(Error::Damaged {
                path: self.dir.log(),
                message: "its process is not found yet".to_owned(),
            }),
        }
    }
}

impl From<ExitStatus> for Gone {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Exited(code),
            (None, Some(signal)) => Self::Killed(signal),
            (None, None) => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Conclusion, Event, Timestamp};
    use crate::job::spec::JobSpec;

    /// A state directory with one job in it that was never started.
    fn job() -> (tempfile::TempDir, JobDir) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let job = state.create(7, &Meta::default(), &spec(), "").unwrap();
        (dir, job)
    }

    fn spec() -> JobSpec {
        serde_json::from_value(serde_json::json!({
            "workflow": "", "workflow_file": "x.yaml", "job": null, "matrix": null, "github": {}, "inputs": {},
            "secrets": {"A": "hush"}, "vars": {}, "needs": {}, "masks": [], "env": {},
            "runner": {"name": "r", "labels": []},
            "places": {"workspace": "/x", "scratch": "/x", "tool_cache": "/x", "action_cache": "/x", "home": "/x",
                       "remove_workspace": true},
            "actions": {"default_url": "", "instance_url": "", "github_mirror": null, "embedded": true,
                        "checkout_from": null},
            "head": [], "timeout_seconds": 60
        }))
        .unwrap()
    }

    fn shell(script: &str) -> Program {
        Program::other("/bin/sh", ["-c", script, "sh"])
    }

    fn wait(process: &mut JobProcess) -> Gone {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            if let State::Gone(gone) = process.state() {
                return gone;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the process does not end");
    }

    #[test]
    fn a_process_is_started_and_its_end_is_known() {
        let (_state, dir) = job();
        let mut process =
            JobProcess::start(dir.clone(), &shell("echo out; echo err >&2; pwd; exit 3")).unwrap();
        assert_eq!(wait(&mut process), Gone::Exited(3));
        let log = std::fs::read_to_string(dir.log()).unwrap();
        assert_eq!(log, format!("out\nerr\n{}\n", dir.path().display()));
        let mut killed = JobProcess::start(dir, &shell("kill -9 $$")).unwrap();
        assert_eq!(wait(&mut killed), Gone::Killed(9));
    }

    #[test]
    fn it_has_none_of_the_daemons_variables() {
        let (_state, dir) = job();
        let mut process = JobProcess::start(dir.clone(), &shell("env")).unwrap();
        wait(&mut process);
        let log = std::fs::read_to_string(dir.log()).unwrap();
        assert!(log.contains("PATH="), "{log}");
        assert!(!log.contains("CARGO"), "{log}");
    }

    #[test]
    fn the_next_daemon_finds_it_and_cancels_it() {
        let (_state, dir) = job();
        let mut process =
            JobProcess::start(dir.clone(), &shell("trap 'exit 5' INT; while :; do sleep 0.05; done"))
                .unwrap();
        let mut found = JobProcess::find(dir).unwrap();
        assert_eq!(found.state(), State::Alive);
        assert_eq!(found.pid(), process.pid());
        std::thread::sleep(Duration::from_millis(200));
        found.cancel().unwrap();
        assert_eq!(wait(&mut process), Gone::Exited(5));
        assert_eq!(found.state(), State::Gone(Gone::Unknown));
    }

    #[test]
    fn a_process_that_was_started_but_not_written_down_is_found_by_its_lock() {
        let (_state, dir) = job();
        let mut process = JobProcess::start(dir.clone(), &shell("sleep 60")).unwrap();
        std::fs::remove_file(dir.process()).unwrap();
        assert!(dir.is_locked().unwrap());
        let mut found = JobProcess::find(dir.clone()).unwrap();
        assert_eq!(found.pid(), process.pid());
        assert!(JobProcess::start(dir.clone(), &shell("true")).is_err(), "it must not be started twice");
        process.child.as_mut().unwrap().kill().unwrap();
        wait(&mut process);
        assert_ne!(found.state(), State::Alive);
    }

    #[test]
    fn a_process_that_has_not_become_its_program_yet_is_waited_for() {
        let (_state, dir) = job();
        let log = std::fs::File::create(dir.log()).unwrap();
        log.try_lock().unwrap();
        // As if the daemon had been killed between fork and exec: the lock is all that tells of it.
        let gate = dir.path().join("gate");
        let script = "until [ -e \"$GATE\" ]; do sleep 0.05; done; exec /bin/sh -c 'sleep 60; :' sh \"$JOB\"";
        let mut child = Command::new("/bin/sh")
            .args(["-c", script])
            .env("GATE", &gate)
            .env("JOB", dir.path())
            .stdout(log)
            .spawn()
            .unwrap();
        assert!(!dir.may_start().unwrap());
        let mut found = JobProcess::find(dir.clone()).unwrap();
        assert_eq!((found.state(), found.pid()), (State::Alive, None));
        assert!(found.cancel().is_err(), "who asks must ask again");
        std::fs::write(&gate, "").unwrap();
        let start = Instant::now();
        while found.pid().is_none() && start.elapsed() < Duration::from_secs(20) {
            assert_eq!(found.state(), State::Alive);
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(found.pid(), Some(child.id()));
        assert!(dir.read_identity().unwrap().is_some());
        for process in crate::job::tree::all()
            .into_iter()
            .filter(|(_, stat)| u32::try_from(stat.parent).is_ok_and(|parent| parent == child.id()))
        {
            process.0.signal(rustix::process::Signal::KILL).unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.state(), State::Gone(Gone::Unknown));
    }

    #[test]
    fn an_id_that_another_process_has_now_is_not_taken_for_the_job() {
        let (_state, dir) = job();
        let mut identity = Identity::of(std::process::id()).unwrap();
        identity.start += 1;
        dir.write_identity(&identity).unwrap();
        assert_eq!(JobProcess::find(dir).unwrap().state(), State::Gone(Gone::Unknown));
    }

    #[test]
    fn a_process_of_an_earlier_boot_is_gone_with_its_host() {
        let (_state, dir) = job();
        let mut identity = Identity::of(std::process::id()).unwrap();
        identity.boot = 1;
        dir.write_identity(&identity).unwrap();
        assert_eq!(JobProcess::find(dir).unwrap().state(), State::Gone(Gone::HostWentDown));
    }

    #[test]
    fn a_job_whose_process_is_gone_gets_an_end_that_says_why() {
        let (_state, dir) = job();
        let time = Timestamp::from_micros(1_000_000);
        let mut writer = journal::Writer::create(&dir.journal()).unwrap();
        let step = |id: &str| crate::events::StepInfo { id: id.to_owned(), name: id.to_owned() };
        use crate::events::Sink;
        for event in [
            Event::JobStarted { time, version: "1".to_owned(), steps: vec![step("a"), step("b"), step("c")] },
            Event::StepStarted { time, step: 0 },
            Event::StepEnded { time, step: 0, outcome: Conclusion::Success, conclusion: Conclusion::Success },
            Event::StepStarted { time, step: 1 },
            Event::Row { time, text: "working".to_owned() },
        ] {
            writer.emit(&event).unwrap();
        }
        drop(writer);
        close(&dir, Gone::Killed(9), 0).unwrap();
        close(&dir, Gone::Killed(9), 0).unwrap();

        let mut reader = journal::Reader::open(&dir.journal()).unwrap();
        let events: Vec<Event> = std::iter::from_fn(|| reader.next_event().unwrap()).skip(5).collect();
        let [
            Event::Row { text, .. },
            Event::StepEnded { step: 1, outcome, .. },
            Event::StepEnded { step: 2, outcome: later, .. },
            Event::JobEnded { conclusion, .. },
        ] = &events[..]
        else {
            panic!("{events:?}")
        };
        assert!(text.contains("SIGKILL"), "{text}");
        assert_eq!(
            (*outcome, *later, *conclusion),
            (Conclusion::Failure, Conclusion::Skipped, Conclusion::Failure)
        );
    }

    #[test]
    fn rows_that_gitea_has_and_the_journal_lost_do_not_hide_the_reason() {
        let (_state, dir) = job();
        close(&dir, Gone::HostWentDown, 40).unwrap();
        let mut reader = journal::Reader::open(&dir.journal()).unwrap();
        let rows: Vec<String> = std::iter::from_fn(|| reader.next_event().unwrap())
            .filter_map(|event| if let Event::Row { text, .. } = event { Some(text) } else { None })
            .collect();
        assert!(rows.len() > 40);
        assert!(rows[40].contains("host went down"), "{}", rows[40]);
    }

    #[test]
    fn a_second_daemon_is_told_who_holds_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let lock = state.lock().unwrap();
        let error = StateDir::open(dir.path()).unwrap().lock().unwrap_err();
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        drop(lock);
        state.lock().unwrap();
    }

    #[test]
    fn a_lock_whose_holder_is_gone_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let gone = Command::new("/bin/true").spawn().and_then(|mut child| child.wait().map(|_| child.id()));
        let path = dir.path().join("daemon.lock");
        std::fs::write(&path, format!("{}\n", gone.unwrap())).unwrap();
        // What a daemon that was killed had just forked.
        let file = std::fs::File::open(&path).unwrap();
        file.try_lock().unwrap();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            drop(file);
        });
        state.lock().unwrap();
    }

    #[test]
    fn what_a_crash_left_of_a_task_is_a_job_that_never_started() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        std::fs::create_dir_all(dir.path().join("jobs/.new-12")).unwrap();
        std::fs::write(dir.path().join("jobs/.new-12/spec.json"), "{\"wor").unwrap();
        let jobs = state.jobs().unwrap();
        assert_eq!(jobs.iter().map(JobDir::task).collect::<Vec<_>>(), [12]);
        assert!(!jobs[0].may_start().unwrap());
    }

    #[test]
    fn a_task_that_was_written_down_and_not_yet_in_its_place_is_started() {
        let (state, job) = job();
        std::fs::rename(job.path(), state.path().join("jobs/.new-7")).unwrap();
        let jobs = StateDir::open(state.path()).unwrap().jobs().unwrap();
        assert_eq!(jobs.len(), 1);
        assert!(jobs[0].may_start().unwrap());
    }

    #[test]
    fn what_a_dead_job_process_left_running_is_found_without_a_control_group() {
        let (_state, dir) = job();
        let mark = format!("sower-test-{}", std::process::id());
        let trace = Trace { mark: mark.clone(), ..Trace::default() };
        dir.write_trace(&trace).unwrap();
        let mut marked = Command::new("/bin/sh")
            .args(["-c", "env -i sleep 3600 & echo $!; exec sleep 3600"])
            .env("RUNNER_TRACKING_ID", &mark)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(marked.stdout.take().unwrap()), &mut line).unwrap();
        let child = Identity::of(line.trim().parse().unwrap()).unwrap();
        assert_eq!(sweep(&dir), 2, "the marked one, and what it has started without a mark");
        marked.wait().unwrap();
        assert!(!child.is_alive());
    }
}

//! Running one process of a step: its output as it comes, its end, and its end before its time.
//!
//! All steps of a job write into one pipe. So a server that a step leaves in the background goes on printing into the
//! log instead of dying of a closed pipe, and a step is over when its process is, whoever holds the pipe.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal};

use super::spec::Patience;
use super::tree::{self, Members, Process};

/// How long a process that is to stop is given.
#[derive(Debug, Clone, Copy)]
pub struct Grace {
    /// From SIGINT to SIGTERM.
    pub interrupt: Duration,
    /// From SIGTERM to SIGKILL.
    pub terminate: Duration,
}

impl From<Patience> for Grace {
    fn from(patience: Patience) -> Self {
        Self {
            interrupt: Duration::from_millis(patience.interrupt_millis),
            terminate: Duration::from_millis(patience.terminate_millis),
        }
    }
}

impl Default for Grace {
    /// GitHub's: 7.5 s, then 2.5 s.
    fn default() -> Self {
        Patience::default().into()
    }
}

/// Tells a job that it is to stop. Copies share one state.
#[derive(Debug, Clone)]
pub struct Control {
    pipe: Arc<WakePipe>,
    told_to_end: Arc<AtomicBool>,
}

#[derive(Debug)]
struct WakePipe {
    /// Readable once the job is cancelled, and then for ever.
    read: OwnedFd,
    /// Kept open, or the reading end would report a hang-up all the time.
    write: OwnedFd,
}

impl Control {
    /// A control of a job that is not cancelled.
    ///
    /// # Errors
    /// When no file descriptor is left.
    pub fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { pipe: Arc::new(WakePipe { read, write }), told_to_end: Arc::default() })
    }

    /// Cancels the job.
    pub fn cancel(&self) {
        // A full pipe is readable, which is all that is wanted.
        let _ = rustix::io::write(&self.pipe.write, b"x");
    }

    /// Cancels the job when this process gets the signal.
    ///
    /// # Errors
    /// When the signal cannot be handled.
    pub fn cancel_on(&self, signal: i32) -> io::Result<()> {
        signal_hook::low_level::pipe::register(signal, self.pipe.write.try_clone()?)?;
        Ok(())
    }

    /// Stops the job when this process is told to end (SIGTERM), as it is when the host shuts down. Nobody has cancelled
    /// it then: see [`Control::is_told_to_end`].
    ///
    /// # Errors
    /// When the signal cannot be handled.
    pub fn end_on_terminate(&self) -> io::Result<()> {
        let signal = signal_hook::consts::SIGTERM;
        signal_hook::flag::register(signal, Arc::clone(&self.told_to_end))?;
        self.cancel_on(signal)
    }

    /// Whether the job is to stop because its process was told to end.
    #[must_use]
    pub fn is_told_to_end(&self) -> bool {
        self.told_to_end.load(Ordering::Relaxed)
    }

    /// Whether the job is to stop, for whatever reason.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        let mut fds = [PollFd::new(&self.pipe.read, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok() && fds[0].revents().contains(PollFlags::IN)
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this code.
    Exit(i32),
    /// By this signal, which was not ours.
    Signal(i32),
    /// It was stopped because its time was up.
    TimedOut,
    /// It was stopped because the job was cancelled.
    Cancelled,
}

/// What to start.
#[derive(Debug)]
pub struct Program<'a> {
    /// The program's file, absolute.
    pub file: &'a Path,
    /// Its arguments, without its name.
    pub arguments: &'a [std::ffi::OsString],
    /// Its whole environment.
    pub environment: &'a [(String, String)],
    /// Where it starts.
    pub directory: &'a Path,
}

/// The pipe into which all processes of a job print.
#[derive(Debug)]
pub struct Output {
    read: OwnedFd,
    write: OwnedFd,
    buffer: Vec<u8>,
    started: u64,
    entry: Entry,
}

/// Where new processes go on their way into a program.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    /// The files `cgroup.procs` of control groups, open for writing.
    pub groups: Option<Arc<Vec<OwnedFd>>>,
    /// Limits that each process has for itself, and what it starts.
    pub rlimits: Vec<(Resource, u64)>,
}

impl Entry {
    /// Whether there is nothing to do in a new process.
    fn is_open(&self) -> bool {
        self.groups.is_none() && self.rlimits.is_empty()
    }

    /// Runs in the new process, where nothing may be allocated.
    fn pass(&self) -> io::Result<()> {
        for group in self.groups.iter().flat_map(|groups| groups.iter()) {
            rustix::io::write(group, b"0")?;
        }
        for (resource, limit) in &self.rlimits {
            // A lower limit that is there already stays.
            let now = rustix::process::getrlimit(*resource);
            let least = |there: Option<u64>| Some(there.map_or(*limit, |there| there.min(*limit)));
            let new = Rlimit { current: least(now.current), maximum: least(now.maximum) };
            rustix::process::setrlimit(*resource, new)?;
        }
        Ok(())
    }
}

/// What the kernel's out-of-memory killer adds to the badness of steps, in thousandths of the memory: it is to pick
/// one of them and never the runner.
const STEP_BADNESS: i32 = 500;

/// Starts a process that has the badness of a step from its first moment on, and hands it down.
fn spawn(command: &mut Command) -> io::Result<Child> {
    // It is inherited, so this process takes it on for the moment. One that starts a process beside this one must not see
    // it taken back too early.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // Raising it is everybody's right, and so is going back; where /proc is not mounted there is nothing to raise.
    let mut file = File::options().read(true).write(true).open("/proc/self/oom_score_adj").ok();
    let mut text = [0; 16];
    let own = file.as_mut().and_then(|file| {
        let length = file.read(&mut text).ok()?;
        let own: i32 = std::str::from_utf8(&text[..length]).ok()?.trim().parse().ok()?;
        file.write_all(STEP_BADNESS.max(own).to_string().as_bytes()).ok().map(|()| own)
    });
    let child = command.spawn();
    if let (Some(file), Some(own)) = (&mut file, own) {
        let _ = file.write_all(own.to_string().as_bytes());
    }
    child
}

/// The standard library starts processes by `posix_spawn`, without a copy of this process's memory map, where it finds
/// this function. It looks by a weak symbol, which alone links nothing into a static binary.
#[cfg(target_env = "gnu")]
#[used]
static SPAWN_IN_A_DIRECTORY: unsafe extern "C" fn(
    *mut libc::posix_spawn_file_actions_t,
    *const libc::c_char,
) -> libc::c_int = libc::posix_spawn_file_actions_addchdir_np;

/// How much is read at once.
const CHUNK: usize = 64 * 1024;

impl Output {
    /// Opens the pipe.
    ///
    /// # Errors
    /// When no file descriptor is left.
    pub fn open() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        // Only the reading end: the steps share the other one and expect it to block.
        rustix::fs::fcntl_setfl(&read, rustix::fs::OFlags::NONBLOCK)?;
        Ok(Self { read, write, buffer: vec![0; CHUNK], started: 0, entry: Entry::default() })
    }

    /// A further end into which may be printed.
    ///
    /// # Errors
    /// When no file descriptor is left.
    pub fn end(&self) -> io::Result<OwnedFd> {
        self.write.try_clone()
    }

    /// Has every process that is started from now on go through this.
    pub fn set_entry(&mut self, entry: Entry) {
        self.entry = entry;
    }

    /// When the last process was started, in clock ticks since the host's boot; for [`Members::since`].
    #[must_use]
    pub fn started(&self) -> u64 {
        self.started
    }

    /// Runs a process until it ends or has to.
    ///
    /// `control` is `None` for a step that runs although the job is cancelled. Everything that is printed goes to
    /// `each`, which is called with an empty slice when there is nothing more to read for now.
    ///
    /// # Errors
    /// When the process cannot be started, or `each` fails; the process is stopped then.
    pub fn run(
        &mut self,
        program: &Program<'_>,
        deadline: Option<Instant>,
        control: Option<&Control>,
        grace: Grace,
        members: &Members,
        each: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<Ended> {
        let mut command = Command::new(program.file);
        command
            .args(program.arguments)
            .env_clear()
            .envs(program.environment.iter().map(|(name, value)| (OsStr::new(name), OsStr::new(value))))
            .current_dir(program.directory)
            .stdin(no_input()?)
            .stdout(Stdio::from(self.write.try_clone()?))
            .stderr(Stdio::from(self.write.try_clone()?))
            .process_group(0);
        if !self.entry.is_open() {
            let entry = self.entry.clone();
            #[expect(unsafe_code, reason = "what runs between fork and exec makes system calls only")]
            // SAFETY: `Entry::pass` neither allocates nor locks, and touches no memory that another thread may hold.
            unsafe {
                command.pre_exec(move || entry.pass());
            }
        }
        let mut child = spawn(&mut command)?;
        let pid = Pid::from_child(&child);
        self.started = tree::stat(pid).map_or(0, |stat| stat.start);
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                // Nobody could wait for it.
                let _ = rustix::process::kill_process_group(pid, Signal::KILL);
                child.wait()?;
                return Err(error.into());
            }
        };
        let since = self.started;
        let mut stop: Option<Stop> = None;
        let mut broken: Option<io::Error> = None;
        loop {
            let now = Instant::now();
            if stop.is_none() {
                let due = deadline.is_some_and(|deadline| now >= deadline);
                if due || broken.is_some() || control.is_some_and(Control::is_cancelled) {
                    stop = Some(Stop::begin(
                        if due { Ended::TimedOut } else { Ended::Cancelled },
                        pid,
                        since,
                        members,
                        now,
                    ));
                }
            }
            if let Some(stop) = &mut stop {
                stop.advance(now, grace, members);
                if stop.given_up(now) {
                    return Ok(stop.reason);
                }
            }
            let next = stop.as_ref().map_or(deadline, |stop| Some(stop.next(grace)));
            let mut fds = Vec::with_capacity(3);
            fds.push(PollFd::new(&pidfd, PollFlags::IN));
            fds.push(PollFd::new(&self.read, PollFlags::IN));
            if let (Some(control), None) = (control, &stop) {
                fds.push(PollFd::new(&control.pipe.read, PollFlags::IN));
            }
            wait(&mut fds, next)?;
            let ended = fds[0].revents().contains(PollFlags::IN);
            let readable = fds[1].revents().contains(PollFlags::IN);
            drop(fds);
            if readable || ended {
                // What the process printed before it ended is in the pipe by now.
                let drained = self.drain(ended, each);
                if broken.is_none() {
                    broken = drained.err();
                }
            }
            if ended {
                let status = child.wait()?;
                if let Some(error) = broken {
                    return Err(error);
                }
                return Ok(match (stop, status.code(), status.signal()) {
                    (Some(stop), ..) => stop.reason,
                    (None, Some(code), _) => Ended::Exit(code),
                    (None, None, signal) => Ended::Signal(signal.unwrap_or_default()),
                });
            }
        }
    }

    /// Reads what is there: one chunk, or all of it when the process has ended.
    fn drain(&mut self, all: bool, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        // A background process that floods the pipe must not keep a step from ending.
        let mut left = if all { 64 } else { 1 };
        while left > 0 {
            left -= 1;
            match rustix::io::read(&self.read, &mut self.buffer) {
                Ok(0) | Err(rustix::io::Errno::AGAIN) => break,
                Ok(read) => each(&self.buffer[..read])?,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        each(&[])
    }

    /// Reads what processes in the background have printed since the last step.
    ///
    /// # Errors
    /// When `each` fails.
    pub fn drain_rest(&mut self, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        self.drain(true, each)
    }
}

fn wait(fds: &mut [PollFd<'_>], until: Option<Instant>) -> io::Result<()> {
    let timeout = until.map(|until| {
        let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: i64::from(left.subsec_nanos()) }
    });
    match poll(fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A process on its way out: SIGINT, SIGTERM, SIGKILL to it and all that it started.
struct Stop {
    reason: Ended,
    pid: Pid,
    /// When the process was started: what is older belongs to an earlier step.
    started: u64,
    since: Instant,
    stage: u8,
}

impl Stop {
    fn begin(reason: Ended, pid: Pid, started: u64, members: &Members, now: Instant) -> Self {
        // As a terminal does: the shell and what it runs in the foreground; then what has left its group. Nothing gets
        // it twice: many programs take a second one for impatience.
        let elsewhere = |process: &Process| {
            tree::stat(process.pid).is_some_and(|stat| stat.group != pid.as_raw_nonzero().get())
        };
        let others: Vec<Process> = members.since(started).into_iter().filter(elsewhere).collect();
        let _ = rustix::process::kill_process_group(pid, Signal::INT);
        let _ = rustix::process::kill_process_group(pid, Signal::CONT);
        for process in others {
            let _ = process.signal(Signal::INT);
            let _ = process.signal(Signal::CONT);
        }
        Self { reason, pid, started, since: now, stage: 0 }
    }

    fn advance(&mut self, now: Instant, grace: Grace, members: &Members) {
        let elapsed = now.duration_since(self.since);
        if self.stage == 0 && elapsed >= grace.interrupt {
            self.stage = 1;
            members.signal(self.started, Signal::TERM);
            members.signal(self.started, Signal::CONT);
        }
        if self.stage >= 1 && elapsed >= grace.interrupt + grace.terminate {
            // Again at each turn: what forks meanwhile must go too.
            self.stage = 2;
            // Also where /proc does not tell what there is.
            let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
            members.signal(self.started, Signal::KILL);
        }
    }

    fn next(&self, grace: Grace) -> Instant {
        match self.stage {
            0 => self.since + grace.interrupt,
            1 => self.since + grace.interrupt + grace.terminate,
            _ => Instant::now() + Duration::from_millis(100),
        }
    }

    /// A process that not even SIGKILL ends sits in the kernel (a dead network mount): nobody can wait for that.
    fn given_up(&self, now: Instant) -> bool {
        self.stage == 2 && now.duration_since(self.since) > Duration::from_secs(60)
    }
}

/// Standard input for a process that is to have none: `/dev/null`, or a pipe that has ended where there is no `/dev`.
///
/// # Errors
/// When no file descriptor is left.
pub fn no_input() -> io::Result<Stdio> {
    match std::fs::File::open("/dev/null") {
        Ok(null) => Ok(null.into()),
        Err(_) => Ok(io::pipe()?.0.into()),
    }
}

/// Name of a signal, such as `SIGKILL`.
#[must_use]
pub fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

/// Whether a path leads to a directory that a process can start in.
///
/// # Errors
/// What the system says of it, or `NotADirectory`.
pub fn check_directory(path: &Path) -> io::Result<()> {
    if std::fs::metadata(path)?.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Run {
        ended: Ended,
        printed: String,
    }

    fn sh(script: &str, deadline: Option<Duration>, control: Option<&Control>, grace: Grace) -> Run {
        let mut printed = Vec::new();
        let ended = Output::open()
            .unwrap()
            .run(
                &Program {
                    file: Path::new("/bin/sh"),
                    arguments: &["-c".into(), script.into()],
                    environment: &[("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
                    directory: Path::new("/"),
                },
                deadline.map(|after| Instant::now() + after),
                control,
                grace,
                &Members::tracked("no-such-job".to_owned()),
                &mut |bytes| {
                    printed.extend_from_slice(bytes);
                    Ok(())
                },
            )
            .unwrap();
        Run { ended, printed: String::from_utf8(printed).unwrap() }
    }

    #[test]
    fn both_streams_in_order_and_the_exit_code() {
        let run = sh("echo one; echo two >&2; echo three; exit 7", None, None, Grace::default());
        assert_eq!(run.ended, Ended::Exit(7));
        assert_eq!(run.printed, "one\ntwo\nthree\n");
    }

    #[test]
    fn everything_that_was_printed_is_there_when_it_has_ended() {
        let run = sh("seq 100000", None, None, Grace::default());
        assert_eq!(run.printed.lines().count(), 100_000);
    }

    #[test]
    fn a_grandchild_that_holds_the_pipe_does_not_hold_the_step() {
        let run = sh("sleep 60 & echo $!", None, None, Grace::default());
        assert_eq!(run.ended, Ended::Exit(0));
        let pid = Pid::from_raw(run.printed.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
    }

    #[test]
    fn the_signal_is_told() {
        assert_eq!(sh("kill -9 $$", None, None, Grace::default()).ended, Ended::Signal(9));
    }

    #[test]
    fn time_up_interrupts_and_lets_traps_run() {
        let script = "trap 'echo trapped; exit 3' INT; while :; do sleep 0.05; done";
        let run = sh(script, Some(Duration::from_secs(5)), None, Grace::default());
        assert_eq!(run.ended, Ended::TimedOut);
        assert_eq!(run.printed, "trapped\n");
    }

    #[test]
    fn cancelling_stops_a_running_process() {
        let control = Control::new().unwrap();
        assert!(!control.is_cancelled());
        let other = control.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            other.cancel();
        });
        assert_eq!(sh("sleep 60", None, Some(&control), Grace::default()).ended, Ended::Cancelled);
        assert!(control.is_cancelled());
    }
}

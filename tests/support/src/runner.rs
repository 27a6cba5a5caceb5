//! The program under test as a person runs it: registered, started, stopped, killed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// A runner with a state directory of its own. Dropping it ends the daemon, its jobs and whatever they left behind.
#[derive(Debug)]
pub struct Runner {
    program: PathBuf,
    folder: tempfile::TempDir,
    daemon: Option<Child>,
    wrapper: Vec<String>,
}

impl Runner {
    /// Makes the state directory, with a configuration for `capacity` jobs at a time.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn new(program: &str, capacity: usize) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("runner-").tempdir()?;
        let home = folder.path().join("home");
        fs::create_dir(&home)?;
        let config = format!(
            "log:\n  level: debug\nrunner:\n  file: {}\n  capacity: {capacity}\n\
             host:\n  home: {}\n",
            folder.path().join("state/.runner").display(),
            home.display(),
        );
        fs::create_dir(folder.path().join("state"))?;
        fs::write(folder.path().join("config.yaml"), config)?;
        Ok(Self { program: program.into(), folder, daemon: None, wrapper: Vec::new() })
    }

    /// A folder of this runner's own, for files by which test and job talk.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The file that registering writes.
    #[must_use]
    pub fn state_file(&self) -> PathBuf {
        self.folder.path().join("state/.runner")
    }

    /// The configuration.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("config.yaml")
    }

    /// Sets a key of the section `runner` of the configuration.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn set(&self, key: &str, value: &str) -> io::Result<()> {
        let text = fs::read_to_string(self.config_file())?;
        let text = text.replacen("\nrunner:\n", &format!("\nrunner:\n  {key}: {value}\n"), 1);
        fs::write(self.config_file(), text)
    }

    /// Starts the daemon by another program, which gets the daemon's command line as its last arguments.
    pub fn wrap(&mut self, wrapper: &[&str]) {
        self.wrapper = wrapper.iter().map(|&word| word.to_owned()).collect();
    }

    /// The directory of a task.
    #[must_use]
    pub fn job_folder(&self, task: i64) -> PathBuf {
        self.folder.path().join("state/jobs").join(task.to_string())
    }

    /// The process that runs a task.
    #[must_use]
    pub fn job_process(&self, task: i64) -> Option<u32> {
        let text = fs::read(self.job_folder(task).join("process.json")).ok()?;
        let process: serde_json::Value = serde_json::from_slice(&text).ok()?;
        process["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok())
    }

    /// Runs the program to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, arguments: &[&str]) -> io::Result<Output> {
        self.command(arguments).stdin(Stdio::null()).output()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.folder.path().join("home"))
            .env("LANG", "C.UTF-8")
            .env("RUST_BACKTRACE", "0");
        command
    }

    /// Registers without questions.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn register(&self, url: &str, token: &str, labels: &str, more: &[&str]) -> io::Result<Output> {
        let config = self.config_file();
        let config = config.to_string_lossy();
        let mut arguments = vec![
            "register",
            "--no-interactive",
            "--instance",
            url,
            "--token",
            token,
            "--name",
            "under-test",
            "--labels",
            labels,
            "-c",
            &config,
        ];
        arguments.extend(more);
        self.run(&arguments)
    }

    /// Starts the daemon.
    ///
    /// # Errors
    /// When it runs already or cannot be started.
    pub fn start(&mut self, more: &[&str]) -> io::Result<()> {
        if self.daemon.is_some() {
            return Err(io::Error::other("the daemon runs already"));
        }
        let log = File::options().create(true).append(true).open(self.log_file())?;
        let config = self.config_file();
        let config = config.to_string_lossy();
        let mut arguments = vec!["daemon", "-c", &config];
        arguments.extend(more);
        let mut command = self.command(&arguments);
        if let Some((program, first)) = self.wrapper.split_first() {
            let inner = std::mem::replace(&mut command, Command::new(program));
            command.args(first).arg(inner.get_program()).args(inner.get_args()).env_clear();
            for (name, value) in inner.get_envs() {
                command.env(name, value.unwrap_or_default());
            }
            command.current_dir(self.folder.path());
        }
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        self.daemon = Some(child);
        Ok(())
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("daemon.log")
    }

    /// What the daemon has said of itself so far.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read(self.log_file()).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// Process id of the daemon.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// Kills the daemon, and nothing but the daemon, without warning.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill(&mut self) -> io::Result<()> {
        let mut daemon = self.daemon.take().ok_or_else(|| io::Error::other("no daemon"))?;
        daemon.kill()?;
        daemon.wait()?;
        Ok(())
    }

    /// Sends a signal, such as `TERM`, to the daemon.
    ///
    /// # Errors
    /// When there is none.
    pub fn signal(&self, name: &str) -> io::Result<()> {
        let pid = self.pid().ok_or_else(|| io::Error::other("no daemon"))?;
        signal(pid, name)
    }

    /// Waits for the daemon to leave.
    ///
    /// # Errors
    /// When there is none, or it has not left after `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<ExitStatus> {
        let daemon = self.daemon.as_mut().ok_or_else(|| io::Error::other("no daemon"))?;
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = daemon.try_wait()? {
                self.daemon = None;
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the daemon has not left"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Processes that belong to this runner: their arguments or their working directory name its folder.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let folder = self.folder.path();
        let name = folder.to_string_lossy().into_owned();
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| {
                let process = PathBuf::from(format!("/proc/{pid}"));
                let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&arguments).contains(&name)
                    || fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder))
            })
            .filter(|pid| *pid != std::process::id())
            .collect()
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        for _ in 0..50 {
            let left = self.processes();
            if left.is_empty() {
                break;
            }
            for pid in left {
                let _ = signal(pid, "KILL");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if std::thread::panicking() {
            eprintln!("the daemon said:\n{}", self.said());
        }
    }
}

/// Sends a signal, such as `KILL`, to a process.
///
/// # Errors
/// When there is no such process.
pub fn signal(pid: u32, name: &str) -> io::Result<()> {
    let status = Command::new("kill").args(["-s", name, &pid.to_string()]).stderr(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("no process {pid}"))) }
}

//! A real sshd on a port of loopback, with keys of its own, for tests of everything that goes over SSH.

use std::fs;
use std::io::{self, Read as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::ports::free_address;

/// Where Debian puts it. sshd insists on being called by its full path.
const PROGRAM: &str = "/usr/sbin/sshd";
/// How long it may take to listen.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running sshd. It lets the user that the tests run as in, with the key [`Sshd::key`]. Killed when dropped, with its
/// sessions.
#[derive(Debug)]
pub struct Sshd {
    dir: tempfile::TempDir,
    port: u16,
    process: Option<Child>,
}

impl Sshd {
    /// Makes keys and starts it.
    ///
    /// # Errors
    /// If sshd or ssh-keygen is not there, or it does not listen.
    pub fn start() -> io::Result<Self> {
        if !Path::new(PROGRAM).is_file() {
            return Err(io::Error::other(format!("{PROGRAM} is missing: `make test-parts` installs it")));
        }
        let dir = tempfile::Builder::new().prefix("sshd-").tempdir()?;
        let port = free_address()?.port();
        let mut sshd = Self { dir, port, process: None };
        sshd.make_key("host_key", "ed25519", "")?;
        sshd.make_key("user_key", "ed25519", "")?;
        sshd.authorize("user_key")?;
        let here = sshd.dir.path().display();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {here}/host_key\nPidFile none\nUsePAM no\n\
             StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n\
             AuthorizedKeysFile {here}/authorized_keys\nSubsystem sftp internal-sftp\nLogLevel ERROR\n"
        );
        fs::write(sshd.path("sshd_config"), config)?;
        sshd.write_known_hosts()?;
        sshd.go_on()?;
        Ok(sshd)
    }

    /// Starts it again after [`Sshd::kill`], on the same port.
    ///
    /// # Errors
    /// If it does not listen.
    pub fn go_on(&mut self) -> io::Result<()> {
        // Debian's wants its empty directory for unprivileged children.
        fs::create_dir_all("/run/sshd")?;
        self.process = Some(self.spawn()?);
        let began = Instant::now();
        while !self.greets() {
            if began.elapsed() > PATIENCE {
                let log = fs::read_to_string(self.path("log")).unwrap_or_default();
                return Err(io::Error::other(format!("sshd does not listen: {log}")));
            }
            thread::sleep(Duration::from_millis(20));
            // A session that one killed before had just begun may hold the port for a moment longer.
            let ended = self.process.as_mut().and_then(|process| process.try_wait().ok()?);
            if ended.is_some() {
                self.process = Some(self.spawn()?);
            }
        }
        Ok(())
    }

    fn spawn(&self) -> io::Result<Child> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("log"))?;
        Command::new(PROGRAM)
            .arg("-D")
            .arg("-e")
            .arg("-f")
            .arg(self.path("sshd_config"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
    }

    /// Whether an sshd speaks on the port. That a connection comes about says less: a port on which nobody accepts any
    /// more does that too, as long as anybody holds it.
    fn greets(&self) -> bool {
        let ask = || -> io::Result<[u8; 4]> {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            let mut begin = [0; 4];
            stream.read_exact(&mut begin)?;
            Ok(begin)
        };
        ask().is_ok_and(|begin| &begin == b"SSH-")
    }

    /// Kills it and all its sessions, as a power cut would: nobody says goodbye.
    pub fn kill(&mut self) {
        self.drop_sessions();
        let Some(mut process) = self.process.take() else { return };
        let _ = process.kill();
        let _ = process.wait();
    }

    /// Kills the sessions and leaves the listener: connections that are lost. What they started goes on.
    pub fn drop_sessions(&self) {
        // A session is a child of the listener, or a grandchild.
        for session in self.sessions() {
            let _ = Command::new("kill").args(["-KILL", &session.to_string()]).stderr(Stdio::null()).status();
        }
    }

    fn sessions(&self) -> Vec<u32> {
        let Some(listener) = self.process.as_ref().map(Child::id) else { return Vec::new() };
        let mut found = children(listener);
        let mut index = 0;
        while index < found.len() {
            let of_sshd: Vec<u32> = children(found[index]).into_iter().filter(|pid| is_sshd(*pid)).collect();
            found.extend(of_sshd);
            index += 1;
        }
        found
    }

    /// The port on 127.0.0.1.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The private key that it lets in.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.path("user_key")
    }

    /// A known_hosts with its key.
    #[must_use]
    pub fn known_hosts(&self) -> PathBuf {
        self.path("known_hosts")
    }

    /// A file in its directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The fingerprint of its host key, as `ssh-keygen -l` prints it.
    ///
    /// # Errors
    /// If ssh-keygen fails.
    pub fn fingerprint(&self) -> io::Result<String> {
        let output = Command::new("ssh-keygen").arg("-lf").arg(self.path("host_key.pub")).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split(' ')
            .nth(1)
            .map(str::to_owned)
            .ok_or_else(|| io::Error::other("ssh-keygen says no fingerprint"))
    }

    /// Makes a pair of keys in its directory: `kind` as ssh-keygen names it, `passphrase` may be empty.
    ///
    /// # Errors
    /// If ssh-keygen is not there or fails.
    pub fn make_key(&self, name: &str, kind: &str, passphrase: &str) -> io::Result<PathBuf> {
        let path = self.path(name);
        let output = Command::new("ssh-keygen")
            .args(["-q", "-t", kind, "-N", passphrase, "-C", name, "-f"])
            .arg(&path)
            .output()
            .map_err(|error| {
                io::Error::other(format!("ssh-keygen: {error}: `make test-parts` installs it"))
            })?;
        if !output.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        Ok(path)
    }

    /// Lets the key of that name in.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn authorize(&self, name: &str) -> io::Result<()> {
        let line = fs::read_to_string(self.path(&format!("{name}.pub")))?;
        let list = self.path("authorized_keys");
        let before = fs::read_to_string(&list).unwrap_or_default();
        fs::write(&list, format!("{before}{line}"))?;
        fs::set_permissions(&list, fs::Permissions::from_mode(0o600))
    }

    /// Gives it another host key; known_hosts keeps the old one. Takes effect when it is started again.
    ///
    /// # Errors
    /// If the key cannot be made.
    pub fn change_host_key(&self) -> io::Result<()> {
        for name in ["host_key", "host_key.pub"] {
            fs::remove_file(self.path(name))?;
        }
        self.make_key("host_key", "ed25519", "").map(drop)
    }

    fn write_known_hosts(&self) -> io::Result<()> {
        let key = fs::read_to_string(self.path("host_key.pub"))?;
        fs::write(self.known_hosts(), format!("[127.0.0.1]:{} {key}", self.port))
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// From /proc, because not every kernel lists children.
fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // `pid (name) state parent …`; the name may hold anything.
        let after = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        after.split(' ').nth(1).is_some_and(|of| of == parent.to_string())
    })
    .collect()
}

fn is_sshd(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sshd")
}

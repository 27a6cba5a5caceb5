//! A connection for threads that block: its own thread drives it, so that tunnels go on while nobody looks.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::thread;

use tokio::runtime::{self, Handle};
use tokio::sync::oneshot;

use super::{Error, Exit, Options, Piece, Process, Session, Sftp, Status, Target, Tunnel};

/// How much of a program's stdin is sent at once, in bytes.
const PIECE: usize = 32 << 10;

/// A connection that is logged in, for threads that block. Not for use inside an async runtime: see [`Session`] there.
pub struct Connection {
    session: Arc<Session>,
    target: Target,
    options: Options,
    runtime: Handle,
    /// Ends the thread when dropped.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// What a program on the far side said, and how it ended.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub exit: Exit,
    /// Its stdout, as much as was to be kept.
    pub stdout: Vec<u8>,
    /// Its stderr, as much as was to be kept.
    pub stderr: Vec<u8>,
}

impl Connection {
    /// Connects and logs in.
    ///
    /// # Errors
    /// See [`Session::connect`].
    pub fn open(target: &Target, options: &Options) -> Result<Self, Error> {
        let local = |source| Error::Local { what: "a thread for SSH", source };
        let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(local)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::Builder::new()
            .name("ssh".to_owned())
            .spawn(move || {
                // Either way it is over: told, or the owner is gone.
                let _ = runtime.block_on(stopped);
            })
            .map_err(local)?;
        // The thread drives what this one waits for.
        let session = handle.block_on(Session::connect(target, options));
        match session {
            Ok(session) => Ok(Self {
                session: Arc::new(session),
                target: target.clone(),
                options: options.clone(),
                runtime: handle,
                stop: Some(stop),
                thread: Some(thread),
            }),
            Err(error) => {
                drop(stop);
                let _ = thread.join();
                Err(error)
            }
        }
    }

    /// Name and port of the host, for messages.
    #[must_use]
    pub fn host(&self) -> &str {
        self.session.host()
    }

    /// Why the connection ended, if it did.
    #[must_use]
    pub fn end(&self) -> Option<String> {
        self.session.end()
    }

    /// Runs a command to its end. `stdin` is streamed to it from a thread of its own; `stdout` and `stderr` get what it
    /// says as it comes. Returns when the program has ended and `stdin` was read to its end, or not taken any more.
    ///
    /// # Errors
    /// If it cannot be started, or with what `stdin` or the writers say. A program that fails is not an error: see
    /// [`Exit`].
    pub fn run(
        &self,
        command: &str,
        stdin: &mut (dyn Read + Send),
        stdout: &mut dyn Write,
        stderr: &mut dyn Write,
    ) -> Result<Exit, Error> {
        let mut process = self.runtime.block_on(self.session.exec(command))?;
        let input = process.stdin();
        thread::scope(|scope| {
            let feeding = scope.spawn(move || -> Result<(), Error> {
                let Some(mut input) = input else { return Ok(()) };
                let mut buffer = vec![0; PIECE];
                loop {
                    let count = match stdin.read(&mut buffer) {
                        Ok(0) => break,
                        Ok(count) => count,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        Err(source) => {
                            // An end would say that this was all.
                            self.runtime.block_on(input.abandon());
                            return Err(Error::Local { what: "what is to be sent cannot be read", source });
                        }
                    };
                    // A program that does not want more is not wrong; its exit code says what it thinks.
                    if self.runtime.block_on(input.write(&buffer[..count])).is_err() {
                        return Ok(());
                    }
                }
                let _ = self.runtime.block_on(input.close());
                Ok(())
            });
            let exit = self.drain(&mut process, stdout, stderr);
            let fed = feeding.join().unwrap_or(Ok(()));
            let exit = exit?;
            fed?;
            Ok(exit)
        })
    }

    fn drain(
        &self,
        process: &mut Process,
        stdout: &mut dyn Write,
        stderr: &mut dyn Write,
    ) -> Result<Exit, Error> {
        let local = |source| Error::Local { what: "what the program says cannot be written", source };
        while let Some(piece) = self.runtime.block_on(process.next()) {
            match piece {
                Piece::Stdout(bytes) => stdout.write_all(&bytes).map_err(local)?,
                Piece::Stderr(bytes) => stderr.write_all(&bytes).map_err(local)?,
            }
        }
        Ok(process.exit())
    }

    /// Runs a command with `stdin` and keeps the first `limit` bytes of each of its outputs.
    ///
    /// # Errors
    /// As [`Connection::run`].
    pub fn output(&self, command: &str, mut stdin: &[u8], limit: usize) -> Result<Output, Error> {
        let (mut stdout, mut stderr) = (Bounded::new(limit), Bounded::new(limit));
        let exit = self.run(command, &mut stdin, &mut stdout, &mut stderr)?;
        Ok(Output { exit, stdout: stdout.kept, stderr: stderr.kept })
    }

    /// Listens on a free port of 127.0.0.1; what comes in goes to `host`:`port` as seen from the far side. The tunnel
    /// ends with this connection.
    ///
    /// # Errors
    /// If no port can be had.
    pub fn tunnel(&self, host: &str, port: u16) -> Result<Tunnel, Error> {
        self.tunnel_to(Some((host.to_owned(), port)))
    }

    /// Listens on a free port of 127.0.0.1 as a SOCKS 5 proxy, whose connections come out at the far side. Names are
    /// resolved there. Ends with this connection.
    ///
    /// # Errors
    /// If no port can be had.
    pub fn proxy(&self) -> Result<Tunnel, Error> {
        self.tunnel_to(None)
    }

    fn tunnel_to(&self, place: Option<(String, u16)>) -> Result<Tunnel, Error> {
        let (target, options) = (self.target.clone(), self.options.clone());
        self.runtime.block_on(Tunnel::open(Arc::clone(&self.session), target, options, place))
    }

    /// Opens the file transfer of the host.
    ///
    /// # Errors
    /// If the host has no SFTP.
    pub fn sftp(&self) -> Result<BlockingSftp<'_>, Error> {
        let sftp = Some(self.runtime.block_on(self.session.sftp())?);
        Ok(BlockingSftp { sftp, connection: self })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.session.end().is_none() {
            self.runtime.block_on(self.session.close());
        }
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// [`Sftp`] for threads that block.
pub struct BlockingSftp<'a> {
    /// Empty only while it is dropped.
    sftp: Option<Sftp>,
    connection: &'a Connection,
}

impl Drop for BlockingSftp<'_> {
    fn drop(&mut self) {
        // Its channel is closed by a task, which wants a runtime.
        let _inside = self.connection.runtime.enter();
        drop(self.sftp.take());
    }
}

impl BlockingSftp<'_> {
    fn wait<T>(&mut self, work: impl AsyncFnOnce(&mut Sftp) -> Result<T, Error>) -> Result<T, Error> {
        match &mut self.sftp {
            Some(sftp) => self.connection.runtime.block_on(work(sftp)),
            None => Err(self.connection.session.gone()),
        }
    }

    /// Reads `length` bytes from `offset` on into `sink`; all if `length` is `None`. Returns how many there were.
    ///
    /// # Errors
    /// As [`Sftp::read`].
    pub fn read(
        &mut self,
        path: &str,
        offset: u64,
        length: Option<u64>,
        sink: &mut dyn Write,
    ) -> Result<u64, Error> {
        self.wait(async |sftp| sftp.read(path, offset, length, |bytes| sink.write_all(bytes)).await)
    }

    /// Writes all of `source` into a file with these permissions. Returns how many bytes there were.
    ///
    /// # Errors
    /// As [`Sftp::write`].
    pub fn write(&mut self, path: &str, mode: u32, source: &mut dyn Read) -> Result<u64, Error> {
        self.wait(async |sftp| sftp.write(path, mode, |buffer| source.read(buffer)).await)
    }

    /// What the far side says of a file.
    ///
    /// # Errors
    /// As [`Sftp::status_of`].
    pub fn status_of(&mut self, path: &str) -> Result<Status, Error> {
        self.wait(async |sftp| sftp.status_of(path).await)
    }

    /// The absolute form of a path there; `.` is the user's home directory.
    ///
    /// # Errors
    /// As [`Sftp::absolute`].
    pub fn absolute(&mut self, path: &str) -> Result<String, Error> {
        self.wait(async |sftp| sftp.absolute(path).await)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// As [`Sftp::make_directory`].
    pub fn make_directory(&mut self, path: &str, mode: u32) -> Result<(), Error> {
        self.wait(async |sftp| sftp.make_directory(path, mode).await)
    }

    /// Removes a file.
    ///
    /// # Errors
    /// As [`Sftp::remove`].
    pub fn remove(&mut self, path: &str) -> Result<(), Error> {
        self.wait(async |sftp| sftp.remove(path).await)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// As [`Sftp::remove_directory`].
    pub fn remove_directory(&mut self, path: &str) -> Result<(), Error> {
        self.wait(async |sftp| sftp.remove_directory(path).await)
    }

    /// Gives a file another name, which must be free.
    ///
    /// # Errors
    /// As [`Sftp::rename`].
    pub fn rename(&mut self, from: &str, to: &str) -> Result<(), Error> {
        self.wait(async |sftp| sftp.rename(from, to).await)
    }
}

/// Keeps the beginning and takes the rest.
struct Bounded {
    kept: Vec<u8>,
    limit: usize,
}

impl Bounded {
    const fn new(limit: usize) -> Self {
        Self { kept: Vec::new(), limit }
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.limit - self.kept.len();
        self.kept.extend(&bytes[..bytes.len().min(room)]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

//! One connection to a host.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use russh::client::{self, AuthResult, Handle, Msg};
use russh::keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Preferred};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::config::{self, HostConfig};
use super::identity::{Identities, Key};
use super::known_hosts::Known;
use super::{Error, Options, Sftp, Target};

/// The most jump hosts on a way.
const MOST_HOPS: usize = 8;
/// What may be on its way to this side before the far side has to wait, in bytes, per channel.
const WINDOW: u32 = 1 << 20;
/// How many packets of a channel wait here to be taken.
const BUFFERED: usize = 32;

/// A connection that is logged in. All that it opened ends with it.
pub struct Session {
    handle: Handle<Watch>,
    /// Name and port, for messages.
    host: String,
    user: String,
    watched: Watched,
    /// The connection that this one goes through.
    _through: Option<Box<Self>>,
}

/// What the connection's own task has to say to the outside.
type Watched = Arc<Mutex<Told>>;

#[derive(Default)]
struct Told {
    /// Why the host key was not accepted.
    verdict: Option<Error>,
    /// Why the connection ended.
    end: Option<String>,
}

struct Watch {
    known: Known,
    told: Watched,
}

fn told(watched: &Watched) -> std::sync::MutexGuard<'_, Told> {
    // Nothing that holds the lock can panic in between.
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

impl client::Handler for Watch {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        // Certificates are not asked for, so that one would be out of order.
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else { return Ok(false) };
        match self.known.check(key) {
            Ok(()) => Ok(true),
            Err(error) => {
                told(&self.told).verdict = Some(error);
                Ok(false)
            }
        }
    }

    async fn disconnected(
        &mut self,
        reason: client::DisconnectReason<russh::Error>,
    ) -> Result<(), russh::Error> {
        let words = match &reason {
            client::DisconnectReason::ReceivedDisconnect(info) => {
                format!("the host ended it: {}", info.message)
            }
            client::DisconnectReason::Error(error) => error.to_string(),
        };
        told(&self.told).end = Some(words);
        match reason {
            client::DisconnectReason::ReceivedDisconnect(_) => Ok(()),
            client::DisconnectReason::Error(error) => Err(error),
        }
    }
}

/// One host on the way, all that is needed to connect to it.
struct Hop {
    name: String,
    port: u16,
    user: String,
    config: HostConfig,
}

impl Hop {
    fn of(target: &Target, options: &Options) -> Result<Self, Error> {
        let config = config::lookup(&target.host, options.config.as_deref())?;
        let user = target.user.clone().or_else(|| config.user.clone()).unwrap_or_else(own_name);
        Ok(Self {
            name: config.host_name.clone().unwrap_or_else(|| target.host.clone()),
            port: target.port.or(config.port).unwrap_or(22),
            user,
            config,
        })
    }

    fn label(&self) -> String {
        if self.port == 22 { self.name.clone() } else { format!("{}:{}", self.name, self.port) }
    }
}

impl Session {
    /// Connects and logs in, through jump hosts where the configuration names some.
    ///
    /// # Errors
    /// What is in the way, see [`Error`]. A host key that is not known, or another than before, is an error and
    /// nothing is sent.
    pub async fn connect(target: &Target, options: &Options) -> Result<Self, Error> {
        let mut hops = vec![Hop::of(target, options)?];
        // From the far end: what a jump host itself is reached through goes before it.
        while let Some(jumps) = hops.first().and_then(|hop| hop.config.proxy_jump.clone()) {
            if jumps.is_empty() {
                break;
            }
            if hops.len() + jumps.len() > MOST_HOPS {
                return Err(Error::Unreachable {
                    host: target.to_string(),
                    message: format!("ProxyJump leads over more than {MOST_HOPS} hosts, or in a circle"),
                });
            }
            for jump in jumps.iter().rev() {
                hops.insert(0, Hop::of(&jump.parse()?, options)?);
            }
        }
        let mut through: Option<Self> = None;
        let last = hops.len() - 1;
        for (index, hop) in hops.iter().enumerate() {
            let connecting = Self::over(through.take(), hop, options, index == last);
            let session = tokio::time::timeout(options.connect_timeout, connecting)
                .await
                .map_err(|_| Error::Timeout { host: hop.label(), limit: options.connect_timeout })??;
            through = Some(session);
        }
        through.ok_or_else(|| Error::Target(target.to_string()))
    }

    async fn over(through: Option<Self>, hop: &Hop, options: &Options, last: bool) -> Result<Self, Error> {
        let known_as = hop.config.host_key_alias.as_deref().unwrap_or(&hop.name);
        // An alias stands for the host alone, as in ssh.
        let port = if hop.config.host_key_alias.is_some() { 22 } else { hop.port };
        let fingerprint = options.fingerprint.as_deref().filter(|_| last);
        let known = Known::load(known_as, port, &known_hosts(options, &hop.config), fingerprint)?;
        let algorithms = known.algorithms();
        let config = Arc::new(client::Config {
            keepalive_interval: Some(options.keep_alive),
            keepalive_max: 3,
            nodelay: true,
            window_size: WINDOW,
            channel_buffer_size: BUFFERED,
            preferred: Preferred { key: algorithms.into(), ..Preferred::DEFAULT },
            ..client::Config::default()
        });
        let watched = Watched::default();
        let watch = Watch { known, told: Arc::clone(&watched) };
        let label = hop.label();
        let connected = match &through {
            None => client::connect_stream(config, dial(hop).await?, watch).await,
            Some(session) => {
                let channel = session.direct(&hop.name, hop.port).await?;
                client::connect_stream(config, channel.into_stream(), watch).await
            }
        };
        let handle = connected.map_err(|error| {
            let verdict = told(&watched).verdict.take();
            verdict.unwrap_or_else(|| Error::Unreachable { host: label.clone(), message: no_ssh(&error) })
        })?;
        let mut session =
            Self { handle, host: label, user: hop.user.clone(), watched, _through: through.map(Box::new) };
        session.log_in(&hop.config, options, last).await?;
        Ok(session)
    }

    async fn log_in(&mut self, config: &HostConfig, options: &Options, last: bool) -> Result<(), Error> {
        // Files given on the command line are for the host that is named there.
        let (files, only) = if options.identities.is_empty() || !last {
            (config.identities.clone(), config.identities_only.unwrap_or(false))
        } else {
            (options.identities.clone(), true)
        };
        // Those of the configuration may be for other hosts of the same pattern.
        let files: Vec<PathBuf> = if options.identities.is_empty() {
            files.into_iter().filter(|file| file.is_file()).collect()
        } else {
            files
        };
        let Identities { offered, mut agent, mut notes } = Identities::gather(options, &files, only).await?;
        for identity in offered {
            let answer = match identity.key {
                Key::Private(key) => {
                    let hash = if key.algorithm().is_rsa() {
                        self.handle.best_supported_rsa_hash().await.ok().flatten().flatten()
                    } else {
                        None
                    };
                    let key = PrivateKeyWithHashAlg::new(key, hash);
                    self.handle
                        .authenticate_publickey(&self.user, key)
                        .await
                        .map_err(|error| self.lost(&error.to_string()))
                }
                Key::Agent(public) => {
                    let Some(agent) = &mut agent else { continue };
                    let hash = if public.algorithm().is_rsa() {
                        self.handle.best_supported_rsa_hash().await.ok().flatten().flatten()
                    } else {
                        None
                    };
                    match self.handle.authenticate_publickey_with(&self.user, public, hash, agent).await {
                        Ok(answer) => Ok(answer),
                        Err(error) => {
                            notes.push(format!("{}: the agent does not sign: {error}", identity.what));
                            continue;
                        }
                    }
                }
            };
            match answer? {
                AuthResult::Success => return Ok(()),
                AuthResult::Failure { partial_success: true, .. } => {
                    notes.push(format!("{} is accepted, but the host wants more than a key", identity.what))
                }
                AuthResult::Failure { .. } => notes.push(format!("{} is not accepted", identity.what)),
            }
            // Too many keys that do not fit end the connection.
            if self.handle.is_closed() {
                notes.push("the host ended the connection after that".to_owned());
                break;
            }
        }
        let tried = if notes.is_empty() {
            format!(
                "there is no key to offer: give one in {}, in a file or in the agent",
                super::KEY_VARIABLE
            )
        } else {
            notes.join("; ")
        };
        Err(Error::Refused { host: self.host.clone(), user: self.user.clone(), tried })
    }

    /// Name and port of the host, for messages.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Whether the connection has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// Ends the connection in order.
    pub async fn close(&self) {
        // Whether the far side still hears it does not matter any more.
        let _ = self.handle.disconnect(russh::Disconnect::ByApplication, "", "").await;
    }

    /// Starts a command in the user's shell there.
    ///
    /// # Errors
    /// If the connection is gone or the host does not start programs.
    pub async fn exec(&self, command: &str) -> Result<Process, Error> {
        let mut channel = self.session_channel("a program").await?;
        channel.exec(true, command).await.map_err(|error| self.lost(&error.to_string()))?;
        let early = self.granted(&mut channel, "a program").await?;
        let (read, write) = channel.split();
        let (over, is_over) = watch::channel(false);
        let (abandoned, is_abandoned) = watch::channel(false);
        let stdin = Stdin { write, host: self.host.clone(), is_over, abandoned };
        Ok(Process { read, stdin: Some(stdin), early: early.into(), exit: None, over, is_abandoned })
    }

    /// Opens the file transfer of the host.
    ///
    /// # Errors
    /// If the connection is gone or the host has no SFTP.
    pub async fn sftp(&self) -> Result<Sftp, Error> {
        let mut channel = self.session_channel("SFTP").await?;
        channel.request_subsystem(true, "sftp").await.map_err(|error| self.lost(&error.to_string()))?;
        self.granted(&mut channel, "SFTP").await?;
        Sftp::start(channel.into_stream(), self.host.clone()).await
    }

    /// Opens a connection from the far side to `host`:`port`, as seen from there.
    pub(super) async fn direct(&self, host: &str, port: u16) -> Result<Channel<Msg>, Error> {
        self.handle
            .channel_open_direct_tcpip(host, port.into(), "127.0.0.1", 0)
            .await
            .map_err(|error| self.refused(format!("a connection to {host}:{port}"), &error))
    }

    async fn session_channel(&self, what: &str) -> Result<Channel<Msg>, Error> {
        self.handle.channel_open_session().await.map_err(|error| self.refused(what.to_owned(), &error))
    }

    /// Waits for the far side's yes; what it says before that is returned.
    async fn granted(&self, channel: &mut Channel<Msg>, what: &str) -> Result<Vec<ChannelMsg>, Error> {
        let mut early = Vec::new();
        loop {
            match channel.wait().await {
                Some(ChannelMsg::Success) => return Ok(early),
                Some(ChannelMsg::Failure) => {
                    return Err(Error::Channel {
                        host: self.host.clone(),
                        what: what.to_owned(),
                        message: "the host refuses".to_owned(),
                    });
                }
                Some(message @ (ChannelMsg::Data { .. } | ChannelMsg::ExtendedData { .. })) => {
                    early.push(message)
                }
                Some(_) => {}
                None => return Err(self.lost("the channel was closed")),
            }
        }
    }

    fn refused(&self, what: String, error: &russh::Error) -> Error {
        match error {
            russh::Error::ChannelOpenFailure(reason) => {
                let message = match reason {
                    russh::ChannelOpenFailure::ConnectFailed => "nobody listens there".to_owned(),
                    russh::ChannelOpenFailure::AdministrativelyProhibited => "the host forbids it".to_owned(),
                    other => format!("{other:?}"),
                };
                Error::Channel { host: self.host.clone(), what, message }
            }
            error => self.lost(&error.to_string()),
        }
    }

    fn lost(&self, message: &str) -> Error {
        let message = told(&self.watched).end.clone().unwrap_or_else(|| message.to_owned());
        Error::Lost { host: self.host.clone(), message }
    }

    /// The error for what is asked of a connection that is gone.
    pub(super) fn gone(&self) -> Error {
        self.lost("it was closed")
    }

    /// Why the connection ended, if it did.
    #[must_use]
    pub fn end(&self) -> Option<String> {
        let end = told(&self.watched).end.clone();
        end.or_else(|| self.is_closed().then(|| "it was closed".to_owned()))
    }
}

/// A program on the far side.
pub struct Process {
    read: ChannelReadHalf,
    stdin: Option<Stdin>,
    early: std::collections::VecDeque<ChannelMsg>,
    exit: Option<Exit>,
    /// Tells the writing side that the program has ended: nobody would ever make room for what it sends.
    over: watch::Sender<bool>,
    is_abandoned: watch::Receiver<bool>,
}

/// What a program on the far side does next.
#[derive(Debug)]
pub enum Piece {
    /// Some of its stdout.
    Stdout(Bytes),
    /// Some of its stderr.
    Stderr(Bytes),
}

/// How a program on the far side ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// With this code.
    Code(u32),
    /// Of this signal.
    Signal(String),
    /// The connection ended first; what became of the program is not known.
    Unknown,
}

impl Exit {
    /// Whether it ended with code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        *self == Self::Code(0)
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(name) => write!(f, "signal {name}"),
            Self::Unknown => f.write_str("the connection ended before it did"),
        }
    }
}

impl Process {
    /// The way to its stdin, once. Dropped without [`Stdin::close`] it stays open until the program ends.
    pub const fn stdin(&mut self) -> Option<Stdin> {
        self.stdin.take()
    }

    /// The next piece of output; `None` when there is no more, and [`Process::exit`] says how it ended. What is not
    /// taken stops the program once a megabyte waits.
    pub async fn next(&mut self) -> Option<Piece> {
        loop {
            let message = match self.early.pop_front() {
                Some(message) => Some(message),
                None => tokio::select! {
                    message = self.read.wait() => message,
                    () = becomes(&mut self.is_abandoned) => None,
                },
            };
            let Some(message) = message else {
                self.over.send_replace(true);
                return None;
            };
            match message {
                ChannelMsg::Data { data } => return Some(Piece::Stdout(data)),
                ChannelMsg::ExtendedData { data, ext: 1 } => return Some(Piece::Stderr(data)),
                ChannelMsg::ExitStatus { exit_status } => {
                    self.exit = Some(Exit::Code(exit_status));
                    self.over.send_replace(true);
                }
                ChannelMsg::ExitSignal { signal_name, .. } => {
                    self.exit = Some(Exit::Signal(format!("{signal_name:?}")));
                    self.over.send_replace(true);
                }
                _ => {}
            }
        }
    }

    /// How it ended, as far as that is known by now.
    #[must_use]
    pub fn exit(&self) -> Exit {
        self.exit.clone().unwrap_or(Exit::Unknown)
    }
}

/// The stdin of a program on the far side.
pub struct Stdin {
    write: ChannelWriteHalf<Msg>,
    host: String,
    is_over: watch::Receiver<bool>,
    abandoned: watch::Sender<bool>,
}

/// Waits until it is true, or nobody is left to say so.
async fn becomes(flag: &mut watch::Receiver<bool>) {
    if flag.wait_for(|over| *over).await.is_err() {
        std::future::pending::<()>().await;
    }
}

impl Stdin {
    /// Sends some; waits while the far side does not take it.
    ///
    /// # Errors
    /// If the program or the connection is gone.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let message = tokio::select! {
            sent = self.write.data(bytes) => match sent {
                Ok(()) => return Ok(()),
                Err(error) => error.to_string(),
            },
            // Also when the process is dropped, and nobody reads on.
            _ = self.is_over.wait_for(|over| *over) => "the program has ended".to_owned(),
        };
        Err(Error::Lost { host: self.host.clone(), message })
    }

    /// Gives the program up: the far side ends its pipes, and what it made of the beginning is its own affair.
    pub async fn abandon(self) {
        // A channel that is gone is as good as closed.
        let _ = self.write.close().await;
        self.abandoned.send_replace(true);
    }

    /// Says that nothing more comes.
    ///
    /// # Errors
    /// If the connection is gone.
    pub async fn close(self) -> Result<(), Error> {
        self.write.eof().await.map_err(|error| Error::Lost { host: self.host, message: error.to_string() })
    }
}

fn own_name() -> String {
    let named = ["USER", "LOGNAME"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|name| !name.is_empty()));
    named.unwrap_or_else(|| "root".to_owned())
}

fn known_hosts(options: &Options, config: &HostConfig) -> Vec<PathBuf> {
    for files in [&options.known_hosts, &config.known_hosts] {
        if !files.is_empty() {
            return files.clone();
        }
    }
    let user = config::home().map(|home| home.join(".ssh/known_hosts"));
    user.into_iter().chain([PathBuf::from("/etc/ssh/ssh_known_hosts")]).collect()
}

/// The first address that answers.
async fn dial(hop: &Hop) -> Result<TcpStream, Error> {
    let unreachable = |message: String| Error::Unreachable { host: hop.label(), message };
    let addresses = crate::http::addresses(&hop.name)
        .await
        .map_err(|error| unreachable(format!("no address: {error}")))?;
    let mut last = io::Error::other("it has no address");
    for address in addresses {
        match TcpStream::connect((address, hop.port)).await {
            Ok(stream) => {
                // Small packets of many requests must not wait for each other.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(unreachable(last.to_string()))
}

fn no_ssh(error: &russh::Error) -> String {
    match error {
        russh::Error::Version | russh::Error::Disconnect | russh::Error::HUP => {
            "it ended the connection before SSH began (is this the port of an sshd?)".to_owned()
        }
        error => error.to_string(),
    }
}

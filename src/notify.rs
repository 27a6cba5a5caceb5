//! Telling systemd how the daemon is: the datagrams of `sd_notify(3)`, without its library.
//!
//! Without `NOTIFY_SOCKET` in the environment every call does nothing.

use std::env;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to the service manager.
#[derive(Debug, Default)]
pub struct Notifier {
    manager: Option<(UnixDatagram, SocketAddr)>,
    /// Twice in this time the manager wants to hear of the daemon.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// Reads the environment as the service manager has set it.
    #[must_use]
    pub fn from_environment() -> Self {
        let manager = env::var_os("NOTIFY_SOCKET").and_then(|name| {
            let address = match name.as_bytes() {
                [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
                path if path.first() == Some(&b'/') => SocketAddr::from_pathname(&name),
                _ => return None,
            };
            Some((UnixDatagram::unbound().ok()?, address.ok()?))
        });
        let number = |name: &str| env::var(name).ok()?.parse::<u64>().ok();
        let meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC")
            .filter(|time| meant && *time > 0 && manager.is_some())
            .map(Duration::from_micros);
        Self { manager, watchdog }
    }

    /// How often [`Notifier::alive`] is to be called; `None` where nobody listens.
    #[must_use]
    pub fn interval(&self) -> Option<Duration> {
        self.watchdog.map(|time| time / 2)
    }

    /// The daemon works.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// The daemon reads its configuration again. [`Notifier::ready`] ends it.
    pub fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }

    /// The daemon leaves.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// A line for `systemctl status`.
    pub fn status(&self, text: &str) {
        self.send(&format!("STATUS={}", text.replace('\n', " ")));
    }

    /// The daemon is not stuck.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// Nothing depends on whether it arrives: the manager notices silence itself.
    fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.manager {
            let _ = socket.send_to_addr(message.as_bytes(), address);
        }
    }
}

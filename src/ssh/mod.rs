//! SSH to other hosts: connecting, running programs, tunnels and files.
//!
//! A host key is accepted only if known_hosts or a given fingerprint says so; there is no way to turn that off. Hosts
//! may be named by the aliases of `~/.ssh/config`. All in this program that goes over SSH goes through here.
//!
//! | Module | Holds |
//! | --- | --- |
//! | `target` | `[user@]host[:port]`, and how the connection is made: [`Options`] |
//! | `config` | the part of `~/.ssh/config` that names hosts |
//! | `known_hosts` | which host keys are accepted |
//! | `identity` | the keys that are offered: from a secret, files, the agent |
//! | `session` | one connection (async): programs, channels |
//! | `sftp` | files on the far side, with many requests on their way at once |
//! | `tunnel` | a port on loopback whose connections come out at the far side |
//! | `socks` | what a client of a tunnel without a fixed end says |
//! | `connection` | the same for threads that block |

mod config;
mod connection;
mod error;
mod identity;
mod known_hosts;
mod session;
mod sftp;
mod socks;
mod target;
mod tunnel;

pub use connection::{BlockingSftp, Connection, Output};
pub use error::Error;
pub use identity::{KEY_VARIABLE, PASSPHRASE_VARIABLE};
pub use session::{Exit, Piece, Process, Session, Stdin};
pub use sftp::{FileKind, Sftp, Status};
pub use target::{Options, Secret, Target};
pub use tunnel::Tunnel;

/// A word for a POSIX shell on the far side: quoted where it needs to be.
#[must_use]
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn words_stay_one_word() {
        assert_eq!(quoted("/var/lib/a-b_c.d"), "/var/lib/a-b_c.d");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's $HOME"), "'it'\\''s $HOME'");
    }
}

//! Why something over SSH did not happen.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why something over SSH did not happen. Nothing of a key or a passphrase is ever in it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text names no host.
    #[error("{0:?} names no host: write [user@]host[:port]")]
    Target(String),
    /// A file could not be read.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line of a configuration file cannot be followed.
    #[error("{path}:{line}: {message}", path = path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong with it.
        message: String,
    },
    /// Nobody answers there.
    #[error("{host} cannot be reached over SSH: {message}")]
    Unreachable {
        /// Name and port.
        host: String,
        /// What the system said.
        message: String,
    },
    /// It took too long.
    #[error("{host} did not answer over SSH within {} s", limit.as_secs())]
    Timeout {
        /// Name and port.
        host: String,
        /// How long was waited.
        limit: Duration,
    },
    /// The host's key is in no known_hosts.
    #[error(
        "the host key of {host} is not known: it showed {shown} ({algorithm}), and {looked_in} does not have {host}; \
         compare the fingerprint with the host's own (`ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub` there) and then \
         add this line to known_hosts, or give the fingerprint: {line}"
    )]
    UnknownHost {
        /// Name and port.
        host: String,
        /// Fingerprint of the key that it showed.
        shown: String,
        /// Kind of that key.
        algorithm: String,
        /// Where was looked.
        looked_in: String,
        /// What known_hosts would need.
        line: String,
    },
    /// The host shows another key than before.
    #[error(
        "the host key of {host} has CHANGED: it showed {shown}, and {expected} is expected ({place}); either the host \
         was set up anew, or somebody else answers in its place: nothing was sent"
    )]
    ChangedHost {
        /// Name and port.
        host: String,
        /// Fingerprint of the key that it showed.
        shown: String,
        /// Fingerprints that would do.
        expected: String,
        /// Where they come from.
        place: String,
    },
    /// The key is marked as revoked.
    #[error("the host key of {host}, {shown}, is revoked ({place}): nothing was sent")]
    RevokedHost {
        /// Name and port.
        host: String,
        /// Fingerprint of the key that it showed.
        shown: String,
        /// Where that is said.
        place: String,
    },
    /// A private key cannot be used.
    #[error("the SSH key {what} cannot be used: {message}")]
    Key {
        /// A path, or where the content came from.
        what: String,
        /// What is wrong with it.
        message: String,
    },
    /// The host does not let us in.
    #[error("{host} does not let {user} in: {tried}")]
    Refused {
        /// Name and port.
        host: String,
        /// The user.
        user: String,
        /// Which keys were offered, and what became of them.
        tried: String,
    },
    /// The connection ended.
    #[error("the SSH connection to {host} was lost: {message}")]
    Lost {
        /// Name and port.
        host: String,
        /// How it ended.
        message: String,
    },
    /// The far side does not open a channel.
    #[error("{host} does not open {what}: {message}")]
    Channel {
        /// Name and port.
        host: String,
        /// What was asked for.
        what: String,
        /// What it said.
        message: String,
    },
    /// A file on the far side could not be read or written.
    #[error("{host}:{path}: {message}")]
    Remote {
        /// Name and port.
        host: String,
        /// The file there.
        path: String,
        /// What the far side said.
        message: String,
        /// Whether it is not there.
        missing: bool,
    },
    /// Something on this side: a port, a pipe, a thread.
    #[error("{what}: {source}")]
    Local {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// Whether the question was wrong (an argument, a missing file, a key), rather than the host being unwell.
    #[must_use]
    pub const fn is_wrong_question(&self) -> bool {
        matches!(self, Self::Target(_) | Self::File { .. } | Self::Config { .. } | Self::Key { .. })
    }

    /// Whether a file on the far side is not there.
    #[must_use]
    pub const fn is_missing(&self) -> bool {
        matches!(self, Self::Remote { missing: true, .. })
    }
}

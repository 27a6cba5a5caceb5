//! What can go wrong with an image, said so that the reader knows what to do next.

use std::io;
use std::path::{Path, PathBuf};

/// Why a push, a prune or an inspection did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source is not there, or is of no known kind.
    #[error("{}: {why}", path.display())]
    NoSource {
        /// The source as given.
        path: PathBuf,
        /// What is wrong and what is wanted.
        why: String,
    },
    /// The source says something that is not true of it.
    #[error("{}: {what}; nothing was tagged", path.display())]
    Lie {
        /// The source as given.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// A source that can be read once was needed a second time.
    #[error(
        "{}: the connection to the registry broke in the middle of a layer, and this cannot be read again; nothing was \
         tagged. Push again: layers that arrived are not sent again",
        path.display()
    )]
    Interrupted {
        /// The source.
        path: PathBuf,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A destination, tag, pattern or other argument that cannot be.
    #[error("{given:?}: {why}")]
    Argument {
        /// The argument as given.
        given: String,
        /// What is wanted instead.
        why: String,
    },
    /// The given credentials are incomplete or unreadable.
    #[error("credentials: {0}")]
    Credentials(String),
    /// The registry could not be reached, after all retries.
    #[error("{what}: {url}: {why}")]
    Unreachable {
        /// What was being done.
        what: String,
        /// Where, without query.
        url: String,
        /// The network's reason and, where known, the remedy.
        why: String,
    },
    /// The registry does not let this user do this.
    #[error("{what}: {url}: {why}")]
    Refused {
        /// What was being done.
        what: String,
        /// Where, without query.
        url: String,
        /// Who is refused, why, and the remedy.
        why: String,
    },
    /// An answer that this step cannot go on with.
    #[error("{what}: {url}: {why}")]
    Answer {
        /// What was being done.
        what: String,
        /// Where, without query.
        url: String,
        /// Status and the registry's own words.
        why: String,
        /// The HTTP status, 0 when the body was at fault.
        status: u16,
    },
    /// A node that an image was to be brought to.
    #[error("{host}: {why}")]
    Node {
        /// As given.
        host: String,
        /// What it says, or why it cannot be reached.
        why: String,
    },
    /// A list of tags that was not read to its end, or that cannot be put in order.
    #[error("{0}; nothing was deleted")]
    Unsure(String),
    /// Set-up of the HTTP client failed.
    #[error("HTTP client: {0}")]
    Http(#[from] reqwest::Error),
}

impl Error {
    /// The question was wrong (exit code 2), as against the thing asked about not being well.
    #[must_use]
    pub fn is_wrong_question(&self) -> bool {
        match self {
            Self::NoSource { .. } | Self::Argument { .. } | Self::Credentials(_) => true,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }

    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(super) fn lie(path: &Path, what: impl Into<String>) -> Self {
        Self::Lie { path: path.to_owned(), what: what.into() }
    }

    /// A thread that read the source is gone, which only a fault of this program can bring about.
    pub(super) fn stopped(path: &Path) -> Self {
        Self::lie(path, "its reader stopped")
    }
}

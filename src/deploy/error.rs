//! Why a deployment could not be tried, or could not be followed.

use std::io;
use std::path::PathBuf;

/// Why a deployment could not be tried. A deployment that was tried and failed is an
/// [`Outcome`](super::Outcome), not an error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program that is needed is not there.
    #[error("{program} is not on PATH: {remedy}")]
    MissingProgram {
        /// Name of the program.
        program: &'static str,
        /// How to get it.
        remedy: &'static str,
    },
    /// helm is too old, too new, or does not say what it is.
    #[error("{path} is helm {version}: helm 3.12 or newer, or helm 4, is needed")]
    HelmVersion {
        /// The program that was asked.
        path: PathBuf,
        /// What it answered.
        version: String,
    },
    /// An argument that cannot be.
    #[error("{0}")]
    Argument(String),
    /// A program did not start, or its output could not be read.
    #[error("{program}: {source}")]
    Process {
        /// Name of the program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// kubectl failed.
    #[error("kubectl {what} failed: {message}")]
    Kubectl {
        /// What it was asked to do.
        what: &'static str,
        /// The last thing it said.
        message: String,
    },
    /// helm failed at something other than the deployment.
    #[error("helm {what} failed: {message}")]
    Helm {
        /// What it was asked to do.
        what: &'static str,
        /// What it said.
        message: String,
    },
    /// Something over SSH did not happen.
    #[error(transparent)]
    Ssh(#[from] Box<crate::ssh::Error>),
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// Whether the question was wrong (a missing program or file, an argument that cannot be), rather than
    /// something being wrong with what was asked about.
    #[must_use]
    pub fn is_wrong_question(&self) -> bool {
        match self {
            Self::MissingProgram { .. }
            | Self::HelmVersion { .. }
            | Self::Argument(_)
            | Self::File { .. } => true,
            Self::Ssh(error) => error.is_wrong_question(),
            Self::Process { .. } | Self::Kubectl { .. } | Self::Helm { .. } => false,
        }
    }
}

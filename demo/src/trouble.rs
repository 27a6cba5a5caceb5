//! What can keep the demo from its end.

use std::io;
use std::path::{Path, PathBuf};

/// Why the demo does not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// Somebody pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// Something of this machine is not as it must be; installing or starting differently helps.
    #[error("{0}")]
    Missing(String),
    /// A part did not do what it should.
    #[error("{0}")]
    Failed(String),
    /// A program ended with an error.
    #[error("{program} failed ({status}); the end of its output:\n{tail}")]
    Program {
        /// What was run.
        program: String,
        /// How it ended.
        status: String,
        /// Its last rows.
        tail: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Adds the path to an I/O error.
pub(crate) trait At<T> {
    /// The same with the path.
    fn at(self, path: &Path) -> Result<T, Trouble>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: &Path) -> Result<T, Trouble> {
        self.map_err(|source| Trouble::File { path: path.to_owned(), source })
    }
}

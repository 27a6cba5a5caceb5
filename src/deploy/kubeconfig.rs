//! The way to the cluster: a kubeconfig file, or one that came as the content of a secret.

use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::Error;

/// The environment variable that may hold a whole kubeconfig. It is not handed on to helm or kubectl.
pub const VARIABLE: &str = "SOWER_KUBECONFIG";

/// A kubeconfig as a file. One that was given as content is removed when this is dropped.
pub struct Kubeconfig(Source);

enum Source {
    File(PathBuf),
    Moment(NamedTempFile),
}

impl Kubeconfig {
    /// A kubeconfig that is a file already.
    ///
    /// # Errors
    /// If there is no such file.
    pub fn file(path: &Path) -> Result<Self, Error> {
        std::fs::File::open(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
        Ok(Self(Source::File(path.to_owned())))
    }

    /// Writes `content` to a file that only this user can read (mode 0600).
    ///
    /// # Errors
    /// If the content is no kubeconfig at first sight, or the file cannot be written.
    pub fn content(content: &str) -> Result<Self, Error> {
        // Never quoted: whatever it is, it came as a secret.
        if !content.contains("clusters") {
            return Err(Error::Argument(format!(
                "the content of {VARIABLE} is not a kubeconfig: it has no `clusters` (a path goes into --kubeconfig)"
            )));
        }
        let directory = std::env::temp_dir();
        let failed = |source| Error::File { path: directory.clone(), source };
        // tempfile creates with mode 0600 from the start.
        let mut file =
            tempfile::Builder::new().prefix("sower-kubeconfig-").tempfile_in(&directory).map_err(failed)?;
        file.write_all(content.as_bytes()).and_then(|()| file.flush()).map_err(failed)?;
        Ok(Self(Source::Moment(file)))
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        match &self.0 {
            Source::File(path) => path,
            Source::Moment(file) => file.path(),
        }
    }
}

impl fmt::Debug for Kubeconfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kubeconfig({})", self.path().display())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn content_is_a_private_file_for_the_moment() {
        let kubeconfig = Kubeconfig::content("apiVersion: v1\nclusters: []\n").unwrap();
        let path = kubeconfig.path().to_owned();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "apiVersion: v1\nclusters: []\n");
        drop(kubeconfig);
        assert!(!path.exists());
    }

    #[test]
    fn content_that_is_something_else_is_not_quoted() {
        let error = Kubeconfig::content("hunter2").unwrap_err();
        assert!(error.is_wrong_question());
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn json_is_a_kubeconfig_too() {
        Kubeconfig::content(r#"{"apiVersion": "v1", "clusters": []}"#).unwrap();
    }
}

//! Environment files: how a step hands variables, outputs, state and directories to later steps.
//!
//! The files behind `GITHUB_ENV`, `GITHUB_OUTPUT`, `GITHUB_STATE` (pairs), `GITHUB_PATH` (lines) and
//! `GITHUB_STEP_SUMMARY` (Markdown). Source: GitHub's documentation, "Environment files". What a step writes there is
//! hostile until parsed: files are opened without following links, only regular files are read, sizes are limited.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// Most bytes that one environment file may have. Values of outputs are limited to 1 MiB each by Gitea.
pub const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;
/// Most bytes of a step's summary.
pub const MAX_SUMMARY_BYTES: u64 = 1024 * 1024;

/// Why an environment file was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("cannot read {name} ({}): {source}", path.display())]
    Io {
        /// The variable that names the file.
        name: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The step put something else in the file's place.
    #[error("{name} is no longer a regular file; a step must write to the file, not replace it")]
    NotAFile {
        /// The variable that names the file.
        name: &'static str,
    },
    /// The file is too large.
    #[error("{name} has {size} bytes, more than the {limit} that are allowed")]
    TooLarge {
        /// The variable that names the file.
        name: &'static str,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A line is neither `name=value` nor `name<<DELIMITER`.
    #[error("{name}, line {line}: expected NAME=VALUE or NAME<<DELIMITER, found {found:?}")]
    Format {
        /// The variable that names the file.
        name: &'static str,
        /// The line, from 1.
        line: usize,
        /// The beginning of what stands there.
        found: String,
    },
    /// A heredoc does not end.
    #[error("{name}, line {line}: no line {delimiter:?} ends the value that begins here")]
    Unterminated {
        /// The variable that names the file.
        name: &'static str,
        /// The line, from 1.
        line: usize,
        /// The delimiter.
        delimiter: String,
    },
}

/// The environment files of a job. They are emptied before each phase of a step.
#[derive(Debug)]
pub struct EnvironmentFiles {
    directory: PathBuf,
}

/// The files: the variable's name without its prefix, and the file's name.
const FILES: [(&str, &str); 5] = [
    ("ENV", "env"),
    ("OUTPUT", "output"),
    ("PATH", "path"),
    ("STATE", "state"),
    ("STEP_SUMMARY", "summary.md"),
];

impl EnvironmentFiles {
    /// Creates the files in a directory, which is made when it is not there.
    ///
    /// # Errors
    /// When a file cannot be created.
    pub fn create(directory: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let files = Self { directory: directory.to_owned() };
        for (_, file) in FILES {
            File::create(directory.join(file))?;
        }
        Ok(files)
    }

    /// The variables that name the files, for a step's environment.
    pub fn variables(&self) -> impl Iterator<Item = (String, PathBuf)> {
        FILES.into_iter().flat_map(|(variable, file)| {
            ["GITHUB", "GITEA"].map(|prefix| (format!("{prefix}_{variable}"), self.directory.join(file)))
        })
    }

    /// Makes every file empty and regular again, whatever a step did to it.
    ///
    /// # Errors
    /// When a file cannot be made.
    pub fn reset(&self) -> io::Result<()> {
        for (_, file) in FILES {
            let path = self.directory.join(file);
            match std::fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_file() && meta.len() == 0 && meta.nlink() == 1 => continue,
                Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(&path)?,
                Ok(_) => std::fs::remove_file(&path)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    std::fs::create_dir_all(&self.directory)?
                }
                Err(error) => return Err(error),
            }
            OpenOptions::new().write(true).create_new(true).open(&path)?;
        }
        Ok(())
    }

    /// Pairs of `GITHUB_ENV`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn env(&self) -> Result<Vec<(String, String)>, Error> {
        parse_pairs(&self.read("GITHUB_ENV", "env", MAX_FILE_BYTES)?, "GITHUB_ENV")
    }

    /// Pairs of `GITHUB_OUTPUT`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn outputs(&self) -> Result<Vec<(String, String)>, Error> {
        parse_pairs(&self.read("GITHUB_OUTPUT", "output", MAX_FILE_BYTES)?, "GITHUB_OUTPUT")
    }

    /// Pairs of `GITHUB_STATE`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn state(&self) -> Result<Vec<(String, String)>, Error> {
        parse_pairs(&self.read("GITHUB_STATE", "state", MAX_FILE_BYTES)?, "GITHUB_STATE")
    }

    /// Directories of `GITHUB_PATH`, in the order in which they were written.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn path(&self) -> Result<Vec<String>, Error> {
        let text = self.read("GITHUB_PATH", "path", MAX_FILE_BYTES)?;
        Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    /// What the step wrote to its summary; empty for nothing.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn summary(&self) -> Result<String, Error> {
        self.read("GITHUB_STEP_SUMMARY", "summary.md", MAX_SUMMARY_BYTES)
    }

    fn read(&self, name: &'static str, file: &str, limit: u64) -> Result<String, Error> {
        let path = self.directory.join(file);
        let io = |source| Error::Io { name, path: path.clone(), source };
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
        let mut file = match OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                return Err(Error::NotAFile { name });
            }
            Err(error) => return Err(io(error)),
        };
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() {
            return Err(Error::NotAFile { name });
        }
        if meta.len() > limit {
            return Err(Error::TooLarge { name, size: meta.len(), limit });
        }
        let mut bytes = Vec::new();
        // A background process may still be writing: the limit holds for what is read, not for what was seen.
        file.by_ref().take(limit).read_to_end(&mut bytes).map_err(io)?;
        Ok(decode(&bytes))
    }
}

/// Text of a file that may begin with a byte order mark; Windows PowerShell writes UTF-16.
fn decode(bytes: &[u8]) -> String {
    let utf16 = |to_unit: fn([u8; 2]) -> u16| {
        let units = bytes[2..].as_chunks::<2>().0.iter().map(|pair| to_unit(*pair));
        char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
    };
    match bytes {
        [0xff, 0xfe, ..] => utf16(u16::from_le_bytes),
        [0xfe, 0xff, ..] => utf16(u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8_lossy(rest).into_owned(),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    }
}

fn parse_pairs(text: &str, name: &'static str) -> Result<Vec<(String, String)>, Error> {
    let mut pairs = Vec::new();
    let mut lines = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).enumerate();
    while let Some((number, line)) = lines.next() {
        if line.is_empty() {
            continue;
        }
        let equals = line.find('=');
        let heredoc = line.find("<<");
        match (equals, heredoc) {
            (Some(at), heredoc) if at > 0 && heredoc.is_none_or(|begin| at < begin) => {
                pairs.push((line[..at].to_owned(), line[at + 1..].to_owned()));
            }
            (_, Some(at)) if at > 0 && line.len() > at + 2 => {
                let delimiter = &line[at + 2..];
                let mut value = String::new();
                let mut first = true;
                loop {
                    match lines.next() {
                        Some((_, end)) if end == delimiter => break,
                        Some((_, part)) => {
                            if !std::mem::take(&mut first) {
                                value.push('\n');
                            }
                            value.push_str(part);
                        }
                        None => {
                            return Err(Error::Unterminated {
                                name,
                                line: number + 1,
                                delimiter: delimiter.to_owned(),
                            });
                        }
                    }
                }
                pairs.push((line[..at].to_owned(), value));
            }
            _ => {
                let found = line.chars().take(60).collect();
                return Err(Error::Format { name, line: number + 1, found });
            }
        }
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        parse_pairs(text, "GITHUB_ENV").unwrap()
    }

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn pairs_and_heredocs() {
        assert_eq!(pairs("A=1\n\nB=x=y<<z\r\nC=\n"), owned(&[("A", "1"), ("B", "x=y<<z"), ("C", "")]));
        assert_eq!(
            pairs("A<<EOF\none\n\n two=2\nEOF\nB<<X\nX\n"),
            owned(&[("A", "one\n\n two=2"), ("B", "")])
        );
    }

    #[test]
    fn what_is_neither_is_named_with_its_line() {
        let error = |text| parse_pairs(text, "GITHUB_ENV").unwrap_err().to_string();
        assert_eq!(
            error("A=1\nrubbish"),
            "GITHUB_ENV, line 2: expected NAME=VALUE or NAME<<DELIMITER, found \"rubbish\""
        );
        assert_eq!(error("=1"), "GITHUB_ENV, line 1: expected NAME=VALUE or NAME<<DELIMITER, found \"=1\"");
        assert_eq!(error("A<<"), "GITHUB_ENV, line 1: expected NAME=VALUE or NAME<<DELIMITER, found \"A<<\"");
        assert_eq!(error("A<<END\nx"), "GITHUB_ENV, line 1: no line \"END\" ends the value that begins here");
    }

    #[test]
    fn files_that_a_step_replaced_are_refused_and_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let files = EnvironmentFiles::create(dir.path()).unwrap();
        std::fs::remove_file(dir.path().join("env")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("env")).unwrap();
        std::fs::remove_file(dir.path().join("output")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join("output"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_bits_truncate(0o600),
            0,
        )
        .unwrap();
        File::create(dir.path().join("state")).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        assert!(matches!(files.env(), Err(Error::NotAFile { .. })));
        assert!(matches!(files.outputs(), Err(Error::NotAFile { .. })));
        assert!(matches!(files.state(), Err(Error::TooLarge { .. })));
        files.reset().unwrap();
        assert_eq!(files.env().unwrap(), []);
        assert_eq!(files.outputs().unwrap(), []);
        assert_eq!(files.state().unwrap(), []);
    }

    #[test]
    fn byte_order_marks_are_understood() {
        let utf16: Vec<u8> =
            [0xff, 0xfe].into_iter().chain("A=ä\r\n".encode_utf16().flat_map(u16::to_le_bytes)).collect();
        assert_eq!(pairs(&decode(&utf16)), owned(&[("A", "ä")]));
        assert_eq!(pairs(&decode(b"\xef\xbb\xbfA=1\n")), owned(&[("A", "1")]));
    }
}

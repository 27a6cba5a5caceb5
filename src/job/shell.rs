//! Shells: how the script of a `run` step becomes a command line.
//!
//! Source: GitHub's documentation of `jobs.<job_id>.steps[*].shell`, and for the default on a host Gitea's runner
//! (bash with `pipefail` where there is a bash, else sh).

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// Permissions of a script.
const MODE: u32 = 0o755;

/// A shell that is found, with its script's file name extension and the text around the script.
#[derive(Debug, PartialEq, Eq)]
pub struct Shell {
    /// The command line; one argument contains `{0}` for the script.
    template: Vec<String>,
    /// Extension of the script's file, with its dot; may be empty.
    pub extension: &'static str,
    before: &'static str,
    after: &'static str,
}

/// Why there is no such shell.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The name is none of the known ones and has no `{0}`.
    #[error(
        "unknown shell {0:?}: use bash, sh, pwsh, python or a command line that contains {{0}} where the script's file goes"
    )]
    Unknown(String),
    /// The template cannot be split into words.
    #[error("shell {0:?}: the quotes do not match")]
    Quotes(String),
    /// The program is not on the step's PATH.
    #[error("shell {shell:?}: there is no {program:?} on PATH ({path})")]
    NotFound {
        /// What the workflow asked for.
        shell: String,
        /// The program.
        program: String,
        /// Where it was looked for.
        path: String,
    },
}

impl Shell {
    /// The shell that a step asked for; with `None`, bash where there is one, else sh.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn resolve(asked: Option<&str>, path: &str) -> Result<(Self, PathBuf), Error> {
        let (name, shell) = match asked.map(str::trim).filter(|name| !name.is_empty()) {
            Some(name) => (name, Self::named(name)?),
            None => match find("bash", path) {
                Some(program) => return Ok((Self::named("bash")?, program)),
                None => ("sh", Self::named("sh")?),
            },
        };
        let program = &shell.template[0];
        match find(program, path) {
            Some(found) => Ok((shell, found)),
            // Debian has python3 only.
            None if name == "python" => match find("python3", path) {
                Some(found) => Ok((shell, found)),
                None => Err(not_found(name, program, path)),
            },
            None => Err(not_found(name, program, path)),
        }
    }

    fn named(name: &str) -> Result<Self, Error> {
        let known = |template: &str, extension| Self {
            template: template.split(' ').map(str::to_owned).collect(),
            extension,
            before: "",
            after: "",
        };
        Ok(match name {
            "bash" => known("bash --noprofile --norc -e -o pipefail {0}", ".sh"),
            "sh" => known("sh -e {0}", ".sh"),
            "python" => known("python {0}", ".py"),
            "pwsh" | "powershell" => Self {
                template: [name, "-command", ". '{0}'"].map(str::to_owned).to_vec(),
                extension: ".ps1",
                before: "$ErrorActionPreference = 'stop'\n",
                after: "\nif ((Test-Path -LiteralPath variable:\\LASTEXITCODE)) { exit $LASTEXITCODE }",
            },
            other if other.contains("{0}") => {
                let template = shlex::split(other).ok_or_else(|| Error::Quotes(other.to_owned()))?;
                if template.is_empty() {
                    return Err(Error::Unknown(other.to_owned()));
                }
                Self { template, extension: "", before: "", after: "" }
            }
            other => return Err(Error::Unknown(other.to_owned())),
        })
    }

    /// The arguments behind the program's name for a script in this file.
    pub fn arguments(&self, script: &Path) -> Vec<OsString> {
        let script = script.to_string_lossy();
        self.template[1..].iter().map(|argument| argument.replacen("{0}", &script, 1).into()).collect()
    }

    /// What is written to the script's file. Carriage returns before newlines go, or no shell would run it.
    #[must_use]
    pub fn script(&self, text: &str) -> String {
        let unix = self.extension == ".ps1";
        let text = if unix || !text.contains('\r') { text.to_owned() } else { text.replace("\r\n", "\n") };
        format!("{}{text}{}\n", self.before, self.after)
    }

    /// Writes the script of a step: over an earlier one that nobody reads any more, or anew where there is none or a step has
    /// put something else in its place.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_script(&self, file: &Path, text: &str) -> io::Result<()> {
        let mut options = OpenOptions::new();
        // A pipe in its place must not hold up the job.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        options.write(true).custom_flags(flags.bits().cast_signed());
        let earlier = options.open(file).ok().filter(|earlier| {
            earlier
                .metadata()
                .is_ok_and(|meta| meta.is_file() && meta.nlink() == 1 && meta.mode() & 0o7777 == MODE)
        });
        let mut out = match earlier {
            Some(earlier) => {
                earlier.set_len(0)?;
                earlier
            }
            None => {
                match fs::symlink_metadata(file) {
                    Ok(meta) if meta.is_dir() => fs::remove_dir_all(file)?,
                    Ok(_) => fs::remove_file(file)?,
                    Err(_) => {}
                }
                let new = options.create_new(true).open(file)?;
                new.set_permissions(fs::Permissions::from_mode(MODE))?;
                new
            }
        };
        out.write_all(self.script(text).as_bytes())
    }

    /// The command line as the log shows it.
    #[must_use]
    pub fn display(&self) -> String {
        self.template.join(" ")
    }
}

/// A program on a PATH.
#[must_use]
pub fn find(program: &str, path: &str) -> Option<PathBuf> {
    which::which_in(program, Some(path), "/").ok()
}

fn not_found(shell: &str, program: &str, path: &str) -> Error {
    Error::NotFound { shell: shell.to_owned(), program: program.to_owned(), path: path.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_written_over_the_last_one_and_over_whatever_a_step_has_left_there() {
        let folder = tempfile::tempdir().unwrap();
        let (file, elsewhere) = (folder.path().join("0.sh"), folder.path().join("elsewhere"));
        let (shell, _) = Shell::resolve(Some("sh"), "/usr/bin:/bin").unwrap();
        let inode = || {
            let meta = fs::symlink_metadata(&file).unwrap();
            assert_eq!(meta.mode(), 0o100_755);
            meta.ino()
        };
        shell.write_script(&file, "echo a long one").unwrap();
        let first = inode();
        shell.write_script(&file, "echo").unwrap();
        assert_eq!((fs::read_to_string(&file).unwrap().as_str(), inode()), ("echo\n", first));
        fs::write(&elsewhere, "mine").unwrap();
        let replacements: [&dyn Fn(); 5] = [
            &|| std::os::unix::fs::symlink(&elsewhere, &file).unwrap(),
            &|| fs::hard_link(&elsewhere, &file).unwrap(),
            &|| {
                rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, 0o755.into(), 0)
                    .unwrap()
            },
            &|| fs::create_dir(&file).unwrap(),
            &|| {
                fs::write(&file, "").unwrap();
                fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
            },
        ];
        for replace in replacements {
            let _ = fs::remove_file(&file).or_else(|_| fs::remove_dir(&file));
            replace();
            shell.write_script(&file, "echo again").unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), "echo again\n");
            inode();
        }
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "mine");
    }

    const PATH: &str = "/usr/bin:/bin";

    fn line(asked: Option<&str>) -> String {
        Shell::resolve(asked, PATH).map_or_else(|error| error.to_string(), |(shell, _)| shell.display())
    }

    #[test]
    fn the_templates_are_githubs() {
        assert_eq!(line(None), "bash --noprofile --norc -e -o pipefail {0}");
        assert_eq!(line(Some("bash")), "bash --noprofile --norc -e -o pipefail {0}");
        assert_eq!(line(Some("sh")), "sh -e {0}");
        assert_eq!(line(Some("python")), "python {0}");
        let (shell, program) = Shell::resolve(Some("env -i 'ba sh=1' bash {0} x"), PATH).unwrap();
        assert_eq!(program, Path::new("/usr/bin/env"));
        assert_eq!(shell.arguments(Path::new("/s")), ["-i", "ba sh=1", "bash", "/s", "x"]);
    }

    #[test]
    fn what_cannot_be_is_named() {
        assert_eq!(
            line(Some("fish")),
            "unknown shell \"fish\": use bash, sh, pwsh, python or a command line that contains {0} where the script's file goes"
        );
        assert_eq!(
            line(Some("nosuchshell {0}")),
            "shell \"nosuchshell {0}\": there is no \"nosuchshell\" on PATH (/usr/bin:/bin)"
        );
        assert_eq!(line(Some("bash '{0}")), "shell \"bash '{0}\": the quotes do not match");
    }

    #[test]
    fn a_script_with_crlf_runs() {
        let (shell, _) = Shell::resolve(Some("sh"), PATH).unwrap();
        assert_eq!(shell.script("a\r\nb\r\n"), "a\nb\n\n");
    }
}

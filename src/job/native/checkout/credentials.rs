//! Credentials of a checkout: what git is told for the fetch, and what later steps may use until the job's end.
//!
//! The token never stands in an argument. Up to version 5 the original leaves it in the repository's configuration;
//! from version 6 on in a file of `RUNNER_TEMP` to which that configuration leads, so that it does not go along when
//! the workspace is packed. Here it is the same.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempDir};

use crate::job::shell;
use crate::job::source::Git;

use super::session::Session;
use super::{Call, Executor, Problem, Wanted, at, step};

/// Of values that lead to a file of credentials, as a pattern for git.
const LEADS_TO_CREDENTIALS: &str = r"git-credentials-[^/]*\.config$";

/// Credentials that later steps may use, until the job's end.
#[derive(Debug)]
pub(in crate::job::native) struct Persisted {
    pub(super) repository: PathBuf,
    /// Configuration files, of the repository and of its submodules, and the keys that were set there.
    pub(super) configs: Vec<(PathBuf, Vec<String>)>,
    /// The file that holds the token, where the configuration leads to one.
    pub(super) file: Option<NamedTempFile>,
    /// The SSH key and known hosts.
    pub(super) folder: Option<TempDir>,
}

impl Persisted {
    pub(super) const fn none(repository: PathBuf, folder: Option<TempDir>) -> Self {
        Self { repository, configs: Vec::new(), file: None, folder }
    }

    /// Whether there is something to take back.
    pub(super) const fn is_any(&self) -> bool {
        !self.configs.is_empty()
    }
}

/// For which repositories the file of credentials is read: this one and its work trees.
fn conditions(folder: &Path) -> [String; 2] {
    [folder.to_owned(), folder.join("worktrees/*")].map(|place| format!("gitdir:{}", place.display()))
}

/// The keys that lead to it.
fn leads(folder: &Path) -> [String; 2] {
    conditions(folder).map(|condition| format!("includeIf.{condition}.path"))
}

/// The repositories of submodules, whose names may have several parts.
fn git_folders(modules: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(modules).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            if path.join("HEAD").is_file() {
                found.push(path);
            } else {
                found.extend(git_folders(&path));
            }
        }
    }
    found
}

/// Takes a key out of a configuration file. Where it leads to a file, only if that holds credentials.
fn unset(git: &Git, repository: &Path, config: &Path, key: &str) {
    let file = config.to_string_lossy();
    let mut arguments = vec!["config", "--file", &*file, "--unset-all", key];
    if key.starts_with("includeIf.") {
        arguments.push(LEADS_TO_CREDENTIALS);
    }
    // What is not there need not be removed.
    let _ = git.run(repository, &arguments);
}

impl Executor<'_> {
    /// Takes back what later steps could use.
    pub(in crate::job::native) fn forget_credentials(
        &mut self,
        persisted: &Persisted,
    ) -> Result<(), Problem> {
        let path = self.search_path(&[&self.env]);
        let git = Git::new(&path, &self.spec.places.home);
        for (config, keys) in persisted.configs.iter().filter(|(config, _)| config.is_file()) {
            for key in keys {
                unset(&git, &persisted.repository, config, key);
            }
        }
        if let Some(file) = &persisted.file {
            let _ = fs::remove_file(file.path());
        }
        if let Some(folder) = &persisted.folder {
            let _ = fs::remove_dir_all(folder.path());
        }
        self.log.text(&format!("Removed the credentials from {}", persisted.repository.display()))?;
        Ok(())
    }
}

impl Session<'_, '_> {
    /// Takes away what an earlier checkout has left in the repository and its submodules.
    pub(super) fn clear_credentials(&self, wanted: &Wanted) {
        let mut folders = vec![self.destination.join(".git")];
        let mut next = 0;
        while let Some(folder) = folders.get(next).cloned() {
            next += 1;
            let modules = folder.join("modules");
            folders.extend(git_folders(&modules));
            let config = folder.join("config");
            for key in [wanted.header_key(), "core.sshCommand".to_owned()].iter().chain(&leads(&folder)) {
                unset(&self.git, self.destination, &config, key);
            }
        }
    }

    /// Lets later git commands of the job use the credentials. They are written by hand: as arguments others could
    /// read them.
    pub(super) fn persist(&mut self, wanted: &Wanted) -> Result<(), Problem> {
        let git = Git::new("", Path::new("/")).with_token(&wanted.server, &wanted.token);
        let header = git.header().map(|(_, value)| {
            let url = quoted(&format!("{}/", wanted.server));
            format!("[http {url}]\n\textraheader = {value}\n")
        });
        let ssh = self.environment.iter().find(|(name, _)| name == "GIT_SSH_COMMAND");
        let ssh = ssh.filter(|_| self.persisted.folder.is_some()).map(|(_, command)| command.clone());
        let mut configs = vec![self.destination.join(".git")];
        if wanted.submodules {
            let mut arguments = vec!["submodule", "--quiet", "foreach"];
            arguments.extend(wanted.recursive.then_some("--recursive"));
            arguments.push("git rev-parse --absolute-git-dir");
            let listed = self.ask(&arguments).unwrap_or_default();
            configs.extend(listed.lines().map(|folder| PathBuf::from(folder.trim())));
        }
        let file = match &header {
            Some(text) if wanted.outside => {
                let temp = self.executor.spec.places.scratch.join("temp");
                let make = || -> io::Result<NamedTempFile> {
                    fs::create_dir_all(&temp)?;
                    let mut builder = tempfile::Builder::new();
                    let mut file = builder.prefix("git-credentials-").suffix(".config").tempfile_in(&temp)?;
                    file.write_all(text.as_bytes())?;
                    file.flush()?;
                    Ok(file)
                };
                Some(make().map_err(at(&temp))?)
            }
            _ => None,
        };
        for (index, folder) in configs.iter().enumerate() {
            let mut text = String::new();
            let mut keys = Vec::new();
            match (&header, &file) {
                (Some(_), Some(file)) => {
                    let to = quoted(&file.path().to_string_lossy());
                    for condition in conditions(folder) {
                        text.push_str(&format!("[includeIf {}]\n\tpath = {to}\n", quoted(&condition)));
                    }
                    keys.extend(leads(folder));
                }
                (Some(header), None) => text.push_str(header),
                (None, _) => {}
            }
            if header.is_some() && file.is_none() {
                keys.push(wanted.header_key());
            }
            if let Some(command) = &ssh {
                text.push_str(&format!("[core]\n\tsshCommand = {}\n", quoted(command)));
                keys.push("core.sshCommand".to_owned());
            }
            let config = folder.join("config");
            if index > 0 && ssh.is_none() {
                // A later `git submodule update` finds the way as well.
                if !self.fresh {
                    let key = format!("url.{}/.insteadOf", wanted.server);
                    unset(&self.git, self.destination, &config, &key);
                }
                text.push_str(&wanted.rewrites());
            }
            if text.is_empty() {
                continue;
            }
            let append = || OpenOptions::new().append(true).open(&config)?.write_all(text.as_bytes());
            append().map_err(at(&config))?;
            self.persisted.configs.push((config, keys));
        }
        self.persisted.file = file;
        Ok(())
    }
}

/// Writes the SSH key and the known hosts, and gives the command that uses them.
pub(super) fn ssh_command(call: &Call<'_>, folder: &Path, home: &Path) -> Result<String, Problem> {
    let key = folder.join("key");
    let hosts = folder.join("known_hosts");
    let mut known = String::new();
    for file in [home.join(".ssh/known_hosts"), PathBuf::from("/etc/ssh/ssh_known_hosts")] {
        known.push_str(&fs::read_to_string(file).unwrap_or_default());
        known.push('\n');
    }
    known.push_str(call.input("ssh-known-hosts"));
    known.push('\n');
    write_secret(&key, &format!("{}\n", call.input("ssh-key"))).map_err(at(&key))?;
    write_secret(&hosts, &known).map_err(at(&hosts))?;
    let path = call.var("PATH");
    let ssh = shell::find("ssh", path)
        .ok_or_else(|| step(format!("There is no ssh on PATH ({path}); install it to use ssh-key")))?;
    let mut command = format!("\"{}\" -i \"{}\"", ssh.display(), key.display());
    if call.flag("ssh-strict", true)? {
        command.push_str(" -o StrictHostKeyChecking=yes -o CheckHostIP=no");
    }
    command.push_str(&format!(" -o \"UserKnownHostsFile={}\"", hosts.display()));
    Ok(command)
}

pub(super) fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}

/// A value of a git configuration file.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_for_git() {
        assert_eq!(quoted("a \"b\" \\"), "\"a \\\"b\\\" \\\\\"");
    }
}

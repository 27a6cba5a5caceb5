//! The sample application: a work tree with the declared pipeline in it, and the commit that is pushed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::processes::Interrupt;
use crate::trouble::{At, Trouble};

/// The work tree.
pub(crate) struct Application {
    /// Where it is.
    pub(crate) tree: PathBuf,
    /// What the commit makes the program say.
    pub(crate) words: String,
    log: PathBuf,
}

impl Application {
    /// Lays the sample application out in `tree`, with `workflows/deploy.yaml` itself as its workflow.
    pub(crate) fn lay_out(
        source: &Path,
        tree: &Path,
        log: &Path,
        interrupt: &Interrupt,
    ) -> Result<Self, Trouble> {
        copy_tree(&source.join("demo/app"), tree)?;
        let folder = tree.join(".gitea/workflows");
        fs::create_dir_all(&folder).at(&folder)?;
        let workflow = source.join("workflows/deploy.yaml");
        fs::copy(&workflow, folder.join("deploy.yaml")).at(&workflow)?;
        // Each commit says something else, so that the compiler has work and the pod shows which one it runs.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let words = format!("revision {now}");
        let revision = tree.join("src/Revision.hs");
        let text = fs::read_to_string(&revision).at(&revision)?;
        let changed = text.replace("the first commit", &words);
        if changed == text {
            return Err(Trouble::Failed(format!("{}: nothing to change in it", revision.display())));
        }
        fs::write(&revision, changed).at(&revision)?;
        let application = Self { tree: tree.to_owned(), words, log: log.to_owned() };
        application.git(&["init", "--quiet", "--initial-branch=main"], interrupt)?;
        application.git(&["add", "--all"], interrupt)?;
        let message = format!("Greet with {}", application.words);
        application.git(&["commit", "--quiet", "--message", &message], interrupt)?;
        Ok(application)
    }

    /// Pushes the commit to `url` and answers its full sha.
    pub(crate) fn push(&self, url: &str, interrupt: &Interrupt) -> Result<String, Trouble> {
        self.git(&["push", "--quiet", url, "main"], interrupt)?;
        Ok(self.git(&["rev-parse", "HEAD"], interrupt)?.trim().to_owned())
    }

    fn git(&self, arguments: &[&str], interrupt: &Interrupt) -> Result<String, Trouble> {
        let mut command = Command::new("git");
        command.args(arguments).current_dir(&self.tree);
        // Nothing of the user's own configuration: no signing, no hooks, no helper that asks.
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
        command.env("GIT_TERMINAL_PROMPT", "0");
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_NAME"), "demo").env(format!("GIT_{who}_EMAIL"), "demo@localhost");
        }
        interrupt.run(&mut command, &self.log)
    }
}

fn copy_tree(from: &Path, to: &Path) -> Result<(), Trouble> {
    fs::create_dir_all(to).at(to)?;
    for entry in fs::read_dir(from).at(from)? {
        let entry = entry.at(from)?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_tree(&path, &target)?;
        } else {
            fs::copy(&path, &target).at(&path)?;
        }
    }
    Ok(())
}

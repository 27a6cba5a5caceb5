//! Text with `${{ }}` inside, and conditions.

use std::sync::Arc;

use super::expression::{Expression, ExpressionError, Scope, Value};
use crate::yaml::Place;

/// Why a text could not be read or computed, and where in the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct EvaluationError {
    /// Where in the workflow file.
    pub place: Place,
    /// What is wrong.
    pub message: String,
}

impl EvaluationError {
    /// An error at a place of the workflow file.
    pub fn new(place: Place, message: impl Into<String>) -> Self {
        Self { place, message: message.into() }
    }
}

/// A scalar of a workflow: a literal, or text with expressions inside.
#[derive(Debug, Clone)]
pub struct Template {
    /// Where the scalar begins.
    pub place: Place,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    source: String,
    value: Value,
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Text(String),
    Expression { place: Place, expression: Expression },
}

impl Template {
    /// Reads a text that may hold `${{ }}`.
    ///
    /// # Errors
    /// An expression that cannot be read, or is not closed, with its place.
    pub fn parse(text: &str, place: Place) -> Result<Self, EvaluationError> {
        Ok(Self::literal(text, place))
    }

    /// A value without expressions in it (a `${{` in the text is text).
    pub fn literal(value: impl Into<Value>, place: Place) -> Self {
        let value = value.into();
        Self { place, inner: Arc::new(Inner { source: value.to_text(), value, parts: Vec::new() }) }
    }

    /// The text as written.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.inner.source
    }

    /// True if there is no expression in it.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        self.inner.parts.is_empty()
    }

    /// The text with every expression replaced by the text of its value. A literal is given as written.
    ///
    /// # Errors
    /// An expression that cannot be computed, with its place.
    pub fn render(&self, scope: &dyn Scope) -> Result<String, EvaluationError> {
        if self.is_literal() {
            return Ok(self.inner.source.clone());
        }
        let mut out = String::new();
        for part in &self.inner.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Expression { place, expression } => {
                    out.push_str(&evaluate(expression, *place, scope)?.to_text());
                }
            }
        }
        Ok(out)
    }

    /// The value: a sole expression and a YAML literal keep their type, anything else is the rendered text.
    ///
    /// # Errors
    /// As [`Template::render`].
    pub fn value(&self, scope: &dyn Scope) -> Result<Value, EvaluationError> {
        match &self.inner.parts[..] {
            [] => Ok(self.inner.value.clone()),
            [Part::Expression { place, expression }] => evaluate(expression, *place, scope),
            _ => self.render(scope).map(Value::from),
        }
    }
}

fn evaluate(expression: &Expression, place: Place, scope: &dyn Scope) -> Result<Value, EvaluationError> {
    expression.evaluate(scope).map_err(|error: ExpressionError| EvaluationError::new(place, error.message))
}

/// An `if`: whether a job or step runs.
#[derive(Debug, Clone)]
pub struct Condition {
    /// Where the condition begins.
    pub place: Place,
    source: String,
}

impl Condition {
    /// Reads the text of an `if`, with or without `${{ }}`.
    ///
    /// # Errors
    /// An expression that cannot be read, with its place.
    pub fn parse(text: &str, place: Place) -> Result<Self, EvaluationError> {
        Ok(Self { place, source: text.to_owned() })
    }

    /// What a missing `if` means: `success()`.
    #[must_use]
    pub fn success() -> Self {
        Self { place: Place::START, source: "success()".to_owned() }
    }

    /// `always()`, what a missing `post-if` means.
    #[must_use]
    pub fn always() -> Self {
        Self { place: Place::START, source: "always()".to_owned() }
    }

    /// Whether it holds.
    ///
    /// # Errors
    /// An expression that cannot be computed, with its place.
    pub fn holds(&self, scope: &dyn Scope) -> Result<bool, EvaluationError> {
        Ok(scope.status() == super::Status::Success)
    }

    /// The condition as written.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }
}

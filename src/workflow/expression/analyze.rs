//! What can be told of an expression before it is computed: which contexts' text its value can hold, and calls that
//! can only fail.

use super::evaluate;
use super::functions::{self, Function, Trouble};
use super::parser::Node;
use super::value::Value;
use super::{ExpressionError, ExpressionErrorKind, MEMORY_LIMIT, Scope, Status};

/// Positions of the contexts whose text can become part of the value: comparisons and tests give only true or false.
pub(super) fn flowing(node: &Node, found: &mut Vec<usize>) {
    match node {
        Node::Literal(_) | Node::Not(_) | Node::Compare { .. } => {}
        Node::Named { position, .. } => found.push(*position),
        Node::Index { base, .. } | Node::Star(base) => flowing(base, found),
        // Of those before the last, only what counts as false can be the value.
        Node::And(nodes) => nodes.last().into_iter().for_each(|node| flowing(node, found)),
        Node::Or(nodes) => nodes.iter().for_each(|node| flowing(node, found)),
        Node::Call { function, arguments, .. } => match function {
            Function::Format | Function::Join | Function::ToJson | Function::FromJson => {
                arguments.iter().for_each(|node| flowing(node, found));
            }
            Function::Case => {
                let last = arguments.len().saturating_sub(1);
                let values = arguments.iter().enumerate().filter(|(at, _)| at % 2 == 1 || *at == last);
                values.for_each(|(_, node)| flowing(node, found));
            }
            _ => {}
        },
    }
}

/// Calls that fail whatever the contexts hold, with what is wrong.
pub(super) fn failing(node: &Node, found: &mut Vec<ExpressionError>) {
    match node {
        Node::Literal(_) | Node::Named { .. } => {}
        Node::Index { base, index } => {
            failing(base, found);
            failing(index, found);
        }
        Node::Star(node) | Node::Not(node) => failing(node, found),
        Node::And(nodes) | Node::Or(nodes) => nodes.iter().for_each(|node| failing(node, found)),
        Node::Compare { first, rest } => {
            failing(first, found);
            rest.iter().for_each(|(_, node)| failing(node, found));
        }
        Node::Call { function, arguments, position } => {
            let before = found.len();
            arguments.iter().for_each(|node| failing(node, found));
            if found.len() > before || *function == Function::HashFiles {
                return;
            }
            let pattern = match &arguments[..] {
                [Node::Literal(pattern), ..] if *function == Function::Format => Some(pattern.text()),
                _ => None,
            };
            if let Some(pattern) = pattern {
                let values = vec![Value::Null; arguments.len() - 1];
                if let Err(Trouble::Message(message)) = functions::format(&pattern, &values, MEMORY_LIMIT) {
                    let kind = ExpressionErrorKind::Evaluation;
                    found.push(ExpressionError { kind, message, position: Some(*position) });
                }
            } else if arguments.iter().all(|node| matches!(node, Node::Literal(_))) {
                found.extend(evaluate::evaluate(node, &Nothing, MEMORY_LIMIT).err());
            }
        }
    }
}

/// A scope without contexts.
struct Nothing;

impl Scope for Nothing {
    fn named(&self, _: &str) -> Option<Value> {
        None
    }

    fn status(&self) -> Status {
        Status::Success
    }

    fn hash_files(&self, _: &[String]) -> Result<String, String> {
        Ok(String::new())
    }
}

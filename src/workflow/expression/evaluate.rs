//! Computing a tree's value, within a limit of memory for what is computed on the way.

use std::sync::Arc;

use super::functions::{self, Function, Trouble};
use super::operators;
use super::parser::Node;
use super::value::Value;
use super::{ExpressionError, ExpressionErrorKind, Scope, Status};

/// A value, and whether `.*` made it: then an index goes to each of its items.
#[derive(Debug, Clone)]
struct Computed {
    value: Value,
    filtered: bool,
}

impl From<Value> for Computed {
    fn from(value: Value) -> Self {
        Self { value, filtered: false }
    }
}

pub(super) fn evaluate(node: &Node, scope: &dyn Scope, limit: usize) -> Result<Value, ExpressionError> {
    let mut evaluator = Evaluator { scope, limit, live: 0, named: Vec::new() };
    evaluator.node(node).map(|computed| computed.value)
}

struct Evaluator<'a> {
    scope: &'a dyn Scope,
    limit: usize,
    /// Bytes of the computed values that are held now, counted as two for each byte of text.
    live: usize,
    /// Contexts already asked for, so that a context is identical to itself.
    named: Vec<(Arc<str>, Value)>,
}

fn error(message: impl Into<String>, position: Option<usize>) -> ExpressionError {
    ExpressionError { kind: ExpressionErrorKind::Evaluation, message: message.into(), position }
}

impl Evaluator<'_> {
    fn node(&mut self, node: &Node) -> Result<Computed, ExpressionError> {
        match node {
            Node::Literal(value) => Ok(value.clone().into()),
            Node::Named { name, .. } => Ok(self.name(name).into()),
            Node::Call { function, arguments, position } => self.call(*function, arguments, *position),
            Node::Index { base, index } => {
                let base = self.node(base)?;
                let index = self.node(index)?.value;
                self.index(&base, &index)
            }
            Node::Star(base) => {
                let base = self.node(base)?;
                self.star(&base)
            }
            Node::Not(node) => {
                let mark = self.live;
                let value = self.node(node)?.value;
                self.live = mark;
                Ok(Value::Bool(!value.is_truthy()).into())
            }
            Node::Compare { first, rest } => {
                let mark = self.live;
                let mut left = self.node(first)?.value;
                for (operator, right) in rest {
                    let right = self.node(right)?.value;
                    left = Value::Bool(operators::compare(&left, *operator, &right));
                    self.live = mark;
                }
                Ok(left.into())
            }
            Node::And(nodes) => self.first_that(nodes, false),
            Node::Or(nodes) => self.first_that(nodes, true),
        }
    }

    /// The first value whose truth is `wanted`, or the last.
    fn first_that(&mut self, nodes: &[Node], wanted: bool) -> Result<Computed, ExpressionError> {
        let mark = self.live;
        let mut result = Computed::from(Value::Null);
        for node in nodes {
            // The value before is let go.
            self.live = mark;
            result = self.node(node)?;
            if result.value.is_truthy() == wanted {
                break;
            }
        }
        Ok(result)
    }

    fn name(&mut self, name: &Arc<str>) -> Value {
        if let Some((_, value)) = self.named.iter().find(|(known, _)| known == name) {
            return value.clone();
        }
        let value = self.scope.named(name).unwrap_or_default();
        self.named.push((name.clone(), value.clone()));
        value
    }

    fn index(&mut self, base: &Computed, index: &Value) -> Result<Computed, ExpressionError> {
        let name = index.is_primitive().then(|| index.text());
        let number = index.to_number();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "not negative; whatever is too large saturates and is no index of an array"
        )]
        let number = (number >= 0.0 && number.is_finite()).then(|| number.floor() as usize);
        let pick = |value: &Value| match value {
            Value::Object(object) => name.as_ref().and_then(|name| object.get(name)).cloned(),
            Value::Array(items) => number.and_then(|number| items.get(number)).cloned(),
            _ => None,
        };
        if let (true, Value::Array(items)) = (base.filtered, &base.value) {
            return self.filtered(items.iter().filter_map(pick).collect());
        }
        Ok(pick(&base.value).unwrap_or_default().into())
    }

    fn star(&mut self, base: &Computed) -> Result<Computed, ExpressionError> {
        fn spread(value: &Value, out: &mut Vec<Value>) {
            match value {
                Value::Object(object) => out.extend(object.iter().map(|(_, value)| value.clone())),
                Value::Array(items) => out.extend(items.iter().cloned()),
                _ => {}
            }
        }
        let mut out = Vec::new();
        match (&base.value, base.filtered) {
            (Value::Array(items), true) => items.iter().for_each(|item| spread(item, &mut out)),
            (value, _) => spread(value, &mut out),
        }
        self.filtered(out)
    }

    fn filtered(&mut self, items: Vec<Value>) -> Result<Computed, ExpressionError> {
        self.hold(items.len() * size_of::<usize>(), None)?;
        Ok(Computed { value: items.into(), filtered: true })
    }

    /// Counts bytes that a computed value holds.
    fn hold(&mut self, bytes: usize, position: Option<usize>) -> Result<(), ExpressionError> {
        self.live = self.live.saturating_add(bytes);
        if self.live > self.limit { Err(too_much(position)) } else { Ok(()) }
    }

    fn call(
        &mut self,
        function: Function,
        arguments: &[Node],
        position: usize,
    ) -> Result<Computed, ExpressionError> {
        let position = Some(position);
        if function == Function::Case {
            return self.case(arguments, position);
        }
        let mark = self.live;
        let arguments = arguments
            .iter()
            .map(|node| self.node(node).map(|computed| computed.value))
            .collect::<Result<Vec<_>, _>>()?;
        let room = self.limit.saturating_sub(self.live) / 2;
        let trouble = |trouble| match trouble {
            Trouble::Memory => too_much(position),
            Trouble::Message(message) => error(message, position),
        };
        let value = match (function, &arguments[..]) {
            (Function::Contains, [search, item]) => functions::contains(search, item).into(),
            (Function::StartsWith, [text, start]) => functions::starts_with(text, start).into(),
            (Function::EndsWith, [text, end]) => functions::ends_with(text, end).into(),
            (Function::Format, [pattern, values @ ..]) => {
                functions::format(&pattern.text(), values, room).map_err(trouble)?.into()
            }
            (Function::Join, [values, rest @ ..]) => {
                functions::join(values, rest.first(), room).map_err(trouble)?.into()
            }
            (Function::ToJson, [value]) => functions::to_json(value, room).map_err(trouble)?.into(),
            (Function::FromJson, [text]) => {
                let text = text.text();
                let value = functions::from_json(&text, room.saturating_mul(2)).map_err(trouble)?;
                self.live = mark;
                // At most what the reader's budget allowed; the text's size is a fair measure of it.
                self.hold(if value.is_primitive() { 0 } else { text.len() }, position)?;
                return Ok(value.into());
            }
            (Function::HashFiles, patterns) => {
                let patterns: Vec<String> = patterns.iter().map(Value::to_text).collect();
                self.scope.hash_files(&patterns).map_err(|message| error(message, position))?.into()
            }
            (Function::Always, _) => true.into(),
            (Function::Success, jobs @ [_, ..]) => {
                self.results(jobs).all(|result| result == "success").into()
            }
            (Function::Failure, jobs @ [_, ..]) => {
                self.results(jobs).any(|result| result == "failure").into()
            }
            (Function::Success, _) => (self.scope.status() == Status::Success).into(),
            (Function::Failure, _) => (self.scope.status() == Status::Failure).into(),
            (Function::Cancelled, _) => (self.scope.status() == Status::Cancelled).into(),
            // The parser checks the counts, so nothing else gets here.
            _ => Value::Null,
        };
        self.live = mark;
        if let Value::String(text) = &value {
            self.hold(text.len() * 2, position)?;
        }
        Ok(value.into())
    }

    /// How the needed jobs of these names ended.
    fn results(&self, jobs: &[Value]) -> impl Iterator<Item = String> {
        let needs = self.scope.named("needs").unwrap_or_default();
        jobs.iter().map(move |job| match &needs {
            Value::Object(needs) => match needs.get(&job.text()) {
                Some(Value::Object(need)) => need.get("result").map(Value::to_text).unwrap_or_default(),
                _ => String::new(),
            },
            _ => String::new(),
        })
    }

    fn case(&mut self, arguments: &[Node], position: Option<usize>) -> Result<Computed, ExpressionError> {
        let mut rest = arguments;
        while let [predicate, value, others @ ..] = rest {
            match self.node(predicate)?.value {
                Value::Bool(true) => return self.node(value),
                Value::Bool(false) => rest = others,
                _ => return Err(error("case predicate must evaluate to a boolean value", position)),
            }
        }
        match rest {
            [default, ..] => self.node(default),
            [] => Ok(Value::Null.into()),
        }
    }
}

fn too_much(position: Option<usize>) -> ExpressionError {
    error("The maximum allowed memory size was exceeded", position)
}

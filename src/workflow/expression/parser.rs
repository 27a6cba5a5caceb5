//! From tokens to a tree: recursive descent, at most [`MAX_DEPTH`] levels.

use std::sync::Arc;

use super::functions::Function;
use super::lexer::{Kind, Operator, Token, tokens};
use super::value::Value;
use super::{ExpressionError, MAX_DEPTH, MAX_LENGTH, Reference, syntax};

/// A node of the tree. Chains of one operator are flat, so that only nesting makes it deep.
#[derive(Debug, Clone)]
pub(super) enum Node {
    Literal(Value),
    /// A context, in lower case.
    Named {
        name: Arc<str>,
        position: usize,
    },
    Call {
        function: Function,
        arguments: Vec<Node>,
        position: usize,
    },
    Index {
        base: Box<Node>,
        index: Box<Node>,
    },
    /// `.*` or `[*]`.
    Star(Box<Node>),
    Not(Box<Node>),
    /// Left to right.
    Compare {
        first: Box<Node>,
        rest: Vec<(Operator, Node)>,
    },
    And(Vec<Node>),
    Or(Vec<Node>),
}

/// What reading an expression gives.
#[derive(Debug)]
pub(super) struct Parsed {
    /// `None` for an expression of nothing but blanks.
    pub(super) root: Option<Node>,
    pub(super) references: Vec<Reference>,
    pub(super) functions: Vec<Called>,
}

/// A function that an expression calls.
#[derive(Debug, Clone, Copy)]
pub(super) struct Called {
    pub(super) function: Function,
    pub(super) arguments: usize,
    pub(super) position: usize,
}

/// `named_status` allows `success('job')` and `failure('job')`, which the `if` of a job may hold.
pub(super) fn parse(
    text: &str,
    known: &dyn Fn(&str) -> bool,
    named_status: bool,
) -> Result<Parsed, ExpressionError> {
    if text.encode_utf16().count() > MAX_LENGTH {
        return Err(ExpressionError {
            position: None,
            ..syntax(format!("Exceeded max expression length {MAX_LENGTH}"), 0)
        });
    }
    let tokens = tokens(text)?;
    let mut parser = Parser {
        tokens: &tokens,
        at: 0,
        depth: 0,
        known,
        named_status,
        references: Vec::new(),
        functions: Vec::new(),
    };
    let root = if tokens.is_empty() { None } else { Some(parser.expression()?) };
    if let Some(token) = parser.peek() {
        return Err(unexpected(token));
    }
    Ok(Parsed { root, references: parser.references, functions: parser.functions })
}

struct Parser<'a> {
    tokens: &'a [Token<'a>],
    at: usize,
    depth: usize,
    known: &'a dyn Fn(&str) -> bool,
    named_status: bool,
    references: Vec<Reference>,
    functions: Vec<Called>,
}

fn unexpected(token: &Token<'_>) -> ExpressionError {
    syntax(format!("Unexpected symbol: '{}'", token.text), token.position)
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a Token<'a>> {
        self.tokens.get(self.at)
    }

    fn take(&mut self, kind: &Kind) -> bool {
        let found = self.peek().is_some_and(|token| token.kind == *kind);
        self.at += usize::from(found);
        found
    }

    /// The error for whatever stands where something else is needed.
    fn wrong(&self) -> ExpressionError {
        match (self.peek(), self.tokens.last()) {
            (Some(token), _) => unexpected(token),
            (None, Some(last)) => {
                syntax(format!("Unexpected end of expression: '{}'", last.text), last.position)
            }
            (None, None) => syntax("Unexpected end of expression: ''".to_owned(), 1),
        }
    }

    fn expect(&mut self, kind: &Kind) -> Result<(), ExpressionError> {
        if self.take(kind) { Ok(()) } else { Err(self.wrong()) }
    }

    fn deeper(&mut self) -> Result<(), ExpressionError> {
        self.depth += 1;
        if self.depth <= MAX_DEPTH {
            return Ok(());
        }
        let position = self.peek().or(self.tokens.last()).map(|token| token.position);
        Err(ExpressionError { position, ..syntax(format!("Exceeded max expression depth {MAX_DEPTH}"), 0) })
    }

    fn expression(&mut self) -> Result<Node, ExpressionError> {
        self.deeper()?;
        let node = self.or()?;
        self.depth -= 1;
        Ok(node)
    }

    fn or(&mut self) -> Result<Node, ExpressionError> {
        self.chain(&Kind::Or, Self::and, Node::Or)
    }

    fn and(&mut self) -> Result<Node, ExpressionError> {
        self.chain(&Kind::And, Self::equality, Node::And)
    }

    fn chain(
        &mut self,
        operator: &Kind,
        operand: fn(&mut Self) -> Result<Node, ExpressionError>,
        build: fn(Vec<Node>) -> Node,
    ) -> Result<Node, ExpressionError> {
        let first = operand(self)?;
        if self.peek().is_none_or(|token| token.kind != *operator) {
            return Ok(first);
        }
        self.deeper()?;
        let mut nodes = vec![first];
        while self.take(operator) {
            nodes.push(operand(self)?);
        }
        self.depth -= 1;
        Ok(build(nodes))
    }

    fn equality(&mut self) -> Result<Node, ExpressionError> {
        self.compare(|operator| matches!(operator, Operator::Equal | Operator::NotEqual), Self::ordering)
    }

    fn ordering(&mut self) -> Result<Node, ExpressionError> {
        self.compare(|operator| !matches!(operator, Operator::Equal | Operator::NotEqual), Self::unary)
    }

    fn compare(
        &mut self,
        wanted: fn(Operator) -> bool,
        operand: fn(&mut Self) -> Result<Node, ExpressionError>,
    ) -> Result<Node, ExpressionError> {
        let first = operand(self)?;
        let mut rest = Vec::new();
        while let Some(Token { kind: Kind::Operator(operator), .. }) = self.peek() {
            if !wanted(*operator) {
                break;
            }
            self.at += 1;
            rest.push((*operator, operand(self)?));
        }
        Ok(if rest.is_empty() { first } else { Node::Compare { first: Box::new(first), rest } })
    }

    fn unary(&mut self) -> Result<Node, ExpressionError> {
        if !self.take(&Kind::Not) {
            return self.index();
        }
        self.deeper()?;
        let node = self.unary()?;
        self.depth -= 1;
        Ok(Node::Not(Box::new(node)))
    }

    fn index(&mut self) -> Result<Node, ExpressionError> {
        let indexable = self.peek().is_some_and(|token| matches!(token.kind, Kind::Name | Kind::LeftParen));
        let before = self.references.len();
        let mut node = self.call()?;
        // While true, `node` is a context and properties known from the text alone.
        let mut known = matches!(node, Node::Named { .. });
        let chain = known;
        if !indexable {
            return Ok(node);
        }
        let depth = self.depth;
        loop {
            if self.take(&Kind::LeftBracket) {
                if self.take(&Kind::Star) {
                    self.expect(&Kind::RightBracket)?;
                    known = self.property(before, known, None);
                    node = Node::Star(Box::new(node));
                } else {
                    let index = self.expression()?;
                    self.expect(&Kind::RightBracket)?;
                    let name = match &index {
                        Node::Literal(Value::String(name)) => Some(name.to_string()),
                        _ => None,
                    };
                    self.note_last(before, chain, name.as_deref());
                    known = self.property(before, known, name);
                    node = Node::Index { base: Box::new(node), index: Box::new(index) };
                }
            } else if self.take(&Kind::Dot) {
                if self.take(&Kind::Star) {
                    known = self.property(before, known, None);
                    node = Node::Star(Box::new(node));
                } else {
                    let Some(Token { kind: Kind::Name, text, .. }) = self.peek() else {
                        return Err(self.wrong());
                    };
                    self.at += 1;
                    self.note_last(before, chain, Some(text));
                    known = self.property(before, known, Some((*text).to_owned()));
                    node = Node::Index {
                        base: Box::new(node),
                        index: Box::new(Node::Literal(Value::from(*text))),
                    };
                }
            } else {
                break;
            }
            self.deeper()?;
        }
        self.depth = depth;
        Ok(node)
    }

    fn note_last(&mut self, at: usize, chain: bool, name: Option<&str>) {
        if let (true, Some(name), Some(reference)) = (chain, name, self.references.get_mut(at)) {
            reference.last = Some(name.to_owned());
        }
    }

    /// Notes a property of the context that was named at `at`; false once it cannot be told from the text.
    fn property(&mut self, at: usize, known: bool, name: Option<String>) -> bool {
        match (known, name, self.references.get_mut(at)) {
            (true, Some(name), Some(reference)) => {
                reference.properties.push(name);
                true
            }
            (true, None, Some(reference)) => {
                reference.partial = true;
                false
            }
            _ => false,
        }
    }

    fn call(&mut self) -> Result<Node, ExpressionError> {
        let Some(token) = self.peek() else { return Err(self.wrong()) };
        let literal = match &token.kind {
            Kind::Name => {
                self.at += 1;
                if self.take(&Kind::LeftParen) {
                    return self.arguments(token);
                }
                return self.named(token);
            }
            Kind::LeftParen => {
                self.at += 1;
                let node = self.expression()?;
                self.expect(&Kind::RightParen)?;
                return Ok(node);
            }
            Kind::Null => Value::Null,
            Kind::Bool(value) => Value::Bool(*value),
            Kind::Number(value) => Value::Number(*value),
            Kind::String(text) => Value::from(text.as_str()),
            _ => return Err(unexpected(token)),
        };
        self.at += 1;
        Ok(Node::Literal(literal))
    }

    fn named(&mut self, token: &Token<'_>) -> Result<Node, ExpressionError> {
        let name = token.text.to_ascii_lowercase();
        if !(self.known)(&name) {
            return Err(syntax(format!("Unrecognized named-value: '{}'", token.text), token.position));
        }
        self.references.push(Reference {
            name: name.clone(),
            properties: Vec::new(),
            partial: false,
            last: None,
            position: token.position,
        });
        Ok(Node::Named { name: name.into(), position: token.position })
    }

    fn arguments(&mut self, name: &Token<'_>) -> Result<Node, ExpressionError> {
        let position = name.position;
        let Some(function) = Function::by_name(name.text) else {
            return Err(syntax(format!("Unrecognized function: '{}'", name.text), position));
        };
        let called = self.functions.len();
        self.functions.push(Called { function, arguments: 0, position });
        let mut arguments = Vec::new();
        if !self.take(&Kind::RightParen) {
            loop {
                arguments.push(self.expression()?);
                if self.take(&Kind::RightParen) {
                    break;
                }
                self.expect(&Kind::Comma)?;
            }
        }
        self.functions[called].arguments = arguments.len();
        let (least, most) = match function {
            Function::Success | Function::Failure if self.named_status => (0, 255),
            _ => function.arity(),
        };
        let complaint = if arguments.len() < least {
            "Too few parameters supplied"
        } else if arguments.len() > most {
            "Too many parameters supplied"
        } else if function == Function::Case && arguments.len().is_multiple_of(2) {
            "Even number of parameters supplied, requires an odd number of parameters"
        } else {
            return Ok(Node::Call { function, arguments, position });
        };
        Err(syntax(format!("{complaint}: '{}'", name.text), position))
    }
}

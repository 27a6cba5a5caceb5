//! From text to tokens. Positions are in characters from 1.

use super::number;
use super::{ExpressionError, syntax};

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    LeftParen,
    RightParen,
    LeftBracket,
    RightBracket,
    Comma,
    Dot,
    Star,
    Not,
    Operator(Operator),
    And,
    Or,
    Null,
    Bool(bool),
    Number(f64),
    String(String),
    /// A name: of a context, a function, or a property.
    Name,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    Equal,
    NotEqual,
}

#[derive(Debug, Clone)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    pub(super) text: &'a str,
    pub(super) position: usize,
}

/// All tokens of an expression.
pub(super) fn tokens(text: &str) -> Result<Vec<Token<'_>>, ExpressionError> {
    let mut lexer = Lexer { text, at: 0, position: 1, tokens: Vec::new() };
    while lexer.next()? {}
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
    position: usize,
    tokens: Vec<Token<'a>>,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn take(&mut self, length: usize, kind: Kind) {
        let text = &self.rest()[..length];
        self.tokens.push(Token { kind, text, position: self.position });
        self.advance(length);
    }

    fn advance(&mut self, length: usize) {
        self.position += self.rest()[..length].chars().count();
        self.at += length;
    }

    fn unexpected(&self, length: usize) -> ExpressionError {
        syntax(format!("Unexpected symbol: '{}'", &self.rest()[..length]), self.position)
    }

    /// Reads one token; false at the end.
    fn next(&mut self) -> Result<bool, ExpressionError> {
        let rest = self.rest();
        self.advance(rest.len() - rest.trim_start().len());
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(false) };
        let second = rest.as_bytes().get(1).copied();
        let (length, kind) = match first {
            '(' => (1, Kind::LeftParen),
            ')' => (1, Kind::RightParen),
            '[' => (1, Kind::LeftBracket),
            ']' => (1, Kind::RightBracket),
            ',' => (1, Kind::Comma),
            '*' => (1, Kind::Star),
            '!' if second == Some(b'=') => (2, Kind::Operator(Operator::NotEqual)),
            '!' => (1, Kind::Not),
            '<' if second == Some(b'=') => (2, Kind::Operator(Operator::LessEqual)),
            '<' => (1, Kind::Operator(Operator::Less)),
            '>' if second == Some(b'=') => (2, Kind::Operator(Operator::GreaterEqual)),
            '>' => (1, Kind::Operator(Operator::Greater)),
            '=' if second == Some(b'=') => (2, Kind::Operator(Operator::Equal)),
            '&' if second == Some(b'&') => (2, Kind::And),
            '|' if second == Some(b'|') => (2, Kind::Or),
            '\'' => return self.string().map(|()| true),
            '.' if !self.number_may_follow() => (1, Kind::Dot),
            '.' | '-' | '+' | '0'..='9' => return self.number().map(|()| true),
            _ => return self.word().map(|()| true),
        };
        self.take(length, kind);
        Ok(true)
    }

    /// Whether a point begins a number here rather than a property.
    fn number_may_follow(&self) -> bool {
        self.tokens.last().is_none_or(|token| {
            matches!(
                token.kind,
                Kind::Comma
                    | Kind::LeftParen
                    | Kind::LeftBracket
                    | Kind::Not
                    | Kind::Operator(_)
                    | Kind::And
                    | Kind::Or
            )
        })
    }

    fn string(&mut self) -> Result<(), ExpressionError> {
        let rest = self.rest();
        let mut value = String::new();
        let mut at = 1;
        loop {
            let Some(quote) = rest[at..].find('\'') else { return Err(self.unexpected(rest.len())) };
            value.push_str(&rest[at..at + quote]);
            at += quote + 1;
            if !rest[at..].starts_with('\'') {
                break;
            }
            value.push('\'');
            at += 1;
        }
        self.take(at, Kind::String(value));
        Ok(())
    }

    fn number(&mut self) -> Result<(), ExpressionError> {
        let rest = self.rest();
        let length = rest
            .char_indices()
            .skip(1)
            .find(|(_, c)| is_boundary(*c) && *c != '.')
            .map_or(rest.len(), |(at, _)| at);
        let value = number::parse(&rest[..length]);
        if value.is_nan() {
            return Err(self.unexpected(length));
        }
        self.take(length, Kind::Number(value));
        Ok(())
    }

    fn word(&mut self) -> Result<(), ExpressionError> {
        let rest = self.rest();
        let length =
            rest.char_indices().skip(1).find(|(_, c)| is_boundary(*c)).map_or(rest.len(), |(at, _)| at);
        let word = &rest[..length];
        if !is_name(word) {
            return Err(self.unexpected(length));
        }
        let property = self.tokens.last().is_some_and(|token| token.kind == Kind::Dot);
        let kind = match word {
            _ if property => Kind::Name,
            "null" => Kind::Null,
            "true" => Kind::Bool(true),
            "false" => Kind::Bool(false),
            "NaN" => Kind::Number(f64::NAN),
            "Infinity" => Kind::Number(f64::INFINITY),
            _ => Kind::Name,
        };
        self.take(length, kind);
        Ok(())
    }
}

fn is_boundary(character: char) -> bool {
    matches!(character, '(' | '[' | ')' | ']' | ',' | '.' | '!' | '>' | '<' | '=' | '&' | '|')
        || character.is_whitespace()
}

fn is_name(word: &str) -> bool {
    word.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

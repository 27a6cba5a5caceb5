//! JSON in and out of expression values, within limits.
//!
//! An own reader, because a value must be whole at once: numbers are doubles, object names are found without
//! case, nesting is limited so that no text can exhaust the stack, and every value counts against a budget.

use std::fmt::Write as _;
use std::sync::Arc;

use super::number;
use super::value::{Object, Value};

/// How deep arrays and objects may be nested.
pub(super) const MAX_DEPTH: usize = 500;

/// Why a text is no JSON value that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not JSON.
    #[error("{message} at character {position}")]
    Syntax {
        /// What was expected or found.
        message: &'static str,
        /// Where, in characters from 1.
        position: usize,
    },
    /// Nested deeper than is read.
    #[error("arrays and objects are nested deeper than {MAX_DEPTH}")]
    Depth,
    /// The value would take more memory than it may.
    #[error("the value takes too much memory")]
    Memory,
}

/// Reads one JSON value; `budget` limits the bytes it may take in memory.
pub(super) fn parse(text: &str, budget: usize) -> Result<Value, JsonError> {
    let mut reader = Reader { text, at: 0, budget };
    reader.blanks();
    let value = reader.value(0)?;
    reader.blanks();
    if reader.at < text.len() {
        return Err(reader.wrong("more text after the value"));
    }
    Ok(value)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    budget: usize,
}

impl Reader<'_> {
    fn wrong(&self, message: &'static str) -> JsonError {
        let mut at = self.at.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        JsonError::Syntax { message, position: self.text[..at].chars().count() + 1 }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn spend(&mut self, bytes: usize) -> Result<(), JsonError> {
        self.budget = self.budget.checked_sub(bytes).ok_or(JsonError::Memory)?;
        Ok(())
    }

    fn value(&mut self, depth: usize) -> Result<Value, JsonError> {
        self.spend(size_of::<Value>())?;
        match self.peek() {
            Some(b'{') => self.object(depth + 1),
            Some(b'[') => self.array(depth + 1),
            Some(b'"') => Ok(Value::String(self.string()?.into())),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true", Value::Bool(true)),
            Some(b'f') => self.word("false", Value::Bool(false)),
            Some(b'n') => self.word("null", Value::Null),
            Some(_) => Err(self.wrong("unexpected character")),
            None => Err(self.wrong("the text ends before the value")),
        }
    }

    fn word(&mut self, word: &str, value: Value) -> Result<Value, JsonError> {
        if !self.text[self.at..].starts_with(word) {
            return Err(self.wrong("unknown word"));
        }
        self.at += word.len();
        Ok(value)
    }

    fn number(&mut self) -> Result<Value, JsonError> {
        let bytes = self.text.as_bytes();
        let start = self.at;
        let digits = |mut at: usize| {
            while bytes.get(at).is_some_and(u8::is_ascii_digit) {
                at += 1;
            }
            at
        };
        let mut at = start + usize::from(bytes[start] == b'-');
        let whole = at;
        at = digits(at);
        if at == whole || (bytes[whole] == b'0' && at > whole + 1) {
            return Err(self.wrong("malformed number"));
        }
        if bytes.get(at) == Some(&b'.') {
            let fraction = at + 1;
            at = digits(fraction);
            if at == fraction {
                return Err(self.wrong("malformed number"));
            }
        }
        if matches!(bytes.get(at), Some(b'e' | b'E')) {
            let exponent = at + 1 + usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
            at = digits(exponent);
            if at == exponent {
                return Err(self.wrong("malformed number"));
            }
        }
        self.at = at;
        self.text[start..at].parse().map(Value::Number).map_err(|_| self.wrong("malformed number"))
    }

    fn string(&mut self) -> Result<String, JsonError> {
        self.at += 1;
        let mut out = String::new();
        loop {
            let rest = &self.text.as_bytes()[self.at..];
            let plain = rest
                .iter()
                .position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20))
                .ok_or_else(|| self.wrong("the text ends inside a string"))?;
            self.spend(plain)?;
            out.push_str(&self.text[self.at..self.at + plain]);
            self.at += plain;
            match rest[plain] {
                b'"' => {
                    self.at += 1;
                    return Ok(out);
                }
                b'\\' => {
                    let character = self.escape()?;
                    self.spend(character.len_utf8())?;
                    out.push(character);
                }
                _ => return Err(self.wrong("control character in a string")),
            }
        }
    }

    fn escape(&mut self) -> Result<char, JsonError> {
        self.at += 1;
        let character = match self.peek() {
            Some(character @ (b'"' | b'\\' | b'/')) => char::from(character),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.at += 1;
                return self.unicode();
            }
            _ => return Err(self.wrong("unknown escape")),
        };
        self.at += 1;
        Ok(character)
    }

    /// The four digits after `\u`, and the second half of a surrogate pair. A lone surrogate becomes U+FFFD.
    fn unicode(&mut self) -> Result<char, JsonError> {
        let first = self.hex4()?;
        if (0xD800..0xDC00).contains(&first) && self.text[self.at..].starts_with("\\u") {
            let back = self.at;
            self.at += 2;
            let second = self.hex4()?;
            if (0xDC00..0xE000).contains(&second) {
                let code = 0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00);
                return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            self.at = back;
        }
        Ok(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn hex4(&mut self) -> Result<u32, JsonError> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4).unwrap_or_default();
        let code = digits
            .iter()
            .try_fold(0, |sum, digit| Some(sum * 16 + char::from(*digit).to_digit(16)?))
            .filter(|_| digits.len() == 4)
            .ok_or_else(|| self.wrong("malformed \\u escape"))?;
        self.at += 4;
        Ok(code)
    }

    fn array(&mut self, depth: usize) -> Result<Value, JsonError> {
        if depth > MAX_DEPTH {
            return Err(JsonError::Depth);
        }
        self.at += 1;
        let mut items = Vec::new();
        self.blanks();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::from(items));
        }
        loop {
            self.blanks();
            items.push(self.value(depth)?);
            self.blanks();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(Value::from(items));
                }
                _ => return Err(self.wrong("expected ',' or ']'")),
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, JsonError> {
        if depth > MAX_DEPTH {
            return Err(JsonError::Depth);
        }
        self.at += 1;
        let mut object = Object::new();
        self.blanks();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Value::from(object));
        }
        loop {
            self.blanks();
            if self.peek() != Some(b'"') {
                return Err(self.wrong("expected a name in quotes"));
            }
            let name: Arc<str> = self.string()?.into();
            self.spend(64)?;
            self.blanks();
            if self.peek() != Some(b':') {
                return Err(self.wrong("expected ':'"));
            }
            self.at += 1;
            self.blanks();
            let value = self.value(depth)?;
            object.insert_json(name, value);
            self.blanks();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(Value::from(object));
                }
                _ => return Err(self.wrong("expected ',' or '}'")),
            }
        }
    }
}

/// How numbers that JSON does not have are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NonFinite {
    /// As JavaScript does: `null`.
    Null,
    /// As a string: `"NaN"`, `"Infinity"`, `"-Infinity"`.
    String,
}

/// Writes JSON, on one line or indented by two blanks. False when `limit` bytes do not suffice.
pub(super) fn write(
    value: &Value,
    indented: bool,
    non_finite: NonFinite,
    limit: usize,
    out: &mut String,
) -> bool {
    Writer { indented, non_finite, limit, out }.value(value, 0)
}

struct Writer<'a> {
    indented: bool,
    non_finite: NonFinite,
    limit: usize,
    out: &'a mut String,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> bool {
        match value {
            Value::Null => self.out.push_str("null"),
            Value::Bool(value) => self.out.push_str(if *value { "true" } else { "false" }),
            Value::Number(value) if !value.is_finite() => match self.non_finite {
                NonFinite::Null => self.out.push_str("null"),
                NonFinite::String => quote(&number::print(*value), self.out),
            },
            Value::Number(value) => self.out.push_str(&number::print(*value)),
            Value::String(text) => quote(text, self.out),
            Value::Array(items) if items.is_empty() => self.out.push_str("[]"),
            Value::Array(items) => {
                self.out.push('[');
                for (at, item) in items.iter().enumerate() {
                    self.separate(at, depth + 1);
                    if !self.value(item, depth + 1) {
                        return false;
                    }
                }
                self.line(depth);
                self.out.push(']');
            }
            Value::Object(object) if object.is_empty() => self.out.push_str("{}"),
            Value::Object(object) => {
                self.out.push('{');
                for (at, (name, value)) in object.iter().enumerate() {
                    self.separate(at, depth + 1);
                    quote(name, self.out);
                    self.out.push_str(if self.indented { ": " } else { ":" });
                    if !self.value(value, depth + 1) {
                        return false;
                    }
                }
                self.line(depth);
                self.out.push('}');
            }
        }
        self.out.len() <= self.limit
    }

    fn separate(&mut self, at: usize, depth: usize) {
        if at > 0 {
            self.out.push(',');
        }
        self.line(depth);
    }

    fn line(&mut self, depth: usize) {
        if self.indented {
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str("  ");
            }
        }
    }
}

/// Writes a JSON string as `JSON.stringify` does.
pub(super) fn quote(text: &str, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\0'..'\u{20}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(character));
            }
            _ => out.push(character),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(text: &str) -> String {
        let value = parse(text, 1 << 20).unwrap();
        let mut out = String::new();
        assert!(write(&value, false, NonFinite::String, usize::MAX, &mut out));
        out
    }

    #[test]
    fn reads_and_writes() {
        for text in ["null", "true", "-1.5", "\"a\\\"\\\\\\u0001é\"", "[1,[],{}]", "{\"b\":1,\"a\":[null]}"]
        {
            assert_eq!(round(text), text);
        }
        assert_eq!(round(r#""\ud83d\ude00 \ud83d x \u00e9""#), "\"😀 \u{fffd} x é\"");
        assert_eq!(round(r#"{"a":1,"A":2,"a":3}"#), r#"{"a":3}"#);
        assert_eq!(round("1e400"), "\"Infinity\"");
    }

    #[test]
    fn refuses_what_is_no_json() {
        for text in [
            "",
            "nul",
            "01",
            "1.",
            "-",
            "[1,]",
            "{a:1}",
            "{\"a\"}",
            "'a'",
            "\"a",
            "\"\n\"",
            "1 2",
            "[",
            "\"\\u12\"",
        ] {
            assert!(matches!(parse(text, 1 << 20), Err(JsonError::Syntax { .. })), "{text:?}");
        }
        assert_eq!(parse(&"[".repeat(100_000), 1 << 30).unwrap_err(), JsonError::Depth);
        assert_eq!(parse(&format!("[{}1]", "1,".repeat(1000)), 1000).unwrap_err(), JsonError::Memory);
    }
}

//! The functions of the language: names, argument counts, and those that need nothing but their arguments.

use super::fold;
use super::json::{self, JsonError, NonFinite};
use super::operators;
use super::value::Value;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Contains,
    StartsWith,
    EndsWith,
    Format,
    Join,
    ToJson,
    FromJson,
    HashFiles,
    Case,
    Always,
    Success,
    Failure,
    Cancelled,
}

impl Function {
    pub(super) fn by_name(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "contains" => Self::Contains,
            "startswith" => Self::StartsWith,
            "endswith" => Self::EndsWith,
            "format" => Self::Format,
            "join" => Self::Join,
            "tojson" => Self::ToJson,
            "fromjson" => Self::FromJson,
            "hashfiles" => Self::HashFiles,
            "case" => Self::Case,
            "always" => Self::Always,
            "success" => Self::Success,
            "failure" => Self::Failure,
            "cancelled" => Self::Cancelled,
            _ => return None,
        })
    }

    /// The name as GitHub's documentation writes it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Contains => "contains",
            Self::StartsWith => "startsWith",
            Self::EndsWith => "endsWith",
            Self::Format => "format",
            Self::Join => "join",
            Self::ToJson => "toJSON",
            Self::FromJson => "fromJSON",
            Self::HashFiles => "hashFiles",
            Self::Case => "case",
            Self::Always => "always",
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Cancelled => "cancelled",
        }
    }

    /// The fewest and the most arguments.
    pub(super) fn arity(self) -> (usize, usize) {
        match self {
            Self::Contains | Self::StartsWith | Self::EndsWith => (2, 2),
            Self::Format | Self::HashFiles => (1, 255),
            Self::Join => (1, 2),
            Self::ToJson | Self::FromJson => (1, 1),
            Self::Case => (3, 255),
            Self::Always | Self::Success | Self::Failure | Self::Cancelled => (0, 0),
        }
    }

    pub(super) fn is_status(self) -> bool {
        matches!(self, Self::Always | Self::Success | Self::Failure | Self::Cancelled)
    }
}

/// Why a function has no value.
pub(super) enum Trouble {
    /// The result would take more than it may.
    Memory,
    /// In words.
    Message(String),
}

pub(super) fn contains(search: &Value, item: &Value) -> bool {
    match search {
        Value::Array(items) => items.iter().any(|candidate| operators::equal(item, candidate)),
        Value::Object(_) => false,
        _ => text_test(search, item, |text, part| text.contains(part)),
    }
}

pub(super) fn starts_with(text: &Value, start: &Value) -> bool {
    text_test(text, start, |text, start| text.starts_with(start))
}

pub(super) fn ends_with(text: &Value, end: &Value) -> bool {
    text_test(text, end, |text, end| text.ends_with(end))
}

fn text_test(left: &Value, right: &Value, test: fn(&str, &str) -> bool) -> bool {
    left.is_primitive()
        && right.is_primitive()
        && test(&fold::upper_text(&left.text()), &fold::upper_text(&right.text()))
}

/// Joins the items' texts; `room` limits the bytes of the result.
pub(super) fn join(values: &Value, separator: Option<&Value>, room: usize) -> Result<String, Trouble> {
    let Value::Array(items) = values else {
        return Ok(if values.is_primitive() { values.to_text() } else { String::new() });
    };
    let separator = match separator {
        Some(value) if value.is_primitive() => value.to_text(),
        _ => ",".to_owned(),
    };
    let mut out = String::new();
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push_str(&separator);
        }
        out.push_str(&item.text());
        if out.len() > room {
            return Err(Trouble::Memory);
        }
    }
    Ok(out)
}

/// `format`: `{N}` is the text of argument N, `{{` and `}}` are braces, anything else with braces is wrong.
pub(super) fn format(pattern: &str, arguments: &[Value], room: usize) -> Result<String, Trouble> {
    let invalid = || Trouble::Message(format!("The following format string is invalid: {pattern}"));
    let mut out = String::new();
    let mut rest = pattern;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if rest.starts_with(brace) {
            out.push_str(brace);
            rest = &rest[1..];
        } else if brace == "}" {
            return Err(invalid());
        } else {
            let end = rest.find('}').ok_or_else(invalid)?;
            let digits = &rest[..end];
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(invalid());
            }
            let argument = digits.parse().ok().and_then(|number: usize| arguments.get(number));
            let argument = argument.ok_or_else(|| {
                Trouble::Message(format!(
                    "The following format string references more arguments than were supplied: {pattern}"
                ))
            })?;
            out.push_str(&argument.text());
            rest = &rest[end + 1..];
        }
        if out.len() > room {
            return Err(Trouble::Memory);
        }
    }
    out.push_str(rest);
    if out.len() > room { Err(Trouble::Memory) } else { Ok(out) }
}

pub(super) fn to_json(value: &Value, room: usize) -> Result<String, Trouble> {
    let mut out = String::new();
    if json::write(value, true, NonFinite::Null, room, &mut out) { Ok(out) } else { Err(Trouble::Memory) }
}

pub(super) fn from_json(text: &str, room: usize) -> Result<Value, Trouble> {
    json::parse(text, room).map_err(|error| match error {
        JsonError::Memory => Trouble::Memory,
        error => Trouble::Message(format!("Error parsing fromJSON: {error}")),
    })
}

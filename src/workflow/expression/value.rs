//! Values of the expression language, and how they become text, truth and JSON.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use super::json::{self, JsonError, NonFinite};
use super::{fold, number};

/// From how many names on an object has an index.
const INDEXED: usize = 16;

/// A value. Arrays and objects compare by identity, so copies share them.
#[derive(Debug, Clone, Default)]
pub enum Value {
    /// Nothing.
    #[default]
    Null,
    /// A boolean.
    Bool(bool),
    /// A number; all are doubles.
    Number(f64),
    /// A string.
    String(Arc<str>),
    /// An array.
    Array(Arc<Vec<Value>>),
    /// An object.
    Object(Arc<Object>),
}

/// Names and values in order; names are found whatever their case.
#[derive(Debug, Clone, Default)]
pub struct Object {
    entries: Vec<(Arc<str>, Value)>,
    /// Places of the upper-cased names; empty while there are few.
    index: HashMap<String, usize>,
}

impl Object {
    /// An empty object.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn find(&self, name: &str) -> Option<usize> {
        if self.index.is_empty() {
            self.entries.iter().position(|(key, _)| fold::equal(key, name))
        } else {
            self.index.get(&fold::upper_text(name)).copied()
        }
    }

    fn push(&mut self, name: Arc<str>, value: Value) {
        if !self.index.is_empty() {
            self.index.insert(fold::upper_text(&name), self.entries.len());
        }
        self.entries.push((name, value));
        if self.index.is_empty() && self.entries.len() >= INDEXED {
            self.index =
                self.entries.iter().enumerate().map(|(at, (name, _))| (fold::upper_text(name), at)).collect();
        }
    }

    /// The value of a name, compared without case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.find(name).map(|at| &self.entries[at].1)
    }

    /// Sets the value of a name. A name that is there (in any case) keeps its place and spelling.
    pub fn insert(&mut self, name: impl Into<Arc<str>>, value: impl Into<Value>) {
        let name = name.into();
        match self.find(&name) {
            Some(at) => self.entries[at].1 = value.into(),
            None => self.push(name, value.into()),
        }
    }

    /// Adds a name as JSON readers do: the last of the same spelling wins, the first of other spellings.
    pub(super) fn insert_json(&mut self, name: Arc<str>, value: Value) {
        match self.find(&name) {
            Some(at) if self.entries[at].0 == name => self.entries[at].1 = value,
            Some(_) => {}
            None => self.push(name, value),
        }
    }

    /// Names and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (&**key, value))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl<K: Into<Arc<str>>, V: Into<Value>> FromIterator<(K, V)> for Object {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut object = Self::new();
        for (name, value) in entries {
            object.insert(name, value);
        }
        object
    }
}

impl Value {
    /// The text GitHub makes of a value: empty for null, `Array` and `Object` for the collections.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.text().into_owned()
    }

    /// As [`Value::to_text`], without a copy of what is a string already.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Null => "".into(),
            Self::Bool(value) => if *value { "true" } else { "false" }.into(),
            Self::Number(value) => number::text(*value).into(),
            Self::String(text) => (&**text).into(),
            Self::Array(_) => "Array".into(),
            Self::Object(_) => "Object".into(),
        }
    }

    /// The number GitHub makes of a value; NaN for text that is no number and for the collections.
    #[must_use]
    pub fn to_number(&self) -> f64 {
        match self {
            Self::Null => 0.0,
            Self::Bool(value) => f64::from(u8::from(*value)),
            Self::Number(value) => *value,
            Self::String(text) => number::parse(text),
            Self::Array(_) | Self::Object(_) => f64::NAN,
        }
    }

    /// True for everything but arrays and objects.
    #[must_use]
    pub fn is_primitive(&self) -> bool {
        !matches!(self, Self::Array(_) | Self::Object(_))
    }

    /// The name of its kind: null, boolean, number, string, array, object.
    #[must_use]
    pub fn kind_name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "boolean",
            Self::Number(_) => "number",
            Self::String(_) => "string",
            Self::Array(_) => "array",
            Self::Object(_) => "object",
        }
    }

    /// Reads a value from JSON text that takes at most `budget` bytes in memory.
    ///
    /// # Errors
    /// Text that is no JSON, is nested too deeply, or takes too much memory.
    pub fn from_json_text(text: &str, budget: usize) -> Result<Self, JsonError> {
        json::parse(text, budget)
    }

    /// The value as JSON on one line; NaN and the infinities are strings.
    #[must_use]
    pub fn to_json_text(&self) -> String {
        let mut out = String::new();
        json::write(self, false, NonFinite::String, usize::MAX, &mut out);
        out
    }

    /// False for null, false, 0, NaN and the empty string; true for everything else.
    #[must_use]
    pub fn is_truthy(&self) -> bool {
        match self {
            Self::Null => false,
            Self::Bool(value) => *value,
            Self::Number(value) => *value != 0.0 && !value.is_nan(),
            Self::String(text) => !text.is_empty(),
            Self::Array(_) | Self::Object(_) => true,
        }
    }

    /// The same value as JSON. Whole numbers become integers; NaN and the infinities become strings.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Bool(value) => (*value).into(),
            Self::Number(value) => number_to_json(*value),
            Self::String(text) => text.to_string().into(),
            Self::Array(items) => items.iter().map(Self::to_json).collect(),
            Self::Object(object) => {
                object.iter().map(|(key, value)| (key.to_owned(), value.to_json())).collect()
            }
        }
    }
}

fn number_to_json(value: f64) -> serde_json::Value {
    #[expect(clippy::cast_possible_truncation, reason = "checked: whole and within 2^53")]
    if value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0 {
        return (value as i64).into();
    }
    match serde_json::Number::from_f64(value) {
        Some(number) => number.into(),
        None if value.is_nan() => "NaN".into(),
        None if value > 0.0 => "Infinity".into(),
        None => "-Infinity".into(),
    }
}

impl From<serde_json::Value> for Value {
    fn from(value: serde_json::Value) -> Self {
        match value {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(value) => Self::Bool(value),
            serde_json::Value::Number(number) => Self::Number(number.as_f64().unwrap_or(f64::NAN)),
            serde_json::Value::String(text) => Self::String(text.into()),
            serde_json::Value::Array(items) => {
                Self::Array(Arc::new(items.into_iter().map(Self::from).collect()))
            }
            serde_json::Value::Object(map) => map.into_iter().collect::<Object>().into(),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text.into())
    }
}

impl From<Arc<str>> for Value {
    fn from(text: Arc<str>) -> Self {
        Self::String(text)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Number(value)
    }
}

impl From<Vec<Value>> for Value {
    fn from(items: Vec<Value>) -> Self {
        Self::Array(Arc::new(items))
    }
}

impl From<Object> for Value {
    fn from(object: Object) -> Self {
        Self::Object(Arc::new(object))
    }
}

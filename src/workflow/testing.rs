//! A scope with fixed contexts, for this room's tests.

use super::expression::{Scope, Status, Value};

pub(super) struct Fixed {
    pub(super) values: Value,
    pub(super) status: Status,
}

impl Fixed {
    pub(super) fn from_json(text: &str) -> Self {
        Self { values: Value::from_json_text(text, 1 << 20).unwrap(), status: Status::Success }
    }
}

impl Scope for Fixed {
    fn named(&self, name: &str) -> Option<Value> {
        match &self.values {
            Value::Object(values) => values.get(name).cloned(),
            _ => None,
        }
    }

    fn status(&self) -> Status {
        self.status
    }

    fn hash_files(&self, patterns: &[String]) -> Result<String, String> {
        Ok(patterns.join("|"))
    }
}

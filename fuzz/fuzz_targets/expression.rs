//! Expressions: read and computed within limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sower::workflow::{Expression, Scope, Status, Value};

struct Contexts;

impl Scope for Contexts {
    fn named(&self, name: &str) -> Option<Value> {
        let json = r#"{"a": [1, {"b": "x"}], "s": "text", "n": null, "o": {"k": true}}"#;
        (name != "secrets").then(|| Value::from(serde_json::from_str::<serde_json::Value>(json).unwrap_or_default()))
    }

    fn status(&self) -> Status {
        Status::Failure
    }

    fn hash_files(&self, _: &[String]) -> Result<String, String> {
        Ok(String::new())
    }
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(expression) = Expression::parse(text)
        && let Ok(value) = expression.evaluate(&Contexts)
    {
        let _ = (value.to_text(), value.to_json_text(), value.is_truthy());
    }
});

//! Names that are declared somewhere, which expressions and calls may write in any case.

use std::collections::HashMap;

use crate::workflow::parse::did_you_mean;

/// A set of names.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// As written, by the name in lower case.
    written: HashMap<String, String>,
}

impl Names {
    pub(super) fn has(&self, name: &str) -> bool {
        self.written.contains_key(&name.to_lowercase())
    }

    /// A name as it is declared.
    pub(super) fn written(&self, name: &str) -> Option<&str> {
        self.written.get(&name.to_lowercase()).map(String::as_str)
    }

    /// ` (did you mean 'x'?)` for the nearest of them.
    pub(super) fn hint(&self, name: &str) -> String {
        did_you_mean(name, self.written.values().map(String::as_str))
    }
}

impl<'a> FromIterator<&'a str> for Names {
    fn from_iter<I: IntoIterator<Item = &'a str>>(names: I) -> Self {
        Self { written: names.into_iter().map(|name| (name.to_lowercase(), name.to_owned())).collect() }
    }
}

//! Labels of a runner: `name[:schema[:arg]]`. The name is what `runs-on` asks for; the rest never leaves the host.

use std::fmt;
use std::str::FromStr;

/// A label of this runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// The name that `runs-on` asks for.
    pub name: String,
    /// How jobs for it are run.
    pub schema: Schema,
}

/// How jobs are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schema {
    /// As processes of this host.
    Host,
}

/// Why a label cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// There is no name.
    #[error("label {0:?} has no name; write NAME:host")]
    NoName(String),
    /// The name has characters that `runs-on` cannot ask for.
    #[error("label {0:?}: a name has no spaces, commas or control characters")]
    Name(String),
    /// It asks for a container.
    #[error("label {label:?} asks for {schema}, and sower runs jobs on the host only; write {name}:host")]
    Container {
        /// The label as written.
        label: String,
        /// Its name.
        name: String,
        /// What it asks for, such as `docker`.
        schema: String,
    },
    /// The schema is not known.
    #[error("label {label:?}: no such schema as {schema:?}; write {name}:host")]
    Schema {
        /// The label as written.
        label: String,
        /// Its name.
        name: String,
        /// The schema as written.
        schema: String,
    },
}

impl FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        let mut parts = text.trim().splitn(3, ':');
        let name = parts.next().unwrap_or_default();
        if name.is_empty() {
            return Err(LabelError::NoName(text.to_owned()));
        }
        if name.contains(|c: char| c.is_whitespace() || c.is_control() || c == ',') {
            return Err(LabelError::Name(text.to_owned()));
        }
        let (label, name) = (text.to_owned(), name.to_owned());
        match (parts.next(), parts.next()) {
            (None | Some("host"), None) => Ok(Self { name, schema: Schema::Host }),
            (Some(schema @ ("docker" | "lxc")), _) => {
                Err(LabelError::Container { label, name, schema: schema.to_owned() })
            }
            (schema, _) => {
                Err(LabelError::Schema { label, name, schema: schema.unwrap_or_default().to_owned() })
            }
        }
    }
}

impl Label {
    /// Reads labels separated by commas; empty ones are skipped.
    ///
    /// # Errors
    /// When one of them cannot be.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, LabelError> {
        text.split(',').map(str::trim).filter(|label| !label.is_empty()).map(str::parse).collect()
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.schema {
            Schema::Host => write!(f, "{}:host", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_labels_are_read_with_and_without_schema() {
        for text in ["haskelseed", "haskelseed:host", " haskelseed:host "] {
            assert_eq!(text.parse::<Label>().unwrap().to_string(), "haskelseed:host");
        }
        assert_eq!(Label::parse_list("a,b:host,,").unwrap().len(), 2);
    }

    #[test]
    fn labels_that_cannot_be_say_why_and_what_to_write() {
        for text in
            ["", ":host", "a b", "ubuntu:docker://node:20", "x:lxc://debian", "a:vm", "a:host:b", "a:"]
        {
            let error = text.parse::<Label>().unwrap_err().to_string();
            assert!(error.contains("label"), "{error}");
        }
        let error = "ubuntu:docker://node:20".parse::<Label>().unwrap_err().to_string();
        assert!(error.contains("host only") && error.contains("write ubuntu:host"), "{error}");
    }
}

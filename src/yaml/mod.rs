//! YAML documents with source positions, read within limits.
//!
//! One document becomes one tree of [`Node`]s: scalars typed by the YAML 1.2 core schema (so `on` stays a
//! word), anchors expanded, `<<` merged. Everything that could make a small file expensive is limited:
//! input size, nesting depth, and the number of nodes and bytes after aliases are expanded.

mod reader;
mod scalar;
mod source;

use std::fmt;

pub use reader::{MAX_DEPTH, MAX_EXPANDED_BYTES, MAX_INPUT_BYTES, MAX_NODES, parse, parse_all};

/// A position in a source text. Both numbers start at 1; columns count characters, not bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl Place {
    /// The very beginning of a text.
    pub const START: Self = Self { line: 1, column: 1 };

    /// A place by line and column, both from 1.
    #[must_use]
    pub const fn new(line: usize, column: usize) -> Self {
        Self { line, column }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A value in a document, and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Where the value begins; of a block scalar, where its `|` or `>` is. For a node that an alias stands for: where
    /// the anchored value is.
    pub place: Place,
    /// How the scalar was written; tells a block scalar from the others, for positions inside it.
    pub style: Style,
    /// Where each `${{` of a string stands in the source; `None` if it has none.
    pub expressions: Option<Box<[Place]>>,
    /// Of a string that is folded over several lines, where each line begins.
    pub folds: Folds,
    /// The value.
    pub kind: Kind,
}

/// For each line of a folded string: how many characters that are no blanks come before it, and where its first one is.
///
/// Folding changes blanks only, so these are the same in the source and in the value.
pub type Folds = Option<Box<Vec<(usize, Place)>>>;

/// How a scalar is written in the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Without quotes, on the line it begins on (or folded over several); also collections.
    Plain,
    /// In single or double quotes.
    Quoted,
    /// A block scalar (`|` or `>`).
    Block {
        /// How far its text is indented, in characters.
        indent: usize,
    },
}

/// What a node is.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// `null`, `~` or nothing at all.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number, and the text it was written with.
    Number {
        /// The number; integers beyond 2^53 lose digits.
        value: f64,
        /// The source text, such as `3.10`.
        text: String,
    },
    /// Any other scalar.
    String(String),
    /// A sequence.
    Sequence(Vec<Node>),
    /// A mapping in source order; keys are unique.
    Mapping(Vec<(Key, Node)>),
}

/// A key of a mapping. Keys are text, whatever the schema says of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Where the key begins.
    pub place: Place,
    /// The key as written.
    pub text: String,
}

impl Node {
    /// The text of a string scalar.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match &self.kind {
            Kind::String(text) => Some(text),
            _ => None,
        }
    }

    /// The text of any scalar: strings as they are, numbers as written, `true`/`false`, empty for null.
    #[must_use]
    pub fn scalar_text(&self) -> Option<String> {
        match &self.kind {
            Kind::Null => Some(String::new()),
            Kind::Bool(value) => Some(value.to_string()),
            Kind::Number { text, .. } | Kind::String(text) => Some(text.clone()),
            Kind::Sequence(_) | Kind::Mapping(_) => None,
        }
    }

    /// The entries of a mapping.
    #[must_use]
    pub fn as_mapping(&self) -> Option<&[(Key, Node)]> {
        match &self.kind {
            Kind::Mapping(entries) => Some(entries),
            _ => None,
        }
    }

    /// The items of a sequence.
    #[must_use]
    pub fn as_sequence(&self) -> Option<&[Node]> {
        match &self.kind {
            Kind::Sequence(items) => Some(items),
            _ => None,
        }
    }

    /// The value of a key, if this is a mapping that has it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.as_mapping()?.iter().find(|(name, _)| name.text == key).map(|(_, value)| value)
    }

    /// True for `null`, `~` and nothing.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self.kind, Kind::Null)
    }

    /// What the value is, in the words of an error message ("a mapping", "a number").
    #[must_use]
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Null => "nothing",
            Kind::Bool(_) => "a boolean",
            Kind::Number { .. } => "a number",
            Kind::String(_) => "a string",
            Kind::Sequence(_) => "a sequence",
            Kind::Mapping(_) => "a mapping",
        }
    }
}

/// Why a text is no YAML document that can be used, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct Error {
    /// Where the document is wrong.
    pub place: Place,
    /// What is wrong with it.
    pub message: String,
}

impl Error {
    pub(crate) fn new(place: Place, message: impl Into<String>) -> Self {
        Self { place, message: message.into() }
    }
}

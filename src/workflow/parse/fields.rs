//! Taking the known keys of a mapping, each as what it must be; what is left over is unknown.

use super::suggest::did_you_mean;
use super::{Problems, is_id};
use crate::workflow::model::{Defaults, Env};
use crate::workflow::template::{Condition, Template};
use crate::yaml::{Key, Kind, Node, Place};

/// How many unknown keys of a mapping are compared with one that is missing.
const MAX_LOOKED_AT: usize = 50;

pub(super) struct Fields<'a> {
    entries: &'a [(Key, Node)],
    taken: Vec<bool>,
    known: &'static [&'static str],
    /// What the mapping is, in the words of a message ("the job 'build'").
    owner: String,
}

impl<'a> Fields<'a> {
    pub(super) fn new(
        entries: &'a [(Key, Node)],
        known: &'static [&'static str],
        owner: impl Into<String>,
    ) -> Self {
        Self { entries, taken: vec![false; entries.len()], known, owner: owner.into() }
    }

    /// Says which keys are known, once that is clear.
    pub(super) fn expect(&mut self, known: &'static [&'static str]) {
        self.known = known;
    }

    pub(super) fn take(&mut self, name: &str) -> Option<(&'a Key, &'a Node)> {
        let at = self.entries.iter().position(|(key, _)| key.text == name)?;
        self.taken[at] = true;
        let (key, node) = &self.entries[at];
        Some((key, node))
    }

    /// Lets every other key be.
    pub(super) fn take_all(&mut self) {
        self.taken.fill(true);
    }

    /// A key that is there, taken or not.
    pub(super) fn key(&self, name: &str) -> Option<&'a Key> {
        self.entries.iter().map(|(key, _)| key).find(|key| key.text == name)
    }

    /// Where a key stands that was probably meant to be `name`.
    pub(super) fn misspelt(&self, name: &str, problems: &Problems) -> Option<Place> {
        if !problems.may_suggest() {
            return None;
        }
        let wanted = format!("'{name}'");
        let unknown = self.entries.iter().filter(|(key, _)| !self.known.contains(&key.text.as_str()));
        unknown
            .take(MAX_LOOKED_AT)
            .map(|(key, _)| key)
            .find(|key| did_you_mean(&key.text, self.known.iter().copied()).contains(&wanted))
            .map(|key| key.place)
    }

    /// Notes every key that nobody took.
    pub(super) fn finish(self, problems: &mut Problems) {
        self.end("unknown-key", problems);
    }

    /// As [`Fields::finish`], for a mapping that may have keys of anyone's own: what looks like a slip is unknown, the
    /// rest does nothing.
    pub(super) fn finish_loosely(self, problems: &mut Problems) {
        self.end("extra-key", problems);
    }

    fn end(self, rule: &'static str, problems: &mut Problems) {
        for ((key, _), taken) in self.entries.iter().zip(self.taken) {
            if taken {
                continue;
            }
            let hint = match problems.may_suggest() {
                true => did_you_mean(&key.text, self.known.iter().copied()),
                false => String::new(),
            };
            let message = format!("unknown key '{}' in {}{hint}", key.text, self.owner);
            let rule = if hint.is_empty() { rule } else { "unknown-key" };
            problems.warning(key.place, rule, message);
        }
    }

    /// A scalar that may hold expressions; nothing and null are none.
    pub(super) fn template(&mut self, name: &str, problems: &mut Problems) -> Option<Template> {
        let (key, node) = self.take(name)?;
        if node.is_null() {
            return None;
        }
        template(key, node, problems)
    }

    /// A plain text without expressions.
    pub(super) fn text(&mut self, name: &str, problems: &mut Problems) -> Option<String> {
        let (_, node) = self.take(name)?;
        match node.scalar_text() {
            Some(text) => Some(text),
            None => {
                problems.wrong_type(node, &format!("'{name}'"), "text");
                None
            }
        }
    }

    /// An id, and where it is.
    pub(super) fn id(&mut self, problems: &mut Problems) -> Option<(String, &'a Node)> {
        let (_, node) = self.take("id")?;
        if node.is_null() {
            return None;
        }
        let Some(text) = node.scalar_text() else {
            problems.wrong_type(node, "'id'", "text");
            return None;
        };
        if !is_id(&text) {
            problems.error(
                node.place,
                "id",
                format!("'{text}' cannot be an id: letters, digits, '-' and '_' only, no digit or '-' first"),
            );
        }
        Some((text, node))
    }

    pub(super) fn condition(&mut self, name: &str, problems: &mut Problems) -> Option<Condition> {
        let (_, node) = self.take(name)?;
        if node.is_null() {
            return None;
        }
        if matches!(node.kind, Kind::Sequence(_) | Kind::Mapping(_)) {
            problems.wrong_type(node, &format!("'{name}'"), "an expression");
            return None;
        }
        let condition = problems.keep("expression", Condition::from_node(node))?;
        if condition.is_text() {
            problems.warning(
                node.place,
                "if-always-true",
                format!("this '{name}' is always true: there is text around '${{{{ }}}}' (or a line break after it)"),
            );
        }
        Some(condition)
    }

    /// A boolean or an expression.
    pub(super) fn boolean(&mut self, name: &str, problems: &mut Problems) -> Option<Template> {
        let template = self.template(name, problems)?;
        if template.is_literal() && !matches!(template.source().trim(), "true" | "false" | "") {
            let message =
                format!("'{name}' must be true, false or an expression, not '{}'", template.source());
            problems.error(template.place, "type", message);
        }
        Some(template)
    }

    /// A number or an expression.
    pub(super) fn number(&mut self, name: &str, problems: &mut Problems) -> Option<Template> {
        let template = self.template(name, problems)?;
        if let Some(value) = template.literal_value()
            && !template.source().trim().is_empty()
        {
            let number = value.to_number();
            // A number of any length is one; a server makes of it what fits.
            let negative = number < 0.0 && number.is_finite();
            if matches!(value, crate::workflow::Value::Bool(_)) || number.is_nan() || negative {
                let message =
                    format!("'{name}' must be a number or an expression, not '{}'", template.source());
                problems.error(template.place, "type", message);
            }
        }
        Some(template)
    }

    pub(super) fn env(&mut self, name: &str, problems: &mut Problems) -> Env {
        let Some((key, node)) = self.take(name) else { return Env::default() };
        match &node.kind {
            Kind::Null => Env::default(),
            Kind::Mapping(entries) => Env::Map(pairs(entries, problems)),
            Kind::String(_) => match template(key, node, problems) {
                Some(template) if template.is_sole_expression() => Env::Expression(template),
                Some(_) => {
                    problems.wrong_type(node, &format!("'{name}'"), "a mapping of names to values");
                    Env::default()
                }
                None => Env::default(),
            },
            _ => {
                problems.wrong_type(node, &format!("'{name}'"), "a mapping of names to values");
                Env::default()
            }
        }
    }

    /// A mapping of names to scalars.
    pub(super) fn pairs(&mut self, name: &str, problems: &mut Problems) -> Vec<(String, Template)> {
        let Some((_, node)) = self.take(name) else { return Vec::new() };
        match &node.kind {
            Kind::Null => Vec::new(),
            Kind::Mapping(entries) => pairs(entries, problems),
            _ => {
                problems.wrong_type(node, &format!("'{name}'"), "a mapping of names to values");
                Vec::new()
            }
        }
    }

    pub(super) fn defaults(&mut self, name: &str, problems: &mut Problems) -> Defaults {
        let Some((_, node)) = self.take(name) else { return Defaults::default() };
        let Some(mut fields) = Self::nested(node, &["run"], "'defaults'", problems) else {
            return Defaults::default();
        };
        let run = fields.take("run");
        fields.finish(problems);
        let Some((_, node)) = run else { return Defaults::default() };
        let known = &["shell", "working-directory"];
        let Some(mut fields) = Self::nested(node, known, "'defaults.run'", problems) else {
            return Defaults::default();
        };
        let defaults = Defaults {
            shell: fields.template("shell", problems),
            working_directory: fields.template("working-directory", problems),
        };
        fields.finish(problems);
        defaults
    }

    /// A part that is kept as written; the expressions in it are still read. A mapping is where its key is.
    pub(super) fn raw(&mut self, name: &str, problems: &mut Problems) -> Option<Node> {
        let (key, node) = self.take(name)?;
        if node.is_null() {
            return None;
        }
        expressions(node, problems);
        let place = if node.as_mapping().is_some() { key.place } else { node.place };
        Some(Node { place, ..node.clone() })
    }

    /// The fields of a mapping within this one; null is an empty mapping.
    pub(super) fn nested(
        node: &'a Node,
        known: &'static [&'static str],
        owner: &str,
        problems: &mut Problems,
    ) -> Option<Self> {
        match &node.kind {
            Kind::Mapping(entries) => Some(Self::new(entries, known, owner)),
            Kind::Null => Some(Self::new(&[], known, owner)),
            _ => {
                problems.wrong_type(node, owner, "a mapping");
                None
            }
        }
    }
}

/// The scalar of a key, which may hold expressions.
pub(super) fn template(key: &Key, node: &Node, problems: &mut Problems) -> Option<Template> {
    named_template(&format!("'{}'", key.text), node, problems)
}

/// As [`template`], for what has no key of its own.
pub(super) fn named_template(what: &str, node: &Node, problems: &mut Problems) -> Option<Template> {
    if matches!(node.kind, Kind::Sequence(_) | Kind::Mapping(_)) {
        problems.wrong_type(node, what, "text, a number or a boolean");
        return None;
    }
    problems.keep("expression", Template::from_node(node))
}

fn pairs(entries: &[(Key, Node)], problems: &mut Problems) -> Vec<(String, Template)> {
    let mut pairs = Vec::with_capacity(entries.len());
    for (key, node) in entries {
        if let Some(template) = template(key, node, problems) {
            pairs.push((key.text.clone(), template));
        }
    }
    pairs
}

/// Reads the expressions of every text in a part of the document, to find those that are wrong.
pub(super) fn expressions(node: &Node, problems: &mut Problems) {
    match &node.kind {
        Kind::String(_) => {
            named_template("this", node, problems);
        }
        Kind::Sequence(items) => items.iter().for_each(|item| expressions(item, problems)),
        Kind::Mapping(entries) => entries.iter().for_each(|(_, value)| expressions(value, problems)),
        _ => {}
    }
}

//! Reading one mapping of the configuration: each key is asked for once with its type, the rest is unknown.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Finding, parse_duration};
use crate::yaml::{Kind, Node, Place};

/// What was found while a file was read, and which keys were asked for.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) file: PathBuf,
    pub(super) errors: Vec<Finding>,
    pub(super) warnings: Vec<Finding>,
    pub(super) known: Vec<String>,
}

impl Findings {
    pub(super) fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), ..Self::default() }
    }

    fn finding(&self, place: Place, key: &str, message: String) -> Finding {
        Finding { file: self.file.clone(), place, key: key.to_owned(), message }
    }

    pub(super) fn error(&mut self, place: Place, key: &str, message: impl Into<String>) {
        let finding = self.finding(place, key, message.into());
        self.errors.push(finding);
    }
}

/// One mapping. A key that is not there, or is there without a value, leaves its default as it is.
pub(super) struct Section<'a> {
    /// With a point at its end, such as `runner.`; empty for the document.
    prefix: String,
    entries: &'a [(crate::yaml::Key, Node)],
    place: Place,
    names: Vec<&'static str>,
    findings: &'a mut Findings,
}

impl<'a> Section<'a> {
    /// The document itself.
    pub(super) fn document(node: &'a Node, findings: &'a mut Findings) -> Self {
        Self::new(String::new(), Some(node), findings)
    }

    fn new(prefix: String, node: Option<&'a Node>, findings: &'a mut Findings) -> Self {
        let entries = match node {
            None => &[][..],
            Some(node) if node.is_null() => &[],
            Some(node) => node.as_mapping().unwrap_or_else(|| {
                let key = prefix.trim_end_matches('.');
                let message = format!("{} where keys are expected", node.kind_name());
                findings.error(node.place, key, message);
                &[]
            }),
        };
        let place = node.map_or(Place { line: 1, column: 1 }, |node| node.place);
        Self { prefix, entries, place, names: Vec::new(), findings }
    }

    /// Reads a mapping below this one.
    pub(super) fn section(&mut self, name: &'static str, read: impl FnOnce(&mut Section<'_>)) {
        self.names.push(name);
        let node = self.entries.iter().find(|(key, _)| key.text == name).map(|(_, node)| node);
        let mut section = Section::new(format!("{}{name}.", self.prefix), node, self.findings);
        read(&mut section);
        section.finish();
    }

    /// Warns about the keys that nobody asked for.
    pub(super) fn finish(self) {
        for (key, _) in self.entries {
            if !self.names.contains(&key.text.as_str()) {
                let message = match nearest(&key.text, &self.names) {
                    Some(name) => format!("unknown key, ignored; did you mean {name}?"),
                    None => "unknown key, ignored".to_owned(),
                };
                let finding =
                    self.findings.finding(key.place, &format!("{}{}", self.prefix, key.text), message);
                self.findings.warnings.push(finding);
            }
        }
    }

    /// Looks a key up and gives its value to `read`, which says what was expected when it cannot use it.
    fn value<T>(&mut self, name: &'static str, into: &mut T, read: impl FnOnce(&Node) -> Result<T, String>) {
        self.names.push(name);
        let key = format!("{}{name}", self.prefix);
        if let Some((_, node)) = self.entries.iter().find(|(key, _)| key.text == name)
            && !node.is_null()
        {
            match read(node) {
                Ok(value) => *into = value,
                Err(message) => self.findings.error(node.place, &key, message),
            }
        }
        self.findings.known.push(key);
    }

    pub(super) fn bool(&mut self, name: &'static str, into: &mut bool) {
        self.value(name, into, |node| match &node.kind {
            Kind::Bool(value) => Ok(*value),
            _ => Err(expected("true or false", node)),
        });
    }

    /// A string, where an empty one counts as none.
    pub(super) fn optional_text(&mut self, name: &'static str, into: &mut Option<String>) {
        self.value(name, into, |node| text(node).map(|text| Some(text).filter(|text| !text.is_empty())));
    }

    /// A string that `check` has nothing against.
    pub(super) fn checked_text(
        &mut self,
        name: &'static str,
        into: &mut String,
        check: impl Fn(&str) -> Result<(), String>,
    ) {
        self.value(name, into, |node| {
            let text = text(node)?;
            check(&text)?;
            Ok(text)
        });
    }

    /// Says what is wrong with a value that was read already.
    pub(super) fn wrong(&mut self, name: &str, key: &str, message: &str) {
        let node = self.entries.iter().find(|(entry, _)| entry.text == name);
        let place = node.and_then(|(_, node)| node.get(key)).map_or(self.place, |node| node.place);
        let key = format!("{}{name}.{key}", self.prefix);
        self.findings.error(place, &key, message);
    }

    pub(super) fn path(&mut self, name: &'static str, into: &mut PathBuf) {
        self.value(name, into, |node| match text(node)? {
            empty if empty.is_empty() => Err("a path is expected, this is empty".to_owned()),
            path => Ok(PathBuf::from(path)),
        });
    }

    pub(super) fn optional_path(&mut self, name: &'static str, into: &mut Option<PathBuf>) {
        self.value(name, into, |node| {
            text(node).map(|text| Some(text).filter(|text| !text.is_empty()).map(PathBuf::from))
        });
    }

    /// A whole number from `least` to `most`.
    pub(super) fn number<T>(&mut self, name: &'static str, into: &mut T, least: u32, most: u32)
    where
        T: TryFrom<u32>,
    {
        self.value(name, into, |node| {
            let wanted = format!("a whole number from {least} to {most}");
            let Kind::Number { text, .. } = &node.kind else { return Err(expected(&wanted, node)) };
            text.parse::<u32>()
                .ok()
                .filter(|number| (least..=most).contains(number))
                .and_then(|number| T::try_from(number).ok())
                .ok_or_else(|| format!("{wanted} is expected, this is {text}"))
        });
    }

    /// As [`Section::number`], where leaving it out means something.
    pub(super) fn optional_number(
        &mut self,
        name: &'static str,
        into: &mut Option<u32>,
        least: u32,
        most: u32,
    ) {
        let mut number = u32::MAX;
        self.number(name, &mut number, least, most);
        if number != u32::MAX {
            *into = Some(number);
        }
    }

    /// A duration as Go writes it, at least `least`.
    pub(super) fn duration(&mut self, name: &'static str, into: &mut Duration, least: Duration) {
        self.value(name, into, |node| {
            let Some(text) = node.scalar_text() else {
                return Err(expected("a duration such as 3h or 1m30s", node));
            };
            match parse_duration(&text) {
                Some(duration) if duration >= least => Ok(duration),
                Some(_) => {
                    Err(format!("at least {} is expected, this is {text}", super::format_duration(least)))
                }
                None => Err(format!("a duration such as 3h or 1m30s is expected, this is {text:?}")),
            }
        });
    }

    /// A number of bytes such as `500MiB`, at least `least`.
    pub(super) fn bytes(&mut self, name: &'static str, into: &mut u64, least: u64) {
        self.value(name, into, |node| {
            let Some(text) = node.scalar_text() else {
                return Err(expected("a number of bytes such as 500MiB", node));
            };
            match super::parse_bytes(&text) {
                Some(bytes) if bytes >= least => Ok(bytes),
                Some(_) => {
                    Err(format!("at least {} is expected, this is {text}", super::format_bytes(least)))
                }
                None => Err(format!("a number of bytes such as 500MiB is expected, this is {text:?}")),
            }
        });
    }

    /// As [`Section::bytes`], where leaving it out or empty means something.
    pub(super) fn optional_bytes(&mut self, name: &'static str, into: &mut Option<u64>, least: u64) {
        self.value(name, into, |node| {
            let Some(text) = node.scalar_text() else {
                return Err(expected("a number of bytes such as 3GiB", node));
            };
            if text.is_empty() {
                return Ok(None);
            }
            match super::parse_bytes(&text) {
                Some(bytes) if bytes >= least => Ok(Some(bytes)),
                Some(_) => {
                    Err(format!("at least {} is expected, this is {text}", super::format_bytes(least)))
                }
                None => Err(format!("a number of bytes such as 3GiB is expected, this is {text:?}")),
            }
        });
    }

    /// A number with up to three decimals, such as `1.5`, in thousandths.
    pub(super) fn optional_thousandths(&mut self, name: &'static str, into: &mut Option<u64>, least: u64) {
        self.value(name, into, |node| {
            let text = node.scalar_text().unwrap_or_default();
            if text.is_empty() {
                return Ok(None);
            }
            let number = text.parse::<f64>().ok().filter(|number| (0.0..1e6).contains(number));
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "0 to 10^9 by the check above"
            )]
            let thousandths = number.map(|number| (number * 1000.0).round() as u64);
            match thousandths.filter(|number| *number >= least) {
                Some(number) => Ok(Some(number)),
                None => Err(expected("a number of processors such as 1.5", node)),
            }
        });
    }

    /// A text that must be there.
    pub(super) fn required_text(&mut self, name: &'static str, into: &mut String) {
        self.value(name, into, text);
        if into.is_empty() {
            let key = self.prefix.trim_end_matches('.').to_owned();
            self.findings.error(self.place, &key, format!("{name} is missing"));
        }
    }

    /// A mapping of any keys to mappings that are all read by `read`.
    pub(super) fn each<T: Default>(
        &mut self,
        name: &'static str,
        into: &mut std::collections::BTreeMap<String, T>,
        read: impl Fn(&mut Section<'_>, &mut T),
    ) {
        self.names.push(name);
        let prefix = format!("{}{name}", self.prefix);
        let known = self.findings.known.len();
        if let Some((_, node)) = self.entries.iter().find(|(key, _)| key.text == name)
            && !node.is_null()
        {
            match node.as_mapping() {
                Some(entries) => {
                    for (key, node) in entries {
                        let mut value = T::default();
                        let mut section =
                            Section::new(format!("{prefix}.{}.", key.text), Some(node), self.findings);
                        read(&mut section, &mut value);
                        section.finish();
                        into.insert(key.text.clone(), value);
                    }
                }
                None => self.findings.error(node.place, &prefix, expected("keys with values", node)),
            }
        }
        self.findings.known.truncate(known);
        self.findings.known.push(prefix);
    }

    /// A list of mappings that are all read by `read`.
    pub(super) fn each_of_list<T: Default>(
        &mut self,
        name: &'static str,
        into: &mut Vec<T>,
        read: impl Fn(&mut Section<'_>, &mut T),
    ) {
        self.names.push(name);
        let prefix = format!("{}{name}", self.prefix);
        let known = self.findings.known.len();
        if let Some((_, node)) = self.entries.iter().find(|(key, _)| key.text == name)
            && !node.is_null()
        {
            match node.as_sequence() {
                Some(items) => {
                    for (index, node) in items.iter().enumerate() {
                        let mut value = T::default();
                        let mut section =
                            Section::new(format!("{prefix}.{index}."), Some(node), self.findings);
                        read(&mut section, &mut value);
                        section.finish();
                        into.push(value);
                    }
                }
                None => self.findings.error(node.place, &prefix, expected("a list", node)),
            }
        }
        self.findings.known.truncate(known);
        self.findings.known.push(prefix);
    }

    /// One of a few words, in any case.
    pub(super) fn word<T: Copy>(&mut self, name: &'static str, into: &mut T, words: &[(&str, T)]) {
        self.value(name, into, |node| {
            let found = text(node)?;
            let listed = || words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
            words
                .iter()
                .find(|(word, _)| word.eq_ignore_ascii_case(&found))
                .map(|(_, value)| *value)
                .ok_or_else(|| format!("one of {} is expected, this is {found:?}", listed()))
        });
    }

    /// A list of strings, each read by `item`. Errors are told at the item.
    pub(super) fn list<T>(
        &mut self,
        name: &'static str,
        into: &mut Vec<T>,
        item: impl Fn(&str) -> Result<T, String>,
    ) {
        let key = format!("{}{name}", self.prefix);
        let mut wrong = Vec::new();
        self.value(name, into, |node| {
            let Some(items) = node.as_sequence() else { return Err(expected("a list", node)) };
            let mut list = Vec::with_capacity(items.len());
            for node in items {
                match text(node).and_then(|text| item(&text)) {
                    Ok(value) => list.push(value),
                    Err(message) => wrong.push((node.place, message)),
                }
            }
            Ok(list)
        });
        for (place, message) in wrong {
            self.findings.error(place, &key, message);
        }
    }

    /// A mapping of any keys to strings; `allowed` says whether a key may be.
    pub(super) fn texts(
        &mut self,
        name: &'static str,
        into: &mut std::collections::BTreeMap<String, String>,
        allowed: impl Fn(&str) -> bool,
    ) {
        let prefix = format!("{}{name}", self.prefix);
        let mut wrong = Vec::new();
        self.value(name, into, |node| {
            let Some(entries) = node.as_mapping() else { return Err(expected("keys with values", node)) };
            let mut texts = std::collections::BTreeMap::new();
            for (key, node) in entries {
                match text(node) {
                    _ if !allowed(&key.text) => wrong.push((
                        key.place,
                        key.text.clone(),
                        "not a name that a variable can have".to_owned(),
                    )),
                    Ok(text) => {
                        texts.insert(key.text.clone(), text);
                    }
                    Err(message) => wrong.push((node.place, key.text.clone(), message)),
                }
            }
            Ok(texts)
        });
        for (place, key, message) in wrong {
            self.findings.error(place, &format!("{prefix}.{key}"), message);
        }
    }
}

fn text(node: &Node) -> Result<String, String> {
    node.scalar_text().ok_or_else(|| expected("a string", node))
}

fn expected(what: &str, node: &Node) -> String {
    match &node.kind {
        Kind::String(text) if text.len() <= 40 => format!("{what} is expected, this is {text:?}"),
        _ => format!("{what} is expected, this is {}", node.kind_name()),
    }
}

/// The name that a key with one or two slips of the pen was meant to be.
fn nearest<'a>(key: &str, names: &[&'a str]) -> Option<&'a str> {
    names
        .iter()
        .map(|name| (distance(key, name), *name))
        .filter(|(distance, name)| *distance <= 2 && *distance < name.len() / 2)
        .min()
        .map(|(_, name)| name)
}

/// How many letters have to be added, removed or changed to make one word of the other. Long words are far apart.
fn distance(one: &str, other: &str) -> usize {
    if one.len() > 64 {
        return usize::MAX;
    }
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, candidate) in other.iter().enumerate() {
            let change = diagonal + usize::from(letter != *candidate);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

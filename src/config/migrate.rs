//! From act_runner's configuration to ours: what is taken, what has no effect here, what is not known.

use std::fmt::Write as _;
use std::path::Path;

use super::{Config, Label};
use crate::yaml::{self, Kind, Node};

/// What became of a key of the old file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It stands in the new file.
    Taken,
    /// It is the default here as well.
    Default,
    /// It does nothing here, for this reason.
    NoEffect(String),
    /// It is left out, for this reason.
    Left(String),
}

/// A key of the old file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// Such as `runner.capacity`.
    pub key: String,
    /// Its line in the old file.
    pub line: usize,
    /// What became of it.
    pub fate: Fate,
}

/// The new configuration, and what became of each key of the old one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// The new file; it holds what differs from the defaults.
    pub text: String,
    /// In the order of the old file.
    pub keys: Vec<Moved>,
}

/// Keys that mean something there and nothing here.
const WITHOUT: [(&str, &str); 5] = [
    ("runner.file", "the registration has a place of its own here; see the end"),
    ("runner.post_task_script", "hooks.job_completed runs a program after each job, with the job's facts"),
    ("cache.dir", "the store has another form here and begins empty, in the state directory"),
    ("cache.external_secret", "a cache server elsewhere gets the job's own token"),
    ("container", "jobs run on the host; there is no container engine"),
];

/// Reads act_runner's configuration.
///
/// # Errors
/// When it is no YAML.
pub fn migrate(text: &[u8]) -> Result<Migrated, yaml::Error> {
    let document = yaml::parse(text)?;
    let default = yaml::parse(Config::EXAMPLE)?;
    let known = Config::known_keys();
    let mut migrated = Migrated { text: String::new(), keys: Vec::new() };
    for (section, node) in document.as_mapping().unwrap_or_default() {
        let mut lines = String::new();
        for (key, value) in node.as_mapping().unwrap_or_default() {
            let name = format!("{}.{}", section.text, key.text);
            let standard = default.get(&section.text).and_then(|node| node.get(&key.text));
            let fate = fate(&name, value, standard, known.contains(&name), &mut lines);
            migrated.keys.push(Moved { key: name, line: key.place.line, fate });
        }
        if !lines.is_empty() {
            let _ = write!(migrated.text, "{}:\n{lines}", section.text);
        }
    }
    Ok(migrated)
}

fn fate(name: &str, value: &Node, standard: Option<&Node>, known: bool, lines: &mut String) -> Fate {
    let section = name.split('.').next().unwrap_or_default();
    let reason = WITHOUT.iter().find(|(key, _)| *key == name || *key == section);
    if is_nothing(value) || standard.is_some_and(|standard| write_value(standard) == write_value(value)) {
        return Fate::Default;
    }
    if let Some((_, reason)) = reason {
        return Fate::NoEffect((*reason).to_owned());
    }
    if !known {
        return Fate::Left("sower has no such key".to_owned());
    }
    let (value, left) =
        if name == "runner.labels" { labels(value) } else { (write_value(value), Vec::new()) };
    let key = name.rsplit('.').next().unwrap_or_default();
    // Judged as the daemon will judge it.
    let line = format!("  {key}: {value}\n");
    if let Err(error) = Config::parse(Path::new("config.yaml"), format!("{section}:\n{line}").as_bytes()) {
        let message = error.to_string();
        return Fate::Left(message.rsplit_once(": ").map_or(message.clone(), |(_, told)| told.to_owned()));
    }
    lines.push_str(&line);
    if left.is_empty() {
        Fate::Taken
    } else {
        Fate::NoEffect(format!("in part: {} left out, jobs run on the host only", left.join(", ")))
    }
}

/// Whether a value says nothing: act_runner's example has many of these.
fn is_nothing(node: &Node) -> bool {
    match &node.kind {
        Kind::Null => true,
        Kind::String(text) => text.is_empty(),
        Kind::Sequence(items) => items.is_empty(),
        Kind::Mapping(entries) => entries.is_empty(),
        _ => false,
    }
}

/// The labels that can be served, and those that cannot.
fn labels(node: &Node) -> (String, Vec<String>) {
    let all: Vec<String> =
        node.as_sequence().unwrap_or_default().iter().filter_map(Node::scalar_text).collect();
    let (taken, left) = split_labels(&all);
    (list(&taken), left)
}

/// Labels of a host, and those that ask for a container.
#[must_use]
pub fn split_labels(labels: &[String]) -> (Vec<String>, Vec<String>) {
    labels.iter().cloned().partition(|label| label.parse::<Label>().is_ok())
}

fn list(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| quoted(item)).collect();
    format!("[{}]", items.join(", "))
}

/// As JSON, which is YAML.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn write_value(node: &Node) -> String {
    match &node.kind {
        Kind::Mapping(entries) => {
            let entries: Vec<String> = entries
                .iter()
                .map(|(key, value)| format!("{}: {}", quoted(&key.text), write_value(value)))
                .collect();
            format!("{{{}}}", entries.join(", "))
        }
        Kind::Sequence(items) => {
            format!("[{}]", items.iter().map(write_value).collect::<Vec<_>>().join(", "))
        }
        Kind::Null => "null".to_owned(),
        Kind::String(text) => {
            let plain = |c: char| c.is_ascii_alphanumeric() || "./_-".contains(c);
            let word =
                text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/') && text.chars().all(plain);
            if word { text.clone() } else { quoted(text) }
        }
        _ => node.scalar_text().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn act_runners_file_is_taken_and_told_about() {
        let old = "log:\n  level: debug\nrunner:\n  file: .runner\n  capacity: 2\n  envs:\n    A: b c\n  timeout: 3h\n  \
                   labels:\n    - \"ubuntu-latest:docker://node:20\"\n    - \"big:host\"\n  magic: 1\n  \
                   fetch_interval: 1ms\ncache:\n  enabled: true\n  dir: \"/x\"\ncontainer:\n  network: host\n  privileged: false\n";
        let migrated = migrate(old.as_bytes()).unwrap();
        assert_eq!(
            migrated.text,
            "log:\n  level: debug\nrunner:\n  capacity: 2\n  envs: {\"A\": \"b c\"}\n  labels: [\"big:host\"]\n"
        );
        let fate = |key: &str| migrated.keys.iter().find(|moved| moved.key == key).unwrap().fate.clone();
        assert_eq!(fate("runner.capacity"), Fate::Taken);
        assert_eq!(fate("runner.timeout"), Fate::Default);
        assert!(
            matches!(fate("runner.labels"), Fate::NoEffect(why) if why.contains("ubuntu-latest:docker://node:20"))
        );
        assert_eq!(fate("runner.magic"), Fate::Left("sower has no such key".to_owned()));
        assert!(matches!(fate("runner.fetch_interval"), Fate::Left(why) if why.contains("at least 100ms")));
        assert!(matches!(fate("cache.dir"), Fate::NoEffect(_)));
        assert!(matches!(fate("container.network"), Fate::NoEffect(_)));
        assert_eq!(fate("container.privileged"), Fate::Default);
        Config::parse(Path::new("new"), migrated.text.as_bytes()).unwrap();
    }
}

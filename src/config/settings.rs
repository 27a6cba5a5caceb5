//! What is in force, key by key: the file's value, or the documented default.

use std::path::Path;

use super::{Config, DEFAULT_PATH, Error};
use crate::yaml::{self, Kind, Node};

/// One key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Such as `runner.capacity`.
    pub key: String,
    /// The value as a person would write it. Of mappings, whose values may be secrets, only the names.
    pub value: String,
    /// Whether the file has it; elsewise it is the default.
    pub from_file: bool,
}

/// Every known key with the value that is in force; `path` as for [`Config::load`].
///
/// # Errors
/// When the file cannot be read or is wrong.
pub fn settings(path: Option<&Path>) -> Result<Vec<Setting>, Error> {
    let default = Path::new(DEFAULT_PATH);
    let path = path.or_else(|| default.exists().then_some(default));
    let text = match path {
        Some(path) => std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?,
        None => Vec::new(),
    };
    Config::parse(path.unwrap_or(default), &text)?;
    // Both have been read before: the file just now, the documented one by a test.
    let file = yaml::parse(&text).ok();
    let example = yaml::parse(Config::EXAMPLE).ok();
    let settings = Config::known_keys().into_iter().map(|key| {
        let found = file.as_ref().and_then(|file| at(file, &key)).filter(|node| !node.is_null());
        let value = found.or_else(|| example.as_ref().and_then(|example| at(example, &key)));
        // An address that people are told at is often a secret itself.
        let value = match value {
            Some(_) if found.is_some() && key == "notify.url" => "…".to_owned(),
            value => value.map_or_else(String::new, write),
        };
        Setting { value, from_file: found.is_some(), key }
    });
    Ok(settings.collect())
}

fn at<'a>(document: &'a Node, key: &str) -> Option<&'a Node> {
    key.split('.').try_fold(document, |node, name| node.get(name))
}

fn write(node: &Node) -> String {
    match &node.kind {
        Kind::Mapping(entries) if entries.is_empty() => "{}".to_owned(),
        Kind::Mapping(entries) => {
            let names: Vec<String> = entries.iter().map(|(key, _)| format!("{}: …", key.text)).collect();
            format!("{{{}}}", names.join(", "))
        }
        Kind::Sequence(items) => {
            format!("[{}]", items.iter().map(write).collect::<Vec<_>>().join(", "))
        }
        Kind::Null => "null".to_owned(),
        Kind::String(text) if text.is_empty() => "\"\"".to_owned(),
        _ => node.scalar_text().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_wins_and_secrets_stay_unseen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yaml");
        std::fs::write(&path, "runner:\n  capacity: 3\n  envs: {TOKEN: hush}\n  labels: [a, b]\n").unwrap();
        let settings = settings(Some(&path)).unwrap();
        let of = |key: &str| {
            let setting = settings.iter().find(|setting| setting.key == key).unwrap();
            (setting.value.as_str(), setting.from_file)
        };
        assert_eq!(of("runner.capacity"), ("3", true));
        assert_eq!(of("runner.timeout"), ("3h", false));
        assert_eq!(of("runner.envs"), ("{TOKEN: …}", true));
        assert_eq!(of("runner.labels"), ("[a, b]", true));
        assert_eq!(of("ghc.jobs"), ("null", false));
    }
}

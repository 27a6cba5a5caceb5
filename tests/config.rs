//! The runner's configuration: what is documented is what is read, and what is wrong is said with its place.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use sower::config::{Config, Error, Level};

fn parse(text: &str) -> Result<(Config, Vec<String>), String> {
    Config::parse(Path::new("config.yaml"), text.as_bytes())
        .map(|(config, warnings)| (config, warnings.iter().map(ToString::to_string).collect()))
        .map_err(|error| error.to_string())
}

fn documented() -> String {
    include_str!("../runner-config/config.yaml").to_owned()
}

#[test]
fn the_documented_file_holds_the_defaults_and_only_known_keys() {
    let (config, warnings) = parse(&documented()).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(config, Config::default());
}

#[test]
fn every_key_is_in_the_documented_file_with_a_comment() {
    let text = documented();
    let document = sower::yaml::parse(text.as_bytes()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    for key in Config::known_keys() {
        let (section, name) = key.split_once('.').unwrap();
        let node = document.get(section).and_then(|section| section.get(name));
        let node = node.unwrap_or_else(|| panic!("{key} is not in runner-config/config.yaml"));
        // A comment stands above the key, above its section, or above the key before it that shares it.
        let above = &lines[..node.place.line - 1];
        let comment =
            above.iter().rev().take_while(|line| !line.trim().is_empty()).any(|line| line.contains('#'));
        assert!(comment, "{key} has no comment in runner-config/config.yaml");
    }
}

#[test]
fn values_are_read_with_their_types() {
    let (config, warnings) = parse(
        "log: {level: DEBUG}\nrunner:\n  file: state/.runner\n  capacity: 2\n  envs: {A: 1, B: true, C: 1.10, D: x}\n  \
         timeout: 1h30m\n  fetch_interval: 2s\n  labels: [a, 'b:host']\nghc: {heap: 2500m, jobs: 2}\n",
    )
    .unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(config.log.level, Level::Debug);
    assert_eq!(config.state_dir(), Path::new("state"));
    assert_eq!(config.runner.capacity, 2);
    assert_eq!(config.runner.envs.values().collect::<Vec<_>>(), ["1", "true", "1.10", "x"]);
    assert_eq!(config.runner.timeout, Duration::from_secs(5400));
    let labels: Vec<String> = config.runner.labels.iter().map(ToString::to_string).collect();
    assert_eq!(labels, ["a:host", "b:host"]);
    assert_eq!((config.ghc.heap.as_deref(), config.ghc.jobs), (Some("2500m"), Some(2)));
}

#[test]
fn an_empty_file_is_the_defaults() {
    for text in ["", "# nothing\n", "runner:\nlog:\n"] {
        assert_eq!(parse(text).unwrap().0, Config::default(), "{text:?}");
    }
}

#[test]
fn unknown_keys_are_warned_about_with_file_and_line() {
    let (_, warnings) = parse("runner:\n  capcity: 2\n  colour: red\nmatrix:\n  addr: x\n").unwrap();
    assert_eq!(
        warnings,
        [
            "config.yaml:2:3: runner.capcity: unknown key, ignored; did you mean capacity?",
            "config.yaml:3:3: runner.colour: unknown key, ignored",
            "config.yaml:4:1: matrix: unknown key, ignored",
        ]
    );
}

#[test]
fn every_wrong_value_is_told_at_once_with_its_place() {
    let error = parse(
        "log:\n  level: loud\nrunner:\n  capacity: many\n  timeout: 3\n  envs: [a]\n  insecure: 'yes'\n  \
         labels:\n    - ok\n    - ubuntu:docker://node:20\n  fetch_interval: 1ms\ncache: on\n",
    )
    .unwrap_err();
    let expected = [
        "config.yaml:2:10: log.level: one of trace, debug, info, warn, warning, error, fatal is expected, this is \"loud\"",
        "config.yaml:4:13: runner.capacity: a whole number from 1 to 1000 is expected, this is \"many\"",
        "config.yaml:5:12: runner.timeout: a duration such as 3h or 1m30s is expected, this is \"3\"",
        "config.yaml:6:9: runner.envs: keys with values is expected, this is a sequence",
        "config.yaml:7:13: runner.insecure: true or false is expected, this is \"yes\"",
        "config.yaml:10:7: runner.labels: label \"ubuntu:docker://node:20\" asks for docker, and sower runs jobs on \
         the host only; write ubuntu:host",
        "config.yaml:11:19: runner.fetch_interval: at least 100ms is expected, this is 1ms",
        "config.yaml:12:8: cache: a string where keys are expected",
    ];
    assert_eq!(error.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn broken_yaml_is_told_with_its_place() {
    let error = parse("runner:\n  capacity: [1\n").unwrap_err();
    assert!(error.starts_with("config.yaml:"), "{error}");
    let error = parse("- a\n").unwrap_err();
    assert_eq!(error, "config.yaml:1:1: a sequence where keys are expected");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::load(Some(Path::new("/nonexistent/config.yaml"))).unwrap_err();
    assert!(matches!(error, Error::Io { .. }));
    assert!(error.to_string().starts_with("/nonexistent/config.yaml: "), "{error}");
}

fn sower(arguments: &[&str]) -> (Option<i32>, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_sower")).args(arguments).output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn the_command_line_checks_and_shows_a_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, format!("runner:\n  file: {path}.runner\n  capcity: 2\n")).unwrap();
    let (code, said) = sower(&["config", "check", "-c", path]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(":3:3: runner.capcity: unknown key, ignored; did you mean capacity?"), "{said}");
    assert!(said.contains("this host is not registered"), "{said}");
    assert!(said.ends_with("0 errors, 2 warnings\n"), "{said}");

    let (code, said) = sower(&["config", "show", "-c", path]);
    assert_eq!(code, Some(0));
    assert!(said.lines().any(|line| line.starts_with("runner.capacity: 1 ") && line.ends_with("# default")));
    assert_eq!(said.lines().count(), Config::known_keys().len());

    std::fs::write(&file, "runner: {capacity: many}\n").unwrap();
    let (code, said) = sower(&["config", "check", "--json", "-c", path]);
    assert_eq!(code, Some(1));
    let finding: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(finding["severity"], "error");
    assert_eq!(sower(&["config", "check", "-c", "/nowhere/config.yaml"]).0, Some(2));
    assert_eq!(sower(&["config", "example"]).1, documented());
}

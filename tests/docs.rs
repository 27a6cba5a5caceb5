//! The book: what it shows can be run, what it names is there, and what is there it names.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use sower::config::Config;
use sower::yaml::Node;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every page: the book, and the Markdown files beside it.
fn pages() -> Vec<(PathBuf, String)> {
    let mut paths: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "workflows/README.md"]
        .iter()
        .map(|name| root().join(name))
        .collect();
    for folder in ["docs", "docs/actions"] {
        let entries = fs::read_dir(root().join(folder)).unwrap().flatten().map(|entry| entry.path());
        paths.extend(entries.filter(|path| path.extension().is_some_and(|end| end == "md")));
    }
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// A fenced block: its language, the line before it, its text, its line.
struct Block {
    language: String,
    before: String,
    text: String,
    line: usize,
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    let (mut before, mut indent) = (String::new(), 0);
    for (index, line) in page.lines().enumerate() {
        let fence = line.trim_start().strip_prefix("```");
        match (&mut open, fence) {
            (None, Some(language)) => {
                indent = line.len() - line.trim_start().len();
                let language = language.trim().to_owned();
                open = Some(Block { language, before: before.clone(), text: String::new(), line: index + 1 });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => {
                let blank = line.len() - line.trim_start().len();
                block.text.push_str(&format!("{}\n", &line[blank.min(indent)..]));
            }
            (None, None) => {}
        }
        before = line.to_owned();
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

#[test]
fn every_workflow_in_a_block_passes_the_check() {
    let mut seen = 0;
    for (path, page) in pages() {
        for block in blocks(&page) {
            if block.language != "yaml" || !block.text.contains("jobs:") {
                continue;
            }
            let (_, problems) = match sower::workflow::parse_workflow(block.text.as_bytes(), "block.yaml") {
                Ok(parsed) => parsed,
                Err(problems) => panic!("{}:{}: {problems:?}", path.display(), block.line),
            };
            assert!(problems.is_empty(), "{}:{}: {problems:?}", path.display(), block.line);
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("block.yaml");
            fs::write(&file, &block.text).unwrap();
            let checked = std::process::Command::new(env!("CARGO_BIN_EXE_sower"))
                .arg("check")
                .arg(&file)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&checked.stdout).into_owned();
            assert!(checked.status.success(), "{}:{}: {said}", path.display(), block.line);
            seen += 1;
        }
    }
    assert!(seen >= 8, "{seen} workflows");
}

#[test]
fn every_configuration_in_a_block_is_one() {
    let mut seen = 0;
    for (path, page) in pages() {
        for block in blocks(&page).iter().filter(|block| block.before.contains("<!-- config -->")) {
            let (_, warnings) = Config::parse(Path::new("block"), block.text.as_bytes())
                .unwrap_or_else(|error| panic!("{}:{}: {error}", path.display(), block.line));
            assert!(warnings.is_empty(), "{}:{}: {warnings:?}", path.display(), block.line);
            seen += 1;
        }
    }
    assert!(seen >= 4, "{seen} configurations");
}

/// The command lines of a block that call `sower`, as words.
fn calls(text: &str) -> Vec<Vec<String>> {
    let joined = text.replace("\\\n", " ");
    let mut calls = Vec::new();
    for line in joined.lines() {
        let words = shlex::split(line).unwrap_or_default();
        for command in words.split(|word| matches!(word.as_str(), "|" | "&&" | "||" | ";")) {
            let is_setting = |word: &&String| {
                word.split_once('=').is_some_and(|(name, _)| {
                    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
                })
            };
            let mut command = command.iter().skip_while(is_setting).cloned().collect::<Vec<_>>();
            if command.first().is_some_and(|word| word == "sudo") {
                command.remove(0);
            }
            if command.first().is_some_and(|word| word == "sower") {
                let end = command.iter().position(|word| matches!(word.as_str(), ">" | "<" | ">>" | "2>"));
                command.truncate(end.unwrap_or(command.len()));
                calls.push(command);
            }
        }
    }
    calls
}

#[test]
fn every_command_line_in_a_block_is_one() {
    let mut seen = 0;
    for (path, page) in pages() {
        for block in blocks(&page).iter().filter(|block| block.language == "sh") {
            for call in calls(&block.text) {
                if let Err(error) = sower::cli::command().try_get_matches_from(&call) {
                    let shown = matches!(
                        error.kind(),
                        clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion
                    );
                    assert!(shown, "{}:{}: {}\n{error}", path.display(), block.line, call.join(" "));
                }
                seen += 1;
            }
        }
    }
    assert!(seen >= 40, "{seen} command lines");
}

/// What headings are called in links.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| -> String {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        text.chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    for (path, page) in pages() {
        for (index, line) in page.lines().enumerate() {
            for part in line.split("](").skip(1) {
                let target = part.split(')').next().unwrap_or_default();
                let file = target.split('#').next().unwrap_or_default();
                if target.contains("://") || file.is_empty() {
                    continue;
                }
                let there = path.parent().unwrap().join(file);
                assert!(there.exists(), "{}:{}: {target}", path.display(), index + 1);
                if let Some((_, anchor)) = target.split_once('#') {
                    let text = fs::read_to_string(&there).unwrap();
                    assert!(anchors(&text).contains(anchor), "{}:{}: {target}", path.display(), index + 1);
                }
            }
        }
    }
}

#[test]
fn the_summary_has_every_page() {
    let summary = fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    for (path, _) in pages() {
        let Ok(name) = path.strip_prefix(root().join("docs")) else { continue };
        let name = name.display().to_string();
        assert!(
            name == "SUMMARY.md" || summary.contains(&format!("({name})")),
            "{name} is not in docs/SUMMARY.md"
        );
    }
}

/// The reference page, made of the documented configuration.
fn reference(before: &str) -> String {
    let mut page = before.to_owned();
    let mut comment: Vec<&str> = Vec::new();
    let mut section = "";
    for line in Config::EXAMPLE.lines() {
        let text = line.trim_start();
        if let Some(said) = text.strip_prefix('#') {
            comment.push(said.trim());
        } else if text.is_empty() {
            comment.clear();
        } else if let Some((name, _)) = line.split_once(':').filter(|_| !line.starts_with(' ')) {
            section = name;
            let intro = if section == "log" { String::new() } else { comment.join(" ") };
            let _ = write!(page, "\n## {section}\n\n");
            if !intro.is_empty() {
                let _ = write!(page, "{intro}\n\n");
            }
            page.push_str("| Key | Default | |\n| --- | --- | --- |\n");
            comment.clear();
        } else if let Some((name, value)) = text.split_once(':').filter(|_| !line.starts_with("   ")) {
            let value = value.trim();
            let value = if matches!(value, "" | "\"\"") { String::new() } else { format!("`{value}`") };
            let said = comment.join(" ").replace('|', "\\|");
            let _ = writeln!(page, "| `{section}.{name}` | {value} | {said} |");
            comment.clear();
        }
    }
    page
}

#[test]
fn the_reference_has_every_key_and_no_other() {
    let path = root().join("docs/configuration.md");
    let page = fs::read_to_string(&path).unwrap();
    let before = page.split("\n## log\n").next().unwrap().to_owned();
    let wanted = reference(&before);
    if std::env::var_os("SOWER_UPDATE_DOCS").is_some() {
        fs::write(&path, &wanted).unwrap();
    }
    let page = fs::read_to_string(&path).unwrap();
    let how = "`SOWER_UPDATE_DOCS=1 cargo test --test docs` makes it of runner-config/config.yaml";
    assert_eq!(page, wanted, "docs/configuration.md: {how}");
    let named: BTreeSet<String> = page
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
        .collect();
    let known: BTreeSet<String> = Config::known_keys().into_iter().collect();
    assert_eq!(named, known, "docs/configuration.md: {how}");
}

/// The tables of causes, by what is to be done; a cause of several patterns stands once.
fn causes() -> String {
    /// Each with the rows by which it is known.
    type Causes = Vec<(&'static str, Vec<String>)>;
    let code = |text: &str| format!("`{}`", text.replace('*', "…").trim_end());
    let mut advices: Vec<(&str, Causes)> = Vec::new();
    for pattern in sower::diagnose::patterns() {
        let rows = match pattern.code {
            Some(code) => format!("exit code {code}"),
            None => pattern.rows.iter().map(|row| code(row)).collect::<Vec<_>>().join(" and "),
        };
        let at = advices.iter().position(|(advice, _)| *advice == pattern.advice).unwrap_or_else(|| {
            advices.push((pattern.advice, Vec::new()));
            advices.len() - 1
        });
        let causes = &mut advices[at].1;
        match causes.iter_mut().find(|(cause, _)| *cause == pattern.cause) {
            Some((_, all)) => all.push(rows),
            None => causes.push((pattern.cause, vec![rows])),
        }
    }
    let mut text = String::new();
    for (advice, causes) in advices {
        let _ = write!(text, "\n**{advice}.**\n\n| In the last rows | Cause |\n| --- | --- |\n");
        for (cause, rows) in causes {
            let cause = cause.replace("{ceiling}", "").replace("{1}", "…").replace("{2}", "…");
            let row = format!("{} | {cause}", rows.join("<br>"));
            let _ = writeln!(text, "| {row} |");
        }
    }
    text
}

#[test]
fn the_causes_are_those_of_the_program() {
    const HERE: &str = "<!-- made by tests/docs.rs -->\n";
    let path = root().join("docs/causes.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, _) = page.split_once(HERE).unwrap();
    let wanted = format!("{before}{HERE}{}", causes());
    if std::env::var_os("SOWER_UPDATE_DOCS").is_some() {
        fs::write(&path, &wanted).unwrap();
    }
    let page = fs::read_to_string(&path).unwrap();
    assert_eq!(
        page, wanted,
        "`SOWER_UPDATE_DOCS=1 cargo test --test docs` makes it of src/diagnose/table.rs"
    );
}

fn names(action: &Node, what: &str) -> Vec<String> {
    let entries = action.get(what).and_then(Node::as_mapping).unwrap_or_default();
    entries.iter().map(|(key, _)| key.text.clone()).collect()
}

#[test]
fn every_embedded_action_has_a_page_with_its_inputs_and_outputs() {
    for entry in fs::read_dir(root().join("workflows/actions")).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let action = sower::yaml::parse(fs::read(entry.path().join("action.yml")).unwrap()).unwrap();
        let page = fs::read_to_string(root().join(format!("docs/actions/{name}.md")))
            .unwrap_or_else(|error| panic!("docs/actions/{name}.md: {error}"));
        let listed: BTreeSet<String> = page
            .lines()
            .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
            .collect();
        let there: BTreeSet<String> =
            names(&action, "inputs").into_iter().chain(names(&action, "outputs")).collect();
        assert_eq!(listed, there, "docs/actions/{name}.md");
        assert!(page.contains("## Example") && page.contains("## When it fails"), "docs/actions/{name}.md");
    }
}

/// All text of the program's source.
fn source(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            source(&path, into);
        } else if path.extension().is_some_and(|end| end == "rs") {
            into.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn the_texts_under_troubleshooting_are_those_of_the_program() {
    let mut all = String::new();
    source(&root().join("src"), &mut all);
    // A text that is broken over lines in the source is one.
    let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let all = plain(&all.replace("\\\n", ""));
    let page = fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    for line in page.lines().filter_map(|line| line.strip_prefix("### `")) {
        let text = line.trim_end_matches('`');
        for piece in text.split('…').map(plain) {
            let piece = piece.trim_matches(|c: char| c.is_whitespace() || "():".contains(c)).to_owned();
            assert!(piece.len() < 4 || all.contains(&piece), "no text of the program: {piece:?} of {text:?}");
        }
    }
}

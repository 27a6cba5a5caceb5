//! Whether an event starts a workflow: the filters under `on`.
//!
//! Source: GitHub's documentation, "Workflow syntax": `on.push.branches` and its kin, and the filter pattern cheat sheet.

use regex::Regex;
use serde_json::Value;

use crate::workflow::model::Trigger;
use crate::yaml::Node;

use super::context::Context;

/// Whether an event of this context starts the workflow; the reason when it does not.
///
/// # Errors
/// Which filter it does not pass.
pub fn applies(trigger: &Trigger, context: &Context) -> Result<(), String> {
    let filters = &trigger.filters;
    types(filters, context)?;
    match context.event.as_str() {
        "push" => push(filters, context),
        "pull_request" | "pull_request_target" | "pull_request_review" | "pull_request_review_comment" => {
            named(filters, "branches", &text(context, "base_ref"))?;
            paths(filters, context)
        }
        "workflow_run" => {
            let event = context.github.get("event");
            let part = |pointer: &str| {
                event.and_then(|event| event.pointer(pointer)).and_then(Value::as_str).unwrap_or_default()
            };
            named(filters, "branches", part("/workflow_run/head_branch"))?;
            let wanted = list(filters.get("workflows"));
            let name = part("/workflow_run/name");
            if wanted.is_empty() || name.is_empty() || wanted.iter().any(|wanted| wanted == name) {
                return Ok(());
            }
            Err(format!("{name:?} is none of its 'workflows'"))
        }
        _ => Ok(()),
    }
}

fn text(context: &Context, key: &str) -> String {
    context.github.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn push(filters: &Node, context: &Context) -> Result<(), String> {
    let has = |kind: &str| filters.get(kind).is_some() || filters.get(&format!("{kind}-ignore")).is_some();
    let name = text(context, "ref_name");
    let (own, other) =
        if text(context, "ref_type") == "tag" { ("tags", "branches") } else { ("branches", "tags") };
    if !has(own) && has(other) {
        return Err(format!("it runs for {other} only, not for {name:?}"));
    }
    named(filters, own, &name)?;
    // A tag changes no files.
    if own == "tags" { Ok(()) } else { paths(filters, context) }
}

/// `types`, and the types that count when there are none.
fn types(filters: &Node, context: &Context) -> Result<(), String> {
    let action = context.github.get("event").and_then(|event| event.get("action")).and_then(Value::as_str);
    let Some(action) = action else { return Ok(()) };
    let mut types = list(filters.get("types"));
    if types.is_empty() {
        match context.event.as_str() {
            "pull_request" | "pull_request_target" => {
                types = ["opened", "synchronize", "synchronized", "reopened"].map(str::to_owned).to_vec();
            }
            _ => return Ok(()),
        }
    }
    // Gitea has a word of its own for one of them.
    let same = |wanted: &String| {
        wanted == action || wanted.trim_end_matches('d') == "synchronize" && action.starts_with("synchronize")
    };
    if types.iter().any(same) {
        return Ok(());
    }
    Err(format!("its 'types' are {}, not {action:?}", types.join(", ")))
}

/// `KIND` and `KIND-ignore` for one name.
fn named(filters: &Node, kind: &str, name: &str) -> Result<(), String> {
    let wanted = filters.get(kind).filter(|node| !node.is_null());
    if let Some(node) = wanted
        && !selects(&list(Some(node)), name)
    {
        return Err(format!("{name:?} is none of its '{kind}'"));
    }
    let ignored = list(filters.get(&format!("{kind}-ignore")));
    if !ignored.is_empty() && selects(&ignored, name) {
        return Err(format!("{name:?} is one of its '{kind}-ignore'"));
    }
    Ok(())
}

/// `paths` and `paths-ignore` for the files that the event changed.
fn paths(filters: &Node, context: &Context) -> Result<(), String> {
    let wanted = filters.get("paths").filter(|node| !node.is_null());
    let ignored = list(filters.get("paths-ignore"));
    if wanted.is_none() && ignored.is_empty() {
        return Ok(());
    }
    // Where it cannot be told what changed, everything may have.
    let Some(changed) = context.changed_files() else { return Ok(()) };
    if let Some(node) = wanted {
        let patterns = list(Some(node));
        if !changed.iter().any(|file| selects(&patterns, file)) {
            return Err(format!("none of the {} changed files is one of its 'paths'", changed.len()));
        }
    }
    if !ignored.is_empty() && !changed.is_empty() && changed.iter().all(|file| selects(&ignored, file)) {
        return Err("all changed files are among its 'paths-ignore'".to_owned());
    }
    Ok(())
}

/// Whether the last pattern that fits says so; `!` before a pattern takes back what those before it gave.
fn selects(patterns: &[String], name: &str) -> bool {
    patterns.iter().fold(false, |selected, pattern| match pattern.strip_prefix('!') {
        Some(pattern) if fits(pattern, name) => false,
        None if fits(pattern, name) => true,
        _ => selected,
    })
}

fn list(node: Option<&Node>) -> Vec<String> {
    let Some(node) = node else { return Vec::new() };
    let items = node.as_sequence().unwrap_or(std::slice::from_ref(node));
    items.iter().filter_map(Node::scalar_text).filter(|text| !text.is_empty()).collect()
}

/// Whether a pattern fits a whole name. What is no pattern fits nothing.
fn fits(pattern: &str, name: &str) -> bool {
    Regex::new(&expression(pattern)).is_ok_and(|regex| regex.is_match(name))
}

/// `*` is anything without `/`, `**` anything, `?` and `+` count the character before them, `[]` is a class.
fn expression(pattern: &str) -> String {
    let mut out = String::from("^(?s:");
    let mut rest = pattern.chars().peekable();
    let mut class = false;
    while let Some(c) = rest.next() {
        match c {
            '\\' => {
                if let Some(next) = rest.next() {
                    out.push_str(&regex::escape(&next.to_string()));
                }
            }
            '[' if !class => {
                class = true;
                out.push('[');
            }
            ']' if class => {
                class = false;
                out.push(']');
            }
            c if class => {
                if matches!(c, '[' | '&' | '~') {
                    out.push('\\');
                }
                out.push(c);
            }
            '*' if rest.peek() == Some(&'*') => {
                rest.next();
                if rest.peek() == Some(&'/') {
                    rest.next();
                    out.push_str("(?:.*/)?");
                } else {
                    out.push_str(".*");
                }
            }
            '*' => out.push_str("[^/]*"),
            '?' | '+' => out.push(c),
            c => out.push_str(&regex::escape(&c.to_string())),
        }
    }
    out.push_str(")$");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_the_cheat_sheet() {
        for (pattern, fitting, others) in [
            ("feature/*", &["feature/my-branch", "feature/your-branch"][..], &["feature/a/b", "main"][..]),
            ("feature/**", &["feature/beta-a/my-branch", "feature/your-branch"], &["features"]),
            ("releases/mona-the-octocat", &["releases/mona-the-octocat"], &["releases/mona"]),
            ("*", &["main", "releases"], &["all/the/branches"]),
            ("**", &["all/the/branches", "every/tag"], &[]),
            ("*feature", &["mona-feature", "feature", "ver-10-feature"], &["feature-x"]),
            ("v2*", &["v2", "v2.0", "v2.9"], &["v1"]),
            ("v[12].[0-9]+.[0-9]+", &["v1.10.1", "v2.0.0"], &["v3.0.0", "v1.0"]),
            ("*.jsx?", &["page.js", "page.jsx"], &["page.ts"]),
            ("*.js", &["app.js", "index.js"], &["js/index.js"]),
            ("**.js", &["index.js", "js/index.js", "src/js/app.js"], &["a.jsx"]),
            ("docs/*", &["docs/README.md"], &["docs/a/b.md"]),
            (
                "docs/**/*.md",
                &["docs/README.md", "docs/mona/hello-world.md", "docs/a/markdown/file.md"],
                &["d/x.md"],
            ),
            (
                "**/docs/**",
                &["docs/hello.md", "dir/docs/my-file.txt", "space/docs/plan/space.doc"],
                &["doc/x"],
            ),
            ("**/README.md", &["README.md", "js/README.md"], &["README.mdx"]),
            ("**/*-post.md", &["my-post.md", "path/their-post.md"], &["post.md"]),
            ("**/migrate-*.sql", &["migrate-10909.sql", "db/sept/migrate-v1.sql"], &["db/x.sql"]),
            ("a.b", &["a.b"], &["axb"]),
        ] {
            for name in fitting {
                assert!(fits(pattern, name), "{pattern} does not fit {name}");
            }
            for name in others {
                assert!(!fits(pattern, name), "{pattern} fits {name}");
            }
        }
    }

    #[test]
    fn later_patterns_take_back_and_give_again() {
        let patterns = ["releases/**", "!releases/**-alpha", "releases/good-alpha"].map(str::to_owned);
        assert!(selects(&patterns, "releases/10"));
        assert!(!selects(&patterns, "releases/10-alpha"));
        assert!(selects(&patterns, "releases/good-alpha"));
        assert!(!selects(&["!main".to_owned()], "other"));
    }

    #[test]
    fn rubbish_fits_nothing_and_takes_no_time() {
        for pattern in ["[", "+", "?", "[z-a]", "a{1000000}", "\\", "((((", &"*".repeat(5000)] {
            assert!(!fits(pattern, "\n x") || pattern.starts_with('*'), "{pattern}");
        }
    }
}

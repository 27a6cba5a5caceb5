//! Scripts into which somebody else's text is pasted.
//!
//! <https://docs.github.com/en/actions/reference/security/secure-use#understanding-the-risk-of-script-injections>

use super::Problems;
use crate::workflow::expression::Reference;
use crate::workflow::template::Template;

/// Parts of an event that people without any right in the repository can write.
const OTHERS: &[&str] = &[
    "issue",
    "pull_request",
    "comment",
    "review",
    "review_comment",
    "discussion",
    "pages",
    "commits",
    "head_commit",
    "workflow_run",
    "changes",
];

/// Properties that only the server sets, or that cannot hold what a shell would run.
const HARMLESS: &[&str] = &[
    "number",
    "id",
    "node_id",
    "sha",
    "size",
    "url",
    "created_at",
    "updated_at",
    "closed_at",
    "merged_at",
    "submitted_at",
    "timestamp",
    "action",
    "before",
    "after",
    "type",
    "private",
    "fork",
    "merged",
    "mergeable",
    "draft",
    "locked",
    "forced",
    "deleted",
    "created",
    "distinct",
    "run_number",
    "run_attempt",
    "state",
    "conclusion",
    "status",
    "login",
    "comments",
    "commits",
    "additions",
    "deletions",
    "changed_files",
    "author_association",
    "event",
    "tree_id",
    "site_admin",
];

/// Notes each context in a script whose text others write and that can reach the script.
pub(super) fn check(script: &Template, problems: &mut Problems) {
    for placed in script.expressions() {
        let suspects: Vec<&Reference> =
            placed.expression.references().iter().filter(|reference| is_of_others(reference)).collect();
        if suspects.is_empty() {
            continue;
        }
        let flowing = placed.expression.flowing();
        for reference in suspects.into_iter().filter(|reference| flowing.contains(&reference.position)) {
            let mut name = format!("{}.{}", reference.name, reference.properties.join("."));
            if let Some(last) = reference.last.as_ref().filter(|_| reference.partial)
                && reference.properties.last() != Some(last)
            {
                name.push_str(&format!(".*.{last}"));
            }
            problems.warning(
                placed.at(reference.position),
                "script-injection",
                format!(
                    "'{name}' is text that others write, and it becomes part of this script; give it to the \
                     script through 'env'"
                ),
            );
        }
    }
}

fn is_of_others(reference: &Reference) -> bool {
    if !matches!(reference.name.as_str(), "github" | "gitea" | "forgejo") {
        return false;
    }
    let properties: Vec<String> =
        reference.properties.iter().map(|property| property.to_ascii_lowercase()).collect();
    match properties.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["head_ref"] => true,
        ["event"] => true,
        // The branch that a pull request is for is the repository's own.
        ["event", "pull_request", "base", ..] => false,
        ["event", part, ..] => {
            let last = reference.last.as_deref().unwrap_or_default().to_ascii_lowercase();
            let harmless = HARMLESS.contains(&last.as_str())
                || ["_url", "_id", "_at", "_count"].iter().any(|end| last.ends_with(end));
            OTHERS.contains(&part) && !(harmless && (properties.len() > 2 || reference.partial))
        }
        _ => false,
    }
}

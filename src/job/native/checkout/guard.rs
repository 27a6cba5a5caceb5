//! What may not be checked out: a stranger's code in a job that has the repository's secrets.
//!
//! `pull_request_target` and `workflow_run` give a job the base repository's token and secrets. A step that fetches
//! the head of a fork there hands both to whoever opened the pull request, so it has to say that it means to.

use std::fs::File;
use std::io::Read;

use serde_json::Value;

use super::{Call, Problem, step};

/// The most that is read of an event, in bytes.
const MAX_EVENT: u64 = 64 << 20;

/// Refuses what comes from the fork of a pull request, unless `allow-unsafe-pr-checkout` is true.
pub(super) fn refuse_fork_code(
    call: &Call<'_>,
    repository: &str,
    reference: &str,
    commit: &str,
) -> Result<(), Problem> {
    let event_name = call.var("GITHUB_EVENT_NAME");
    if !matches!(event_name, "pull_request_target" | "workflow_run")
        || call.input("allow-unsafe-pr-checkout").eq_ignore_ascii_case("true")
    {
        return Ok(());
    }
    let mut text = Vec::new();
    let read = File::open(call.var("GITHUB_EVENT_PATH"))
        .and_then(|file| file.take(MAX_EVENT).read_to_end(&mut text));
    let event: Value = match read {
        Ok(_) => serde_json::from_slice(&text).unwrap_or_default(),
        Err(error) => return Err(step(format!("{}: {error}", call.var("GITHUB_EVENT_PATH")))),
    };
    if is_fork_code(&event, event_name, repository, reference, commit) {
        return Err(step(format!(
            "Refusing to check out fork pull request code from a '{event_name}' workflow. This job has the token and \
             the secrets of the base repository, and the code is a stranger's. If it cannot do harm here, set \
             'allow-unsafe-pr-checkout: true' on the actions/checkout step."
        )));
    }
    Ok(())
}

fn is_fork_code(event: &Value, name: &str, repository: &str, reference: &str, commit: &str) -> bool {
    let at = |path: &str| event.pointer(path).unwrap_or(&Value::Null);
    let (head, mut commits) = if name == "pull_request_target" {
        ("/pull_request/head/repo", vec!["/pull_request/head/sha", "/pull_request/merge_commit_sha"])
    } else {
        let of = at("/workflow_run/event").as_str().unwrap_or_default();
        if !of.starts_with("pull_request") {
            return false;
        }
        let mut commits = vec!["/workflow_run/head_commit/id"];
        if of != "pull_request_target" {
            commits.push("/workflow_run/head_sha");
        }
        ("/workflow_run/head_repository", commits)
    };
    let head_id = at(&format!("{head}/id")).as_u64();
    let base_id = at("/repository/id").as_u64();
    if head_id.is_none() || base_id.is_none() || head_id == base_id {
        return false;
    }
    commits.retain(|path| at(path).as_str().is_some_and(|known| !known.is_empty()));
    let its_repository =
        at(&format!("{head}/full_name")).as_str().is_some_and(|full| full.eq_ignore_ascii_case(repository));
    let its_ref = reference
        .strip_prefix("refs/pull/")
        .and_then(|rest| rest.strip_suffix("/head").or_else(|| rest.strip_suffix("/merge")))
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
    let its_commit = !commit.is_empty()
        && commits
            .iter()
            .any(|path| at(path).as_str().is_some_and(|known| known.eq_ignore_ascii_case(commit)));
    its_repository || its_ref || its_commit
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn code_of_a_fork_is_known_by_repository_ref_and_commit() {
        let event = json!({
            "repository": {"id": 1},
            "pull_request": {"head": {"sha": "aa", "repo": {"id": 2, "full_name": "mallory/app"}}},
        });
        let refused = |event: &Value, repository: &str, reference: &str, commit: &str| {
            is_fork_code(event, "pull_request_target", repository, reference, commit)
        };
        assert!(refused(&event, "Mallory/app", "", ""));
        assert!(refused(&event, "dev/app", "refs/pull/3/head", ""));
        assert!(refused(&event, "dev/app", "", "AA"));
        assert!(!refused(&event, "dev/app", "main", ""));
        assert!(!refused(&event, "dev/app", "refs/pull/x/head", "bb"));
        let own = json!({
            "repository": {"id": 1},
            "pull_request": {"head": {"sha": "aa", "repo": {"id": 1, "full_name": "dev/app"}}},
        });
        assert!(!refused(&own, "dev/app", "refs/pull/3/head", "aa"));
        let run = json!({
            "repository": {"id": 1},
            "workflow_run": {"event": "pull_request", "head_sha": "cc", "head_repository": {"id": 2}},
        });
        assert!(is_fork_code(&run, "workflow_run", "dev/app", "", "cc"));
        assert!(!is_fork_code(&run, "workflow_run", "dev/app", "main", ""));
    }
}

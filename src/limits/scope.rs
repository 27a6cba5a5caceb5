//! A job in a scope of systemd: a control group beside that of the service.
//!
//! A group that hands controllers down may hold no process itself. systemd puts each new daemon into the group of its
//! service, and only from 254 on into a leaf below (`DelegateSubgroup=`). Below an older one the groups of jobs with limits
//! are therefore made in scopes of their own, so that the service can be restarted beside them.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// Asks systemd for a scope and becomes the program that is named behind.
const PROGRAM: &str = "systemd-run";
/// How the names of the scopes begin.
const NAME: &str = "sower-job-";

/// Whether systemd gives scopes to this process. Takes some milliseconds.
#[must_use]
pub fn can_be_had() -> bool {
    let mut command = Command::new(PROGRAM);
    command.args(["--scope", "--quiet", "--collect", "true"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// A command that becomes another one in a scope; that one and its arguments are to follow. `number` is the task's.
#[must_use]
pub fn command(number: i64) -> Command {
    let mut command = Command::new(PROGRAM);
    // More than one runner may be on this host, with tasks of the same number.
    let unit = format!("{NAME}{number}-{}.scope", std::process::id());
    command.args(["--scope", "--quiet", "--collect", "--property=Delegate=yes", "--unit"]).arg(unit);
    let description: OsString = format!("--description=Gitea Actions job, task {number}").into();
    command.arg(description).arg("--");
    command
}

/// Hands controllers down to a job's group from the scope that it is in. Nothing happens elsewhere: there the daemon
/// has done it.
pub(super) fn hand_down<'c>(job: &Path, controllers: impl Iterator<Item = &'c str>) {
    let Some(scope) = job.parent().filter(|scope| is_scope(scope)) else { return };
    for controller in controllers {
        // One that is not there is missed by who wants it.
        let _ = fs::write(scope.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

fn is_scope(group: &Path) -> bool {
    let name = group.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(NAME) && name.ends_with(".scope")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_scopes_of_jobs_are_changed() {
        let root = tempfile::tempdir().unwrap();
        for (name, changed) in
            [("sower-job-7-12.scope", true), ("session-1.scope", false), ("sower.service", false)]
        {
            let group = root.path().join(name);
            fs::create_dir(&group).unwrap();
            hand_down(&group.join("sower-1-2"), ["memory"].into_iter());
            assert_eq!(group.join("cgroup.subtree_control").exists(), changed, "{name}");
        }
    }
}

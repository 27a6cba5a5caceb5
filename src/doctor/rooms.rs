//! What the rooms know of their own: registries, deployment targets, archives, the configuration.

use std::path::PathBuf;

use super::report::Check;
use crate::archive::memory::Memory;
use crate::archive::nix::closure;
use crate::archive::survey::{self, Answer, Request};
use crate::archive::{find, words};
use crate::config::{Config, Finding};
use crate::deploy;
use crate::gitea::faults;
use crate::image::doctor::{self as registries, State as Found};
use crate::image::registry::{Credentials, Options};
use crate::image::{self, Destination};
use crate::ssh;

/// What was odd in the configuration, and what in it will not work on this host.
#[must_use]
pub fn configuration(config: &Config, warnings: &[Finding]) -> Vec<Check> {
    const ROOM: &str = "configuration";
    let odd =
        warnings.iter().map(|warning| Check::odd(ROOM, "key", warning.to_string(), "sower config check"));
    let bad = faults(config).into_iter().map(|fault| Check::bad(ROOM, "key", fault, "sower config check"));
    odd.chain(bad).collect()
}

/// What a push and a pull will meet.
///
/// # Errors
/// When the destination cannot be one.
pub fn registry(destination: &str, plain_http: bool) -> Result<Vec<Check>, image::Error> {
    const ROOM: &str = "registry";
    let destination = Destination::parse(destination)?;
    let credentials = Credentials::find(&destination.repository, None, None)?;
    let options = Options { plain_http, ..Options::default() };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return Ok(vec![Check::bad(ROOM, "registry", error.to_string(), "more file descriptors")]);
        }
    };
    let report = runtime.block_on(registries::examine(&destination, credentials, &options))?;
    let remedies: Vec<String> =
        report.remedies.iter().map(|remedy| format!("{}\n{}", remedy.text, remedy.lines)).collect();
    let remedy = if remedies.is_empty() {
        format!("sower image doctor {} says more", report.repository)
    } else {
        remedies.join("\n")
    };
    let last = report.findings.iter().rposition(|finding| finding.state != Found::Well);
    let checks = report.findings.iter().enumerate().map(|(index, finding)| {
        // All that is to be done stands below the last thing that is not well.
        let remedy = if last == Some(index) { remedy.clone() } else { String::new() };
        let mut check = match finding.state {
            Found::Well => Check::well(ROOM, finding.what, &finding.text),
            Found::Odd => Check::odd(ROOM, finding.what, &finding.text, remedy),
            Found::Bad => Check::bad(ROOM, finding.what, &finding.text, remedy),
        };
        check.remedy = check.remedy.filter(|remedy| !remedy.is_empty());
        check
    });
    Ok(checks.collect())
}

/// Whether a deployment could be made.
#[must_use]
pub fn deploy(target: &str, through: Option<ssh::Target>) -> Vec<Check> {
    const ROOM: &str = "deploy";
    let (namespace, release) = match target.split_once('/') {
        Some((namespace, release)) => (namespace, Some(release)),
        None => (target, None),
    };
    let looks = deploy::doctor::examine(namespace, release, through);
    let check = |look: deploy::doctor::Look| match look.remedy {
        None => Check::well(ROOM, look.what, look.seen),
        Some(remedy) if look.fails => Check::bad(ROOM, look.what, look.seen, remedy),
        Some(remedy) => Check::odd(ROOM, look.what, look.seen, remedy),
    };
    looks.into_iter().map(check).collect()
}

/// Whether archives are whole.
#[must_use]
pub fn archives(asked: &[String]) -> Vec<Check> {
    const ROOM: &str = "archives";
    let mut checks = Vec::new();
    let mut memory = Memory::from_environment();
    let mut request = Request::default();
    for name in asked {
        let path = PathBuf::from(name);
        if path.is_file() {
            request.archives.push(path);
        } else if path.is_dir() && !path.join("flake.nix").exists() {
            request.archives.extend(find::archives_below(&path).archives);
        } else {
            match closure::archives(name, &mut memory) {
                Ok(found) => request.archives.extend(found.archives),
                Err(why) => {
                    checks.push(Check::bad(ROOM, name, why, "a file, a directory, or what `nix build` takes"))
                }
            }
        }
    }
    let mut sound = 0;
    survey::run(&request, Some(&mut memory), &mut |answer| match answer {
        Answer::Archive(path, result) => match *result {
            Ok(report) if report.sound => sound += 1,
            Ok(report) => {
                let seen = words::text(&report);
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                checks.push(Check::bad(ROOM, name, seen, words::mend_command(&report)));
            }
            Err(error) => {
                checks.push(Check::bad(ROOM, "archive", error.to_string(), "name one that can be read"))
            }
        },
        Answer::Notice(text) => checks.push(Check::note(ROOM, "notice", text)),
        Answer::StorePathUnknown(path, why) => {
            checks.push(Check::note(ROOM, path.display().to_string(), why));
        }
        Answer::StorePath(_) => {}
    });
    if sound > 0 {
        checks.push(Check::well(ROOM, "sound", format!("{sound} archives")));
    }
    if checks.is_empty() {
        checks.push(Check::note(ROOM, "archives", "none there"));
    }
    checks
}

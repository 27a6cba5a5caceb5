//! A command of Nix that builds, run so that what it builds is seen: its structured log is read instead of printed.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::admission::Peaks;
use super::launcher;
use super::nix;
use super::nix_build::Builds;

/// How often the builders are measured.
const MEASURE: Duration = Duration::from_millis(500);
/// How often a line says what is being built, when nothing else does.
const STILL: u32 = 120;
/// A longer row of the log is cut.
const ROW_AT_MOST: u64 = 1 << 20;

/// Runs a command of Nix that builds; gives how it ended. In a job its builds are groups of the log and a table of the
/// summary.
///
/// # Errors
/// When it cannot be started, or the summary cannot be written.
pub fn follow(mut command: Command) -> io::Result<ExitStatus> {
    let times = times();
    let in_job = std::env::var_os("GITHUB_ACTIONS").is_some();
    let builds = Builds::new(times.as_deref().map(Peaks::read).unwrap_or_default(), in_job);
    let builds = Arc::new(Mutex::new(builds));
    let mut child = command
        // What the job is told of each build would be told twice.
        .env("NIX_CONFIG", without_log_path(&std::env::var("NIX_CONFIG").unwrap_or_default()))
        .stderr(Stdio::piped())
        .spawn()?;
    let pid = child.id();
    let watched = Arc::clone(&builds);
    std::thread::spawn(move || {
        for turn in 1_u32.. {
            std::thread::sleep(MEASURE);
            let still = {
                let mut builds = lock(&watched);
                builds.measure(pid);
                builds.line().filter(|_| turn.is_multiple_of(STILL))
            };
            if let Some(still) = still {
                say(&format!("still building: {still}"));
            }
        }
    });
    if let Some(stderr) = child.stderr.take() {
        let mut reader = BufReader::new(stderr);
        let mut row = Vec::new();
        loop {
            row.clear();
            if !matches!(reader.by_ref().take(ROW_AT_MOST).read_until(b'\n', &mut row), Ok(1..)) {
                break;
            }
            let text = String::from_utf8_lossy(&row);
            let said = lock(&builds).take(text.trim_end_matches(['\n', '\r']));
            if let Some(said) = said {
                say(&said);
            }
        }
    }
    let status = child.wait()?;
    let mut builds = lock(&builds);
    if let Some(said) = builds.end() {
        say(&said);
    }
    if let (Some(summary), Some(markdown)) = (std::env::var_os("GITHUB_STEP_SUMMARY"), builds.markdown()) {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(&summary);
        let written = file.and_then(|mut file| writeln!(file, "{markdown}"));
        written.map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", Path::new(&summary).display()))
        })?;
    }
    if let Some(times) = times {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        if let Err(error) = builds.remember(&times, now) {
            say(&format!("sower: how long it took is not remembered: {}: {error}", times.display()));
        }
    }
    Ok(status)
}

/// What to say on the way of a heap ceiling into a build, where the launchers on `PATH` ask for one.
#[must_use]
pub fn way(arguments: &[OsString]) -> Option<String> {
    let path = std::env::var_os("PATH")?;
    let asked = std::env::split_paths(&path).find_map(|directory| launcher::asked(&directory))?;
    Some(nix::way(&nix::builds(arguments)?, &asked.ceiling))
}

/// The launcher that stands in front of a program of Nix: what builds goes through `sower nix follow`, everything else to
/// Nix as it is.
#[must_use]
pub fn launcher(real: &Path, sower: &Path) -> Vec<u8> {
    let mut script =
        b"#!/bin/sh\n# Written by sower: builds are followed, everything else goes to Nix as it is.\n"
            .to_vec();
    let always = real.file_name() == Some(OsStr::new("nix-build"));
    script.extend(if always { &b""[..] } else { b"case \" $* \" in *\" build \"*) " });
    script.extend(b"exec ");
    script.extend(launcher::quote(sower));
    script.extend(b" nix follow ");
    script.extend(launcher::quote(real));
    script.extend(b" -- \"$@\"");
    if !always {
        script.extend(b" ;; esac\nexec ");
        script.extend(launcher::quote(real));
        script.extend(b" \"$@\"");
    }
    script.push(b'\n');
    script
}

/// Writes launchers for the Nix programs on `path` into `directory`; `sower` is what they start.
///
/// # Errors
/// When they cannot be written.
pub fn make_launchers(directory: &Path, path: &OsStr, sower: &Path) -> io::Result<()> {
    for name in ["nix", "nix-build"] {
        let real = std::env::split_paths(path)
            .filter(|place| place.is_absolute() && place != directory)
            .map(|place| place.join(name))
            .find(|file| file.is_file());
        // A path that is no text would not survive the shell of every host.
        if let Some(real) = real.filter(|real| std::str::from_utf8(real.as_os_str().as_bytes()).is_ok()) {
            launcher::write_executable(&directory.join(name), &launcher(&real, sower))?;
        }
    }
    Ok(())
}

/// The configuration without a line that names a place for Nix's structured log.
fn without_log_path(config: &str) -> String {
    config.lines().filter(|line| !line.trim_start().starts_with("json-log-path")).fold(
        String::new(),
        |mut text, line| {
            text.push_str(line);
            text.push('\n');
            text
        },
    )
}

fn lock(builds: &Mutex<Builds>) -> MutexGuard<'_, Builds> {
    builds.lock().unwrap_or_else(PoisonError::into_inner)
}

fn say(text: &str) {
    // Nobody may be reading any more.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Where it is kept how long derivations took on this host.
fn times() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("sower/nix-builds.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_catch_builds_and_nothing_else() {
        let text = |name: &str| {
            String::from_utf8(launcher(&Path::new("/usr/bin").join(name), Path::new("/opt/so'wer"))).unwrap()
        };
        insta::assert_snapshot!(text("nix"), @r#"
        #!/bin/sh
        # Written by sower: builds are followed, everything else goes to Nix as it is.
        case " $* " in *" build "*) exec '/opt/so'\''wer' nix follow '/usr/bin/nix' -- "$@" ;; esac
        exec '/usr/bin/nix' "$@"
        "#);
        assert!(
            text("nix-build").ends_with("exec '/opt/so'\\''wer' nix follow '/usr/bin/nix-build' -- \"$@\"\n")
        );
        assert_eq!(without_log_path("a = 1\njson-log-path = /x\nb = 2"), "a = 1\nb = 2\n");
    }
}

//! Launchers: small scripts that stand in front of GHC and put a ceiling on its command line.
//!
//! The options come first, so that a `+RTS … -RTS` that a build passes itself is read later and wins, and what
//! GHCRTS sets already is left out, so that it wins as well. GHC's own children inherit nothing.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::ceiling::Ceiling;
use super::programs::{self, Role};

/// What a covered program's name is followed by where it stays reachable.
pub const ORIGINAL: &str = ".original";

/// A file in each directory of launchers, by which it is known again.
const MARK: &str = ".sower-ghc-caps";

/// Whether a directory holds launchers, not programs.
#[must_use]
pub fn is_launcher_directory(directory: &Path) -> bool {
    directory.join(MARK).exists()
}

/// What a directory of launchers asks of the job, kept in its mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Asked {
    /// The ceiling.
    pub ceiling: Ceiling,
    /// The job fails when a GHC ran without it.
    pub require: bool,
}

/// What a directory of launchers asks of the job; `None` when it is none.
#[must_use]
pub fn asked(directory: &Path) -> Option<Asked> {
    serde_json::from_slice(&fs::read(directory.join(MARK)).ok()?).ok()
}

/// Writes down what a directory of launchers asks of the job.
///
/// # Errors
/// When it cannot be written.
pub fn ask(directory: &Path, asked: &Asked) -> io::Result<()> {
    fs::write(directory.join(MARK), serde_json::to_vec(asked)?)
}

/// The launcher of a compiler.
#[must_use]
pub fn compiler(real: &Path, ceiling: &Ceiling) -> Vec<u8> {
    let jobs = ceiling.jobs.map(|jobs| format!(" -j{jobs}")).unwrap_or_default();
    let mut script = format!(
        "#!/bin/sh\n\
         # Written by sower: a heap ceiling for this program and for nothing that it starts.\n\
         heap=-M{} area=-A{}\n",
        ceiling.heap.option(),
        ceiling.allocation_area.option()
    )
    .into_bytes();
    if ceiling.enforce {
        // Behind `--` and `--RTS` the run-time system reads no options.
        script.extend(
            format!(
                "done=\n\
             for word do\n\
             shift\n\
             case $done$word in --|--RTS) set -- \"$@\"{jobs} +RTS $area $heap -RTS; done=1 ;; esac\n\
             set -- \"$@\" \"$word\"\n\
             done\n\
             [ \"$done\" ] || set -- \"$@\"{jobs} +RTS $area $heap -RTS\n\
             exec "
            )
            .into_bytes(),
        );
        script.extend(quote(real));
        script.extend(b" \"$@\"\n");
    } else {
        script.extend(
            b"# What GHCRTS sets already is left to it.\n\
              case \" ${GHCRTS-}\" in *[[:space:]]-M*) heap= ;; esac\n\
              case \" ${GHCRTS-}\" in *[[:space:]]-A*) area= ;; esac\n\
              exec ",
        );
        script.extend(quote(real));
        script.extend(format!(" +RTS $area $heap -RTS{jobs} \"$@\"\n").into_bytes());
    }
    script
}

/// The launcher of `runghc`: a Haskell program of its own, told which compiler to start.
fn runner(real: &Path, compiler: &Path) -> Vec<u8> {
    let mut script =
        b"#!/bin/sh\n# Written by sower: the compiler that this program starts has a heap ceiling.\nexec "
            .to_vec();
    script.extend(quote(real));
    script.extend(b" -f ");
    script.extend(quote(compiler));
    script.extend(b" \"$@\"\n");
    script
}

/// A path as one word of a shell.
pub(super) fn quote(path: &Path) -> Vec<u8> {
    let mut quoted = b"'".to_vec();
    for &byte in path.as_os_str().as_bytes() {
        if byte == b'\'' { quoted.extend(b"'\\''") } else { quoted.push(byte) }
    }
    quoted.push(b'\'');
    quoted
}

/// Makes `directory` anew with launchers for every GHC program on `path`; gives name and program of each.
///
/// # Errors
/// When the directory cannot be written, or holds something else than launchers.
pub fn make_directory(
    directory: &Path,
    path: &OsStr,
    ceiling: &Ceiling,
) -> io::Result<Vec<(String, PathBuf)>> {
    if directory.exists() {
        let foreign = !is_launcher_directory(directory) && fs::read_dir(directory)?.next().is_some();
        if foreign {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "it holds something else than launchers",
            ));
        }
        fs::remove_dir_all(directory)?;
    }
    fs::create_dir_all(directory)?;
    fs::write(directory.join(MARK), "")?;
    let found = programs::on_path(path);
    let mut made = Vec::new();
    for (name, real) in &found {
        let script = match programs::role(name) {
            Some(Role::Compiler) => compiler(real, ceiling),
            Some(Role::Runner) => {
                let version = name.strip_prefix("runghc").unwrap_or_default();
                let same = format!("ghc{version}");
                let Some(name) = [same.as_str(), "ghc"].into_iter().find(|name| found.contains_key(*name))
                else {
                    continue;
                };
                runner(real, &directory.join(name))
            }
            None => continue,
        };
        write_executable(&directory.join(name), &script)?;
        made.push((name.clone(), real.clone()));
    }
    Ok(made)
}

/// Writes a script that can be executed at once.
pub(super) fn write_executable(path: &Path, script: &[u8]) -> io::Result<()> {
    fs::write(path, script)?;
    fs::set_permissions(path, Permissions::from_mode(0o555))
}

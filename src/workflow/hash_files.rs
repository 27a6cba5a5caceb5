//! `hashFiles`: one digest over the files that match a list of patterns.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};
use sha2::{Digest, Sha256};

/// The digest of all files under `root` that match `patterns`, as 64 hexadecimal digits: SHA-256 over the
/// binary SHA-256 of each file, in the order of their names. Empty when no file matches.
///
/// Patterns are relative to `root` (or absolute below it); `*` stays within a folder, `**` does not, names
/// that begin with a point match too, and a pattern that matches a folder stands for all that is in it. A
/// later pattern wins over an earlier one, and `!` takes away. One argument may hold a pattern per line, `#`
/// begins a comment. Links to files are read, links to folders are not followed (an argument
/// `--follow-symbolic-links` is accepted and changes nothing).
///
/// # Errors
/// A pattern that cannot be read, or a file or folder that cannot (with its path).
pub fn hash_files(root: &Path, patterns: &[String]) -> Result<String, String> {
    let patterns = patterns
        .iter()
        .flat_map(|argument| argument.lines())
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#') && *line != "--follow-symbolic-links")
        .map(|line| Pattern::new(line, root))
        .collect::<Result<Vec<_>, _>>()?;
    if patterns.iter().all(|pattern| pattern.takes_away) {
        return Ok(String::new());
    }
    let mut names = Vec::new();
    walk(root, &mut |name| {
        let wanted = patterns
            .iter()
            .fold(false, |wanted, pattern| if pattern.matches(name) { !pattern.takes_away } else { wanted });
        if wanted {
            names.push(name.to_owned());
        }
    })?;
    names
        .sort_by(|left, right| left.as_os_str().as_encoded_bytes().cmp(right.as_os_str().as_encoded_bytes()));
    let mut total = Sha256::new();
    let mut any = false;
    for name in names {
        let path = root.join(&name);
        match digest(&path) {
            Ok(digest) => {
                total.update(digest);
                any = true;
            }
            // A link to nothing, or a file that went away meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("hashFiles cannot read {}: {error}", path.display())),
        }
    }
    if !any {
        return Ok(String::new());
    }
    Ok(total.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

struct Pattern {
    takes_away: bool,
    matcher: GlobMatcher,
}

impl Pattern {
    fn new(line: &str, root: &Path) -> Result<Self, String> {
        let mut text = line;
        let mut takes_away = false;
        while let Some(rest) = text.strip_prefix('!') {
            takes_away = !takes_away;
            text = rest.trim_start();
        }
        if let Some(below) = root.to_str().and_then(|root| text.strip_prefix(root)) {
            text = below.trim_start_matches('/');
        }
        while let Some(rest) = text.strip_prefix("./") {
            text = rest;
        }
        let text = text.trim_end_matches('/');
        let matcher = GlobBuilder::new(&without_braces(text))
            .literal_separator(true)
            .backslash_escape(true)
            .build()
            .map_err(|error| format!("hashFiles cannot use the pattern '{line}': {}", error.kind()))?
            .compile_matcher();
        Ok(Self { takes_away, matcher })
    }

    /// Whether it matches the file or a folder that the file is in.
    fn matches(&self, name: &Path) -> bool {
        name.ancestors().any(|part| !part.as_os_str().is_empty() && self.matcher.is_match(part))
            || self.matcher.glob().glob() == "."
    }
}

/// The pattern with braces made ordinary characters, as in GitHub's patterns.
fn without_braces(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut class = false;
    let mut escaped = false;
    for character in text.chars() {
        match character {
            '{' | '}' | ',' if !class && !escaped => {
                out.push('[');
                out.push(character);
                out.push(']');
            }
            _ => out.push(character),
        }
        class = !escaped && (character == '[' || (class && character != ']'));
        escaped = !escaped && character == '\\';
    }
    out
}

/// Names every file below `root`, relative to it. Links to folders are left out.
fn walk(root: &Path, found: &mut dyn FnMut(&Path)) -> Result<(), String> {
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let path = root.join(&folder);
        let fail = |error: io::Error| format!("hashFiles cannot read {}: {error}", path.display());
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !folder.as_os_str().is_empty() => {
                continue;
            }
            Err(error) => return Err(fail(error)),
        };
        for entry in entries {
            let entry = entry.map_err(fail)?;
            let name = folder.join(entry.file_name());
            let kind = entry.file_type().map_err(fail)?;
            if kind.is_dir() {
                folders.push(name);
            } else if kind.is_file()
                || (kind.is_symlink() && fs::metadata(entry.path()).is_ok_and(|target| target.is_file()))
            {
                found(&name);
            }
        }
    }
    Ok(())
}

fn digest(path: &Path) -> io::Result<[u8; 32]> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hash.finalize().into()),
            Ok(count) => hash.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(root: &Path, patterns: &[&str]) -> String {
        hash_files(root, &patterns.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn hashes_what_matches() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("x.lock"), "x").unwrap();
        fs::write(root.join("a/y.lock"), "y").unwrap();
        fs::write(root.join("a/b/.z.lock"), "z").unwrap();
        std::os::unix::fs::symlink(root, root.join("a/loop")).unwrap();
        std::os::unix::fs::symlink("nowhere", root.join("broken.lock")).unwrap();
        let of = |texts: &[&str]| -> String {
            let mut total = Sha256::new();
            for text in texts {
                total.update(Sha256::digest(text.as_bytes()));
            }
            total.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
        };
        assert_eq!(hash(root, &["**/*.lock"]), of(&["z", "y", "x"]));
        assert_eq!(hash(root, &["*.lock"]), of(&["x"]));
        assert_eq!(hash(root, &["a"]), of(&["z", "y"]));
        assert_eq!(hash(root, &["./a/", "!a/b/**"]), of(&["y"]));
        assert_eq!(hash(root, &["**", "!**/*.lock", "x.lock"]), of(&["x"]));
        assert_eq!(hash(root, &["# comment\n  x.lock\n"]), of(&["x"]));
        assert_eq!(hash(root, &[&format!("{}/x.lock", root.display())]), of(&["x"]));
        assert_eq!(hash(root, &["nothing", "{x,y}.lock"]), "");
        assert_eq!(hash(root, &["!x.lock"]), "");
        assert!(hash_files(root, &["[".to_owned()]).unwrap_err().contains("'['"));
    }
}

//! Which programs are GHC, by name, and where they are.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::launcher;

/// How a program takes a ceiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The compiler, or a script that hands its arguments to it.
    Compiler,
    /// `runghc`, `runhaskell`: programs of their own, which start a compiler.
    Runner,
}

/// What a program of this name is, if it is one of GHC's that compile.
#[must_use]
pub fn role(name: &str) -> Option<Role> {
    if is_compiler(name) || versioned(name, "ghci") {
        Some(Role::Compiler)
    } else if versioned(name, "runghc") || name == "runhaskell" {
        Some(Role::Runner)
    } else {
        None
    }
}

/// Whether an executable of this name is the compiler itself: `ghc`, `ghc-9.10.3`, `ghc-stage2`, what a wrapper
/// hides (`.ghc-wrapped`), what a launcher covers (`ghc.original`), a cross compiler (`aarch64-unknown-linux-gnu-ghc`).
#[must_use]
pub fn is_compiler(name: &str) -> bool {
    let name = name.strip_suffix(launcher::ORIGINAL).unwrap_or(name);
    let name = name.strip_prefix('.').and_then(|name| name.strip_suffix("-wrapped")).unwrap_or(name);
    // A target such as aarch64-unknown-linux-gnu has at least three parts; `haddock-ghc-9.0.2` is no compiler.
    let name = match name.find("-ghc") {
        Some(at) if name[..at].matches('-').count() >= 2 => &name[at + 1..],
        _ => name,
    };
    versioned(name, "ghc") || matches!(name, "ghc-stage1" | "ghc-stage2" | "ghc-stage3")
}

/// `base`, or `base-1.2.3`.
fn versioned(name: &str, base: &str) -> bool {
    match name.strip_prefix(base) {
        Some("") => true,
        Some(rest) => rest.strip_prefix('-').is_some_and(|version| {
            version.starts_with(|c: char| c.is_ascii_digit())
                && version.chars().all(|c| c.is_ascii_digit() || c == '.')
        }),
        None => false,
    }
}

/// The GHC programs that a shell would find on `path`, by name; directories of launchers are passed over.
#[must_use]
pub fn on_path(path: &OsStr) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    for directory in std::env::split_paths(path) {
        if !directory.is_absolute() || launcher::is_launcher_directory(&directory) {
            continue;
        }
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| role(name).is_some()) else { continue };
            if !found.contains_key(name) && is_executable(&entry.path()) {
                found.insert(name.to_owned(), entry.path());
            }
        }
    }
    found
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The compilers behind `program`: itself if it is a binary, else those that the script names.
#[must_use]
pub fn behind(program: &Path) -> Vec<PathBuf> {
    let Ok(real) = std::fs::canonicalize(program) else { return Vec::new() };
    let mut begin = Vec::new();
    let read = File::open(&real).and_then(|file| file.take(16 * 1024).read_to_end(&mut begin));
    if read.is_err() {
        return Vec::new();
    }
    if begin.starts_with(b"\x7fELF") {
        return vec![real];
    }
    // Wrapper scripts name the binary, or its folder (`exedir="/usr/lib/ghc/bin"`), as an absolute path.
    let text = String::from_utf8_lossy(&begin);
    let mut found = Vec::new();
    let words =
        text.split(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '=' | '`' | ';' | '(' | ')'));
    for word in words.filter(|word| word.starts_with('/')) {
        let word = Path::new(word);
        let candidates = if word.is_dir() { compilers_in(word) } else { vec![word.to_owned()] };
        for candidate in candidates {
            let named = candidate.file_name().and_then(OsStr::to_str).is_some_and(is_compiler);
            if named
                && let Ok(candidate) = std::fs::canonicalize(candidate)
                && is_elf(&candidate)
            {
                found.push(candidate);
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

fn is_elf(path: &Path) -> bool {
    let mut begin = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut begin)).is_ok() && begin == *b"\x7fELF"
}

/// The files in a directory that are compilers by their names.
#[must_use]
pub fn compilers_in(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .filter(|path| path.file_name().and_then(OsStr::to_str).is_some_and(is_compiler))
        .filter(|path| is_executable(path))
        .collect()
}

/// Every compiler that a job can reach: those of the Nix store, and those behind what is on `path`.
#[must_use]
pub fn reachable(path: &OsStr) -> Vec<PathBuf> {
    let mut compilers = in_store(&crate::archive::nix::store_directory());
    compilers.extend(on_path(path).values().flat_map(|real| behind(real)));
    compilers.sort();
    compilers.dedup();
    compilers
}

/// The compilers of a Nix store: in `bin/` of each path, and where GHC's own builds keep the binary.
#[must_use]
pub fn in_store(store: &Path) -> Vec<PathBuf> {
    let entries: Vec<_> =
        std::fs::read_dir(store).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    // In a large store only paths whose names hint at GHC are looked into: each costs a look at the disk.
    let all = entries.len() <= 20_000;
    let mut found = Vec::new();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let hint = name.contains("ghc") || name.contains("haskell");
        if name.len() < 34 || !(all || hint) {
            continue;
        }
        found.extend(compilers_in(&path.join("bin")));
        if hint {
            for library in std::fs::read_dir(path.join("lib")).into_iter().flatten().flatten() {
                if library.file_name().to_string_lossy().starts_with("ghc") {
                    for below in ["bin", "lib/bin"] {
                        found.extend(compilers_in(&library.path().join(below)));
                    }
                }
            }
        }
    }
    let mut real: Vec<PathBuf> = found.iter().filter_map(|path| std::fs::canonicalize(path).ok()).collect();
    real.retain(|path| path.file_name().and_then(OsStr::to_str).is_some_and(is_compiler));
    real.sort();
    real.dedup();
    real
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_ghc_by_its_names() {
        for name in [
            "ghc",
            "ghc-9.10.3",
            "ghc-stage2",
            ".ghc-wrapped",
            "ghc.original",
            "aarch64-unknown-linux-gnu-ghc-9.10.3",
        ] {
            assert!(is_compiler(name), "{name}");
        }
        for name in
            ["ghc-pkg", "ghc-pkg-9.0.2", "haddock-ghc-9.0.2", "ghc-iserv", "ghcid", "hsc2hs", "runghc"]
        {
            assert!(!is_compiler(name), "{name}");
        }
        assert_eq!(role("ghci-9.0.2"), Some(Role::Compiler));
        assert_eq!(role("runghc"), Some(Role::Runner));
        assert_eq!(role("ghcid"), None);
    }
}

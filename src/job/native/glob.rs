//! Files by pattern, as the JavaScript actions find them (`@actions/glob`): the same patterns give the same files.
//!
//! A pattern a line; `#` begins a comment, `!` takes away, the last pattern that says something wins. `*` and `?` stay
//! within a folder, `**` does not, `[…]` is a class; a pattern that ends in `/` is for folders; `~` is the home folder.
//! Names that begin with a point match like any other. Braces are ordinary characters.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What differs between the actions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    /// A pattern that matches a folder stands for all that is in it.
    pub(super) descendants: bool,
    /// Leave out what begins with a point, and folders that do.
    pub(super) skip_hidden: bool,
}

/// Patterns, read.
#[derive(Debug)]
pub(super) struct Glob {
    patterns: Vec<Pattern>,
    options: Options,
}

#[derive(Debug, Clone)]
struct Pattern {
    negated: bool,
    folders_only: bool,
    implicit: bool,
    segments: Vec<Segment>,
    /// The path before the first segment that is no plain name.
    search: PathBuf,
}

#[derive(Debug, Clone, PartialEq)]
enum Segment {
    Name(String),
    Wild(Vec<Piece>),
    Any,
}

#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Char(char),
    One,
    Many,
    Class { negated: bool, ranges: Vec<(char, char)> },
}

impl Glob {
    /// Reads patterns; relative ones begin in `directory`.
    ///
    /// # Errors
    /// A pattern that goes through `.` or `..`.
    pub(super) fn new(text: &str, directory: &Path, home: &Path, options: Options) -> Result<Self, String> {
        let mut patterns = Vec::new();
        for line in text.split('\n').map(str::trim) {
            if !line.is_empty() && !line.starts_with('#') {
                patterns.push(Pattern::new(line, directory, home)?);
            }
        }
        Ok(Self { patterns, options })
    }

    /// The folders and files at which the search begins; none is below another.
    pub(super) fn search_paths(&self) -> Vec<PathBuf> {
        let wanted =
            || self.patterns.iter().filter(|pattern| !pattern.negated).map(|pattern| &pattern.search);
        let all: BTreeSet<&PathBuf> = wanted().collect();
        let mut paths: Vec<PathBuf> = Vec::new();
        for path in wanted() {
            let below = path.ancestors().skip(1).any(|above| all.contains(&above.to_path_buf()));
            if !below && !paths.contains(path) {
                paths.push(path.clone());
            }
        }
        paths
    }

    /// Everything that matches, folders too.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub(super) fn find(&self) -> io::Result<Vec<Found>> {
        let mut patterns = Vec::new();
        for pattern in &self.patterns {
            patterns.push(pattern.clone());
            if self.options.descendants
                && (pattern.folders_only || pattern.segments.last() != Some(&Segment::Any))
            {
                let mut below = pattern.clone();
                below.segments.push(Segment::Any);
                below.implicit = true;
                below.folders_only = false;
                patterns.push(below);
            }
        }
        let mut found = Vec::new();
        for path in self.search_paths() {
            if fs::symlink_metadata(&path).is_ok() {
                let mut names = path_names(&path);
                self.visit(&patterns, &path, &mut names, &mut Vec::new(), &mut found)?;
            }
        }
        Ok(found)
    }

    fn visit(
        &self,
        patterns: &[Pattern],
        path: &Path,
        names: &mut Vec<String>,
        chain: &mut Vec<PathBuf>,
        found: &mut Vec<Found>,
    ) -> io::Result<()> {
        let (mut file, mut folder, mut partly) = (false, false, false);
        for pattern in patterns {
            if pattern.matches(names) {
                folder = !pattern.negated;
                if !pattern.folders_only {
                    file = !pattern.negated;
                }
            }
            partly |= !pattern.negated && matches(&pattern.segments, names, Mode::Beginning);
        }
        if !file && !folder && !partly {
            return Ok(());
        }
        // Links are followed; one that leads nowhere is left out.
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(named(path, &error)),
        };
        if self.options.skip_hidden && names.last().is_some_and(|name| name.starts_with('.')) {
            return Ok(());
        }
        if !meta.is_dir() {
            if file {
                found.push(Found { path: path.to_owned(), directory: false });
            }
            return Ok(());
        }
        let real = fs::canonicalize(path).map_err(|error| named(path, &error))?;
        if chain.contains(&real) {
            return Ok(());
        }
        if folder {
            found.push(Found { path: path.to_owned(), directory: true });
        } else if !partly {
            return Ok(());
        }
        let mut children: Vec<_> = fs::read_dir(path)
            .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>())
            .map_err(|error| named(path, &error))?;
        children.sort();
        chain.push(real);
        for child in children {
            names.push(child.to_string_lossy().into_owned());
            let visited = self.visit(patterns, &path.join(&child), names, chain, found);
            names.pop();
            visited?;
        }
        chain.pop();
        Ok(())
    }
}

/// A path as a pattern that stands for itself alone.
pub(super) fn literal(path: &Path) -> String {
    let mut out = String::new();
    for letter in path.to_string_lossy().chars() {
        if matches!(letter, '*' | '?' | '[' | '\\') {
            out.push('\\');
        }
        out.push(letter);
    }
    out
}

/// What a search has found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Where.
    pub(super) path: PathBuf,
    /// It is a folder, or a link to one.
    pub(super) directory: bool,
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn path_names(path: &Path) -> Vec<String> {
    path.iter().skip(1).map(|name| name.to_string_lossy().into_owned()).collect()
}

impl Pattern {
    fn new(line: &str, directory: &Path, home: &Path) -> Result<Self, String> {
        let mut text = line;
        let mut negated = false;
        while let Some(rest) = text.strip_prefix('!') {
            negated = !negated;
            text = rest.trim_start();
        }
        if text.is_empty() {
            return Err(format!("Invalid pattern '{line}'. It names nothing."));
        }
        let mut segments = Vec::new();
        let mut push_path = |path: &Path| segments.extend(path_names(path).into_iter().map(Segment::Name));
        let rest = match text.split_once('/').unwrap_or((text, "")) {
            ("", rest) => rest,
            ("~", rest) => {
                push_path(home);
                rest
            }
            (".", rest) => {
                push_path(directory);
                rest
            }
            _ => {
                push_path(directory);
                text
            }
        };
        for part in rest.split('/').filter(|part| !part.is_empty()) {
            segments.push(match segment(part) {
                Segment::Name(name) if name == "." || name == ".." => {
                    return Err(format!(
                        "Invalid pattern '{text}'. Relative pathing '.' and '..' is not allowed."
                    ));
                }
                segment => segment,
            });
        }
        let mut search = PathBuf::from("/");
        for segment in &segments {
            match segment {
                Segment::Name(name) => search.push(name),
                Segment::Wild(_) | Segment::Any => break,
            }
        }
        let folders_only = text.ends_with('/');
        Ok(Self { negated, folders_only, implicit: false, segments, search })
    }

    fn matches(&self, names: &[String]) -> bool {
        // An explicit `folder/**` is for the folder too.
        let mode = if self.implicit { Mode::Below } else { Mode::Whole };
        matches(&self.segments, names, mode)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    /// The whole path; a `**` at the end may stand for nothing.
    Whole,
    /// The whole path; a `**` at the end stands for something.
    Below,
    /// What is below the path may match.
    Beginning,
}

fn matches(segments: &[Segment], names: &[String], mode: Mode) -> bool {
    match (segments.split_first(), names.split_first()) {
        (_, None) if mode == Mode::Beginning => true,
        (None, None) => true,
        (None, Some(_)) => false,
        (Some((Segment::Any, [])), None) => mode == Mode::Whole,
        (Some((Segment::Any, [])), Some(_)) => true,
        (Some((Segment::Any, rest)), Some((_, later))) => {
            matches(rest, names, mode) || matches(segments, later, mode)
        }
        (Some((Segment::Any, rest)), None) => matches(rest, names, mode),
        (Some(_), None) => false,
        (Some((segment, rest)), Some((name, later))) => {
            let fits = match segment {
                Segment::Name(wanted) => wanted == name,
                Segment::Wild(pieces) => fits(pieces, &name.chars().collect::<Vec<_>>()),
                Segment::Any => true,
            };
            fits && matches(rest, later, mode)
        }
    }
}

/// Whether a name fits; linear in both, since only the last `*` is ever taken back.
fn fits(pieces: &[Piece], name: &[char]) -> bool {
    let (mut piece, mut at) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let fitting = match (pieces.get(piece), name.get(at)) {
            (None, None) => return true,
            (Some(Piece::Many), _) => {
                retry = Some((piece + 1, at));
                piece += 1;
                continue;
            }
            (Some(Piece::Char(wanted)), Some(found)) => wanted == found,
            (Some(Piece::One), Some(_)) => true,
            (Some(Piece::Class { negated, ranges }), Some(found)) => {
                ranges.iter().any(|(from, to)| (from..=to).contains(&found)) != *negated
            }
            _ => false,
        };
        if fitting {
            piece += 1;
            at += 1;
        } else {
            match &mut retry {
                Some((again, from)) if *from < name.len() => {
                    *from += 1;
                    (piece, at) = (*again, *from);
                }
                _ => return false,
            }
        }
    }
}

fn segment(text: &str) -> Segment {
    if text == "**" {
        return Segment::Any;
    }
    let mut pieces = Vec::new();
    let chars: Vec<char> = text.chars().collect();
    let mut at = 0;
    while let Some(&letter) = chars.get(at) {
        at += 1;
        pieces.push(match letter {
            '\\' if at < chars.len() => {
                at += 1;
                Piece::Char(chars[at - 1])
            }
            '*' => {
                if pieces.last() == Some(&Piece::Many) {
                    continue;
                }
                Piece::Many
            }
            '?' => Piece::One,
            '[' => match class(&chars[at..]) {
                Some((class, length)) => {
                    at += length;
                    class
                }
                None => Piece::Char('['),
            },
            other => Piece::Char(other),
        });
    }
    let plain: Option<String> = pieces
        .iter()
        .map(|piece| match piece {
            Piece::Char(letter) => Some(*letter),
            Piece::Class { negated: false, ranges } => match ranges[..] {
                [(from, to)] if from == to => Some(from),
                _ => None,
            },
            _ => None,
        })
        .collect();
    plain.map_or(Segment::Wild(pieces), Segment::Name)
}

/// A class behind its `[`, and how many characters it takes; `None` where it is never closed.
fn class(chars: &[char]) -> Option<(Piece, usize)> {
    let mut at = 0;
    let negated = matches!(chars.first(), Some('!' | '^'));
    if negated {
        at += 1;
    }
    let mut ranges = Vec::new();
    let mut first = true;
    loop {
        let mut letter = *chars.get(at)?;
        if letter == ']' && !first {
            return Some((Piece::Class { negated, ranges }, at + 1));
        }
        first = false;
        if letter == '\\' {
            at += 1;
            letter = *chars.get(at)?;
        }
        at += 1;
        if chars.get(at) == Some(&'-') && chars.get(at + 1).is_some_and(|end| *end != ']') {
            ranges.push((letter, *chars.get(at + 1)?));
            at += 2;
        } else {
            ranges.push((letter, letter));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(root: &Path, text: &str, descendants: bool, skip_hidden: bool) -> Vec<String> {
        let glob =
            Glob::new(text, root, Path::new("/home/none"), Options { descendants, skip_hidden }).unwrap();
        let found = glob.find().unwrap();
        let name = |found: &Found| {
            let name = found.path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            if found.directory { format!("{name}/") } else { name }
        };
        found.iter().map(name).collect()
    }

    fn tree() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a/x.log", "a/b/y.log", "a/b/.hidden/z.log", "c/[1].txt", "top.txt"] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        std::os::unix::fs::symlink(folder.path(), folder.path().join("c/loop")).unwrap();
        std::os::unix::fs::symlink("nowhere", folder.path().join("c/broken")).unwrap();
        folder
    }

    #[test]
    fn patterns_for_caches_give_folders_as_they_are() {
        let folder = tree();
        let root = folder.path();
        assert_eq!(find(root, "a", false, false), ["a/"]);
        assert_eq!(find(root, "a/*\n!a/b", false, false), ["a/x.log"]);
        assert_eq!(find(root, "**/*.log", false, false).len(), 3, "not again by the link");
        assert_eq!(find(root, "*.txt\n# c", false, false), ["top.txt"]);
        assert_eq!(find(root, "c/\\[1\\].txt", false, false), ["c/[1].txt"]);
        assert_eq!(find(root, "c/[[]1].t?t", false, false), ["c/[1].txt"]);
        assert_eq!(find(root, "nothing\nc/broken", false, false), [""; 0]);
        assert_eq!(find(root, "a/b/", false, false), ["a/b/"]);
        assert_eq!(find(root, "top.txt/", false, false), [""; 0]);
    }

    #[test]
    fn patterns_for_artifacts_give_what_is_in_folders() {
        let folder = tree();
        let root = folder.path();
        let files = |text: &str, skip: bool| {
            let mut all = find(root, text, true, skip);
            all.retain(|name| !name.ends_with('/'));
            all
        };
        assert_eq!(files("a", true), ["a/b/y.log", "a/x.log"]);
        assert_eq!(files("a", false), ["a/b/.hidden/z.log", "a/b/y.log", "a/x.log"]);
        assert_eq!(files("a/**\n!a/b", true), ["a/x.log"]);
        assert_eq!(files("a/b/**", true), ["a/b/y.log"]);
        assert_eq!(files("./a/x.*", true), ["a/x.log"]);
    }

    #[test]
    fn the_search_begins_where_it_must() {
        let root = Path::new("/w");
        let paths = |text: &str| {
            let options = Options { descendants: true, skip_hidden: false };
            let glob = Glob::new(text, root, Path::new("/home/u"), options).unwrap();
            glob.search_paths().iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(paths("a/b/*.log\na/c"), ["/w/a/b", "/w/a/c"]);
        assert_eq!(paths("a/**\na/c\n!d"), ["/w/a"]);
        assert_eq!(paths("~/x\n/etc/*"), ["/home/u/x", "/etc"]);
        assert_eq!(paths("."), ["/w"]);
        let options = Options { descendants: true, skip_hidden: false };
        assert!(Glob::new("../x", root, root, options).is_err());
        assert!(Glob::new("a/./x", root, root, options).is_err());
    }
}

//! Names of artifacts by pattern, as the originals match them (`minimatch`): `*`, `?`, `[…]`, `{a,b}`, `{1..3}`,
//! `@(a|b)`, `?(…)`, `+(…)`, `*(…)`; a `!` before it all turns it round, a `#` makes it a comment.

use std::iter::Peekable;
use std::str::Chars;

use regex::{Regex, RegexBuilder};

/// How many patterns braces may stand for.
const MAX_BRACES: usize = 1000;
/// How deep groups may be in one another.
const MAX_DEPTH: usize = 20;
/// How much memory an expression may take, in bytes.
const MAX_SIZE: usize = 1 << 20;

/// A pattern, read.
#[derive(Debug)]
pub(super) struct NamePattern {
    negated: bool,
    /// One of them has to fit; and whether it may stand for a name that begins with a point.
    any: Vec<(Regex, bool)>,
}

impl NamePattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// When it uses `!(…)` in the middle, or stands for too much.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        if text.starts_with('#') {
            return Ok(Self { negated: false, any: Vec::new() });
        }
        let rest = text.trim_start_matches('!');
        let negated = (text.len() - rest.len()) % 2 == 1;
        let mut all = Vec::new();
        expand(rest, &mut all, 0)?;
        let any = all
            .iter()
            .map(|one| {
                let mut out = String::from("^(?:");
                translate(&mut one.chars().peekable(), &mut out, 0)?;
                out.push_str(")$");
                let regex = RegexBuilder::new(&out)
                    .size_limit(MAX_SIZE)
                    .build()
                    .map_err(|_| format!("pattern '{text}' cannot be read"))?;
                Ok((regex, one.starts_with(['.', '\\'])))
            })
            .collect::<Result<_, String>>()?;
        Ok(Self { negated, any })
    }

    /// Whether a name fits.
    pub(super) fn matches(&self, name: &str) -> bool {
        let fits =
            |(regex, pointed): &(Regex, bool)| (*pointed || !name.starts_with('.')) && regex.is_match(name);
        self.any.iter().any(fits) != self.negated
    }
}

/// The patterns that one with braces stands for.
fn expand(text: &str, out: &mut Vec<String>, depth: usize) -> Result<(), String> {
    if out.len() >= MAX_BRACES || depth > MAX_DEPTH {
        return Err("the pattern stands for too many others".to_owned());
    }
    let Some((begin, end, commas)) = braces(text) else {
        out.push(text.to_owned());
        return Ok(());
    };
    let (before, after) = (&text[..begin], &text[end + 1..]);
    let inner = &text[begin + 1..end];
    let parts: Vec<String> = if commas.is_empty() {
        range(inner).unwrap_or_default()
    } else {
        let mut from = begin + 1;
        let mut parts = Vec::new();
        for comma in commas.iter().chain([&end]) {
            parts.push(text[from..*comma].to_owned());
            from = comma + 1;
        }
        parts
    };
    for part in parts {
        expand(&format!("{before}{part}{after}"), out, depth + 1)?;
    }
    Ok(())
}

/// The first pair of braces that holds a comma or a range: where it begins and ends, and its commas.
fn braces(text: &str) -> Option<(usize, usize, Vec<usize>)> {
    let mut open: Vec<(usize, Vec<usize>)> = Vec::new();
    let mut found: Option<(usize, usize, Vec<usize>)> = None;
    let mut escaped = false;
    for (at, letter) in text.char_indices() {
        if escaped {
            escaped = false;
            continue;
        }
        match letter {
            '\\' => escaped = true,
            '{' => open.push((at, Vec::new())),
            ',' => {
                if let Some((_, commas)) = open.last_mut() {
                    commas.push(at);
                }
            }
            '}' => {
                if let Some((begin, commas)) = open.pop()
                    && (!commas.is_empty() || range(&text[begin + 1..at]).is_some())
                    && found.as_ref().is_none_or(|(earlier, ..)| begin < *earlier)
                {
                    found = Some((begin, at, commas));
                }
            }
            _ => {}
        }
    }
    found
}

/// What `1..3` or `a..c` counts up, or down.
fn range(text: &str) -> Option<Vec<String>> {
    let (from, to) = text.split_once("..")?;
    let steps = |from: i64, to: i64| -> Option<Vec<i64>> {
        let all: Vec<i64> = if from <= to {
            (from..=to).take(MAX_BRACES + 1).collect()
        } else {
            (to..=from).rev().take(MAX_BRACES + 1).collect()
        };
        (all.len() <= MAX_BRACES).then_some(all)
    };
    if let (Ok(first), Ok(last)) = (from.parse::<i64>(), to.parse::<i64>()) {
        let padded =
            [from, to].iter().any(|text| text.trim_start_matches('-').starts_with('0') && text.len() > 1);
        let width = if padded { from.len().max(to.len()) } else { 0 };
        return Some(steps(first, last)?.iter().map(|number| format!("{number:0width$}")).collect());
    }
    let letter = |text: &str| {
        let mut chars = text.chars();
        chars.next().filter(|letter| letter.is_ascii_alphabetic() && chars.next().is_none())
    };
    let all = steps(i64::from(u32::from(letter(from)?)), i64::from(u32::from(letter(to)?)))?;
    all.iter().map(|code| Some(char::from(u8::try_from(*code).ok()?).to_string())).collect()
}

/// Writes the pattern as a regular expression, up to its end or to the `)` of the group it is in.
fn translate(chars: &mut Peekable<Chars<'_>>, out: &mut String, depth: usize) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err("the groups of the pattern are too deep".to_owned());
    }
    while let Some(letter) = chars.next() {
        match letter {
            ')' if depth > 0 => return Ok(()),
            '|' if depth > 0 => out.push('|'),
            '@' | '?' | '+' | '*' | '!' if chars.peek() == Some(&'(') => {
                if letter == '!' {
                    return Err(
                        "patterns with !(…) are not known here; put ! before the whole pattern".to_owned()
                    );
                }
                chars.next();
                out.push_str("(?:");
                translate(chars, out, depth + 1)?;
                out.push(')');
                if letter != '@' {
                    out.push(letter);
                }
            }
            '*' => out.push_str("[^/]*"),
            '?' => out.push_str("[^/]"),
            '[' => class(chars, out),
            '\\' => out.push_str(&regex::escape(&chars.next().unwrap_or('\\').to_string())),
            other => out.push_str(&regex::escape(&other.to_string())),
        }
    }
    if depth > 0 {
        return Err("a group of the pattern is never closed".to_owned());
    }
    Ok(())
}

/// A class behind its `[`; where it is never closed, the bracket is one.
fn class(chars: &mut Peekable<Chars<'_>>, out: &mut String) {
    let mut inner = String::new();
    let mut ahead = chars.clone();
    let negated = ahead.next_if(|letter| matches!(letter, '!' | '^')).is_some();
    let mut first = true;
    while let Some(letter) = ahead.next() {
        match letter {
            ']' if !first => {
                *chars = ahead;
                out.push_str(if negated { "[^/" } else { "[" });
                out.push_str(&inner);
                out.push(']');
                return;
            }
            '-' => inner.push('-'),
            '\\' => inner.push_str(&regex::escape(&ahead.next().unwrap_or('\\').to_string())),
            '[' | ']' | '^' | '&' | '~' => {
                inner.push('\\');
                inner.push(letter);
            }
            other => inner.push(other),
        }
        first = false;
    }
    out.push_str("\\[");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_as_the_originals_say() {
        let fits = |pattern: &str, name: &str| NamePattern::new(pattern).unwrap().matches(name);
        for (pattern, name) in [
            ("part-*", "part-a"),
            ("*", "a.b"),
            ("part-{a,b}", "part-b"),
            ("{x,part-{a,b}}", "part-a"),
            ("p{1..3}", "p2"),
            ("p{01..10}", "p07"),
            ("p{a..c}", "pb"),
            ("part-?", "part-a"),
            ("part-[ab]", "part-b"),
            ("part-[!ab]", "part-c"),
            ("@(a|b)-x", "b-x"),
            ("a+(b|c)", "abcb"),
            ("a?(b)", "a"),
            ("!part-*", "other"),
            ("!!part-*", "part-a"),
            (".h*", ".hidden"),
            ("a{b}", "a{b}"),
            ("a\\*", "a*"),
            ("[", "["),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("part-*", "other"),
            ("*", ".hidden"),
            ("#part", "#part"),
            ("part-?", "part-ab"),
            ("P*", "part"),
            ("!part-*", "part-a"),
            ("part", "part-a"),
        ] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn what_grows_without_bound_is_refused() {
        assert!(NamePattern::new("x!(a)").is_err());
        assert!(NamePattern::new("@(a").is_err());
        assert!(NamePattern::new(&"{a,b}".repeat(20)).is_err());
        assert!(NamePattern::new(&"@(".repeat(10_000)).is_err());
        assert!(NamePattern::new("{1..100000000}").is_ok(), "no range, but a name");
    }
}

//! Filter patterns of `branches`, `tags` and `paths`.
//!
//! <https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-syntax#filter-pattern-cheat-sheet>

/// What is wrong with a pattern (`*`, `**`, `?`, `+`, `[]`, `!`) for a key (`branches`, `paths-ignore`, …).
pub(super) fn bad_pattern(key: &str, text: &str) -> Option<String> {
    let said = |words: &str| Some(words.to_owned());
    let body = text.strip_prefix('!').unwrap_or(text);
    if body.is_empty() {
        return said("it is empty");
    }
    let of_paths = key.starts_with("paths");
    if of_paths {
        if body.trim() != body {
            return said("a path does not begin or end with blanks");
        }
        if body.split('/').any(|part| matches!(part, "." | "..")) {
            return said("paths are those of the repository, without '.' and '..'");
        }
    } else if body.starts_with('/') || body.ends_with('/') {
        return said("the name of a branch or tag does not begin or end with '/'");
    }
    let mut characters = body.chars().peekable();
    let mut before = None;
    while let Some(character) = characters.next() {
        match character {
            '\\' => {
                let next = characters.next();
                if !of_paths && next.is_none_or(|next| !"[]?+*\\!".contains(next)) {
                    return said("'\\' takes the meaning from '[', ']', '?', '+', '*', '!' and '\\' only");
                }
            }
            '[' => {
                let inside: String = characters.by_ref().take_while(|c| *c != ']').collect();
                if inside.is_empty() {
                    return said("'[' has nothing in it");
                }
                if !body.contains(']') {
                    return said("'[' is not closed by ']'");
                }
                let bytes: Vec<char> = inside.chars().collect();
                if bytes.windows(3).any(|range| range[1] == '-' && range[0] > range[2]) {
                    return said("a range in '[]' runs backwards");
                }
            }
            '?' | '+' if before.is_none() || matches!(before, Some('*' | '?' | '+' | '/')) => {
                return said("'?' and '+' repeat the character before them, and there is none");
            }
            ' ' | '~' | '^' | ':' if !of_paths => {
                return Some(format!("the name of a branch or tag cannot hold '{character}'"));
            }
            _ => {}
        }
        before = Some(character);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (key, right) in [
            ("branches", "main"),
            ("branches", "releases/**"),
            ("tags", "!v[0-9]+.*"),
            ("tags", "v1?"),
            ("branches", "a\\[b"),
            ("paths", "**.js"),
            ("paths", "docs/a b.md"),
            ("paths", "**/.github/**"),
        ] {
            assert_eq!(bad_pattern(key, right), None, "{right}");
        }
        for (key, wrong) in [
            ("branches", ""),
            ("branches", "!"),
            ("tags", "v["),
            ("tags", "v[]"),
            ("tags", "[9-0]"),
            ("branches", "+a"),
            ("branches", "a**?"),
            ("branches", "^release"),
            ("branches", "/v\\d+/"),
            ("branches", "a b"),
            ("paths", "./src/**"),
            ("paths", "src/../x"),
            ("paths", " src"),
        ] {
            assert!(bad_pattern(key, wrong).is_some(), "{wrong}");
        }
    }
}

//! Comparing text without case, as GitHub does: character by character, upper-cased.

use std::cmp::Ordering;

/// The upper-case form of a character if that is one character, else the character itself.
///
/// `ı` and `ſ` stay as they are: they must not become ASCII letters.
pub(super) fn upper(character: char) -> char {
    if character.is_ascii() {
        return character.to_ascii_uppercase();
    }
    if matches!(character, 'ı' | 'ſ') {
        return character;
    }
    let mut forms = character.to_uppercase();
    match (forms.next(), forms.next()) {
        (Some(single), None) => single,
        _ => character,
    }
}

/// The text with every character in its upper-case form.
pub(super) fn upper_text(text: &str) -> String {
    text.chars().map(upper).collect()
}

pub(super) fn equal(left: &str, right: &str) -> bool {
    if left.is_ascii() && right.is_ascii() {
        return left.eq_ignore_ascii_case(right);
    }
    left.chars().map(upper).eq(right.chars().map(upper))
}

/// Ordering by UTF-16 code units, as both of GitHub's implementations order strings.
pub(super) fn compare(left: &str, right: &str) -> Ordering {
    if left.is_ascii() && right.is_ascii() {
        return left
            .bytes()
            .map(|byte| byte.to_ascii_uppercase())
            .cmp(right.bytes().map(|byte| byte.to_ascii_uppercase()));
    }
    // UTF-16 sorts characters outside the basic plane (surrogates) before U+E000 and up.
    let rank = |character: char| match u32::from(upper(character)) {
        code @ ..0xE000 => (0, code),
        code @ 0x1_0000.. => (1, code),
        code => (2, code),
    };
    left.chars().map(rank).cmp(right.chars().map(rank))
}

//! Masking: no secret leaves the job process.
//!
//! Knows the secrets of one job, those it began with and those that `::add-mask::` adds, in the forms in which they
//! usually turn up in output: as they are, line by line, and in base64.

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

/// What stands in a secret's place.
pub const REPLACEMENT: &str = "***";

/// A value shorter than this (in bytes) is not masked: it would blot out every log without hiding anything.
const SHORTEST: usize = 2;

/// Replaces secrets in text. Adding a value is cheap; the search automaton is built when it is next needed.
#[derive(Default)]
pub struct Masker {
    patterns: Vec<String>,
    longest: usize,
    automaton: Option<AhoCorasick>,
}

impl std::fmt::Debug for Masker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Masker").field("patterns", &self.patterns.len()).finish_non_exhaustive()
    }
}

impl Masker {
    /// A masker for these secrets.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Self {
        let mut masker = Self::default();
        for secret in secrets {
            masker.add(secret);
        }
        masker
    }

    /// Masks this value from now on, and each line of it, and its base64.
    pub fn add(&mut self, secret: &str) {
        self.add_pattern(secret.trim_end_matches(['\r', '\n']));
        if secret.trim_end().contains('\n') {
            for line in secret.lines() {
                self.add_pattern(line.trim());
            }
        }
        // Base64 of a secret inside a longer text differs by where the secret begins modulo three. The characters at
        // both ends also hold neighbouring bits, so only those in between can be looked for.
        let bytes = secret.trim_end_matches(['\r', '\n']).as_bytes();
        if bytes.len() >= 6 {
            for lead in 0..3 {
                let padded = [&[0; 2][..lead], bytes].concat();
                let encoded = STANDARD_NO_PAD.encode(&padded);
                let begin = [0, 2, 3][lead];
                let end = padded.len() / 3 * 4;
                self.add_pattern(&encoded[begin..end]);
            }
        }
    }

    fn add_pattern(&mut self, pattern: &str) {
        if pattern.len() >= SHORTEST && !self.patterns.iter().any(|known| known == pattern) {
            self.longest = self.longest.max(pattern.len());
            self.patterns.push(pattern.to_owned());
            self.automaton = None;
        }
    }

    /// Length of the longest pattern in bytes: a text that is cut into pieces has to overlap by this much.
    #[must_use]
    pub const fn longest(&self) -> usize {
        self.longest
    }

    fn automaton(&mut self) -> Option<&AhoCorasick> {
        if self.automaton.is_none() && !self.patterns.is_empty() {
            // Building fails only for automata beyond what addresses can hold.
            self.automaton =
                AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&self.patterns).ok();
        }
        self.automaton.as_ref()
    }

    /// Replaces every secret in the text; says whether there was one.
    pub fn mask_in_place(&mut self, text: &mut String) -> bool {
        let Some(automaton) = self.automaton() else { return false };
        if automaton.find(text.as_str()).is_none() {
            return false;
        }
        let mut masked = String::with_capacity(text.len());
        automaton.replace_all_with(text, &mut masked, |_, _, out| {
            out.push_str(REPLACEMENT);
            true
        });
        *text = masked;
        true
    }

    /// The text without secrets.
    pub fn mask(&mut self, text: &str) -> String {
        let mut text = text.to_owned();
        self.mask_in_place(&mut text);
        text
    }

    /// Where a text may be cut at or before `wanted` (a byte index) without cutting a secret in two. The text must
    /// go on for at least [`Masker::longest`] bytes behind `wanted`, or be whole.
    pub fn cut(&mut self, text: &str, wanted: usize) -> usize {
        let mut cut = wanted.min(text.len());
        while !text.is_char_boundary(cut) {
            cut -= 1;
        }
        if let Some(automaton) = self.automaton() {
            for found in automaton.find_iter(text) {
                if found.start() >= cut {
                    break;
                }
                if found.end() > cut {
                    return if found.start() == 0 { found.end() } else { found.start() };
                }
            }
        }
        cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_vanish_and_the_rest_stays() {
        let mut masker = Masker::new(["hunter2", "hunter2000"]);
        assert_eq!(masker.mask("a hunter2 b hunter2000 c"), "a *** b *** c");
        assert_eq!(masker.mask("nothing here"), "nothing here");
    }

    #[test]
    fn empty_and_one_letter_secrets_do_not_blot_out_the_log() {
        let mut masker = Masker::new(["", "a", "\n", "\r\n"]);
        assert_eq!(masker.mask("a banana"), "a banana");
    }

    #[test]
    fn each_line_of_a_multi_line_secret_is_masked() {
        let mut masker = Masker::new(["-----BEGIN KEY-----\nAAAABBBB\n  CCCC\n"]);
        assert_eq!(masker.mask("AAAABBBB"), "***");
        assert_eq!(masker.mask("x CCCC y"), "x *** y");
    }

    #[test]
    fn base64_of_a_secret_is_masked_wherever_it_begins() {
        let secret = "correct horse battery";
        let mut masker = Masker::new([secret]);
        for lead in ["", "x", "xy", "user:", "someone:"] {
            let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{lead}{secret}:more"));
            let masked = masker.mask(&encoded);
            assert!(masked.contains(REPLACEMENT), "{lead:?}: {masked}");
            assert!(masked.len() < encoded.len() / 2 + 12, "{lead:?}: too much is left: {masked}");
        }
    }

    #[test]
    fn a_cut_never_goes_through_a_secret() {
        let mut masker = Masker::new(["SECRET"]);
        let text = "abcSECRETdef";
        for wanted in 0..=text.len() {
            let cut = masker.cut(text, wanted);
            let (left, right) = text.split_at(cut);
            assert_eq!(masker.mask(left) + &masker.mask(right), "abc***def", "cut at {cut}");
        }
        assert_eq!(masker.cut("SECRETx", 3), 6);
    }
}

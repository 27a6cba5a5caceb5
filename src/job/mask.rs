//! Masking: no secret leaves the job process.
//!
//! Knows the secrets of one job, those it began with and those that `::add-mask::` adds, in the forms in which they
//! usually turn up in output (see [`super::encodings`]). Overlapping finds are masked as one.

use std::collections::HashSet;
use std::sync::Arc;

use aho_corasick::automaton::Automaton;
use aho_corasick::dfa::DFA;
use aho_corasick::nfa::noncontiguous::NFA;
use aho_corasick::{Anchored, MatchKind};

use super::encodings;
use super::sieve::Sieve;

/// What stands in a secret's place.
pub const REPLACEMENT: &str = "***";

/// A value shorter than this (in bytes) is not masked: it would blot out every log without hiding anything.
const SHORTEST: usize = 2;

/// Patterns of at most this many bytes in all are searched with the fast automaton, which takes more memory.
const FAST_BYTES: usize = 16 * 1024;

/// After how many bytes of output the fast automaton is built.
const HASTEN_BYTES: usize = 256 * 1024;

/// Replaces secrets in text. Adding a value is cheap; the search automaton is built when it is next needed.
#[derive(Default)]
pub struct Masker {
    known: HashSet<Arc<str>>,
    /// What was added since the last search.
    fresh: Vec<Arc<str>>,
    /// Each at most half as large as the one before, so that adding one value after the other costs little.
    tiers: Vec<Tier>,
    longest: usize,
    /// Where a pattern may be at all.
    sieve: Sieve,
    /// Kept so that a row costs no allocation.
    found: Vec<(usize, usize)>,
}

impl std::fmt::Debug for Masker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Masker").field("patterns", &self.known.len()).finish_non_exhaustive()
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

    /// Masks this value from now on, each line of it, and their usual encodings.
    pub fn add(&mut self, secret: &str) {
        encodings::each(secret, &mut |pattern| self.add_pattern(pattern));
    }

    fn add_pattern(&mut self, pattern: &str) {
        if pattern.len() < SHORTEST || self.known.contains(pattern) {
            return;
        }
        let pattern: Arc<str> = pattern.into();
        self.longest = self.longest.max(pattern.len());
        self.known.insert(pattern.clone());
        if !self.sieve.add(pattern.as_bytes()) {
            self.sieve = Sieve::of(self.known.iter().map(|pattern| pattern.as_bytes()));
        }
        self.fresh.push(pattern);
    }

    /// Length of the longest pattern in bytes: a text that is cut into pieces has to overlap by this much.
    #[must_use]
    pub const fn longest(&self) -> usize {
        self.longest
    }

    /// Makes automata of what was added. A tier swallows those that it has outgrown: of N values, each is built into
    /// an automaton about log N times at most.
    fn settle(&mut self) {
        if self.fresh.is_empty() {
            return;
        }
        let mut patterns = std::mem::take(&mut self.fresh);
        while let Some(last) = self.tiers.pop_if(|last| last.patterns.len() < 2 * patterns.len()) {
            patterns.extend(last.patterns);
        }
        self.tiers.push(Tier::new(patterns));
    }

    /// Where secrets are in the text: disjoint, in order, in bytes.
    fn search(&mut self, text: &str) {
        self.found.clear();
        let sieve = Some(&self.sieve).filter(|sieve| !sieve.is_clogged());
        if sieve.is_some_and(|sieve| sieve.next(text.as_bytes(), 0).is_none()) {
            return;
        }
        self.settle();
        let sieve = Some(&self.sieve).filter(|sieve| !sieve.is_clogged());
        for tier in &mut self.tiers {
            tier.search(text.as_bytes(), sieve, &mut self.found);
        }
        if self.found.len() < 2 {
            return;
        }
        self.found.sort_unstable();
        let mut kept = 0;
        for at in 1..self.found.len() {
            let (start, end) = self.found[at];
            if start < self.found[kept].1 {
                self.found[kept].1 = self.found[kept].1.max(end);
            } else {
                kept += 1;
                self.found[kept] = (start, end);
            }
        }
        self.found.truncate(kept + 1);
    }

    /// Replaces every secret in the text; says whether there was one.
    pub fn mask_in_place(&mut self, text: &mut String) -> bool {
        if self.known.is_empty() {
            return false;
        }
        self.search(text);
        if self.found.is_empty() {
            return false;
        }
        let mut masked = String::with_capacity(text.len());
        let mut from = 0;
        for (start, end) in &self.found {
            masked.push_str(&text[from..*start]);
            masked.push_str(REPLACEMENT);
            from = *end;
        }
        masked.push_str(&text[from..]);
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
        self.search(text);
        for (start, end) in &self.found {
            if *start >= cut {
                break;
            }
            if *end > cut {
                return if *start == 0 { *end } else { *start };
            }
        }
        cut
    }
}

/// Patterns that are searched for together.
struct Tier {
    patterns: Vec<Arc<str>>,
    machine: Option<Machine>,
    /// How many bytes were searched with the small automaton.
    searched: usize,
}

/// The same search, in a fast form and in a small one.
enum Machine {
    Fast(DFA),
    Small(aho_corasick::nfa::contiguous::NFA),
}

impl Tier {
    fn new(patterns: Vec<Arc<str>>) -> Self {
        // Building fails only for automata beyond what 32 bits can number; then nothing is printed at all (see below).
        let machine = Self::states(&patterns)
            .and_then(|nfa| aho_corasick::nfa::contiguous::NFA::builder().build_from_noncontiguous(&nfa))
            .map(Machine::Small)
            .ok();
        Self { patterns, machine, searched: 0 }
    }

    fn states(patterns: &[Arc<str>]) -> Result<NFA, aho_corasick::BuildError> {
        NFA::builder()
            .match_kind(MatchKind::Standard)
            .prefilter(false)
            .build(patterns.iter().map(|pattern| pattern.as_bytes()))
    }

    /// The fast automaton pays once enough is printed.
    fn hasten(&mut self) {
        let bytes: usize = self.patterns.iter().map(|pattern| pattern.len()).sum();
        if bytes <= FAST_BYTES
            && let Ok(fast) =
                Self::states(&self.patterns).and_then(|nfa| DFA::builder().build_from_noncontiguous(&nfa))
        {
            self.machine = Some(Machine::Fast(fast));
        }
    }

    fn search(&mut self, text: &[u8], sieve: Option<&Sieve>, found: &mut Vec<(usize, usize)>) {
        if let Some(Machine::Small(_)) = &self.machine {
            let before = self.searched;
            self.searched = before.saturating_add(text.len());
            if before < HASTEN_BYTES && self.searched >= HASTEN_BYTES {
                self.hasten();
            }
        }
        match &self.machine {
            Some(Machine::Fast(automaton)) => walk(automaton, text, sieve, found),
            Some(Machine::Small(automaton)) => walk(automaton, text, sieve, found),
            // Rather a blank log than one with secrets.
            None => found.push((0, text.len())),
        }
    }
}

/// Finds patterns where the sieve lets something through, or everywhere without one.
fn walk<A: Automaton>(automaton: &A, text: &[u8], sieve: Option<&Sieve>, found: &mut Vec<(usize, usize)>) {
    let Some(sieve) = sieve else {
        walk_from(automaton, text, 0, text.len(), found);
        return;
    };
    let mut from = 0;
    while let Some(place) = sieve.next(text, from) {
        let begin = place.saturating_sub(sieve.lead()).max(from);
        from = walk_from(automaton, text, begin, place, found);
    }
}

/// Finds patterns that begin at `begin` or after it and not after `until`, perhaps more. Gives the place before which
/// everything has been found.
///
/// Of those that end at the same place the longest is taken. Every other find lies within one of these, so together
/// they cover whatever must go; and the time does not depend on how the patterns overlap.
fn walk_from<A: Automaton>(
    automaton: &A,
    text: &[u8],
    begin: usize,
    until: usize,
    found: &mut Vec<(usize, usize)>,
) -> usize {
    let Ok(start) = automaton.start_state(Anchored::No) else { return text.len() };
    let mut state = start;
    for (at, byte) in text.iter().enumerate().skip(begin) {
        state = automaton.next_state(Anchored::No, state, *byte);
        if automaton.is_special(state) && automaton.is_match(state) {
            // A state's own pattern comes before those that are its suffixes.
            let length = automaton.pattern_len(automaton.match_pattern(state, 0));
            let (start, end) = (at + 1 - length, at + 1);
            match found.last_mut() {
                Some(last) if last.1 > start && last.0 <= start => last.1 = last.1.max(end),
                _ => found.push((start, end)),
            }
        } else if state == start && at >= until {
            // No pattern has begun that is not over.
            return at + 1;
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
    fn overlapping_secrets_leave_nothing_of_either() {
        let mut masker = Masker::new(["abcd", "cdef"]);
        assert_eq!(masker.mask("xabcdefx"), "x***x");
        masker.add("fgh");
        assert_eq!(masker.mask("abcdefgh cd"), "*** cd");
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
            let encoded = base64::Engine::encode(
                &base64::engine::general_purpose::STANDARD,
                format!("{lead}{secret}:more"),
            );
            let masked = masker.mask(&encoded);
            assert!(masked.contains(REPLACEMENT), "{lead:?}: {masked}");
            assert!(masked.len() < encoded.len() / 2 + 12, "{lead:?}: too much is left: {masked}");
        }
    }

    #[test]
    fn many_masks_one_after_the_other() {
        let mut masker = Masker::default();
        let mut built = 0;
        for number in 0..600 {
            masker.add(&format!("value-{number:05}-secret"));
            assert_eq!(masker.mask(&format!("x value-{number:05}-secret y")), "x *** y");
            built = built.max(masker.tiers.len());
        }
        assert!(built <= 20, "{built} automata");
        assert_eq!(
            masker.mask("value-00000-secret value-00599-secret value-00600-secret"),
            "*** *** value-00600-secret"
        );
    }

    #[test]
    fn a_long_log_is_searched_with_the_fast_automaton() {
        let mut masker = Masker::new(["correct horse"]);
        for _ in 0..=HASTEN_BYTES / 20 {
            assert_eq!(masker.mask("a correct horse, too"), "a ***, too");
        }
        assert!(matches!(masker.tiers[0].machine, Some(Machine::Fast(_))));
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

    proptest! {
        #[test]
        fn nothing_of_any_secret_is_left(
            secrets in prop::collection::vec("[ab]{2,6}", 1..8),
            text in "[abc]{0,40}",
        ) {
            let mut masker = Masker::default();
            for secret in &secrets {
                // One tier each, as for values that are added while the job runs.
                masker.add_pattern(secret);
                masker.settle();
            }
            let mut covered = vec![false; text.len()];
            for secret in &secrets {
                for (at, _) in text.char_indices().filter(|(at, _)| text[*at..].starts_with(secret.as_str())) {
                    covered[at..at + secret.len()].fill(true);
                }
            }
            let masked = masker.mask(&text);
            let left: String = text.chars().zip(&covered).filter(|(_, covered)| !**covered).map(|(c, _)| c).collect();
            prop_assert_eq!(masked.replace(REPLACEMENT, ""), left);
        }
    }
}

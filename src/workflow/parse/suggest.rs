//! "Did you mean": the known word that is nearest to an unknown one.

/// Among more words than this nothing is suggested; it would take too long.
const MAX_CANDIDATES: usize = 100;

/// ` (did you mean 'x'?)` for the nearest candidate, or nothing if none is near.
pub(crate) fn did_you_mean<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    let allowed = match word.chars().count() {
        0..=2 => return String::new(),
        3..=4 => 1,
        5..=8 => 2,
        _ => 3,
    };
    let candidates: Vec<&str> = candidates.take(MAX_CANDIDATES + 1).collect();
    if word.len() > 60 || candidates.len() > MAX_CANDIDATES {
        return String::new();
    }
    let lower = word.to_lowercase().replace('_', "-");
    candidates
        .into_iter()
        .filter(|candidate| candidate.len().abs_diff(word.len()) <= allowed)
        .map(|candidate| (distance(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| format!(" (did you mean '{candidate}'?)"))
        .unwrap_or_default()
}

/// How many characters to insert, delete, replace or swap.
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().collect();
    let right: Vec<char> = right.chars().collect();
    let mut before = vec![0; right.len() + 1];
    let mut last: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, r) in right.iter().enumerate() {
            let mut best = (last[j] + usize::from(l != r)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *l == right[j - 1] && left[i - 1] == *r {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_suggested() {
        let known = || ["runs-on", "steps", "needs", "timeout-minutes"].into_iter();
        assert_eq!(did_you_mean("run-on", known()), " (did you mean 'runs-on'?)");
        assert_eq!(did_you_mean("stpes", known()), " (did you mean 'steps'?)");
        assert_eq!(did_you_mean("timeout_minutes", known()), " (did you mean 'timeout-minutes'?)");
        assert_eq!(did_you_mean("frobnicate", known()), "");
    }
}

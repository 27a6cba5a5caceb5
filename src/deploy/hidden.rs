//! The values of Secrets in what others say. A program that cannot reach its database likes to tell with which password
//! it tried; the runner masks the secrets of Gitea, and does not know those of the cluster.

use std::fmt;

use aho_corasick::{AhoCorasick, MatchKind};

/// Shorter values are words of everyday language, or ports.
const SHORTEST: usize = 5;
/// What stands in their place.
const STARS: &str = "***";

/// Values that are never shown.
#[derive(Default, Clone)]
pub(super) struct Hidden {
    values: Vec<String>,
    search: Option<AhoCorasick>,
}

impl Hidden {
    /// Takes values in, and hides the lines of those that have several, and the passwords of those that are URLs.
    pub(super) fn add(&mut self, values: impl IntoIterator<Item = String>) {
        for value in values {
            let password =
                reqwest::Url::parse(value.trim()).ok().and_then(|url| url.password().map(str::to_owned));
            let lines = value.lines().map(|line| line.trim().to_owned());
            let all = lines.chain(password).filter(|text| text.len() >= SHORTEST && !is_common(text));
            self.values.extend(all);
        }
        self.values.sort();
        self.values.dedup();
        let search = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&self.values);
        // Too many to search for: millions.
        self.search = search.ok();
    }

    /// The text without them.
    pub(super) fn hide(&self, text: &mut String) {
        if let Some(search) = self.search.as_ref().filter(|search| search.is_match(text.as_str())) {
            let mut hidden = String::with_capacity(text.len());
            search.replace_all_with(text, &mut hidden, |_, _, to| {
                to.push_str(STARS);
                true
            });
            *text = hidden;
        }
    }
}

/// What is in a Secret by habit and tells nothing.
fn is_common(text: &str) -> bool {
    matches!(
        text.to_ascii_lowercase().as_str(),
        "false" | "production" | "development" | "staging" | "localhost" | "postgres"
    )
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lines_and_passwords_are_hidden() {
        let mut hidden = Hidden::default();
        hidden.add(
            [
                "hunter2 and more\nsecond line\n",
                "postgres://app:s3cret@db/app",
                "5432",
                "production",
                "hunter2",
            ]
            .map(str::to_owned),
        );
        for (text, shown) in [
            ("it was hunter2 and more!", "it was ***!"),
            ("it was hunter2", "it was ***"),
            ("second line", "***"),
            ("cannot reach postgres://app:s3cret@db/app", "cannot reach ***"),
            ("password s3cret is wrong", "password *** is wrong"),
            ("production listens on 5432", "production listens on 5432"),
        ] {
            let mut said = text.to_owned();
            hidden.hide(&mut said);
            assert_eq!(said, shown);
        }
        assert_eq!(format!("{hidden:?}"), "Hidden(…)");
    }
}

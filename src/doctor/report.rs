//! What was found, for people, for programs, and for the summary of a job.

use std::fmt::Write as _;

use serde::Serialize;

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Well,
    /// Worth to know; nothing depends on it.
    Note,
    /// Not as it should be, and jobs can live with it.
    Odd,
    /// Jobs fail of it.
    Bad,
}

impl State {
    const fn mark(self) -> &'static str {
        match self {
            Self::Well => "ok",
            Self::Note => "-",
            Self::Odd => "odd",
            Self::Bad => "BAD",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// Where it belongs: `host`, `tools`, `gitea`, …
    pub room: &'static str,
    /// What.
    pub name: String,
    /// How it is.
    pub state: State,
    /// What was seen.
    pub seen: String,
    /// What to change: the file or the command, and the lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    /// Something that is as it should be.
    pub fn well(room: &'static str, name: impl Into<String>, seen: impl Into<String>) -> Self {
        Self { room, name: name.into(), state: State::Well, seen: seen.into(), remedy: None }
    }

    /// Something worth to know.
    pub fn note(room: &'static str, name: impl Into<String>, seen: impl Into<String>) -> Self {
        Self { state: State::Note, ..Self::well(room, name, seen) }
    }

    /// Something that jobs can live with.
    pub fn odd(
        room: &'static str,
        name: impl Into<String>,
        seen: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { state: State::Odd, remedy: Some(remedy.into()), ..Self::well(room, name, seen) }
    }

    /// Something that jobs fail of.
    pub fn bad(
        room: &'static str,
        name: impl Into<String>,
        seen: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { state: State::Bad, remedy: Some(remedy.into()), ..Self::well(room, name, seen) }
    }
}

/// All that was found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// What was looked at, in order.
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether nothing is bad.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.count(State::Bad) == 0
    }

    fn count(&self, state: State) -> usize {
        self.checks.iter().filter(|check| check.state == state).count()
    }

    /// The verdict in one line.
    #[must_use]
    pub fn verdict(&self) -> String {
        let (bad, odd) = (self.count(State::Bad), self.count(State::Odd));
        match (bad, odd) {
            (0, 0) => format!("well: {} checks", self.checks.len()),
            (0, odd) => format!("well: {} checks, {odd} odd", self.checks.len()),
            (bad, odd) => format!("not well: {bad} bad, {odd} odd of {} checks", self.checks.len()),
        }
    }

    /// For a terminal: a table, with each remedy below its check.
    #[must_use]
    pub fn text(&self) -> String {
        let width = self.checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        let mut room = "";
        for check in &self.checks {
            if check.room != room {
                room = check.room;
                let _ = writeln!(text, "{}{room}", if text.is_empty() { "" } else { "\n" });
            }
            let mut lines = check.seen.lines();
            let first = lines.next().unwrap_or_default();
            let _ = writeln!(text, "  {:<3}  {:<width$}  {first}", check.state.mark(), check.name);
            for line in lines {
                let _ = writeln!(text, "       {:<width$}  {line}", "");
            }
            for (index, line) in check.remedy.iter().flat_map(|remedy| remedy.lines()).enumerate() {
                let arrow = if index == 0 { "→" } else { " " };
                let _ = writeln!(text, "       {:<width$}  {arrow} {line}", "");
            }
        }
        let _ = writeln!(text, "\n{}", self.verdict());
        text
    }

    /// For the summary of a job.
    #[must_use]
    pub fn markdown(&self) -> String {
        let cell = |text: &str| text.replace('|', "\\|").replace('\n', "<br>");
        let mut text = format!("### Doctor: {}\n\n| | Check | Seen |\n| --- | --- | --- |\n", self.verdict());
        for check in &self.checks {
            let mark = match check.state {
                State::Well => "✅",
                State::Note => "·",
                State::Odd => "⚠️",
                State::Bad => "❌",
            };
            let _ = write!(text, "| {mark} | {} {} | {}", check.room, cell(&check.name), cell(&check.seen));
            if let Some(remedy) = &check.remedy {
                let _ = write!(text, "<br>→ {}", cell(remedy));
            }
            text.push_str(" |\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_with_remedies_below_their_checks() {
        let report = Report {
            checks: vec![
                Check::well("host", "memory", "3.8 GiB"),
                Check::bad("host", "disk /nix/store", "0.1 GiB free", "free some:\nsower gc"),
                Check::note("tools", "node", "not on PATH"),
            ],
        };
        insta::assert_snapshot!(report.text(), @r"
        host
          ok   memory           3.8 GiB
          BAD  disk /nix/store  0.1 GiB free
                                → free some:
                                  sower gc

        tools
          -    node             not on PATH

        not well: 1 bad, 0 odd of 3 checks
        ");
        assert!(!report.is_well());
        assert!(
            report
                .markdown()
                .contains("| ❌ | host disk /nix/store | 0.1 GiB free<br>→ free some:<br>sower gc |")
        );
    }
}

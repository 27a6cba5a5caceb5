//! What is to be deployed, checked before any program starts.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Access, Error, Smoke};
use crate::image::registry;

/// The longest name of a release that helm accepts, in bytes.
const LONGEST_RELEASE: usize = 53;
/// The longest name of a namespace that Kubernetes accepts, in bytes.
const LONGEST_NAMESPACE: usize = 63;

/// One release of one chart. `set` may hold what nobody else should read, so this has no `Debug`.
pub struct Request {
    /// Name of the release.
    pub release: String,
    /// A chart directory, a packed chart, or a reference that helm resolves (`repo/chart`, `oci://…`).
    pub chart: String,
    /// The namespace that the release lives in.
    pub namespace: String,
    /// Create the namespace if it is not there.
    pub create_namespace: bool,
    /// helm's `--set`, in order.
    pub set: Vec<String>,
    /// helm's `--set-string`, in order.
    pub set_string: Vec<String>,
    /// Files of values, in order.
    pub values: Vec<PathBuf>,
    /// How long helm waits for the release to be ready.
    pub timeout: Duration,
    /// The way to the cluster.
    pub access: Access,
    /// After a failure, go back to the last good revision.
    pub rollback: bool,
    /// How long the pods are watched after helm is content. `None`: not at all where each container has a readiness
    /// probe, else 10 s.
    pub settle: Option<Duration>,
    /// How often a container may be started again before that is a failure.
    pub restarts: u64,
    /// How many revisions helm keeps.
    pub history_max: u32,
    /// Look before anything is changed whether the pods could start: Secrets and their keys, image tags.
    pub checks: bool,
    /// Free a release that somebody else locks, whoever it is.
    pub break_lock: bool,
    /// How old a lock of somebody else must be to be taken for one that a dead helm left. `None`: as long as a helm with
    /// this time-out could hold it.
    pub stale_lock: Option<Duration>,
    /// What is asked of the application when all is ready.
    pub smoke: Option<Smoke>,
    /// How registries are asked for tags.
    pub registry: registry::Options,
}

/// How long pods without readiness probes are watched after helm is content with them.
pub(super) const SETTLE: Duration = Duration::from_secs(10);

impl Request {
    /// Looks for what can be known to be wrong without asking anybody.
    ///
    /// # Errors
    /// Says which argument is wrong and why.
    pub fn check(&self) -> Result<(), Error> {
        check_name("release", &self.release, LONGEST_RELEASE)?;
        check_name("namespace", &self.namespace, LONGEST_NAMESPACE)?;
        self.check_chart()?;
        for value in self.set.iter().chain(&self.set_string) {
            if !value.contains('=') {
                // Only the key would be quoted, and here is none: the whole may be a secret.
                return Err(Error::Argument(
                    "a --set or --set-string has no `=`: write KEY=VALUE".to_owned(),
                ));
            }
        }
        for path in &self.values {
            std::fs::File::open(path).map_err(|source| Error::File { path: path.clone(), source })?;
        }
        Ok(())
    }

    fn check_chart(&self) -> Result<(), Error> {
        let path = Path::new(&self.chart);
        if self.chart.is_empty() || self.chart.starts_with('-') {
            return Err(Error::Argument(format!("{:?} cannot be a chart", self.chart)));
        }
        if path.is_dir() && !path.join("Chart.yaml").is_file() {
            return Err(Error::Argument(format!("{} is not a chart: it has no Chart.yaml", self.chart)));
        }
        if !path.exists() && (self.chart.starts_with(['.', '/'])) {
            return Err(Error::Argument(format!("there is no chart at {}", self.chart)));
        }
        Ok(())
    }
}

/// Lower-case letters, digits, `-` and (for releases, harmless elsewhere) `.`, with a letter or digit at both ends.
fn check_name(what: &str, name: &str, longest: usize) -> Result<(), Error> {
    let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let well = name.len() <= longest
        && name.starts_with(ends)
        && name.ends_with(ends)
        && name.chars().all(|c| ends(c) || c == '-' || c == '.');
    if well {
        return Ok(());
    }
    Err(Error::Argument(format!(
        "{name:?} cannot be the name of a {what}: lower-case letters, digits and `-`, at most {longest} characters"
    )))
}

/// Reads a duration as helm does: `5m`, `90s`, `1h30m`.
///
/// # Errors
/// Says what is expected; zero is refused, because helm would not wait at all.
pub fn parse_timeout(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration: write it like 5m, 90s or 1h30m");
    let mut seconds = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = rest.split_at(digits);
        let unit = tail.chars().next().ok_or_else(wrong)?;
        let factor = match unit {
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        seconds = number.checked_mul(factor).and_then(|part| seconds.checked_add(part)).ok_or_else(wrong)?;
        rest = &tail[unit.len_utf8()..];
    }
    // helm's own limit is that of a signed 64-bit number of nanoseconds; a week is plenty.
    if seconds == 0 || seconds > 7 * 24 * 3600 {
        return Err(format!("{text:?} is not between 1s and 168h"));
    }
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_helm_does() {
        for (text, seconds) in [("5m", 300), ("90s", 90), ("1h30m", 5400), ("1m1s", 61)] {
            assert_eq!(parse_timeout(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "5", "m", "5x", "0s", "-5m", "5mm", "999999999999999999999h", "5é", "200h"] {
            assert!(parse_timeout(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_that_could_be_taken_for_options_are_refused() {
        for name in ["app", "my-app-2", "a.b"] {
            check_name("release", name, LONGEST_RELEASE).unwrap();
        }
        for name in ["", "-app", "--debug", "App", "a_b", "app-", &"a".repeat(54)] {
            assert!(check_name("release", name, LONGEST_RELEASE).is_err(), "{name}");
        }
    }
}

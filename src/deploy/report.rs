//! The outcome for people, for programs, and for the job's summary and outputs.

use std::fmt::{self, Write as _};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::evidence::{ContainerEvidence, Evidence, PodEvidence};
use super::{Cause, Deployed, Error, Failed, Outcome, Rendered, Request};

impl Outcome {
    /// The outcome as one JSON object.
    #[must_use]
    pub fn json(&self, request: &Request) -> Value {
        let mut object = json!({
            "result": self.word(),
            "release": request.release,
            "namespace": request.namespace,
        });
        let more = match self {
            Self::Deployed(deployed) => json!({
                "revision": deployed.revision,
                "seconds": deployed.took.as_secs_f64(),
                "settled": deployed.settled.as_secs_f64(),
                "images": deployed.rollout.images(),
                "pods": deployed.rollout.pods().collect::<Vec<_>>(),
                "unprobed": deployed.rollout.unprobed(),
                "answered": deployed.answered,
            }),
            Self::Failed(failed) => json!({
                "cause": failed.cause,
                "state": failed.state,
                "undone": failed.undone,
                "changes": failed.changes,
                "seconds": failed.took.as_secs_f64(),
                "evidence": failed.evidence,
            }),
            Self::Cancelled { state } => json!({ "state": state }),
        };
        if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
            object.extend(more);
        }
        object
    }

    /// `deployed`, `failed` or `cancelled`.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Deployed(_) => "deployed",
            Self::Failed(_) => "failed",
            Self::Cancelled { .. } => "cancelled",
        }
    }

    /// A small table for the job's summary.
    #[must_use]
    pub fn markdown(&self, request: &Request) -> String {
        let mut rows = vec![
            ("Release", code(&request.release)),
            ("Namespace", code(&request.namespace)),
            ("Result", self.word().to_owned()),
        ];
        match self {
            Self::Deployed(deployed) => {
                rows.push(("Revision", deployed.revision.to_string()));
                rows.extend(deployed.rollout.images().iter().map(|image| ("Image", code(image))));
                rows.extend(
                    deployed
                        .rollout
                        .pods()
                        .map(|pod| ("Pod", format!("{}: {}", code(&pod.name), cell(&pod.state)))),
                );
                rows.extend(deployed.rollout.unprobed().iter().map(|who| ("No readiness probe", cell(who))));
                if let Some(answered) = &deployed.answered {
                    rows.push((
                        "Answers",
                        format!("{} with status {}", code(&answered.url), answered.status),
                    ));
                }
                rows.push(("Took", format!("{:.1} s", deployed.took.as_secs_f64())));
            }
            Self::Failed(failed) => {
                rows.push(("Cause", cell(&failed.cause.sentence)));
                rows.push(("What to do", cell(&failed.cause.remedy)));
                if let Some(undone) = &failed.undone {
                    rows.push(("Done", cell(undone)));
                }
                rows.push(("State", cell(&failed.state)));
                rows.push(("Known after", format!("{:.1} s", failed.took.as_secs_f64())));
            }
            Self::Cancelled { state } => rows.push(("State", cell(state))),
        }
        let mut text = table(&rows);
        if let Self::Failed(failed) = self {
            if let Some(paste) = &failed.cause.paste {
                text.push_str(&format!("```\n{paste}\n```\n\n"));
            }
            let evidence = failed.evidence.to_string();
            if !evidence.is_empty() {
                // A fence that nothing in a log can close.
                text.push_str(&format!(
                    "<details><summary>Evidence</summary>\n\n``````\n{}\n``````\n</details>\n\n",
                    evidence.trim_end().replace("``````", "`` ````")
                ));
            }
            if !failed.changes.is_empty() {
                text.push_str("What changed against the last good revision:\n\n``````\n");
                text.push_str(&failed.changes.join("\n").replace("``````", "`` ````"));
                text.push_str("\n``````\n\n");
            }
        }
        text
    }
}

impl Error {
    /// A deployment that could not be tried, as one JSON object like [`Outcome::json`].
    #[must_use]
    pub fn json(&self, release: &str, namespace: &str) -> Value {
        json!({
            "result": "not-tried",
            "release": release,
            "namespace": namespace,
            "error": self.to_string(),
        })
    }

    /// The same as a small table for the job's summary.
    #[must_use]
    pub fn markdown(&self, release: &str, namespace: &str) -> String {
        table(&[
            ("Release", code(release)),
            ("Namespace", code(namespace)),
            ("Result", "could not be tried".to_owned()),
            ("Cause", cell(&self.to_string())),
        ])
    }
}

impl Rendered {
    /// A small table for the job's summary.
    #[must_use]
    pub fn markdown(&self, request: &Request) -> String {
        let mut rows = vec![
            ("Release", code(&request.release)),
            ("Result", "rendered only, nothing was deployed".to_owned()),
        ];
        for object in &self.objects {
            rows.push(("Object", format!("{} {}", cell(&object.kind), code(&object.name))));
            rows.extend(object.images.iter().map(|image| ("Image", code(image))));
        }
        table(&rows)
    }
}

impl fmt::Display for Deployed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "revision {} is ready after {:.1} s", self.revision, self.took.as_secs_f64())?;
        for image in self.rollout.images() {
            writeln!(f, "  image {image}")?;
        }
        for pod in self.rollout.pods() {
            writeln!(f, "  pod/{}: {}", pod.name, pod.state)?;
        }
        if !self.settled.is_zero() {
            writeln!(f, "  stayed up for {} s more", self.settled.as_secs())?;
        }
        Ok(())
    }
}

impl Failed {
    /// What the cause was told from.
    pub(super) fn findings(&self) -> String {
        self.evidence.to_string()
    }

    /// Cause and remedy, for the end of the log.
    #[must_use]
    pub fn conclusion(&self, release: &str) -> String {
        let Cause { sentence, remedy, paste, .. } = &self.cause;
        let paste = paste.iter().flat_map(|paste| paste.lines()).map(|line| format!("\n  {line}"));
        format!(
            "release {release} was not deployed: {sentence}\nwhat to do: {remedy}{}",
            paste.collect::<String>()
        )
    }
}

/// What changed against the last good revision.
pub(super) fn changed(changes: &[String]) -> String {
    list("what changed against the last good revision:", changes.iter().map(String::as_str))
}

/// A title and lines below it; nothing without lines.
fn list<'a>(title: &str, lines: impl Iterator<Item = &'a str>) -> String {
    let lines: String = lines.map(|line| format!("  {line}\n")).collect();
    if lines.is_empty() { lines } else { format!("{title}\n{lines}") }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.told {
            f.write_str(&self.findings())?;
        }
        if let Some(undone) = &self.undone {
            writeln!(f, "{undone}")?;
        }
        writeln!(f, "{}", self.state)
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for pod in &self.pods {
            write!(f, "{pod}")?;
        }
        for line in &self.workloads {
            writeln!(f, "{line}")?;
        }
        if let Some(why) = &self.incomplete {
            writeln!(f, "not all could be asked: {why}")?;
        }
        Ok(())
    }
}

impl fmt::Display for PodEvidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "pod/{}: {}", self.name, self.state)?;
        for container in &self.containers {
            write!(f, "{container}")?;
        }
        if !self.events.is_empty() {
            writeln!(f, "  its last events:")?;
            for event in &self.events {
                writeln!(f, "    {event}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for ContainerEvidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  container {}, image {}", self.name, self.image)?;
        // Only that it ended: the exit code says more.
        if !self.reason.is_empty() && (self.reason != "Error" || !self.message.is_empty()) {
            let colon = if self.message.is_empty() { "" } else { ": " };
            writeln!(f, "    {}{colon}{}", self.reason, self.message.trim_end().replace('\n', "\n    "))?;
        }
        if let Some(exit_code) = self.exit_code {
            let why = match (&self.memory_limit, self.out_of_memory) {
                (Some(limit), true) => format!(" (OOMKilled, its limit is {limit})"),
                (None, true) => " (OOMKilled)".to_owned(),
                (_, false) => String::new(),
            };
            writeln!(f, "    last exit code {exit_code}{why}, restarts {}", self.restarts)?;
        }
        if let Some(why) = &self.log_error {
            writeln!(f, "    its log cannot be read: {why}")?;
        }
        let which = if self.log_now.is_empty() { "its log" } else { "the log of the run that ended" };
        for (which, log) in [(which, &self.log), ("the log of the run after it", &self.log_now)] {
            if !log.is_empty() {
                writeln!(f, "    the last lines of {which}:")?;
            }
            for line in log {
                writeln!(f, "    | {line}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Rendered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for object in &self.objects {
            write!(f, "  {}/{}", object.kind.to_lowercase(), object.name)?;
            if !object.images.is_empty() {
                write!(f, "  image {}", object.images.join(", "))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Appends the outcome to the file of the job's summary.
///
/// # Errors
/// If the file cannot be written.
pub fn write_summary(path: &Path, text: &str) -> Result<(), Error> {
    append(path, text)
}

/// Appends outputs (`name=value`) to the file of the step's outputs. Values must be single lines.
///
/// # Errors
/// If the file cannot be written.
pub fn write_outputs(path: &Path, outputs: &[(&str, String)]) -> Result<(), Error> {
    let lines: String = outputs.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    append(path, &lines)
}

fn append(path: &Path, text: &str) -> Result<(), Error> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|source| Error::File { path: path.to_owned(), source })
}

fn table(rows: &[(&str, String)]) -> String {
    let mut text = String::from("### Deployment\n\n| | |\n| --- | --- |\n");
    for (name, value) in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| {name} | {value} |");
    }
    text.push('\n');
    text
}

fn code(text: &str) -> String {
    format!("`{}`", cell(text))
}

/// Text that cannot break out of a cell of a Markdown table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

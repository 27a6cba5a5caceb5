//! How a local run is shown: for people, or as a stream of JSON objects.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;

use crate::events::{Conclusion, Event, Sink, StepInfo, Timestamp};

use super::plan::Run;
use super::status::Status;

/// Where all jobs of a run write. Each writes whole lines at once.
pub type Shared = Arc<Mutex<Box<dyn Write + Send>>>;

/// How to show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// One JSON object a line.
    Json,
    /// For people.
    Text {
        /// With colours.
        colour: bool,
        /// With the job's name before each line, since several run at once.
        prefix: bool,
    },
}

/// Shows one job.
pub struct View {
    out: Shared,
    style: Style,
    job: String,
    name: String,
    prefix: String,
    steps: Vec<StepInfo>,
    current: Option<usize>,
    /// Inside the rows by which a step says what it is about to run; a terminal has shown its name already.
    announcing: Announcing,
    began: Timestamp,
    buffer: String,
    /// The job's outputs as they came.
    pub outputs: Vec<(String, String)>,
    /// Summaries as they came, by step.
    pub summaries: Vec<(String, String)>,
    /// The line below everything, on a terminal.
    pub status: Option<Status>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("job", &self.job).field("style", &self.style).finish_non_exhaustive()
    }
}

/// How much is kept before it is written.
const CHUNK: usize = 64 * 1024;

impl View {
    /// A view of one job.
    #[must_use]
    pub fn new(run: &Run, style: Style, out: Shared) -> Self {
        let prefix = match style {
            Style::Text { prefix: true, .. } => format!("{} | ", run.name),
            _ => String::new(),
        };
        Self {
            out,
            style,
            job: run.job.clone(),
            name: run.name.clone(),
            prefix,
            steps: Vec::new(),
            current: None,
            announcing: Announcing::Over,
            began: Timestamp::now(),
            buffer: String::new(),
            outputs: Vec::new(),
            summaries: Vec::new(),
            status: None,
        }
    }

    fn step_name(&self, step: usize) -> &str {
        self.steps.get(step).map_or("", |info| info.name.as_str())
    }

    fn line(&mut self, text: &str) {
        self.buffer.push_str(&self.prefix);
        self.buffer.push_str(text);
        self.buffer.push('\n');
    }

    /// Whether a row belongs to what a step says before it runs.
    fn announces(&mut self, text: &str) -> bool {
        match self.announcing {
            Announcing::Expected if text.starts_with("::group::Run ") => {
                self.announcing = Announcing::Now;
                true
            }
            Announcing::Now => {
                if text == "::endgroup::" {
                    self.announcing = Announcing::Over;
                }
                true
            }
            Announcing::Expected | Announcing::Over => {
                self.announcing = Announcing::Over;
                false
            }
        }
    }

    fn text(&mut self, event: &Event, colour: bool) {
        let paint = |code: &'static str, text: &str| paint(colour, code, text);
        match event {
            Event::JobStarted { .. } => {
                let title = paint("1", &self.name);
                self.line(&format!("{} {title}", paint("36", "▶")));
            }
            Event::StepStarted { step, .. } => {
                let name = paint("1", self.step_name(*step));
                self.line(&format!("{} {name}", paint("36", "●")));
            }
            Event::Row { text, .. } if self.announces(text) => {}
            Event::Row { text, .. } => {
                let quiet = self.current.is_none();
                match shown(text) {
                    Shown::Nothing => {}
                    Shown::Plain(text) if quiet => self.line(&paint("2", &format!("  {text}"))),
                    Shown::Plain(text) => {
                        self.buffer.push_str(&self.prefix);
                        self.buffer.push_str("  ");
                        self.buffer.push_str(text);
                        self.buffer.push('\n');
                    }
                    Shown::Group(title) => self.line(&paint("2", &format!("  ▸ {title}"))),
                    Shown::Level(level, text) => {
                        let code = match level {
                            "Error" => "31",
                            "Warning" => "33",
                            _ => "36",
                        };
                        self.line(&format!("  {} {text}", paint(code, &format!("{level}:"))));
                    }
                }
            }
            Event::StepEnded { time, step, outcome, conclusion } => {
                let name = self.step_name(*step).to_owned();
                let forgiven = if outcome == conclusion { "" } else { " (failed, which is allowed)" };
                let took = if *outcome == Conclusion::Skipped {
                    String::new()
                } else {
                    paint("2", &format!("  {}", duration(time.millis_since(self.began))))
                };
                self.line(&format!("{} {name}{forgiven}{took}", mark(*outcome, colour)));
            }
            Event::Summary { .. } | Event::Output { .. } | Event::JobEnded { .. } => {}
        }
    }

    fn json(&mut self, event: &Event) {
        let (job, name) = (&self.job, &self.name);
        let id = |step: usize| self.steps.get(step).map(|info| info.id.as_str());
        let object = match event {
            Event::JobStarted { .. } => json!({"event": "job-started", "job": job, "name": name}),
            Event::StepStarted { step, .. } => {
                json!({"event": "step-started", "job": job, "step": id(*step), "name": self.step_name(*step)})
            }
            Event::Row { text, .. } => {
                json!({"event": "log", "job": job, "step": self.current.and_then(id), "text": text})
            }
            Event::StepEnded { step, outcome, conclusion, .. } => json!({
                "event": "step-ended", "job": job, "step": id(*step), "name": self.step_name(*step),
                "result": outcome.as_str(), "conclusion": conclusion.as_str(),
            }),
            Event::Summary { step, markdown } => {
                json!({"event": "summary", "job": job, "step": id(*step), "markdown": markdown})
            }
            Event::Output { name, value } => {
                json!({"event": "output", "job": job, "name": name, "value": value})
            }
            Event::JobEnded { conclusion, .. } => {
                json!({"event": "job-ended", "job": job, "name": name, "result": conclusion.as_str()})
            }
        };
        // Writing to a string cannot fail.
        let _ = writeln!(self.buffer, "{object}");
    }
}

impl Sink for View {
    fn emit(&mut self, event: &Event) -> io::Result<()> {
        match event {
            Event::JobStarted { steps, .. } => self.steps.clone_from(steps),
            Event::StepStarted { time, step } => {
                self.current = Some(*step);
                if let Some(status) = &self.status {
                    status.begins(&self.name, self.step_name(*step));
                }
                self.announcing = Announcing::Expected;
                self.began = *time;
            }
            Event::Output { name, value } => self.outputs.push((name.clone(), value.clone())),
            Event::Summary { step, markdown } => {
                let name = self.step_name(*step).to_owned();
                self.summaries.push((name, markdown.clone()));
            }
            _ => {}
        }
        match self.style {
            Style::Json => self.json(event),
            Style::Text { colour, .. } => self.text(event, colour),
        }
        if let Event::StepEnded { .. } = event {
            self.current = None;
            if let Some(status) = &self.status {
                status.ends(&self.name);
            }
        }
        if self.buffer.len() >= CHUNK { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let written = out.write_all(self.buffer.as_bytes()).and_then(|()| out.flush());
        self.buffer.clear();
        match written {
            // Whoever read it has seen enough; the job goes on to its end.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Announcing {
    Expected,
    Now,
    Over,
}

enum Shown<'t> {
    Nothing,
    Plain(&'t str),
    Group(&'t str),
    Level(&'static str, &'t str),
}

/// What a row is, to a reader.
fn shown(text: &str) -> Shown<'_> {
    if !text.starts_with("::") && !text.starts_with("##[") {
        return Shown::Plain(text);
    }
    let rest = |prefix: &str| text.strip_prefix(prefix);
    if let Some(title) = rest("::group::").or_else(|| rest("##[group]")) {
        return Shown::Group(title);
    }
    if text == "::endgroup::" || text == "##[endgroup]" {
        return Shown::Nothing;
    }
    for (prefix, level) in
        [("##[error]", "Error"), ("##[warning]", "Warning"), ("##[notice]", "Notice"), ("##[debug]", "Debug")]
    {
        if let Some(message) = rest(prefix) {
            return Shown::Level(level, message);
        }
    }
    Shown::Plain(text)
}

/// Says why a job could not be run.
pub fn problem(out: &Shared, style: Style, run: &Run, message: &str) {
    let text = match style {
        Style::Json => {
            let row =
                json!({"event": "log", "job": run.job, "step": null, "text": format!("##[error]{message}")});
            let end = json!({"event": "job-ended", "job": run.job, "name": run.name, "result": "failure"});
            format!("{row}\n{end}\n")
        }
        Style::Text { colour, .. } => format!("{}: {} {message}\n", run.name, paint(colour, "31", "Error:")),
    };
    let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
    // Nobody may be reading any more.
    let _ = out.write_all(text.as_bytes());
}

/// The mark of a state.
#[must_use]
pub fn mark(conclusion: Conclusion, colour: bool) -> String {
    let (code, mark) = match conclusion {
        Conclusion::Success => ("32", "✓"),
        Conclusion::Failure => ("31", "✗"),
        Conclusion::Cancelled => ("33", "⊘"),
        Conclusion::Skipped => ("2", "○"),
    };
    paint(colour, code, mark)
}

/// A text in a colour, by its ANSI code.
#[must_use]
pub fn paint(colour: bool, code: &str, text: &str) -> String {
    if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// A duration as people read it.
#[must_use]
pub fn duration(millis: u64) -> String {
    match millis {
        0..=999 => format!("{millis} ms"),
        1000..=59_999 => format!("{}.{} s", millis / 1000, millis % 1000 / 100),
        _ => format!("{} min {} s", millis / 60_000, millis % 60_000 / 1000),
    }
}

/// The table at the end: every job with its result and its time.
#[must_use]
pub fn table(rows: &[(String, Conclusion, u64)], colour: bool) -> String {
    let width = rows.iter().map(|(name, ..)| name.chars().count()).max().unwrap_or(0);
    let mut text = String::from("\n");
    for (name, conclusion, millis) in rows {
        let pad = " ".repeat(width - name.chars().count());
        let took = if *conclusion == Conclusion::Skipped { String::new() } else { duration(*millis) };
        let line = format!("{} {name}{pad}  {conclusion:<9}  {took}", mark(*conclusion, colour));
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

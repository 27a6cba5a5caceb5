//! From YAML to the model: everything that is wrong in a file, in one go.

mod action;
mod fields;
mod job;
mod step;
mod suggest;
mod trigger;

use indexmap::IndexMap;

pub(super) use action::{action, read_action};
use fields::Fields;
pub(crate) use suggest::did_you_mean;

use super::diagnostic::{Diagnostic, Severity};
use super::model::{Spanned, Workflow};
use super::template::EvaluationError;
use crate::yaml::{self, Kind, Node, Place};

/// The longest message of a diagnostic, in characters (600 with the rule's name).
const MAX_MESSAGE: usize = 560;

/// How many findings of a file are kept.
const MAX_FOUND: usize = 100_000;
/// How many jobs a workflow may have.
const MAX_JOBS: usize = 20_000;

/// Rules whose findings are warnings here (a server's payload must be run) and errors for `sower check`.
pub(super) const STRICT_RULES: &[&str] = &["unknown-key", "misplaced-key", "undefined-needs", "missing-key"];

/// Reads a workflow file, or the payload that a server sends. Unknown keys are warnings.
///
/// # Errors
/// Everything that keeps the workflow from being run (warnings among it), in the order of the lines.
pub fn parse_workflow(
    text: impl AsRef<[u8]>,
    file: &str,
) -> Result<(Workflow, Vec<Diagnostic>), Vec<Diagnostic>> {
    let (workflow, problems) = read_workflow(text.as_ref(), file);
    problems.finish(workflow)
}

/// What can be made of a file, and everything that is wrong with it.
pub(super) fn read_workflow(text: &[u8], file: &str) -> (Option<Workflow>, Problems) {
    let mut problems = Problems::new(file);
    let workflow = document(text, &mut problems).and_then(|root| workflow(&root, &mut problems));
    (workflow, problems)
}

/// The YAML document, or what keeps it from being read.
fn document(text: &[u8], problems: &mut Problems) -> Option<Node> {
    let (root, complaints) = match yaml::parse_all(text) {
        Ok((root, complaints)) => (Some(root), complaints),
        Err(error) => (None, vec![error]),
    };
    for complaint in complaints {
        problems.error(complaint.place, "yaml", complaint.message);
    }
    root
}

/// What has been found wrong so far.
pub(super) struct Problems {
    file: String,
    found: Vec<Diagnostic>,
}

impl Problems {
    pub(super) fn new(file: &str) -> Self {
        Self { file: file.to_owned(), found: Vec::new() }
    }

    fn add(&mut self, severity: Severity, place: Place, rule: &'static str, message: impl Into<String>) {
        match self.found.len() {
            0..MAX_FOUND => {}
            MAX_FOUND => {
                let message = format!("there is more that is wrong; the first {MAX_FOUND} findings are kept");
                let file = self.file.clone();
                self.found.push(Diagnostic { file, place, severity, message, rule: "too-many" });
                return;
            }
            _ => return,
        }
        let mut message: String = message.into();
        if message.chars().count() > MAX_MESSAGE {
            message = message.chars().take(MAX_MESSAGE - 1).chain(['…']).collect();
        }
        self.found.push(Diagnostic { file: self.file.clone(), place, severity, message, rule });
    }

    pub(super) fn error(&mut self, place: Place, rule: &'static str, message: impl Into<String>) {
        self.add(Severity::Error, place, rule, message);
    }

    pub(super) fn warning(&mut self, place: Place, rule: &'static str, message: impl Into<String>) {
        self.add(Severity::Warning, place, rule, message);
    }

    /// Whether there is still time to look for the word that was meant: not after a thousand findings.
    pub(super) fn may_suggest(&self) -> bool {
        self.found.len() < 1000
    }

    /// Keeps the value, or notes why there is none.
    pub(super) fn keep<T>(&mut self, rule: &'static str, result: Result<T, EvaluationError>) -> Option<T> {
        result.map_err(|error| self.error(error.place, rule, error.message)).ok()
    }

    pub(super) fn wrong_type(&mut self, node: &Node, what: &str, wanted: &str) {
        self.error(node.place, "type", format!("{what} must be {wanted}, not {}", node.kind_name()));
    }

    /// Everything that was noted, in no order.
    pub(super) fn into_found(self) -> Vec<Diagnostic> {
        self.found
    }

    /// The value and the warnings, or everything if there is an error.
    pub(super) fn finish<T>(mut self, value: Option<T>) -> Result<(T, Vec<Diagnostic>), Vec<Diagnostic>> {
        self.found.sort_by_key(|diagnostic| diagnostic.place);
        match value {
            Some(value) if self.found.iter().all(|found| found.severity == Severity::Warning) => {
                Ok((value, self.found))
            }
            _ => Err(self.found),
        }
    }
}

const KEYS: &[&str] =
    &["name", "run-name", "description", "on", "env", "defaults", "permissions", "concurrency", "jobs"];

fn workflow(root: &Node, problems: &mut Problems) -> Option<Workflow> {
    let Kind::Mapping(entries) = &root.kind else {
        let message = format!("a workflow is a mapping with 'on' and 'jobs', not {}", root.kind_name());
        problems.error(root.place, "type", message);
        return None;
    };
    let mut fields = Fields::new(entries, KEYS, "the workflow");
    let name = fields.template("name", problems);
    let run_name = fields.template("run-name", problems);
    fields.take("description");
    // YAML 1.1 writers turn `on` into `true`.
    let on = fields.take("on").or_else(|| fields.take("true"));
    let on = match on {
        Some((_, node)) => trigger::triggers(node, problems),
        None => {
            let place = fields.misspelt("on", problems).unwrap_or(root.place);
            problems.warning(place, "missing-key", "the workflow has no 'on': no event starts it");
            super::model::Triggers::default()
        }
    };
    let env = fields.env("env", problems);
    let defaults = fields.defaults("defaults", problems);
    let permissions = fields.raw("permissions", problems);
    let concurrency = fields.raw("concurrency", problems);
    let mut jobs = IndexMap::new();
    match fields.take("jobs") {
        None => {
            let place = fields.misspelt("jobs", problems).unwrap_or(root.place);
            problems.error(place, "missing-key", "the workflow has no 'jobs'");
        }
        Some((_, node)) => match &node.kind {
            Kind::Mapping(entries) if entries.is_empty() => {
                problems.error(node.place, "missing-key", "'jobs' has no job in it");
            }
            Kind::Mapping(entries) if entries.len() > MAX_JOBS => {
                let message = format!("'jobs' has {} jobs; at most {MAX_JOBS} are read", entries.len());
                problems.error(entries[MAX_JOBS].0.place, "too-many", message);
            }
            Kind::Mapping(entries) => {
                for (key, node) in entries {
                    if let Some(job) = job::job(key, node, problems) {
                        jobs.insert(key.text.clone(), job);
                    }
                }
                // Jobs that could not be read are still there to be needed.
                let ids: Vec<&str> = entries.iter().map(|(key, _)| key.text.as_str()).collect();
                check_needs(&ids, &jobs, problems);
            }
            _ => problems.wrong_type(node, "'jobs'", "a mapping of job ids to jobs"),
        },
    }
    fields.finish(problems);
    Some(Workflow { name, run_name, on, env, defaults, permissions, concurrency, jobs })
}

fn check_needs(ids: &[&str], jobs: &IndexMap<String, super::model::Job>, problems: &mut Problems) {
    let known: std::collections::HashSet<&str> = ids.iter().copied().collect();
    for job in jobs.values() {
        for Spanned { place, value } in &job.needs {
            if !known.contains(value.as_str()) {
                let hint = did_you_mean(value, ids.iter().copied());
                let message = format!("job '{}' needs '{value}', but there is no such job{hint}", job.id);
                // A server sends one job without those it needs.
                if ids.len() == 1 {
                    problems.warning(*place, "undefined-needs", message);
                } else {
                    problems.error(*place, "undefined-needs", message);
                }
            }
        }
    }
    for circle in cycles(jobs) {
        let message = format!("jobs need one another in a circle: {}", circle.path);
        for place in circle.places {
            problems.error(place, "needs-cycle", message.clone());
        }
    }
}

/// Jobs that need one another.
struct Circle {
    /// Where the first needs stand that make it.
    places: Vec<Place>,
    /// The way round.
    path: String,
}

/// How many of the needs that make a circle are named.
const MAX_NAMED: usize = 4;

/// One entry for each circle.
fn cycles(jobs: &IndexMap<String, super::model::Job>) -> Vec<Circle> {
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        New,
        Open,
        Done,
    }
    let mut states = vec![State::New; jobs.len()];
    let mut found = Vec::new();
    for start in 0..jobs.len() {
        // Depth first without recursion: job, and which of its needs is next.
        let mut path: Vec<(usize, usize)> = vec![(start, 0)];
        if states[start] != State::New {
            continue;
        }
        states[start] = State::Open;
        while let Some((at, next)) = path.last_mut() {
            let needs = &jobs[*at].needs;
            let Some(need) = needs.get(*next) else {
                states[*at] = State::Done;
                path.pop();
                continue;
            };
            *next += 1;
            let Some(to) = jobs.get_index_of(&need.value) else { continue };
            match states[to] {
                State::Done => {}
                State::New => {
                    states[to] = State::Open;
                    path.push((to, 0));
                }
                State::Open => {
                    let from = path.iter().position(|(at, _)| *at == to).unwrap_or(0);
                    let round = &path[from..];
                    let mut names: Vec<&str> = round.iter().map(|(at, _)| jobs[*at].id.as_str()).collect();
                    names.push(&need.value);
                    let places =
                        round.iter().take(MAX_NAMED).map(|(at, next)| jobs[*at].needs[next - 1].place);
                    found.push(Circle { places: places.collect(), path: names.join(" → ") });
                }
            }
        }
    }
    found
}

/// Whether a text can be the id of a job or step.
fn is_id(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

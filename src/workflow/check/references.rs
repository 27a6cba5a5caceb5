//! Names that must exist: steps, needed jobs, values of the matrix and inputs that expressions speak of.

use std::collections::{HashMap, HashSet};

use super::Problems;
use super::matrix;
use super::names::Names;
use crate::workflow::model::{Job, Workflow};
use crate::workflow::parse::did_you_mean;
use crate::workflow::template::{Placed, Template};
use crate::yaml::Place;

/// What a workflow declares that its expressions may speak of.
pub(super) struct Declared<'a> {
    inputs: Names,
    /// The outputs of the jobs of which they are known, by the job's id.
    outputs: HashMap<&'a str, Names>,
}

impl<'a> Declared<'a> {
    pub(super) fn of(workflow: &'a Workflow, outputs: HashMap<&'a str, Names>) -> Self {
        let inputs = ["workflow_dispatch", "workflow_call"]
            .into_iter()
            .filter_map(|event| workflow.on.events.get(event)?.filters.get("inputs")?.as_mapping())
            .flatten()
            .map(|(key, _)| key.text.as_str())
            .collect();
        Self { inputs, outputs }
    }
}

/// Notes an output that a job does not have, if its outputs are known.
pub(super) fn output(job: &Job, known: Option<&Names>, output: &str, place: Place, problems: &mut Problems) {
    let Some(known) = known.filter(|known| !known.has(output)) else { return };
    let whose = match &job.uses {
        Some(uses) => format!("'{}', which the job '{}' calls,", uses.value, job.id),
        None => format!("the job '{}'", job.id),
    };
    let message = format!("{whose} has no output '{output}'{}", known.hint(output));
    problems.error(place, "undefined-output", message);
}

pub(super) fn check(workflow: &Workflow, job: &Job, names: &Declared<'_>, problems: &mut Problems) {
    let ids =
        job.steps.iter().enumerate().filter_map(|(at, step)| Some((step.id.as_deref()?.to_lowercase(), at)));
    let steps: HashMap<String, usize> = ids.collect();
    let declared = job.strategy.as_ref().and_then(|strategy| strategy.matrix.as_ref());
    let matrix = declared.map_or_else(|| Some(HashSet::new()), matrix::properties);
    let needs = job.needs.iter().map(|need| need.value.as_str()).collect();
    let mut check = References {
        workflow,
        job,
        names,
        needs,
        steps: &steps,
        matrix: matrix.as_ref(),
        at: None,
        problems,
    };
    let job_texts = [&job.name, &job.timeout_minutes, &job.continue_on_error];
    job_texts.into_iter().flatten().chain(&job.runs_on.labels).for_each(|text| check.text(text));
    if let Some(condition) = &job.condition {
        condition.expressions().into_iter().for_each(|placed| check.expression(placed));
    }
    job.env.templates().for_each(|text| check.text(text));
    job.outputs.values().for_each(|text| check.text(text));
    job.with.iter().for_each(|(_, text)| check.text(text));
    if let Some(matrix) = job.strategy.as_ref().and_then(|strategy| strategy.matrix.as_ref()) {
        matrix.tree.templates().into_iter().for_each(|text| check.text(text));
    }
    for (at, step) in job.steps.iter().enumerate() {
        check.at = Some(at);
        step.each_expression(&mut |placed| check.expression(placed));
    }
}

/// What the contexts that are no mappings of the workflow's own names have.
const PROPERTIES: &[(&str, &[&str])] = &[
    (
        "github",
        &[
            "action",
            "action_path",
            "action_ref",
            "action_repository",
            "action_status",
            "actor",
            "actor_id",
            "api_url",
            "artifact_cache_size_limit",
            "base_ref",
            "env",
            "event",
            "event_name",
            "event_path",
            "graphql_url",
            "head_ref",
            "job",
            "job_workflow_sha",
            "path",
            "ref",
            "ref_name",
            "ref_protected",
            "ref_type",
            "repository",
            "repository_id",
            "repository_owner",
            "repository_owner_id",
            "repository_visibility",
            "repositoryUrl",
            "retention_days",
            "run_attempt",
            "run_id",
            "run_number",
            "secret_source",
            "server_url",
            "sha",
            "state",
            "step_summary",
            "output",
            "token",
            "triggering_actor",
            "workflow",
            "workflow_ref",
            "workflow_sha",
            "workspace",
        ],
    ),
    ("runner", &["name", "os", "arch", "temp", "tool_cache", "workspace", "environment", "debug"]),
    ("strategy", &["fail-fast", "job-index", "job-total", "max-parallel"]),
    ("job", &["status", "container", "services", "check_run_id"]),
];

struct References<'a> {
    workflow: &'a Workflow,
    job: &'a Job,
    names: &'a Declared<'a>,
    /// The jobs that it needs.
    needs: Names,
    /// The ids of the job's steps in lower case, and which step has it.
    steps: &'a HashMap<String, usize>,
    /// The names that `matrix` has, in lower case, if they are known.
    matrix: Option<&'a HashSet<String>>,
    /// The step that is looked at.
    at: Option<usize>,
    problems: &'a mut Problems,
}

impl References<'_> {
    fn text(&mut self, template: &Template) {
        template.expressions().for_each(|placed| self.expression(placed));
    }

    fn expression(&mut self, placed: &Placed) {
        for reference in placed.expression.references() {
            let Some(name) = reference.properties.first() else { continue };
            let place = placed.at(reference.position);
            match reference.name.as_str() {
                "steps" => self.step_of(name, &reference.properties, place),
                "needs" => self.need(name, &reference.properties, place),
                "matrix" => self.matrix_value(name, place),
                "inputs" => self.input(name, place),
                context => {
                    self.property(context, name, place);
                    self.event_input(context, &reference.properties, place);
                }
            }
        }
    }

    fn step_of(&mut self, name: &str, properties: &[String], place: Place) {
        match self.steps.get(&name.to_lowercase()) {
            Some(step) if self.at.is_some_and(|at| *step >= at) => {
                let message = format!("the step '{name}' has not run yet when this is computed");
                self.problems.warning(place, "later-step", message);
            }
            Some(_) => {}
            None if name.bytes().all(|byte| byte.is_ascii_digit()) => {}
            None => {
                let hint = did_you_mean(name, self.steps.keys().map(String::as_str));
                let message = format!("no step of the job '{}' has the id '{name}'{hint}", self.job.id);
                self.problems.error(place, "undefined-step", message);
                return;
            }
        }
        self.one_of(&format!("steps.{name}"), properties, &["outputs", "outcome", "conclusion"], place);
    }

    /// The second property has to be one of these.
    fn one_of(&mut self, owner: &str, properties: &[String], known: &[&str], place: Place) {
        let Some(property) = properties.get(1) else { return };
        if !known.iter().any(|known| known.eq_ignore_ascii_case(property)) {
            let hint = did_you_mean(property, known.iter().copied());
            let message = format!("'{owner}' has {} and no '{property}'{hint}", known.join(", "));
            self.problems.error(place, "undefined-property", message);
        }
    }

    fn matrix_value(&mut self, name: &str, place: Place) {
        let Some(known) = self.matrix else { return };
        if !known.contains(&name.to_lowercase()) {
            let id = &self.job.id;
            let message = if known.is_empty() {
                format!("'matrix.{name}': the job '{id}' has no matrix")
            } else {
                let hint = did_you_mean(name, known.iter().map(String::as_str));
                format!("the matrix of the job '{id}' has no '{name}'{hint}")
            };
            self.problems.error(place, "undefined-matrix", message);
        }
    }

    fn input(&mut self, name: &str, place: Place) {
        let known = &self.names.inputs;
        if known.has(name) {
            return;
        }
        let on = &self.workflow.on;
        let hint = known.hint(name);
        let message = format!("the workflow declares no input '{name}'{hint}");
        if on.events.contains_key("workflow_dispatch") || on.events.contains_key("workflow_call") {
            self.problems.error(place, "undefined-input", message);
        } else {
            self.problems.warning(place, "undefined-input", message);
        }
    }

    /// `github.event.inputs.NAME`, which has what `workflow_dispatch` declares.
    fn event_input(&mut self, context: &str, properties: &[String], place: Place) {
        let [event, inputs, name, ..] = properties else { return };
        let known = &self.names.inputs;
        if matches!(context, "github" | "gitea" | "forgejo")
            && event.eq_ignore_ascii_case("event")
            && inputs.eq_ignore_ascii_case("inputs")
            && self.workflow.on.has_event("workflow_dispatch")
            && !known.has(name)
        {
            let message = format!("the workflow declares no input '{name}'{}", known.hint(name));
            self.problems.warning(place, "undefined-input", message);
        }
    }

    /// Servers have more properties with every year: only what was probably meant to be a known one is told.
    fn property(&mut self, context: &str, name: &str, place: Place) {
        let context = if matches!(context, "gitea" | "forgejo") { "github" } else { context };
        let Some((_, known)) = PROPERTIES.iter().find(|(known, _)| *known == context) else { return };
        if known.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            return;
        }
        let hint = did_you_mean(name, known.iter().copied());
        if !hint.is_empty() {
            self.problems.warning(place, "undefined-property", format!("'{context}' has no '{name}'{hint}"));
        }
    }

    fn need(&mut self, name: &str, properties: &[String], place: Place) {
        let Some(needed) = self.needs.written(name).map(str::to_owned) else {
            let hint = self.needs.hint(name);
            let message = format!("the job '{}' does not need a job '{name}'{hint}", self.job.id);
            self.problems.error(place, "undefined-needs", message);
            return;
        };
        self.one_of(&format!("needs.{name}"), properties, &["outputs", "result"], place);
        let Some(job) = self.workflow.jobs.get(&needed) else { return };
        if let [_, kind, output, ..] = properties
            && kind.eq_ignore_ascii_case("outputs")
        {
            self::output(job, self.names.outputs.get(job.id.as_str()), output, place, self.problems);
        }
    }
}

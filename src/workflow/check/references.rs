//! Names that must exist: steps and needed jobs that expressions speak of.

use std::collections::HashSet;

use super::Problems;
use crate::workflow::model::{Env, Job, Step, StepKind, Workflow};
use crate::workflow::parse::did_you_mean;
use crate::workflow::template::{Placed, Template};

pub(super) fn check(workflow: &Workflow, job: &Job, problems: &mut Problems) {
    let all: HashSet<String> =
        job.steps.iter().filter_map(|step| step.id.as_deref()).map(str::to_lowercase).collect();
    let mut check = References { workflow, job, all: &all, problems };
    let job_texts = [&job.name, &job.timeout_minutes, &job.continue_on_error];
    job_texts.into_iter().flatten().chain(&job.runs_on.labels).for_each(|text| check.text(text));
    if let Some(condition) = &job.condition {
        condition.expressions().into_iter().for_each(|placed| check.expression(placed));
    }
    check.env(&job.env);
    job.outputs.values().for_each(|text| check.text(text));
    job.with.iter().for_each(|(_, text)| check.text(text));
    if let Some(matrix) = job.strategy.as_ref().and_then(|strategy| strategy.matrix.as_ref()) {
        matrix.tree.templates().into_iter().for_each(|text| check.text(text));
    }
    for step in &job.steps {
        check.step(step);
    }
}

struct References<'a> {
    workflow: &'a Workflow,
    job: &'a Job,
    /// The ids of the job's steps, in lower case.
    all: &'a HashSet<String>,
    problems: &'a mut Problems,
}

impl References<'_> {
    fn step(&mut self, step: &Step) {
        let texts = [&step.name, &step.continue_on_error, &step.timeout_minutes];
        texts.into_iter().flatten().for_each(|text| self.text(text));
        if let Some(condition) = &step.condition {
            condition.expressions().into_iter().for_each(|placed| self.expression(placed));
        }
        self.env(&step.env);
        match &step.kind {
            StepKind::Run { script, shell, working_directory } => {
                self.text(script);
                [shell, working_directory].into_iter().flatten().for_each(|text| self.text(text));
            }
            StepKind::Uses { action, with } => {
                self.text(action);
                with.iter().for_each(|(_, text)| self.text(text));
            }
        }
    }

    fn env(&mut self, env: &Env) {
        match env {
            Env::Map(entries) => entries.iter().for_each(|(_, text)| self.text(text)),
            Env::Expression(text) => self.text(text),
        }
    }

    fn text(&mut self, template: &Template) {
        template.expressions().for_each(|placed| self.expression(placed));
    }

    fn expression(&mut self, placed: &Placed) {
        for reference in placed.expression.references() {
            let Some(name) = reference.properties.first() else { continue };
            let place = placed.at(reference.position);
            match reference.name.as_str() {
                "steps" => {
                    let known = self.all.contains(&name.to_lowercase())
                        || name.bytes().all(|byte| byte.is_ascii_digit());
                    if !known {
                        let hint = did_you_mean(name, self.all.iter().map(String::as_str));
                        let message =
                            format!("no step of the job '{}' has the id '{name}'{hint}", self.job.id);
                        self.problems.error(place, "undefined-step", message);
                    }
                }
                "needs" => self.need(name, &reference.properties, place),
                _ => {}
            }
        }
    }

    fn need(&mut self, name: &str, properties: &[String], place: crate::yaml::Place) {
        let needed = self.job.needs.iter().find(|need| need.value.eq_ignore_ascii_case(name));
        let Some(needed) = needed else {
            let hint = did_you_mean(name, self.job.needs.iter().map(|need| need.value.as_str()));
            let message = format!("the job '{}' does not need a job '{name}'{hint}", self.job.id);
            self.problems.error(place, "undefined-needs", message);
            return;
        };
        let Some(job) = self.workflow.jobs.get(&needed.value) else { return };
        if let [_, kind, output, ..] = properties
            && kind.eq_ignore_ascii_case("outputs")
            && job.uses.is_none()
            && !job.outputs.keys().any(|known| known.eq_ignore_ascii_case(output))
        {
            let hint = did_you_mean(output, job.outputs.keys().map(String::as_str));
            let message = format!("the job '{}' has no output '{output}'{hint}", job.id);
            self.problems.error(place, "undefined-output", message);
        }
    }
}

//! What `sower check` finds beyond what keeps a workflow from being read.

mod action;
mod availability;
mod called;
mod cron;
mod declared;
mod events;
mod injection;
mod labels;
mod local;
mod matrix;
mod names;
mod patterns;
mod references;
mod shapes;
mod steps;

use std::collections::HashMap;

use super::diagnostic::{Diagnostic, Severity};
use super::model::{Env, Job, JobSecrets, Workflow};
use super::parse::{self, Problems, STRICT_RULES};
use super::template::{Condition, Template};
use crate::yaml::{Kind, Node, Place};
use availability::Where;
use local::Local;
pub use local::ReadFile;
use names::Names;

/// Everything that is wrong with a workflow file, errors and warnings, in the order of its lines.
///
/// Stricter than [`super::parse_workflow`], which also has to run what a server sends.
#[must_use]
pub fn check_workflow(text: &[u8], file: &str) -> Vec<Diagnostic> {
    check_workflow_in(text, file, Around::default())
}

/// What is known around a file that is checked.
#[derive(Clone, Copy, Default)]
pub struct Around<'a> {
    /// The labels of the runners that are to run it: those that no runner has are errors too.
    pub served: Option<&'a [String]>,
    /// Other files of its repository: what they declare, its calls are compared with.
    pub read: Option<ReadFile<'a>>,
}

/// As [`check_workflow`], with what is around it.
#[must_use]
pub fn check_workflow_in(text: &[u8], file: &str, around: Around<'_>) -> Vec<Diagnostic> {
    let (workflow, mut problems) = parse::read_workflow(text, file);
    if let Some(workflow) = &workflow {
        events::check(&workflow.on, &mut problems);
        shapes::check(workflow, &mut problems);
        let mut local = Local::new(around.read);
        let outputs: HashMap<&str, Names> = workflow
            .jobs
            .values()
            .filter_map(|job| Some((job.id.as_str(), called::outputs(job, &mut local)?)))
            .collect();
        declared::check(workflow, &outputs, &mut problems);
        if let Some(served) = around.served {
            labels::check(workflow, served, &mut problems);
        }
        let names = references::Declared::of(workflow, outputs);
        Check { workflow, names, local, problems: &mut problems }.workflow();
    }
    strict(problems.into_found())
}

/// Everything that is wrong with an `action.yml`, in the order of its lines.
#[must_use]
pub fn check_action(text: &[u8], file: &str) -> Vec<Diagnostic> {
    check_action_in(text, file, Around::default())
}

/// As [`check_action`], with what is around it.
#[must_use]
pub fn check_action_in(text: &[u8], file: &str, around: Around<'_>) -> Vec<Diagnostic> {
    let (action, mut problems) = parse::read_action(text, file);
    if let Some(action) = &action {
        action::check(action, &mut Local::new(around.read), &mut problems);
    }
    strict(problems.into_found())
}

fn strict(mut found: Vec<Diagnostic>) -> Vec<Diagnostic> {
    for diagnostic in &mut found {
        if STRICT_RULES.contains(&diagnostic.rule) {
            diagnostic.severity = Severity::Error;
        }
    }
    found.sort_by_key(|diagnostic| diagnostic.place);
    found.dedup();
    // What an anchor holds is wrong once, however often it is used.
    let mut here = (Place::START, 0);
    found.retain(|diagnostic| {
        here = if diagnostic.place == here.0 { (here.0, here.1 + 1) } else { (diagnostic.place, 1) };
        here.1 <= MAX_AT_ONE_PLACE
    });
    found
}

/// How many findings of one place are told.
const MAX_AT_ONE_PLACE: usize = 4;

struct Check<'a> {
    workflow: &'a Workflow,
    names: references::Declared<'a>,
    local: Local<'a>,
    problems: &'a mut Problems,
}

impl Check<'_> {
    fn workflow(&mut self) {
        let workflow = self.workflow;
        self.texts([&workflow.name], Where::Nowhere);
        self.texts([&workflow.run_name], Where::RunName);
        self.env(&workflow.env, Where::WorkflowEnv, "the whole workflow");
        self.texts([&workflow.defaults.shell, &workflow.defaults.working_directory], Where::Defaults);
        self.raw(workflow.concurrency.as_ref(), Where::RunName);
        steps::check_shell(workflow.defaults.shell.as_ref(), self.problems);
        for job in workflow.jobs.values() {
            self.job(job);
        }
    }

    fn job(&mut self, job: &Job) {
        let own = Where::Job;
        self.texts([&job.name, &job.timeout_minutes, &job.continue_on_error, &job.runs_on.group], own);
        job.runs_on.labels.iter().for_each(|template| self.text(template, own));
        if let Some(condition) = &job.condition {
            self.condition(condition, Where::JobIf);
        }
        self.env(&job.env, Where::JobEnv, &format!("the whole job '{}'", job.id));
        self.texts([&job.defaults.shell, &job.defaults.working_directory], Where::Defaults);
        steps::check_shell(job.defaults.shell.as_ref(), self.problems);
        job.outputs.values().for_each(|template| self.text(template, Where::Outputs));
        if let Some(strategy) = &job.strategy {
            self.texts([&strategy.fail_fast, &strategy.max_parallel], Where::Strategy);
            if let Some(matrix) = &strategy.matrix {
                matrix::check(matrix, self.problems);
                matrix.tree.templates().into_iter().for_each(|template| self.text(template, Where::Strategy));
            }
        }
        self.raw(job.concurrency.as_ref(), own);
        self.container(job.container.as_ref());
        for (_, service) in job.services.as_ref().and_then(Node::as_mapping).unwrap_or_default() {
            self.container(Some(service));
        }
        self.raw(job.services.as_ref().filter(|node| node.as_mapping().is_none()), own);
        match job.environment.as_ref().map(|node| &node.kind) {
            Some(Kind::Mapping(entries)) => {
                for (key, node) in entries {
                    self.raw(Some(node), if key.text == "url" { Where::EnvironmentUrl } else { own });
                }
            }
            _ => self.raw(job.environment.as_ref(), own),
        }
        job.with.iter().for_each(|(_, template)| self.text(template, own));
        if let JobSecrets::Map(entries) = &job.secrets {
            entries.iter().for_each(|(_, template)| self.text(template, Where::CallSecrets));
        }
        if let Some(uses) = &job.uses {
            steps::check_called_workflow(uses, self.problems);
            called::workflow(job, &mut self.local, self.problems);
        }
        steps::check(&job.steps, Where::Step, self.problems);
        called::actions(&job.steps, &mut self.local, self.problems);
        references::check(self.workflow, job, &self.names, self.problems);
    }

    fn texts<const N: usize>(&mut self, templates: [&Option<Template>; N], at: Where) {
        templates.into_iter().flatten().for_each(|template| self.text(template, at));
    }

    fn text(&mut self, template: &Template, at: Where) {
        availability::length(template, self.problems);
        availability::check(template.expressions(), at, self.problems);
    }

    fn condition(&mut self, condition: &Condition, at: Where) {
        availability::check(condition.expressions().into_iter(), at, self.problems);
    }

    fn env(&mut self, env: &Env, at: Where, scope: &str) {
        match env {
            Env::Expression(template) => self.text(template, at),
            Env::Map(entries) => {
                for (name, template) in entries {
                    if name == "GHCRTS" {
                        self.problems.warning(
                            template.place,
                            "ghcrts",
                            format!(
                                "'GHCRTS' for {scope} reaches every Haskell program in it, and those that are \
                                 linked without -rtsopts refuse to start; set it where GHC runs, or use \
                                 sower/ghc-caps@v1"
                            ),
                        );
                    }
                    self.text(template, at);
                }
            }
        }
    }

    fn container(&mut self, node: Option<&Node>) {
        let Some(Kind::Mapping(entries)) = node.map(|node| &node.kind) else {
            return self.raw(node, Where::Job);
        };
        for (key, node) in entries {
            let at = match key.text.as_str() {
                "env" => Where::ContainerEnv,
                "credentials" => Where::Credentials,
                _ => Where::Job,
            };
            self.raw(Some(node), at);
        }
    }

    fn raw(&mut self, node: Option<&Node>, at: Where) {
        let mut open: Vec<&Node> = node.into_iter().collect();
        while let Some(node) = open.pop() {
            match &node.kind {
                // What cannot be read has been reported already.
                Kind::String(_) => {
                    if let Ok(template) = Template::from_node(node) {
                        self.text(&template, at);
                    }
                }
                Kind::Sequence(items) => open.extend(items),
                Kind::Mapping(entries) => open.extend(entries.iter().map(|(_, value)| value)),
                _ => {}
            }
        }
    }
}

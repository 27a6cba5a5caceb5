//! What is handed to a workflow or an action of the same repository, against what it declares.

use std::collections::{HashMap, HashSet};

use super::Problems;
use super::local::Local;
use super::names::Names;
use crate::workflow::model::{DispatchInput, InputType, Job, JobSecrets, Spanned, Step, StepKind, Workflow};
use crate::workflow::parse::did_you_mean;
use crate::workflow::template::Template;

/// Notes what a job hands to a workflow that does not take it, and what it should hand to it.
pub(super) fn workflow(job: &Job, local: &mut Local<'_>, problems: &mut Problems) {
    let Some(uses) = &job.uses else { return };
    let Some(called) = local.workflow(&uses.value) else { return };
    if !called.on.has_event("workflow_call") {
        let message =
            format!("'{}' cannot be called: there is no 'workflow_call' under its 'on'", uses.value);
        problems.error(uses.place, "call", message);
        return;
    }
    let mut way = Vec::new();
    if comes_back(&uses.value, local, &mut way, &mut HashSet::new()) {
        let way = way.join("' calls '");
        problems.error(uses.place, "call", format!("this never ends: '{way}'"));
        return;
    }
    inputs(job, uses, &called, problems);
    secrets(job, uses, &called, problems);
}

/// Whether calls that begin here lead to a workflow that is under way already; `way` ends with it then. A workflow of
/// which that is known not to be so is in `done`.
fn comes_back(uses: &str, local: &mut Local<'_>, way: &mut Vec<String>, done: &mut HashSet<String>) -> bool {
    let is_under_way = way.iter().any(|before| before == uses);
    way.push(uses.to_owned());
    if is_under_way {
        return true;
    }
    let called = local.workflow(uses).filter(|_| done.insert(uses.to_owned()));
    let next = called.iter().flat_map(|called| called.jobs.values()).filter_map(|job| job.uses.as_ref());
    for next in next {
        if comes_back(&next.value, local, way, done) {
            return true;
        }
    }
    way.pop();
    false
}

fn inputs(job: &Job, uses: &Spanned<String>, called: &Workflow, problems: &mut Problems) {
    let declared = called.on.call_inputs();
    let known: HashMap<String, &DispatchInput> =
        declared.iter().map(|input| (input.name.to_lowercase(), input)).collect();
    for (name, template) in &job.with {
        let Some(input) = known.get(&name.to_lowercase()) else {
            let hint = did_you_mean(name, declared.iter().map(|input| input.name.as_str()));
            let message = format!("'{}' has no input '{name}'{hint}", uses.value);
            problems.error(template.place, "call", message);
            continue;
        };
        if let Some(wanted) = wrong_type(input, template) {
            let text = template.source();
            let message = format!("the input '{name}' of '{}' takes {wanted}, not '{text}'", uses.value);
            problems.error(template.place, "call", message);
        }
    }
    let given = names(&job.with);
    for input in declared.iter().filter(|input| input.required && input.default.is_none()) {
        if !given.has(&input.name) {
            let message = format!("'{}' needs the input '{}', and 'with' has none", uses.value, input.name);
            problems.error(uses.place, "call", message);
        }
    }
}

fn names(pairs: &[(String, Template)]) -> Names {
    pairs.iter().map(|(name, _)| name.as_str()).collect()
}

/// What an input takes, if a value that is written out is no such thing.
fn wrong_type(input: &DispatchInput, template: &Template) -> Option<&'static str> {
    let value = template.literal_value()?;
    let text = value.text();
    let (fits, wanted) = match input.kind {
        InputType::Boolean => (matches!(text.trim(), "true" | "false" | ""), "true or false"),
        InputType::Number => {
            (value.to_number().is_finite() && !matches!(&*text, "true" | "false"), "a number")
        }
        InputType::String | InputType::Choice | InputType::Environment => (true, "text"),
    };
    (!fits).then_some(wanted)
}

fn secrets(job: &Job, uses: &Spanned<String>, called: &Workflow, problems: &mut Problems) {
    let declared = called.on.call_secrets();
    let given: &[(String, Template)] = match &job.secrets {
        JobSecrets::Inherit => return,
        JobSecrets::None => &[],
        JobSecrets::Map(entries) => entries,
    };
    let known: Names = declared.iter().map(|(name, _)| name.as_str()).collect();
    for (name, template) in given {
        if !known.has(name) {
            let hint = known.hint(name);
            // GitHub refuses it, Gitea hands it on.
            let message = format!("'{}' has no secret '{name}'{hint}", uses.value);
            problems.warning(template.place, "call", message);
        }
    }
    let given = names(given);
    for (name, _) in declared.iter().filter(|(_, required)| *required) {
        if !given.has(name) {
            let message = format!(
                "'{}' needs the secret '{name}': give it under 'secrets', or inherit all",
                uses.value
            );
            problems.error(uses.place, "call", message);
        }
    }
}

/// Notes what steps hand to actions that do not take it. GitHub warns of it too when the step runs.
pub(super) fn actions(steps: &[Step], local: &mut Local<'_>, problems: &mut Problems) {
    for step in steps {
        let StepKind::Uses { action: uses, with } = &step.kind else { continue };
        if !uses.is_literal() {
            continue;
        }
        let Some(action) = local.action(uses.source()) else { continue };
        let known: Names = action.inputs.iter().map(|input| input.name.as_str()).collect();
        for (name, template) in with {
            // What a container of a Dockerfile is given goes by other names.
            let own = matches!(name.as_str(), "args" | "entrypoint");
            if !own && !known.has(name) {
                let hint = known.hint(name);
                let message = format!("the action '{}' has no input '{name}'{hint}", uses.source());
                problems.warning(template.place, "action-input", message);
            }
        }
        let given = names(with);
        for input in action.inputs.iter().filter(|input| input.required && input.default.is_none()) {
            if !given.has(&input.name) {
                let message = format!(
                    "the action '{}' needs the input '{}', and 'with' has none",
                    uses.source(),
                    input.name
                );
                problems.warning(uses.place, "action-input", message);
            }
        }
    }
}

/// The outputs of a job, if they are known: its own, or those of the workflow that it calls.
pub(super) fn outputs(job: &Job, local: &mut Local<'_>) -> Option<Names> {
    let Some(uses) = &job.uses else { return Some(job.outputs.keys().map(String::as_str).collect()) };
    let called = local.workflow(&uses.value).filter(|called| called.on.has_event("workflow_call"))?;
    let outputs = called.on.call_outputs();
    Some(outputs.iter().map(|(name, _)| name.as_str()).collect())
}

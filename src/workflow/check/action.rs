//! What `sower check` finds in an `action.yml` beyond what keeps it from being read.

use std::collections::HashMap;

use super::Problems;
use super::availability::{self, Where};
use super::local::Local;
use super::names::Names;
use super::{called, steps};
use crate::workflow::action::{Action, Runs};
use crate::workflow::model::StepKind;
use crate::workflow::parse::did_you_mean;
use crate::workflow::template::{Placed, Template};

pub(super) fn check(action: &Action, local: &mut Local<'_>, problems: &mut Problems) {
    for default in action.inputs.iter().filter_map(|input| input.default.as_ref()) {
        availability::length(default, problems);
        availability::check(default.expressions(), Where::InputDefault, problems);
    }
    let Runs::Composite { steps } = &action.runs else { return };
    steps::check(steps, Where::Composite, problems);
    called::actions(steps, local, problems);
    let ids =
        steps.iter().enumerate().filter_map(|(at, step)| Some((step.id.as_deref()?.to_lowercase(), at)));
    let inputs = action.inputs.iter().map(|input| input.name.as_str()).collect();
    let mut names = References { inputs, steps: ids.collect(), at: None, problems };
    for (at, step) in steps.iter().enumerate() {
        names.at = Some(at);
        step.each_expression(&mut |placed| names.expression(placed));
        if let StepKind::Run { script, shell: None, .. } = &step.kind {
            let message = "this step of an action has no 'shell', and GitHub refuses the action without it";
            names.problems.warning(script.place, "shell", message);
        }
    }
    names.at = None;
    for value in action.outputs.iter().filter_map(|(_, value)| value.as_ref()) {
        availability::length(value, names.problems);
        availability::check(value.expressions(), Where::Composite, names.problems);
        names.text(value);
    }
}

/// Names that must exist: the action's inputs and the steps in it.
struct References<'a> {
    inputs: Names,
    /// The ids of the steps in lower case, and which step has it.
    steps: HashMap<String, usize>,
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
                "inputs" if !self.inputs.has(name) => {
                    let hint = self.inputs.hint(name);
                    let message = format!("the action has no input '{name}'{hint}");
                    self.problems.error(place, "undefined-input", message);
                }
                "steps" => match self.steps.get(&name.to_lowercase()) {
                    Some(step) if self.at.is_some_and(|at| *step >= at) => {
                        let message = format!("the step '{name}' has not run yet when this is computed");
                        self.problems.warning(place, "later-step", message);
                    }
                    Some(_) => {}
                    None if name.bytes().all(|byte| byte.is_ascii_digit()) => {}
                    None => {
                        let hint = did_you_mean(name, self.steps.keys().map(String::as_str));
                        let message = format!("no step of the action has the id '{name}'{hint}");
                        self.problems.error(place, "undefined-step", message);
                    }
                },
                _ => {}
            }
        }
    }
}

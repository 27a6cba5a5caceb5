//! `runs-on` against the labels that a runner has.

use super::Problems;
use crate::workflow::expression::{Object, Scope, Status, Value};
use crate::workflow::model::Workflow;
use crate::workflow::parse::did_you_mean;
use crate::yaml::Place;

/// What is known of a job before any event: its matrix.
struct Known {
    matrix: Option<Value>,
}

impl Scope for Known {
    fn named(&self, name: &str) -> Option<Value> {
        (name == "matrix").then(|| self.matrix.clone()).flatten()
    }

    fn status(&self) -> Status {
        Status::Success
    }

    fn hash_files(&self, _: &[String]) -> Result<String, String> {
        Ok(String::new())
    }
}

/// Notes every label that is written out, or stands in a matrix, and that no runner has.
pub(super) fn check(workflow: &Workflow, served: &[String], problems: &mut Problems) {
    for job in workflow.jobs.values().filter(|job| job.uses.is_none()) {
        for template in &job.runs_on.labels {
            let mut labels: Vec<(Place, String)> = Vec::new();
            if template.is_literal() {
                labels.push((template.place, template.source().trim().to_owned()));
            } else {
                let only_matrix = template.expressions().all(|placed| {
                    placed.expression.references().iter().all(|reference| reference.name == "matrix")
                });
                let literal =
                    job.strategy.as_ref().and_then(|strategy| strategy.matrix.as_ref()).filter(|matrix| {
                        matrix.tree.templates().iter().all(|template| template.is_literal())
                    });
                let Some(matrix) = literal.filter(|_| only_matrix) else { continue };
                let Ok(combinations) = matrix.combinations(&Known { matrix: None }) else { continue };
                for combination in combinations {
                    let scope = Known { matrix: Some(Object::clone(&combination).into()) };
                    let values = match template.value(&scope) {
                        Ok(Value::Array(items)) => items.to_vec(),
                        Ok(value) => vec![value],
                        Err(_) => continue,
                    };
                    labels.extend(
                        values
                            .iter()
                            .filter(|value| value.is_primitive())
                            .map(|value| (template.place, value.to_text())),
                    );
                }
            }
            labels.sort();
            labels.dedup();
            for (place, label) in labels {
                if !label.is_empty() && !served.iter().any(|known| known.eq_ignore_ascii_case(&label)) {
                    let hint = did_you_mean(&label, served.iter().map(String::as_str));
                    let message = format!(
                        "no runner here has the label '{label}'{hint} (labels: {}); the job '{}' would wait for ever",
                        served.join(", "),
                        job.id
                    );
                    problems.error(place, "label", message);
                }
            }
        }
    }
}

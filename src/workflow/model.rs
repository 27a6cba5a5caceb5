//! The typed model of a workflow: what its file says, with positions, before anything is evaluated.

use std::collections::HashSet;

use indexmap::IndexMap;

use super::expression::{Object, Scope, Value};
use super::matrix::{Matrix, is_insert};
use super::template::{Condition, EvaluationError, Placed, Template};
use crate::yaml::{Key, Node, Place};

/// A value and where it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spanned<T> {
    /// Where it begins.
    pub place: Place,
    /// The value.
    pub value: T,
}

impl<T> Spanned<T> {
    /// A value at a place.
    pub const fn new(place: Place, value: T) -> Self {
        Self { place, value }
    }
}

/// A workflow file.
#[derive(Debug, Clone)]
pub struct Workflow {
    /// `name`.
    pub name: Option<Template>,
    /// `run-name`.
    pub run_name: Option<Template>,
    /// `on`.
    pub on: Triggers,
    /// `env` of the workflow.
    pub env: Env,
    /// `defaults.run` of the workflow.
    pub defaults: Defaults,
    /// `permissions` as written.
    pub permissions: Option<Node>,
    /// `concurrency` as written.
    pub concurrency: Option<Node>,
    /// The jobs in the order of the file, by id.
    pub jobs: IndexMap<String, Job>,
}

/// `jobs.ID`.
#[derive(Debug, Clone)]
pub struct Job {
    /// The key of the job.
    pub id: String,
    /// Where the key is.
    pub place: Place,
    /// `name`.
    pub name: Option<Template>,
    /// `needs`, always as a list.
    pub needs: Vec<Spanned<String>>,
    /// `runs-on`.
    pub runs_on: RunsOn,
    /// `if`; `None` means [`Condition::success`].
    pub condition: Option<Condition>,
    /// `env` of the job.
    pub env: Env,
    /// `defaults.run` of the job.
    pub defaults: Defaults,
    /// `outputs`.
    pub outputs: IndexMap<String, Template>,
    /// `strategy`.
    pub strategy: Option<Strategy>,
    /// The steps; empty for a job that calls a workflow.
    pub steps: Vec<Step>,
    /// `timeout-minutes`.
    pub timeout_minutes: Option<Template>,
    /// `continue-on-error`.
    pub continue_on_error: Option<Template>,
    /// `container` as written.
    pub container: Option<Node>,
    /// `services` as written.
    pub services: Option<Node>,
    /// `permissions` as written.
    pub permissions: Option<Node>,
    /// `concurrency` as written.
    pub concurrency: Option<Node>,
    /// `environment` as written.
    pub environment: Option<Node>,
    /// `snapshot` as written.
    pub snapshot: Option<Node>,
    /// `uses`: the workflow to call.
    pub uses: Option<Spanned<String>>,
    /// `with`: inputs of the called workflow.
    pub with: Vec<(String, Template)>,
    /// `secrets` for the called workflow.
    pub secrets: JobSecrets,
}

impl Workflow {
    /// The ids of the jobs, none before what it needs. (The parser has refused circles.)
    #[must_use]
    pub fn order(&self) -> Vec<String> {
        self.order_of(self.jobs.keys().map(String::as_str))
    }

    /// These jobs and all that they need, none before what it needs.
    pub fn order_of<'a>(&'a self, wanted: impl DoubleEndedIterator<Item = &'a str>) -> Vec<String> {
        let mut order: Vec<String> = Vec::new();
        let mut seen = HashSet::new();
        let mut stack: Vec<(&str, bool)> = wanted.rev().map(|id| (id, false)).collect();
        while let Some((id, ready)) = stack.pop() {
            if ready {
                order.push(id.to_owned());
            } else if let Some(job) = self.jobs.get(id)
                && seen.insert(id)
            {
                stack.push((id, true));
                stack.extend(job.needs.iter().rev().map(|need| (need.value.as_str(), false)));
            }
        }
        order
    }
}

impl Job {
    /// The combinations of its matrix; one empty object for a job without a matrix.
    ///
    /// # Errors
    /// As [`Matrix::combinations`].
    pub fn combinations(&self, scope: &dyn Scope) -> Result<Vec<Object>, EvaluationError> {
        match self.strategy.as_ref().and_then(|strategy| strategy.matrix.as_ref()) {
            Some(matrix) => matrix.combinations(scope),
            None => Ok(vec![Object::new()]),
        }
    }

    /// The `strategy` context of one of `total` combinations.
    ///
    /// # Errors
    /// When `fail-fast` or `max-parallel` cannot be computed, with its place.
    pub fn strategy_values(
        &self,
        scope: &dyn Scope,
        index: usize,
        total: usize,
    ) -> Result<serde_json::Map<String, serde_json::Value>, EvaluationError> {
        let declared = self.strategy.as_ref();
        let fail_fast = match declared.and_then(|strategy| strategy.fail_fast.as_ref()) {
            // A server writes its values as text.
            Some(template) => template.value(scope)?.text() != "false",
            None => true,
        };
        let max_parallel = match declared.and_then(|strategy| strategy.max_parallel.as_ref()) {
            Some(template) => Some(template.value(scope)?.to_number()),
            None => None,
        };
        let max_parallel = max_parallel.filter(|number| number.is_finite() && *number >= 1.0);
        let max_parallel =
            max_parallel.map_or_else(|| total.into(), |number| Value::Number(number.floor()).to_json());
        Ok([
            ("fail-fast", fail_fast.into()),
            ("job-index", index.into()),
            ("job-total", total.into()),
            ("max-parallel", max_parallel),
        ]
        .into_iter()
        .map(|(name, value): (&str, serde_json::Value)| (name.to_owned(), value))
        .collect())
    }
}

/// `jobs.ID.secrets`.
#[derive(Debug, Clone, Default)]
pub enum JobSecrets {
    /// Not given.
    #[default]
    None,
    /// `inherit`.
    Inherit,
    /// By name.
    Map(Vec<(String, Template)>),
}

/// A step of a job or of a composite action.
#[derive(Debug, Clone)]
pub struct Step {
    /// Where the step begins.
    pub place: Place,
    /// `id`.
    pub id: Option<String>,
    /// Where the id is; where the step begins if it has none.
    pub id_place: Place,
    /// `name`.
    pub name: Option<Template>,
    /// `if`; `None` means [`Condition::success`].
    pub condition: Option<Condition>,
    /// `env` of the step.
    pub env: Env,
    /// `continue-on-error`.
    pub continue_on_error: Option<Template>,
    /// `timeout-minutes`.
    pub timeout_minutes: Option<Template>,
    /// What it does.
    pub kind: StepKind,
}

impl Step {
    /// Shows every expression in it.
    pub(super) fn each_expression(&self, see: &mut dyn FnMut(&Placed)) {
        let mut text = |template: &Template| template.expressions().for_each(&mut *see);
        [&self.name, &self.continue_on_error, &self.timeout_minutes]
            .into_iter()
            .flatten()
            .for_each(&mut text);
        if let Some(condition) = &self.condition {
            condition.expressions().into_iter().for_each(&mut *see);
        }
        let mut text = |template: &Template| template.expressions().for_each(&mut *see);
        self.env.templates().for_each(&mut text);
        match &self.kind {
            StepKind::Run { script, shell, working_directory } => {
                text(script);
                [shell, working_directory].into_iter().flatten().for_each(text);
            }
            StepKind::Uses { action, with } => {
                text(action);
                with.iter().for_each(|(_, value)| text(value));
            }
        }
    }
}

/// What a step does.
#[derive(Debug, Clone)]
pub enum StepKind {
    /// `run`: a script.
    Run {
        /// The script.
        script: Template,
        /// `shell`.
        shell: Option<Template>,
        /// `working-directory`.
        working_directory: Option<Template>,
    },
    /// `uses`: an action.
    Uses {
        /// The action; Gitea evaluates expressions in it.
        action: Template,
        /// `with`, in order.
        with: Vec<(String, Template)>,
    },
}

/// `env` at any level.
#[derive(Debug, Clone)]
pub enum Env {
    /// Names and values in order.
    Map(Vec<(String, Template)>),
    /// One expression whose value is an object.
    Expression(Template),
}

impl Default for Env {
    fn default() -> Self {
        Self::Map(Vec::new())
    }
}

impl Env {
    /// What its values are made of.
    pub(super) fn templates(&self) -> impl Iterator<Item = &Template> {
        let (entries, whole) = match self {
            Self::Map(entries) => (entries.as_slice(), None),
            Self::Expression(whole) => (&[][..], Some(whole)),
        };
        entries.iter().map(|(_, text)| text).chain(whole)
    }

    /// True if it sets nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Map(entries) if entries.is_empty())
    }

    /// Names and values, computed in order. Values see the scope only, not one another.
    ///
    /// # Errors
    /// A value that cannot be computed, or an expression whose value is no object, with its place.
    pub fn render(&self, scope: &dyn Scope) -> Result<Vec<(String, String)>, EvaluationError> {
        match self {
            Self::Map(entries) => {
                let mut rendered = Vec::with_capacity(entries.len());
                for (name, template) in entries {
                    if is_insert(name) {
                        rendered.extend(Self::spread(template, scope)?);
                    } else {
                        rendered.push((name.clone(), template.render(scope)?));
                    }
                }
                Ok(rendered)
            }
            Self::Expression(template) => Self::spread(template, scope),
        }
    }

    fn spread(template: &Template, scope: &dyn Scope) -> Result<Vec<(String, String)>, EvaluationError> {
        match template.value(scope)? {
            Value::Null => Ok(Vec::new()),
            Value::Object(object) => {
                Ok(object.iter().map(|(name, value)| (name.to_owned(), value.to_text())).collect())
            }
            other => Err(EvaluationError::new(
                template.place,
                format!("'env' must be an object of names and values, not a {}", other.kind_name()),
            )),
        }
    }
}

/// `defaults.run`.
#[derive(Debug, Clone, Default)]
pub struct Defaults {
    /// `shell`.
    pub shell: Option<Template>,
    /// `working-directory`.
    pub working_directory: Option<Template>,
}

/// `strategy`.
#[derive(Debug, Clone, Default)]
pub struct Strategy {
    /// `matrix`.
    pub matrix: Option<Matrix>,
    /// `fail-fast` (default true).
    pub fail_fast: Option<Template>,
    /// `max-parallel`.
    pub max_parallel: Option<Template>,
}

/// `runs-on`.
#[derive(Debug, Clone, Default)]
pub struct RunsOn {
    /// Where the value is.
    pub place: Option<Place>,
    /// The labels, each of which may be an expression (whose value may be a list).
    pub labels: Vec<Template>,
    /// `group`.
    pub group: Option<Template>,
}

impl RunsOn {
    /// The labels, computed: strings, lists and expressions that give either; empty if there is none.
    ///
    /// # Errors
    /// A label that cannot be computed or is no text, with its place.
    pub fn labels(&self, scope: &dyn Scope) -> Result<Vec<String>, EvaluationError> {
        let mut labels = Vec::new();
        for template in &self.labels {
            let values = match template.value(scope)? {
                Value::Array(items) => items.to_vec(),
                value => vec![value],
            };
            for value in values {
                if !value.is_primitive() {
                    let message = format!("a label of 'runs-on' must be text, not an {}", value.kind_name());
                    return Err(EvaluationError::new(template.place, message));
                }
                let label = value.text().trim().to_owned();
                if !label.is_empty() {
                    labels.push(label);
                }
            }
        }
        Ok(labels)
    }
}

/// `on`: the events that start the workflow.
#[derive(Debug, Clone, Default)]
pub struct Triggers {
    /// Events by name, in order.
    pub events: IndexMap<String, Trigger>,
}

/// One event under `on`.
#[derive(Debug, Clone)]
pub struct Trigger {
    /// Where the event is named.
    pub place: Place,
    /// Filters, types, inputs as written; null if there are none.
    pub filters: Node,
}

/// An input that `workflow_dispatch` or `workflow_call` declares.
#[derive(Debug, Clone)]
pub struct DispatchInput {
    /// Where its name is.
    pub place: Place,
    /// The name.
    pub name: String,
    /// `description`.
    pub description: Option<String>,
    /// `required`.
    pub required: bool,
    /// `default`.
    pub default: Option<Template>,
    /// `type`.
    pub kind: InputType,
    /// `options` of a choice.
    pub options: Vec<String>,
}

/// `type` of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InputType {
    /// `string`, also if nothing is said.
    #[default]
    String,
    /// `boolean`.
    Boolean,
    /// `number`.
    Number,
    /// `choice`: one of the options.
    Choice,
    /// `environment`.
    Environment,
}

impl DispatchInput {
    /// What a declaration says, as far as it can be understood.
    fn read(key: &Key, node: &Node) -> Self {
        let text = |name: &str| node.get(name).and_then(Node::scalar_text);
        Self {
            place: key.place,
            name: key.text.clone(),
            description: text("description"),
            required: text("required").is_some_and(|text| text == "true"),
            default: node
                .get("default")
                .filter(|node| !node.is_null())
                .and_then(|node| Template::from_node(node).ok()),
            kind: match text("type").as_deref() {
                Some("boolean") => InputType::Boolean,
                Some("number") => InputType::Number,
                Some("choice") => InputType::Choice,
                Some("environment") => InputType::Environment,
                _ => InputType::String,
            },
            options: node
                .get("options")
                .and_then(Node::as_sequence)
                .unwrap_or_default()
                .iter()
                .filter_map(Node::scalar_text)
                .collect(),
        }
    }
}

impl Triggers {
    /// Whether the event is named.
    #[must_use]
    pub fn has_event(&self, name: &str) -> bool {
        self.events.contains_key(name)
    }

    /// The inputs that `workflow_dispatch` declares.
    #[must_use]
    pub fn dispatch_inputs(&self) -> Vec<DispatchInput> {
        self.inputs_of("workflow_dispatch")
    }

    /// The inputs that `workflow_call` declares.
    #[must_use]
    pub fn call_inputs(&self) -> Vec<DispatchInput> {
        self.inputs_of("workflow_call")
    }

    /// The secrets that `workflow_call` declares, and whether each is required.
    #[must_use]
    pub fn call_secrets(&self) -> Vec<(String, bool)> {
        let required =
            |node: &Node| node.get("required").and_then(Node::scalar_text).is_some_and(|text| text == "true");
        self.of_call("secrets").iter().map(|(key, node)| (key.text.clone(), required(node))).collect()
    }

    /// The outputs that `workflow_call` declares.
    #[must_use]
    pub fn call_outputs(&self) -> Vec<(String, Template)> {
        let value = |node: &Node| Template::from_node(node.get("value")?).ok();
        self.of_call("outputs")
            .iter()
            .filter_map(|(key, node)| Some((key.text.clone(), value(node)?)))
            .collect()
    }

    fn of_call(&self, what: &str) -> &[(Key, Node)] {
        let trigger = self.events.get("workflow_call").and_then(|trigger| trigger.filters.get(what));
        trigger.and_then(Node::as_mapping).unwrap_or_default()
    }

    fn inputs_of(&self, event: &str) -> Vec<DispatchInput> {
        let inputs = self.events.get(event).and_then(|trigger| trigger.filters.get("inputs"));
        let entries = inputs.and_then(Node::as_mapping).unwrap_or_default();
        entries.iter().map(|(key, node)| DispatchInput::read(key, node)).collect()
    }
}

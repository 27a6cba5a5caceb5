//! Files of the same repository that a workflow speaks of: workflows that it calls and actions that it uses.
//!
//! One that is not there yet is no mistake, and one that is wrong is told of where it is checked itself.

use std::collections::HashMap;
use std::rc::Rc;

use crate::workflow::action::{Action, parse_action};
use crate::workflow::model::Workflow;
use crate::workflow::parse;

/// Reads a file of the repository by its path from the root; `None` where there is none.
pub type ReadFile<'a> = &'a dyn Fn(&str) -> Option<Vec<u8>>;

/// How many files are looked at for one that is checked.
const MAX_FILES: usize = 200;
/// How much is read of them in all, in bytes.
const MAX_BYTES: usize = 4 << 20;

/// What stands beside the file that is checked, each read once.
pub(super) struct Local<'a> {
    read: Option<ReadFile<'a>>,
    /// How much has been read.
    bytes: usize,
    workflows: HashMap<String, Option<Rc<Workflow>>>,
    actions: HashMap<String, Option<Rc<Action>>>,
}

impl<'a> Local<'a> {
    pub(super) fn new(read: Option<ReadFile<'a>>) -> Self {
        Self { read, bytes: 0, workflows: HashMap::new(), actions: HashMap::new() }
    }

    /// The workflow that `uses: ./path` of a job names.
    pub(super) fn workflow(&mut self, uses: &str) -> Option<Rc<Workflow>> {
        if let Some(known) = self.workflows.get(uses) {
            return known.clone();
        }
        let found = self.text(uses, &[""]).and_then(|text| parse::read_workflow(&text, uses).0).map(Rc::new);
        self.workflows.insert(uses.to_owned(), found.clone());
        found
    }

    /// The action that `uses: ./folder` of a step names.
    pub(super) fn action(&mut self, uses: &str) -> Option<Rc<Action>> {
        if let Some(known) = self.actions.get(uses) {
            return known.clone();
        }
        let found = self.text(uses, &["/action.yml", "/action.yaml"]);
        let found = found.and_then(|text| parse_action(&text, uses).ok()).map(Rc::new);
        self.actions.insert(uses.to_owned(), found.clone());
        found
    }

    /// The first of these files below a path that stays in the repository.
    fn text(&mut self, uses: &str, ends: &[&str]) -> Option<Vec<u8>> {
        let read = self.read?;
        let path = uses.strip_prefix("./")?.trim_end_matches('/');
        let outside = path.split('/').any(|part| part == "..");
        if outside || path.contains("${{") || self.workflows.len() + self.actions.len() >= MAX_FILES {
            return None;
        }
        let text = ends.iter().find_map(|end| read(format!("{path}{end}").trim_start_matches('/')))?;
        self.bytes += text.len();
        (self.bytes <= MAX_BYTES).then_some(text)
    }
}

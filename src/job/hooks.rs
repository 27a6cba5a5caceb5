//! Around the steps: the operator's own programs, and what a successful job leaves in the Nix store.

use std::io;
use std::path::Path;
use std::time::Instant;

use indexmap::IndexMap;

use crate::events::Conclusion;
use crate::housekeeping;
use crate::workflow::Status;

use super::executor::Executor;
use super::steps::{Problem, Task};

impl Executor<'_> {
    /// Runs the operator's program before the first step; false when it failed, and with it the job.
    pub(super) fn hook_started(&mut self) -> io::Result<bool> {
        match self.spec.operator.hooks.job_started.clone() {
            Some(program) => self.hook("job_started", &program),
            None => Ok(true),
        }
    }

    /// Runs the operator's program after the last step.
    pub(super) fn hook_completed(&mut self) -> io::Result<()> {
        if let Some(program) = self.spec.operator.hooks.job_completed.clone()
            && !self.hook("job_completed", &program)?
            && self.status == Status::Success
        {
            self.status = Status::Failure;
        }
        Ok(())
    }

    fn hook(&mut self, name: &str, program: &Path) -> io::Result<bool> {
        self.log.text(&format!("::group::Hook {name}: {}", program.display()))?;
        let status = match self.status {
            Status::Success => "success",
            Status::Failure => "failure",
            Status::Cancelled => "cancelled",
            Status::Skipped => "skipped",
        };
        // Nothing that the workflow has set: it is the operator's program.
        let mut all: IndexMap<String, String> = self.base.clone();
        all.extend(self.runner_env.iter().map(|(name, value)| (name.clone(), value.clone())));
        all.insert("SOWER_HOOK".to_owned(), name.to_owned());
        all.insert("SOWER_JOB_STATUS".to_owned(), status.to_owned());
        if let Some(task) = self.spec.operator.task {
            all.insert("SOWER_TASK".to_owned(), task.to_string());
        }
        let environment: Vec<(String, String)> = all.into_iter().collect();
        let limit = self.spec.operator.hooks.timeout;
        let task = Task {
            file: program,
            arguments: &[],
            environment: &environment,
            directory: &self.spec.places.workspace.clone(),
            deadline: Some(Instant::now() + limit),
            index: None,
        };
        let done = self.execute(&task);
        self.log.text("::endgroup::")?;
        let well = match done {
            Ok(handed) => handed.conclusion == Some(Conclusion::Success),
            Err(Problem::Step(message)) => {
                self.log.error(&message)?;
                false
            }
            Err(Problem::Sink(error)) => return Err(error),
        };
        if !well {
            self.log.error(&format!(
                "The hook {name} of this host has failed ({}, at most {} s), and so has the job",
                program.display(),
                limit.as_secs()
            ))?;
        }
        Ok(well)
    }

    /// Keeps what a successful job has built for the next one, before its workspace goes.
    pub(super) fn keep_results(&mut self) -> io::Result<()> {
        let Some(results) = &self.spec.operator.results else { return Ok(()) };
        let repository =
            self.spec.github.get("repository").and_then(|name| name.as_str()).unwrap_or_default();
        match housekeeping::keep(&self.spec.places.workspace, repository, results) {
            Ok(kept) if kept.is_empty() => Ok(()),
            Ok(kept) => {
                let count = kept.len();
                let what =
                    if count == 1 { kept[0].display().to_string() } else { format!("{count} results") };
                self.log.text(&format!(
                    "The Nix store keeps {what} and what it was built from, as for the last {} successful jobs.",
                    results.keep
                ))
            }
            Err(problem) => self.log.warning(&format!("The results do not stay in the Nix store: {problem}")),
        }
    }
}

//! Runs the jobs of a plan: each after those it needs, as many at once as allowed.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indexmap::IndexMap;

use crate::cache::Server;
use crate::events::{Conclusion, Sink, Timestamp};
use crate::job::executor;
use crate::job::process::Control;
use crate::job::spec::{Need, Places};
use crate::job::tree::Members;

use super::context::Context;
use super::plan::{Plan, Run, Selection};
use super::services;
use super::show::{Shared, Style, View};

/// What all runs of a schedule share.
#[derive(Debug)]
pub struct Schedule<'s> {
    /// What to run.
    pub plan: &'s Plan,
    /// For whom.
    pub context: &'s Context,
    /// What was picked.
    pub selection: &'s Selection,
    /// How many jobs at once, at least 1.
    pub parallel: usize,
    /// A directory for workspaces and scratch; what is in it goes with each job.
    pub work: &'s Path,
    /// Where fetched actions are kept.
    pub action_cache: &'s Path,
    /// Where tools are kept.
    pub tool_cache: &'s Path,
    /// Serves caches and artifacts to jobs, if it could be started.
    pub services: Option<&'s Server>,
    /// Cancels all jobs.
    pub control: &'s Control,
    /// How to show them.
    pub style: Style,
}

/// How one job ended.
#[derive(Debug)]
pub struct Ended {
    /// Which.
    pub run: Run,
    /// How.
    pub conclusion: Conclusion,
    /// A failure of it does not count.
    pub forgiven: bool,
    /// How long it took, in milliseconds.
    pub millis: u64,
    /// What its steps wrote to their summaries.
    pub summaries: Vec<(String, String)>,
}

/// A job of the plan whose variants are all over.
#[derive(Debug, Clone, Default)]
struct Done {
    need: Need,
}

impl Schedule<'_> {
    /// Runs everything; gives what was run, in the order in which it ended.
    ///
    /// # Errors
    /// When a job could not be run at all (a full disk), with the reason.
    pub fn run(&self, out: &Shared) -> Result<Vec<Ended>, String> {
        let mut done: HashMap<(usize, String), Done> = HashMap::new();
        let mut all = Vec::new();
        let mut left: Vec<&(usize, String)> = self.plan.jobs.iter().collect();
        while !left.is_empty() {
            // Every job whose needs are over can run now; the plan's order sees that there is one.
            let (ready, waiting): (Vec<_>, Vec<_>) = left.into_iter().partition(|(file, id)| {
                let needs = &self.plan.job(*file, id).needs;
                needs.iter().all(|need| done.contains_key(&(*file, need.value.clone())))
            });
            left = waiting;
            let mut runs = Vec::new();
            for (file, id) in &ready {
                let needs = self.needs(*file, id, &done);
                let variants = self.plan.runs(self.context, self.selection, *file, id, &needs)?;
                if variants.is_empty() {
                    let need = Need { result: Some(Conclusion::Skipped), ..Need::default() };
                    done.insert((*file, id.clone()), Done { need });
                }
                runs.extend(variants.into_iter().map(|run| (run, needs.clone())));
            }
            for (ended, outputs) in self.wave(runs, out)? {
                let entry = done.entry((ended.run.file, ended.run.job.clone())).or_default();
                let counts = if ended.forgiven { Conclusion::Success } else { ended.conclusion };
                entry.need.result = Some(worse(entry.need.result, counts));
                entry.need.outputs.extend(outputs.into_iter().filter(|(_, value)| !value.is_empty()));
                all.push(ended);
            }
        }
        Ok(all)
    }

    fn needs(&self, file: usize, id: &str, done: &HashMap<(usize, String), Done>) -> IndexMap<String, Need> {
        let needs = &self.plan.job(file, id).needs;
        needs
            .iter()
            .map(|need| {
                let entry = done.get(&(file, need.value.clone())).cloned().unwrap_or_default();
                (need.value.clone(), entry.need)
            })
            .collect()
    }

    /// Runs jobs that do not wait for one another.
    #[expect(clippy::type_complexity, reason = "a job's end and its outputs")]
    fn wave(
        &self,
        runs: Vec<(Run, IndexMap<String, Need>)>,
        out: &Shared,
    ) -> Result<Vec<(Ended, Vec<(String, String)>)>, String> {
        let threads = self.parallel.clamp(1, runs.len().max(1));
        let queue = Mutex::new(runs.into_iter().enumerate());
        let results = Mutex::new(Vec::new());
        let alone = threads == 1;
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                        let Some((number, (run, needs))) = next else { return };
                        let result = self.one(number, run, &needs, out, alone);
                        results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                    }
                });
            }
        });
        results.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().collect()
    }

    fn one(
        &self,
        number: usize,
        run: Run,
        needs: &IndexMap<String, Need>,
        out: &Shared,
        alone: bool,
    ) -> Result<(Ended, Vec<(String, String)>), String> {
        let base = tempfile::Builder::new()
            .prefix(&format!("job-{number}-"))
            .tempdir_in(self.work)
            .map_err(|error| format!("{}: {error}", self.work.display()))?;
        let places = Places {
            workspace: base.path().join("workspace"),
            scratch: base.path().join("scratch"),
            tool_cache: self.tool_cache.to_owned(),
            action_cache: self.action_cache.to_owned(),
            home: std::env::var_os("HOME").map_or_else(|| base.path().to_owned(), Into::into),
            remove_workspace: true,
        };
        for directory in [&places.workspace, &places.scratch] {
            fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        }
        let mut spec = self.plan.spec(self.context, run.file, &run.job, needs, &places);
        spec.matrix = Some(run.matrix.clone());
        let token =
            self.services.map(|server| services::offer(server, self.context, &mut spec)).transpose()?;
        let id = base.path().file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let members = if alone { Members::all(id, None) } else { Members::tracked(id) };
        let began = Timestamp::now();
        let mut view = View::new(&run, self.style, out.clone());
        let conclusion =
            executor::run(&spec, &mut view, self.control, members).map_err(|error| error.to_string())?;
        view.flush().map_err(|error| error.to_string())?;
        if let (Some(server), Some(token)) = (self.services, &token) {
            server.revoke(token);
        }
        let forgiven = conclusion == Conclusion::Failure
            && self
                .plan
                .job(run.file, &run.job)
                .continue_on_error
                .as_ref()
                .is_some_and(|template| template.source().trim() == "true");
        let millis = Timestamp::now().millis_since(began);
        let (outputs, summaries) = (view.outputs, view.summaries);
        Ok((Ended { run, conclusion, forgiven, millis, summaries }, outputs))
    }
}

/// What the variants of one job amount to for those that need it.
fn worse(before: Option<Conclusion>, now: Conclusion) -> Conclusion {
    let weight = |conclusion| match conclusion {
        Conclusion::Skipped => 0,
        Conclusion::Success => 1,
        Conclusion::Cancelled => 2,
        Conclusion::Failure => 3,
    };
    match before {
        Some(before) if weight(before) >= weight(now) => before,
        _ => now,
    }
}

/// What is left running when all jobs are over is given this long between SIGTERM and SIGKILL.
pub const LEFTOVER_GRACE: Duration = Duration::from_millis(500);

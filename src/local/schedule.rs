//! Runs the jobs of a plan: each as soon as those that it needs are over, as many at once as allowed.
//!
//! What a server does otherwise: `needs`, `fail-fast`, `max-parallel`, and workflows that jobs call, whose jobs are
//! jobs of their own here.

use std::collections::{HashSet, VecDeque};
use std::fs;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use indexmap::IndexMap;

use crate::cache::Server;
use crate::events::{Conclusion, Sink, Timestamp};
use crate::job::call::together;
use crate::job::executor;
use crate::job::process::Control;
use crate::job::spec::{Need, Places};
use crate::job::tree::Members;

use super::context::Context;
use super::plan::{Instance, Plan, Run, Selection, counts};
use super::services;
use super::show::{self, Shared, Style, View};
use super::status::Status;

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
    /// The line that says what runs, on a terminal.
    pub status: Option<Status>,
}

/// How one job ended.
#[derive(Debug)]
pub struct Ended {
    /// Which.
    pub run: Run,
    /// How.
    pub conclusion: Conclusion,
    /// How long it took, in milliseconds.
    pub millis: u64,
    /// What its steps wrote to their summaries.
    pub summaries: Vec<(String, String)>,
}

impl Ended {
    /// Whether it ended as it should, or need not have.
    #[must_use]
    pub fn is_well(&self) -> bool {
        matches!(counts(&self.run, self.conclusion), Conclusion::Success | Conclusion::Skipped)
    }
}

/// How a job stands.
enum State {
    /// Something that it needs is not over.
    Waiting,
    /// Its variants run or wait for their turn.
    Active(Active),
    /// All its variants are over.
    Over(Need),
}

struct Active {
    /// Variants that are not over.
    left: usize,
    /// Variants that run now.
    running: usize,
    need: Need,
    fail_fast: bool,
    max_parallel: usize,
    /// The controls of those that run.
    controls: Vec<Control>,
}

/// A workflow that runs.
struct Live {
    instance: Arc<Instance>,
    jobs: IndexMap<String, State>,
    /// Which variant of which job called it.
    caller: Option<(usize, Run)>,
    /// Nothing of it is to begin any more.
    cancelled: bool,
}

impl Live {
    /// How the jobs ended that come before a job, each way once.
    fn before(&self, id: &str) -> Vec<Conclusion> {
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        let mut open = vec![id];
        while let Some(id) = open.pop() {
            for need in &self.instance.job(id).needs {
                let Some(State::Over(over)) = self.jobs.get(&need.value) else { continue };
                if seen.insert(need.value.as_str()) {
                    found.extend(over.result.filter(|result| !found.contains(result)));
                    open.push(&need.value);
                }
            }
        }
        found
    }
}

/// A variant whose turn has not come.
struct Queued {
    live: usize,
    run: Run,
    needs: IndexMap<String, Need>,
}

/// A variant that has run.
struct Done {
    live: usize,
    ended: Ended,
    outputs: Vec<(String, String)>,
}

struct Board<'b> {
    schedule: &'b Schedule<'b>,
    out: &'b Shared,
    live: Vec<Live>,
    queue: VecDeque<Queued>,
    ended: Vec<Ended>,
}

/// How often a cancel from outside is looked for.
const LOOK: Duration = Duration::from_millis(50);

impl Schedule<'_> {
    /// Runs everything; gives what was run, in the order in which it ended.
    ///
    /// # Errors
    /// When a job could not be run at all (a full disk), with the reason.
    pub fn run(&self, out: &Shared) -> Result<Vec<Ended>, String> {
        let mut board =
            Board { schedule: self, out, live: Vec::new(), queue: VecDeque::new(), ended: Vec::new() };
        for instance in &self.plan.instances {
            board.add(instance.clone(), None);
        }
        let (sender, receiver) = mpsc::channel();
        let parallel = self.parallel.max(1);
        std::thread::scope(|scope| {
            let mut running = 0;
            let mut number = 0;
            let mut trouble = None;
            loop {
                board.advance();
                while running < parallel
                    && trouble.is_none()
                    && let Some((queued, control)) = board.next()?
                {
                    running += 1;
                    number += 1;
                    let sender = sender.clone();
                    scope.spawn(move || {
                        let Queued { live, run, needs } = queued;
                        let result = self.one(number, run, &needs, out, parallel == 1, &control);
                        // The receiver lives as long as something runs.
                        let _ = sender.send(result.map(|(ended, outputs)| Done { live, ended, outputs }));
                    });
                }
                if running == 0 {
                    break;
                }
                match receiver.recv_timeout(LOOK) {
                    Ok(done) => {
                        running -= 1;
                        match done {
                            Ok(done) => board.done(done),
                            Err(problem) => {
                                board.cancel_all();
                                trouble = Some(problem);
                            }
                        }
                    }
                    Err(_) if self.control.is_cancelled() => board.cancel_all(),
                    Err(_) => {}
                }
            }
            trouble.map_or(Ok(()), Err)
        })?;
        Ok(board.ended)
    }

    fn one(
        &self,
        number: usize,
        run: Run,
        needs: &IndexMap<String, Need>,
        out: &Shared,
        alone: bool,
        control: &Control,
    ) -> Result<(Ended, Vec<(String, String)>), String> {
        let base = tempfile::Builder::new()
            .prefix(&format!("job-{number}-"))
            .tempdir_in(self.work)
            .map_err(|error| format!("{}: {error}", self.work.display()))?;
        let places = self.places(base.path());
        for directory in [&places.workspace, &places.scratch] {
            fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        }
        let mut spec = run.instance.spec(self.context, &run, needs, &places);
        let token =
            self.services.map(|server| services::offer(server, self.context, &mut spec)).transpose()?;
        let id = base.path().file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let members = if alone { Members::all(id, None) } else { Members::tracked(id) };
        let began = Timestamp::now();
        let mut view = View::new(&run, self.style, out.clone());
        view.status.clone_from(&self.status);
        let conclusion =
            executor::run(&spec, &mut view, control, members).map_err(|error| error.to_string())?;
        view.flush().map_err(|error| error.to_string())?;
        if let (Some(server), Some(token)) = (self.services, &token) {
            server.revoke(token);
        }
        let millis = Timestamp::now().millis_since(began);
        let (outputs, summaries) = (view.outputs, view.summaries);
        Ok((Ended { run, conclusion, millis, summaries }, outputs))
    }

    fn places(&self, base: &Path) -> Places {
        Places {
            workspace: base.join("workspace"),
            scratch: base.join("scratch"),
            tool_cache: self.tool_cache.to_owned(),
            action_cache: self.action_cache.to_owned(),
            home: std::env::var_os("HOME").map_or_else(|| base.to_owned(), Into::into),
            remove_workspace: true,
        }
    }
}

impl Board<'_> {
    fn add(&mut self, instance: Arc<Instance>, caller: Option<(usize, Run)>) {
        let jobs = instance.jobs.iter().map(|id| (id.clone(), State::Waiting)).collect();
        self.live.push(Live { instance, jobs, caller, cancelled: false });
    }

    /// Begins every job that waits for nothing any more.
    fn advance(&mut self) {
        while let Some((live, id, needs)) = self.ready() {
            self.begin(live, &id, needs);
        }
    }

    fn ready(&self) -> Option<(usize, String, IndexMap<String, Need>)> {
        self.live.iter().enumerate().find_map(|(number, live)| {
            live.jobs.iter().find_map(|(id, state)| {
                let State::Waiting = state else { return None };
                let needs = live
                    .instance
                    .job(id)
                    .needs
                    .iter()
                    .map(|need| match live.jobs.get(&need.value) {
                        Some(State::Over(result)) => {
                            let before = live.before(&need.value);
                            Some((need.value.clone(), Need { before, ..result.clone() }))
                        }
                        Some(_) => None,
                        None => Some((need.value.clone(), Need::default())),
                    })
                    .collect::<Option<IndexMap<_, _>>>()?;
                Some((number, id.clone(), needs))
            })
        })
    }

    fn begin(&mut self, live: usize, id: &str, needs: IndexMap<String, Need>) {
        let Schedule { context, selection, .. } = self.schedule;
        let instance = self.live[live].instance.clone();
        if self.live[live].cancelled {
            return self.over(live, id, Conclusion::Cancelled);
        }
        let prepared = instance.runs(context, selection, id, &needs).and_then(|runs| {
            let calls = instance.job(id).uses.is_some();
            Ok((runs, !calls || instance.wants_to_run(context, id, &needs)?))
        });
        let runs = match prepared {
            Ok((runs, true)) if runs.is_empty() => return self.over(live, id, Conclusion::Skipped),
            Ok((runs, true)) => runs,
            Ok((runs, false)) => {
                for run in runs {
                    self.tell(run, Conclusion::Skipped);
                }
                return self.over(live, id, Conclusion::Skipped);
            }
            Err(problem) => {
                // A job that is skipped anyway need not be one whose matrix can be had.
                if let Ok(false) = instance.wants_to_run(context, id, &needs) {
                    self.tell(nameless(&instance, id), Conclusion::Skipped);
                    return self.over(live, id, Conclusion::Skipped);
                }
                let run = nameless(&instance, id);
                show::problem(self.out, self.schedule.style, &run, &problem);
                self.tell(run, Conclusion::Failure);
                return self.over(live, id, Conclusion::Failure);
            }
        };
        let strategy = &runs[0].strategy;
        let declared = instance.job(id).strategy.as_ref().and_then(|strategy| strategy.max_parallel.as_ref());
        let max_parallel = declared.and_then(|_| strategy["max-parallel"].as_u64());
        self.live[live].jobs.insert(
            id.to_owned(),
            State::Active(Active {
                left: runs.len(),
                running: 0,
                need: Need::default(),
                fail_fast: strategy["fail-fast"].as_bool().unwrap_or(true),
                max_parallel: max_parallel
                    .and_then(|number| usize::try_from(number).ok())
                    .unwrap_or(usize::MAX),
                controls: Vec::new(),
            }),
        );
        for run in runs {
            match instance.called(context, &run, &needs, &self.schedule.places(self.schedule.work)) {
                Ok(None) => self.queue.push_back(Queued { live, run, needs: needs.clone() }),
                Ok(Some(called)) => self.add(Arc::new(called), Some((live, run))),
                Err(problem) => {
                    show::problem(self.out, self.schedule.style, &run, &problem);
                    self.tell(run.clone(), Conclusion::Failure);
                    self.variant(live, &run, Conclusion::Failure, Vec::new());
                }
            }
        }
    }

    /// The next variant whose turn it is.
    fn next(&mut self) -> Result<Option<(Queued, Control)>, String> {
        let turn = self.queue.iter().position(|queued| match &self.live[queued.live].jobs[&queued.run.job] {
            State::Active(active) => active.running < active.max_parallel,
            _ => true,
        });
        let Some(queued) = turn.and_then(|at| self.queue.remove(at)) else { return Ok(None) };
        let control = Control::new().map_err(|error| error.to_string())?;
        if let Some(State::Active(active)) = self.live[queued.live].jobs.get_mut(&queued.run.job) {
            active.running += 1;
            active.controls.push(control.clone());
        }
        Ok(Some((queued, control)))
    }

    fn done(&mut self, done: Done) {
        let Done { live, ended, outputs } = done;
        let run = ended.run.clone();
        let conclusion = ended.conclusion;
        self.ended.push(ended);
        if let Some(State::Active(active)) = self.live[live].jobs.get_mut(&run.job) {
            active.running -= 1;
        }
        self.variant(live, &run, conclusion, outputs);
    }

    /// Keeps that something ended without having run.
    fn tell(&mut self, run: Run, conclusion: Conclusion) {
        self.ended.push(Ended { run, conclusion, millis: 0, summaries: Vec::new() });
    }

    /// A variant is over.
    fn variant(&mut self, live: usize, run: &Run, conclusion: Conclusion, outputs: Vec<(String, String)>) {
        let Some(State::Active(active)) = self.live[live].jobs.get_mut(&run.job) else { return };
        let counted = counts(run, conclusion);
        active.need.result = Some(together(active.need.result.into_iter().chain([counted])));
        active.need.outputs.extend(outputs.into_iter().filter(|(_, value)| !value.is_empty()));
        active.left -= 1;
        if active.left == 0 {
            let need = std::mem::take(&mut active.need);
            self.live[live].jobs.insert(run.job.clone(), State::Over(need));
            self.settle(live);
        } else if counted == Conclusion::Failure && active.fail_fast {
            self.cancel_job(live, &run.job);
        }
    }

    /// A job is over without a variant.
    fn over(&mut self, live: usize, id: &str, conclusion: Conclusion) {
        let need = Need { result: Some(conclusion), ..Need::default() };
        self.live[live].jobs.insert(id.to_owned(), State::Over(need));
        self.settle(live);
    }

    /// When all jobs of a called workflow are over, so is the variant that called it.
    fn settle(&mut self, live: usize) {
        let over = |(id, state): (&String, &State)| match state {
            State::Over(need) => Some((id.clone(), need.clone())),
            _ => None,
        };
        let Some(jobs) = self.live[live].jobs.iter().map(over).collect::<Option<IndexMap<_, _>>>() else {
            return;
        };
        let Some((caller, run)) = self.live[live].caller.take() else { return };
        let conclusion = together(jobs.values().filter_map(|need| need.result));
        match self.live[live].instance.outputs(self.schedule.context, &jobs) {
            Ok(outputs) => self.variant(caller, &run, conclusion, outputs),
            Err(problem) => {
                show::problem(self.out, self.schedule.style, &run, &problem);
                self.tell(run.clone(), Conclusion::Failure);
                self.variant(caller, &run, Conclusion::Failure, Vec::new());
            }
        }
    }

    /// Cancels what is left of a job: what runs, what waits for its turn, and what it called.
    fn cancel_job(&mut self, live: usize, id: &str) {
        if let Some(State::Active(active)) = self.live[live].jobs.get_mut(id) {
            active.controls.drain(..).for_each(|control| control.cancel());
        }
        let (gone, left): (VecDeque<_>, _) = std::mem::take(&mut self.queue)
            .into_iter()
            .partition(|queued| queued.live == live && queued.run.job == id);
        self.queue = left;
        let called: Vec<usize> = self
            .live
            .iter()
            .enumerate()
            .filter(|(_, inner)| {
                inner.caller.as_ref().is_some_and(|(caller, run)| *caller == live && run.job == id)
            })
            .map(|(number, _)| number)
            .collect();
        for inner in called {
            self.cancel_live(inner);
        }
        for queued in gone {
            self.tell(queued.run.clone(), Conclusion::Cancelled);
            self.variant(live, &queued.run, Conclusion::Cancelled, Vec::new());
        }
    }

    fn cancel_live(&mut self, live: usize) {
        self.live[live].cancelled = true;
        let jobs: Vec<String> = self.live[live].jobs.keys().cloned().collect();
        for id in jobs {
            self.cancel_job(live, &id);
        }
    }

    fn cancel_all(&mut self) {
        for live in 0..self.live.len() {
            self.cancel_live(live);
        }
    }
}

/// A job of which not even the variants are known.
fn nameless(instance: &Arc<Instance>, id: &str) -> Run {
    Run {
        instance: instance.clone(),
        job: id.to_owned(),
        name: format!("{}{id}", instance.prefix),
        matrix: serde_json::Map::new(),
        strategy: serde_json::Map::new(),
        forgiven: false,
    }
}

/// What is left running when all jobs are over is given this long between SIGTERM and SIGKILL.
pub const LEFTOVER_GRACE: Duration = Duration::from_millis(500);

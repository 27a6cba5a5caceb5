//! What Gitea would show of a run: its steps with state and duration, the log as it grows, the summary.

use std::time::{Duration, Instant};

use sower_test_support::{Forge, JobView, RunView, Status, StepView};

use crate::processes::Interrupt;
use crate::runner::Runner;
use crate::screen::{Screen, Style, seconds};
use crate::trouble::Trouble;

/// Longest that the whole run may take. The first one compiles more than later ones.
const LIMIT: Duration = Duration::from_secs(170);
/// How often the line below is refreshed while nothing else happens.
const REFRESH: Duration = Duration::from_millis(200);

/// Shows a run from its beginning to its end, and answers how it ended.
pub(crate) fn run(
    forge: &Forge,
    id: i64,
    runner: &mut Runner,
    screen: &mut Screen,
    interrupt: &Interrupt,
) -> Result<RunView, Trouble> {
    let began = Instant::now();
    let mut shown = Shown::default();
    loop {
        let revision = forge.revision();
        let run = forge.run(id).ok_or_else(|| Trouble::Failed(format!("run {id} is gone")))?;
        for job in &run.jobs {
            shown.catch_up(forge, job, screen);
        }
        if run.status.is_done() && run.jobs.iter().all(|job| job.sealed || job.task.is_none()) {
            screen.clear();
            for job in &run.jobs {
                summary(job, screen);
            }
            return Ok(run);
        }
        if let Some(end) = runner.ended() {
            return Err(Trouble::Failed(end));
        }
        if began.elapsed() > LIMIT {
            let words = format!("the run did not end within {} s\n{}", LIMIT.as_secs(), forge.describe());
            return Err(Trouble::Failed(words));
        }
        screen.going_on(&present(&run));
        interrupt.check()?;
        let _ = forge.wait_change(revision, REFRESH);
    }
}

/// What of a job is on the screen already.
#[derive(Default)]
struct Shown {
    /// Steps that are complete on the screen, the set-up and the clean-up included.
    steps: usize,
    /// Rows of the step that follows them.
    rows: usize,
    /// That step's name is there.
    named: bool,
    /// The row that comes is in a group; pages show groups folded.
    folded: bool,
}

impl Shown {
    fn catch_up(&mut self, forge: &Forge, job: &JobView, screen: &mut Screen) {
        while let Some(step) = job.steps.get(self.steps) {
            let rows = forge.rows(job.id, step.rows.clone());
            if !self.named && (!rows.is_empty() || step.status == Status::Running) {
                let name = screen.styled(Style::Bold, &step.name);
                let mark = screen.mark(Status::Running);
                screen.line(&format!(" {mark} {name}"));
                self.named = true;
            }
            for row in rows.iter().skip(self.rows) {
                self.row(&row.text, screen);
            }
            self.rows = self.rows.max(rows.len());
            // The clean-up has all its rows only when the log is sealed.
            let last = self.steps + 1 == job.steps.len();
            if !step.status.is_done() || (last && !job.sealed) {
                return;
            }
            screen.step(&step.name, step.status, step.duration());
            *self = Self { steps: self.steps + 1, ..Self::default() };
        }
    }

    fn row(&mut self, text: &str, screen: &mut Screen) {
        let begins = text.starts_with("##[group]") || text.starts_with("::group::");
        let ends = text.starts_with("##[endgroup]") || text.starts_with("::endgroup::");
        if begins || !(self.folded || ends) {
            screen.row(text);
        }
        self.folded = (self.folded || begins) && !ends;
    }
}

/// What the run is doing now.
fn present(run: &RunView) -> String {
    let running: Option<&StepView> =
        run.jobs.iter().flat_map(|job| &job.steps).find(|step| step.status == Status::Running);
    match running {
        Some(step) => format!("{}  {}", step.name, step.duration().map(seconds).unwrap_or_default()),
        None => format!("run {} is {}", run.number, run.status),
    }
}

/// The markdown of a job's summary, as it is.
fn summary(job: &JobView, screen: &mut Screen) {
    if job.summaries.is_empty() {
        return;
    }
    let heading = screen.styled(Style::Bold, "Job summary");
    screen.line("");
    screen.line(&format!(" {heading}"));
    for line in job.summaries.values().flat_map(|markdown| markdown.trim_end().lines().chain([""])) {
        screen.line(&format!("   {line}"));
    }
}

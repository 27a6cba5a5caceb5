//! How runs come to be: by a push, by hand, or as a payload that a test wrote.

use std::time::SystemTime;

use serde_json::Value as Json;

use crate::state::{Extra, Job, Run, State, Status};
use crate::workflow::{self, Trigger};

/// What a run is made for.
pub(crate) struct Origin {
    pub(crate) repository: String,
    pub(crate) workflow: String,
    pub(crate) title: String,
    pub(crate) event_name: &'static str,
    pub(crate) reference: String,
    pub(crate) sha: String,
    pub(crate) event: Json,
}

impl State {
    /// Makes a run of a workflow when it wants to run on this; `None` when it does not.
    pub(crate) fn start_run(
        &mut self,
        origin: Origin,
        yaml: &[u8],
        trigger: &Trigger<'_>,
    ) -> Result<Option<i64>, String> {
        if !workflow::wants(yaml, trigger)? {
            return Ok(None);
        }
        let planned = workflow::split(yaml, &self.vars)?;
        let title = workflow::title(yaml).unwrap_or_else(|| origin.title.clone());
        let run = self.insert_run(origin, title);
        for job in planned {
            let status = if job.needs.is_empty() { Status::Waiting } else { Status::Blocked };
            let id = self.next_job();
            self.insert_job(Job {
                id,
                run,
                key: job.key,
                name: job.name,
                runs_on: job.runs_on,
                needs: job.needs,
                has_if: job.has_if,
                payload: job.payload,
                step_names: job.step_names,
                status,
                task: None,
                extra: Extra::default(),
            });
        }
        Ok(Some(run))
    }

    /// Makes a run of one job whose payload is delivered as it is.
    pub(crate) fn enqueue(
        &mut self,
        origin: Origin,
        payload: Vec<u8>,
        labels: Vec<String>,
        extra: Extra,
    ) -> i64 {
        let title = origin.title.clone();
        let run = self.insert_run(origin, title);
        let id = self.next_job();
        let step_names = workflow::step_names(&payload);
        self.insert_job(Job {
            id,
            run,
            key: "job".to_owned(),
            name: "job".to_owned(),
            runs_on: labels,
            needs: Vec::new(),
            has_if: false,
            payload,
            step_names,
            status: Status::Waiting,
            task: None,
            extra,
        });
        run
    }

    fn insert_run(&mut self, origin: Origin, title: String) -> i64 {
        let id = self.next_run();
        let number = self.next_number(&origin.repository);
        self.runs.insert(
            id,
            Run {
                id,
                number,
                repository: origin.repository,
                workflow: origin.workflow,
                title,
                event_name: origin.event_name.to_owned(),
                reference: origin.reference,
                sha: origin.sha,
                created: SystemTime::now(),
                event: origin.event,
                jobs: Vec::new(),
            },
        );
        id
    }

    fn insert_job(&mut self, job: Job) {
        if job.status == Status::Waiting {
            self.tasks_version += 1;
        }
        if let Some(run) = self.runs.get_mut(&job.run) {
            run.jobs.push(job.id);
        }
        self.jobs.insert(job.id, job);
    }
}

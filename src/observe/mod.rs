//! What the daemon lets others see of itself: metrics, health, and how it stands.
//!
//! | Module | Holds |
//! | --- | --- |
//! | `metrics` | the counters and histograms, as OpenMetrics |
//! | `status` | how the daemon stands, and asking a daemon that runs |
//! | `server` | answering, on a socket in the state directory and, if asked for, on a loopback port |
//! | `tally` | what the tools that steps call did: pushes and deployments |
//!
//! Whoever counts holds an [`Observer`]; copies share one state. Nothing here asks anybody anything: places are looked at
//! when somebody reads the metrics.

mod metrics;
mod server;
mod status;
pub mod tally;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use metrics::Place;
pub use server::{Access, Endpoint, serve};
pub use status::{AskError, Disk, Job, Stage, Status, ask, socket};

use crate::cache::Counts;
use crate::events::{Conclusion, Timestamp};
use metrics::Metrics;

/// Without an answer of Gitea for this long the daemon is not ready.
const SILENCE: Duration = Duration::from_secs(120);

/// Where the daemon's doings are counted and shown.
#[derive(Debug, Clone)]
pub struct Observer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    metrics: Metrics,
    live: Mutex<Live>,
    cache: Mutex<Option<Arc<Counts>>>,
}

/// How the daemon stands.
#[derive(Debug)]
struct Live {
    started: Timestamp,
    about: About,
    draining: bool,
    contact: Option<(Timestamp, Instant)>,
    trouble: Option<String>,
    gate: Option<String>,
    server: Vec<String>,
    declared: Option<Timestamp>,
    housekeeping: Option<(Timestamp, u64)>,
    jobs: BTreeMap<i64, Job>,
}

/// What does not change while a configuration is in force.
#[derive(Debug, Clone, Default)]
pub struct About {
    /// The instance.
    pub address: String,
    /// The runner's name there.
    pub runner: String,
    /// Labels in force.
    pub labels: Vec<String>,
    /// Jobs that may run at a time.
    pub capacity: u32,
    /// Places whose room matters.
    pub places: Vec<(Place, PathBuf)>,
    /// Fewest free bytes there, 0 for no gate.
    pub min_free: u64,
}

/// How a step went.
#[derive(Debug, Clone, Copy, Default)]
pub struct StepSeen {
    /// When it began; `None` for one that was skipped.
    pub begun: Option<Timestamp>,
    /// When and how it ended.
    pub ended: Option<(Timestamp, Conclusion)>,
}

/// How a job went, as its reporter saw it.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// When its task was received.
    pub received: Option<Timestamp>,
    /// When its first step began.
    pub begun: Option<Timestamp>,
    /// When the job began and ended.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// How.
    pub conclusion: Option<Conclusion>,
    /// The steps, by their index.
    pub steps: BTreeMap<usize, StepSeen>,
    /// The most memory that it had, in bytes.
    pub peak: Option<u64>,
    /// Its limit, in bytes.
    pub cap: Option<u64>,
}

impl Seen {
    /// How far the job is.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        match (self.begun, self.ended) {
            (_, Some(_)) => Stage::Reporting,
            (Some(_), None) => Stage::Running,
            (None, None) => Stage::Waiting,
        }
    }
}

impl Observer {
    /// One of a daemon that begins.
    #[must_use]
    pub fn new(about: About) -> Self {
        let live = Live {
            started: Timestamp::now(),
            about,
            draining: false,
            contact: None,
            trouble: None,
            gate: None,
            server: Vec::new(),
            declared: None,
            housekeeping: None,
            jobs: BTreeMap::new(),
        };
        let inner = Inner { metrics: Metrics::new(), live: Mutex::new(live), cache: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.inner.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another configuration is in force.
    pub fn about(&self, about: About) {
        self.live().about = about;
    }

    /// The cache server counts here.
    pub fn cache(&self, counts: Arc<Counts>) {
        *self.inner.cache.lock().unwrap_or_else(PoisonError::into_inner) = Some(counts);
    }

    /// The daemon takes no more tasks.
    pub fn draining(&self) {
        self.live().draining = true;
    }

    /// A call to Gitea has ended, after `took`.
    pub fn called(&self, method: &'static str, took: Duration, trouble: Option<&str>) {
        self.inner.metrics.called(method, took, trouble.is_none());
        let mut live = self.live();
        match trouble {
            None => {
                live.contact = Some((Timestamp::now(), Instant::now()));
                live.trouble = None;
            }
            Some(trouble) => live.trouble = Some(trouble.to_owned()),
        }
    }

    /// Gitea knows the labels, and has said what it can do.
    pub fn declared(&self, server: Vec<String>) {
        let mut live = self.live();
        live.declared = Some(Timestamp::now());
        live.server = server;
    }

    /// Why no task is fetched, or that there is no reason any more.
    pub fn gate(&self, why: Option<String>) {
        self.live().gate = why;
    }

    /// Housekeeping has ended and freed so many bytes.
    pub fn kept_house(&self, freed: u64) {
        self.inner.metrics.kept_house(freed);
        self.live().housekeeping = Some((Timestamp::now(), freed));
    }

    /// A job is looked after.
    pub fn job_begins(&self, job: Job) {
        self.live().jobs.insert(job.task, job);
    }

    /// A job is so far now.
    pub fn job_is(&self, task: i64, stage: Stage) {
        if let Some(job) = self.live().jobs.get_mut(&task) {
            job.state = stage;
        }
    }

    /// Rows of a job have arrived at Gitea, the last of them this long after it was printed.
    pub fn rows_arrived(&self, task: i64, rows: u64, bytes: u64, lag: Option<Duration>) {
        self.inner.metrics.rows_arrived(rows, bytes, lag);
        if let Some(job) = self.live().jobs.get_mut(&task) {
            job.rows += rows;
        }
    }

    /// A job has ended and is reported.
    pub fn job_ended(&self, task: i64, seen: &Seen, tally: &[tally::Entry]) {
        self.inner.metrics.job_ended(seen);
        for entry in tally {
            self.inner.metrics.tally(entry);
        }
        self.live().jobs.remove(&task);
    }

    /// A job is not looked after any more, without having been reported.
    pub fn job_left(&self, task: i64) {
        self.live().jobs.remove(&task);
    }

    /// Why the daemon would not take a task now; `None` when it would.
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        let live = self.live();
        if live.draining {
            return Some("it takes no more tasks".to_owned());
        }
        if let Some(gate) = &live.gate {
            return Some(gate.clone());
        }
        let why = live.trouble.clone().unwrap_or_else(|| "no answer yet".to_owned());
        match live.contact {
            None => Some(format!("{}: {why}", live.about.address)),
            Some((_, at)) if at.elapsed() > SILENCE && live.jobs.is_empty() => Some(format!(
                "{} has not answered for {} s: {why}",
                live.about.address,
                at.elapsed().as_secs()
            )),
            Some(_) => None,
        }
    }

    /// How the daemon stands.
    #[must_use]
    pub fn status(&self) -> Status {
        let not_ready = self.not_ready();
        let live = self.live();
        Status {
            version: crate::VERSION.to_owned(),
            pid: std::process::id(),
            started: Some(live.started),
            address: live.about.address.clone(),
            runner: live.about.runner.clone(),
            labels: live.about.labels.clone(),
            capacity: live.about.capacity,
            draining: live.draining,
            ready: not_ready.is_none(),
            not_ready,
            contact: live.contact.map(|(time, _)| time),
            trouble: live.trouble.clone(),
            declared: live.declared,
            server_capabilities: live.server.clone(),
            housekeeping: live.housekeeping.map(|(time, _)| time),
            min_free: live.about.min_free,
            disks: live
                .about
                .places
                .iter()
                .filter_map(|(place, path)| Disk::of(place.word(), path))
                .collect(),
            jobs: live.jobs.values().cloned().collect(),
        }
    }

    /// The metrics as OpenMetrics.
    #[must_use]
    pub fn metrics(&self) -> String {
        let status = self.status();
        let cache = self.inner.cache.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.inner.metrics.text(&status, cache.as_deref())
    }
}

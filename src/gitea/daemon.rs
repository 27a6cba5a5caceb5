//! The daemon: asks for tasks, writes them down, starts their jobs, and reports what their journals say.
//!
//! Jobs do not need it. It may leave at any moment; the next one finds the jobs and goes on.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sower_wire::runner::Task;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::Interval;
use tracing::{error, info, warn};

use super::caches::Caches;
use super::client::{AddressError, Client, Credentials};
use super::error::Error;
use super::faults::faults;
use super::housekeeper::Housekeeper;
use super::notify::Alarm;
use super::pause::Pause;
use super::poller::{Poller, Received, Unregistered};
use super::registration::Registration;
use super::reporter::{self, Outcome, Reporter};
use super::room::Room;
use super::task::{Surroundings, job_spec};
use crate::config::{Config, EnvFileError, Label};
use crate::job::spec::RunnerInfo;
use crate::limits::cap::{self, Below};
use crate::notify::Notifier;
use crate::observe::{self, About, Access, Endpoint, Observer, Place};
use crate::supervisor::{self, JobDir, JobProcess, Lock, Program, StateDir};

/// How long the last reports may take when the daemon leaves.
const LAST_REPORTS: Duration = Duration::from_secs(10);

/// How long messages of failed jobs may take then.
const LAST_MESSAGES: Duration = Duration::from_secs(5);

/// What a daemon is to do.
#[derive(Debug)]
pub struct Options {
    /// The configuration.
    pub config: Config,
    /// Where it was read, and is read again on SIGHUP; `None` as for [`Config::load`].
    pub config_path: Option<PathBuf>,
    /// Who this runner is.
    pub registration: Registration,
    /// The state directory, and the right to work in it.
    pub state: StateDir,
    /// See [`StateDir::lock`].
    pub lock: Lock,
    /// What job processes are started from.
    pub program: Program,
    /// Take one task, and leave when it has ended.
    pub once: bool,
    /// Take no task, and leave when those that are here have ended.
    pub drain: bool,
}

/// Why a daemon left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// It was told to. This many jobs go on without it.
    Stopped {
        /// Jobs that still run or are not reported to their end.
        jobs: usize,
    },
    /// There was nothing left to do.
    Done,
}

/// Why a daemon could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The registration names no instance.
    #[error("the registration's address: {0}")]
    Address(#[from] AddressError),
    /// The registration holds what no header can.
    #[error("the registration's uuid or token cannot be sent; register again")]
    Credentials,
    /// The registration has a label that cannot be.
    #[error("the registration: {0}; correct it under runner.labels of the configuration, or register again")]
    Label(#[from] crate::config::LabelError),
    /// No label is left.
    #[error("this runner has no label, so no job would ever be for it; add one under runner.labels")]
    NoLabels,
    /// The file with variables for the steps cannot be used.
    #[error("runner.env_file: {0}")]
    EnvFile(#[from] EnvFileError),
    /// The HTTP client cannot be set up.
    #[error("{0}")]
    Client(#[from] Error),
    /// The state directory cannot be used.
    #[error("{0}")]
    State(#[from] supervisor::Error),
    /// Signals cannot be waited for.
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
    /// The instance does not know this runner.
    #[error(
        "{address} does not know runner {name} any more (asked twice); it was removed there, or the instance was set up anew. Run `sower register` again"
    )]
    Unregistered {
        /// The instance.
        address: String,
        /// The runner's name.
        name: String,
    },
}

/// Runs until it is told to stop, or has nothing left to do. It does not leave because Gitea is away.
///
/// # Errors
/// When it cannot begin, or the instance says twice that it does not know this runner.
pub async fn run(mut options: Options) -> Result<Left, DaemonError> {
    ready_limits(&options.config, &mut options.program);
    let mut signals = Signals::new().map_err(DaemonError::Signals)?;
    let mut daemon = Daemon::new(options)?;
    daemon.take_up_jobs()?;
    daemon.serve(&mut signals).await
}

/// Readies the control groups for the limits of jobs.
fn ready_limits(config: &Config, program: &mut Program) {
    let all = config.limits.labels.values().fold(config.limits.job.clone(), |all, label| all.or(label));
    if all.is_none() {
        return;
    }
    match cap::delegate(&all) {
        Ok(below) => program.set_scopes(below == Below::Scopes),
        Err(problem) => warn!("limits are not enforced: {problem}"),
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    drain: Signal,
    reload: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            drain: signal(SignalKind::user_defined1())?,
            reload: signal(SignalKind::hangup())?,
        })
    }
}

/// What happens to a daemon.
enum Happening {
    Stop,
    Drain,
    Reload,
    Alive,
    Task(Received),
    Ended(Result<(JobDir, Outcome), JoinError>),
    PollerLeft(Result<Result<(), Unregistered>, JoinError>),
    Housekeeping,
}

struct Daemon {
    options: Options,
    client: Client,
    labels: Vec<String>,
    step_env: BTreeMap<String, String>,
    host: String,
    slots: Arc<Semaphore>,
    reporters: JoinSet<(JobDir, Outcome)>,
    stop_reporting: watch::Sender<bool>,
    stop_polling: watch::Sender<bool>,
    notifier: Notifier,
    watchdog: Option<Interval>,
    /// The poller has been told to leave so that another one takes its place.
    renewing: bool,
    draining: bool,
    caches: Caches,
    observer: Observer,
    housekeeper: Housekeeper,
    alarm: Alarm,
}

impl Daemon {
    fn new(options: Options) -> Result<Self, DaemonError> {
        let registration = &options.registration;
        let credentials =
            Credentials::new(&registration.uuid, &registration.token).ok_or(DaemonError::Credentials)?;
        let insecure = options.config.runner.insecure;
        let observer = Observer::new(about(&options.config, registration, Vec::new()));
        let client = Client::new(registration.address.parse()?, insecure)?
            .with_credentials(credentials)
            .observed_by(observer.clone());
        let notifier = Notifier::from_environment();
        let labels = labels(&options.config, registration)?;
        observer.about(about(&options.config, registration, labels.clone()));
        let caches = Caches::start(&options.config, options.state.path(), client.address().as_str());
        if let Some(counts) = caches.counts() {
            observer.cache(counts);
        }
        Ok(Self {
            client,
            labels,
            housekeeper: Housekeeper::new(&options.config, observer.clone()),
            alarm: Alarm::of(&options.config.notify).unwrap_or_else(|problem| {
                warn!("nobody is told of jobs that fail: {problem}");
                Alarm::default()
            }),
            observer,
            step_env: options.config.step_env()?,
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            slots: Arc::new(Semaphore::new(options.config.runner.capacity as usize)),
            reporters: JoinSet::new(),
            caches,
            stop_reporting: watch::Sender::new(false),
            stop_polling: watch::Sender::new(false),
            watchdog: notifier.interval().map(tokio::time::interval),
            notifier,
            renewing: false,
            draining: options.drain,
            options,
        })
    }

    /// Finds the jobs that earlier daemons left.
    fn take_up_jobs(&mut self) -> Result<(), DaemonError> {
        for dir in self.options.state.jobs()? {
            if dir.is_reported() {
                self.remove(dir, None);
                continue;
            }
            let task = dir.task();
            self.caches.admit(&dir);
            let found = dir.may_start().and_then(|may_start| {
                if may_start {
                    info!("task {task}: received by an earlier daemon, starting it");
                    self.start(&dir)
                } else {
                    info!("task {task}: found, reporting goes on");
                    JobProcess::find(dir.clone())
                }
            });
            // One directory that cannot be read is no reason to leave the others alone.
            let process = match found {
                Ok(process) => process,
                Err(error) => {
                    error!("task {task}: {error}");
                    continue;
                }
            };
            // More jobs than slots are looked after all the same; no more are fetched then.
            let permit = Arc::clone(&self.slots).try_acquire_owned().ok();
            self.report(process, false, permit);
        }
        Ok(())
    }

    async fn serve(&mut self, signals: &mut Signals) -> Result<Left, DaemonError> {
        self.listen();
        let (sender, mut tasks) = mpsc::channel(1);
        let one_is_here = self.options.registration.ephemeral && !self.reporters.is_empty();
        let mut poller =
            (!self.options.drain && !one_is_here).then(|| tokio::spawn(self.poller(sender.clone()).run()));
        self.notifier.ready();
        loop {
            if poller.is_none() && self.reporters.is_empty() && tasks.is_empty() {
                return Ok(Left::Done);
            }
            match self.next(signals, &mut tasks, &mut poller).await {
                Happening::Task(received) => self.accept(received),
                Happening::Ended(ended) => self.ended(ended),
                Happening::Drain => {
                    info!("taking no more tasks; leaving when {} have ended", self.reporters.len());
                    self.notifier.status("draining: taking no more tasks");
                    self.draining = true;
                    self.observer.draining();
                    self.renewing = false;
                    self.stop_polling.send_replace(true);
                }
                Happening::Reload => self.reload(poller.is_some()),
                Happening::Alive => self.notifier.alive(),
                Happening::Housekeeping => {
                    self.housekeeper.turn(&self.options.config, self.reporters.is_empty());
                }
                Happening::PollerLeft(Ok(Ok(()))) if self.renewing => {
                    self.renewing = false;
                    self.stop_polling = watch::Sender::new(false);
                    poller = Some(tokio::spawn(self.poller(sender.clone()).run()));
                }
                Happening::PollerLeft(Ok(Ok(()))) => poller = None,
                Happening::PollerLeft(Ok(Err(Unregistered))) => {
                    let registration = &self.options.registration;
                    return Err(DaemonError::Unregistered {
                        address: registration.address.clone(),
                        name: registration.name.clone(),
                    });
                }
                Happening::PollerLeft(Err(failure)) => {
                    error!("asking for tasks has failed: {failure}");
                    poller = None;
                }
                Happening::Stop => break,
            }
        }
        Ok(self.leave(&mut tasks, poller).await)
    }

    async fn next(
        &mut self,
        signals: &mut Signals,
        tasks: &mut mpsc::Receiver<Received>,
        poller: &mut Option<JoinHandle<Result<(), Unregistered>>>,
    ) -> Happening {
        tokio::select! {
            biased;
            _ = signals.terminate.recv() => Happening::Stop,
            _ = signals.interrupt.recv() => Happening::Stop,
            _ = signals.drain.recv() => Happening::Drain,
            _ = signals.reload.recv() => Happening::Reload,
            () = tick(&mut self.watchdog) => Happening::Alive,
            () = self.housekeeper.due() => Happening::Housekeeping,
            Some(received) = tasks.recv() => Happening::Task(received),
            Some(ended) = self.reporters.join_next() => Happening::Ended(ended),
            left = wait_for(poller) => Happening::PollerLeft(left),
        }
    }

    /// Takes the configuration as it is now, for the tasks that come; jobs that run keep what they began with.
    fn reload(&mut self, polling: bool) {
        if self.draining || self.options.once || self.options.registration.ephemeral {
            warn!("not reloading: this daemon takes no more than the tasks it has");
            return;
        }
        self.notifier.reloading();
        match self.read_again() {
            Ok(()) => {
                // The poller ends its question first: the answer may be a task.
                self.renewing = polling;
                self.stop_polling.send_replace(true);
                let capacity = self.options.config.runner.capacity;
                info!("reloaded: labels {}, capacity {capacity}", self.labels.join(", "));
            }
            Err(reason) => error!("not reloaded, all stays as it was: {reason}"),
        }
        self.notifier.ready();
    }

    fn read_again(&mut self) -> Result<(), String> {
        let path = self.options.config_path.as_deref();
        let (config, warnings) = Config::load(path).map_err(|error| error.to_string())?;
        for warning in warnings {
            warn!("{warning}");
        }
        let old = &self.options.config;
        if config.runner.file != old.runner.file {
            return Err("runner.file has changed, which takes a restart".to_owned());
        }
        if config.runner.insecure != old.runner.insecure || config.log != old.log {
            warn!("runner.insecure and log take a restart; the old values stay in force");
        }
        let labels = labels(&config, &self.options.registration).map_err(|error| error.to_string())?;
        if let Some(fault) = faults(&config).into_iter().next() {
            return Err(fault);
        }
        let step_env = config.step_env().map_err(|error| format!("runner.env_file: {error}"))?;
        let (before, now) = (old.runner.capacity, config.runner.capacity);
        if now > before {
            self.slots.add_permits((now - before) as usize);
        } else if now < before {
            // Slots that are in use go when their jobs end, before the poller gets one.
            let slots = Arc::clone(&self.slots);
            tokio::spawn(async move {
                if let Ok(permits) = slots.acquire_many_owned(before - now).await {
                    permits.forget();
                }
            });
        }
        if config.metrics != old.metrics {
            warn!("metrics take a restart; the old values stay in force");
        }
        self.alarm = Alarm::of(&config.notify)?;
        self.observer.about(about(&config, &self.options.registration, labels.clone()));
        self.housekeeper.set(&config);
        self.labels = labels;
        self.step_env = step_env;
        ready_limits(&config, &mut self.options.program);
        self.options.config = config;
        Ok(())
    }

    /// Leaves: a question that is on its way is waited for, since its answer may be a task.
    async fn leave(
        &mut self,
        tasks: &mut mpsc::Receiver<Received>,
        mut poller: Option<JoinHandle<Result<(), Unregistered>>>,
    ) -> Left {
        info!("stopping");
        self.notifier.stopping();
        self.stop_polling.send_replace(true);
        while poller.is_some() || !tasks.is_empty() {
            tokio::select! {
                biased;
                Some(received) = tasks.recv() => {
                    info!("task {}: received while stopping; the next daemon starts it", received.task.id);
                    self.write_down(received.task);
                }
                _ = wait_for(&mut poller) => poller = None,
            }
        }
        let patience = self.options.config.runner.shutdown_timeout;
        let _ = tokio::time::timeout(patience, self.wait_for_jobs()).await;
        self.stop_reporting.send_replace(true);
        let mut jobs = self.reporters.len();
        let last_reports = async {
            while let Some(ended) = self.reporters.join_next().await {
                if matches!(&ended, Ok((_, Outcome::Reported | Outcome::Lost))) {
                    jobs -= 1;
                }
                if let Ok((dir, outcome @ (Outcome::Reported | Outcome::Lost))) = ended {
                    if outcome == Outcome::Reported {
                        let runner = &self.options.registration.name;
                        self.alarm.ring(&dir, &self.client.address().to_string(), runner);
                    }
                    let kept =
                        supervisor::history::keep(&self.options.state, &dir, &self.options.config.history);
                    if let Err(error) = dir.remove().and(kept) {
                        warn!("task {}: {error}", dir.task());
                    }
                }
            }
        };
        let _ = tokio::time::timeout(LAST_REPORTS, last_reports).await;
        let _ = tokio::time::timeout(LAST_MESSAGES, self.alarm.said()).await;
        Left::Stopped { jobs }
    }

    async fn wait_for_jobs(&mut self) {
        while let Some(ended) = self.reporters.join_next().await {
            self.ended(ended);
        }
    }

    /// Where there must be room for another job.
    fn room(&self) -> Room {
        let config = &self.options.config;
        let mut places = vec![config.state_dir().to_owned()];
        places.extend(config.host.workdir_parent.clone());
        Room::new(places, config.housekeeping.min_free, self.observer.clone(), self.housekeeper.wanted())
    }

    /// Answers those who ask how the daemon stands. It works without.
    fn listen(&self) {
        let socket = observe::socket(self.options.state.path());
        if let Err(error) =
            observe::serve(&Endpoint::Socket(socket.clone()), Access::Private, self.observer.clone())
        {
            warn!("{}: {error}; `sower status` finds no daemon", socket.display());
        }
        let metrics = &self.options.config.metrics;
        if !metrics.enabled {
            return;
        }
        // It was checked when the configuration was read.
        let Some(endpoint) = Endpoint::parse(&metrics.addr) else { return };
        match observe::serve(&endpoint, Access::Public, self.observer.clone()) {
            Ok(Some(address)) => info!("metrics at http://{address}/metrics"),
            Ok(None) => info!("metrics at {}", metrics.addr),
            Err(error) => warn!("no metrics: {}: {error}", metrics.addr),
        }
    }

    fn poller(&self, tasks: mpsc::Sender<Received>) -> Poller {
        let runner = &self.options.config.runner;
        Poller {
            client: self.client.clone(),
            labels: self.labels.clone(),
            interval: runner.fetch_interval,
            timeout: runner.fetch_timeout,
            once: self.options.once || self.options.registration.ephemeral,
            slots: Arc::clone(&self.slots),
            tasks,
            stop: self.stop_polling.subscribe(),
            pause: Pause::new(),
            room: self.room(),
            busy: self.housekeeper.busy(),
            state: self.options.state.clone(),
        }
    }

    /// Takes a task: written down first, then started, then reported on.
    fn accept(&mut self, received: Received) {
        let Received { task, permit, unwritten } = received;
        let number = task.id;
        let Some(dir) = self.write_down(task) else { return };
        drop(unwritten);
        let meta = dir.read_meta();
        info!("task {number}: job {} of {}", meta.job, meta.repository);
        match self.start(&dir) {
            Ok(process) => self.report(process, true, Some(permit)),
            Err(error) => error!("task {number}: {error}"),
        }
    }

    fn write_down(&mut self, task: Task) -> Option<JobDir> {
        let number = task.id;
        let registration = &self.options.registration;
        let around = Surroundings {
            config: &self.options.config,
            step_env: &self.step_env,
            address: self.client.address(),
            runner: RunnerInfo { name: registration.name.clone(), labels: self.labels.clone() },
            uuid: &registration.uuid,
            host: &self.host,
            cache: self.caches.url(),
            results: self.caches.results(),
        };
        let directory = self.options.state.job(number);
        let (spec, meta) = job_spec(task, &directory, &around);
        let token = spec.env.get("ACTIONS_RUNTIME_TOKEN").cloned().unwrap_or_default();
        match self.options.state.create(number, &meta, &spec, &token) {
            Ok(dir) => {
                self.caches.admit(&dir);
                Some(dir)
            }
            Err(supervisor::Error::Present { path }) => {
                error!("task {number}: {} is there already, so this task runs already", path.display());
                None
            }
            Err(error) => {
                error!("task {number}: {error}");
                let reason = format!("The runner cannot write this task down: {error}");
                let stop = self.stop_reporting.subscribe();
                tokio::spawn(reporter::refuse(self.client.clone(), number, meta.steps.len(), reason, stop));
                None
            }
        }
    }

    /// Starts a job's process. One that cannot be started is a job whose process is gone, and is reported so.
    fn start(&self, dir: &JobDir) -> Result<JobProcess, supervisor::Error> {
        match JobProcess::start(dir.clone(), &self.options.program) {
            Ok(process) => Ok(process),
            Err(failure) => {
                error!("task {}: {failure}", dir.task());
                dir.note(&failure.to_string());
                JobProcess::find(dir.clone())
            }
        }
    }

    fn report(&mut self, process: JobProcess, fresh: bool, permit: Option<OwnedSemaphorePermit>) {
        let dir = process.dir().clone();
        let reporter = Reporter::new(
            self.client.clone(),
            process,
            fresh,
            self.options.config.runner.report_interval,
            self.options.registration.ephemeral,
            self.stop_reporting.subscribe(),
            self.observer.clone(),
        );
        let meta = dir.read_meta();
        self.observer.job_begins(observe::Job {
            task: dir.task(),
            repository: meta.repository,
            workflow: meta.workflow,
            job: meta.job,
            state: observe::Stage::default(),
            received: meta.received,
            rows: 0,
        });
        let state = self.options.state.clone();
        self.reporters.spawn(async move {
            let outcome = reporter.run().await;
            if outcome != Outcome::Left && !dir.is_reported() {
                // That could not be noted down: the next task may not be, either.
                state.doubt();
            }
            drop(permit);
            (dir, outcome)
        });
    }

    fn ended(&mut self, ended: Result<(JobDir, Outcome), JoinError>) {
        match ended {
            Ok((dir, outcome @ (Outcome::Reported | Outcome::Lost))) => {
                self.caches.revoke(&dir);
                self.observer.job_left(dir.task());
                let alarm = (outcome == Outcome::Reported).then(|| self.alarm.clone());
                self.remove(dir, alarm);
            }
            Ok((_, Outcome::Left)) => {}
            Err(failure) => error!("a report has failed: {failure}"),
        }
        if self.reporters.is_empty() {
            self.housekeeper.rest(&self.options.config);
        }
    }

    /// Removes a job's directory beside the other work: a workspace may hold very many files.
    fn remove(&self, dir: JobDir, alarm: Option<Alarm>) {
        let (state, rules) = (self.options.state.clone(), self.options.config.history.clone());
        let (address, runner) = (self.client.address().to_string(), self.options.registration.name.clone());
        tokio::task::spawn_blocking(move || {
            if let Some(alarm) = alarm {
                alarm.ring(&dir, &address, &runner);
            }
            if let Err(error) = supervisor::history::keep(&state, &dir, &rules) {
                warn!("task {}: its log is not kept: {error}", dir.task());
            }
            if let Err(error) = dir.remove() {
                warn!("task {}: {error}; tried again at the next start", dir.task());
            }
        });
    }
}

/// What the configuration says that others may see.
fn about(config: &Config, registration: &Registration, labels: Vec<String>) -> About {
    let mut places = vec![(Place::State, config.state_dir().to_owned())];
    places.extend(config.host.workdir_parent.clone().map(|path| (Place::Work, path)));
    let store = crate::archive::nix::store_directory();
    if store.is_dir() {
        places.push((Place::Store, store));
    }
    About {
        address: registration.address.clone(),
        runner: registration.name.clone(),
        labels,
        capacity: config.runner.capacity,
        places,
        min_free: config.housekeeping.min_free,
    }
}

/// The labels in force: those of the configuration, or else those of the registration.
fn labels(config: &Config, registration: &Registration) -> Result<Vec<String>, DaemonError> {
    let labels: Vec<Label> = if config.runner.labels.is_empty() {
        registration.labels.iter().map(|label| label.parse()).collect::<Result<_, _>>()?
    } else {
        config.runner.labels.clone()
    };
    if labels.is_empty() {
        return Err(DaemonError::NoLabels);
    }
    Ok(labels.into_iter().map(|label| label.name).collect())
}

/// The next time to tell the service manager; never where there is none.
async fn tick(watchdog: &mut Option<Interval>) {
    match watchdog {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// Waits for a poller; for ever where there is none.
async fn wait_for(
    poller: &mut Option<JoinHandle<Result<(), Unregistered>>>,
) -> Result<Result<(), Unregistered>, JoinError> {
    match poller {
        Some(handle) => handle.await,
        None => std::future::pending().await,
    }
}

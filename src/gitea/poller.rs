//! Asking Gitea for tasks: one question at a time, at a measured pace, never given up half-way.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sower_wire::runner::{DeclareRequest, Task};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tracing::{debug, info, warn};

use super::backoff::stretched;
use super::client::Client;
use super::error::{Error, Meaning};
use super::pause::Pause;
use super::room::Room;
use super::{Backoff, CAPABILITIES};
use crate::supervisor::StateDir;

/// A reply that is given up may hold a task that then nobody runs, so no question is shorter than this.
const SHORTEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait between two questions while Gitea is away.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The version of tasks that a server tells is not always told again when it should be; after this long it is
/// asked to look in any case.
const LOOK_ANYWAY: Duration = Duration::from_secs(60);
/// How often a disk below `housekeeping.min_free` is looked at.
const WAIT_FOR_ROOM: Duration = Duration::from_secs(10);
/// How often a state directory that cannot be written is looked at.
const FULL_WAIT: Duration = Duration::from_secs(2);
/// A server that does not know this runner is asked once more after this long.
const CONFIRM_AFTER: Duration = Duration::from_secs(5);

/// The server says, twice, that it does not know this runner.
#[derive(Debug)]
pub(super) struct Unregistered;

/// A task that was received and is nowhere yet but in memory.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) task: Task,
    /// Its slot.
    pub(super) permit: OwnedSemaphorePermit,
    /// To be dropped once the task is written down. Until then no other is asked for: each that is in memory only, or
    /// waits in a socket, is lost when the daemon is killed.
    pub(super) unwritten: oneshot::Sender<()>,
}

/// Asks for tasks while a slot is free.
pub(super) struct Poller {
    pub(super) client: Client,
    /// Names of the labels.
    pub(super) labels: Vec<String>,
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
    /// Leave after one task.
    pub(super) once: bool,
    /// One permit for each task that may run.
    pub(super) slots: Arc<Semaphore>,
    pub(super) tasks: mpsc::Sender<Received>,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) pause: Pause,
    pub(super) room: Room,
    /// The Nix store is being cleaned: a task that came now would only wait.
    pub(super) busy: watch::Receiver<bool>,
    /// Where tasks are written down.
    pub(super) state: StateDir,
}

impl Poller {
    /// Asks until it is told to stop, or has its one task.
    pub(super) async fn run(mut self) -> Result<(), Unregistered> {
        self.declare().await?;
        let mut backoff = Backoff::new(self.interval.max(Duration::from_secs(1)), LONGEST_WAIT);
        let mut version = 0;
        let mut looked = Instant::now();
        let mut confirming = false;
        let mut full = false;
        let mut wait = Duration::ZERO;
        // One timer for all questions. Moving it further away costs nothing; a new one each time wakes the runtime.
        let patience = self.timeout.max(SHORTEST_TIMEOUT);
        let mut deadline = pin!(tokio::time::sleep(patience));
        loop {
            let slots = Arc::clone(&self.slots);
            let permit = tokio::select! {
                biased;
                () = stopped(&mut self.stop) => return Ok(()),
                permit = slots.acquire_owned() => permit,
            };
            let Ok(permit) = permit else { return Ok(()) };
            if self.pause(wait).await {
                return Ok(());
            }
            if !self.room.is_there() {
                wait = WAIT_FOR_ROOM.max(self.interval);
                continue;
            }
            if *self.busy.borrow() {
                wait = self.interval;
                continue;
            }
            match self.state.check_room() {
                Err(problem) => {
                    if !std::mem::replace(&mut full, true) {
                        warn!("{problem}; taking no task until that is over");
                    }
                    wait = FULL_WAIT;
                    continue;
                }
                Ok(()) if std::mem::take(&mut full) => info!("there is room again"),
                Ok(()) => {}
            }
            if looked.elapsed() >= LOOK_ANYWAY {
                version = 0;
            }
            if version == 0 {
                looked = Instant::now();
            }
            // Not raced against the stop signal: the reply may hold a task.
            deadline.as_mut().reset(tokio::time::Instant::now() + patience);
            let reply = tokio::select! {
                biased;
                reply = self.client.fetch_task(version) => reply,
                () = deadline.as_mut() => Err(self.client.no_answer()),
            };
            match reply {
                Ok(reply) => {
                    if backoff.failures() > 0 {
                        info!("{} answers again", self.client.address());
                    }
                    backoff.succeeded();
                    confirming = false;
                    if let Some(task) = reply.task {
                        version = 0;
                        wait = Duration::ZERO;
                        let (unwritten, written) = oneshot::channel();
                        let received = Received { task, permit, unwritten };
                        if self.tasks.send(received).await.is_err() || self.once {
                            return Ok(());
                        }
                        // Nothing is ever sent: it ends.
                        let _ = written.await;
                    } else {
                        version = reply.tasks_version;
                        wait = stretched(self.interval);
                    }
                }
                Err(error) if error.meaning() == Meaning::Unregistered => {
                    if confirming {
                        return Err(Unregistered);
                    }
                    warn!("{error}; asking once more");
                    confirming = true;
                    wait = CONFIRM_AFTER;
                }
                Err(error) => wait = failed(&mut backoff, &error),
            }
        }
    }

    /// Says what this runner is, until the server has heard it.
    async fn declare(&mut self) -> Result<(), Unregistered> {
        let request = DeclareRequest {
            version: crate::VERSION.to_owned(),
            labels: self.labels.clone(),
            capabilities: CAPABILITIES.map(str::to_owned).to_vec(),
        };
        let mut backoff = Backoff::new(Duration::from_secs(1), LONGEST_WAIT);
        let mut confirming = false;
        while !*self.stop.borrow() {
            let wait = match self.client.declare(&request).await {
                Ok(_) => {
                    info!("connected to {}, labels {}", self.client.address(), self.labels.join(", "));
                    return Ok(());
                }
                Err(error) if error.meaning() == Meaning::Unregistered => {
                    if confirming {
                        return Err(Unregistered);
                    }
                    warn!("{error}; asking once more");
                    confirming = true;
                    CONFIRM_AFTER
                }
                Err(error) => failed(&mut backoff, &error),
            };
            self.pause(wait).await;
        }
        Ok(())
    }

    /// Waits; true when it is time to stop.
    async fn pause(&mut self, wait: Duration) -> bool {
        if wait.is_zero() {
            return *self.stop.borrow();
        }
        tokio::select! {
            biased;
            () = stopped(&mut self.stop) => true,
            () = self.pause.wait(wait) => false,
        }
    }
}

/// Logs a failure, the first of a row for everybody to see, and says how long to wait.
fn failed(backoff: &mut Backoff, error: &Error) -> Duration {
    let first = backoff.failures() == 0;
    let wait = backoff.failed();
    let wait = error.retry_after().map_or(wait, |asked| asked.max(wait));
    if first {
        warn!("{error}; trying again");
    } else {
        debug!("{error}; next try in {:.1} s", wait.as_secs_f64());
    }
    wait
}

/// Returns when the flag is set, or nobody can set it any more.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

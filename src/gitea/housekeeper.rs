//! When the daemon keeps house: at its interval, and when the disk gate has closed, always while no job runs.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::config::Config;
use crate::housekeeping::{self, Collected, Options};
use crate::limits::size::Size;
use crate::observe::Observer;

/// The first turn comes this long after the daemon has begun, when what it found is looked after.
const FIRST: Duration = Duration::from_secs(600);
/// How soon a turn that was hindered by a job, or did not free enough, is tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// Decides when.
#[derive(Debug)]
pub(super) struct Housekeeper {
    interval: Duration,
    next: Instant,
    /// A turn was due while a job ran, and is made up for as soon as none does.
    overdue: bool,
    /// The disk gate is closed.
    wanted: watch::Sender<bool>,
    heard: watch::Receiver<bool>,
    /// The store is being cleaned.
    busy: watch::Sender<bool>,
    observer: Observer,
}

impl Housekeeper {
    pub(super) fn new(config: &Config, observer: Observer) -> Self {
        let (wanted, heard) = watch::channel(false);
        let interval = config.housekeeping.interval;
        let next = Instant::now() + interval.min(FIRST);
        Self { interval, next, overdue: false, wanted, heard, busy: watch::Sender::new(false), observer }
    }

    /// Takes another configuration.
    pub(super) fn set(&mut self, config: &Config) {
        self.interval = config.housekeeping.interval;
        self.next = self.next.min(Instant::now() + self.interval.max(AGAIN));
    }

    /// Where the disk gate says that it has closed.
    pub(super) fn wanted(&self) -> watch::Sender<bool> {
        self.wanted.clone()
    }

    /// Whether the store is being cleaned.
    pub(super) fn busy(&self) -> watch::Receiver<bool> {
        self.busy.subscribe()
    }

    /// Returns when a turn is due.
    pub(super) async fn due(&mut self) {
        let timed = !self.interval.is_zero() || *self.heard.borrow();
        tokio::select! {
            () = sleep_until(self.next), if timed => {}
            _ = self.heard.changed() => {}
        }
    }

    /// The last job has ended. On a host with a queue the next one is here in a moment: it waits for the store, if that
    /// has to be cleaned.
    pub(super) fn rest(&mut self, config: &Config) {
        if self.overdue {
            self.next = Instant::now();
            self.turn(config, true);
        }
    }

    /// Keeps house beside the other work, if no job is there.
    pub(super) fn turn(&mut self, config: &Config, idle: bool) {
        let full = *self.heard.borrow_and_update();
        // The gate has opened again, which is no reason.
        if !full && Instant::now() < self.next {
            return;
        }
        let soon = if full { AGAIN } else { self.interval };
        if !idle || *self.busy.borrow() {
            self.next = Instant::now() + AGAIN;
            self.overdue |= !idle;
            return;
        }
        self.overdue = false;
        self.next = Instant::now() + soon.max(AGAIN);
        self.busy.send_replace(true);
        let (busy, observer, config) = (self.busy.clone(), self.observer.clone(), config.clone());
        tokio::task::spawn_blocking(move || {
            let turn = housekeeping::run(&config, Options { daemon: true, ..Options::default() });
            for item in &turn.items {
                if let Some(problem) = &item.problem {
                    warn!("housekeeping: {}: {problem}", item.path.display());
                }
            }
            if let Collected::Failed { why } = &turn.store {
                warn!("housekeeping: the Nix store is not cleaned: {why}");
            }
            let freed = turn.freed();
            if freed > 0 {
                info!("housekeeping: {} freed", Size(freed));
            }
            observer.kept_house(freed);
            busy.send_replace(false);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::About;

    #[tokio::test]
    async fn a_turn_that_a_job_hindered_is_made_up_for_when_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.runner.file = folder.path().join(".runner");
        config.housekeeping.interval = Duration::ZERO;
        let mut keeper = Housekeeper::new(&config, Observer::new(About::default()));
        keeper.rest(&config);
        assert!(!*keeper.busy().borrow(), "nothing was due");
        keeper.turn(&config, false);
        assert!(!*keeper.busy().borrow(), "a job runs");
        keeper.rest(&config);
        let mut busy = keeper.busy();
        assert!(*busy.borrow());
        busy.wait_for(|busy| !busy).await.unwrap();
        keeper.rest(&config);
        assert!(!*keeper.busy().borrow(), "once is enough");
    }
}

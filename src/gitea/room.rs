//! The disk gate: a task is fetched only while there is room for its job. Gitea keeps the others waiting.

use std::path::PathBuf;

use rustix::fs::statvfs;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::observe::Observer;

/// The places that need room.
#[derive(Debug)]
pub(super) struct Room {
    places: Vec<PathBuf>,
    min_free: u64,
    /// Whether it has been said that there is none.
    said: bool,
    observer: Observer,
    /// Told once when there is none, so that somebody may make some.
    full: watch::Sender<bool>,
}

impl Room {
    /// `min_free` in bytes; 0 asks for nothing.
    pub(super) fn new(
        places: Vec<PathBuf>,
        min_free: u64,
        observer: Observer,
        full: watch::Sender<bool>,
    ) -> Self {
        // Another configuration may have left it closed.
        observer.gate(None);
        full.send_if_modified(std::mem::take);
        Self { places, min_free, said: false, observer, full }
    }

    /// Whether every place has room. A change is logged once.
    pub(super) fn is_there(&mut self) -> bool {
        if self.min_free == 0 {
            return true;
        }
        // A place that is not there yet, or cannot be asked, is no reason to stand still: the job will tell.
        let full = self.places.iter().find_map(|place| {
            let answer = statvfs(place).ok()?;
            let free = answer.f_bavail.saturating_mul(answer.f_frsize);
            (free < self.min_free).then_some((place, free))
        });
        let why = full.map(|(place, free)| {
            let (free, wanted) = (free >> 20, self.min_free >> 20);
            format!(
                "{}: {free} MiB are free, and housekeeping.min_free asks for {wanted} MiB",
                place.display()
            )
        });
        match &why {
            Some(why) if !self.said => warn!("{why}; fetching no tasks until there is room"),
            None if self.said => info!("there is room on the disk again; fetching tasks"),
            _ => {}
        }
        let now = why.is_some();
        if now != self.said {
            self.full.send_replace(now);
        }
        if now || self.said {
            self.observer.gate(why);
        }
        self.said = now;
        !now
    }
}

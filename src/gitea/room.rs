//! The disk gate: a task is fetched only while there is room for its job. Gitea keeps the others waiting.

use std::path::PathBuf;

use rustix::fs::statvfs;
use tracing::{info, warn};

/// The places that need room.
#[derive(Debug)]
pub(super) struct Room {
    places: Vec<PathBuf>,
    min_free: u64,
    /// Whether it has been said that there is none.
    said: bool,
}

impl Room {
    /// `min_free` in bytes; 0 asks for nothing.
    pub(super) fn new(places: Vec<PathBuf>, min_free: u64) -> Self {
        Self { places, min_free, said: false }
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
        match full {
            Some((place, free)) if !self.said => warn!(
                "{}: {} MiB are free, and housekeeping.min_free asks for {} MiB; fetching no tasks until there is room",
                place.display(),
                free >> 20,
                self.min_free >> 20
            ),
            None if self.said => info!("there is room on the disk again; fetching tasks"),
            _ => {}
        }
        self.said = full.is_some();
        !self.said
    }
}

//! Whether a layer that is split is what its image says, found out beside all that is done with its parts.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Error;
use super::source::Image;
use tokio::task::JoinHandle;

/// The hashing of a whole layer. It stops when this is dropped.
pub(super) struct Check {
    task: JoinHandle<Result<(), Error>>,
    stop: Arc<AtomicBool>,
}

impl Check {
    /// Starts it on a thread of its own.
    pub(super) fn start(image: &Image) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (image, stopped) = (image.clone(), Arc::clone(&stop));
        Self { task: tokio::task::spawn_blocking(move || image.check_whole(&stopped)), stop }
    }

    /// What it came to.
    ///
    /// # Errors
    /// When the layer has another digest than the configuration says, or cannot be read.
    pub(super) async fn end(mut self, path: &Path) -> Result<(), Error> {
        (&mut self.task).await.map_err(|_| Error::stopped(path))?
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

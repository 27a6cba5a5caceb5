//! Waiting for the next question to Gitea, with as few wake-ups as the kernel allows.
//!
//! This is the one wait of an idle daemon. A timer of the runtime wakes itself when it is set and several times more on
//! its way to the deadline, since the runtime looks at far deadlines coarsely; a timerfd wakes once.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A timer that can be used again and again, by one task at a time.
#[derive(Debug)]
pub(super) struct Pause {
    /// `None` where the kernel has none to give: then the runtime's timers serve.
    timer: Option<AsyncFd<OwnedFd>>,
}

impl Pause {
    /// Within a runtime.
    pub(super) fn new() -> Self {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Self { timer: timerfd_create(TimerfdClockId::Monotonic, flags).ok().and_then(register) }
    }

    /// Returns after `wait`. A wait that was given up may make the next one shorter.
    pub(super) async fn wait(&self, wait: Duration) {
        if let Some(timer) = &self.timer
            && set(timer, wait)
            && let Ok(mut ready) = timer.readable().await
        {
            // Not read: setting it anew forgets that it has run out.
            ready.clear_ready();
            return;
        }
        tokio::time::sleep(wait).await;
    }
}

#[expect(
    unsafe_code,
    reason = "the runtime has no safe way to watch a descriptor of another kind than its own"
)]
fn register(timer: OwnedFd) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is open and owned by what is registered; nothing here closes or replaces it.
    unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }.ok()
}

/// Whether the timer now runs.
fn set(timer: &AsyncFd<OwnedFd>, wait: Duration) -> bool {
    // A timer that is set to nothing never runs out.
    let wait = wait.max(Duration::from_nanos(1));
    let Ok(value) = Timespec::try_from(wait) else { return false };
    let once = Itimerspec { it_interval: Timespec::default(), it_value: value };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &once).is_ok()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn waits_as_long_as_it_is_told_each_time() {
        let pause = Pause::new();
        assert!(pause.timer.is_some(), "no timerfd here");
        for wait in [Duration::from_millis(30), Duration::ZERO, Duration::from_millis(50)] {
            let begun = Instant::now();
            pause.wait(wait).await;
            assert!(begun.elapsed() >= wait, "{:?} instead of {wait:?}", begun.elapsed());
        }
    }
}

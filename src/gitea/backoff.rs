//! How long to wait before the next try.

use std::time::Duration;

/// Waits that double from a first to a longest one, with a fifth of jitter either way.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits from `first` to `longest`.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// How often [`Backoff::failed`] was called since the last success.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Something succeeded: the next wait is the first one.
    pub const fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Something failed: how long to wait now.
    pub fn failed(&mut self) -> Duration {
        let doubled = self.first.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        jittered(doubled.min(self.longest))
    }
}

/// A duration with a fifth of jitter either way, so that runners do not march in step.
#[must_use]
fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(0.8 + 0.4 * random())
}

/// A duration and up to a fifth more: what is asked for regularly is not asked for more often than was configured.
#[must_use]
pub(super) fn stretched(duration: Duration) -> Duration {
    duration.mul_f64(1.0 + 0.2 * random())
}

/// From 0 to 1.
fn random() -> f64 {
    // Without randomness there is no jitter, which is no reason to fail.
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    f64::from(random) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_again_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        for expected in [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0] {
            let wait = backoff.failed().as_secs_f64();
            assert!((expected * 0.8..=expected * 1.2).contains(&wait), "{wait} is not about {expected}");
        }
        backoff.succeeded();
        assert!(backoff.failed() < Duration::from_secs(2));
        for _ in 0..100 {
            backoff.failed();
        }
    }
}

//! What every test of the daemon begins with.

use std::time::{Duration, Instant};

use sower_test_support::{Runner, Server};

/// How long a test waits for what must come. Long, because nothing is learnt from a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A runner that is registered for the label `host` and works.
pub(crate) fn runner(server: &dyn Server, capacity: usize) -> Runner {
    let mut runner = registered(server, capacity, &[]);
    runner.start(&[]).unwrap();
    runner
}

/// A runner that is registered for the label `host`.
pub(crate) fn registered(server: &dyn Server, capacity: usize, more: &[&str]) -> Runner {
    let runner = Runner::new(env!("CARGO_BIN_EXE_sower"), capacity).unwrap();
    let output = runner.register(&server.url(), &server.registration_token(), "host:host", more).unwrap();
    assert!(output.status.success(), "register: {}", String::from_utf8_lossy(&output.stderr));
    runner
}

/// Asks again and again until there is an answer.
pub(crate) fn wait<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Rows that are numbered by `tick`, in order.
pub(crate) fn ticks(rows: &[String]) -> Vec<u32> {
    rows.iter().filter_map(|row| row.strip_prefix("tick ")?.parse().ok()).collect()
}

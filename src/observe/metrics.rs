//! The metrics. Names follow Prometheus' conventions: base units, `_total` for counters, and labels of which there is a
//! fixed number.

use std::fmt::Write as _;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::status::{Stage, Status};
use super::{Seen, tally};
use crate::cache::Counts;
use crate::events::{Conclusion, Timestamp};

/// From a call that takes no time to one that is given up.
const CALL: [f64; 9] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];
/// From a step of no work to a build of hours.
const WORK: [f64; 10] = [1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0];
const LAG: [f64; 7] = [0.25, 0.5, 1.0, 2.0, 5.0, 30.0, 300.0];
const QUEUE: [f64; 8] = [0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0];
const MIB: f64 = 1024.0 * 1024.0;
const MEMORY: [f64; 9] = [
    64.0 * MIB,
    256.0 * MIB,
    512.0 * MIB,
    1024.0 * MIB,
    1536.0 * MIB,
    2048.0 * MIB,
    3072.0 * MIB,
    4096.0 * MIB,
    8192.0 * MIB,
];

/// A place whose room matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// The state directory.
    State,
    /// Workspaces, where they have a place of their own.
    Work,
    /// The Nix store.
    Store,
}

impl Place {
    /// Its name in labels.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Work => "work",
            Self::Store => "store",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Version {
    version: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    conclusion: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    method: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallEnd {
    method: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Done {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Bytes {
    kind: &'static str,
}

/// The word for how something ended.
const fn outcome(ok: bool) -> &'static str {
    if ok { "ok" } else { "error" }
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// What is counted.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    started: f64,
    jobs: Family<Ended, Counter>,
    job_seconds: Histograms<Ended>,
    step_seconds: Histograms<Ended>,
    queue_seconds: Histogram,
    rows: Counter,
    row_bytes: Counter,
    lag: Histogram,
    calls: Family<CallEnd, Counter>,
    call_seconds: Histograms<Call>,
    peak: Histogram,
    last_peak: Gauge,
    last_cap: Gauge,
    pushes: Family<Done, Counter>,
    push_bytes: Family<Bytes, Counter>,
    deploys: Family<Done, Counter>,
    turns: Counter,
    freed: Counter,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("sower");
        let work: fn() -> Histogram = || Histogram::new(WORK);
        let call: fn() -> Histogram = || Histogram::new(CALL);
        let metrics = Self {
            registry: Registry::default(),
            started: seconds(Timestamp::now()),
            jobs: Family::default(),
            job_seconds: Family::new_with_constructor(work),
            step_seconds: Family::new_with_constructor(work),
            queue_seconds: Histogram::new(QUEUE),
            rows: Counter::default(),
            row_bytes: Counter::default(),
            lag: Histogram::new(LAG),
            calls: Family::default(),
            call_seconds: Family::new_with_constructor(call),
            peak: Histogram::new(MEMORY),
            last_peak: Gauge::default(),
            last_cap: Gauge::default(),
            pushes: Family::default(),
            push_bytes: Family::default(),
            deploys: Family::default(),
            turns: Counter::default(),
            freed: Counter::default(),
        };
        // Rates need a zero to begin with.
        for conclusion in
            [Conclusion::Success, Conclusion::Failure, Conclusion::Cancelled, Conclusion::Skipped]
        {
            drop(metrics.jobs.get_or_create(&Ended { conclusion: conclusion.as_str() }));
        }
        for outcome in [outcome(true), outcome(false)] {
            drop(metrics.pushes.get_or_create(&Done { outcome }));
            drop(metrics.deploys.get_or_create(&Done { outcome }));
        }
        for kind in ["sent", "skipped"] {
            drop(metrics.push_bytes.get_or_create(&Bytes { kind }));
        }
        let r = &mut registry;
        r.register("build", "The program", Info::new(Version { version: crate::VERSION }));
        r.register("jobs_ended", "Jobs that ended and are reported", metrics.jobs.clone());
        r.register_with_unit(
            "job_duration",
            "From a job's begin to its end",
            Unit::Seconds,
            metrics.job_seconds.clone(),
        );
        r.register_with_unit(
            "step_duration",
            "From a step's begin to its end",
            Unit::Seconds,
            metrics.step_seconds.clone(),
        );
        r.register_with_unit(
            "job_queue",
            "From receiving a task to its first step, waiting for memory among it",
            Unit::Seconds,
            metrics.queue_seconds.clone(),
        );
        r.register("log_rows", "Rows that Gitea has acknowledged", metrics.rows.clone());
        r.register_with_unit("log", "Bytes of these rows", Unit::Bytes, metrics.row_bytes.clone());
        r.register_with_unit(
            "reporter_lag",
            "From printing a row to Gitea's acknowledgement, of the last row of each batch",
            Unit::Seconds,
            metrics.lag.clone(),
        );
        r.register("rpc_calls", "Calls to Gitea", metrics.calls.clone());
        r.register_with_unit(
            "rpc_duration",
            "How long calls to Gitea took",
            Unit::Seconds,
            metrics.call_seconds.clone(),
        );
        r.register_with_unit(
            "job_memory_peak",
            "The most memory that a job had",
            Unit::Bytes,
            metrics.peak.clone(),
        );
        r.register_with_unit(
            "last_job_memory_peak",
            "The most memory that the last job had",
            Unit::Bytes,
            metrics.last_peak.clone(),
        );
        r.register_with_unit(
            "last_job_memory_cap",
            "The limit of the last job, 0 for none",
            Unit::Bytes,
            metrics.last_cap.clone(),
        );
        r.register("image_pushes", "Images that jobs pushed", metrics.pushes.clone());
        r.register_with_unit(
            "image_push",
            "Bytes of pushed images: sent, or skipped since the registry had them",
            Unit::Bytes,
            metrics.push_bytes.clone(),
        );
        r.register("deploys", "Releases that jobs deployed", metrics.deploys.clone());
        r.register("housekeeping_turns", "Turns of housekeeping", metrics.turns.clone());
        r.register_with_unit(
            "housekeeping_freed",
            "Bytes that housekeeping freed",
            Unit::Bytes,
            metrics.freed.clone(),
        );
        Self { registry, ..metrics }
    }

    pub(super) fn called(&self, method: &'static str, took: Duration, ok: bool) {
        self.calls.get_or_create(&CallEnd { method, outcome: outcome(ok) }).inc();
        self.call_seconds.get_or_create(&Call { method }).observe(took.as_secs_f64());
    }

    pub(super) fn rows_arrived(&self, rows: u64, bytes: u64, lag: Option<Duration>) {
        self.rows.inc_by(rows);
        self.row_bytes.inc_by(bytes);
        if let Some(lag) = lag {
            self.lag.observe(lag.as_secs_f64());
        }
    }

    pub(super) fn kept_house(&self, freed: u64) {
        self.turns.inc();
        self.freed.inc_by(freed);
    }

    pub(super) fn job_ended(&self, seen: &Seen) {
        let Some(conclusion) = seen.conclusion else { return };
        let ended = Ended { conclusion: conclusion.as_str() };
        self.jobs.get_or_create(&ended).inc();
        let between =
            |from: Option<Timestamp>, to: Option<Timestamp>| Some(to?.millis_since(from?) as f64 / 1000.0);
        if let Some(took) = between(seen.started, seen.ended) {
            self.job_seconds.get_or_create(&ended).observe(took);
        }
        if let Some(took) = between(seen.received, seen.begun) {
            self.queue_seconds.observe(took);
        }
        for step in seen.steps.values() {
            if let (Some(begun), Some((ended, conclusion))) = (step.begun, step.ended) {
                let took = ended.millis_since(begun) as f64 / 1000.0;
                self.step_seconds.get_or_create(&Ended { conclusion: conclusion.as_str() }).observe(took);
            }
        }
        if let Some(peak) = seen.peak {
            self.peak.observe(peak as f64);
            self.last_peak.set(i64::try_from(peak).unwrap_or(i64::MAX));
            self.last_cap.set(i64::try_from(seen.cap.unwrap_or(0)).unwrap_or(i64::MAX));
        }
    }

    pub(super) fn tally(&self, entry: &tally::Entry) {
        match entry {
            tally::Entry::Push { ok, sent, skipped } => {
                self.pushes.get_or_create(&Done { outcome: outcome(*ok) }).inc();
                self.push_bytes.get_or_create(&Bytes { kind: "sent" }).inc_by(*sent);
                self.push_bytes.get_or_create(&Bytes { kind: "skipped" }).inc_by(*skipped);
            }
            tally::Entry::Deploy { ok } => {
                self.deploys.get_or_create(&Done { outcome: outcome(*ok) }).inc();
            }
        }
    }

    /// Everything, with what can only be said now.
    pub(super) fn text(&self, status: &Status, cache: Option<&Counts>) -> String {
        let mut text = String::with_capacity(16 * 1024);
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        let counted = text.trim_end().strip_suffix("# EOF").map_or(text.len(), str::len);
        text.truncate(counted);
        self.present(&mut text, status, cache);
        text.push_str("# EOF\n");
        text
    }

    fn present(&self, text: &mut String, status: &Status, cache: Option<&Counts>) {
        let mut gauge = |name: &str, unit: &str, help: &str, values: &[(String, f64)]| {
            if values.is_empty() {
                return;
            }
            let _ = writeln!(text, "# HELP {name} {help}.\n# TYPE {name} gauge");
            if !unit.is_empty() {
                let _ = writeln!(text, "# UNIT {name} {unit}");
            }
            for (labels, value) in values {
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        };
        let plain = |value: f64| [(String::new(), value)];
        let jobs = Stage::ALL.map(|stage| {
            let count = status.jobs.iter().filter(|job| job.state == stage).count();
            (format!("{{state=\"{}\"}}", stage.word()), count as f64)
        });
        gauge("sower_jobs", "", "Jobs that are looked after", &jobs);
        gauge("sower_capacity", "", "Jobs that may run at a time", &plain(f64::from(status.capacity)));
        gauge(
            "sower_ready",
            "",
            "1 when a task would be taken now",
            &plain(f64::from(u8::from(status.ready))),
        );
        if let Some(contact) = status.contact {
            let help = "When Gitea answered last";
            gauge("sower_last_contact_timestamp_seconds", "seconds", help, &plain(seconds(contact)));
        }
        if let Some(time) = status.housekeeping {
            let help = "When housekeeping had its last turn";
            gauge("sower_housekeeping_timestamp_seconds", "seconds", help, &plain(seconds(time)));
        }
        let disks = |value: fn(&super::Disk) -> u64| -> Vec<(String, f64)> {
            let label = |disk: &super::Disk| (format!("{{place=\"{}\"}}", disk.place), value(disk) as f64);
            status.disks.iter().map(label).collect()
        };
        gauge("sower_disk_free_bytes", "bytes", "Room on the disks that jobs fill", &disks(|disk| disk.free));
        gauge("sower_disk_size_bytes", "bytes", "Size of these disks", &disks(|disk| disk.size));
        let help = "With less room than this no task is fetched";
        gauge("sower_disk_gate_bytes", "bytes", help, &plain(status.min_free as f64));
        let closed = status.min_free > 0
            && status.disks.iter().any(|disk| disk.place != "store" && disk.free < status.min_free);
        let help = "1 while no task is fetched for want of room";
        gauge("sower_disk_gate_closed", "", help, &plain(f64::from(u8::from(closed))));
        gauge("process_start_time_seconds", "seconds", "When the daemon began", &plain(self.started));
        if let Some((memory, open)) = own() {
            gauge("process_resident_memory_bytes", "bytes", "Memory of the daemon", &plain(memory as f64));
            gauge("process_open_fds", "", "Files that the daemon has open", &plain(open as f64));
        }
        let mut counter = |name: &str, help: &str, values: &[(&str, f64)]| {
            let _ = writeln!(text, "# HELP {name} {help}.\n# TYPE {name} counter");
            for (labels, value) in values {
                let _ = writeln!(text, "{name}_total{labels} {value}");
            }
        };
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let used = time.tv_sec as f64 + time.tv_nsec as f64 / 1e9;
        counter("process_cpu_seconds", "Processor time of the daemon", &[("", used)]);
        if let Some(cache) = cache {
            let (hits, misses) = cache.read();
            let values = [("{result=\"hit\"}", hits as f64), ("{result=\"miss\"}", misses as f64)];
            counter("sower_cache_requests", "What jobs asked the cache for", &values);
        }
    }
}

fn seconds(time: Timestamp) -> f64 {
    time.as_micros() as f64 / 1e6
}

/// Resident bytes and open files of this process.
fn own() -> Option<(u64, usize)> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    Some((pages * rustix::param::page_size() as u64, open))
}

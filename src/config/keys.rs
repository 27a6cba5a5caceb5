//! Which keys there are, with their types and limits.

use std::path::Path;
use std::time::Duration;

use super::section::{Findings, Section};
use super::{Config, Error, Finding, Label, Level, LogFormat, Native};
use crate::yaml::{self, Node};

const LEVELS: [(&str, Level); 7] = [
    ("trace", Level::Trace),
    ("debug", Level::Debug),
    ("info", Level::Info),
    ("warn", Level::Warn),
    ("warning", Level::Warn),
    ("error", Level::Error),
    ("fatal", Level::Error),
];

const FORMATS: [(&str, LogFormat); 2] = [("text", LogFormat::Text), ("json", LogFormat::Json)];

/// The rooms of the program whose messages can be told apart.
pub const ROOMS: [&str; 12] = [
    "archive",
    "cache",
    "cli",
    "config",
    "deploy",
    "gitea",
    "housekeeping",
    "http",
    "image",
    "job",
    "observe",
    "supervisor",
];

fn is_room(name: &str) -> bool {
    ROOMS.contains(&name)
}

/// A level by its name.
pub(super) fn level(word: &str) -> Option<Level> {
    LEVELS.iter().find(|(name, _)| name.eq_ignore_ascii_case(word)).map(|(_, level)| *level)
}

const NATIVE: [(&str, Native); 3] =
    [("auto", Native::Auto), ("always", Native::Always), ("never", Native::Never)];

pub(super) fn read(path: &Path, text: &[u8]) -> Result<(Config, Vec<Finding>), Error> {
    let mut findings = Findings::new(path);
    match yaml::parse(text) {
        Ok(document) => {
            let config = visit(&document, &mut findings);
            if findings.errors.is_empty() {
                return Ok((config, findings.warnings));
            }
        }
        Err(error) => findings.error(error.place, "", error.message),
    }
    findings.errors.sort_by_key(|finding| finding.place);
    Err(Error::Wrong(findings.errors))
}

pub(super) fn known() -> Vec<String> {
    let mut findings = Findings::default();
    if let Ok(nothing) = yaml::parse(b"") {
        visit(&nothing, &mut findings);
    }
    findings.known
}

fn visit(document: &Node, findings: &mut Findings) -> Config {
    let mut config = Config::default();
    let mut root = Section::document(document, findings);
    root.section("log", |s| {
        s.word("level", &mut config.log.level, &LEVELS);
        s.word("format", &mut config.log.format, &FORMATS);
        let mut rooms = std::collections::BTreeMap::new();
        s.texts("rooms", &mut rooms, is_room);
        for (room, word) in rooms {
            match level(&word) {
                Some(level) => _ = config.log.rooms.insert(room, level),
                None => {
                    s.wrong("rooms", &room, &format!("a level such as debug is expected, this is {word:?}"))
                }
            }
        }
    });
    root.section("runner", |s| runner(s, &mut config.runner));
    root.section("cache", |s| {
        let cache = &mut config.cache;
        s.bool("enabled", &mut cache.enabled);
        s.optional_path("dir", &mut cache.dir);
        s.optional_text("host", &mut cache.host);
        s.number("port", &mut cache.port, 0, 65_535);
        s.optional_text("external_server", &mut cache.external_server);
        s.bool("offline_mode", &mut cache.offline_mode);
        s.bytes("quota", &mut cache.quota, 0);
    });
    root.section("container", |s| container(s, &mut config.container));
    root.section("host", |s| {
        s.optional_path("workdir_parent", &mut config.host.workdir_parent);
        s.optional_path("home", &mut config.host.home);
    });
    root.section("actions", |s| {
        s.bool("embedded", &mut config.actions.embedded);
        s.texts("mirrors", &mut config.actions.mirrors, |url| url.contains("://"));
        s.word("native", &mut config.actions.native, &NATIVE);
    });
    root.section("ghc", |s| {
        s.optional_text("heap", &mut config.ghc.heap);
        s.optional_text("allocation_area", &mut config.ghc.allocation_area);
        s.optional_number("jobs", &mut config.ghc.jobs, 1, 1024);
        s.bool("enforce", &mut config.ghc.enforce);
        s.bool("require", &mut config.ghc.require);
    });
    root.section("limits", |s| {
        limits(s, &mut config.limits.job);
        s.each("labels", &mut config.limits.labels, limits);
    });
    root.section("history", |s| {
        let history = &mut config.history;
        s.number("jobs", &mut history.jobs, 0, 100_000);
        s.duration("age", &mut history.age, Duration::ZERO);
        s.bytes("size", &mut history.size, 0);
        s.bool("admission", &mut history.admission);
    });
    root.section("images", |s| {
        s.each("registries", &mut config.images.registries, |s, access: &mut super::RegistryAccess| {
            s.bool("plain_http", &mut access.plain_http);
            s.bool("insecure", &mut access.insecure);
            s.optional_path("ca", &mut access.ca);
            s.optional_text("token_url", &mut access.token_url);
        });
    });
    root.section("diagnose", |s| {
        s.each_of_list("causes", &mut config.diagnose, |s, own: &mut super::OwnCause| {
            s.required_text("pattern", &mut own.pattern);
            s.required_text("cause", &mut own.cause);
            let mut advice = None;
            s.optional_text("advice", &mut advice);
            own.advice = advice.unwrap_or_default();
        });
    });
    root.section("housekeeping", |s| {
        let housekeeping = &mut config.housekeeping;
        s.bytes("min_free", &mut housekeeping.min_free, 0);
        s.duration("interval", &mut housekeeping.interval, Duration::ZERO);
        s.number("results", &mut housekeeping.results, 0, 1000);
        s.bytes("store_min_free", &mut housekeeping.store_min_free, 0);
    });
    root.section("metrics", |s| {
        s.bool("enabled", &mut config.metrics.enabled);
        s.checked_text("addr", &mut config.metrics.addr, |addr| match addr.strip_prefix("unix:") {
            Some(path) if Path::new(path).is_absolute() => Ok(()),
            Some(_) => Err("an absolute path is expected behind unix:".to_owned()),
            None => match addr.parse::<std::net::SocketAddr>() {
                Ok(addr) if addr.ip().is_loopback() => Ok(()),
                Ok(_) => {
                    Err("only this host may read them: an address such as 127.0.0.1:9101 is expected"
                        .to_owned())
                }
                Err(_) => Err(format!("127.0.0.1:PORT or unix:/PATH is expected, this is {addr:?}")),
            },
        });
    });
    root.section("hooks", |s| {
        s.optional_path("job_started", &mut config.hooks.job_started);
        s.optional_path("job_completed", &mut config.hooks.job_completed);
        s.duration("timeout", &mut config.hooks.timeout, Duration::from_secs(1));
    });
    root.section("notify", |s| {
        s.optional_text("url", &mut config.notify.url);
        s.optional_path("url_file", &mut config.notify.url_file);
        s.optional_path("secret_file", &mut config.notify.secret_file);
    });
    root.finish();
    config
}

fn runner(s: &mut Section<'_>, runner: &mut super::Runner) {
    let second = Duration::from_secs(1);
    s.path("file", &mut runner.file);
    s.number("capacity", &mut runner.capacity, 1, 1000);
    s.texts("envs", &mut runner.envs, |name| !name.is_empty() && !name.contains(['=', '\0']));
    s.optional_path("env_file", &mut runner.env_file);
    s.duration("timeout", &mut runner.timeout, second);
    s.duration("shutdown_timeout", &mut runner.shutdown_timeout, Duration::ZERO);
    s.bool("insecure", &mut runner.insecure);
    s.duration("fetch_timeout", &mut runner.fetch_timeout, Duration::ZERO);
    s.duration("fetch_interval", &mut runner.fetch_interval, Duration::from_millis(100));
    s.duration("report_interval", &mut runner.report_interval, Duration::from_millis(100));
    s.bytes("journal_limit", &mut runner.journal_limit, 1 << 20);
    s.duration("interrupt_grace", &mut runner.interrupt_grace, Duration::ZERO);
    s.duration("terminate_grace", &mut runner.terminate_grace, Duration::ZERO);
    s.duration("cleanup_timeout", &mut runner.cleanup_timeout, second);
    s.optional_text("github_mirror", &mut runner.github_mirror);
    s.list("labels", &mut runner.labels, |text| text.parse::<Label>().map_err(|error| error.to_string()));
}

/// The least memory that a job can do anything with.
const LEAST_MEMORY: u64 = 16 << 20;

fn limits(s: &mut Section<'_>, limits: &mut super::Limits) {
    s.optional_bytes("memory", &mut limits.memory, LEAST_MEMORY);
    s.optional_bytes("memory_high", &mut limits.memory_high, LEAST_MEMORY);
    s.optional_bytes("swap", &mut limits.swap, 0);
    let mut pids = None;
    s.optional_number("pids", &mut pids, 16, 4_000_000);
    limits.pids = pids.map(u64::from).or(limits.pids);
    s.optional_thousandths("cpu", &mut limits.cpu, 10);
    s.bool("watchdog", &mut limits.watchdog);
}

fn container(s: &mut Section<'_>, container: &mut super::Container) {
    s.optional_text("network", &mut container.network);
    s.bool("privileged", &mut container.privileged);
    s.optional_text("options", &mut container.options);
    s.optional_text("workdir_parent", &mut container.workdir_parent);
    s.list("valid_volumes", &mut container.valid_volumes, |text| Ok(text.to_owned()));
    s.optional_text("docker_host", &mut container.docker_host);
    s.bool("force_pull", &mut container.force_pull);
    s.bool("force_rebuild", &mut container.force_rebuild);
    s.bool("require_docker", &mut container.require_docker);
    s.duration("docker_timeout", &mut container.docker_timeout, Duration::ZERO);
    s.bool("bind_workdir", &mut container.bind_workdir);
}

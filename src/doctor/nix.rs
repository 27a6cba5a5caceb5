//! Nix as it is set: who builds, in what, and when the store is cleaned.

use serde_json::Value;

use super::ask::ask;
use super::report::Check;
use super::tools::{find, short};
use crate::config::{Config, format_bytes};

const ROOM: &str = "nix";
const FEATURES: [&str; 2] = ["--extra-experimental-features", "nix-command flakes"];
const DAEMON: &str = "/nix/var/nix/daemon-socket/socket";

pub(super) fn examine(config: &Config) -> Vec<Check> {
    let Some(nix) = find("nix") else {
        return vec![Check::note(ROOM, "nix", "not on PATH; workflows with `nix build` need it")];
    };
    let version = match ask(&nix, &["--version"]) {
        Ok(said) if said.success => said.first_line(),
        Ok(said) => return vec![broken(&format!("{} says {}", nix.display(), said.first_line()))],
        Err(why) => return vec![broken(&format!("{} {why}", nix.display()))],
    };
    let mut checks = vec![Check::well(ROOM, "nix", format!("{}, {}", short(&version), nix.display()))];
    let Some(settings) = settings(&nix) else {
        checks.push(Check::odd(
            ROOM,
            "settings",
            "cannot be read",
            "in /etc/nix/nix.conf: experimental-features = nix-command flakes",
        ));
        return checks;
    };
    let root = rustix::process::geteuid().is_root();
    let daemon = std::env::var_os("NIX_REMOTE").is_some_and(|remote| remote == "daemon")
        || !root && std::path::Path::new(DAEMON).exists();
    checks.push(builders(config, daemon));
    checks.push(features(&settings));
    checks.push(sandbox(&settings));
    checks.push(jobs(&settings));
    checks.push(min_free(&settings));
    let log = settings.get("json-log-path").is_some();
    let log = if log {
        "to be had"
    } else {
        "not to be had (Nix 2.30 has it); sower reads the log of --log-format"
    };
    checks.push(Check::note(ROOM, "json-log-path", log));
    checks
}

fn broken(seen: &str) -> Check {
    Check::bad(ROOM, "nix", seen, "install it again: https://nixos.org/download")
}

/// Every setting with its value. The command was renamed once.
fn settings(nix: &std::path::Path) -> Option<Value> {
    for command in [&["config", "show", "--json"][..], &["show-config", "--json"]] {
        let arguments: Vec<&str> = FEATURES.iter().chain(command).copied().collect();
        if let Ok(said) = ask(nix, &arguments)
            && said.success
            && let Ok(settings) = serde_json::from_str(&said.stdout)
        {
            return Some(settings);
        }
    }
    None
}

fn value<'a>(settings: &'a Value, name: &str) -> &'a Value {
    static NOTHING: Value = Value::Null;
    settings.pointer(&format!("/{name}/value")).unwrap_or(&NOTHING)
}

fn builders(config: &Config, daemon: bool) -> Check {
    if !daemon {
        return Check::well(ROOM, "builders", "children of the job: limits and GHC's ceiling reach them");
    }
    let seen = "children of the nix-daemon: neither `limits` nor GHC's ceiling reach them";
    if config.ghc.heap.is_some() || config.limits.job.memory.is_some() {
        return Check::odd(
            ROOM,
            "builders",
            seen,
            "as root without a daemon: in the configuration runner: {envs: {NIX_REMOTE: local}}, and in /etc/nix/nix.conf: build-users-group =",
        );
    }
    Check::note(ROOM, "builders", seen)
}

fn features(settings: &Value) -> Check {
    let named: Vec<&str> = match value(settings, "experimental-features") {
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect(),
        Value::String(text) => text.split_whitespace().collect(),
        _ => Vec::new(),
    };
    if named.contains(&"nix-command") && named.contains(&"flakes") {
        return Check::well(ROOM, "features", "nix-command flakes");
    }
    Check::odd(
        ROOM,
        "features",
        "`nix build .#…` of a workflow is refused",
        "in /etc/nix/nix.conf: experimental-features = nix-command flakes",
    )
}

fn sandbox(settings: &Value) -> Check {
    let seen = match value(settings, "sandbox") {
        Value::Bool(true) => "on".to_owned(),
        Value::Bool(false) => "off".to_owned(),
        Value::String(text) if text == "true" => "on".to_owned(),
        Value::String(text) if text == "false" => "off".to_owned(),
        other => other.to_string(),
    };
    Check::note(ROOM, "sandbox", seen)
}

fn number(settings: &Value, name: &str) -> Option<u64> {
    match value(settings, name) {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

fn jobs(settings: &Value) -> Check {
    let (jobs, cores) = (number(settings, "max-jobs").unwrap_or(1), number(settings, "cores").unwrap_or(0));
    let cores_text = if cores == 0 { "all".to_owned() } else { cores.to_string() };
    let seen = format!("{jobs} builds at a time, {cores_text} cores each");
    let memory = crate::limits::process::host_memory().unwrap_or(u64::MAX);
    if jobs > 1 && memory < 6 << 30 {
        return Check::odd(
            ROOM,
            "max-jobs",
            format!("{seen}: on a host with little memory two GHCs are one too many"),
            "in /etc/nix/nix.conf: max-jobs = 1",
        );
    }
    Check::well(ROOM, "max-jobs", seen)
}

fn min_free(settings: &Value) -> Check {
    match number(settings, "min-free") {
        Some(bytes) if bytes > 0 => Check::odd(
            ROOM,
            "min-free",
            format!("{}: Nix collects garbage in the middle of builds", format_bytes(bytes)),
            "in /etc/nix/nix.conf: min-free = 0, and let `sower gc` do it between jobs (housekeeping: {store_min_free: 20GiB})",
        ),
        _ => Check::well(ROOM, "min-free", "0: Nix collects no garbage in the middle of builds"),
    }
}

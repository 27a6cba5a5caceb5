//! Nix as it is set: who builds, in what, and when the store is cleaned.

use serde_json::Value;

use super::ask::ask;
use super::report::Check;
use super::tools::{find, short};
use crate::config::{Config, format_bytes};
use crate::limits::ceiling::Ceiling;
use crate::limits::nix;

const ROOM: &str = "nix";
const FEATURES: [&str; 2] = ["--extra-experimental-features", "nix-command flakes"];

pub(super) fn examine(config: &Config) -> Vec<Check> {
    let Some(program) = find("nix") else {
        return vec![Check::note(ROOM, "nix", "not on PATH; workflows with `nix build` need it")];
    };
    let version = match ask(&program, &["--version"]) {
        Ok(said) if said.success => said.first_line(),
        Ok(said) => return vec![broken(&format!("{} says {}", program.display(), said.first_line()))],
        Err(why) => return vec![broken(&format!("{} {why}", program.display()))],
    };
    let mut checks = vec![Check::well(ROOM, "nix", format!("{}, {}", short(&version), program.display()))];
    let Some(settings) = settings(&program) else {
        checks.push(Check::odd(
            ROOM,
            "settings",
            "cannot be read",
            "in /etc/nix/nix.conf: experimental-features = nix-command flakes",
        ));
        return checks;
    };
    checks.push(builders(config));
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

fn builders(config: &Config) -> Check {
    // What the jobs get counts, not what this shell has.
    let remote = config.runner.envs.get("NIX_REMOTE").cloned();
    let remote = remote.or_else(|| std::env::var("NIX_REMOTE").ok()).unwrap_or_default();
    if !nix::are_the_daemons(&remote) {
        return Check::well(ROOM, "builders", "children of the job: limits and GHC's ceiling reach them");
    }
    let wants_limit = config.limits.job.memory.is_some();
    let wants_ceiling = config.ghc.heap.is_some();
    if nix::daemon_has_ceiling() {
        let seen = "children of the nix-daemon, which runs under `sower ghc run`: GHC has its ceiling; a new GHC in the store has it after a restart of the daemon";
        return Check::well(ROOM, "builders", seen);
    }
    let seen = "children of the nix-daemon: neither `limits` nor GHC's ceiling reach them";
    if wants_limit || wants_ceiling {
        return Check::odd(ROOM, "builders", seen, on_the_daemon(config, Manager::this()));
    }
    Check::note(ROOM, "builders", seen)
}

/// Who starts the nix-daemon.
#[derive(Debug, Clone, Copy)]
enum Manager {
    Systemd,
    OpenRc,
    Other,
}

impl Manager {
    fn this() -> Self {
        let there = |path: &str| std::path::Path::new(path).exists();
        if there("/run/systemd/system") {
            Self::Systemd
        } else if there("/run/openrc") {
            Self::OpenRc
        } else {
            Self::Other
        }
    }
}

/// How ceiling and limit come onto the nix-daemon, and the way without one.
fn on_the_daemon(config: &Config, manager: Manager) -> String {
    let this = std::env::current_exe().map_or_else(|_| "sower".to_owned(), |path| path.display().to_string());
    let daemon =
        find("nix-daemon").map_or_else(|| "nix-daemon".to_owned(), |path| path.display().to_string());
    // Where only a limit is asked for, the ceiling is one that suits a small host.
    let ceiling = Ceiling::of(&config.ghc).ok().flatten();
    let (heap, area) = ceiling
        .map_or_else(|| ("2g".into(), "32m".into()), |set| (set.heap.option(), set.allocation_area.option()));
    let run = format!("ghc run --heap {heap} --allocation-area {area} -- {daemon}");
    let memory = config.limits.job.memory;
    let mut lines: Vec<String> = Vec::new();
    match manager {
        Manager::Systemd => {
            lines.push("put them on the daemon: systemctl edit nix-daemon.service, then systemctl restart nix-daemon".into());
            lines.push("  [Service]".into());
            lines.push("  ExecStart=".into());
            lines.push(format!("  ExecStart={this} {run} --daemon"));
            if let Some(memory) = memory {
                lines.push(format!("  MemoryHigh={}", memory / 10 * 9));
                lines.push(format!("  MemoryMax={memory}"));
                lines.push("  OOMPolicy=continue".into());
            }
        }
        Manager::OpenRc => {
            lines.push(
                "put them on the daemon: in /etc/init.d/nix-daemon, then rc-service nix-daemon restart"
                    .into(),
            );
            lines.push(format!("  command={this}"));
            lines.push(format!("  command_args=\"{run}\""));
            if let Some(memory) = memory {
                lines.push(format!(
                    "and in /etc/conf.d/nix-daemon: rc_cgroup_settings=\"memory.max {memory}\""
                ));
            }
        }
        Manager::Other => lines.push(format!("start the daemon under the ceiling: {this} {run}")),
    }
    lines.push(
        "or have builds be children of the job, as root: in the configuration runner: {envs: {NIX_REMOTE: local}}, and in /etc/nix/nix.conf: build-users-group ="
            .into(),
    );
    lines.join("\n")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_onto_the_daemon_is_told() {
        let mut config = Config::default();
        config.ghc.heap = Some("1500m".to_owned());
        config.limits.job.memory = Some(3 << 30);
        let told = on_the_daemon(&config, Manager::Systemd);
        for line in [
            " ghc run --heap 1500m --allocation-area 32m -- ",
            "nix-daemon --daemon\n",
            "\n  MemoryMax=3221225472\n",
            "NIX_REMOTE: local",
        ] {
            assert!(told.contains(line), "{line}: {told}");
        }
        let told = on_the_daemon(&config, Manager::OpenRc);
        assert!(told.contains("rc_cgroup_settings=\"memory.max 3221225472\""), "{told}");
    }
}

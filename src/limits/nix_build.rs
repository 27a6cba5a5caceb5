//! A Nix build as it goes: derivations with state, phase, time and memory, read from Nix's structured log.
//!
//! Source of the format: `--log-format internal-json`, lines `@nix {…}` on stderr (`JSONLogger` in Nix's
//! `libutil/logging.cc`): start, stop, result and msg of activities; 105 is a build, its results 101 a row, 104 a phase.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use super::admission::{Peaks, Runs};
use super::process;
use super::report;
use super::size::Size;

/// Derivations that are told in the table.
const TOLD_AT_MOST: usize = 200;
/// Builds at a time that are followed; Nix runs no more than its `max-jobs`.
const RUNNING_AT_MOST: usize = 1000;

/// The builds of one Nix command.
#[derive(Debug)]
pub struct Builds {
    running: BTreeMap<u64, Build>,
    done: Vec<Build>,
    more: usize,
    times: Peaks,
}

/// One derivation.
#[derive(Debug, Clone)]
pub struct Build {
    /// Its name.
    pub name: String,
    /// The phase that it is in, or ended in.
    pub phase: String,
    /// How far GHC is: modules done and in all.
    pub modules: Option<(u32, u32)>,
    /// The most memory that its processes had resident, in bytes.
    pub peak: u64,
    /// How long it took, in milliseconds.
    pub millis: u64,
    began: Instant,
    last_row: String,
}

impl Builds {
    /// Nothing yet; `times` knows how long derivations of a name took on this host.
    #[must_use]
    pub fn new(times: Peaks) -> Self {
        Self { running: BTreeMap::new(), done: Vec::new(), more: 0, times }
    }

    /// Takes a row of Nix's stderr; gives what to print, if anything.
    pub fn take(&mut self, row: &str) -> Option<String> {
        let Some(json) = row.strip_prefix("@nix ") else { return Some(row.to_owned()) };
        let event: Value = serde_json::from_str(json).ok()?;
        let id = event["id"].as_u64().unwrap_or_default();
        match (event["action"].as_str()?, event["type"].as_u64()) {
            ("start", Some(105)) => self.start(id, event["fields"][0].as_str()?),
            ("result", Some(101)) => self.row(id, event["fields"][0].as_str()?),
            ("result", Some(104)) => {
                let build = self.running.get_mut(&id)?;
                build.phase = event["fields"][0].as_str()?.to_owned();
                Some(format!("{}: {}", build.name, build.phase))
            }
            ("stop", _) => self.stop(id),
            // Level 3 is what Nix says to everybody.
            ("msg", _) if event["level"].as_u64().unwrap_or(0) <= 3 => {
                event["msg"].as_str().map(str::to_owned)
            }
            _ => None,
        }
    }

    fn start(&mut self, id: u64, path: &str) -> Option<String> {
        if self.running.len() >= RUNNING_AT_MOST {
            return None;
        }
        let name = name(path);
        let about = self.times.0.get(base(&name)).and_then(mean);
        let about = about
            .map(|millis| format!(", about {} by the last times", report::time(millis)))
            .unwrap_or_default();
        let said = format!("building {name}{about}");
        let build = Build {
            name,
            phase: String::new(),
            modules: None,
            peak: 0,
            millis: 0,
            began: Instant::now(),
            last_row: String::new(),
        };
        self.running.insert(id, build);
        Some(said)
    }

    fn row(&mut self, id: u64, text: &str) -> Option<String> {
        let build = self.running.get_mut(&id)?;
        build.modules = modules(text).or(build.modules);
        build.last_row = text.chars().take(200).collect();
        Some(format!("{}> {text}", build.name))
    }

    fn stop(&mut self, id: u64) -> Option<String> {
        let mut build = self.running.remove(&id)?;
        build.millis = u64::try_from(build.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let peak = if build.peak > 0 { format!(", peak {}", Size(build.peak)) } else { String::new() };
        let said = format!("{}: ended after {}{peak}", build.name, report::time(build.millis));
        if self.done.len() < TOLD_AT_MOST {
            self.done.push(build)
        } else {
            self.more += 1
        }
        Some(said)
    }

    /// Measures the builders: children of the Nix process `nix`, known by the name in their environment.
    pub fn measure(&mut self, nix: u32) {
        let Some(pids) = process::descendants(nix) else { return };
        let stats: BTreeMap<u32, process::Stat> =
            pids.into_iter().filter_map(|pid| Some((pid, process::stat(pid)?))).collect();
        let mut by_builder: BTreeMap<u32, u64> = BTreeMap::new();
        for (pid, stat) in &stats {
            let (mut builder, mut parent) = (*pid, stat.parent);
            while parent != nix {
                let Some(above) = stats.get(&parent) else { break };
                (builder, parent) = (parent, above.parent);
            }
            *by_builder.entry(builder).or_default() += stat.resident;
        }
        let alone = self.running.len() == 1;
        for (builder, bytes) in by_builder {
            // In a sandbox the child of Nix sets the stage, and the builder is below it.
            let below = stats.iter().filter(|(_, stat)| stat.parent == builder).map(|(pid, _)| *pid);
            let of = std::iter::once(builder).chain(below).find_map(own_name);
            let build = match &of {
                Some(name) => self.running.values_mut().find(|build| build.name == *name),
                None if alone => self.running.values_mut().next(),
                None => None,
            };
            if let Some(build) = build {
                build.peak = build.peak.max(bytes);
            }
        }
    }

    /// One line about what is being built; `None` when nothing is.
    #[must_use]
    pub fn line(&self) -> Option<String> {
        let parts: Vec<String> = self
            .running
            .values()
            .take(4)
            .map(|build| {
                let modules =
                    build.modules.map(|(done, all)| format!(" [{done} of {all}]")).unwrap_or_default();
                let time = u64::try_from(build.began.elapsed().as_millis()).unwrap_or(u64::MAX);
                let left = self
                    .left(build, time)
                    .map(|left| format!(", about {} left", report::time(left)))
                    .unwrap_or_default();
                let phase = if build.phase.is_empty() { String::new() } else { format!(" {}", build.phase) };
                format!("{}{phase}{modules} {}{left}", build.name, report::time(time))
            })
            .collect();
        (!parts.is_empty()).then(|| parts.join(" · "))
    }

    fn left(&self, build: &Build, millis: u64) -> Option<u64> {
        mean(self.times.0.get(base(&build.name))?)?.checked_sub(millis)
    }

    /// A table of what was built, as Markdown; `None` when nothing was.
    #[must_use]
    pub fn markdown(&self) -> Option<String> {
        if self.done.is_empty() {
            return None;
        }
        let mut text = String::from(
            "### Nix builds\n\n| Derivation | Time | Peak RSS | Modules | Last phase |\n| --- | ---: | ---: | ---: | --- |\n",
        );
        for build in &self.done {
            let peak = if build.peak > 0 { Size(build.peak).to_string() } else { String::new() };
            let modules = build.modules.map(|(done, all)| format!("{done} of {all}")).unwrap_or_default();
            text.push_str(&format!(
                "| {} | {} | {peak} | {modules} | {} |\n",
                build.name.replace('|', "\\|"),
                report::time(build.millis),
                build.phase.replace('|', "\\|")
            ));
        }
        if self.more > 0 {
            text.push_str(&format!("\n{} more.\n", self.more));
        }
        Some(text)
    }

    /// Remembers how long everything took.
    ///
    /// # Errors
    /// When the disk says no.
    pub fn remember(&self, path: &Path, now: u64) -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        self.done
            .iter()
            .try_for_each(|build| Peaks::add(path, base(&build.name), build.peak, build.millis, now))
    }

    /// What was built.
    #[must_use]
    pub fn done(&self) -> &[Build] {
        &self.done
    }
}

/// `/nix/store/<hash>-name.drv` is `name`.
fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path).trim_end_matches(".drv");
    let name = if file.as_bytes().get(32) == Some(&b'-') { &file[33..] } else { file };
    name.chars().map(|c| if c.is_control() { ' ' } else { c }).take(120).collect()
}

/// A name without its version: other versions take about as long.
fn base(name: &str) -> &str {
    let mut at = 0;
    for (index, _) in name.match_indices('-') {
        if name[index + 1..].starts_with(|c: char| c.is_ascii_digit()) {
            at = index;
            break;
        }
    }
    if at == 0 { name } else { &name[..at] }
}

fn mean(runs: &Runs) -> Option<u64> {
    let count = u64::try_from(runs.millis.len()).ok().filter(|count| *count > 0)?;
    Some(runs.millis.iter().sum::<u64>() / count)
}

/// `[312 of 477] Compiling …`.
fn modules(text: &str) -> Option<(u32, u32)> {
    let (inner, _) = text.split_once('[')?.1.split_once("] Compiling ")?;
    let (done, all) = inner.split_once(" of ")?;
    Some((done.trim().parse().ok()?, all.trim().parse().ok()?))
}

/// The derivation's name in the environment of its builder.
fn own_name(pid: u32) -> Option<String> {
    let environment = process::environment(pid)?;
    let entry = |name: &str| {
        let found =
            environment.split(|&byte| byte == 0).find_map(|entry| entry.strip_prefix(name.as_bytes()))?;
        Some(String::from_utf8_lossy(found).into_owned())
    };
    entry("NIX_BUILD_TOP=").and_then(|_| entry("name="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_of_a_build_is_read() {
        let mut times = Peaks::default();
        times.0.insert("app".to_owned(), Runs { millis: vec![60_000, 120_000], ..Runs::default() });
        let mut builds = Builds::new(times);
        let start = r#"@nix {"action":"start","fields":["/nix/store/0123456789abcdfghijklmnpqrsvwxyz-app-1.2.drv","",1,1],"id":7,"level":3,"parent":0,"text":"building","type":105}"#;
        assert_eq!(builds.take(start).unwrap(), "building app-1.2, about 1 min 30 s by the last times");
        assert_eq!(
            builds.take(r#"@nix {"action":"result","fields":["buildPhase"],"id":7,"type":104}"#).unwrap(),
            "app-1.2: buildPhase"
        );
        let row =
            r#"@nix {"action":"result","fields":["[312 of 477] Compiling Web.Types"],"id":7,"type":101}"#;
        assert_eq!(builds.take(row).unwrap(), "app-1.2> [312 of 477] Compiling Web.Types");
        assert!(builds.line().unwrap().starts_with("app-1.2 buildPhase [312 of 477] 0."));
        assert!(
            builds.take(r#"@nix {"action":"stop","id":7}"#).unwrap().starts_with("app-1.2: ended after ")
        );
        assert_eq!(builds.take(r#"@nix {"action":"msg","level":0,"msg":"error: x"}"#).unwrap(), "error: x");
        assert_eq!(builds.take("warning: plain").unwrap(), "warning: plain");
        assert_eq!(builds.take("@nix {"), None);
        assert!(builds.markdown().unwrap().contains("| app-1.2 | 0.0 s |  | 312 of 477 | buildPhase |"));
        assert_eq!((base("app-1.2"), base("ghc-lib-parser-9.0"), base("x")), ("app", "ghc-lib-parser", "x"));
    }
}

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

/// Bytes of rows that are held of one build that is not shown yet, and of all of them.
const HELD_AT_MOST: (usize, usize) = (64 * 1024, 1 << 20);

/// The builds of one Nix command.
///
/// As groups of a log, one build is shown at a time. The rows of others that run beside it are held, the last of them when
/// there are too many, and shown when it has ended.
#[derive(Debug)]
pub struct Builds {
    running: BTreeMap<u64, Build>,
    done: Vec<Build>,
    more: usize,
    times: Peaks,
    groups: bool,
    /// The build whose group is open.
    front: Option<u64>,
    /// Builds that have ended while another was shown.
    waiting: Vec<Build>,
    held: usize,
}

/// One derivation.
#[derive(Debug, Clone, Default)]
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
    /// Nix said that its builder failed.
    pub failed: bool,
    began: Option<Instant>,
    title: String,
    held: String,
}

impl Build {
    fn age(&self) -> u64 {
        let age = self.began.map(|began| began.elapsed().as_millis()).unwrap_or_default();
        u64::try_from(age).unwrap_or(u64::MAX)
    }

    fn ended(&self) -> String {
        let peak = if self.peak > 0 { format!(", peak {}", Size(self.peak)) } else { String::new() };
        format!("{}: ended after {}{peak}", self.name, report::time(self.millis))
    }
}

impl Builds {
    /// Nothing yet; `times` knows how long derivations of a name took on this host. With `groups`, what is said has the
    /// commands by which a log is folded.
    #[must_use]
    pub fn new(times: Peaks, groups: bool) -> Self {
        Self {
            running: BTreeMap::new(),
            done: Vec::new(),
            more: 0,
            times,
            groups,
            front: None,
            waiting: Vec::new(),
            held: 0,
        }
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
                build.phase = clean(event["fields"][0].as_str()?);
                let said = format!("{}: {}", build.name, build.phase);
                self.show(id, said)
            }
            ("stop", _) => self.stop(id),
            // Level 3 is what Nix says to everybody.
            ("msg", _) if event["level"].as_u64().unwrap_or(0) <= 3 => {
                let text = event["msg"].as_str()?;
                self.note_failure(text);
                // That it builds is told already, and better.
                let plain = without_colours(text);
                let known = plain.starts_with("building '") && plain.ends_with(".drv'...");
                (!known).then(|| text.to_owned())
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
        let title = format!("building {name}{about}");
        let build = Build { name, began: Some(Instant::now()), title: title.clone(), ..Build::default() };
        self.running.insert(id, build);
        if !self.groups {
            return Some(title);
        }
        if self.front.is_some() {
            return None;
        }
        self.front = Some(id);
        Some(format!("::group::{title}"))
    }

    fn row(&mut self, id: u64, text: &str) -> Option<String> {
        let build = self.running.get_mut(&id)?;
        build.modules = modules(text).or(build.modules);
        // The name in front keeps a builder from giving commands to the job.
        let said = format!("{}> {text}", build.name);
        self.show(id, said)
    }

    /// Shows what belongs to a build, or holds it until its turn.
    fn show(&mut self, id: u64, said: String) -> Option<String> {
        if !self.groups || self.front == Some(id) {
            return Some(said);
        }
        let build = self.running.get_mut(&id)?;
        let (of_one, of_all) = HELD_AT_MOST;
        if self.held + said.len() < of_all {
            self.held += said.len() + 1;
            build.held.push_str(&said);
            build.held.push('\n');
        }
        if build.held.len() > of_one {
            let cut = build.held.floor_char_boundary(build.held.len() - of_one / 2);
            let cut = build.held[cut..].find('\n').map_or(cut, |end| cut + end + 1);
            self.held -= cut;
            build.held.drain(..cut);
        }
        None
    }

    fn stop(&mut self, id: u64) -> Option<String> {
        let mut build = self.running.remove(&id)?;
        build.millis = build.age();
        if !self.groups {
            let said = build.ended();
            self.keep(build);
            return Some(said);
        }
        if self.front != Some(id) {
            self.waiting.push(build);
            return None;
        }
        self.front = None;
        let mut said = format!("::endgroup::\n{}", build.ended());
        self.keep(build);
        if let Some(next) = self.next() {
            said = format!("{said}\n{next}");
        }
        Some(said)
    }

    /// Those that ended meanwhile, and the one whose turn it is.
    fn next(&mut self) -> Option<String> {
        let mut said = Vec::new();
        for mut build in std::mem::take(&mut self.waiting) {
            said.push(format!("::group::{}\n{}::endgroup::\n{}", build.title, build.held, build.ended()));
            self.held = self.held.saturating_sub(build.held.len());
            build.held = String::new();
            self.keep(build);
        }
        if self.front.is_none()
            && let Some((id, build)) = self.running.iter_mut().next()
        {
            self.front = Some(*id);
            let held = std::mem::take(&mut build.held);
            self.held = self.held.saturating_sub(held.len());
            said.push(format!("::group::{}\n{held}", build.title).trim_end().to_owned());
        }
        (!said.is_empty()).then(|| said.join("\n"))
    }

    /// Nix is gone: gives what was not shown yet.
    pub fn end(&mut self) -> Option<String> {
        let mut said = Vec::new();
        while let Some((id, _)) = self.running.first_key_value() {
            let id = self.front.unwrap_or(*id);
            said.extend(self.stop(id));
        }
        said.extend(self.next());
        (!said.is_empty()).then(|| said.join("\n"))
    }

    fn keep(&mut self, build: Build) {
        if self.done.len() < TOLD_AT_MOST { self.done.push(build) } else { self.more += 1 }
    }

    /// Nix names a derivation that failed when it has stopped: `builder for '/nix/store/…-app.drv' failed with …`, and from
    /// 2.30 on `Cannot build '/nix/store/…-app.drv'.` with the reason below.
    fn note_failure(&mut self, text: &str) {
        let plain = without_colours(text);
        if !plain.contains("failed") {
            return;
        }
        for path in plain.split('\'').filter(|part| part.ends_with(".drv")) {
            let failed = name(path);
            let all = self.done.iter_mut().chain(&mut self.waiting).chain(self.running.values_mut());
            for build in all.filter(|build| build.name == failed) {
                build.failed = true;
            }
        }
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
                let time = build.age();
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
            "### Nix builds\n\n| Derivation | State | Time | Peak RSS | Modules | Last phase |\n| --- | --- | ---: | ---: | ---: | --- |\n",
        );
        for build in &self.done {
            let peak = if build.peak > 0 { Size(build.peak).to_string() } else { String::new() };
            let modules = build.modules.map(|(done, all)| format!("{done} of {all}")).unwrap_or_default();
            text.push_str(&format!(
                "| {} | {} | {} | {peak} | {modules} | {} |\n",
                build.name.replace('|', "\\|"),
                if build.failed { "failed" } else { "built" },
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
            .filter(|build| !build.failed)
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
    clean(name)
}

/// A text without the sequences that colour it.
fn without_colours(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        plain.push_str(before);
        let mut behind = after.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').chars();
        behind.next();
        rest = behind.as_str();
    }
    plain.push_str(rest);
    plain
}

fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(120).collect()
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
        let mut builds = Builds::new(times, false);
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
        assert!(
            builds.markdown().unwrap().contains("| app-1.2 | built | 0.0 s |  | 312 of 477 | buildPhase |")
        );
        assert_eq!((base("app-1.2"), base("ghc-lib-parser-9.0"), base("x")), ("app", "ghc-lib-parser", "x"));
    }
    #[test]
    fn builds_at_the_same_time_are_groups_one_after_the_other() {
        let mut builds = Builds::new(Peaks::default(), true);
        let mut log = String::new();
        let mut take = |row: String| {
            if let Some(said) = builds.take(&format!("@nix {row}")) {
                log.push_str(&said);
                log.push('\n');
            }
        };
        let start = |id: u64, name: &str| {
            format!(
                r#"{{"action":"start","fields":["/nix/store/0123456789abcdfghijklmnpqrsvwxyz-{name}.drv"],"id":{id},"type":105}}"#
            )
        };
        let row = |id: u64, text: &str| {
            format!(r#"{{"action":"result","fields":["{text}"],"id":{id},"type":101}}"#)
        };
        for event in [
            start(1, "a"),
            start(2, "b"),
            row(2, "b one"),
            row(1, "::add-mask::a"),
            start(3, "c"),
            r#"{"action":"stop","id":2}"#.to_owned(),
            row(3, "c one"),
            r#"{"action":"stop","id":1}"#.to_owned(),
            row(3, "c two"),
            r#"{"action":"msg","level":0,"msg":"\u001b[31merror:\u001b[0m builder for '\u001b[35m/nix/store/0123456789abcdfghijklmnpqrsvwxyz-b.drv\u001b[0m' failed with exit code 3"}"#.to_owned(),
        ] {
            take(event);
        }
        log.push_str(&builds.end().unwrap_or_default());
        let log = without_colours(&log);
        insta::assert_snapshot!(log, @r"
        ::group::building a
        a> ::add-mask::a
        ::endgroup::
        a: ended after 0.0 s
        ::group::building b
        b> b one
        ::endgroup::
        b: ended after 0.0 s
        ::group::building c
        c> c one
        c> c two
        error: builder for '/nix/store/0123456789abcdfghijklmnpqrsvwxyz-b.drv' failed with exit code 3
        ::endgroup::
        c: ended after 0.0 s
        ");
        assert_eq!((builds.done.iter().filter(|build| build.failed).count(), builds.held), (1, 0));
    }
}

//! Whether each station did what it should, judged by what is there now and not by what the log says.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use sower_test_support::{Forge, RunView, Status};

use crate::cluster::{Cluster, POD_LIMIT};
use crate::damage::Damage;
use crate::processes::Interrupt;
use crate::screen::{Screen, Style, grouped};
use crate::trouble::Trouble;

/// How `sower ghc run` says which ceiling was in force.
const PROOF: &str = "heap ceiling in force: ";
/// How many tags the pipeline keeps.
const KEPT: usize = 5;

/// What the stations came to.
#[derive(Default)]
pub(crate) struct Verdicts {
    passed: usize,
    failed: usize,
}

impl Verdicts {
    /// Shows and counts one.
    pub(crate) fn judge(&mut self, screen: &mut Screen, name: &str, well: bool, facts: &str) {
        let status = if well { Status::Success } else { Status::Failure };
        if well {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
        let mark = screen.mark(status);
        let name = screen.styled(Style::Bold, &format!("{name:<12}"));
        screen.line(&format!(" {mark} {name} {facts}"));
    }

    /// How many there were.
    pub(crate) fn count(&self) -> usize {
        self.passed + self.failed
    }

    /// How many did not do what they should.
    pub(crate) fn failed(&self) -> usize {
        self.failed
    }
}

/// The run itself, and that the runner kept the rules of the protocol.
pub(crate) fn run(verdicts: &mut Verdicts, screen: &mut Screen, run: &RunView, violations: &[String]) {
    let steps = run.jobs.iter().flat_map(|job| &job.steps).filter(|step| step.index.is_some());
    let (mut all, mut good) = (0, 0);
    for step in steps {
        all += 1;
        good += usize::from(step.status == Status::Success);
    }
    let well = run.status == Status::Success && good == all && all > 0;
    verdicts.judge(screen, "run", well, &format!("{}: {good} of {all} steps succeeded", run.status));
    let facts = match violations {
        [] => "each request of the runner was as Gitea wants it".to_owned(),
        some => some.join("; "),
    };
    verdicts.judge(screen, "protocol", violations.is_empty(), &facts);
}

/// That GHC ran in the build, each time under the ceiling. Only the runner could see it, so this asks the log.
pub(crate) fn ceiling(verdicts: &mut Verdicts, screen: &mut Screen, forge: &Forge, run: &RunView) {
    let rows = run.jobs.iter().flat_map(|job| forge.text(job.id));
    let proof = rows.filter(|row| row.contains(PROOF)).last();
    let well = proof.as_deref().is_some_and(in_all);
    let facts = proof.unwrap_or_else(|| format!("no row says {PROOF:?}"));
    verdicts.judge(screen, "heap ceiling", well, facts.trim_start_matches("sower: "));
}

/// Whether `… heap ceiling in force: 2 GiB in 3 of 3, …` has the same number twice, and one ceiling.
fn in_all(row: &str) -> bool {
    let figures = row.split_once(PROOF).and_then(|(_, rest)| rest.split_once(" in ")?.1.split_once(" of "));
    let Some((number, rest)) = figures else { return false };
    let all: String = rest.chars().take_while(char::is_ascii_digit).collect();
    number == all && number != "0"
}

/// That the cut archive is whole, by Nix's own hash.
pub(crate) fn archive(verdicts: &mut Verdicts, screen: &mut Screen, damage: &Damage, interrupt: &Interrupt) {
    let name = damage.archive.file_name().unwrap_or_default().to_string_lossy();
    let well = damage.is_mended(interrupt);
    let facts = if well {
        format!("{name}: {} bytes again, and Nix finds its hash right", grouped(damage.whole))
    } else {
        format!("{name}: not what Nix built")
    };
    verdicts.judge(screen, "archive", well, &facts);
}

/// That the image is there under its tag, and only as many tags as are to be kept.
pub(crate) fn tags(
    verdicts: &mut Verdicts,
    screen: &mut Screen,
    forge: &Forge,
    (owner, name): (&str, &str),
    tag: &str,
    before: usize,
) {
    let tags: Vec<String> = forge
        .packages()
        .into_iter()
        .filter(|package| package.owner == owner && package.name == name)
        .map(|package| package.tag)
        .collect();
    let pushed = tags.iter().any(|found| found == tag);
    let facts = format!("{owner}/{name}:{tag} is in the registry, past a token realm that leads nowhere");
    verdicts.judge(
        screen,
        "image",
        pushed,
        if pushed { &facts } else { "the new tag is not in the registry" },
    );
    let facts = format!("{} tags and the new one before, {} now: {}", before, tags.len(), tags.join(" "));
    verdicts.judge(screen, "tags", tags.len() == KEPT && pushed, &facts);
}

/// That the pod of this very commit runs and answers.
pub(crate) fn pod(
    verdicts: &mut Verdicts,
    screen: &mut Screen,
    cluster: &Cluster,
    namespace: &str,
    (tag, words): (&str, &str),
    interrupt: &Interrupt,
) -> Result<(), Trouble> {
    let pods = cluster.kubectl(&["get", "pods", "--namespace", namespace, "--output", "wide"], interrupt)?;
    screen.line("");
    screen.line(&screen.styled(Style::Dim, &format!("   $ kubectl get pods --namespace {namespace}")));
    // From the sixth column on there is nothing that a reader of a demo wants to know.
    for line in pods.lines() {
        screen.line(&format!(
            "   {}",
            line.split("  ")
                .filter(|word| !word.is_empty())
                .take(6)
                .map(str::trim)
                .map(|word| format!("{word:<26}"))
                .collect::<String>()
                .trim_end()
        ));
    }
    screen.line("");
    let query =
        "jsonpath={range .items[*]}{.status.phase} {.spec.containers[0].image} {.status.podIP}{\"\\n\"}{end}";
    let found = interrupt.wait_for("a running pod of this commit", POD_LIMIT, || {
        let listed =
            cluster.kubectl(&["get", "pods", "--namespace", namespace, "--output", query], interrupt).ok()?;
        let line = listed.lines().find(|line| {
            let mut fields = line.split(' ');
            fields.next() == Some("Running")
                && fields.next().is_some_and(|image| image.ends_with(&format!(":{tag}")))
        })?;
        line.rsplit(' ').next().map(str::to_owned)
    });
    let address = match found {
        Ok(address) => address,
        Err(Trouble::Interrupted) => return Err(Trouble::Interrupted),
        Err(trouble) => {
            verdicts.judge(screen, "pod", false, &trouble.to_string());
            return Ok(());
        }
    };
    let answer = ask(&address, 8080);
    let well = answer.as_ref().is_ok_and(|text| text.contains(words));
    let facts = match answer {
        Ok(text) => format!("http://{address}:8080/ says: {}", text.lines().last().unwrap_or_default()),
        Err(error) => format!("http://{address}:8080/ does not answer: {error}"),
    };
    verdicts.judge(screen, "pod", well, &facts);
    Ok(())
}

/// A GET, as plain as can be.
fn ask(host: &str, port: u16) -> std::io::Result<String> {
    let address = format!("{host}:{port}").parse().map_err(std::io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    // In one piece: the application answers what arrives first.
    stream.write_all(format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// First line of what a program says of its version.
pub(crate) fn version(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().next()?;
    // The first word that begins with a digit, or with a v and a digit.
    line.split_whitespace()
        .map(|word| word.trim_start_matches('v'))
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
        .map(|word| word.trim_end_matches([',', ';']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_holds_only_if_it_was_in_force_each_time() {
        let said = |forces: &str| {
            in_all(&format!("sower: GHC ran 3 times; heap ceiling in force: {forces}, peak RSS 512 MiB"))
        };
        assert!(said("2 GiB in 3 of 3"));
        assert!(!said("2 GiB in 1 of 3, 4 GiB in 2 of 3"));
        assert!(!said("none in 0 of 0"));
        assert!(!in_all("sower: GHC did not run"));
    }
}

//! The programs that jobs call: where they are and which version they say they have.

use std::path::{Path, PathBuf};
use std::thread;

use super::ask::{self, ask};
use super::report::Check;
use crate::config::{Config, Native};

const ROOM: &str = "tools";

/// A program that jobs may call.
struct Tool {
    name: &'static str,
    version: &'static [&'static str],
    /// Who needs it.
    wanted: &'static str,
    /// How it is installed.
    install: &'static str,
    /// Jobs of any label need it.
    needed: bool,
}

const TOOLS: [Tool; 6] = [
    Tool {
        name: "git",
        version: &["--version"],
        wanted: "every checkout",
        install: "apk add git, or apt-get install git",
        needed: true,
    },
    Tool {
        name: "bash",
        version: &["--version"],
        wanted: "steps without `shell`; without it they run with sh",
        install: "apk add bash",
        needed: false,
    },
    Tool {
        name: "ssh",
        version: &["-V"],
        wanted: "git over SSH (sower's own SSH needs none)",
        install: "apk add openssh-client",
        needed: false,
    },
    Tool {
        name: "helm",
        version: &["version", "--short"],
        wanted: "sower/deploy-helm",
        install: "https://helm.sh/docs/intro/install",
        needed: false,
    },
    Tool {
        name: "kubectl",
        version: &["version", "--client"],
        wanted: "sower/deploy-helm",
        install: "https://kubernetes.io/docs/tasks",
        needed: false,
    },
    Tool {
        name: "node",
        version: &["--version"],
        wanted: "actions in JavaScript; checkout, cache and artifacts are built in",
        install: "apk add nodejs, or apt-get install nodejs",
        needed: false,
    },
];

pub(super) fn examine(config: &Config) -> Vec<Check> {
    thread::scope(|scope| {
        let looks: Vec<_> = TOOLS.iter().map(|tool| scope.spawn(move || look(tool, config))).collect();
        looks.into_iter().filter_map(|look| look.join().ok()).collect()
    })
}

fn look(tool: &Tool, config: &Config) -> Check {
    let Some(path) = find(tool.name) else {
        let seen = format!("not on PATH; wanted by {}", tool.wanted);
        // Without the built-in ones every checkout needs Node.
        let needed = tool.needed || tool.name == "node" && config.actions.native == Native::Never;
        return if needed {
            Check::bad(ROOM, tool.name, seen, tool.install)
        } else {
            Check::note(ROOM, tool.name, seen)
        };
    };
    match ask(&path, tool.version) {
        Ok(said) if said.success || !said.first_line().is_empty() => {
            Check::well(ROOM, tool.name, format!("{}, {}", short(&said.first_line()), path.display()))
        }
        Ok(_) => Check::odd(
            ROOM,
            tool.name,
            format!("{} says nothing of its version", path.display()),
            tool.install,
        ),
        Err(why) if why.starts_with(ask::SLOW) => {
            let seen = format!("{}: {why}", path.display());
            Check::odd(ROOM, tool.name, seen, "look at the load of this host, and ask again")
        }
        Err(why) => Check::bad(ROOM, tool.name, format!("{} {why}", path.display()), tool.install),
    }
}

/// The program as jobs find it.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    which::which(name).ok().map(|path| std::path::absolute(&path).unwrap_or(path))
}

/// The version out of a line such as `git version 2.39.5` or `GNU bash, version 5.2.15(1)-release (…)`.
pub(super) fn short(line: &str) -> String {
    let version = line
        .split([' ', ',', '_'])
        .find(|word| {
            let word = word.trim_start_matches('v');
            word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.')
        })
        .unwrap_or(line);
    version.split(['(', '+']).next().unwrap_or(version).trim_start_matches('v').to_owned()
}

/// Where a program really is, such as behind the links of a Nix profile.
pub(super) fn real(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        for (line, version) in [
            ("git version 2.39.5", "2.39.5"),
            ("GNU bash, version 5.2.15(1)-release (x86_64-pc-linux-gnu)", "5.2.15"),
            ("OpenSSH_9.2p1 Debian-2+deb12u7, OpenSSL 3.0.17", "9.2p1"),
            ("v4.1.4+g0d6f3ad", "4.1.4"),
            ("Client Version: v1.34.4", "1.34.4"),
            ("nix (Nix) 2.8.0", "2.8.0"),
            ("nothing to see", "nothing to see"),
        ] {
            assert_eq!(short(line), version, "{line}");
        }
    }
}

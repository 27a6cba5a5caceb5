//! GHC: whether it takes a ceiling, and what beats it.

use std::path::PathBuf;

use super::ask::ask;
use super::report::Check;
use super::tools::real;
use crate::archive::nix::store_directory;
use crate::config::Config;
use crate::limits::programs;

const ROOM: &str = "ghc";
/// Compilers that are asked at most; a store may hold dozens.
const AT_MOST: usize = 4;

pub(super) fn examine(config: &Config) -> Vec<Check> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = programs::on_path(&path).remove("ghc");
    let mut compilers: Vec<PathBuf> = on_path.iter().cloned().collect();
    let of_path: Vec<PathBuf> =
        on_path.iter().flat_map(|ghc| programs::behind(ghc)).map(|ghc| real(&ghc)).collect();
    let in_store = programs::in_store(&store_directory());
    let more = in_store.len();
    compilers.extend(in_store.into_iter().rev().filter(|ghc| !of_path.contains(ghc)));
    if compilers.is_empty() {
        return vec![Check::note(ROOM, "ghc", "neither on PATH nor in the store; a build brings its own")];
    }
    compilers.truncate(AT_MOST);
    let mut checks: Vec<Check> = std::thread::scope(|scope| {
        let looks: Vec<_> = compilers.iter().map(|ghc| scope.spawn(move || look(ghc))).collect();
        looks.into_iter().filter_map(|look| look.join().ok()).collect()
    });
    if more > AT_MOST {
        checks.push(Check::note(
            ROOM,
            "store",
            format!("{more} compilers in the store, the newest were asked"),
        ));
    }
    checks.push(ceiling(config));
    checks
}

fn look(ghc: &std::path::Path) -> Check {
    let version = match ask(ghc, &["--numeric-version"]) {
        Ok(said) if said.success => said.first_line(),
        Ok(said) => {
            return Check::note(ROOM, "ghc", format!("{}: {}", ghc.display(), said.first_line()));
        }
        Err(why) => return Check::note(ROOM, "ghc", format!("{} {why}", ghc.display())),
    };
    let seen = format!("{version}, {}", ghc.display());
    // Without -rtsopts it refuses any such option.
    let takes = ask(ghc, &["+RTS", "-M1g", "-RTS", "--numeric-version"]).is_ok_and(|said| said.success);
    if takes {
        Check::well(ROOM, "ghc", format!("{seen}, takes -M"))
    } else {
        Check::odd(
            ROOM,
            "ghc",
            format!("{seen}, refuses -M: it was linked without -rtsopts"),
            "no ceiling reaches it; give the job a limit: limits: {memory: 3GiB}",
        )
    }
}

fn ceiling(config: &Config) -> Check {
    let Some(heap) = &config.ghc.heap else {
        return Check::note(ROOM, "ceiling", "none of this host (ghc.heap); workflows may ask for one");
    };
    let beats = if config.ghc.enforce {
        "ours is the last -M on the command line; nothing beats it"
    } else {
        "+RTS -M, -A and -n that a build passes on the command line beat it (ghc.enforce: true puts ours last)"
    };
    Check::well(ROOM, "ceiling", format!("-M{heap}; {beats}"))
}

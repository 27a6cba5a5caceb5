//! Whether this host can do what it is to do: checks with what was seen and, where something is not well, the line to
//! change. Nothing here changes anything.
//!
//! | Module | Holds |
//! | --- | --- |
//! | `report` | the checks as a table, as JSON, as a job's summary |
//! | `host` | memory, swap, disks, control groups, kernel |
//! | `tools` | the programs that jobs call, with their versions |
//! | `nix`, `ghc` | what those two are set to |
//! | `gitea` | the instance, the registration, the daemon |
//! | `rooms` | registries, deployment targets, archives: what those rooms say |
//! | `ask` | programs that are asked with a time limit |

mod ask;
mod ghc;
mod gitea;
mod host;
mod nix;
mod report;
pub mod rooms;
mod tools;

use std::thread;

pub use report::{Check, Report, State};

use crate::config::Config;

/// Looks at the host, its tools and the instance, all at the same time.
#[must_use]
pub fn examine(config: &Config) -> Report {
    let rooms: [fn(&Config) -> Vec<Check>; 5] =
        [host::examine, tools::examine, nix::examine, ghc::examine, gitea::examine];
    let checks = thread::scope(|scope| {
        let running: Vec<_> = rooms.iter().map(|room| scope.spawn(move || room(config))).collect();
        running.into_iter().flat_map(|room| room.join().unwrap_or_default()).collect()
    });
    Report { checks }
}

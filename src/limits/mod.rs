//! Memory: the limits of a job, what it uses, and the heap ceiling of GHC with the proof that it is in force.
//!
//! GHC takes a ceiling for its heap (`-M`) from the environment variable GHCRTS and from `+RTS … -RTS` on its
//! command line. The variable is inherited by everything that runs in the job, and an ordinary Haskell program
//! exits with 1 when it meets it. So the ceiling is put on GHC's own command line, by small launchers that
//! stand in front of it, and read back from the running processes.
//!
//! | Module | Holds |
//! | --- | --- |
//! | [`cap`] | the kernel's limits for a job: control groups of both versions |
//! | [`parents`] | the limits of the groups above |
//! | [`meter`] | the thread that measures a running job, and the watchdog |
//! | [`profile`] | what was measured, bounded |
//! | [`report`], [`svg`] | what was measured, as Markdown and as a picture |
//! | [`scope`] | a job in a scope of systemd, beside the service |
//! | [`kernel_log`] | what the kernel says of processes that it killed for memory |
//! | [`size`] | sizes as GHC's run-time system reads them |
//! | [`ceiling`] | a ceiling, and the one that is in force in a process |
//! | [`programs`] | which programs are GHC |
//! | [`launcher`] | launchers, and directories of them |
//! | [`cover`] | launchers in front of GHC inside the Nix store, in a private mount namespace |
//! | [`process`] | what `/proc` tells of a process |
//! | [`watch`] | a thread that finds the GHC processes of a command and keeps the proof |
//! | [`run`] | a command under a ceiling, from start to exit code |
//! | [`derivations`] | which derivations run GHC, and which of them carry a ceiling |
//! | [`nix`] | whose children builders are, and by which way a ceiling gets to them |
//! | [`nix_build`], [`follow`], [`nix_log`] | Nix builds as they go, by a command that shows them and by Nix's own log |
//! | [`admission`] | whether a job fits beside those that run |

pub mod admission;
pub mod cap;
pub mod ceiling;
pub mod cover;
pub mod derivations;
pub mod follow;
pub mod kernel_log;
pub mod launcher;
pub mod meter;
pub mod nix;
pub mod nix_build;
pub mod nix_log;
pub mod parents;
pub mod process;
pub mod profile;
pub mod programs;
pub mod report;
pub mod run;
pub mod scope;
pub mod size;
pub mod svg;
pub mod watch;

//! A stand-in for Gitea, for the tests and the demo.
//!
//! It speaks the runner protocol as real servers do, holds bare repositories that git can push to, makes runs of the
//! workflows that a push brings, and stands in front of a real container registry. Beside that it does what no real
//! server does: it complains about everything that a runner gets away with elsewhere ([`Rule`]), and it fails on
//! demand ([`Fault`]).
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use sower_test_support::{Forge, Options};
//!
//! let forge = Forge::start(Options::default())?;
//! let repository = forge.repository("dev/app")?;
//! println!("register with {} at {}", forge.registration_token(), forge.url());
//! println!("push to {}", repository.push_url());
//! let run = forge.wait_for("a finished run", Duration::from_secs(60), |forge| {
//!     forge.runs().into_iter().find(|run| run.status.is_done())
//! })?;
//! for job in &run.jobs {
//!     for step in &job.steps {
//!         println!("{} {}", step.name, step.status);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod artifacts;
mod ask;
pub mod console;
mod context;
mod fault;
mod forge;
mod git;
mod gitea;
mod http;
pub mod machine;
mod options;
mod ports;
mod protocol;
mod random;
mod registry;
mod rest;
mod rpc;
mod rules;
mod runner;
mod runs;
mod server;
mod sshd;
mod state;
mod view;
mod workflow;

pub use ask::{Answer, ask};
pub use fault::{Fault, Method};
pub use forge::{Enqueue, Forge, PASSWORD, TimedOut, USER};
pub use git::{GitError, Repository, push_files};
pub use gitea::Gitea;
pub use options::{ErrorStyle, Options, RegistryOptions, Version};
pub use ports::free_address;
pub use random::Dice;
pub use registry::Package;
pub use rules::Rule;
pub use runner::{Runner, signal};
pub use server::{JobSeen, Server, Trouble};
pub use sshd::Sshd;
pub use state::{Row, Status};
pub use view::{JobView, RunView, RunnerView, StepView};

//! Talking to Gitea: client, registration, poller and reporter.
//!
//! The protocol is Connect RPC, unary calls only, with binary protobuf over HTTP/1.1 or 2 (see the crate
//! `sower-wire`). Journals say what happened in a job; this room only carries it over.

mod backoff;
mod caches;
mod client;
mod daemon;
mod error;
mod faults;
mod housekeeper;
mod notify;
mod pause;
mod poller;
mod register;
mod registration;
mod reporter;
mod room;
mod task;
mod track;

pub use backoff::Backoff;
pub use client::{Address, AddressError, Client, Credentials};
pub use daemon::{DaemonError, Left, Options, run};
pub use error::{Code, Error, Meaning};
pub use faults::faults;
pub use register::{NewRunner, RegisterError, look, register};
pub use registration::{Registration, RegistrationError};
pub use task::job_spec;

/// What this runner can do beyond the first version of the protocol. Leaving one out revokes it.
const CAPABILITIES: [&str; 1] = ["cancelling"];

//! The cache server: keeps what `actions/cache` saves, and gives it to later jobs.
//!
//! It speaks the protocols of GitHub's cache service (version 1 under `/_apis/artifactcache`, version 2 as Twirp), as
//! the clients in actions use them. The directory is the only truth: nothing is held in memory but who may ask, so the
//! server may be killed at any moment, and several programs may share one directory.
//!
//! For local runs it also keeps artifacts ([`artifacts`]). In jobs of the daemon they are Gitea's; questions about them
//! that come here are handed on ([`relay`]), since clients of version 2 know one address for both.

pub mod artifacts;
pub mod relay;
mod reply;
pub mod server;
pub mod sign;
pub mod store;
mod v1;
mod v2;

pub(crate) use reply::{decode, encode};
pub use server::{Options, Server};
pub use store::{Counts, Grant, Store, Swept};

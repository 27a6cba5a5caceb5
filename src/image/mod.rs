//! Container images: reading archives, pushing to registries, pruning tags.
//!
//! The way of an image: [`source`] finds the layers in a docker-archive or an OCI layout without unpacking
//! it, while [`look`] lets others ask the registry, [`relayer`] splits the one layer of a Nix image by store paths,
//! [`layer`] reads one layer once (hash, compress, hash) as a stream of chunks, and [`push`] hands those chunks to the
//! [`registry`] client, the manifest last; [`stream`] does the same with what can be read only once. [`node`] brings an image
//! over SSH to a cluster that cannot pull. What was learned is remembered in [`cache`]. [`prune`] removes old tags, through
//! Gitea's packages API or the registry's own. Nothing here knows of terminals: what happens is told through
//! [`push::Event`] and the reports.

mod block;
pub mod cache;
pub mod chunks;
pub mod compress;
pub mod digest;
pub mod doctor;
pub mod error;
mod facts;
pub mod inspect;
pub mod layer;
pub mod look;
mod manifest;
pub mod node;
pub mod prune;
pub mod push;
pub mod reference;
pub mod registry;
pub mod relayer;
pub mod report;
pub mod source;
pub mod stream;

pub use digest::Digest;
pub use error::Error;
pub use reference::{Destination, Repository};

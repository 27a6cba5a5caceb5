//! Running workflows of the working directory, without a server (`sower exec`).
//!
//! Does what the server does otherwise: picks the workflows for an event, expands matrices, keeps the order that
//! `needs` asks for, and gives each job its contexts. The jobs themselves run as everywhere.

pub mod context;
pub mod filter;
pub mod graph;
pub mod plan;
pub mod schedule;
pub mod services;
pub mod show;
pub mod status;
pub mod summary;

pub use context::{Context, Question};
pub use plan::{Plan, Run};

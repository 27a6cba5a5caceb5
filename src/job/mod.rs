//! Running one job: a program that turns a plan into events.
//!
//! [`executor::run`] takes a [`spec::JobSpec`] and a sink for events. Below it, each file knows one thing: a step,
//! an action, what a step prints, the files by which it talks back, its processes.

pub mod call;
pub mod command;
pub mod embedded;
mod encodings;
pub mod environment;
pub mod executor;
pub mod files;
pub mod group;
pub mod host;
pub mod log;
pub mod mask;
pub mod matcher;
pub mod oom;
pub mod output;
pub mod process;
pub mod remove;
pub mod rows;
pub mod scope;
pub mod shell;
pub mod source;
pub mod spec;
pub mod tail;
pub mod tree;

mod actions;
mod hooks;
mod memory;
mod native;
mod phases;
mod sieve;
mod steps;

//! Running one job: a program that turns a plan into events.

pub mod command;
pub mod embedded;
pub mod files;
pub mod mask;
pub mod process;
pub mod rows;
pub mod shell;
pub mod source;
pub mod spec;
pub mod tree;

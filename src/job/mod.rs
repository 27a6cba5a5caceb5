//! Running one job: a program that turns a plan into events.

pub mod spec;

//! A Gitea Actions runner for small build hosts.
//!
//! The rooms and what each may know of the others:
//!
//! | Module | Holds | Knows of |
//! | --- | --- | --- |
//! | [`cli`] | one file per subcommand: arguments in, one call, exit code out | everything below |
//! | [`gitea`] | client, registration, poller, reporter | `config`, `events`, `supervisor`, `http` |
//! | [`supervisor`] | starts job processes, finds them again, ends them | `events`, `job::spec` |
//! | [`local`] | running workflows of the working directory, without a server | `job`, `workflow`, `events`, `cache` |
//! | [`cache`] | the cache server: entries on disk, protocols, who may ask | nothing |
//! | [`job`] | plan, steps, scripts, actions, commands, masking, environment files | `workflow`, `events`, `limits` |
//! | [`limits`] | the kernel's limits, the heap ceiling and its proof, the measuring of jobs | `config`, `events`, `job::tree` |
//! | [`diagnose`] | why a step failed | `config`, `limits` |
//! | [`events`] | the event type and the journal that writes and reads it | nothing |
//! | [`workflow`] | model, parser with positions, diagnostics, expressions | `yaml` |
//! | [`config`] | runner configuration: typed, defaulted, checked | `yaml` |
//! | [`archive`] | reading, checking and mending static archives | nothing |
//! | [`image`] | docker-archive and OCI layout, registry client, push, prune | `http` |
//! | [`deploy`] | helm, rollout, diagnosis | `ssh`, `http`, `image` |
//! | [`ssh`] | connections to other hosts: programs, tunnels, files | `http` (names) |
//! | [`doctor`] | whether this host can do what it is to do | `config`, `gitea`, `observe`, `limits` |
//! | [`housekeeping`] | what is removed, what is kept in the Nix store | `config`, `supervisor`, `cache` |
//! | [`observe`] | metrics, health, how the daemon stands | `events`, `cache` |
//! | [`mounts`] | a mount namespace of a thread's own; paths as the kernel lists mounts | nothing |
//! | [`notify`] | telling systemd how the daemon is | nothing |
//! | [`allocator`] | how the C library's allocator is set | nothing |
//! | [`yaml`] | YAML documents with source positions and limits | nothing |
//! | [`http`] | how every HTTP client here is built | nothing |

pub mod allocator;
pub mod archive;
pub mod cache;
pub mod cli;
pub mod config;
pub mod deploy;
pub mod diagnose;
pub mod doctor;
pub mod events;
pub mod gitea;
pub mod housekeeping;
pub mod http;
pub mod image;
pub mod job;
pub mod limits;
pub mod local;
pub mod mounts;
pub mod notify;
pub mod observe;
pub mod ssh;
pub mod supervisor;
pub mod workflow;
pub mod yaml;

/// The version of this program, as `sower --version` prints it and Gitea shows it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

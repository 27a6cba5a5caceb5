//! The messages of the Gitea Actions runner protocol, generated from `proto/`.
//!
//! A crate of its own so that the runner and the stand-in server of the tests read one definition.
//! Messages that carry tokens, secrets or log rows have a `Debug` that shows none of them.

use std::fmt;

/// Package `ping.v1`.
pub mod ping {
    #![expect(missing_docs, reason = "generated; the .proto file documents the messages")]
    include!(concat!(env!("OUT_DIR"), "/ping.v1.rs"));
}

/// Package `runner.v1`.
pub mod runner {
    #![expect(missing_docs, reason = "generated; the .proto file documents the messages")]
    include!(concat!(env!("OUT_DIR"), "/runner.v1.rs"));
}

pub use prost_types::{Struct, Timestamp, Value, value};

impl fmt::Debug for runner::Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("id", &self.id).finish_non_exhaustive()
    }
}

impl fmt::Debug for runner::Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner")
            .field("id", &self.id)
            .field("uuid", &self.uuid)
            .field("name", &self.name)
            .field("labels", &self.labels)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for runner::RegisterRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegisterRequest")
            .field("name", &self.name)
            .field("labels", &self.labels)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for runner::UpdateLogRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpdateLogRequest")
            .field("task_id", &self.task_id)
            .field("index", &self.index)
            .field("rows", &self.rows.len())
            .field("no_more", &self.no_more)
            .finish()
    }
}

impl fmt::Debug for runner::LogRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogRow").field("bytes", &self.content.len()).finish_non_exhaustive()
    }
}

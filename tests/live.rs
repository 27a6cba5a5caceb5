//! The scenarios of the daemon on a real Gitea: `SOWER_TEST_GITEA=/path/of/gitea cargo test --features live-tests`.
#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]

mod scenarios;

use std::path::PathBuf;

use sower_test_support::Gitea;

/// Starts a fresh Gitea.
fn gitea() -> Gitea {
    let program = std::env::var_os("SOWER_TEST_GITEA").map(PathBuf::from);
    let program = program.expect("set SOWER_TEST_GITEA to the program of a Gitea");
    Gitea::start(&program).unwrap()
}

scenarios::scenarios!(gitea);

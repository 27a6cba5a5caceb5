//! `cargo +nightly fuzz run archive_check`: any bytes get an answer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sower::archive::{check, readers, salvage, words};

fuzz_target!(|bytes: &[u8]| {
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("fuzzed.a");
    std::fs::write(&path, bytes).unwrap();
    let Ok(report) = check(&path) else { return };
    let _ = (words::text(&report), readers::verdicts(&report));
    let file = std::fs::File::open(&path).unwrap();
    let _ = salvage::plan(&file, &report);
});

//! `cargo +nightly fuzz run archive_check`: any bytes get an answer, and what is salvaged of them is an archive.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sower::archive::{check, explain, readers, salvage, words};

fuzz_target!(|bytes: &[u8]| {
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("fuzzed.a");
    std::fs::write(&path, bytes).unwrap();
    let Ok(report) = check(&path) else { return };
    let _ = (words::text(&report), readers::verdicts(&report), words::mend_command(&report));
    let _ = explain::member_at(&path, 300);
    let file = std::fs::File::open(&path).unwrap();
    if let Ok(plan) = salvage::plan(&file, &report) {
        let salvaged = directory.path().join("salvaged.a");
        plan.write(&file, &mut std::fs::File::create(&salvaged).unwrap()).unwrap();
        let _ = check(&salvaged).unwrap();
    }
});

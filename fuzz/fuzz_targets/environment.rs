//! Environment files: pairs, directories and summaries that a step wrote.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use sower::job::files::EnvironmentFiles;

static FILES: LazyLock<(std::path::PathBuf, EnvironmentFiles)> = LazyLock::new(|| {
    let directory = std::env::temp_dir().join(format!("sower-fuzz-{}", std::process::id()));
    let files = EnvironmentFiles::create(&directory).expect("a temporary directory can be made");
    (directory, files)
});

fuzz_target!(|data: &[u8]| {
    let (directory, files) = &*FILES;
    for name in ["env", "path", "summary.md"] {
        std::fs::write(directory.join(name), data).expect("the file can be written");
    }
    if let Ok(pairs) = files.env() {
        assert!(pairs.iter().all(|(name, _)| !name.is_empty()));
    }
    let _ = (files.path(), files.summary());
});

//! `cargo +nightly fuzz run archive_nar`: any stream gets an answer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sower::archive::nar;

fuzz_target!(|bytes: &[u8]| {
    let mut stream = bytes;
    let _ = nar::seek_file(&mut stream, std::path::Path::new("lib/libx.a"));
});

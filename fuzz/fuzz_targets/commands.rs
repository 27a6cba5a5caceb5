//! What a step prints: rows, commands, masks, in whatever chunks it comes.
#![no_main]

use std::io;

use libfuzzer_sys::fuzz_target;
use sower::events::{Event, MAX_ROW_BYTES, Sink};
use sower::job::log::Log;
use sower::job::mask::Masker;
use sower::job::output::Interpreter;

struct Rows;

impl Sink for Rows {
    fn emit(&mut self, event: &Event) -> io::Result<()> {
        if let Event::Row { text, .. } = event {
            assert!(text.len() <= MAX_ROW_BYTES);
            assert!(!text.contains("hunter2"), "a secret is in a row");
        }
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    let mut rows = Rows;
    let mut log = Log::new(&mut rows, Masker::new(["hunter2", "er2x"]), true);
    let mut interpreter = Interpreter::default();
    interpreter.begin(true, false);
    let (size, data) = data.split_first().map_or((1, data), |(size, rest)| (usize::from(*size) + 1, rest));
    for chunk in data.chunks(size) {
        interpreter.take(chunk, &mut log).expect("the sink takes everything");
    }
    interpreter.end(&mut log).expect("the sink takes everything");
});

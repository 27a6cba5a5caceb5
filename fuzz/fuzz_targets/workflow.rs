//! Workflow and action files: whatever they hold, there is an answer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sower::workflow::{Around, check_action_in, check_workflow_in};

fuzz_target!(|data: &[u8]| {
    let labels = ["host".to_owned()];
    // The file calls itself, whatever it calls.
    let read = |_: &str| Some(data.to_vec());
    let around = Around { served: Some(&labels), read: Some(&read) };
    for found in check_workflow_in(data, "w.yaml", around) {
        assert!(found.message.chars().count() <= 600);
        let _ = sower::workflow::snippet(&found, &String::from_utf8_lossy(data));
    }
    for found in check_action_in(data, "action.yml", around) {
        assert!(found.message.chars().count() <= 600);
    }
});

//! Workflow and action files: whatever they hold, there is an answer.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let labels = ["host".to_owned()];
    for found in sower::workflow::check_workflow_for(data, "w.yaml", Some(&labels)) {
        assert!(found.message.chars().count() <= 600);
        let _ = sower::workflow::snippet(&found, &String::from_utf8_lossy(data));
    }
    let _ = sower::workflow::check_action(data, "action.yml");
});

//! What a robot publishes: topic, a line end, payload.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portarium_protocols::mqtt::{payload, topic};

fuzz_target!(|bytes: &[u8]| {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let (name, message) = bytes.split_at(end.unwrap_or_default());
    let _ = topic::parse(name);
    let message = message.get(1..).unwrap_or_default();
    let _ = payload::parse_presence(message);
    let Ok(status) = payload::parse_status(message) else {
        return;
    };
    for (text, most) in [
        (&status.detail, payload::MAX_DETAIL_BYTES),
        (&status.observed_at, payload::MAX_TEXT_BYTES),
        (&status.action_execution_id, payload::MAX_TEXT_BYTES),
    ] {
        assert!(text.len() <= most && !text.chars().any(char::is_control));
    }
});

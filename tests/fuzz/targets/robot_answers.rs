//! What a gRPC robot answers and reports.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portarium_protocols::grpc::fuzzing::robots_words;

fuzz_target!(|bytes: &[u8]| {
    let (robot, mission) = ("r1".parse().unwrap(), "m1".parse().unwrap());
    for text in robots_words(&robot, &mission, bytes) {
        // What is shown for people may be longer than what is kept, by its quotes and escapes.
        assert!(text.len() < 4096 && !text.chars().any(char::is_control), "{text:?}");
    }
});

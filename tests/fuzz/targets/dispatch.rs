//! A mission as a caller sends it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portarium_protocols::grpc::{convert, pb::DispatchMissionRequest};
use prost::Message as _;

fuzz_target!(|bytes: &[u8]| {
    let Ok(request) = DispatchMissionRequest::decode(bytes) else {
        return;
    };
    if let Ok(command) = convert::parse(request) {
        let id = command.mission_id.as_str();
        assert!(!id.is_empty() && !id.contains(['/', '+', '#', '\0', '\n']));
        // A robot that serves the contract reads it as we do.
        let again = convert::parse(convert::dispatch_request(&command)).unwrap();
        assert_eq!(again, command);
    }
});

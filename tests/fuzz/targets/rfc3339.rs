//! The time that a caller names.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portarium_protocols::grpc::{convert, pb::DispatchMissionRequest};

fuzz_target!(|text: &str| {
    let request = DispatchMissionRequest {
        mission_id: "m".into(),
        plan_effect_idempotency_key: "p".into(),
        idempotency_key: "k".into(),
        robot_id: "r".into(),
        action_type: "robot:execute_action".into(),
        action_name: "dock".into(),
        supports_preemption: true,
        completion_mode: "Auto".into(),
        requested_at: text.into(),
        ..Default::default()
    };
    match convert::parse(request) {
        Ok(command) => assert!(text.len() <= 64 && !command.requested_at.contains('\n')),
        Err(invalid) => assert_eq!(invalid.field, "requested_at"),
    }
});

#![allow(clippy::unwrap_used)]
use super::*;
use crate::mission::{ActionType, CompletionMode};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

fn navigate() -> Command {
    Command {
        mission_id: "m-1".parse().unwrap(),
        correlation_id: "c".into(),
        plan_effect_idempotency_key: "plan".into(),
        robot_id: "r-1".parse().unwrap(),
        fleet_id: None,
        action_type: ActionType::ExecuteAction,
        action_name: "navigate_to".into(),
        parameters: BTreeMap::from([("x".into(), "1.5".into())]),
        idempotency_key: "key".into(),
        supports_preemption: true,
        bypass_tier_evaluation: false,
        completion_mode: CompletionMode::Auto,
        requires_operator_confirmation: false,
        requested_at: "2026-01-01T00:00:00Z".into(),
    }
}

#[test]
fn a_command_is_written_exactly_as_the_contract_lists_it() {
    let robot = MqttRobot {
        robot_id: "r-1".parse().unwrap(),
        tenant: "t".parse().unwrap(),
        fleet: Some("fleet".parse().unwrap()),
        gateway_id: "gw".into(),
    };
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
    let written: Value =
        serde_json::from_slice(&super::command(&navigate(), &robot, at).unwrap()).unwrap();
    assert_eq!(
        written,
        json!({"schemaVersion": 1, "sentAt": "1970-01-01T00:00:01.500Z", "payload": {
            "missionId": "m-1", "correlationId": "c", "planEffectIdempotencyKey": "plan",
            "robotId": "r-1", "fleetId": "fleet", "gatewayId": "gw",
            "actionType": "robot:execute_action", "actionName": "navigate_to",
            "parameters": {"x": "1.5"}, "idempotencyKey": "key", "supportsPreemption": true,
            "bypassTierEvaluation": false, "completionMode": "Auto",
            "requiresOperatorConfirmation": false, "requestedAt": "2026-01-01T00:00:00Z"}})
    );
}

#[test]
fn a_cancel_is_written_exactly_as_the_contract_lists_it() {
    let asked = Cancel {
        command: Arc::new(navigate()),
        reason: "stop".into(),
    };
    let written: Value =
        serde_json::from_slice(&super::cancel(&asked, SystemTime::UNIX_EPOCH).unwrap()).unwrap();
    assert_eq!(
        written["payload"],
        json!({"missionId": "m-1", "correlationId": "c", "planEffectIdempotencyKey": "plan",
               "reason": "stop"})
    );
}

fn status(payload: Value) -> Result<Status, PayloadError> {
    let message = json!({"schemaVersion": 1, "sentAt": "x", "new": [1], "payload": payload});
    parse_status(message.to_string().as_bytes())
}

#[test]
fn a_status_needs_only_its_state_and_ignores_fields_to_come() {
    let read = status(json!({"status": "waiting_preemption", "later": {"a": 1}})).unwrap();
    assert_eq!(read.status, MissionStatus::WaitingPreemption);
    assert_eq!(read.detail, "");
    let read = status(
        json!({"status": "failed", "action_execution_id": "e", "observed_at": "o",
                             "detail": null}),
    )
    .unwrap();
    assert_eq!(
        (read.action_execution_id.as_str(), read.observed_at.as_str()),
        ("e", "o")
    );
}

#[test]
fn what_people_read_is_bounded_and_cannot_forge_lines() {
    let read = status(
        json!({"status": "failed", "detail": "a\n\u{1b}[2J\u{202e}b",
                             "action_execution_id": "ü".repeat(500)}),
    )
    .unwrap();
    assert_eq!(read.detail, "a[2Jb");
    assert_eq!(read.action_execution_id.len(), MAX_TEXT_BYTES);
}

#[test]
fn what_is_no_status_is_refused_with_a_reason() {
    assert_eq!(status(json!({"status": "done"})), Err(PayloadError::State));
    assert!(matches!(status(json!({})), Err(PayloadError::Json { .. })));
    assert!(matches!(
        parse_status(b"\xff\xfe"),
        Err(PayloadError::Json { .. })
    ));
    assert!(matches!(parse_status(b""), Err(PayloadError::Json { .. })));
    let other = br#"{"schemaVersion":2,"payload":{"status":"failed"}}"#;
    assert_eq!(parse_status(other), Err(PayloadError::SchemaVersion(2)));
    let huge = vec![b' '; MAX_PAYLOAD_BYTES + 1];
    assert_eq!(parse_status(&huge), Err(PayloadError::TooLarge(huge.len())));
    let deep = "[".repeat(60_000);
    assert!(matches!(
        parse_status(deep.as_bytes()),
        Err(PayloadError::Json { .. })
    ));
}

#[test]
fn presence_is_online_or_offline_and_nothing_else() {
    let presence = |state: &str| {
        let message = json!({"schemaVersion": 1, "sentAt": "x", "payload": {"state": state}});
        parse_presence(message.to_string().as_bytes())
    };
    assert_eq!(presence("online"), Ok(true));
    assert_eq!(presence("offline"), Ok(false));
    assert_eq!(presence("away"), Err(PayloadError::State));
}

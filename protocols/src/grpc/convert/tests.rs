#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;

fn mission() -> pb::DispatchMissionRequest {
    let fields = [("x".to_owned(), "1.5".to_owned())].into();
    pb::DispatchMissionRequest {
        mission_id: "m-1".into(),
        correlation_id: "c-1".into(),
        plan_effect_idempotency_key: "p-1".into(),
        robot_id: "r-1".into(),
        fleet_id: "f-1".into(),
        action_type: "robot:execute_action".into(),
        action_name: "navigate_to".into(),
        parameters: Some(pb::ActionParameters { fields }),
        idempotency_key: "i-1".into(),
        supports_preemption: true,
        bypass_tier_evaluation: false,
        completion_mode: "Auto".into(),
        requires_operator_confirmation: false,
        requested_at: "2026-02-21T10:00:00Z".into(),
    }
}

fn stop() -> pb::DispatchMissionRequest {
    pb::DispatchMissionRequest {
        mission_id: "s-1".into(),
        robot_id: "r-1".into(),
        action_type: "robot:stop".into(),
        bypass_tier_evaluation: true,
        ..Default::default()
    }
}

fn with(fields: impl IntoIterator<Item = (String, String)>) -> Option<pb::ActionParameters> {
    let fields = fields.into_iter().collect();
    Some(pb::ActionParameters { fields })
}

#[test]
fn a_mission_comes_back_from_the_wire_as_it_was_sent() {
    for request in [
        mission(),
        pb::DispatchMissionRequest {
            fleet_id: String::new(),
            completion_mode: "ManualOnly".into(),
            requires_operator_confirmation: true,
            requested_at: String::new(),
            ..mission()
        },
        pb::DispatchMissionRequest {
            action_type: "robot:cancel_action".into(),
            action_name: String::new(),
            supports_preemption: false,
            ..mission()
        },
    ] {
        let command = parse(request.clone()).unwrap();
        assert_eq!(dispatch_request(&command), request);
        assert_eq!(parse(dispatch_request(&command)), Ok(command));
    }
}

#[test]
fn each_broken_rule_is_told_by_the_name_of_its_field() {
    type Break = fn(&mut pb::DispatchMissionRequest);
    let rules: [(&str, Break); 31] = [
        ("mission_id", |r| r.mission_id.clear()),
        ("mission_id", |r| r.mission_id = "a/b".into()),
        ("robot_id", |r| r.robot_id.clear()),
        ("robot_id", |r| r.robot_id = "#".into()),
        ("fleet_id", |r| r.fleet_id = "a b".into()),
        ("action_type", |r| r.action_type.clear()),
        ("action_type", |r| r.action_type = "robot:dance".into()),
        ("action_name", |r| r.action_name.clear()),
        ("action_name", |r| r.action_name = "x".repeat(129)),
        ("action_name", |r| r.action_name = "x\n".into()),
        ("idempotency_key", |r| r.idempotency_key.clear()),
        ("idempotency_key", |r| r.idempotency_key = "k".repeat(257)),
        ("idempotency_key", |r| {
            r.action_type = "robot:cancel_action".into();
            r.idempotency_key.clear();
        }),
        ("plan_effect_idempotency_key", |r| {
            r.plan_effect_idempotency_key.clear()
        }),
        ("plan_effect_idempotency_key", |r| {
            r.plan_effect_idempotency_key = "k".repeat(257)
        }),
        ("plan_effect_idempotency_key", |r| {
            r.plan_effect_idempotency_key = "\0".into()
        }),
        ("correlation_id", |r| r.correlation_id = "c".repeat(257)),
        ("supports_preemption", |r| r.supports_preemption = false),
        ("completion_mode", |r| r.completion_mode.clear()),
        ("completion_mode", |r| r.completion_mode = "auto".into()),
        ("requires_operator_confirmation", |r| {
            r.completion_mode = "ManualOnly".into()
        }),
        ("requested_at", |r| r.requested_at = "yesterday".into()),
        ("requested_at", |r| {
            r.requested_at = "2026-02-21\n10:00:00Z".into();
        }),
        ("requested_at", |r| {
            r.requested_at = format!("2026-02-21T10:00:00.{}Z", "0".repeat(100));
        }),
        ("parameters", |r| {
            r.parameters = with((0..257).map(|n| (n.to_string(), String::new())))
        }),
        ("parameters", |r| {
            r.parameters = with([(String::new(), String::new())])
        }),
        ("parameters", |r| {
            r.parameters = with([("n".repeat(129), String::new())])
        }),
        ("parameters", |r| {
            r.parameters = with([("a\u{7}".into(), String::new())])
        }),
        ("parameters", |r| {
            r.parameters = with([("n".into(), "v".repeat(16 * 1024 + 1))])
        }),
        ("parameters", |r| {
            r.parameters = with((0..5).map(|n| (n.to_string(), "v".repeat(14 * 1024))));
        }),
        ("bypass_tier_evaluation", |r| {
            *r = stop();
            r.bypass_tier_evaluation = false;
        }),
    ];
    for (field, break_it) in rules {
        let mut request = mission();
        break_it(&mut request);
        let error = parse(request.clone()).expect_err(field);
        assert_eq!(error.field, field, "{request:?}");
        assert!(error.to_string().starts_with(field));
    }
}

#[test]
fn a_mission_at_the_limits_is_taken() {
    let request = pb::DispatchMissionRequest {
        plan_effect_idempotency_key: "k".repeat(256),
        idempotency_key: "k".repeat(256),
        action_name: "n".repeat(128),
        parameters: with((0..256).map(|n| (format!("{n:0>128}"), "v".repeat(128)))),
        ..mission()
    };
    assert!(prost::Message::encoded_len(&request) < MAX_REQUEST_BYTES);
    assert!(parse(request).is_ok());
}

#[test]
fn an_error_never_repeats_a_parameter() {
    let request = pb::DispatchMissionRequest {
        parameters: with([("secret-name\n".into(), "secret-value".into())]),
        ..mission()
    };
    assert!(!parse(request).unwrap_err().to_string().contains("secret"));
}

#[test]
fn a_stop_needs_nothing_but_a_robot_and_the_bypass() {
    let command = parse(stop()).unwrap();
    assert_eq!(command.action_type, ActionType::Stop);
    assert_eq!(command.completion_mode, CompletionMode::Auto);
    assert!(parse(dispatch_request(&command)).is_ok());
}

#[test]
fn what_is_malformed_in_a_stop_is_left_out_and_the_robot_is_stopped_all_the_same() {
    let request = pb::DispatchMissionRequest {
        mission_id: "not an id".into(),
        correlation_id: "c\n".repeat(300),
        plan_effect_idempotency_key: "k".repeat(1000),
        idempotency_key: "k".repeat(1000),
        fleet_id: "a/b".into(),
        action_type: "robot:estop_request".into(),
        action_name: "x\u{1b}[2J".repeat(100),
        parameters: with([("v".into(), "v".repeat(20_000))]),
        completion_mode: "Whatever".into(),
        requested_at: "now".into(),
        ..stop()
    };
    let command = parse(request).unwrap();
    assert!(command.mission_id.as_str().starts_with("stop-"));
    assert_eq!(command.correlation_id, "c".repeat(256));
    assert_eq!(command.plan_effect_idempotency_key, "");
    assert!(command.fleet_id.is_none() && command.parameters.is_empty());
    assert!(command.action_name.len() <= MAX_NAME_BYTES);
    assert!(!command.action_name.contains('\u{1b}'));
    assert_eq!(command.requested_at, "");
    let no_robot = pb::DispatchMissionRequest {
        robot_id: String::new(),
        ..stop()
    };
    assert_eq!(parse(no_robot).unwrap_err().field, "robot_id");
}

#[test]
fn a_peers_words_are_bounded_at_a_character_and_free_of_what_forges_lines() {
    assert_eq!(printable("a\nb\u{202e}c\u{2028}d", 100), "abcd");
    assert_eq!(printable("ööö", 5), "öö");
}

//! Every rule of the contract broken once, and every door that has to stay shut: refused as the
//! contract says, with a line in the audit that names who, what and why, and no payload.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod doors;

use common::{Client, LIMIT, World, assert_contains, id, mission, parameters, stop, world};
use portarium_gateway::dev::hints;
use portarium_protocols::grpc::pb::{self, DispatchStatus};
use serde_json::Value;
use std::time::Duration;
use tokio::time::timeout;
use tonic::Code;

const TTL: Duration = Duration::from_secs(3600);
const SECRET: &str = "s3cr3t-parameter";

type Request = pb::DispatchMissionRequest;

async fn dispatch(client: &mut Client, request: Request) -> pb::DispatchMissionResponse {
    let answer = client.calls.dispatch_mission(request).await;
    answer.expect("a final refusal is an answer").into_inner()
}

/// An ordinary mission with a secret in it, and something wrong.
fn broken(wrong: impl FnOnce(&mut Request)) -> Request {
    let mut request = mission("sim-mqtt", "navigate_to");
    request.parameters = parameters(&[("token", SECRET)]);
    wrong(&mut request);
    request
}

/// Each breaks one rule: what it is, the request, the `reject_reason`, the field named.
fn broken_rules() -> Vec<(&'static str, Request, &'static str, &'static str)> {
    let invalid = "InvalidMission";
    let stop_with = |action_type: &str, wrong: fn(&mut Request)| {
        let mut request = stop("sim-mqtt", action_type);
        wrong(&mut request);
        request
    };
    vec![
        (
            "no mission id",
            broken(|r| r.mission_id.clear()),
            invalid,
            "mission_id",
        ),
        (
            "a mission id that breaks topics",
            broken(|r| r.mission_id = "a/b".into()),
            invalid,
            "mission_id",
        ),
        (
            "no plan key",
            broken(|r| r.plan_effect_idempotency_key.clear()),
            invalid,
            "plan_effect_idempotency_key",
        ),
        (
            "no robot",
            broken(|r| r.robot_id.clear()),
            invalid,
            "robot_id",
        ),
        (
            "an unknown robot",
            broken(|r| r.robot_id = "amr-404".into()),
            invalid,
            "robot_id",
        ),
        (
            "another fleet",
            broken(|r| r.fleet_id = "welders".into()),
            invalid,
            "fleet_id",
        ),
        (
            "an unknown action type",
            broken(|r| r.action_type = "robot:dance".into()),
            invalid,
            "action_type",
        ),
        (
            "no action name",
            broken(|r| r.action_name.clear()),
            invalid,
            "action_name",
        ),
        (
            "an action that the robot does not take",
            broken(|r| r.action_name = "weld".into()),
            "UnsupportedAction",
            "action_name",
        ),
        (
            "a physical action without a key",
            broken(|r| r.idempotency_key.clear()),
            invalid,
            "idempotency_key",
        ),
        (
            "a cancel action without a key",
            broken(|r| {
                r.action_type = "robot:cancel_action".into();
                r.idempotency_key.clear();
            }),
            invalid,
            "idempotency_key",
        ),
        (
            "an action that cannot be pre-empted",
            broken(|r| r.supports_preemption = false),
            invalid,
            "supports_preemption",
        ),
        (
            "ManualOnly without confirmation",
            broken(|r| r.completion_mode = "ManualOnly".into()),
            invalid,
            "requires_operator_confirmation",
        ),
        (
            "an unknown completion mode",
            broken(|r| r.completion_mode = "Never".into()),
            invalid,
            "completion_mode",
        ),
        (
            "a time that is none",
            broken(|r| r.requested_at = "yesterday".into()),
            invalid,
            "requested_at",
        ),
        (
            "a parameter without a name",
            broken(|r| r.parameters = parameters(&[("", SECRET)])),
            invalid,
            "parameters",
        ),
        (
            "a parameter that is too long",
            broken(|r| r.parameters = parameters(&[("blob", &SECRET.repeat(2_000))])),
            invalid,
            "parameters",
        ),
        (
            "a cancel action where nothing runs",
            broken(|r| r.action_type = "robot:cancel_action".into()),
            "InvalidState",
            "no mission to cancel",
        ),
        (
            "a stop that does not bypass evaluation",
            stop_with("robot:stop", |r| r.bypass_tier_evaluation = false),
            invalid,
            "bypass_tier_evaluation",
        ),
        (
            "an e-stop request that does not bypass evaluation",
            stop_with("robot:estop_request", |r| r.bypass_tier_evaluation = false),
            invalid,
            "bypass_tier_evaluation",
        ),
        (
            "a stop for an unknown robot",
            stop_with("robot:stop", |r| r.robot_id = "amr-404".into()),
            invalid,
            "robot_id",
        ),
    ]
}

#[tokio::test]
async fn every_broken_rule_is_rejected_with_the_field_that_breaks_it_and_audited() {
    let world = World::new(TTL).await;
    let _gateway = world.serve().await;
    let mut client = world.client(hints::CONTROL_PLANE).await;
    let rules = broken_rules();
    let count = rules.len();
    for (what, request, reason, field) in rules {
        let seen = world.audit().len();
        let answer = dispatch(&mut client, request.clone()).await;
        assert_eq!(
            answer.status(),
            DispatchStatus::Rejected,
            "{what}: {answer:?}"
        );
        assert_eq!(answer.reject_reason, reason, "{what}: {answer:?}");
        assert_contains(&answer.message, field);
        assert_eq!(answer.correlation_id, request.correlation_id);
        assert_eq!(answer.gateway_request_id, "");
        let line = refusal(&world, seen, hints::CONTROL_PLANE, "DispatchMission").await;
        assert_eq!(line["outcome"], reason, "{what}");
        assert_eq!(line["reason"], answer.message, "{what}");
        assert_eq!(text(&line["mission_id"]), request.mission_id, "{what}");
        assert_eq!(text(&line["robot_id"]), request.robot_id, "{what}");
        assert_eq!(text(&line["action_type"]), request.action_type, "{what}");
        assert_eq!(text(&line["action_name"]), request.action_name, "{what}");
    }
    no_payload_in_the_audit(&world);
    println!("{count} rules broken, {count} rejected and audited");
}

#[tokio::test]
async fn keys_that_are_known_for_something_else_are_duplicates_and_a_repeat_is_not() {
    let world = World::new(TTL).await;
    let _gateway = world.serve().await;
    let mut client = world.client(hints::CONTROL_PLANE).await;
    let first = broken(|_| ());
    let accepted = dispatch(&mut client, first.clone()).await;
    assert_eq!(
        accepted.status(),
        DispatchStatus::Dispatched,
        "{accepted:?}"
    );

    let mut repeat = first.clone();
    repeat.correlation_id = "another".into();
    repeat.requested_at = "2026-01-02T03:04:06Z".into();
    let repeated = dispatch(&mut client, repeat).await;
    assert_eq!(
        repeated.status(),
        DispatchStatus::Dispatched,
        "{repeated:?}"
    );
    assert_eq!(repeated.gateway_request_id, accepted.gateway_request_id);

    let known = |wrong: fn(&mut Request)| {
        let mut request = first.clone();
        wrong(&mut request);
        request
    };
    for (what, request, field) in [
        (
            "the plan key with another parameter",
            known(|r| r.parameters = parameters(&[("token", "other")])),
            "plan_effect_idempotency_key",
        ),
        (
            "the mission id under another plan key",
            known(|r| {
                r.plan_effect_idempotency_key = "plan-2".into();
                r.idempotency_key = "key-2".into();
            }),
            "mission_id",
        ),
        (
            "the key under another plan key",
            known(|r| {
                r.plan_effect_idempotency_key = "plan-3".into();
                r.mission_id = "mission-3".into();
            }),
            "idempotency_key",
        ),
    ] {
        let seen = world.audit().len();
        let answer = dispatch(&mut client, request).await;
        assert_eq!(
            answer.status(),
            DispatchStatus::Rejected,
            "{what}: {answer:?}"
        );
        assert_eq!(answer.reject_reason, "DuplicateRequest", "{what}");
        assert_contains(&answer.message, field);
        let line = refusal(&world, seen, hints::CONTROL_PLANE, "DispatchMission").await;
        assert_eq!(line["outcome"], "DuplicateRequest");
    }
    no_payload_in_the_audit(&world);
}

/// Callers of the same trust domain with less than all rights.
const RULES: &str = r#"
[[policy]]
peers = ["spiffe://portarium.robotics/ns/portarium/sa/viewer/*"]
methods = ["GetMissionStatus"]
robots = ["*"]
fleets = ["*"]

[[policy]]
peers = ["spiffe://portarium.robotics/ns/portarium/sa/one-robot/*"]
methods = ["DispatchMission", "CancelMission"]
robots = ["sim-grpc"]
fleets = ["*"]
actions = ["navigate_to"]

[[policy]]
peers = ["spiffe://portarium.robotics/ns/portarium/sa/other-fleet/*"]
methods = ["DispatchMission"]
robots = ["*"]
fleets = ["welders"]
actions = ["*"]
"#;

#[tokio::test]
async fn a_caller_with_less_rights_is_refused_what_it_may_not_and_audited() {
    let world = World::new(TTL).await;
    world.add_workloads(&["viewer", "one-robot", "other-fleet"]);
    world.write(&(world.config() + RULES));
    let _gateway = world.serve().await;

    // The method.
    let mut viewer = world.client("viewer").await;
    let seen = world.audit().len();
    let refused = viewer
        .calls
        .dispatch_mission(broken(|_| ()))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let line = refusal(&world, seen, "viewer", "DispatchMission").await;
    assert_eq!(line["outcome"], "PERMISSION_DENIED");
    assert_eq!(line["reason"], refused.message());

    // Robot, action, a stop's type, fleet.
    for (hint, request, reason) in [
        (
            "one-robot",
            broken(|_| ()),
            "send navigate_to to robot sim-mqtt",
        ),
        (
            "one-robot",
            broken(|r| {
                r.robot_id = "sim-grpc".into();
                r.action_name = "dock".into();
            }),
            "send dock to robot sim-grpc",
        ),
        (
            "one-robot",
            stop("sim-grpc", "robot:stop"),
            "send robot:stop to robot sim-grpc",
        ),
        (
            "other-fleet",
            broken(|_| ()),
            "send navigate_to to robot sim-mqtt",
        ),
        // Whether a robot exists is nothing to be found out by who may not command it.
        (
            "other-fleet",
            broken(|r| r.robot_id = "amr-404".into()),
            "to robot amr-404",
        ),
    ] {
        let mut client = world.client(hint).await;
        let seen = world.audit().len();
        let answer = dispatch(&mut client, request.clone()).await;
        assert_eq!(
            answer.status(),
            DispatchStatus::PolicyBlocked,
            "{hint}: {answer:?}"
        );
        assert_contains(&answer.policy_reason, reason);
        assert_contains(&answer.policy_reason, &id(hint));
        let line = refusal(&world, seen, hint, "DispatchMission").await;
        assert_eq!(line["outcome"], "POLICY_BLOCKED");
        assert_eq!(line["reason"], answer.policy_reason);
        assert_eq!(line["mission_id"], request.mission_id);
        assert_eq!(line["robot_id"], request.robot_id);
        assert_eq!(line["action_type"], request.action_type);
    }

    // A mission of a robot that one may not command.
    let mut owner = world.client(hints::CONTROL_PLANE).await;
    let running = broken(|r| r.parameters = parameters(&[("duration", "30"), ("token", SECRET)]));
    let accepted = dispatch(&mut owner, running.clone()).await;
    assert_eq!(
        accepted.status(),
        DispatchStatus::Dispatched,
        "{accepted:?}"
    );
    let seen = world.audit().len();
    let mut other = world.client("one-robot").await;
    let cancel = pb::CancelMissionRequest {
        mission_id: running.mission_id.clone(),
        ..Default::default()
    };
    let refused = other.calls.cancel_mission(cancel).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let line = refusal(&world, seen, "one-robot", "CancelMission").await;
    assert_eq!(line["mission_id"], running.mission_id);
    assert_eq!(line["robot_id"], "sim-mqtt");
    no_payload_in_the_audit(&world);
}

/// Callers who may look at one robot, and command it as operators do, and not the other one.
const ONE_OF_TWO: &str = r#"
[[policy]]
peers = ["spiffe://portarium.robotics/ns/portarium/sa/one-robot/*"]
methods = ["GetMissionStatus", "WatchMissions", "ListRobots", "GetRobot", "ConfirmMission", "ResolveMission", "HoldRobot", "ReleaseRobot"]
robots = ["sim-grpc"]
fleets = ["*"]
actions = ["*"]
"#;

/// Whose updates a watch from the beginning shows, up to the end of the last mission.
async fn watched(client: &Client, wanted: pb::WatchMissionsRequest, last: &str) -> Vec<String> {
    let mut calls = client.calls.clone();
    let updates = calls.watch_missions(wanted).await.unwrap();
    let (mut updates, mut missions) = (updates.into_inner(), Vec::new());
    loop {
        let next = timeout(LIMIT, updates.message()).await.unwrap();
        let update = next.unwrap().unwrap();
        let ends = update.mission_id == last && update.status == "Succeeded";
        missions.push(update.mission_id);
        if ends {
            missions.dedup();
            return missions;
        }
    }
}

#[tokio::test]
async fn nobody_sees_or_operates_what_the_policy_does_not_show_him() {
    let world = World::new(TTL).await;
    world.add_workloads(&["one-robot"]);
    world.write(&(world.config() + ONE_OF_TWO));
    let _gateway = world.serve().await;
    let mut owner = world.client(hints::CONTROL_PLANE).await;
    let hidden = broken(|r| r.parameters = parameters(&[("duration", "0.1")]));
    let shown = broken(|r| {
        r.robot_id = "sim-grpc".into();
        r.parameters = parameters(&[("duration", "0.1")]);
    });
    for request in [&hidden, &shown] {
        let answer = dispatch(&mut owner, request.clone()).await;
        assert_eq!(answer.status(), DispatchStatus::Dispatched, "{answer:?}");
        let all = pb::WatchMissionsRequest::default();
        watched(&owner, all, &request.mission_id).await;
    }
    let (hidden, shown) = (hidden.mission_id, shown.mission_id);

    // Who may see everything sees what he asks for.
    let selected = |mission: &str, robot: &str, fleet: &str| pb::WatchMissionsRequest {
        mission_id: mission.into(),
        robot_id: robot.into(),
        fleet_id: fleet.into(),
        ..Default::default()
    };
    let both = [hidden.clone(), shown.clone()];
    for (wanted, seen) in [
        (selected("", "", ""), &both[..]),
        (selected("", "", "sim"), &both),
        (selected("", "sim-grpc", ""), &both[1..]),
        (selected("", "sim-grpc", "sim"), &both[1..]),
        (selected(&shown, "", ""), &both[1..]),
    ] {
        let what = format!("{wanted:?}");
        assert_eq!(watched(&owner, wanted, &shown).await, seen, "{what}");
    }

    let client = world.client("one-robot").await;
    let calls = || client.calls.clone();
    let all = pb::WatchMissionsRequest::default();
    assert_eq!(watched(&client, all, &shown).await, both[1..]);
    let listed = calls().list_robots(pb::ListRobotsRequest::default()).await;
    let listed = listed.unwrap().into_inner().robots;
    let listed: Vec<_> = listed.iter().map(|robot| robot.robot_id.as_str()).collect();
    assert_eq!(listed, ["sim-grpc"]);
    let status = |mission: &str| pb::GetMissionStatusRequest {
        mission_id: mission.into(),
        ..Default::default()
    };
    let robot = |robot_id: &str| pb::GetRobotRequest {
        robot_id: robot_id.into(),
    };
    calls().get_mission_status(status(&shown)).await.unwrap();
    calls().get_robot(robot("sim-grpc")).await.unwrap();

    let seen = world.audit().len();
    let confirm = pb::ConfirmMissionRequest {
        mission_id: hidden.clone(),
        ..Default::default()
    };
    let resolve = pb::ResolveMissionRequest {
        mission_id: hidden.clone(),
        status: "Failed".into(),
        ..Default::default()
    };
    let hold = pb::HoldRobotRequest {
        robot_id: "sim-mqtt".into(),
        ..Default::default()
    };
    let release = pb::ReleaseRobotRequest {
        robot_id: "sim-mqtt".into(),
        ..Default::default()
    };
    let watch = selected(&hidden, "", "");
    let refused = [
        calls().get_mission_status(status(&hidden)).await.err(),
        calls().watch_missions(watch).await.err(),
        calls().get_robot(robot("sim-mqtt")).await.err(),
        calls().confirm_mission(confirm).await.err(),
        calls().resolve_mission(resolve).await.err(),
        calls().hold_robot(hold).await.err(),
        calls().release_robot(release).await.err(),
    ];
    for (refused, method) in refused.into_iter().zip([
        "GetMissionStatus",
        "WatchMissions",
        "GetRobot",
        "ConfirmMission",
        "ResolveMission",
        "HoldRobot",
        "ReleaseRobot",
    ]) {
        let refused = refused.expect(method);
        assert_eq!(
            refused.code(),
            Code::PermissionDenied,
            "{method}: {refused}"
        );
        let line = refusal(&world, seen, "one-robot", method).await;
        assert_eq!(line["robot_id"], "sim-mqtt", "{line}");
        assert_eq!(line["reason"], refused.message());
    }
    let untouched = owner.calls.get_robot(robot("sim-mqtt")).await.unwrap();
    assert_eq!(untouched.into_inner().hold_reason, "");
}

#[tokio::test]
async fn what_is_allowed_is_audited_too() {
    let world = World::new(TTL).await;
    let _gateway = world.serve().await;
    let mut client = world.client(hints::CONTROL_PLANE).await;
    let request = broken(|_| ());
    let answer = dispatch(&mut client, request.clone()).await;
    assert_eq!(answer.status(), DispatchStatus::Dispatched, "{answer:?}");
    let line = world
        .audited(0, "the dispatch", |line| {
            line["mission_id"] == request.mission_id
        })
        .await;
    let caller = id(hints::CONTROL_PLANE);
    for (field, value) in [
        ("decision", "allowed"),
        ("method", "DispatchMission"),
        ("caller", caller.as_str()),
        ("robot_id", "sim-mqtt"),
        ("action_type", "robot:execute_action"),
        ("action_name", "navigate_to"),
        ("outcome", "DISPATCHED"),
    ] {
        assert_eq!(line[field], value, "{line}");
    }
    assert!(text(&line["serial"]).len() >= 16, "{line}");
    no_payload_in_the_audit(&world);
}

#[tokio::test]
async fn robots_and_missions_that_are_not_known_are_refused_and_audited() {
    let world = World::new(TTL).await;
    let _gateway = world.serve().await;
    let mut operator = world.client(hints::OPERATOR).await;
    let seen = world.audit().len();
    let hold = pb::HoldRobotRequest {
        robot_id: "amr-404".into(),
        reason: "a test".into(),
    };
    let refused = operator.calls.hold_robot(hold).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let line = refusal(&world, seen, hints::OPERATOR, "HoldRobot").await;
    assert_eq!(line["robot_id"], "amr-404");

    let seen = world.audit().len();
    let cancel = pb::CancelMissionRequest {
        mission_id: "mission-404".into(),
        ..Default::default()
    };
    let answer = operator
        .calls
        .cancel_mission(cancel)
        .await
        .unwrap()
        .into_inner();
    assert!(!answer.accepted);
    let line = refusal(&world, seen, hints::OPERATOR, "CancelMission").await;
    assert_eq!(line["mission_id"], "mission-404");

    let status = pb::GetMissionStatusRequest {
        mission_id: "mission-404".into(),
        ..Default::default()
    };
    let refused = operator.calls.get_mission_status(status).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
}

async fn refusal(world: &World, seen: usize, hint: &str, method: &str) -> Value {
    let line = world
        .audited(seen, method, |line| {
            line["method"] == method && line["decision"] == "refused"
        })
        .await;
    assert_eq!(line["caller"], id(hint), "{line}");
    assert!(text(&line["serial"]).len() >= 16, "{line}");
    assert!(text(&line["time"]).ends_with('Z'), "{line}");
    line
}

/// No parameter, no value of one and no key.
fn no_payload_in_the_audit(world: &World) {
    let audit = std::fs::read_to_string(world.file("audit.jsonl")).unwrap();
    assert!(!audit.is_empty());
    for part in [SECRET, "token", "plan-", "key-"] {
        assert!(!audit.contains(part), "{part} is in the audit: {audit}");
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[test]
fn metrics_pages_are_summed_by_labels() {
    let page = "# HELP a b\na_total{x=\"1\",y=\"2\"} 3\na_total{x=\"2\"} 4\na_total_more 9\n";
    assert_eq!(world::sum(page, "a_total", &[]), 7.0);
    assert_eq!(world::sum(page, "a_total", &["x=\"1\""]), 3.0);
}

//! Missions and robots.

use crate::gateway::{GATEWAY, World, ended};
use portarium_protocols::grpc::pb::{
    self, DispatchMissionResponse, DispatchStatus, StopOutcome, StopState,
};
use serde_json::Value;
use tonic::Status;

fn dispatched() -> DispatchMissionResponse {
    DispatchMissionResponse {
        status: DispatchStatus::Dispatched.into(),
        gateway_request_id: "req-1".into(),
        ..DispatchMissionResponse::default()
    }
}

#[tokio::test]
async fn a_dispatch_carries_what_the_contract_asks_for() {
    let world = World::new().await;
    *world.script.answer.lock().unwrap() = dispatched();
    let (exit, out, err) = world
        .says("mission dispatch --robot amr-7 --action navigate_to --param x=1 --param note=a=b --fleet amr")
        .await;
    let request = world.script.dispatched.lock().unwrap().remove(0);
    assert_eq!((exit, err.as_str()), (0, ""));
    assert_eq!(
        out,
        format!(
            "mission {} is accepted for robot amr-7 (request req-1)\n",
            request.mission_id
        )
    );
    let command = portarium_protocols::grpc::convert::parse(request.clone()).unwrap();
    assert_eq!(command.parameters["x"], "1");
    assert_eq!(command.parameters["note"], "a=b");
    assert_eq!(command.fleet_id.unwrap().as_str(), "amr");
    let ids = [
        request.mission_id,
        request.plan_effect_idempotency_key,
        request.idempotency_key,
    ];
    for (i, id) in ids.iter().enumerate() {
        assert!(!ids[..i].contains(id), "{ids:?}");
        assert_eq!(id.parse::<uuid::Uuid>().unwrap().get_version_num(), 7);
    }
}

#[tokio::test]
async fn ids_and_keys_that_are_given_are_used() {
    let world = World::new().await;
    *world.script.answer.lock().unwrap() = dispatched();
    let given = "--mission-id m-1 --plan-key p-1 --key k-1 --manual --json";
    let (exit, out, _) = world
        .says(&format!("mission dispatch --robot r --action dock {given}"))
        .await;
    assert_eq!(exit, 0);
    let request = world.script.dispatched.lock().unwrap().remove(0);
    assert_eq!(request.mission_id, "m-1");
    assert_eq!(request.plan_effect_idempotency_key, "p-1");
    assert_eq!(request.idempotency_key, "k-1");
    assert_eq!(request.completion_mode, "ManualOnly");
    assert!(request.requires_operator_confirmation);
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(told["status"], "DISPATCH_STATUS_DISPATCHED");
    assert_eq!(told["mission_id"], "m-1");
}

#[tokio::test]
async fn what_is_not_dispatched_is_exit_code_1_with_the_reason() {
    let world = World::new().await;
    for (answer, told) in [
        (
            DispatchMissionResponse {
                status: DispatchStatus::PolicyBlocked.into(),
                policy_reason: "no rule lets you".into(),
                ..DispatchMissionResponse::default()
            },
            "mission m is not allowed: no rule lets you\n",
        ),
        (
            DispatchMissionResponse {
                status: DispatchStatus::Rejected.into(),
                reject_reason: "InvalidState".into(),
                message: "the robot is held\n\u{1b}[2J".into(),
                retry_after_seconds: 3,
                ..DispatchMissionResponse::default()
            },
            "mission m is refused, InvalidState: the robot is held  [2J; try again in 3 s\n",
        ),
    ] {
        *world.script.answer.lock().unwrap() = answer;
        let (exit, out, err) = world
            .says("mission dispatch --robot r --action a --mission-id m")
            .await;
        assert_eq!((exit, out.as_str(), err.as_str()), (1, told, ""));
    }
}

#[tokio::test]
async fn a_dispatch_without_an_answer_says_how_to_repeat_it_safely() {
    let world = World::new().await;
    *world.script.refuse.lock().unwrap() = Some(Status::unavailable("shutting down"));
    let given = "--mission-id m-1 --plan-key p-1 --key k-1";
    let (exit, out, err) = world
        .says(&format!("mission dispatch --robot r --action a {given}"))
        .await;
    assert_eq!((exit, out.as_str()), (1, ""));
    assert_eq!(
        err,
        format!(
            "error: no answer, so that it may have been carried out: shutting down; to be sure, repeat it with {given}\n"
        )
    );
}

#[tokio::test]
async fn a_refusal_by_grpc_is_told_in_the_gateways_words() {
    let world = World::new().await;
    *world.script.refuse.lock().unwrap() = Some(Status::permission_denied("no rule lets you"));
    for words in [
        "mission status m",
        "robot hold r",
        "mission watch m",
        "mission cancel m",
    ] {
        let (exit, out, err) = world.says(words).await;
        assert_eq!(
            (exit, out.as_str(), err.as_str()),
            (1, "", "error: no rule lets you\n")
        );
    }
}

#[tokio::test]
async fn a_stop_tells_how_far_it_got() {
    let world = World::new().await;
    let cases = [
        (
            StopState::Requested,
            true,
            false,
            "requested; the robot has not answered yet",
            "durably",
        ),
        (
            StopState::Accepted,
            true,
            false,
            "accepted; the robot obeys",
            "durably",
        ),
        (
            StopState::Stationary,
            false,
            false,
            "stationary",
            "but not yet on disk",
        ),
        (StopState::Refused, true, false, "NOT STOPPED", "durably"),
        (
            StopState::Requested,
            true,
            true,
            "out of reach; the stop is kept",
            "durably",
        ),
    ];
    for (state, fence_durable, robot_unreachable, first, second) in cases {
        let stop = StopOutcome {
            state: state.into(),
            fence_durable,
            robot_unreachable,
        };
        *world.script.answer.lock().unwrap() = DispatchMissionResponse {
            stop: Some(stop),
            ..dispatched()
        };
        let (exit, out, err) = world.says("mission stop --robot amr-7").await;
        let expected = i32::from(state == StopState::Refused);
        assert_eq!((exit, err.as_str()), (expected, ""));
        let lines: Vec<&str> = out.lines().collect();
        assert!(
            lines[0].starts_with(&format!("robot amr-7: {first}")),
            "{out}"
        );
        assert!(lines[1].contains(second) && lines.len() == 2, "{out}");
        let request = world.script.dispatched.lock().unwrap().remove(0);
        assert!(request.idempotency_key.is_empty(), "{request:?}");
        let command = portarium_protocols::grpc::convert::parse(request).unwrap();
        assert!(command.action_type.is_stop());
    }
    let (_, out, _) = world.says("mission stop --robot amr-7 --json").await;
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(told["stop"]["robot_unreachable"], true);
    assert_eq!(told["stop"]["state"], "STOP_STATE_REQUESTED");
}

#[tokio::test]
async fn operators_words_reach_the_gateway_and_its_answer_decides_the_exit_code() {
    let world = World::new().await;
    *world.script.accepted.lock().unwrap() = true;
    for (words, call, told) in [
        (
            "mission cancel m --reason why",
            "cancel m why",
            "mission m is cancelled since 2026-01-02T03:04:05Z: so it is\n",
        ),
        (
            "mission confirm m --reason seen",
            "confirm m seen",
            "mission m is confirmed\n",
        ),
        (
            "mission resolve m --as succeeded",
            "resolve m Succeeded",
            "mission m is resolved as Succeeded\n",
        ),
        (
            "mission resolve m --as Failed",
            "resolve m Failed",
            "mission m is resolved as Failed\n",
        ),
    ] {
        let (exit, out, err) = world.says(words).await;
        assert_eq!((exit, out.as_str(), err.as_str()), (0, told, ""), "{words}");
        assert_eq!(world.script.noted.lock().unwrap().pop().unwrap(), call);
    }
    *world.script.accepted.lock().unwrap() = false;
    let (exit, out, _) = world.says("mission cancel m").await;
    assert_eq!(
        (exit, out.as_str()),
        (1, "mission m is not cancelled: so it is\n")
    );
    let (exit, out, _) = world.says("mission resolve m --as failed --json").await;
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((exit, told["accepted"].as_bool()), (1, Some(false)));
}

#[tokio::test]
async fn a_status_shows_all_that_is_known() {
    let world = World::new().await;
    *world.script.status.lock().unwrap() = pb::GetMissionStatusResponse {
        mission_id: "m".into(),
        status: "Executing".into(),
        action_execution_id: "e-1".into(),
        observed_at: "2026-01-02T03:04:05Z".into(),
        outcome_unknown: true,
        detail: "the gateway was killed".into(),
        cancel_requested: true,
        awaiting_confirmation: false,
    };
    let (exit, out, err) = world.says("mission status m").await;
    assert_eq!(exit, 0);
    assert_eq!(
        out,
        "mission m: Executing, outcome unknown, cancel requested\n  \
         observed   2026-01-02T03:04:05Z\n  \
         execution  e-1\n  \
         detail     the gateway was killed\n"
    );
    assert!(err.contains("mission resolve m --as STATUS"), "{err}");
    let (_, out, _) = world.says("mission status m --json").await;
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(told["outcome_unknown"], true);
}

#[tokio::test]
async fn robots_are_listed_in_columns() {
    let world = World::new().await;
    let ready = pb::Robot {
        robot_id: "amr-7".into(),
        fleet_id: "amr".into(),
        adapter: "mqtt".into(),
        reachable: true,
        reconciled: true,
        active_mission_id: "m-1".into(),
        queued_missions: 2,
        actions: vec!["dock".into(), "navigate_to".into()],
        ..pb::Robot::default()
    };
    let troubled = pb::Robot {
        robot_id: "arm-1".into(),
        adapter: "grpc".into(),
        latched: true,
        hold_reason: "cleaning".into(),
        unknown_mission_ids: vec!["m-9".into()],
        stop_pending: true,
        reachability_detail: "connection refused".into(),
        ..pb::Robot::default()
    };
    *world.script.robots.lock().unwrap() = vec![ready, troubled];
    let (exit, out, _) = world.says("robot list").await;
    assert_eq!(exit, 0);
    assert_eq!(
        out,
        "ROBOT  FLEET  ADAPTER  MISSION  QUEUED  STATE\n\
         amr-7  amr    mqtt     m-1      2       ready\n\
         arm-1  -      grpc     -        0       out of reach, not reconciled yet, latched by an \
         e-stop request, stop pending, held: cleaning, 1 mission of unknown outcome\n"
    );
    let (_, out, _) = world.says("robot list --json").await;
    let ids: Vec<Value> = out
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(ids[1]["robot_id"], "arm-1");
    let (exit, out, _) = world.says("robot show amr-7").await;
    assert_eq!(exit, 0);
    assert_eq!(
        out,
        "robot         amr-7\nfleet         amr\nadapter       mqtt\nstate         ready\n\
         mission       m-1\nqueued        2\nactions       dock, navigate_to\nredelivery    never\n"
    );
    world.says("robot hold amr-7 --reason cleaning").await;
    world.says("robot release amr-7").await;
    let noted = world.script.noted.lock().unwrap().clone();
    assert_eq!(
        noted[noted.len() - 2..],
        ["hold amr-7 cleaning", "release amr-7 no reason given"]
    );
}

#[tokio::test]
async fn a_gateway_that_is_someone_else_is_not_called() {
    let world = World::new().await;
    let mut command = world.command("robot list");
    command.env(
        "PORTARIUM_SERVER_ID",
        GATEWAY.replace("robotics-gateway", "other"),
    );
    let (exit, out, err) = ended(command).await;
    assert_eq!((exit, out.as_str()), (1, ""));
    assert!(
        err.contains(&format!("the policy does not admit {GATEWAY}")),
        "{err}"
    );
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(world.script.noted.lock().unwrap().is_empty());
}

#[tokio::test]
async fn who_is_not_admitted_is_told_as_whom_it_came() {
    let world = World::new().await;
    let mut command = world.command("robot list");
    command.args(["--hint", "stranger"]);
    let (exit, _, err) = ended(command).await;
    // The hint was given twice.
    assert_eq!(exit, 2, "{err}");
    let mut command = crate::gateway::bare("robot list --hint stranger");
    command
        .args(["--socket", world.socket().to_str().unwrap()])
        .args(["--server", &format!("localhost:{}", world.address.port())])
        .args(["--server-id", GATEWAY]);
    let (exit, _, err) = ended(command).await;
    assert_eq!(exit, 1);
    assert!(
        err.contains("check that a policy rule of the gateway names this ID"),
        "{err}"
    );
    assert!(
        err.contains("as spiffe://portarium.robotics/ns/portarium/sa/stranger/dev"),
        "{err}"
    );
    assert_eq!(err.lines().count(), 1, "{err}");
}

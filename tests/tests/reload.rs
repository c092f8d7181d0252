//! SIGHUP: robots and policy are taken over whole, or refused whole with the reason.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Client, Process, World, assert_contains, id, mission, parameters, stop, until};
use portarium_gateway::dev::hints::{CONTROL_PLANE, OPERATOR, ROBOT};
use portarium_protocols::grpc::pb::{
    self, DispatchStatus, ListRobotsRequest, WatchMissionsRequest,
};
use rustix::process::Signal;
use serde_json::Value;
use std::time::Duration;

const TTL: Duration = Duration::from_secs(3600);

/// Sends SIGHUP and waits for the audit's line about it.
async fn reload(world: &World, gateway: &Process, config: &str) -> Value {
    let seen = world.audit().len();
    world.write(config);
    gateway.signal(Signal::HUP);
    world
        .audited(seen, "the reload", |line| line["method"] == "reload")
        .await
}

async fn taken(world: &World, gateway: &Process, config: &str) {
    let line = reload(world, gateway, config).await;
    assert_eq!(line["decision"], "allowed", "{line}\n{}", gateway.err());
}

/// Expects the reason in audit and log.
async fn refused(world: &World, gateway: &Process, config: &str, reason: &str) {
    let line = reload(world, gateway, config).await;
    assert_eq!(line["decision"], "refused", "{line}");
    assert_contains(line["reason"].as_str().unwrap(), reason);
    gateway.complains(reason).await;
    gateway
        .complains("the old robots and policy stay in force")
        .await;
}

async fn robots(client: &mut Client) -> Vec<pb::Robot> {
    let listed = client.calls.list_robots(ListRobotsRequest::default()).await;
    listed.unwrap().into_inner().robots
}

async fn dispatch(
    client: &mut Client,
    request: pb::DispatchMissionRequest,
) -> pb::DispatchMissionResponse {
    client
        .calls
        .dispatch_mission(request)
        .await
        .unwrap()
        .into_inner()
}

/// The section of one robot in the configuration.
fn robot_section(config: &str, robot: &str) -> String {
    let sections: Vec<_> = config.split("[[robots]]").collect();
    let section = sections
        .iter()
        .find(|s| s.contains(&format!("id = \"{robot}\"")));
    format!("[[robots]]{}", section.unwrap())
}

#[tokio::test]
async fn robots_and_policy_are_taken_over_while_missions_run() {
    let world = World::new(TTL).await;
    world.add_workloads(&["newcomer"]);
    let config = world.config();
    let gateway = world.serve().await;
    let mut client = world.client(CONTROL_PLANE).await;
    let mut running = mission("sim-grpc", "navigate_to");
    running.parameters = parameters(&[("duration", "2")]);
    let answer = dispatch(&mut client, running.clone()).await;
    assert_eq!(answer.status(), DispatchStatus::Dispatched, "{answer:?}");

    assert!(world.try_client("newcomer").await.is_err());
    let rule = format!(
        "\n[[policy]]\npeers = [\"{}\"]\nmethods = [\"DispatchMission\", \"ListRobots\"]\nrobots = [\"*\"]\nfleets = [\"*\"]\nactions = [\"weld\"]\n",
        id("newcomer")
    );
    let welding = config.replacen("\"navigate_to\", \"dock\"", "\"navigate_to\", \"weld\"", 1);
    assert_ne!(welding, config);
    taken(&world, &gateway, &(welding + &rule)).await;

    // The new rule and the new action, at once, on old and new connections.
    let mut newcomer = world.client("newcomer").await;
    let answer = dispatch(&mut newcomer, mission("sim-mqtt", "weld")).await;
    assert_eq!(answer.status(), DispatchStatus::Dispatched, "{answer:?}");
    let answer = dispatch(&mut client, mission("sim-mqtt", "dock")).await;
    assert_eq!(answer.reject_reason, "UnsupportedAction", "{answer:?}");

    // What ran goes on.
    until("the mission succeeds", || async {
        let status = pb::GetMissionStatusRequest {
            mission_id: running.mission_id.clone(),
            ..Default::default()
        };
        let told = client
            .calls
            .clone()
            .get_mission_status(status)
            .await
            .unwrap();
        (told.into_inner().status == "Succeeded").then_some(())
    })
    .await;

    // A robot goes and comes back.
    let without = config.replace(&robot_section(&config, "sim-mqtt"), "");
    until("its missions have ended", || async {
        let line = reload(&world, &gateway, &without).await;
        (line["decision"] == "allowed").then_some(())
    })
    .await;
    assert_eq!(robots(&mut client).await.len(), 1);
    // So does the caller whose rule is gone, and the audit says whom it was.
    let cut = world.audited(0, "the cut", |line| line["method"] == "recheck");
    let cut = cut.await;
    assert_eq!(cut["caller"], id("newcomer"), "{cut}");
    assert_eq!(
        (&cut["decision"], &cut["outcome"]),
        (&"refused".into(), &"cut".into())
    );
    assert_contains(cut["reason"].as_str().unwrap(), "does not admit");
    let answer = dispatch(&mut client, mission("sim-mqtt", "dock")).await;
    assert_contains(
        &answer.message,
        "robot_id: robot sim-mqtt is not configured",
    );
    taken(&world, &gateway, &config).await;
    until("it is reachable again", || async {
        let listed = client
            .calls
            .clone()
            .list_robots(ListRobotsRequest::default())
            .await;
        let robots = listed.unwrap().into_inner().robots;
        let back = robots.iter().find(|robot| robot.robot_id == "sim-mqtt")?;
        (back.reachable && back.reconciled).then_some(())
    })
    .await;
    let answer = dispatch(&mut client, mission("sim-mqtt", "dock")).await;
    assert_eq!(answer.status(), DispatchStatus::Dispatched, "{answer:?}");
}

#[tokio::test]
async fn what_is_wrong_is_refused_whole_and_the_old_stays_in_force() {
    let world = World::new(TTL).await;
    let config = world.config();
    let gateway = world.serve().await;
    let mut client = world.client(CONTROL_PLANE).await;
    let before = robots(&mut client).await;

    // A file that is wrong, beside a robot that would be new.
    let with_more = config.replacen("\"navigate_to\"", "\"navigate_to\", \"weld\"", 1);
    for (wrong, reason) in [
        (
            with_more.clone() + "\nadress = \"x\"\n",
            "unknown key; did you mean \"address\"?",
        ),
        (with_more.clone() + "[[[", "line "),
        (
            with_more.replace("fleet = \"sim\"", "fleet = \"a/b\""),
            "robots[0].fleet",
        ),
        (
            with_more.replace(&format!("127.0.0.1:{}", world.grpc), "127.0.0.1:0"),
            "restart it for: grpc.listen",
        ),
        (
            with_more.replace("journal.sqlite", "other.sqlite"),
            "restart it for: journal.path",
        ),
    ] {
        refused(&world, &gateway, &wrong, reason).await;
        assert_eq!(robots(&mut client).await, before);
    }

    // A robot with an open mission neither goes nor moves; nothing else of the file is taken.
    let mut running = mission("sim-grpc", "navigate_to");
    running.parameters = parameters(&[("duration", "60")]);
    let answer = dispatch(&mut client, running.clone()).await;
    assert_eq!(answer.status(), DispatchStatus::Dispatched, "{answer:?}");
    let gone = with_more.replace(&robot_section(&with_more, "sim-grpc"), "");
    let reason = format!("while mission {} is open", running.mission_id);
    refused(&world, &gateway, &gone, &reason).await;
    let moved = with_more.replace(
        "\"grpc\"\naddress = \"localhost:",
        "\"grpc\"\naddress = \"127.0.0.1:",
    );
    assert_ne!(moved, with_more);
    refused(&world, &gateway, &moved, &reason).await;
    let now = robots(&mut client).await;
    assert_eq!(now.len(), 2);
    assert!(
        now.iter()
            .all(|robot| !robot.actions.contains(&"weld".to_owned())),
        "{now:?}"
    );
    let answer = dispatch(&mut client, mission("sim-mqtt", "dock")).await;
    assert_eq!(answer.status(), DispatchStatus::Dispatched, "{answer:?}");

    // And after all of that a good one is taken.
    taken(&world, &gateway, &with_more).await;
    println!("FIGURE reload: 7 refused whole, with the reason in log and audit");
}

#[tokio::test]
async fn callers_that_are_no_longer_admitted_are_cut() {
    let world = World::new(TTL).await;
    let config = world.config();
    let gateway = world.serve().await;
    let mut operator = world.client(OPERATOR).await;
    let mut client = world.client(CONTROL_PLANE).await;
    let watch = WatchMissionsRequest {
        from_now: true,
        ..Default::default()
    };
    let mut watch = operator
        .calls
        .watch_missions(watch)
        .await
        .unwrap()
        .into_inner();

    let start = config
        .find(&format!("[[policy]]\npeers = [\"{}\"]", id(OPERATOR)))
        .unwrap();
    let end = start + config[start..].find("[mqtt.").unwrap();
    let without = format!("{}{}", &config[..start], &config[end..]);
    taken(&world, &gateway, &without).await;

    let ended = tokio::time::timeout(common::LIMIT, watch.message())
        .await
        .unwrap();
    assert!(ended.is_err(), "{ended:?}");
    assert!(world.try_client(OPERATOR).await.is_err());
    // All others notice nothing.
    assert_eq!(robots(&mut client).await.len(), 2);
    gateway.complains("the policy no longer admits").await;
    assert!(world.try_client(ROBOT).await.is_err());
}

#[tokio::test]
async fn a_latch_survives_a_reload_that_takes_the_robot_out_and_in_again() {
    let world = World::new(TTL).await;
    let config = world.config();
    let gateway = world.serve().await;
    let mut operator = world.client(OPERATOR).await;
    let answer = dispatch(&mut operator, stop("sim-grpc", "robot:estop_request")).await;
    assert_eq!(answer.status(), DispatchStatus::Dispatched, "{answer:?}");
    let hold = pb::HoldRobotRequest {
        robot_id: "sim-mqtt".into(),
        reason: "cleaning".into(),
    };
    operator.calls.hold_robot(hold).await.unwrap();

    let only = |gone: &str| config.replace(&robot_section(&config, gone), "");
    for gone in ["sim-grpc", "sim-mqtt"] {
        until("its stop has ended", || async {
            let line = reload(&world, &gateway, &only(gone)).await;
            (line["decision"] == "allowed").then_some(())
        })
        .await;
        taken(&world, &gateway, &config).await;
    }
    let now = robots(&mut operator).await;
    let of = |name: &str| now.iter().find(|robot| robot.robot_id == name).unwrap();
    assert!(of("sim-grpc").latched, "{now:?}");
    assert_eq!(of("sim-mqtt").hold_reason, "cleaning", "{now:?}");
}

//! The shipped binary as its users meet it: every command as a client of a real gateway.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod dev;
mod svids;

use common::{Ended, Process, World, assert_contains, id, process, until};
use portarium_gateway::dev::hints::{CONTROL_PLANE, GATEWAY, OPERATOR};
use rustix::process::Signal;
use serde_json::Value;
use std::time::{Duration, Instant};
use tokio::process::Command;

const TTL: Duration = Duration::from_secs(3600);

/// The words as a client of this world's gateway.
fn client(world: &World, hint: &str, words: &str) -> Command {
    let words: Vec<_> = words.split_whitespace().collect();
    let mut command = process::command(&words);
    command
        .args(["--hint", hint])
        .env("SPIFFE_ENDPOINT_SOCKET", world.socket())
        .env("PORTARIUM_SERVER", format!("localhost:{}", world.grpc))
        .env("PORTARIUM_SERVER_ID", id(GATEWAY));
    command
}

async fn done(world: &World, hint: &str, words: &str) -> Ended {
    Process::spawn(client(world, hint, words)).ended().await
}

/// Runs it, expects this exit code, and returns what it said on standard output.
async fn told(world: &World, hint: &str, code: i32, words: &str) -> String {
    let ended = done(world, hint, words).await;
    assert_eq!(ended.code, Some(code), "{words}: {ended:?}");
    ended.out
}

async fn json(world: &World, hint: &str, words: &str) -> Value {
    let out = told(world, hint, 0, &format!("{words} --json")).await;
    assert_eq!(out.lines().count(), 1, "{out}");
    serde_json::from_str(&out).unwrap()
}

fn positions(out: &str) -> Vec<(u64, String, String)> {
    let lines = out.lines().map(|line| {
        let update: Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| update[key].as_str().unwrap().to_owned();
        (
            update["position"].as_u64().unwrap(),
            text("mission_id"),
            text("status"),
        )
    });
    lines.collect()
}

#[tokio::test]
async fn missions_are_dispatched_followed_cancelled_stopped_and_confirmed() {
    let world = World::new(TTL).await;
    let _gateway = world.serve().await;

    let out = told(
        &world,
        CONTROL_PLANE,
        0,
        "mission dispatch --robot sim-mqtt --action navigate_to --param x=1 --param duration=0.1 --follow",
    )
    .await;
    assert_contains(&out, "is accepted for robot sim-mqtt");
    for status in ["Pending", "Dispatched", "Executing", "Succeeded"] {
        assert_contains(&out, status);
    }

    // The same keys again: the first answer, and nothing new.
    let again = "mission dispatch --robot sim-grpc --action dock --param duration=0.1 --mission-id m-1 --plan-key p-1 --key k-1";
    let first = json(&world, CONTROL_PLANE, again).await;
    let second = json(&world, CONTROL_PLANE, again).await;
    assert_eq!(first["gateway_request_id"], second["gateway_request_id"]);
    assert_eq!(second["status"], "DISPATCH_STATUS_DISPATCHED");
    reached(&world, "m-1", "Succeeded").await;

    // A long one is cancelled.
    told(&world, CONTROL_PLANE, 0, "mission dispatch --robot sim-mqtt --action navigate_to --param duration=60 --mission-id m-2").await;
    reached(&world, "m-2", "Executing").await;
    let out = told(
        &world,
        CONTROL_PLANE,
        0,
        "mission cancel m-2 --reason changed",
    )
    .await;
    assert_contains(&out, "mission m-2 is asked to end");
    reached(&world, "m-2", "Cancelled").await;
    let out = told(&world, CONTROL_PLANE, 1, "mission cancel m-2").await;
    assert_contains(&out, "mission m-2 is not cancelled");

    // Another one is stopped; what follows it is told to fail.
    let mut follow = client(
        &world,
        CONTROL_PLANE,
        "mission dispatch --robot sim-grpc --action navigate_to --param duration=60 --mission-id m-3 --follow",
    );
    follow.kill_on_drop(true);
    let follow = Process::spawn(follow);
    follow.says("Executing").await;
    let out = told(&world, CONTROL_PLANE, 0, "mission stop --robot sim-grpc").await;
    assert_contains(&out, "robot sim-grpc: ");
    assert_contains(&out, "durably");
    let ended = follow.ended().await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_contains(&ended.out, "Cancelled");

    // One that an operator has to confirm.
    told(&world, CONTROL_PLANE, 0, "mission dispatch --robot sim-grpc --action navigate_to --param duration=0.1 --mission-id m-4 --manual").await;
    until("it awaits confirmation", || async {
        let told = json(&world, OPERATOR, "mission status m-4").await;
        (told["awaiting_confirmation"] == true).then_some(())
    })
    .await;
    let refused = done(&world, CONTROL_PLANE, "mission confirm m-4").await;
    assert_eq!(
        (refused.code, refused.err.lines().count()),
        (Some(1), 1),
        "{refused:?}"
    );
    assert_contains(&refused.err, "ConfirmMission");
    let out = told(&world, OPERATOR, 0, "mission confirm m-4").await;
    assert_contains(&out, "mission m-4 is confirmed");
    reached(&world, "m-4", "Succeeded").await;

    // What is refused is exit code 1 and says why.
    let out = told(
        &world,
        CONTROL_PLANE,
        1,
        "mission dispatch --robot sim-mqtt --action weld",
    )
    .await;
    assert_contains(&out, "UnsupportedAction");
    assert_contains(&out, "it takes dock, navigate_to, undock");
}

#[tokio::test]
async fn a_watch_that_would_wait_in_vain_says_so() {
    let world = World::new(TTL).await;
    let _gateway = world.serve().await;
    let dispatch = "mission dispatch --robot sim-mqtt --action dock --mission-id m-1 --follow";
    told(&world, CONTROL_PLANE, 0, dispatch).await;
    let unknown = done(&world, OPERATOR, "mission watch m-2").await;
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
    assert_eq!(unknown.err, "error: mission m-2 is not known\n");

    let seen = told(&world, OPERATOR, 0, "mission watch m-1 --json").await;
    let (last, ..) = positions(&seen).pop().unwrap();
    let behind = format!("mission watch m-1 --after {last}");
    let over = done(&world, OPERATOR, &behind).await;
    assert_eq!(over.code, Some(1), "{over:?}");
    assert_contains(&over.err, "error: the mission has ended");
}

async fn reached(world: &World, mission: &str, status: &str) {
    until(&format!("{mission} is {status}"), || async {
        let told = json(world, OPERATOR, &format!("mission status {mission}")).await;
        (told["status"] == status).then_some(())
    })
    .await;
}

#[tokio::test]
async fn robots_are_listed_shown_held_and_released() {
    let world = World::new(TTL).await;
    let _gateway = world.serve().await;
    let out = told(&world, OPERATOR, 0, "robot list").await;
    assert_eq!(out.lines().count(), 3, "{out}");
    let listed = told(&world, OPERATOR, 0, "robot list --json").await;
    let robots: Vec<Value> = listed
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(robots[0]["robot_id"], "sim-grpc");
    assert_eq!(robots[1]["reachable"], true);

    let held = json(&world, OPERATOR, "robot hold sim-mqtt --reason cleaning").await;
    assert_eq!(held["hold_reason"], "cleaning");
    let out = told(&world, OPERATOR, 0, "robot show sim-mqtt").await;
    assert_contains(&out, "held: cleaning");
    let out = told(
        &world,
        CONTROL_PLANE,
        1,
        "mission dispatch --robot sim-mqtt --action dock",
    )
    .await;
    assert_contains(
        &out,
        "InvalidState: robot sim-mqtt is held by an operator: cleaning",
    );
    let out = told(&world, OPERATOR, 0, "robot release sim-mqtt").await;
    assert_contains(&out, "ready");
    let missing = done(&world, OPERATOR, "robot show amr-404").await;
    assert_eq!(missing.code, Some(1));
    assert_eq!(missing.err, "error: robot amr-404 is not configured\n");
}

#[tokio::test]
async fn a_watch_that_is_resumed_misses_nothing_and_ends_on_ctrl_c() {
    let world = World::new(TTL).await;
    let gateway = world.serve().await;
    let dispatch = |mission: String| {
        let words = format!(
            "mission dispatch --robot sim-mqtt --action dock --param duration=0.05 --follow --mission-id {mission}"
        );
        let world = &world;
        async move { told(world, CONTROL_PLANE, 0, &words).await }
    };
    // From now on: what was before is not told.
    dispatch("before".into()).await;
    let live = Process::spawn(client(&world, OPERATOR, "mission watch --json"));
    until("the watch is open", || async {
        (world
            .metric("portarium_gateway_grpc_connections", &[])
            .await
            >= 1.0)
            .then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    for n in 0..3 {
        dispatch(format!("m-{n}")).await;
    }
    live.says("\"m-2\",\"observed").await;
    until("its end", || async {
        (live.out().matches("Succeeded").count() == 3).then_some(())
    })
    .await;
    let began = Instant::now();
    live.interrupt();
    let live = live.ended().await;
    assert_eq!((live.code, live.err.as_str()), (Some(0), ""), "{live:?}");
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    let first = positions(&live.out);
    assert!(
        first.iter().all(|(_, mission, _)| mission != "before"),
        "{first:?}"
    );

    // Where it left off: exactly what follows, also across a restart of the gateway.
    let (last, ..) = first.last().unwrap();
    for n in 3..5 {
        dispatch(format!("m-{n}")).await;
    }
    let resumed = Process::spawn(client(
        &world,
        OPERATOR,
        &format!("mission watch --json --after {last}"),
    ));
    resumed.says("m-4").await;
    gateway.interrupt();
    assert_eq!(gateway.ended().await.code, Some(0));
    let gateway = world.serve().await;
    dispatch("m-5".into()).await;
    until("its end", || async {
        (resumed.out().matches("Succeeded").count() == 3).then_some(())
    })
    .await;
    resumed.interrupt();
    let resumed = resumed.ended().await;
    assert_eq!(resumed.code, Some(0), "{resumed:?}");
    assert_contains(&resumed.err, "resuming");
    let second = positions(&resumed.out);

    let all = Process::spawn(client(&world, OPERATOR, "mission watch --json --after 0"));
    until("all of it", || async {
        (all.out().matches("Succeeded").count() == 7).then_some(())
    })
    .await;

    // Of one mission: from its beginning to its end, and behind its end there is nothing.
    let one = told(&world, OPERATOR, 0, "mission watch m-2 --json").await;
    let (end, ..) = positions(&one).pop().unwrap();
    assert_eq!(end, *last);
    for (after, code, told) in [(end - 1, 0, ""), (end, 1, "nothing came after")] {
        let words = format!("mission watch m-2 --after {after}");
        let ended = done(&world, OPERATOR, &words).await;
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert_contains(&ended.err, told);
    }
    drop(gateway);
    let all: Vec<_> = positions(&all.out());
    let seen: Vec<_> = first.into_iter().chain(second).collect();
    let expected: Vec<_> = all.into_iter().filter(|(_, m, _)| m != "before").collect();
    assert_eq!(seen, expected);
    println!(
        "FIGURE cli: {} updates over two watches and a restart, none missed, none twice",
        seen.len()
    );
}

#[tokio::test]
async fn a_watch_from_now_on_that_breaks_before_its_first_update_misses_nothing_either() {
    let world = World::new(TTL).await;
    let gateway = world.serve().await;
    let watch = Process::spawn(client(&world, OPERATOR, "mission watch --json"));
    until("the watch is open", || async {
        (world
            .metric("portarium_gateway_grpc_connections", &[])
            .await
            >= 1.0)
            .then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    watch.signal(Signal::STOP);
    gateway.interrupt();
    assert_eq!(gateway.ended().await.code, Some(0));
    let _gateway = world.serve().await;
    let words = "mission dispatch --robot sim-mqtt --action dock --param duration=0.05 --follow --mission-id m-1";
    told(&world, CONTROL_PLANE, 0, words).await;
    watch.signal(Signal::CONT);
    watch.says("Succeeded").await;
    let statuses: Vec<_> = positions(&watch.out())
        .into_iter()
        .map(|(.., s)| s)
        .collect();
    assert_eq!(
        statuses,
        ["Pending", "Dispatched", "Executing", "Succeeded"]
    );
}

#[tokio::test]
async fn a_gateway_that_is_not_there_or_another_one_is_one_clear_line_and_exit_code_1() {
    let world = World::new(TTL).await;
    for words in [
        "robot list",
        "mission status m",
        "mission watch",
        "mission stop --robot sim-mqtt",
    ] {
        let ended = done(&world, OPERATOR, words).await;
        assert_eq!(
            (ended.code, ended.err.lines().count()),
            (Some(1), 1),
            "{words}: {ended:?}"
        );
        assert_contains(
            &ended.err,
            &format!("error: localhost:{} as {}: ", world.grpc, id(OPERATOR)),
        );
        assert_contains(&ended.err, "refused");
    }
    let _gateway = world.serve().await;
    let mut other = client(&world, OPERATOR, "robot list");
    other.env("PORTARIUM_SERVER_ID", id("another"));
    let ended = Process::spawn(other).ended().await;
    assert_eq!(
        (ended.code, ended.err.lines().count()),
        (Some(1), 1),
        "{ended:?}"
    );
    assert_contains(
        &ended.err,
        &format!("the policy does not admit {}", id(GATEWAY)),
    );
    // And one that does not admit us says what that may be.
    let ended = done(&world, "robot", "robot list").await;
    assert_eq!(
        (ended.code, ended.err.lines().count()),
        (Some(1), 1),
        "{ended:?}"
    );
    assert_contains(&ended.err, "does not admit our SPIFFE ID");
}

#[tokio::test]
async fn wrong_usage_is_exit_code_2() {
    for words in [
        &["mission"][..],
        &["mission", "dispatch"],
        &["mission", "resolve", "m-1", "--as", "pending"],
        &["robot", "list", "--server", "nowhere"],
        &["launch"],
    ] {
        let ended = process::run(words).await;
        assert_eq!(
            (ended.code, ended.out.as_str()),
            (Some(2), ""),
            "{words:?}: {ended:?}"
        );
    }
}

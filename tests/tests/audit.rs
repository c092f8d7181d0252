//! The audit log of the shipped gateway: a line for each decision, and whether any was touched.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/mod.rs"]
mod common;

use common::{Client, Ended, World, assert_contains, id, mission, process, until, world::http_get};
use portarium_gateway::{
    audit::{Audit, Decision, Entry, Rotation},
    dev::hints::{CONTROL_PLANE, OPERATOR},
};
use portarium_protocols::grpc::pb;
use portarium_tests::figure;
use rustix::process::Signal;
use serde_json::Value;
use std::time::{Duration, Instant, SystemTime};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

const TTL: Duration = Duration::from_secs(3600);
const POLLS: usize = 50;

fn status_of(mission_id: &str) -> pb::GetMissionStatusRequest {
    pb::GetMissionStatusRequest {
        mission_id: mission_id.into(),
        ..Default::default()
    }
}

/// A mission that has ended.
async fn ended(client: &mut Client) -> String {
    let request = mission("sim-grpc", "dock");
    let mission_id = request.mission_id.clone();
    client.calls.dispatch_mission(request).await.unwrap();
    let watch = pb::WatchMissionsRequest {
        mission_id: mission_id.clone(),
        ..Default::default()
    };
    let mut updates = client
        .calls
        .watch_missions(watch)
        .await
        .unwrap()
        .into_inner();
    while updates.message().await.unwrap().is_some() {}
    mission_id
}

/// The lines of this caller, once there are so many.
async fn lines_of(world: &World, caller: &str, at_least: usize) -> Vec<Value> {
    until(&format!("{at_least} lines of {caller}"), || async {
        let lines = world.audit().into_iter();
        let theirs: Vec<_> = lines.filter(|line| line["caller"] == caller).collect();
        (theirs.len() >= at_least).then_some(theirs)
    })
    .await
}

#[tokio::test]
async fn everything_that_is_allowed_has_one_line() {
    let world = World::new(TTL).await;
    let _gateway = world.serve().await;
    let mut client = world.client(CONTROL_PLANE).await;
    let mission_id = ended(&mut client).await;
    for _ in 0..POLLS {
        let status = client
            .calls
            .get_mission_status(status_of(&mission_id))
            .await;
        status.unwrap();
    }
    let cancel = pb::CancelMissionRequest {
        mission_id: mission_id.clone(),
        ..Default::default()
    };
    client.calls.cancel_mission(cancel).await.unwrap();
    let show = pb::GetRobotRequest {
        robot_id: "sim-grpc".into(),
    };
    client.calls.get_robot(show).await.unwrap();
    let all = pb::ListRobotsRequest::default();
    client.calls.list_robots(all).await.unwrap();

    let caller = id(CONTROL_PLANE);
    let lines = lines_of(&world, &caller, POLLS + 6).await;
    let told: Vec<_> = lines
        .iter()
        .map(|line| {
            assert_eq!(line["decision"], "allowed", "{line}");
            assert!(line["serial"].as_str().unwrap().len() >= 16, "{line}");
            let of = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            [
                of("method"),
                of("mission_id"),
                of("robot_id"),
                of("outcome"),
            ]
        })
        .collect();
    let line = |method: &str, mission: &str, robot: &str, outcome: &str| {
        [method, mission, robot, outcome].map(str::to_owned)
    };
    let mut expected = vec![
        line("handshake", "", "", "admitted"),
        line("DispatchMission", &mission_id, "sim-grpc", "DISPATCHED"),
        line("WatchMissions", &mission_id, "", "opened"),
    ];
    let poll = line("GetMissionStatus", &mission_id, "sim-grpc", "answered");
    expected.extend(std::iter::repeat_n(poll, POLLS));
    expected.extend([
        line(
            "CancelMission",
            &mission_id,
            "sim-grpc",
            "nothing to cancel",
        ),
        line("GetRobot", "", "sim-grpc", "answered"),
        line("ListRobots", "", "", "answered"),
    ]);
    assert_eq!(told, expected);
}

#[tokio::test]
async fn reflection_has_a_line_and_a_health_check_has_none() {
    let world = World::new(TTL).await;
    let _gateway = world.serve().await;
    let (channel, _identity) = world.channel(CONTROL_PLANE).await;
    let mut health = HealthClient::new(channel.clone());
    health.check(HealthCheckRequest::default()).await.unwrap();
    let mut reflection = ServerReflectionClient::new(channel);
    let asked = futures::stream::iter([]);
    reflection.server_reflection_info(asked).await.unwrap();
    let lines = lines_of(&world, &id(CONTROL_PLANE), 2).await;
    let methods: Vec<_> = lines.iter().map(|line| &line["method"]).collect();
    assert_eq!(methods, ["handshake", "ServerReflectionInfo"]);
}

#[tokio::test]
async fn reads_of_what_is_not_known_have_a_line() {
    let world = World::new(TTL).await;
    let _gateway = world.serve().await;
    let mut client = world.client(CONTROL_PLANE).await;
    let status = client.calls.get_mission_status(status_of("m-404")).await;
    assert_eq!(status.unwrap_err().code(), Code::NotFound);
    let show = pb::GetRobotRequest {
        robot_id: "amr-404".into(),
    };
    let shown = client.calls.get_robot(show).await;
    assert_eq!(shown.unwrap_err().code(), Code::NotFound);
    let ahead = pb::WatchMissionsRequest {
        after_position: u64::MAX,
        ..Default::default()
    };
    let watched = client.calls.watch_missions(ahead).await;
    assert_eq!(watched.unwrap_err().code(), Code::OutOfRange);
    let lines = lines_of(&world, &id(CONTROL_PLANE), 4).await;
    let told: Vec<_> = lines[1..]
        .iter()
        .map(|line| (&line["decision"], &line["method"], &line["outcome"]))
        .collect();
    let refused = Value::from("refused");
    let texts = [
        "GetMissionStatus",
        "not known",
        "GetRobot",
        "WatchMissions",
        "OUT_OF_RANGE",
    ];
    let [status, unknown, show, watch, range] = texts.map(Value::from);
    assert_eq!(
        told,
        [
            (&refused, &status, &unknown),
            (&refused, &show, &unknown),
            (&refused, &watch, &range),
        ]
    );
}

/// `audit verify` on this world's log.
async fn verify(world: &World, words: &[&str]) -> Ended {
    let file = world.file("audit.jsonl");
    let all = [&["audit", "verify", file.to_str().unwrap()], words].concat();
    process::run(&all).await
}

/// The hash in `/metrics`, once this many lines are on the disk.
async fn head(world: &World, lines: f64) -> String {
    until(&format!("{lines} lines are written and shown"), || async {
        let written = world
            .metric("portarium_gateway_audit_lines_total", &[])
            .await;
        let (_, page) = http_get(world.admin, "/metrics").await?;
        let head = page
            .split_once("audit_head_info{hash=\"")?
            .1
            .split('"')
            .next()?;
        let text = std::fs::read_to_string(world.file("audit.jsonl")).unwrap();
        (written >= lines && text.trim_end().ends_with(&format!("{head}\"}}"))).then(|| head.into())
    })
    .await
}

#[tokio::test]
async fn the_trail_is_whole_across_rotations_and_kills_and_whoever_touches_it_is_found() {
    let world = World::new(TTL).await;
    let small = world.config().replace(
        "audit.jsonl\"\n",
        "audit.jsonl\"\nrotate_bytes = 65536\nkeep = 9\n",
    );
    world.write(&small);
    let mut heads = Vec::new();
    for _ in 0..3 {
        let gateway = world.serve().await;
        let mut client = world.client(CONTROL_PLANE).await;
        for _ in 0..200 {
            let all = pb::ListRobotsRequest::default();
            client.calls.list_robots(all).await.unwrap();
        }
        heads.push(head(&world, 200.0).await);
        gateway.signal(Signal::KILL);
        gateway.ended().await;
    }
    let gateway = world.serve().await;
    gateway.signal(Signal::TERM);
    let ended = gateway.ended().await;
    let last = ended.err.rsplit_once("the audit ends head=").unwrap().1;
    heads.push(last.lines().next().unwrap().to_owned());

    assert!(world.file("audit.jsonl.2").exists(), "not rotated");
    for head in &heads {
        let whole = verify(&world, &["--head", head, "--json"]).await;
        assert_eq!(whole.code, Some(0), "{whole:?}");
        let whole: Value = serde_json::from_str(&whole.out).unwrap();
        assert_eq!(whole["whole"], true, "{whole}");
        assert_eq!(whole["head"], *heads.last().unwrap(), "{whole}");
        assert!(whole["lines"].as_u64().unwrap() > 600, "{whole}");
    }

    let file = world.file("audit.jsonl");
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, good.replacen("allowed", "refused", 1)).unwrap();
    let number = 1 + good
        .lines()
        .position(|line| line.contains("allowed"))
        .unwrap();
    let broken = verify(&world, &[]).await;
    assert_eq!(broken.code, Some(1), "{broken:?}");
    assert_contains(
        &broken.err,
        &format!("audit.jsonl: line {number} does not follow"),
    );
    let broken = verify(&world, &["--json"]).await;
    assert_eq!(broken.code, Some(1), "{broken:?}");
    let broken: Value = serde_json::from_str(&broken.out).unwrap();
    assert_eq!(
        (&broken["whole"], &broken["line"]),
        (&false.into(), &number.into())
    );

    let (kept, _) = good.trim_end().rsplit_once('\n').unwrap();
    std::fs::write(&file, format!("{kept}\n")).unwrap();
    assert_eq!(verify(&world, &[]).await.code, Some(0));
    let cut = verify(&world, &["--head", heads.last().unwrap()]).await;
    assert_eq!(cut.code, Some(1), "{cut:?}");
    assert_contains(&cut.err, "the end was cut off");
    println!(
        "{} heads, each found again; a change and a cut end found",
        heads.len()
    );
}

/// What a call pays for its line; the rest is the writer's.
#[test]
fn a_line_costs_its_caller_microseconds() {
    const LINES: u32 = 2_000;
    let dir = tempfile::tempdir().unwrap();
    let rotation = Rotation {
        bytes: u64::MAX,
        keep: 1,
    };
    let audit = Audit::open(&dir.path().join("audit.jsonl"), rotation).unwrap();
    let caller = id(OPERATOR);
    let entry = Entry {
        caller: Some(&caller),
        serial: "7d1ee1356f393f1f9ffa96f5f979469d",
        mission_id: "01a20d0c-2a4f-7376-a051-e185f572dfee",
        robot_id: "sim-grpc",
        outcome: "answered",
        ..Entry::new(Decision::Allowed, "GetMissionStatus")
    };
    let began = Instant::now();
    for _ in 0..LINES {
        audit.record(SystemTime::now(), &entry);
    }
    let each = began.elapsed() / LINES;
    assert!(audit.close(Duration::from_secs(10)));
    let rate = f64::from(LINES) / began.elapsed().as_secs_f64();
    figure(
        "audit",
        &format!("a line costs its caller {each:.1?}; {rate:.0} lines per second get to the disk"),
    );
    assert!(each < Duration::from_millis(1), "{each:?}");
}

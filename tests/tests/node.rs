//! A control plane in Node.js, with the PEM files of `svid write` and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Process, World, assert_contains, process};
use portarium_gateway::dev::hints::CONTROL_PLANE;
use serde_json::{Value, json};
use std::{path::Path, time::Duration};
use tokio::process::Command;

/// SVIDs rotate about every 5 s.
const TTL: Duration = Duration::from_secs(10);
const ROTATIONS: u64 = 3;

#[tokio::test]
#[ignore = "needs Node.js peers: run by tests/run"]
async fn a_control_plane_in_node_works_across_rotations_without_a_failed_call() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let world = World::new(TTL).await;
    let _gateway = world.serve().await;
    let dir = world.file("svid");
    let mut writer = process::command(&["svid", "write", "--hint", CONTROL_PLANE]);
    writer
        .args(["--socket", &world.socket(), "--dir"])
        .arg(&dir);
    let writer = Process::spawn(writer);
    writer.says("generation 1: ").await;

    let modules = here.join(".peers/node/node_modules");
    assert!(modules.is_dir(), "no {}: run tests/run", modules.display());
    let mut node = Command::new("node");
    node.env("NODE_PATH", modules)
        .arg(here.join("peers/node/rotations.js"))
        .arg(format!("localhost:{}", world.grpc))
        .arg(&dir)
        .arg(here.join("../protocols/proto/portarium/robotics/v1/mission.proto"))
        .args([&ROTATIONS.to_string(), "sim-mqtt", "sim-grpc"]);
    let ended = Process::spawn(node).ended().await;
    let seen: Value = serde_json::from_str(&ended.out).unwrap_or_else(|_| panic!("{ended:?}"));

    assert_eq!(seen["failed"], json!([]), "{seen}\n{}", writer.err());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let count = |key: &str| seen[key].as_u64().unwrap();
    assert!(count("rotations") >= ROTATIONS, "{seen}");
    assert!(
        count("succeeded") >= 10 && count("cancelled") >= 2,
        "{seen}"
    );
    assert_eq!(count("dispatched"), count("succeeded") + count("cancelled"));
    // Pending, Dispatched, Executing and the end of each: none missed.
    assert!(count("updates") >= 4 * count("dispatched"), "{seen}");
    for service in [
        "portarium.robotics.v1.MissionService",
        "grpc.health.v1.Health",
    ] {
        assert!(
            seen["services"]
                .as_array()
                .unwrap()
                .contains(&json!(service)),
            "{seen}"
        );
    }
    // The host name is checked: the same gateway under another name is no gateway.
    assert_contains(
        seen["wrong_host_name"].as_str().unwrap(),
        "ERR_TLS_CERT_ALTNAME_INVALID",
    );
    println!(
        "FIGURE node: {} calls, {} missions ({} cancelled), {} updates over {} streams, {} rotations, 0 failed calls",
        seen["calls"],
        seen["dispatched"],
        seen["cancelled"],
        seen["updates"],
        seen["streams"],
        seen["rotations"]
    );
}

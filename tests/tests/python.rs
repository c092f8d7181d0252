//! The embedded authority as an independent Workload API client in Python sees it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Process, World, id};
use portarium_gateway::dev::hints::{self, CONTROL_PLANE};
use serde_json::{Value, json};
use std::{collections::BTreeSet, path::Path, time::Duration};
use tokio::process::Command;

/// SVIDs rotate about every 5 s.
const TTL: Duration = Duration::from_secs(10);
const ROTATIONS: usize = 3;

#[tokio::test]
#[ignore = "needs Python peers: run by tests/run"]
async fn the_authority_serves_an_independent_workload_api_client() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let world = World::new(TTL).await;
    let python = here.join(".peers/python/bin/python");
    assert!(python.is_file(), "no {}: run tests/run", python.display());
    let mut client = Command::new(python);
    client.arg(here.join("peers/python/workload_api.py")).args([
        &world.socket(),
        &id(CONTROL_PLANE),
        &ROTATIONS.to_string(),
    ]);
    let ended = Process::spawn(client).ended().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let seen: Value = serde_json::from_str(&ended.out).unwrap();

    let all: BTreeSet<String> = hints::ALL.into_iter().map(id).collect();
    let svids = seen["svids"].as_array().unwrap();
    let svids: BTreeSet<String> = svids.iter().map(|s| s.as_str().unwrap().into()).collect();
    assert_eq!(svids, all);
    for hint in hints::ALL {
        assert_eq!(seen["hints"][id(hint)], hint);
    }
    assert_eq!(seen["jwt"]["subject"], id(CONTROL_PLANE));
    assert_eq!(seen["jwt"]["audience"], json!(["portarium-tests"]));
    assert_eq!(
        seen["jwt"]["refused"],
        json!(["a changed signature", "another audience"])
    );
    assert_eq!(seen["jwt_authorities"], 1);
    let seconds = seen["jwt"]["seconds"].as_i64().unwrap();
    assert!((240..=300).contains(&seconds), "{seconds}");
    let calls = seen["without_header"].as_object().unwrap();
    assert_eq!(calls.len(), 5);
    for (call, codes) in calls {
        assert_eq!(
            *codes,
            json!(["INVALID_ARGUMENT", "INVALID_ARGUMENT"]),
            "{call}"
        );
    }
    let serials = seen["serials"].as_array().unwrap();
    assert_eq!(serials.len(), ROTATIONS + 1, "{seen}");
    println!(
        "FIGURE python: {} SVIDs, {} rotations, {} calls refused without the header",
        svids.len(),
        serials.len() - 1,
        2 * calls.len()
    );
}

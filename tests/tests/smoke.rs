//! The shortest way through the whole house; when this fails, look here first.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use portarium_gateway::dev::robot::{ExecutionLog, RobotConfig, mqtt::StatusTopics};
use portarium_tests::{
    Caller, Config, Fate, GatewayProcess, Identities, Mosquitto, Watch, audit, fates, grpc_robot,
    init, journal, metric, mission, mqtt_robot,
};
use std::{sync::Arc, time::Duration};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_mission_for_each_robot_succeeds_and_is_found_in_journal_audit_and_metrics() {
    init();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let identities = Identities::start(dir, &["m", "g"]).await;
    let broker = Mosquitto::start(dir, &identities).await;
    let log = ExecutionLog::in_memory();
    let robot = |id: &str| RobotConfig::new(id.parse().unwrap());
    let _m = mqtt_robot(
        &identities,
        broker.port,
        StatusTopics::Own,
        robot("m"),
        &log,
    )
    .await;
    let g = grpc_robot(&identities, robot("g"), &log).await;
    let config = Config::new(dir, &identities)
        .broker("main", broker.port)
        .mqtt_robot("m", "")
        .grpc_robot("g", g.local_addr().port(), "");
    let gateway = GatewayProcess::start(dir, &config).await;
    let caller = Arc::new(Caller::control_plane(&identities, gateway.ports.grpc).await);
    caller.robots_reachable(&["m", "g"]).await;
    let watch = Watch::start(caller.clone());
    let missions = ["for-m".to_owned(), "for-g".to_owned()];
    for (id, robot) in missions.iter().zip(["m", "g"]) {
        caller
            .accepted(&mission(robot, id, Duration::from_millis(50)))
            .await;
    }
    watch.ended(&missions, Duration::from_secs(10)).await;
    let verdict = fates(&missions, &log.entries(), &watch.all());
    assert_eq!(verdict.count(Fate::Done), 2, "{verdict:?}");
    let rows = journal(&gateway.journal_file());
    assert!(rows.values().all(|row| row.status == 4), "{rows:?}");
    let dispatched = audit(&gateway.audit_file())
        .into_iter()
        .filter(|line| line["method"] == "DispatchMission" && line["decision"] == "allowed");
    assert_eq!(dispatched.count(), 2);
    let counted = metric(
        gateway.ports.admin,
        "portarium_gateway_dispatches_total",
        "",
    )
    .await;
    assert!((counted - 2.0).abs() < 0.5, "{counted}");
    assert_eq!(caller.failed(), 0);
}

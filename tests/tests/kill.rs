//! `kill -9` of the gateway under load.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use portarium_gateway::dev::robot::{ExecutionLog, RobotConfig, mqtt::StatusTopics};
use portarium_tests::{
    Caller, Config, Fate, GatewayProcess, INSISTENCE, Identities, Load, Mosquitto, Operator, Watch,
    fates, figure, grpc_robot, happened, hints, init, mqtt_robot, scaled,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::sleep;

/// Robots, and whether they execute a key at most once.
const MQTT: [(&str, bool); 4] = [
    ("idem-0", true),
    ("idem-1", true),
    ("once-0", false),
    ("once-1", false),
];
const GRPC: [&str; 2] = ["grpc-0", "grpc-1"];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn what_was_acknowledged_survives_the_gateways_death_at_any_moment() {
    init();
    let kills = scaled(20);
    let all = [&MQTT.map(|(id, _)| id)[..], &GRPC].concat();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let identities = Identities::start(dir, &all).await;
    let broker = Mosquitto::start(dir, &identities).await;
    let log = ExecutionLog::in_memory();
    let mut config = Config::new(dir, &identities).broker("main", broker.port);
    let (mut mqtt, mut grpc) = (Vec::new(), Vec::new());
    for (id, idempotent) in MQTT {
        let robot = RobotConfig {
            idempotent,
            ..RobotConfig::new(id.parse().unwrap())
        };
        let own = StatusTopics::Own;
        mqtt.push(mqtt_robot(&identities, broker.port, own, robot, &log).await);
        let redelivery = if idempotent { "idempotent" } else { "never" };
        config = config.mqtt_robot(id, &format!("redelivery = \"{redelivery}\""));
    }
    for id in GRPC {
        let robot = RobotConfig::new(id.parse().unwrap());
        let robot = grpc_robot(&identities, robot, &log).await;
        let port = robot.local_addr().port();
        config = config.grpc_robot(id, port, "redelivery = \"idempotent\"");
        grpc.push(robot);
    }
    let mut gateway = GatewayProcess::start(dir, &config).await;
    let port = gateway.ports.grpc;
    let caller = Arc::new(Caller::control_plane(&identities, port).await);
    caller.robots_reachable(&all).await;
    let watch = Watch::start(caller.clone());
    let operator = Caller::with(&identities, hints::OPERATOR, port).await;
    let operator = Operator::start(operator, &all, &log);

    let mut load = Load::start(&caller, &all, Duration::from_millis(40));
    let began = Instant::now();
    for round in 0..kills {
        sleep(Duration::from_millis(fastrand::u64(50..800))).await;
        gateway.kill();
        sleep(Duration::from_millis(fastrand::u64(..200))).await;
        gateway.relaunch();
        // Every third time it dies again while it is still finding its way.
        if round % 3 != 2 {
            gateway.ready().await;
            load.repeat_some(5).await;
        }
    }
    let time = began.elapsed();
    gateway.ready().await;
    let acknowledged = load.finish().await;
    let names: Vec<_> = acknowledged.keys().cloned().collect();
    watch.ended(&names, INSISTENCE).await;
    load.repeat_all().await;

    assert!(log.is_complete());
    let unknown = operator.resolved();
    let idempotent = unknown.iter().filter(|name| !name.starts_with("once"));
    let idempotent: Vec<_> = idempotent.collect();
    let verdict = fates(&names, &log.entries(), &watch.all());
    figure(
        "kill",
        &format!(
            "kills that cost a mission {} in {:.0} s, {} missions acknowledged: {}; of unknown outcome {} (of idempotent robots {}); {} sent again to idempotent robots; {} calls failed and were made again under the same keys",
            happened(verdict.bad.len(), kills),
            time.as_secs_f64(),
            names.len(),
            verdict,
            unknown.len(),
            idempotent.len(),
            gateway
                .output()
                .matches("sent again under the same key")
                .count(),
            caller.failed()
        ),
    );
    verdict.assert_good();
    assert!(idempotent.is_empty(), "{idempotent:?}");
    assert_eq!(watch.backwards(), 0);
    // What was not executed was refused or of unknown outcome, and those are few.
    let done = verdict.count(Fate::Done);
    assert!(done + unknown.len() >= names.len(), "{verdict:?}");
    assert!(unknown.len() <= kills, "{unknown:?}");
    assert!(
        names.len() > kills * 5,
        "{} missions are no load",
        names.len()
    );
}

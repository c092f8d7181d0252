//! The trust domain's authority is changed for the next one.

use portarium_gateway::dev::robot::{ExecutionLog, RobotConfig, mqtt::StatusTopics};
use portarium_tests::{
    Caller, Config, Fate, GatewayProcess, Identities, Load, Mosquitto, Proxy, Watch, fates, figure,
    grpc_robot, hints, init, long, mqtt_robot, on_spire, until, until_within,
};
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::time::sleep;

/// How long SVIDs live. After so long no connection rests on one that was there before.
const LIFE: Duration = Duration::from_secs(10);

/// Beyond this nobody may be connected on an authority that was revoked.
const WITHIN: Duration = Duration::from_secs(10);

const ROBOTS: [&str; 2] = ["m", "g"];

/// Each time prepare, activate, taint and, when no connection rests on it any longer, revoke.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn authorities_change_under_load_and_no_mission_fails() {
    init();
    let changes = match (on_spire(), long()) {
        (_, true) => 100,
        (true, false) => 3,
        (false, false) => 1,
    };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let identities = Identities::living(dir, &ROBOTS, LIFE).await;
    let broker = Mosquitto::rotating(dir, &identities).await;
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
    let lines = "redelivery = \"idempotent\"";
    let config = Config::new(dir, &identities)
        .broker("main", broker.port)
        .mqtt_robot("m", lines)
        .grpc_robot("g", g.local_addr().port(), lines);
    let gateway = GatewayProcess::start(dir, &config).await;
    let caller = Arc::new(Caller::control_plane(&identities, gateway.ports.grpc).await);
    caller.robots_reachable(&ROBOTS).await;
    let watch = Watch::start(caller.clone());
    let mut load = Load::start(&caller, &ROBOTS, Duration::from_millis(100));

    let began = Instant::now();
    for _ in 0..changes {
        identities.prepare().await;
        identities.activate().await;
        identities.taint().await;
        sleep(LIFE).await;
        identities.revoke().await;
        sleep(Duration::from_secs(2)).await;
    }
    let took = began.elapsed();
    let names: Vec<_> = load.finish().await.into_keys().collect();
    watch.ended(&names, Duration::from_secs(60)).await;
    let verdict = fates(&names, &log.entries(), &watch.all());
    figure(
        "authorities",
        &format!(
            "{changes} changes in {took:.0?}: {} missions {}, {} calls failed",
            names.len(),
            verdict,
            caller.failed()
        ),
    );
    verdict.assert_good();
    assert_eq!(verdict.count(Fate::Done), names.len(), "{verdict:?}");
}

/// Without waiting for connections to leave it, and with a broker that stays on it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn nobody_stays_connected_on_an_authority_that_was_revoked() {
    init();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let identities = Identities::living(dir, &ROBOTS, Duration::from_secs(3_600)).await;
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
    let own = identities.manager(hints::GATEWAY).await;
    let between = async |port, other: &str| {
        let ends = [own.clone(), identities.manager(other).await];
        Proxy::start(port, ends).await
    };
    let to_broker = between(broker.port, hints::BROKER).await;
    let to_robot = between(g.local_addr().port(), "g").await;
    let config = Config::new(dir, &identities)
        .broker("main", to_broker.port)
        .mqtt_robot("m", "")
        .grpc_robot("g", to_robot.port, "");
    let gateway = GatewayProcess::start(dir, &config).await;
    let from_caller = between(gateway.ports.grpc, hints::CONTROL_PLANE).await;
    let caller = Arc::new(Caller::control_plane(&identities, from_caller.port).await);
    caller.robots_reachable(&ROBOTS).await;

    identities.prepare().await;
    identities.activate().await;
    // What is opened from here on may rest on the next one already.
    let tainted = SystemTime::now();
    identities.taint().await;
    let known = || {
        let bundle = own.current().map(|now| now.bundle_pem());
        bundle.map_or(0, |bundle| bundle.matches("BEGIN").count())
    };
    until("both authorities to be known", async || known() == 2).await;
    identities.revoke().await;
    until("the push", async || known() == 1).await;
    let pushed = Instant::now();
    for (what, proxy) in [
        ("MQTT", &to_broker),
        ("gRPC south", &to_robot),
        ("gRPC north", &from_caller),
    ] {
        let old = || {
            let links = proxy.links();
            let links = links.iter().filter(|link| link.opened < tainted);
            links.filter(|link| link.closed.is_none()).count()
        };
        until_within(WITHIN, what, async || old() == 0).await;
        let took = pushed.elapsed();
        figure(
            "authority revoked",
            &format!("{what}: the last is closed {took:.1?} after the push"),
        );
    }
    assert!(pushed.elapsed() < WITHIN);
    // The robot and the caller have SVIDs of the new authority, the broker has not.
    caller.robots_reachable(&["g"]).await;
    assert!(!caller.robot("m").await.unwrap().reachable);
}

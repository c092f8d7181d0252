//! Missions while SVIDs that live for 10 s rotate.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use portarium_gateway::dev::robot::{ExecutionLog, RobotConfig, mqtt::StatusTopics};
use portarium_tests::{
    Caller, Config, Fate, GatewayProcess, Identities, Mosquitto, Proxy, Pushes, Watch, fates,
    figure, grpc_robot, hints, init, long, metric, mission, mqtt_robot, on_spire, quantile, scaled,
    spread,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::{interval, sleep};

/// How often the embedded authority renews.
const ROTATION: Duration = Duration::from_secs(5);

/// How often SPIRE's agent does, whose SVIDs are backdated by so much that they are due at once.
const ROTATION_OF_SPIRE: Duration = Duration::from_secs(1);

/// How long SVIDs live.
const LIFE: Duration = Duration::from_secs(10);

/// The robots: one on the status topic that all share, one on its own, one that speaks gRPC.
const ROBOTS: [&str; 3] = ["m-shared", "m-own", "g"];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn missions_go_on_while_svids_rotate_and_no_connection_outlives_its_certificates() {
    init();
    let (rotation, rotations) = match (on_spire(), long()) {
        (false, _) => (ROTATION, scaled(2)),
        (true, false) => (ROTATION_OF_SPIRE, 20),
        (true, true) => (ROTATION_OF_SPIRE, 500),
    };
    let missions = scaled(100);
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let identities = Identities::start(dir, &ROBOTS).await;
    let broker = Mosquitto::rotating(dir, &identities).await;
    let log = ExecutionLog::in_memory();
    let robot = |id: &str| RobotConfig::new(id.parse().unwrap());
    let [shared, own, g] = ROBOTS.map(robot);
    let _shared = mqtt_robot(&identities, broker.port, StatusTopics::Shared, shared, &log).await;
    let _own = mqtt_robot(&identities, broker.port, StatusTopics::Own, own, &log).await;
    let g = grpc_robot(&identities, g, &log).await;

    // What connects, where to, and who is on the other end.
    let gateway_id = identities.manager(hints::GATEWAY).await;
    let between = async |port, other: &str| {
        let ends = [gateway_id.clone(), identities.manager(other).await];
        Proxy::start(port, ends).await
    };
    let to_broker = between(broker.port, hints::BROKER).await;
    let to_robot = between(g.local_addr().port(), "g").await;
    let config = Config::new(dir, &identities)
        .broker("main", to_broker.port)
        .mqtt_robot("m-shared", "")
        .mqtt_robot("m-own", "")
        .grpc_robot("g", to_robot.port, "");
    let gateway = GatewayProcess::start(dir, &config).await;
    let from_caller = between(gateway.ports.grpc, hints::CONTROL_PLANE).await;
    let caller = Arc::new(Caller::control_plane(&identities, from_caller.port).await);
    caller.robots_reachable(&ROBOTS).await;
    let watch = Watch::start(caller.clone());

    let pushes = Pushes::start(&identities, gateway.ports.grpc).await;
    let first = gateway_id.current().unwrap().generation;
    let rotated = || {
        let now = gateway_id.current();
        now.map_or(0, |svid| svid.generation - first)
    };
    let mut names = Vec::new();
    let mut took = Vec::new();
    let time = rotation * u32::try_from(rotations).unwrap() + Duration::from_secs(3);
    let mut ticks = interval(time / u32::try_from(missions).unwrap());
    // SPIRE's agent looks for SVIDs to renew at each of its synchronizations only.
    let (began, at_most) = (Instant::now(), time * if on_spire() { 3 } else { 1 });
    while names.len() < missions || rotated() < rotations as u64 || pushes.took().len() < rotations
    {
        assert!(
            began.elapsed() < at_most + Duration::from_secs(10),
            "{} rotations in {:?}",
            rotated(),
            began.elapsed()
        );
        ticks.tick().await;
        let (name, robot) = (format!("m{:05}", names.len()), ROBOTS[names.len() % 3]);
        let asked = Instant::now();
        caller
            .accepted(&mission(robot, &name, Duration::from_millis(100)))
            .await;
        took.push(asked.elapsed());
        assert!(!caller.status(&name).await.unwrap().status.is_empty());
        names.push(name);
    }
    let missions = names.len();
    watch.ended(&names, Duration::from_secs(30)).await;
    // Time for what has to end to end.
    sleep(Duration::from_secs(1)).await;

    let rotated = rotated();
    let verdict = fates(&names, &log.entries(), &watch.all());
    figure(
        "rotation",
        &format!(
            "{missions} missions, {rotated} rotations: {}, {} calls failed, {} sent again by the client, dispatch {}",
            verdict,
            caller.failed(),
            caller.resent(),
            spread(&took)
        ),
    );
    for (name, proxy) in [
        ("gateway to broker", &to_broker),
        ("gateway to gRPC robot", &to_robot),
        ("caller to gateway", &from_caller),
    ] {
        let links = proxy.links();
        let overdue: Vec<_> = links
            .iter()
            .filter(|link| link.margin().is_none())
            .collect();
        assert!(overdue.is_empty(), "{name}: {overdue:#?}");
        let closed = links.iter().filter(|link| link.closed.is_some());
        let margin = closed.clone().filter_map(|link| link.margin()).min();
        figure(
            "rotation",
            &format!(
                "{name}: {} connections, {} ended, the closest {:.2} s before its certificates",
                links.len(),
                closed.count(),
                margin.unwrap_or_default().as_secs_f64()
            ),
        );
        // Where SVIDs come faster than connections end, not each has connections of its own.
        let fewest = rotations.min(time.as_secs() as usize / LIFE.as_secs() as usize);
        assert!(links.len() > fewest, "{name}: {}", links.len());
    }
    let took = pushes.took();
    figure(
        "rotation",
        &format!("from a push to handshakes with it: {}", spread(&took)),
    );
    assert!(quantile(&took, 0.99) <= Duration::from_millis(250));
    verdict.assert_good();
    assert_eq!(verdict.count(Fate::Done), missions, "{verdict:?}");
    assert_eq!((caller.failed(), watch.backwards()), (0, 0));
    assert!(rotated >= rotations as u64, "{rotated} rotations");
    assert!(broker.rotations() >= rotations as u64);
    let unknown = metric(
        gateway.ports.admin,
        "portarium_gateway_missions_unknown_outcome",
        "",
    )
    .await;
    assert!(unknown < 0.5, "{unknown}");
}

//! Every metric is there, and moves.

use crate::common::{
    LIMIT, World, assert_contains, id, mission, parameters, stop, until,
    world::{http_get, sum},
};
use portarium_gateway::dev::{
    broker::client_id_prefix,
    hints::{BROKER, CONTROL_PLANE, OPERATOR, ROBOT},
    robot::{
        Behaviour, ExecutionLog, RobotConfig,
        mqtt::{MqttRobotConfig, MqttRobots},
    },
};
use portarium_identity::{PeerPolicy, authority::MintSpec};
use portarium_protocols::grpc::pb::{self, DispatchStatus};
use std::time::{Duration, Instant};

/// A robot that does what it is told and never says a word.
const GHOST: &str = r#"
[[robots]]
id = "ghost"
adapter = "mqtt"
broker = "embedded"
tenant = "demo"
actions = ["dock"]
deliver_within = "1s"
"#;

async fn ghost(world: &World) -> MqttRobots {
    let config = world.config();
    let broker = config
        .split("[mqtt.embedded]\naddress = \"localhost:")
        .nth(1);
    let port = broker.unwrap().split('"').next().unwrap().parse().unwrap();
    let identity = world.identity(ROBOT).await;
    let client_id = client_id_prefix(&identity.ready().await.spiffe_id) + "#ghost";
    let broker = PeerPolicy::new([id(BROKER).parse().unwrap()]);
    let config = MqttRobotConfig {
        tls: Some(identity.client_tls(broker, &[])),
        ..MqttRobotConfig::new("localhost", port, &client_id, "demo".parse().unwrap())
    };
    let ghost = RobotConfig::new("ghost".parse().unwrap());
    let robots = MqttRobots::start(config, vec![ghost], &ExecutionLog::in_memory());
    robots.robots()[0].set_behaviour(Behaviour::NeverAnswer);
    robots.ready().await;
    robots
}

/// Metric, labels: each has to be on the page, and to have grown or changed after the work below.
const MOVES: &[(&str, &[&str])] = &[
    ("svid_time_to_expiry_seconds", &[]),
    ("svid_rotations_total", &[]),
    ("svid_generation", &[]),
    ("handshakes_total", &["side=\"server\"", "result=\"ok\""]),
    (
        "handshakes_total",
        &["side=\"server\"", "result=\"not_admitted\""],
    ),
    (
        "handshakes_total",
        &["side=\"server\"", "result=\"no_certificate\""],
    ),
    (
        "mission_transitions_total",
        &["adapter=\"mqtt\"", "status=\"Succeeded\""],
    ),
    (
        "mission_transitions_total",
        &["adapter=\"grpc\"", "status=\"Executing\""],
    ),
    (
        "missions_open",
        &["adapter=\"grpc\"", "status=\"Executing\""],
    ),
    ("missions_unknown_outcome", &[]),
    ("dispatches_total", &["status=\"DISPATCHED\""]),
    ("dispatches_total", &["status=\"REJECTED\""]),
    ("dispatch_duration_seconds_count", &[]),
    ("dispatch_duration_seconds_sum", &[]),
    ("stop_latency_seconds_count", &[]),
    ("stop_latency_seconds_sum", &[]),
    ("journal_commit_duration_seconds_count", &[]),
    ("journal_commit_events_sum", &[]),
    ("audit_lines_total", &[]),
    ("queue_depth", &["queue=\"open\""]),
    ("queue_depth", &["queue=\"queued\""]),
    ("grpc_connections", &[]),
    ("grpc_connections_accepted_total", &[]),
    // Rotated just now: connections are not renewed before half of their time is over.
    (
        "adapter_svid_generation_lag",
        &["adapter=\"mqtt.embedded\""],
    ),
    ("adapter_svid_generation_lag", &["adapter=\"grpc\""]),
];

/// On the page, whether they move or not.
const STAYS: &[&str] = &[
    "build_info",
    "identity_state",
    "svid_renewal_overdue",
    "adapter_connected",
    "adapter_svid_generation",
    "grpc_connections_turned_away_total",
    "robots",
    "audit_head_info",
    "audit_lines_dropped_total",
    "audit_lines_suppressed_total",
    "audit_write_errors_total",
    "workload_api_reconnects_total",
];

#[tokio::test]
async fn every_metric_is_there_and_moves() {
    let world = World::new(Duration::from_secs(3600)).await;
    world.write(&(world.config() + GHOST));
    let ghost = ghost(&world).await;
    let _gateway = world.serve().await;
    let before = page(&world).await;
    let value = |page: &str, (name, labels): (&str, &[&str])| {
        sum(page, &format!("portarium_gateway_{name}"), labels)
    };

    let mut client = world.client(CONTROL_PLANE).await;
    let _another = [world.client(OPERATOR).await, world.client(OPERATOR).await];
    let short = mission("sim-mqtt", "dock");
    let mut long = mission("sim-grpc", "navigate_to");
    long.parameters = parameters(&[("duration", "60")]);
    let mut waits = mission("sim-grpc", "dock");
    waits.parameters = parameters(&[("duration", "60")]);
    let wrong = mission("sim-mqtt", "weld");
    let lost = mission("ghost", "dock");
    for request in [
        short,
        stop("sim-mqtt", "robot:stop"),
        long,
        waits,
        lost,
        wrong.clone(),
    ] {
        let robot = request.robot_id.clone();
        let answer = client
            .calls
            .dispatch_mission(request.clone())
            .await
            .unwrap()
            .into_inner();
        let expected = match request.mission_id == wrong.mission_id {
            true => DispatchStatus::Rejected,
            false => DispatchStatus::Dispatched,
        };
        assert_eq!(answer.status(), expected, "{robot}: {answer:?}");
        until("it began", || async {
            let ended = || async { value(&page(&world).await, MOVES[6]) };
            (robot != "sim-mqtt" || ended().await >= 1.0).then_some(())
        })
        .await;
    }
    assert!(world.show(None).await.is_err());
    let spec = MintSpec::svid(id("stranger"), LIMIT);
    let stranger = world.stage.authority.mint(&spec).unwrap();
    assert!(world.show(Some(&stranger)).await.is_err());
    world.stage.authority.rotate();

    let mut still: Vec<_> = MOVES.to_vec();
    let deadline = Instant::now() + LIMIT;
    while !still.is_empty() && Instant::now() < deadline {
        let after = page(&world).await;
        still.retain(|metric| {
            assert_contains(&after, metric.0);
            (value(&after, *metric) - value(&before, *metric)).abs() < f64::EPSILON
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(
        still.is_empty(),
        "these did not move: {still:?}\n{}",
        page(&world).await
    );
    for name in STAYS {
        assert_contains(&before, &format!("portarium_gateway_{name}"));
    }
    println!(
        "FIGURE operations: {} metrics moved, {} more are there",
        MOVES.len(),
        STAYS.len()
    );
    let list = client
        .calls
        .list_robots(pb::ListRobotsRequest::default())
        .await;
    assert_eq!(list.unwrap().into_inner().robots.len(), 3);
    ghost.stop().await;
}

async fn page(world: &World) -> String {
    until("metrics", || http_get(world.admin, "/metrics"))
        .await
        .1
}

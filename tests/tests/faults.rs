//! Brokers and robots that die, and a gateway that is told to end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use portarium_gateway::dev::robot::{ExecutionLog, LogEvent, RobotConfig, mqtt::StatusTopics};
use portarium_protocols::grpc::pb::StopState;
use portarium_tests::{
    Caller, Config, Fate, GatewayProcess, House, INSISTENCE, Identities, Load, Mosquitto, Operator,
    Proxy, SimRobot, Watch, fates, figure, free_port, happened, hints, init, journal, mission,
    mqtt_robot, scaled, stop, until,
};
use rustix::process::Signal;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::sleep;

const ROBOTS: [&str; 2] = ["m", "g"];
const SHORT: Duration = Duration::from_millis(40);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_broker_that_dies_and_forgets_everything_costs_no_mission() {
    let house = House::start().await;
    let operator = Caller::with(&house.identities, hints::OPERATOR, house.gateway.ports.grpc).await;
    let operator = Operator::start(operator, &ROBOTS, &house.log);
    let kills = scaled(5);
    let mut load = Load::start(&house.caller, &ROBOTS, SHORT);
    for _ in 0..kills {
        sleep(Duration::from_millis(fastrand::u64(500..1_500))).await;
        house.broker.kill();
        sleep(Duration::from_millis(fastrand::u64(..1_000))).await;
        house.broker.restart().await;
    }
    sleep(Duration::from_secs(1)).await;
    let names: Vec<_> = load.finish().await.into_keys().collect();
    house.watch.ended(&names, INSISTENCE).await;
    load.repeat_all().await;
    let verdict = fates(&names, &house.log.entries(), &house.watch.all());
    let unknown = operator.resolved();
    figure(
        "broker",
        &format!(
            "killed and restarted, kills that cost a mission {}: {} missions acknowledged: {}; of unknown outcome {}; {} sent again; {} calls failed",
            happened(verdict.bad.len(), kills),
            names.len(),
            verdict,
            unknown.len(),
            house
                .gateway
                .output()
                .matches("sent again under the same key")
                .count(),
            house.caller.failed(),
        ),
    );
    verdict.assert_good();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert_eq!(verdict.count(Fate::Done), names.len(), "{verdict:?}");
    // The gateway was there all the time, and so was the other robot.
    assert_eq!(house.caller.failed(), 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_stop_that_a_broker_took_and_lost_is_sent_when_the_robot_returns() {
    init();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let identities = Identities::start(dir, &["m"]).await;
    let broker = Mosquitto::start(dir, &identities).await;
    let ends = [
        identities.manager("m").await,
        identities.manager(hints::BROKER).await,
    ];
    let network = Proxy::start(broker.port, ends).await;
    let log = ExecutionLog::in_memory();
    let robot = RobotConfig::new("m".parse().unwrap());
    let robot = mqtt_robot(&identities, network.port, StatusTopics::Own, robot, &log).await;
    let config = Config::new(dir, &identities)
        .broker("main", broker.port)
        .mqtt_robot("m", "");
    let gateway = GatewayProcess::start(dir, &config).await;
    let caller = Arc::new(Caller::control_plane(&identities, gateway.ports.grpc).await);
    caller.robots_reachable(&["m"]).await;
    let watch = Watch::start(caller.clone());
    caller
        .accepted(&mission("m", "journey", Duration::from_secs(60)))
        .await;
    watch.reaches("journey", "Executing").await;

    network.freeze();
    let answer = caller.dispatch(&stop("m", "lost")).await.unwrap();
    let outcome = answer.stop.unwrap();
    assert_eq!(outcome.state(), StopState::Requested, "{outcome:?}");
    watch.reaches("lost", "Dispatched").await;
    broker.kill();
    broker.restart().await;
    sleep(Duration::from_millis(500)).await;
    assert!(robot.robots()[0].is_moving());
    network.thaw();
    let back = Instant::now();
    watch.reaches("lost", "Succeeded").await;
    watch.reaches("journey", "Cancelled").await;
    figure(
        "stop",
        &format!(
            "taken and lost by a broker: obeyed {:.2} s after the network's return",
            back.elapsed().as_secs_f64()
        ),
    );
    assert!(!robot.robots()[0].is_moving());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_robot_that_dies_in_the_middle_of_a_mission_is_not_said_to_have_done_it() {
    init();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let identities = Identities::start(dir, &ROBOTS).await;
    let broker = Mosquitto::start(dir, &identities).await;
    let port = free_port();
    let more = ["--idempotent", "--own-topics"];
    let m = SimRobot::mqtt(dir, &identities, broker.port, "m", &more).await;
    let g = SimRobot::grpc(dir, &identities, port, "g", &more[..1]).await;
    let lines = "redelivery = \"idempotent\"\ndeliver_within = \"3s\"";
    let config = Config::new(dir, &identities)
        .broker("main", broker.port)
        .mqtt_robot("m", lines)
        .grpc_robot("g", port, lines);
    let gateway = GatewayProcess::start(dir, &config).await;
    let caller = Arc::new(Caller::control_plane(&identities, gateway.ports.grpc).await);
    let operator = Caller::with(&identities, hints::OPERATOR, gateway.ports.grpc).await;
    caller.robots_reachable(&ROBOTS).await;
    let watch = Watch::start(caller.clone());
    for (robot, mut process) in [("m", m), ("g", g)] {
        let lost = format!("lost-{robot}");
        let long = Duration::from_secs(60);
        caller.accepted(&mission(robot, &lost, long)).await;
        watch.reaches(&lost, "Executing").await;
        process.kill();
        until("the robot out of reach", async || {
            caller.robot(robot).await.is_ok_and(|seen| !seen.reachable)
        })
        .await;
        assert_eq!(watch.last(&lost).unwrap().status, "Executing");
        process.restart().await;
        caller.robots_reachable(&[robot]).await;

        // It has forgotten its mission. A robot that can be asked says so; of another one an
        // operator finds out by cancelling in vain.
        if robot == "m" {
            assert!(caller.cancel(&lost).await.unwrap().accepted);
        }
        until("the outcome to be unknown", async || {
            watch.last(&lost).is_some_and(|last| last.outcome_unknown)
        })
        .await;
        let last = watch.last(&lost).unwrap();
        figure(
            "robot",
            &format!("{robot} killed in a mission: {}", last.detail),
        );
        let next = mission(robot, &format!("next-{robot}"), SHORT);
        let refused = caller.dispatch(&next).await.unwrap();
        assert_eq!(refused.reject_reason, "InvalidState", "{refused:?}");
        assert!(operator.resolve(&lost, "Failed").await.unwrap().accepted);
        caller.insist(&next, INSISTENCE).await;
        watch.reaches(&next.mission_id, "Succeeded").await;
        let did = process.log();
        let starts = did
            .iter()
            .filter(|entry| entry.event == LogEvent::MotionStart);
        let moved: Vec<_> = starts.map(|entry| entry.mission.to_string()).collect();
        assert_eq!(moved, [lost, next.mission_id]);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_gateway_that_is_told_to_end_drains_and_goes_on_where_it_was() {
    let mut house = House::start().await;
    let mut load = Load::start(&house.caller, &ROBOTS, Duration::from_millis(150));
    let mut took = Vec::new();
    for signal in [Signal::INT, Signal::TERM, Signal::INT] {
        sleep(Duration::from_millis(700)).await;
        let told = Instant::now();
        house.gateway.signal(signal);
        let status = house.gateway.wait(Duration::from_secs(12)).await;
        took.push(told.elapsed());
        assert_eq!(status.code(), Some(0), "{status}");
        // What had not ended stands in the journal as what it was.
        let rows = journal(&house.gateway.journal_file());
        assert!(
            rows.values().any(|row| row.status < 4),
            "nothing was under way"
        );
        house.gateway.restart().await;
    }
    sleep(Duration::from_millis(500)).await;
    let names: Vec<_> = load.finish().await.into_keys().collect();
    house.watch.ended(&names, INSISTENCE).await;
    load.repeat_all().await;
    let verdict = fates(&names, &house.log.entries(), &house.watch.all());
    figure(
        "end",
        &format!(
            "told to end in the middle of missions 3 times, ended after {took:.1?} with exit code 0: {} missions acknowledged: {}",
            names.len(),
            verdict
        ),
    );
    verdict.assert_good();
    assert_eq!(verdict.count(Fate::Done), names.len(), "{verdict:?}");
    assert_eq!(house.watch.backwards(), 0);
}

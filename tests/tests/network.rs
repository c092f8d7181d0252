//! Networks that lose packets, fall silent one way or both, are cut, or are slow, between gateway,
//! broker, robots and callers. The namespaces are the test's own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use portarium_gateway::dev::robot::{ExecutionLog, RobotConfig, mqtt::StatusTopics};
use portarium_protocols::grpc::pb::DispatchStatus;
use portarium_tests::{
    Caller, Config, Fate, Fault, GatewayProcess, INSISTENCE, Identities, Load, Mosquitto, Network,
    Operator, SimRobot, SlowLine, Watch, assert_prompt, fates, figure, free_port, grpc_robot,
    hints, in_a_network_of_its_own, init, mission, mqtt_robot, quantile, scaled, spread, stop,
};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::sleep;

const ROBOTS: [&str; 2] = ["m", "g"];
const SHORT: Duration = Duration::from_millis(40);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto, nft and root: run by tests/run"]
async fn networks_that_lose_fall_silent_or_are_cut_cost_no_mission_and_hold_up_no_stop() {
    let test = "networks_that_lose_fall_silent_or_are_cut_cost_no_mission_and_hold_up_no_stop";
    if !in_a_network_of_its_own(test) {
        return;
    }
    init();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut network = Network::new();
    let (with_broker, with_robot) = (network.place(), network.place());
    let with_caller = network.calling_place();
    let identities = Identities::start(dir, &ROBOTS).await;
    let (broker_host, robot_host) = (with_broker.host.clone(), with_robot.host.clone());
    let broker = Mosquitto::start_at(with_broker, dir, &identities).await;
    let port = free_port();
    let address = format!("{broker_host}:{}", broker.port);
    let more = ["--idempotent", "--queue", "--own-topics"];
    let m = SimRobot::mqtt_at(with_caller, dir, &identities, &address, "m", &more).await;
    let g = SimRobot::grpc_at(with_robot, dir, &identities, port, "g", &more[..2]).await;
    let lines = "redelivery = \"idempotent\"";
    let config = Config::new(dir, &identities)
        .broker_at("main", &broker_host, broker.port)
        .mqtt_robot("m", lines)
        .grpc_robot_at("g", &robot_host, port, lines);
    let gateway = GatewayProcess::start(dir, &config).await;
    let north = gateway.ports.grpc;
    let caller = Arc::new(Caller::control_plane(&identities, north).await);
    caller.robots_reachable(&ROBOTS).await;
    let watch = Watch::start(caller.clone());

    let mut load = Load::start(&caller, &ROBOTS, SHORT);
    let mut told = Vec::new();
    for _ in 0..scaled(1) {
        for fault in [Fault::Lossy, Fault::Deaf, Fault::Mute, Fault::Silent] {
            let time = Duration::from_millis(fastrand::u64(3_000..8_000));
            network.peers_are(Some(fault));
            sleep(time).await;
            // Between robot and broker as well.
            let lost = network.lost_between_peers();
            assert!(lost > 0, "{fault:?}");
            network.peers_are(None);
            let back = Instant::now();
            caller.robots_reachable(&ROBOTS).await;
            told.push(format!(
                "peers {fault:?} {:.1} s ({lost} packets between them lost), back after {:.1} s",
                time.as_secs_f64(),
                back.elapsed().as_secs_f64()
            ));
            network.callers_are(north, Some(fault));
            let time = Duration::from_millis(fastrand::u64(1_000..4_000));
            sleep(time).await;
            network.callers_are(north, None);
            told.push(format!("callers {fault:?} {:.1} s", time.as_secs_f64()));
            sleep(Duration::from_millis(300)).await;
        }
        network.plug(false);
        sleep(Duration::from_millis(fastrand::u64(2_000..6_000))).await;
        network.plug(true);
        let back = Instant::now();
        caller.robots_reachable(&ROBOTS).await;
        told.push(format!(
            "peers cut, back after {:.1} s",
            back.elapsed().as_secs_f64()
        ));
    }
    sleep(Duration::from_millis(500)).await;
    let mut names: Vec<_> = load.finish().await.into_keys().collect();
    watch.ended(&names, INSISTENCE).await;

    // Stops while the way to the robots is lossy, and while it is silent.
    for fault in [Fault::Lossy, Fault::Deaf] {
        caller.robots_reachable(&ROBOTS).await;
        for robot in ROBOTS {
            let running = format!("{robot}-{fault:?}-running");
            let long = Duration::from_secs(60);
            caller
                .insist(&mission(robot, &running, long), INSISTENCE)
                .await;
            watch.reaches(&running, "Executing").await;
            names.push(running);
        }
        network.peers_are(Some(fault));
        let mut took = Vec::new();
        for n in 0..10 {
            for robot in ROBOTS {
                let asked = Instant::now();
                let request = stop(robot, &format!("{fault:?}-stop-{robot}-{n}"));
                let answer = caller.dispatch(&request).await.unwrap();
                took.push(asked.elapsed());
                assert_eq!(answer.status(), DispatchStatus::Dispatched, "{answer:?}");
            }
        }
        if fault == Fault::Deaf {
            sleep(Duration::from_secs(2)).await;
            network.peers_are(None);
        }
        let back = Instant::now();
        for robot in ROBOTS {
            watch
                .reaches(&format!("{robot}-{fault:?}-running"), "Cancelled")
                .await;
        }
        let obeyed = back.elapsed();
        network.peers_are(None);
        figure(
            "network",
            &format!(
                "stops to robots behind a network that is {fault:?}: answered {}; obeyed {:.2} s after {}",
                spread(&took),
                obeyed.as_secs_f64(),
                if fault == Fault::Deaf {
                    "its return"
                } else {
                    "the last"
                },
            ),
        );
        assert_prompt(&took);
        assert!(obeyed < Duration::from_secs(10), "{obeyed:?}");
    }
    let verdict = fates(&names, &[m.log(), g.log()].concat(), &watch.all());
    figure(
        "network",
        &format!(
            "{}: {} missions acknowledged: {}",
            told.join(", "),
            names.len(),
            verdict
        ),
    );
    verdict.assert_good();
    assert_eq!(verdict.count(Fate::Unknown), 0, "{verdict:?}");
    assert_eq!(verdict.count(Fate::Done) + 4, names.len(), "{verdict:?}");
    assert_eq!(watch.backwards(), 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_network_of_200_ms_costs_no_mission_and_holds_up_no_stop_on_this_side_of_it() {
    init();
    let slow = Duration::from_millis(200);
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let identities = Identities::start(dir, &ROBOTS).await;
    let broker = Mosquitto::start(dir, &identities).await;
    let log = ExecutionLog::in_memory();
    let robot = |id: &str| RobotConfig::new(id.parse().unwrap());
    let of_m = SlowLine::start(broker.port, slow).await;
    let m = mqtt_robot(&identities, of_m.port, StatusTopics::Own, robot("m"), &log).await;
    let g = grpc_robot(&identities, robot("g"), &log).await;
    let to_broker = SlowLine::start(broker.port, slow).await;
    let to_robot = SlowLine::start(g.local_addr().port(), slow).await;
    let lines = "redelivery = \"idempotent\"";
    let config = Config::new(dir, &identities)
        .broker("main", to_broker.port)
        .mqtt_robot("m", lines)
        .grpc_robot("g", to_robot.port, lines);
    let gateway = GatewayProcess::start(dir, &config).await;
    let from_caller = SlowLine::start(gateway.ports.grpc, slow).await;
    let far = Arc::new(Caller::control_plane(&identities, from_caller.port).await);
    let near = Arc::new(Caller::control_plane(&identities, gateway.ports.grpc).await);
    far.robots_reachable(&ROBOTS).await;
    let watch = Watch::start(near.clone());
    let operator = Caller::with(&identities, hints::OPERATOR, gateway.ports.grpc).await;
    let operator = Operator::start(operator, &ROBOTS, &log);
    let mut load = Load::start(&far, &ROBOTS, SHORT);
    sleep(Duration::from_secs(u64::try_from(scaled(6)).unwrap())).await;
    let names: Vec<_> = load.finish().await.into_keys().collect();
    watch.ended(&names, INSISTENCE).await;

    let (mut took, mut stood) = (Vec::new(), BTreeMap::<_, Vec<_>>::new());
    for n in 0..scaled(5) {
        for robot in ROBOTS {
            let running = format!("{robot}-running-{n}");
            let long = Duration::from_secs(60);
            near.insist(&mission(robot, &running, long), INSISTENCE)
                .await;
            watch.reaches(&running, "Executing").await;
            let asked = Instant::now();
            let request = stop(robot, &format!("stop-{robot}-{n}"));
            near.dispatch(&request).await.unwrap();
            took.push(asked.elapsed());
            let body = if robot == "m" {
                &m.robots()[0]
            } else {
                &g.robots()[0]
            };
            while body.is_moving() {
                sleep(Duration::from_millis(1)).await;
            }
            stood.entry(robot).or_default().push(asked.elapsed());
            watch.reaches(&running, "Cancelled").await;
        }
    }
    let verdict = fates(&names, &log.entries(), &watch.all());
    figure(
        "network",
        &format!(
            "200 ms each way between gateway, broker, robots and callers: {} missions acknowledged: {}, {} calls failed; stops answered {}; g stood {}, m behind the broker {}",
            names.len(),
            verdict,
            far.failed(),
            spread(&took),
            spread(&stood["g"]),
            spread(&stood["m"])
        ),
    );
    verdict.assert_good();
    assert_eq!(verdict.count(Fate::Done), names.len(), "{verdict:?}");
    assert!(operator.resolved().is_empty());
    assert_prompt(&took);
    // One way, or two with a broker amid them, the robot's own 20 ms, and what a shared machine adds.
    for (robot, ways) in [("g", 1), ("m", 2)] {
        let median = quantile(&stood[robot], 0.5);
        assert!(median > ways * slow, "{robot}: {}", spread(&stood[robot]));
        assert!(
            median < (ways + 1) * slow,
            "{robot}: {}",
            spread(&stood[robot])
        );
    }
}

//! Processes that are halted and go on, and an agent that restarts, hangs or refuses.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use portarium_protocols::grpc::pb::DispatchStatus;
use portarium_tests::{
    Agent, Caller, Config, Fate, GatewayProcess, House, INSISTENCE, Identities, Load, Mosquitto,
    SimRobot, Watch, fates, figure, free_port, init, metric, mission, scaled, status_of, stop,
    until, until_within,
};
use rustix::process::Signal;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::sleep;

const ROBOTS: [&str; 2] = ["m", "g"];
const SHORT: Duration = Duration::from_millis(40);
/// How long an SVID lives, and how old it is when it is renewed.
const LIFE: Duration = Duration::from_secs(10);
const RENEWED: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn what_is_halted_and_goes_on_costs_no_mission_and_gets_the_stop_that_it_missed() {
    init();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let identities = Identities::start(dir, &ROBOTS).await;
    let broker = Mosquitto::start(dir, &identities).await;
    let port = free_port();
    let more = ["--idempotent", "--queue", "--own-topics"];
    let m = SimRobot::mqtt(dir, &identities, broker.port, "m", &more).await;
    let g = SimRobot::grpc(dir, &identities, port, "g", &more[..2]).await;
    let lines = "redelivery = \"idempotent\"";
    let config = Config::new(dir, &identities)
        .broker("main", broker.port)
        .mqtt_robot("m", lines)
        .grpc_robot("g", port, lines);
    let gateway = GatewayProcess::start(dir, &config).await;
    let caller = Arc::new(Caller::control_plane(&identities, gateway.ports.grpc).await);
    caller.robots_reachable(&ROBOTS).await;
    let watch = Watch::start(caller.clone());

    let signal = |what: &str, signal| match what {
        "gateway" => gateway.signal(signal),
        "broker" => broker.signal(signal),
        "m" => m.signal(signal),
        _ => g.signal(signal),
    };
    let mut load = Load::start(&caller, &ROBOTS, SHORT);
    let rounds = scaled(1);
    let mut halted = Vec::new();
    for round in 0..rounds {
        for what in ["gateway", "broker", "m", "g"] {
            sleep(Duration::from_millis(fastrand::u64(200..700))).await;
            // Also for longer than an SVID lives.
            let time = match (round + what.len()) % 3 {
                0 => LIFE + Duration::from_secs(1),
                _ => Duration::from_millis(fastrand::u64(200..4_000)),
            };
            signal(what, Signal::STOP);
            sleep(time).await;
            signal(what, Signal::CONT);
            halted.push(format!("{what} {:.1} s", time.as_secs_f64()));
            caller.robots_reachable(&ROBOTS).await;
        }
    }
    let mut names: Vec<_> = load.finish().await.into_keys().collect();
    watch.ended(&names, INSISTENCE).await;

    // A robot that is halted in a mission is told to stop meanwhile.
    for (robot, process) in [("m", &m), ("g", &g)] {
        let running = format!("{robot}-running");
        caller
            .insist(
                &mission(robot, &running, Duration::from_secs(60)),
                INSISTENCE,
            )
            .await;
        watch.reaches(&running, "Executing").await;
        process.signal(Signal::STOP);
        sleep(Duration::from_millis(500)).await;
        let asked = Instant::now();
        let answer = caller
            .dispatch(&stop(robot, &format!("stop-{robot}")))
            .await
            .unwrap();
        let took = asked.elapsed();
        assert_eq!(answer.status(), DispatchStatus::Dispatched, "{answer:?}");
        sleep(Duration::from_secs(2)).await;
        process.signal(Signal::CONT);
        let back = Instant::now();
        watch.reaches(&running, "Cancelled").await;
        figure(
            "hang",
            &format!(
                "stop of {robot} while it was halted: answered after {:.1} ms, obeyed {:.2} s after it went on",
                took.as_secs_f64() * 1e3,
                back.elapsed().as_secs_f64()
            ),
        );
        assert!(took < Duration::from_secs(1), "{took:?}");
        names.push(running);
    }
    let verdict = fates(&names, &[m.log(), g.log()].concat(), &watch.all());
    figure(
        "hang",
        &format!(
            "halted: {}: {} missions acknowledged: {}",
            halted.join(", "),
            names.len(),
            verdict
        ),
    );
    verdict.assert_good();
    assert_eq!(verdict.count(Fate::Done) + 2, names.len(), "{verdict:?}");
    assert_eq!(watch.backwards(), 0);
}

async fn generation(house: &House) -> f64 {
    metric(
        house.gateway.ports.admin,
        "portarium_gateway_svid_generation",
        "",
    )
    .await
}

/// Waits until the gateway has just got an SVID.
async fn renewed(house: &House) {
    let before = generation(house).await;
    until("a renewal", async || generation(house).await > before + 0.5).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn an_agent_that_is_gone_for_longer_than_half_of_an_svids_life_costs_no_call() {
    let dir = tempfile::tempdir().unwrap();
    // The socket is made once the authority is there; the gateway waits for it.
    let mut agent = Agent::start(dir.path());
    let house = House::behind(agent.prefix(), dir).await;
    let mut load = Load::start(&house.caller, &ROBOTS, SHORT);
    let away = RENEWED + Duration::from_millis(1_500);
    let mut told = Vec::new();
    for what in ["hangs", "refuses", "vanishes", "restarts"] {
        renewed(&house).await;
        let before = generation(&house).await;
        match what {
            "hangs" => agent.hang(),
            "refuses" => agent.refuse(),
            "vanishes" => agent.vanish(),
            _ => agent.replace(),
        }
        if what != "restarts" {
            sleep(away).await;
            let same = (generation(&house).await - before).abs() < 0.5;
            assert!(same, "renewed although the agent {what}");
            assert_eq!(status_of(house.gateway.ports.health).await.0, 200);
        }
        let back = Instant::now();
        match what {
            "hangs" => agent.go_on(),
            "restarts" => {}
            _ => agent.replace(),
        }
        let patience = if what == "restarts" {
            LIFE
        } else {
            Duration::from_secs(3)
        };
        until_within(patience, "a renewal", async || {
            generation(&house).await > before + 0.5
        })
        .await;
        told.push(format!("{what}: {:.2} s", back.elapsed().as_secs_f64()));
    }
    assert_eq!(house.caller.failed(), 0);

    // For longer than the SVID lives: not ready, and all is well again by itself.
    agent.refuse();
    // The broker's connection ends shortly before, which is a reason too.
    until_within(
        LIFE + Duration::from_secs(2),
        "not to be ready since the SVID has expired",
        async || {
            let (status, why) = status_of(house.gateway.ports.health).await;
            status == 503 && why.contains("the SVID has expired")
        },
    )
    .await;
    sleep(Duration::from_secs(2)).await;
    agent.replace();
    let back = Instant::now();
    house.gateway.ready().await;
    house.caller.robots_reachable(&ROBOTS).await;
    told.push(format!(
        "gone until the SVID had ended: ready and robots in reach after {:.2} s",
        back.elapsed().as_secs_f64()
    ));
    sleep(Duration::from_millis(500)).await;
    let names: Vec<_> = load.finish().await.into_keys().collect();
    house.watch.ended(&names, INSISTENCE).await;
    let verdict = fates(&names, &house.log.entries(), &house.watch.all());
    figure(
        "agent",
        &format!(
            "away for {away:?} of SVIDs of {LIFE:?}; from its return to a new SVID: {}; {} missions acknowledged: {}",
            told.join(", "),
            names.len(),
            verdict
        ),
    );
    verdict.assert_good();
    assert_eq!(verdict.count(Fate::Done), names.len(), "{verdict:?}");
}

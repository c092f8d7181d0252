//! A wall clock that is stepped by two hours, or wrong from the start, below the gateway: no new handshake, not ready with an
//! alarm, and connections that stand are ended by a clock that is not stepped.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use portarium_tests::{
    Caller, Config, GatewayProcess, House, INSISTENCE, Identities, Shim, figure, init, metric,
    mission, status_of, stop, until, until_within,
};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

const TWO_HOURS: i64 = 7_200;
const GENERATION: &str = "portarium_gateway_svid_generation";
const SHORT: Duration = Duration::from_millis(20);
/// An SVID of the test, and the time to see it.
const SVID: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_clock_that_is_stepped_is_not_believed_and_ends_no_connection_before_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let shim = Shim::build(dir.path());
    let prefix = shim.prefix(&dir.path().join("journal.sqlite"));
    let house = House::behind(prefix, dir).await;
    let ports = house.gateway.ports;
    for (round, by) in [TWO_HOURS, -TWO_HOURS].into_iter().enumerate() {
        let handshakes = async || {
            let name = "portarium_gateway_handshakes_total";
            metric(ports.admin, name, "result=\"ok\"").await
        };
        // A connection on SVIDs that have just come: it outlives their next renewal.
        let generation = async || metric(ports.admin, GENERATION, "").await;
        let first = generation().await;
        until("a renewal", async || generation().await > first + 0.5).await;
        let caller = Caller::control_plane(&house.identities, ports.grpc).await;
        sleep(SVID / 2 - Duration::from_secs(1)).await;
        shim.clock_is_off_by(by);
        let stepped = Instant::now();
        until("the alarm", async || {
            let (status, why) = status_of(ports.health).await;
            status == 503 && why.contains("the wall clock is in doubt")
        })
        .await;
        let noticed = stepped.elapsed();
        let before = handshakes().await;

        // Whoever is connected is served, and so are the robots that are.
        let name = format!("after-step-{round}");
        caller.insist(&mission("g", &name, SHORT), INSISTENCE).await;
        let answer = caller.dispatch(&stop("m", &format!("stop-{round}"))).await;
        assert!(answer.is_ok(), "{answer:?}");
        let newcomer = Caller::control_plane(&house.identities, ports.grpc);
        assert!(
            timeout(Duration::from_secs(2), newcomer).await.is_err(),
            "a handshake on a doubtful clock"
        );

        // The renewal has come meanwhile, and whoever is connected was looked at again.
        assert!(generation().await > first + 1.5);
        assert!(caller.robot("g").await.is_ok());
        assert_eq!(caller.failed(), 0, "a connection was ended");

        // Without new ones, all connections come to their end, and by no clock that was stepped.
        until_within(
            SVID + Duration::from_secs(2),
            "the caller's end",
            async || caller.robot("g").await.is_err(),
        )
        .await;
        let ended = stepped.elapsed();
        until_within(SVID, "the robots' ends", async || {
            metric(
                ports.admin,
                "portarium_gateway_robots",
                "reachable=\"true\"",
            )
            .await
                < 0.5
        })
        .await;
        assert!((handshakes().await - before).abs() < 0.5);
        let state = metric(
            ports.admin,
            "portarium_gateway_identity_state",
            "state=\"clock_in_doubt\"",
        )
        .await;
        assert!((state - 1.0).abs() < 0.5);

        shim.clock_is_off_by(0);
        let back = Instant::now();
        house.gateway.ready().await;
        house.caller.robots_reachable(&["m", "g"]).await;
        let name = format!("set-right-{round}");
        house
            .caller
            .insist(&mission("m", &name, SHORT), INSISTENCE)
            .await;
        house.watch.reaches(&name, "Succeeded").await;
        figure(
            "clock",
            &format!(
                "stepped by {by} s: in doubt after {:.2} s, no handshake, the caller's connection ended after {:.1} s, all well again {:.2} s after it was set right",
                noticed.as_secs_f64(),
                ended.as_secs_f64(),
                back.elapsed().as_secs_f64()
            ),
        );
        assert!(noticed < Duration::from_secs(2));
    }
    let alarms = house.gateway.output();
    let alarms = alarms
        .lines()
        .filter(|line| line.contains("ERROR") && line.contains("the wall clock is in doubt"));
    assert!(alarms.count() >= 2);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by tests/run"]
async fn a_clock_that_is_wrong_from_the_start_needs_nobody_once_it_is_right() {
    init();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let identities = Identities::start(dir, &[]).await;
    let config = Config::new(dir, &identities);
    let shim = Shim::build(dir);
    let prefix = shim.prefix(&dir.join("journal.sqlite"));
    for (by, words) in [
        (-TWO_HOURS, "before the moment at which our SVID was issued"),
        (TWO_HOURS, "the SVID has expired"),
    ] {
        shim.clock_is_off_by(by);
        let gateway = GatewayProcess::launch_behind(prefix.clone(), dir, &config);
        until("not to be ready", async || {
            let (status, why) = status_of(gateway.ports.health).await;
            status == 503 && why.contains(words)
        })
        .await;
        shim.clock_is_off_by(0);
        let right = Instant::now();
        gateway.ready().await;
        figure(
            "clock",
            &format!(
                "off by {by} s from the start: ready {:.2} s after it was set right",
                right.elapsed().as_secs_f64()
            ),
        );
        let caller = Caller::control_plane(&identities, gateway.ports.grpc).await;
        assert!(caller.status("none").await.is_err());
    }
}

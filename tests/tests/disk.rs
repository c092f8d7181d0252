//! A disk that is full, read-only, slow or broken below the journal: callers are told, stops work
//! within their bound, and all goes on when the disk does.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use portarium_gateway::dev::robot::LogEvent;
use portarium_protocols::grpc::pb::DispatchStatus;
use portarium_tests::{
    Config, Errno, Fate, GatewayProcess, House, INSISTENCE, Identities, Shim, SmallDisk,
    assert_prompt, fates, figure, init, mission, scaled, spread, stop, until,
};
use std::{
    ffi::OsString,
    path::Path,
    time::{Duration, Instant},
};
use tokio::time::sleep;

const ROBOTS: [&str; 2] = ["m", "g"];
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(20);

/// How long until the robot stands still.
const STANDS: Duration = Duration::from_secs(1);

/// What a caller hears of a mission that cannot be made durable.
enum Told {
    /// At once: it was not accepted, and why.
    Refused,
    /// After a while: nothing can be said, ask again.
    Later,
}

fn journal_at(path: &Path) -> Vec<OsString> {
    let mut word = OsString::from("PORTARIUM__JOURNAL__PATH=");
    word.push(path);
    vec!["env".into(), word]
}

/// A mission under way and some that wait for each robot, then the disk goes, then it comes back.
async fn lives_through(
    what: &str,
    house: &mut House,
    told: Told,
    spoil: impl Fn(),
    heal: impl Fn(),
) {
    let mut names = Vec::new();
    let mut accept = async |robot: &str, name: String, takes| {
        house
            .caller
            .insist(&mission(robot, &name, takes), INSISTENCE)
            .await;
        names.push(name);
    };
    for robot in ROBOTS {
        for n in 0..5 {
            accept(robot, format!("{robot}-before-{n}"), SHORT).await;
        }
        accept(robot, format!("{robot}-running"), LONG).await;
        for n in 0..5 {
            accept(robot, format!("{robot}-waiting-{n}"), SHORT).await;
        }
        house
            .watch
            .reaches(&format!("{robot}-running"), "Executing")
            .await;
    }

    spoil();
    let asked = Instant::now();
    let refused = mission("m", "in-vain", SHORT);
    let answer = house.caller.dispatch(&refused).await;
    let heard = match (told, answer) {
        (Told::Refused, Ok(answer)) => {
            assert_eq!(
                answer.status(),
                DispatchStatus::GatewayUnreachable,
                "{answer:?}"
            );
            assert!(answer.message.contains("journal"), "{answer:?}");
            answer.message
        }
        // The journal's patience is as long as an SVID of the test's: either ends the call.
        (Told::Later, Err(status)) => status.message().to_owned(),
        (_, other) => panic!("{other:?}"),
    };
    let heard_after = asked.elapsed();

    let mut took = Vec::new();
    for n in 0..scaled(20) {
        for robot in ROBOTS {
            let asked = Instant::now();
            let request = stop(robot, &format!("{what}-stop-{robot}-{n}"));
            let answer = house.caller.dispatch(&request).await.unwrap();
            took.push(asked.elapsed());
            assert_eq!(answer.status(), DispatchStatus::Dispatched, "{answer:?}");
            let outcome = answer.stop.unwrap();
            assert!(!outcome.fence_durable, "on no disk");
            if n == 0 {
                until("the robot to stand still", async || {
                    !house.robot(robot).is_moving()
                })
                .await;
                assert!(asked.elapsed() < STANDS, "{:?}", asked.elapsed());
            }
        }
    }
    // Long enough for what waits to be sent, were it not for the stop.
    sleep(Duration::from_millis(500)).await;
    assert_prompt(&took);
    let moved = |name: &str| {
        let entries = house.log.entries();
        entries
            .iter()
            .any(|entry| entry.event == LogEvent::MotionStart && entry.mission.as_str() == name)
    };
    for name in names.iter().filter(|name| name.contains("waiting")) {
        assert!(!moved(name), "{name} moved its robot behind a stop");
    }

    heal();
    let back = Instant::now();
    house.caller.insist(&refused, INSISTENCE).await;
    let accepts_after = back.elapsed();
    names.push("in-vain".into());
    for robot in ROBOTS {
        let again = stop(robot, &format!("{what}-stop-{robot}-after"));
        until("a durable fence", async || {
            let answer = house.caller.dispatch(&again).await.unwrap();
            answer.stop.is_some_and(|stop| stop.fence_durable)
        })
        .await;
        let name = format!("{robot}-after");
        house
            .caller
            .insist(&mission(robot, &name, SHORT), INSISTENCE)
            .await;
        names.push(name);
    }
    house.watch.ended(&names, INSISTENCE).await;
    // What was acknowledged is there for the next one as well.
    house.gateway.kill();
    house.gateway.restart().await;
    for name in &names {
        until("an answer", async || {
            house.caller.status(name).await.is_ok()
        })
        .await;
        let status = house.caller.status(name).await.unwrap();
        let seen = house.watch.last(name).unwrap();
        assert_eq!(status.status, seen.status, "{name}");
    }
    let verdict = fates(&names, &house.log.entries(), &house.watch.all());
    figure(
        "disk",
        &format!(
            "{what}: a mission heard \"{heard}\" after {:.2} s; stops meanwhile {}; missions again {:.2} s after the disk; {} acknowledged: {}",
            heard_after.as_secs_f64(),
            spread(&took),
            accepts_after.as_secs_f64(),
            names.len(),
            verdict
        ),
    );
    verdict.assert_good();
    assert!(verdict.count(Fate::Done) >= 12, "{verdict:?}");
    assert!(accepts_after < Duration::from_secs(10), "{accepts_after:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto and root: run by tests/run"]
async fn a_full_disk_is_told_to_callers_holds_up_no_stop_and_is_over_when_there_is_room() {
    let disk = SmallDisk::new(8);
    let dir = tempfile::tempdir().unwrap();
    let prefix = journal_at(&disk.path().join("journal.sqlite"));
    let mut house = House::behind(prefix, dir).await;
    lives_through(
        "full",
        &mut house,
        Told::Refused,
        || disk.fill(),
        || disk.free(),
    )
    .await;
    let said = house.gateway.output();
    assert!(said.contains("the journal cannot be written"), "{said}");
    assert!(said.contains("the journal is written again"), "{said}");
}

async fn behind_shim() -> (House, Shim) {
    let dir = tempfile::tempdir().unwrap();
    let shim = Shim::build(dir.path());
    let prefix = shim.prefix(&dir.path().join("journal.sqlite"));
    (House::behind(prefix, dir).await, shim)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_disk_that_became_read_only_is_told_to_callers_and_holds_up_no_stop() {
    let (mut house, shim) = behind_shim().await;
    let spoil = || shim.writes_fail(Some(Errno::ReadOnly));
    let heal = || shim.writes_fail(None);
    lives_through("read-only", &mut house, Told::Refused, spoil, heal).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_disk_that_cannot_sync_lets_nothing_be_acknowledged_and_holds_up_no_stop() {
    let (mut house, shim) = behind_shim().await;
    let spoil = || shim.syncs_fail(Some(Errno::Io));
    let heal = || shim.syncs_fail(None);
    lives_through("syncs fail", &mut house, Told::Later, spoil, heal).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn commits_of_two_seconds_hold_up_no_stop_and_lose_nothing() {
    let (house, shim) = behind_shim().await;
    let slow = Duration::from_secs(2);
    let mut names = Vec::new();
    for robot in ROBOTS {
        let running = format!("{robot}-running");
        house.caller.accepted(&mission(robot, &running, LONG)).await;
        house.watch.reaches(&running, "Executing").await;
        names.push(running);
    }
    shim.syncs_take(slow);
    let mut accepted = Vec::new();
    for n in 0..3 {
        let asked = Instant::now();
        let name = format!("m-slow-{n}");
        house.caller.accepted(&mission("m", &name, SHORT)).await;
        accepted.push(asked.elapsed());
        names.push(name);
    }
    let mut took = Vec::new();
    for n in 0..scaled(20) {
        for robot in ROBOTS {
            let asked = Instant::now();
            let request = stop(robot, &format!("stop-{robot}-{n}"));
            let answer = house.caller.dispatch(&request).await.unwrap();
            took.push(asked.elapsed());
            assert_eq!(answer.status(), DispatchStatus::Dispatched, "{answer:?}");
            if n == 0 {
                until("the robot to stand still", async || {
                    !house.robot(robot).is_moving()
                })
                .await;
                assert!(asked.elapsed() < STANDS, "{:?}", asked.elapsed());
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
    shim.syncs_take(Duration::ZERO);
    house.watch.ended(&names, INSISTENCE).await;
    let verdict = fates(&names, &house.log.entries(), &house.watch.all());
    figure(
        "disk",
        &format!(
            "commits of 2 s: dispatch {}; stops meanwhile {}; {}",
            spread(&accepted),
            spread(&took),
            verdict
        ),
    );
    verdict.assert_good();
    assert_prompt(&took);
    let slowest = *accepted.iter().max().unwrap();
    assert!(slowest < 3 * slow, "a dispatch took {slowest:?}");
    assert!(accepted.iter().all(|took| *took >= slow), "{accepted:?}");
    assert_eq!(house.caller.failed(), 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: run by tests/run"]
async fn a_gateway_says_why_it_does_not_start_where_it_cannot_write() {
    init();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let identities = Identities::start(dir, &[]).await;
    let config = Config::new(dir, &identities);
    for what in ["full", "read-only"] {
        let disk = SmallDisk::new(1);
        match what {
            "full" => disk.fill(),
            _ => disk.make_read_only(),
        }
        let prefix = journal_at(&disk.path().join("journal.sqlite"));
        let mut gateway = GatewayProcess::launch_behind(prefix, dir, &config);
        let status = gateway.wait(Duration::from_secs(12)).await;
        let output = gateway.output();
        let last = output.lines().last().unwrap_or_default();
        assert_eq!(status.code(), Some(1), "{status}: {last}");
        assert!(last.contains("cannot open it"), "{last}");
    }
}

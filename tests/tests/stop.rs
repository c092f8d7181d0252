//! A stop is a fence.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use portarium_gateway::dev::robot::LogEvent;
use portarium_protocols::grpc::pb::{self, DispatchStatus};
use portarium_tests::{
    Caller, House, figure, happened, hints, mission, scaled, spread, stop, until,
};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tokio::time::sleep;

/// A journey that ends only because something stops it.
const LONG: Duration = Duration::from_secs(60);
/// How long a robot is looked at after its stop.
const LOOK: Duration = Duration::from_millis(300);
const WAITING: usize = 10;

/// A mission that the robot is at, and ten that wait for it.
async fn queue_up(house: &House, robot: &str, round: usize) -> Vec<String> {
    let running = format!("{robot}-{round}-running");
    house.caller.accepted(&mission(robot, &running, LONG)).await;
    house.watch.reaches(&running, "Executing").await;
    let mut waiting = Vec::new();
    for n in 0..WAITING {
        let name = format!("{robot}-{round}-waiting-{n}");
        house.caller.accepted(&mission(robot, &name, LONG)).await;
        waiting.push(name);
    }
    waiting.push(running);
    waiting
}

/// Which of these moved the robot.
fn moved(house: &House, robot: &str) -> BTreeSet<String> {
    let did = house.did(robot).into_iter();
    did.filter(|entry| entry.event == LogEvent::MotionStart)
        .map(|entry| entry.mission.to_string())
        .collect()
}

/// A stop whose fence is on disk. An answer waits for the disk for 20 ms at the most and says so
/// where that was not enough; a caller to whom it matters asks again, under the same id.
async fn durable_stop(house: &House, request: &pb::DispatchMissionRequest) -> pb::StopOutcome {
    for _ in 0..20 {
        let answer = house.caller.dispatch(request).await.unwrap();
        let outcome = answer.stop.expect("an answer to a stop has an outcome");
        if outcome.fence_durable {
            return outcome;
        }
    }
    panic!("no fence is durable after 20 stops");
}

async fn send_stop(house: &House, robot: &str, name: &str) -> pb::StopOutcome {
    let answer = house.caller.dispatch(&stop(robot, name)).await.unwrap();
    assert_eq!(answer.status(), DispatchStatus::Dispatched, "{answer:?}");
    answer.stop.expect("the outcome of the stop")
}

async fn assert_fenced(house: &House, robot: &str, missions: &[String]) {
    house.watch.ended(missions, Duration::from_secs(20)).await;
    for name in missions {
        let last = house.watch.last(name).unwrap();
        assert_eq!(last.status, "Cancelled", "{last:?}");
    }
    sleep(LOOK).await;
    let moved = moved(house, robot);
    let waited = &missions[..WAITING];
    let after: Vec<_> = waited.iter().filter(|name| moved.contains(*name)).collect();
    assert!(after.is_empty(), "moved {robot} behind the stop: {after:?}");
    assert!(!house.robot(robot).is_moving());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn none_of_ten_missions_that_wait_moves_the_robot_after_a_stop() {
    let house = House::start().await;
    for robot in ["m", "g"] {
        let missions = queue_up(&house, robot, 0).await;
        let outcome = send_stop(&house, robot, &format!("stop-{robot}")).await;
        assert!(
            outcome.fence_durable && !outcome.robot_unreachable,
            "{outcome:?}"
        );
        assert_fenced(&house, robot, &missions).await;
        house
            .watch
            .reaches(&format!("stop-{robot}"), "Succeeded")
            .await;
    }
    // A stop is no latch.
    for robot in ["m", "g"] {
        let name = format!("after-{robot}");
        let short = Duration::from_millis(20);
        house.caller.accepted(&mission(robot, &name, short)).await;
        house.watch.reaches(&name, "Succeeded").await;
    }
    assert_eq!(house.caller.failed(), 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_fence_that_was_called_durable_outlives_the_gateways_death_right_after_the_answer() {
    let mut house = House::start().await;
    let (rounds, mut durable) = (scaled(6), 0);
    for round in 0..rounds {
        let robot = ["m", "g"][round % 2];
        let missions = queue_up(&house, robot, round).await;
        let outcome = send_stop(&house, robot, &format!("stop-{round}")).await;
        house.gateway.kill();
        house.gateway.restart().await;
        house.caller.robots_reachable(&["m", "g"]).await;
        if outcome.fence_durable {
            durable += 1;
            assert_fenced(&house, robot, &missions).await;
        } else {
            house
                .caller
                .insist(&stop(robot, &format!("again-{round}")), LONG)
                .await;
            house.watch.ended(&missions, LONG).await;
        }
    }
    figure(
        "stop",
        &format!(
            "kill -9 right behind the answer: {rounds} times, fence durable {durable} times; something moved afterwards {}",
            happened(0, durable)
        ),
    );
    assert!(durable * 2 >= rounds, "durable {durable} times in {rounds}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_stop_right_behind_a_command_never_leaves_the_robot_moving() {
    let house = House::start().await;
    for robot in ["m", "g"] {
        let (mut arrival, mut answered, mut still) = (Vec::new(), Vec::new(), Vec::new());
        let (rounds, mut unmoved) = (scaled(100), 0);
        for round in 0..rounds {
            let first = format!("{robot}-{round}-first");
            let journey = format!("{robot}-{round}");
            let halt = format!("stop-{robot}-{round}");
            let short = Duration::from_millis(10);
            house.caller.accepted(&mission(robot, &first, short)).await;
            house.caller.accepted(&mission(robot, &journey, LONG)).await;
            // The first one's end is the moment at which the next one is sent.
            while house.first(LogEvent::MotionEnd, &first).is_none() {
                sleep(Duration::from_micros(200)).await;
            }
            sleep(Duration::from_micros(fastrand::u64(..5_000))).await;
            let asked = Instant::now();
            send_stop(&house, robot, &halt).await;
            answered.push(asked.elapsed());
            let both = [journey.clone(), halt.clone()];
            house.watch.ended(&both, Duration::from_secs(10)).await;
            let reported = house.watch.last(&journey).unwrap();
            assert_eq!(reported.status, "Cancelled", "{reported:?}");
            assert!(!house.robot(robot).is_moving(), "{journey} moves {robot}");
            let stopped = house
                .first(LogEvent::Stop, &halt)
                .expect("the stop's arrival");
            arrival.push(stopped - asked);
            if let Some(end) = house.first(LogEvent::MotionEnd, &journey) {
                still.push(end - asked);
            }
            unmoved += usize::from(house.first(LogEvent::MotionStart, &journey).is_none());
        }
        sleep(LOOK).await;
        assert!(!house.robot(robot).is_moving());
        for (what, samples) in [
            ("from the call to the robot", &arrival),
            ("from the call to its answer", &answered),
            (
                "from the call to standing still (20 ms of them deceleration)",
                &still,
            ),
        ] {
            figure("stop", &format!("{robot}, {what}: {}", spread(samples)));
        }
        figure(
            "stop",
            &format!(
                "{robot}, right behind a command: left moving {}; {unmoved} times the stop came in time for it not to move at all",
                happened(0, rounds)
            ),
        );
    }
    assert_eq!(house.caller.failed(), 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_stop_for_a_robot_that_is_gone_is_kept_and_sent_when_it_returns() {
    let mut house = House::start().await;
    for (robot, restart) in [("m", false), ("g", false), ("m", true), ("g", true)] {
        let halt = format!("stop-{robot}-{restart}");
        house.robot(robot).vanish();
        until("the robot out of reach", async || {
            house
                .caller
                .robot(robot)
                .await
                .is_ok_and(|seen| !seen.reachable)
        })
        .await;
        let refused = mission(robot, &format!("refused-{halt}"), LONG);
        let refused = house.caller.dispatch(&refused).await.unwrap();
        assert_eq!(
            refused.status(),
            DispatchStatus::GatewayUnreachable,
            "{refused:?}"
        );
        assert!(refused.retry_after_seconds > 0, "{refused:?}");
        let outcome = durable_stop(&house, &stop(robot, &halt)).await;
        assert!(outcome.robot_unreachable, "{outcome:?}");
        assert!(house.caller.robot(robot).await.unwrap().stop_pending);
        if restart {
            house.gateway.kill();
            house.gateway.restart().await;
        }
        assert!(house.first(LogEvent::Stop, &halt).is_none());
        let back = Instant::now();
        house.robot(robot).come_back();
        house.watch.reaches(&halt, "Succeeded").await;
        let arrived = house.first(LogEvent::Stop, &halt).unwrap();
        figure(
            "stop",
            &format!(
                "{robot} returns{}: its stop arrives after {:.2} s",
                if restart {
                    ", gateway restarted meanwhile"
                } else {
                    ""
                },
                (arrived - back).as_secs_f64()
            ),
        );
        house.caller.robots_reachable(&[robot]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn an_emergency_stop_holds_across_the_gateways_death_until_an_operator_releases_the_robot() {
    let mut house = House::start().await;
    let operator = Caller::with(&house.identities, hints::OPERATOR, house.gateway.ports.grpc).await;
    for robot in ["m", "g"] {
        let missions = queue_up(&house, robot, 0).await;
        let estop = pb::DispatchMissionRequest {
            action_type: "robot:estop_request".into(),
            ..stop(robot, &format!("estop-{robot}"))
        };
        durable_stop(&house, &estop).await;
        house.gateway.kill();
        house.gateway.restart().await;
        house.caller.robots_reachable(&[robot]).await;
        assert_fenced(&house, robot, &missions).await;
        let late = mission(robot, &format!("late-{robot}"), Duration::ZERO);
        let refused = house.caller.dispatch(&late).await.unwrap();
        assert_eq!(refused.reject_reason, "InvalidState", "{refused:?}");
        let release = pb::ReleaseRobotRequest {
            robot_id: robot.into(),
            reason: "test".into(),
        };
        let released = operator
            .call(|mut client| {
                let release = release.clone();
                async move { client.release_robot(release).await }
            })
            .await
            .unwrap();
        assert!(!released.latched);
        house.caller.accepted(&late).await;
        house.watch.reaches(&late.mission_id, "Succeeded").await;
    }
}

//! Words that got lost, and words that are told again and again.

use super::{make::report, world::Sim};
use portarium_protocols::{
    adapter::{Reconciled, Report, Said, SignalError},
    mission::MissionStatus,
};
use std::time::Duration;
use tokio::time::sleep;

const SECOND: Duration = Duration::from_secs(1);

/// As a broker tells what it has kept.
fn kept(mission: &str, status: MissionStatus) -> Report {
    Report {
        said: Said::Before,
        ..report(mission, status)
    }
}

fn known(status: MissionStatus) -> Result<Reconciled, SignalError> {
    Ok(Reconciled::Known(kept("m1", status)))
}

/// A robot that executes `m1`, and what is found out when it is asked for it.
async fn executing(
    answers: impl IntoIterator<Item = (Duration, Result<Reconciled, SignalError>)>,
) -> Sim {
    let sim = Sim::new().await;
    sim.robots.script("r", |s| s.reconcile.extend(answers));
    sim.dispatch("m1").await.unwrap();
    sim.say("m1", MissionStatus::Executing).await;
    sim
}

#[tokio::test(start_paused = true)]
async fn a_word_that_got_lost_on_a_connection_that_stands_is_asked_for() {
    let reason = "busy".to_owned();
    let sim = executing([
        (Duration::ZERO, known(MissionStatus::Executing)),
        (Duration::ZERO, Err(SignalError::Unreachable { reason })),
        (Duration::ZERO, Ok(Reconciled::NotKnown)),
        (Duration::ZERO, known(MissionStatus::Succeeded)),
    ])
    .await;
    let mut asked = 0;
    // The one that got no answer is asked again soon.
    for questions in [1, 2] {
        // A word puts the next question off.
        sleep(100 * SECOND).await;
        sim.say("m1", MissionStatus::Executing).await;
        sleep(100 * SECOND).await;
        assert_eq!(sim.robots.asked("r").len(), asked);
        sleep(30 * SECOND).await;
        asked += questions;
        assert_eq!(sim.robots.asked("r").len(), asked);
        assert_eq!(sim.status("m1").await, "Executing");
    }
    sleep(130 * SECOND).await;
    assert_eq!(sim.status("m1").await, "Succeeded");
    sleep(1_000 * SECOND).await;
    assert_eq!(sim.robots.asked("r").len(), 4, "it has ended");
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
}

#[tokio::test(start_paused = true)]
async fn the_silence_is_that_of_the_mission_which_the_robot_has() {
    let sim = executing([]).await;
    sleep(100 * SECOND).await;
    sim.say("m1", MissionStatus::Succeeded).await;
    sim.dispatch("m2").await.unwrap();
    sim.say("m2", MissionStatus::Executing).await;
    sleep(100 * SECOND).await;
    assert!(sim.robots.asked("r").is_empty());
    sleep(30 * SECOND).await;
    assert_eq!(sim.robots.asked("r"), ["m2"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_found_out_counts_for_nothing_behind_a_word_that_overtook_it() {
    for (answer, then) in [
        (MissionStatus::WaitingPreemption, "Executing"),
        (MissionStatus::Failed, "Failed"),
    ] {
        let sim = executing([(5 * SECOND, known(answer))]).await;
        sim.say("m1", MissionStatus::WaitingPreemption).await;
        sleep(122 * SECOND).await;
        assert_eq!(sim.robots.asked("r"), ["m1"]);
        sim.say("m1", MissionStatus::Executing).await;
        sleep(10 * SECOND).await;
        assert_eq!(sim.status("m1").await, then);
    }
}

#[tokio::test(start_paused = true)]
async fn a_mission_cancelled_in_vain_stays_unknown_whatever_is_kept_of_it() {
    let sim = executing([]).await;
    let m1 = "m1".parse().unwrap();
    sim.engine().cancel(&m1, "enough").await.unwrap();
    for _ in 0..20 {
        sleep(30 * SECOND).await;
        sim.report(kept("m1", MissionStatus::Executing)).await;
    }
    assert_eq!(sim.status("m1").await, "Executing?");
    // The robot itself is there.
    sim.say("m1", MissionStatus::Executing).await;
    assert_eq!(sim.status("m1").await, "Executing");
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_of_a_mission_counts_where_it_was_not_heard() {
    let sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    sleep(61 * SECOND).await;
    assert_eq!(sim.status("m1").await, "Dispatched?");
    sim.report(kept("m1", MissionStatus::Dispatched)).await;
    assert_eq!(sim.status("m1").await, "Dispatched");
    sim.report(kept("m1", MissionStatus::Executing)).await;
    assert_eq!(sim.status("m1").await, "Executing");
    sim.say("m1", MissionStatus::WaitingPreemption).await;
    sim.report(kept("m1", MissionStatus::Executing)).await;
    assert_eq!(sim.status("m1").await, "WaitingPreemption");
    sim.report(kept("m1", MissionStatus::Succeeded)).await;
    assert_eq!(sim.status("m1").await, "Succeeded");
    sim.dispatch("m2").await.unwrap();
    assert_eq!(sim.robots.dispatched("r"), ["m1", "m2"]);
}

//! A copy of a stop that comes late does not stop the mission behind it.

use super::world::Sim;
use portarium_protocols::{
    adapter::{SignalError, StopAnswer},
    mission::MissionStatus,
};
use std::time::Duration;
use tokio::time::sleep;

const SECOND: Duration = Duration::from_secs(1);

/// A robot whose stops are on their way for so long after they were answered.
async fn late_by(late: Duration) -> Sim {
    let sim = Sim::new().await;
    sim.robots.script("r", |script| script.stops_late = late);
    sim
}

#[tokio::test(start_paused = true)]
async fn the_next_mission_waits_for_the_last_copy_of_a_stop_and_the_stops_answer_does_not() {
    let sim = late_by(10 * SECOND).await;
    let before = sim.elapsed();
    let answer = sim.stop("s1").await;
    assert!(sim.elapsed() - before < Duration::from_millis(22));
    assert_eq!(answer.answer, Ok(StopAnswer::Requested));
    assert!(!answer.robot_unreachable);
    sim.dispatch("m1").await.unwrap();
    sleep(9 * SECOND).await;
    assert!(sim.robots.dispatched("r").is_empty());
    assert_eq!(sim.status("m1").await, "Pending");
    sleep(2 * SECOND).await;
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
    sim.say("m1", MissionStatus::Succeeded).await;
    sim.dispatch("m2").await.unwrap();
    assert_eq!(sim.robots.dispatched("r"), ["m1", "m2"], "it has landed");
}

#[tokio::test(start_paused = true)]
async fn a_second_stop_does_not_wait_and_has_copies_of_its_own() {
    let sim = late_by(10 * SECOND).await;
    sim.stop("s1").await;
    sim.dispatch("m1").await.unwrap();
    sleep(5 * SECOND).await;
    sim.stop("s2").await;
    assert_eq!(sim.robots.stopped("r"), ["s1", "s2"]);
    assert_eq!(sim.status("m1").await, "Cancelled");
    sim.dispatch("m2").await.unwrap();
    sleep(9 * SECOND).await;
    assert!(sim.robots.dispatched("r").is_empty());
    sleep(10 * SECOND).await;
    assert_eq!(sim.robots.dispatched("r"), ["m2"]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_seemed_not_to_get_through_is_waited_for_as_well() {
    let sim = late_by(10 * SECOND).await;
    let reason = "no acknowledgement".to_owned();
    let lost = Err(SignalError::Unreachable { reason });
    sim.robots
        .script("r", |script| script.stop.push_back((SECOND, lost)));
    sim.stop("s1").await;
    sim.dispatch("m1").await.unwrap();
    sleep(11 * SECOND).await;
    assert_eq!(sim.robots.stopped("r"), ["s1", "s1"]);
    assert!(sim.robots.dispatched("r").is_empty());
    sleep(2 * SECOND).await;
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
}

#[tokio::test(start_paused = true)]
async fn after_a_start_missions_wait_for_what_the_gateway_before_it_left_of_its_stops() {
    let mut sim = late_by(10 * SECOND).await;
    sim.stop("s1").await;
    sim.say("s1", MissionStatus::Succeeded).await;
    sim.crash().await;
    sim.dispatch("m1").await.unwrap();
    sleep(9 * SECOND).await;
    assert!(sim.robots.dispatched("r").is_empty());
    sleep(2 * SECOND).await;
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
}

#[tokio::test(start_paused = true)]
async fn a_mission_for_which_the_copies_take_too_long_ends_and_says_that_it_was_never_sent() {
    let sim = late_by(100 * SECOND).await;
    sim.stop("s1").await;
    sim.dispatch("m1").await.unwrap();
    sleep(61 * SECOND).await;
    assert_eq!(sim.status("m1").await, "Failed");
    assert!(sim.robots.dispatched("r").is_empty());
}

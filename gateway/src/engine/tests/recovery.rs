//! After a crash, or a hand-over that nobody knows the end of.

use super::make::{mission, report};
use super::world::{Disk, Sim};
use crate::engine::Refusal;
use portarium_protocols::{
    adapter::{DispatchError, Handover, Reconciled, SignalError},
    mission::MissionStatus,
};
use std::time::Duration;
use tokio::time::sleep;

const NOW: Duration = Duration::ZERO;

fn unknown() -> Result<Handover, DispatchError> {
    Err(DispatchError::Unknown {
        reason: "connection lost".into(),
    })
}

fn unreachable() -> Result<Handover, DispatchError> {
    Err(DispatchError::Unreachable {
        reason: "gone".into(),
    })
}

async fn sim(idempotent: bool) -> Sim {
    Sim::with(|sim| sim.specs[0].idempotent = idempotent).await
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_a_mission_that_may_have_been_sent_is_unknown_and_never_sent_blindly() {
    let mut sim = sim(false).await;
    sim.dispatch("m1").await.unwrap();
    sim.dispatch("m2").await.unwrap();
    for answer in [Reconciled::CannotAsk, Reconciled::NotKnown] {
        sim.robots
            .script("r", |s| s.reconcile.push_back((NOW, Ok(answer))));
        sim.crash().await;
        assert_eq!(sim.status("m1").await, "Dispatched?");
        assert!(matches!(sim.dispatch("m3").await, Err(Refusal::State(_))));
    }
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
    // m1's end is the robot's word, and what waited goes on.
    sim.say("m1", MissionStatus::Succeeded).await;
    assert_eq!(sim.status("m1").await, "Succeeded");
    assert_eq!(sim.robots.dispatched("r"), ["m1", "m2"]);
}

#[tokio::test(start_paused = true)]
async fn an_idempotent_robot_gets_it_once_more_in_time_and_not_after() {
    let mut sim = sim(true).await;
    sim.dispatch("m1").await.unwrap();
    sleep(Duration::from_secs(10)).await;
    sim.crash().await;
    assert_eq!(sim.robots.dispatched("r"), ["m1", "m1"]);
    assert_eq!(sim.status("m1").await, "Dispatched");
    sim.die();
    sleep(Duration::from_secs(60)).await;
    sim.open().await;
    assert_eq!(sim.robots.dispatched("r"), ["m1", "m1"]);
    assert_eq!(sim.status("m1").await, "Dispatched?");
}

#[tokio::test(start_paused = true)]
async fn what_was_cancelled_is_not_sent_again_even_to_an_idempotent_robot() {
    let mut sim = sim(true).await;
    sim.dispatch("m1").await.unwrap();
    sim.engine()
        .cancel(&"m1".parse().unwrap(), "")
        .await
        .unwrap();
    sim.crash().await;
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
    assert_eq!(sim.robots.cancelled("r"), ["m1", "m1"]);
}

#[tokio::test(start_paused = true)]
async fn what_the_robot_knows_goes_on_where_it_is() {
    let mut sim = sim(true).await;
    sim.dispatch("m1").await.unwrap();
    let known = Reconciled::Known(report("m1", MissionStatus::Executing));
    sim.robots
        .script("r", |s| s.reconcile.push_back((NOW, Ok(known))));
    sim.crash().await;
    assert_eq!(sim.status("m1").await, "Executing");
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
}

#[tokio::test(start_paused = true)]
async fn what_the_robot_had_and_forgot_is_unknown_and_not_sent_again() {
    let mut sim = sim(true).await;
    sim.dispatch("m1").await.unwrap();
    sim.say("m1", MissionStatus::Executing).await;
    sim.robots.script("r", |s| {
        s.reconcile.push_back((NOW, Ok(Reconciled::NotKnown)))
    });
    sim.crash().await;
    assert_eq!(sim.status("m1").await, "Executing?");
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
}

#[tokio::test(start_paused = true)]
async fn no_mission_is_sent_before_the_robot_was_asked_but_stops_are() {
    let mut sim = sim(false).await;
    sim.dispatch("m1").await.unwrap();
    sim.dispatch("m2").await.unwrap();
    let slow = (
        Duration::from_secs(5),
        Ok(Reconciled::Known(report("m1", MissionStatus::Succeeded))),
    );
    sim.robots.script("r", |s| s.reconcile.push_back(slow));
    sim.crash().await;
    sim.say("m1", MissionStatus::Succeeded).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
    sim.stop("s1").await;
    assert_eq!(sim.robots.stopped("r"), ["s1"]);
    assert_eq!(sim.status("m2").await, "Cancelled");
}

#[tokio::test(start_paused = true)]
async fn a_question_without_an_answer_is_asked_again_at_its_pace() {
    let mut sim = sim(true).await;
    sim.dispatch("m1").await.unwrap();
    let lost = || SignalError::Unreachable {
        reason: "gone".into(),
    };
    sim.robots.script("r", |s| {
        s.reconcile.extend((0..5).map(|_| (NOW, Err(lost()))))
    });
    sim.crash().await;
    sleep(Duration::from_secs(10)).await;
    assert_eq!(sim.robots.asked("r").len(), 6);
    assert_eq!(sim.robots.dispatched("r"), ["m1", "m1"]);
}

#[tokio::test(start_paused = true)]
async fn two_hand_overs_to_one_robot_are_never_under_way_at_once() {
    let sim = sim(false).await;
    let slow = (Duration::from_secs(2), Ok(Handover::Sent));
    sim.robots.script("r", |s| s.dispatch.push_back(slow));
    sim.dispatch("m1").await.unwrap();
    sim.dispatch("m2").await.unwrap();
    // The robot is done before the adapter knows that the message was delivered.
    sim.say("m1", MissionStatus::Succeeded).await;
    assert_eq!(sim.status("m1").await, "Succeeded");
    sleep(Duration::from_secs(3)).await;
    assert_eq!(sim.robots.dispatched("r"), ["m1", "m2"]);
    assert_eq!(sim.robots.most_at_once(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_waited_keeps_its_order_across_a_crash() {
    let mut sim = sim(false).await;
    for id in ["m1", "m2", "m3"] {
        sim.dispatch(id).await.unwrap();
    }
    sim.crash().await;
    for id in ["m1", "m2", "m3"] {
        sim.say(id, MissionStatus::Succeeded).await;
    }
    assert_eq!(sim.robots.dispatched("r"), ["m1", "m2", "m3"]);
}

#[tokio::test(start_paused = true)]
async fn a_crash_before_the_attempt_is_durable_sends_it_once() {
    let mut sim = sim(false).await;
    sim.dispatch("m1").await.unwrap();
    sim.dispatch("m2").await.unwrap();
    sim.say("m1", MissionStatus::Executing).await;
    sim.disk(Disk::Hangs);
    sim.say("m1", MissionStatus::Succeeded).await;
    sim.die();
    sim.disk(Disk::Well);
    let known = Reconciled::Known(report("m1", MissionStatus::Succeeded));
    sim.robots
        .script("r", |s| s.reconcile.push_back((NOW, Ok(known))));
    sim.open().await;
    assert_eq!(sim.robots.dispatched("r"), ["m1", "m2"]);
    assert_eq!(sim.status("m1").await, "Succeeded");
    assert_eq!(sim.status("m2").await, "Dispatched");
}

#[tokio::test(start_paused = true)]
async fn a_busy_robot_without_a_queue_refuses_and_one_with_a_full_queue_does_too() {
    let sim = Sim::with(|sim| {
        sim.specs[0].queue = 0;
        let mut other = super::make::spec("q");
        other.queue = 2;
        sim.specs.push(other);
    })
    .await;
    sim.dispatch("m1").await.unwrap();
    assert!(matches!(sim.dispatch("m2").await, Err(Refusal::State(_))));
    for (n, fits) in [true, true, true, false].into_iter().enumerate() {
        let answer = sim.ask(mission("q", &format!("q{n}"))).await;
        assert_eq!(answer.is_ok(), fits, "{n}");
    }
    assert_eq!(sim.queued("q"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_second_try_that_is_not_sent_does_not_unsay_the_first() {
    let mut sim = sim(true).await;
    sim.dispatch("m1").await.unwrap();
    sim.robots.script("r", |s| {
        s.dispatch.extend((0..200).map(|_| (NOW, unreachable())))
    });
    sim.crash().await;
    sleep(Duration::from_secs(5)).await;
    sim.stop("s1").await;
    assert_eq!(
        sim.status("m1").await,
        "Dispatched",
        "it may be with the robot"
    );
    assert_eq!(sim.robots.cancelled("r"), ["m1"]);
    sleep(Duration::from_secs(120)).await;
    assert_eq!(sim.status("m1").await, "Dispatched?");
}

#[tokio::test(start_paused = true)]
async fn an_idempotent_robot_whose_hand_overs_stay_unknown_is_not_stormed() {
    let sim = sim(true).await;
    sim.robots.script("r", |s| {
        s.dispatch.extend((0..2_000_000).map(|_| (NOW, unknown())))
    });
    sim.dispatch("m1").await.unwrap();
    sleep(Duration::from_secs(10)).await;
    let tries = sim.robots.dispatched("r").len();
    assert!((2..=15).contains(&tries), "{tries}");
    sleep(Duration::from_secs(60)).await;
    assert_eq!(sim.status("m1").await, "Dispatched?");
}

#[tokio::test(start_paused = true)]
async fn a_hand_over_of_unknown_end_is_asked_for_at_once_and_after_the_links_return() {
    let sim = sim(false).await;
    sim.robots
        .script("r", |s| s.dispatch.push_back((NOW, unknown())));
    sim.link("r", true).await;
    let known = Reconciled::Known(report("m1", MissionStatus::Executing));
    sim.robots.script("r", |s| {
        s.reconcile
            .push_back((Duration::from_secs(2), Ok(Reconciled::NotKnown)));
        s.reconcile.push_back((NOW, Ok(known)));
    });
    sim.dispatch("m1").await.unwrap();
    assert_eq!(sim.robots.asked("r").len(), 1);
    // The link goes while the question is on its way: what its answer says is nothing to go by.
    sim.link("r", false).await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(sim.status("m1").await, "Dispatched");
    sim.link("r", true).await;
    assert_eq!(sim.status("m1").await, "Executing");
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_sent_stays_in_front_of_what_waits() {
    let sim = sim(false).await;
    sim.robots
        .script("r", |s| s.dispatch.push_back((NOW, unreachable())));
    sim.dispatch("m1").await.unwrap();
    sim.dispatch("m2").await.unwrap();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(sim.robots.dispatched("r"), ["m1", "m1"]);
    sim.say("m1", MissionStatus::Succeeded).await;
    assert_eq!(sim.robots.dispatched("r"), ["m1", "m1", "m2"]);
}

fn rejected() -> Result<Handover, DispatchError> {
    Err(DispatchError::Rejected {
        reason: "not now".into(),
    })
}

#[tokio::test(start_paused = true)]
async fn a_repeat_that_is_refused_ends_a_mission_that_was_never_heard_of() {
    let mut sim = sim(true).await;
    sim.dispatch("m1").await.unwrap();
    sim.robots
        .script("r", |s| s.dispatch.push_back((NOW, rejected())));
    sim.crash().await;
    assert_eq!(sim.robots.dispatched("r"), ["m1", "m1"]);
    assert_eq!(sim.status("m1").await, "Failed");
    sim.dispatch("m2").await.unwrap();
    assert_eq!(sim.robots.dispatched("r"), ["m1", "m1", "m2"]);
}

#[tokio::test(start_paused = true)]
async fn a_repeat_that_is_refused_leaves_unknown_what_the_robot_had() {
    let mut sim = sim(true).await;
    sim.dispatch("m1").await.unwrap();
    sim.say("m1", MissionStatus::Executing).await;
    sim.robots
        .script("r", |s| s.dispatch.push_back((NOW, rejected())));
    sim.crash().await;
    assert_eq!(sim.robots.dispatched("r"), ["m1", "m1"]);
    assert_eq!(sim.status("m1").await, "Executing?");
    assert!(matches!(sim.dispatch("m2").await, Err(Refusal::State(_))));
    sim.say("m1", MissionStatus::Succeeded).await;
    assert_eq!(sim.status("m1").await, "Succeeded");
}

#[tokio::test(start_paused = true)]
async fn a_repeat_that_does_not_get_through_is_made_again_and_its_answer_is_the_robots_word() {
    let mut sim = sim(true).await;
    sim.dispatch("m1").await.unwrap();
    sim.robots.script("r", |s| {
        s.dispatch.push_back((NOW, unreachable()));
        s.dispatch.push_back((NOW, unknown()));
        s.dispatch.push_back((NOW, Ok(Handover::Accepted)));
    });
    sim.crash().await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(sim.robots.dispatched("r"), ["m1", "m1", "m1", "m1"]);
    sleep(Duration::from_secs(100)).await;
    assert_eq!(sim.status("m1").await, "Dispatched");
    assert!(sim.robots.cancelled("r").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_a_repeat_is_under_way_goes_behind_it_and_it_is_not_made_again() {
    let mut sim = sim(true).await;
    sim.dispatch("m1").await.unwrap();
    let slow = (Duration::from_secs(2), unreachable());
    sim.robots.script("r", |s| s.dispatch.push_back(slow));
    sim.crash().await;
    sim.stop("s1").await;
    assert_eq!(sim.robots.cancelled("r"), ["m1"]);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(sim.robots.dispatched("r"), ["m1", "m1"]);
    assert_eq!(sim.status("m1").await, "Dispatched?");
    sim.say("m1", MissionStatus::Cancelled).await;
    assert_eq!(sim.status("m1").await, "Cancelled");
}

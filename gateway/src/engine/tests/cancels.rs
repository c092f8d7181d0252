//! Cancels, of missions and of what the robot is at.

use super::make::{cancel_action, mission};
use super::world::{CALLER, Disk, Sim, idle};
use crate::engine::{Cancelled, Refusal};
use portarium_protocols::{
    adapter::{DispatchError, Handover, SignalError},
    mission::MissionStatus,
};
use std::time::Duration;
use tokio::time::sleep;

async fn cancel(sim: &Sim, id: &str) -> Cancelled {
    let answer = sim.engine().cancel(&id.parse().unwrap(), "why not").await;
    idle().await;
    answer.unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_cancelled_at_once_what_was_sent_by_the_robots_word() {
    let mut sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    sim.dispatch("m2").await.unwrap();
    assert!(matches!(cancel(&sim, "m2").await, Cancelled::Now(_)));
    assert_eq!(cancel(&sim, "m1").await, Cancelled::Requested);
    assert_eq!(sim.robots.cancelled("r"), ["m1"]);
    assert_eq!(sim.status("m1").await, "Dispatched");
    assert_eq!(sim.status("m2").await, "Cancelled");
    sim.crash().await;
    assert_eq!(sim.robots.cancelled("r"), ["m1", "m1"]);
    sim.say("m1", MissionStatus::Succeeded).await;
    assert!(matches!(cancel(&sim, "m1").await, Cancelled::Nothing(_)));
    assert_eq!(sim.status("m1").await, "Succeeded");
    assert_eq!(cancel(&sim, "m9").await, Cancelled::Unknown);
}

/// How often the robot's driver turned, by the looks at the wall clock: one a turn.
async fn turns_during(sim: &Sim, span: Duration) -> usize {
    let before = sim.looks();
    sleep(span).await;
    sim.looks() - before
}

#[tokio::test(start_paused = true)]
async fn a_cancel_action_cancels_what_runs_past_all_that_waits_and_ends_with_it() {
    for (end, expected) in [
        (MissionStatus::Cancelled, "Succeeded"),
        (MissionStatus::Succeeded, "Failed"),
    ] {
        let mut sim = Sim::new().await;
        for id in ["m1", "m2", "m3"] {
            sim.dispatch(id).await.unwrap();
        }
        sim.ask(cancel_action("r", "c1")).await.unwrap();
        assert_eq!(sim.robots.cancelled("r"), ["m1"]);
        assert_eq!(sim.status("c1").await, "Dispatched");
        sim.crash().await;
        assert_eq!(sim.status("c1").await, "Dispatched");
        sim.say("m1", end).await;
        assert_eq!(sim.status("c1").await, expected);
        assert_eq!(sim.status("m2").await, "Dispatched");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancel_action_for_an_idle_robot_is_refused() {
    let sim = Sim::new().await;
    let answer = sim.ask(cancel_action("r", "c1")).await;
    assert!(matches!(answer, Err(Refusal::State(_))));
    assert_eq!(sim.status("c1").await, "-");
}

#[tokio::test(start_paused = true)]
async fn a_cancel_action_ends_with_what_turns_out_not_to_have_been_sent() {
    let sim = Sim::new().await;
    let reason = "gone".to_owned();
    let slow = Err(DispatchError::Unreachable { reason });
    let slow = (Duration::from_secs(2), slow);
    sim.robots.script("r", |s| s.dispatch.push_back(slow));
    sim.dispatch("m1").await.unwrap();
    sim.ask(cancel_action("r", "c1")).await.unwrap();
    sleep(Duration::from_secs(3)).await;
    assert_eq!(sim.status("m1").await, "Cancelled");
    assert_eq!(sim.status("c1").await, "Succeeded");
    assert_eq!(sim.open_in_memory("r"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_of_what_was_not_accepted_in_the_end_changes_nothing() {
    let sim = Sim::new().await;
    sim.disk(Disk::Hangs);
    let asked = sim.begin(mission("r", "m1")).await;
    let engine = sim.engine();
    let cancelled = tokio::spawn(async move { engine.cancel(&"m1".parse().unwrap(), "").await });
    idle().await;
    sim.disk(Disk::Full);
    sleep(Duration::from_secs(1)).await;
    assert!(asked.await.unwrap().is_err());
    sim.disk(Disk::Well);
    cancelled.await.unwrap().unwrap();
    assert_eq!(sim.status("m1").await, "-");
    assert_eq!(sim.open_in_memory("r"), 0);
    let engine = sim.engine();
    engine
        .dispatch(CALLER.into(), mission("r", "m1"))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_cancel_while_the_mission_is_handed_over_reaches_the_robot() {
    let sim = Sim::new().await;
    let slow = (Duration::from_secs(2), Ok(Handover::Sent));
    sim.robots.script("r", |s| s.dispatch.push_back(slow));
    sim.dispatch("m1").await.unwrap();
    assert_eq!(cancel(&sim, "m1").await, Cancelled::Requested);
    assert_eq!(sim.robots.cancelled("r"), ["m1"]);
}

#[tokio::test(start_paused = true)]
async fn a_mission_that_is_first_heard_of_after_its_cancel_is_cancelled_once_more() {
    let sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    cancel(&sim, "m1").await;
    // It came to the robot behind its cancel: the connection had broken meanwhile.
    for _ in 0..2 {
        sim.say("m1", MissionStatus::Executing).await;
        assert_eq!(sim.robots.cancelled("r"), ["m1", "m1"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancel_that_does_not_get_through_is_sent_again_without_spinning() {
    let sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    let reason = "gone".to_owned();
    let lost = (Duration::ZERO, Err(SignalError::Unreachable { reason }));
    sim.robots.script("r", |s| s.cancel.push_back(lost));
    cancel(&sim, "m1").await;
    sim.link("r", false).await;
    sleep(Duration::from_millis(900)).await;
    let turns = turns_during(&sim, Duration::from_secs(10)).await;
    assert!(turns < 100, "the driver spins: {turns} turns");
    sim.link("r", true).await;
    assert_eq!(sim.robots.cancelled("r"), ["m1", "m1"]);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_cancels_while_one_is_under_way_become_one_more() {
    let sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    let slow = (Duration::from_secs(1), Ok(()));
    sim.robots.script("r", |s| s.cancel.push_back(slow));
    for _ in 0..100 {
        cancel(&sim, "m1").await;
    }
    sleep(Duration::from_secs(2)).await;
    assert_eq!(sim.robots.cancelled("r"), ["m1", "m1"]);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_action_ends_what_was_about_to_be_sent() {
    let mut sim = Sim::new().await;
    sim.disk(Disk::Hangs);
    let asked = sim.begin(mission("r", "m1")).await;
    let cancel = sim.begin(cancel_action("r", "c1")).await;
    sim.disk(Disk::Well);
    asked.await.unwrap().unwrap();
    cancel.await.unwrap().unwrap();
    for _ in 0..2 {
        assert_eq!(sim.status("m1").await, "Cancelled");
        assert_eq!(sim.status("c1").await, "Succeeded");
        sim.crash().await;
    }
    assert!(sim.robots.dispatched("r").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_cancel_action_reaches_its_robot_whatever_keeps_its_record_out() {
    for obstacle in ["limit", "backlog", "drain"] {
        let sim = Sim::with(|sim| sim.limits.open_missions = 1).await;
        sim.dispatch("m1").await.unwrap();
        match obstacle {
            "backlog" => {
                sim.disk(Disk::Hangs);
                while !sim.engine().journal().is_congested() {
                    sim.engine().journal().append(Default::default());
                }
            }
            "drain" => sim.engine().drain().await,
            _ => {}
        }
        for _ in 0..2 {
            let answer = sim.ask(cancel_action("r", "c1")).await;
            assert!(matches!(answer, Err(Refusal::Unreachable { .. })));
        }
        assert_eq!(sim.robots.cancelled("r"), ["m1", "m1"], "{obstacle}");
        let backlog = sim.engine().journal().backlog();
        assert!(backlog <= crate::journal::BACKLOG_LIMIT + 1, "{backlog}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_mission_that_could_not_be_accepted_is_not_said_to_be_cancelled() {
    let sim = Sim::new().await;
    sim.dispatch("m0").await.unwrap();
    sim.disk(Disk::Hangs);
    let refused = sim.begin(mission("r", "m1")).await;
    let engine = sim.engine();
    let cancel = tokio::spawn(async move { engine.cancel(&"m1".parse().unwrap(), "").await });
    idle().await;
    sim.disk(Disk::Full);
    sleep(Duration::from_secs(1)).await;
    assert!(refused.await.unwrap().is_err());
    sim.disk(Disk::Well);
    assert_eq!(cancel.await.unwrap().unwrap(), Cancelled::Unknown);
    sim.dispatch("m1").await.unwrap();
}

//! No stale command moves a robot.

use super::{
    fake::Got,
    make::{manual, mission},
    world::{Disk, Sim},
};
use portarium_protocols::{
    adapter::{DispatchError, Handover, Reconciled},
    mission::MissionStatus,
};
use std::time::Duration;
use tokio::time::sleep;

fn unreachable() -> (Duration, Result<Handover, DispatchError>) {
    let reason = "gone".to_owned();
    (Duration::ZERO, Err(DispatchError::Unreachable { reason }))
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_sent_is_tried_again_and_fails_in_time_saying_so() {
    let mut sim = Sim::new().await;
    sim.robots
        .script("r", |s| s.dispatch.extend((0..200).map(|_| unreachable())));
    sim.dispatch("m1").await.unwrap();
    sleep(Duration::from_secs(30)).await;
    let tries = sim.robots.dispatched("r").len();
    // Less and less often, down to once in 8 s.
    assert!((5..=8).contains(&tries), "{tries}");
    assert_eq!(sim.status("m1").await, "Dispatched");
    sleep(Duration::from_secs(31)).await;
    assert_eq!(sim.status("m1").await, "Failed");
    assert!(sim.detail("m1").await.contains("never sent"));
    let tries = sim.robots.dispatched("r").len();
    sim.crash().await;
    sleep(Duration::from_secs(31)).await;
    assert_eq!(sim.robots.dispatched("r").len(), tries);
}

#[tokio::test(start_paused = true)]
async fn what_waits_too_long_behind_another_is_never_sent() {
    let sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    sim.say("m1", MissionStatus::Executing).await;
    sim.dispatch("m2").await.unwrap();
    sleep(Duration::from_secs(61)).await;
    assert_eq!(sim.status("m2").await, "Failed");
    assert_eq!(sim.status("m1").await, "Executing");
    sim.say("m1", MissionStatus::Succeeded).await;
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
}

#[tokio::test(start_paused = true)]
async fn the_robot_is_told_how_long_the_command_is_good_for() {
    let sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    sim.dispatch("m2").await.unwrap();
    sleep(Duration::from_secs(20)).await;
    sim.say("m1", MissionStatus::Succeeded).await;
    let left: Vec<u64> = sim
        .robots
        .history()
        .iter()
        .filter_map(|e| match e.got {
            Got::Dispatch { expires_in } => Some(expires_in.as_secs_f64().round() as u64),
            _ => None,
        })
        .collect();
    assert_eq!(left, [60, 40]);
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_and_brought_no_word_is_cancelled_unknown_and_holds_the_robot() {
    let mut sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    sleep(Duration::from_secs(61)).await;
    assert_eq!(sim.robots.cancelled("r"), ["m1"]);
    for _ in 0..2 {
        assert_eq!(sim.status("m1").await, "Dispatched?");
        let answer = sim.dispatch("m2").await;
        assert!(matches!(answer, Err(crate::engine::Refusal::State(_))));
        assert_eq!(
            sim.engine()
                .robot(&"r".parse().unwrap())
                .unwrap()
                .unknown
                .len(),
            1
        );
        sim.crash().await;
    }
    sim.say("m1", MissionStatus::Cancelled).await;
    assert_eq!(sim.status("m1").await, "Cancelled");
    sim.dispatch("m3").await.unwrap();
    assert_eq!(sim.robots.dispatched("r"), ["m1", "m3"]);
}

#[tokio::test(start_paused = true)]
async fn an_operator_ends_what_is_of_unknown_outcome_and_nothing_else() {
    let mut sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    let (engine, id) = (sim.engine(), "m1".parse().unwrap());
    assert!(
        engine
            .resolve(&id, MissionStatus::Failed, "")
            .await
            .is_err()
    );
    sleep(Duration::from_secs(61)).await;
    assert!(
        engine
            .resolve(&id, MissionStatus::Executing, "")
            .await
            .is_err()
    );
    let robot = "r".parse().unwrap();
    engine.release(&robot).await.unwrap();
    assert_eq!(sim.status("m1").await, "Dispatched?", "no release ends it");
    engine
        .resolve(&id, MissionStatus::Failed, "looked")
        .await
        .unwrap();
    sim.crash().await;
    assert_eq!(sim.status("m1").await, "Failed");
    sim.dispatch("m2").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_report_in_time_is_enough() {
    let sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    sim.say("m1", MissionStatus::Dispatched).await;
    sleep(Duration::from_secs(1000)).await;
    assert_eq!(sim.status("m1").await, "Dispatched");
    assert!(sim.robots.cancelled("r").is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_robots_own_acceptance_is_its_word() {
    let sim = Sim::new().await;
    let accepted = (Duration::ZERO, Ok(Handover::Accepted));
    sim.robots.script("r", |s| s.dispatch.push_back(accepted));
    sim.dispatch("m1").await.unwrap();
    sleep(Duration::from_secs(1000)).await;
    assert_eq!(sim.status("m1").await, "Dispatched");
}

#[tokio::test(start_paused = true)]
async fn a_robot_that_does_not_come_back_after_a_crash_is_given_up_in_time() {
    let mut sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    sim.robots.set_down("r", true);
    sim.crash().await;
    sleep(Duration::from_secs(200)).await;
    assert_eq!(sim.status("m1").await, "Dispatched?");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_became_durable_too_late_is_not_sent() {
    let sim = Sim::new().await;
    sim.disk(Disk::Hangs);
    let asked = sim.begin(mission("r", "m1")).await;
    sleep(Duration::from_secs(61)).await;
    sim.disk(Disk::Well);
    sleep(Duration::from_secs(1)).await;
    asked.await.unwrap().unwrap();
    assert!(sim.robots.dispatched("r").is_empty());
    assert_eq!(sim.status("m1").await, "Failed");
    assert!(sim.detail("m1").await.contains("never sent"));
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_was_away_asks_before_it_calls_a_mission_unheard() {
    let mut sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    sim.die();
    sleep(Duration::from_secs(120)).await;
    sim.robots.set_down("r", true);
    let known = super::make::report("m1", MissionStatus::Executing);
    let known = (Duration::from_millis(50), Ok(Reconciled::Known(known)));
    sim.robots.script("r", |s| s.reconcile.push_back(known));
    sim.open().await;
    sleep(Duration::from_secs(2)).await;
    sim.link("r", true).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(sim.status("m1").await, "Executing");
    assert!(
        sim.robots.cancelled("r").is_empty(),
        "it was cancelled for the gateway's absence"
    );
}

async fn cancel(sim: &Sim, id: &str) {
    let cancelled = sim.engine().cancel(&id.parse().unwrap(), "").await;
    assert_eq!(cancelled.unwrap(), crate::engine::Cancelled::Requested);
}

/// How many states of a mission the journal has.
async fn rows(sim: &Sim, id: &str) -> usize {
    let number = sim.engine().number(&id.parse().unwrap());
    let reader = sim.engine().journal().reader().clone();
    reader.updates(0, number, 1000).await.unwrap().len()
}

#[tokio::test(start_paused = true)]
async fn a_cancel_that_brings_no_end_and_no_word_leaves_the_outcome_unknown() {
    let sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    sim.say("m1", MissionStatus::Executing).await;
    sleep(Duration::from_secs(1000)).await;
    cancel(&sim, "m1").await;
    sleep(Duration::from_secs(59)).await;
    assert_eq!(sim.status("m1").await, "Executing");
    sleep(Duration::from_secs(2)).await;
    assert_eq!(sim.status("m1").await, "Executing?");
    assert!(sim.detail("m1").await.contains("cancelled, but"));
    sim.say("m1", MissionStatus::Cancelled).await;
    assert_eq!(sim.status("m1").await, "Cancelled");
}

#[tokio::test(start_paused = true)]
async fn a_robot_that_goes_on_after_a_cancel_and_says_so_is_believed() {
    let sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    sim.say("m1", MissionStatus::Executing).await;
    cancel(&sim, "m1").await;
    let before = rows(&sim, "m1").await;
    for _ in 0..100 {
        sleep(Duration::from_secs(10)).await;
        sim.say("m1", MissionStatus::Executing).await;
        assert_eq!(sim.status("m1").await, "Executing");
    }
    assert_eq!(rows(&sim, "m1").await, before, "nothing changed");
}

#[tokio::test(start_paused = true)]
async fn a_mission_that_awaits_its_confirmation_is_not_of_unknown_outcome() {
    let sim = Sim::new().await;
    sim.ask(manual("r", "m1")).await.unwrap();
    sim.say("m1", MissionStatus::Executing).await;
    cancel(&sim, "m1").await;
    sim.say("m1", MissionStatus::Succeeded).await;
    sleep(Duration::from_secs(100)).await;
    assert_eq!(sim.status("m1").await, "Executing");
    // The robot is done with it and forgets it.
    let forgot = (Duration::ZERO, Ok(Reconciled::NotKnown));
    sim.robots.script("r", |s| s.reconcile.push_back(forgot));
    sim.link("r", false).await;
    sim.link("r", true).await;
    assert_eq!(sim.robots.asked("r"), ["m1"]);
    assert_eq!(sim.status("m1").await, "Executing");
    let confirmed = sim.engine().confirm(&"m1".parse().unwrap(), "").await;
    confirmed.unwrap();
    assert_eq!(sim.status("m1").await, "Succeeded");
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_was_accepted_and_never_ends_is_of_unknown_outcome_and_an_operators_to_end() {
    let mut sim = Sim::new().await;
    sim.stop("s1").await;
    sim.say("s1", MissionStatus::Executing).await;
    sleep(Duration::from_secs(59)).await;
    sim.say("s1", MissionStatus::Executing).await;
    sleep(Duration::from_secs(59)).await;
    assert_eq!(sim.status("s1").await, "Executing");
    sleep(Duration::from_secs(2)).await;
    assert_eq!(sim.status("s1").await, "Executing?");
    sim.dispatch("m1").await.unwrap();
    sim.say("m1", MissionStatus::Succeeded).await;
    sim.specs = vec![super::make::spec("q")];
    assert!(sim.reload().await.is_err());
    let (engine, id) = (sim.engine(), "s1".parse().unwrap());
    let resolved = engine.resolve(&id, MissionStatus::Succeeded, "it stands");
    resolved.await.unwrap();
    sim.reload().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_outcome_that_stays_unknown_costs_no_row_each_time_the_robot_is_asked() {
    let sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    sim.say("m1", MissionStatus::Executing).await;
    let forgot = || (Duration::ZERO, Ok(Reconciled::NotKnown));
    sim.robots
        .script("r", |s| s.reconcile.extend((0..10).map(|_| forgot())));
    sim.link("r", true).await;
    assert_eq!(sim.status("m1").await, "Executing?");
    let before = rows(&sim, "m1").await;
    for _ in 0..9 {
        sleep(Duration::from_secs(10)).await;
        sim.link("r", true).await;
    }
    assert_eq!(sim.robots.asked("r").len(), 10);
    assert_eq!(rows(&sim, "m1").await, before);
}

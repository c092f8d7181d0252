//! Nothing is sent or seen before it is durable, and a failed commit leaves nothing.

use super::make::mission;
use super::world::{Disk, Sim, idle};
use crate::engine::Refusal;
use portarium_protocols::mission::MissionStatus;
use std::time::Duration;
use tokio::time::sleep;

fn is_unreachable<T>(answer: &Result<T, Refusal>) -> bool {
    matches!(answer, Err(Refusal::Unreachable { .. }))
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_or_seen_before_the_acceptance_is_durable() {
    let sim = Sim::new().await;
    sim.disk(Disk::Hangs);
    let asked = sim.begin(mission("r", "m1")).await;
    sleep(Duration::from_secs(5)).await;
    assert!(sim.robots.dispatched("r").is_empty());
    assert_eq!(sim.status("m1").await, "-");
    assert!(!asked.is_finished());
    sim.disk(Disk::Well);
    idle().await;
    assert!(asked.await.unwrap().is_ok());
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
    assert_eq!(sim.status("m1").await, "Dispatched");
}

#[tokio::test(start_paused = true)]
async fn a_mission_that_waited_is_not_sent_before_its_attempt_is_durable() {
    let sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    sim.dispatch("m2").await.unwrap();
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
    sim.disk(Disk::Hangs);
    sim.say("m1", MissionStatus::Succeeded).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
    assert_eq!(sim.status("m1").await, "Dispatched");
    assert_eq!(sim.status("m2").await, "Pending");
    sim.disk(Disk::Well);
    idle().await;
    assert_eq!(sim.robots.dispatched("r"), ["m1", "m2"]);
    assert_eq!(sim.status("m1").await, "Succeeded");
}

#[tokio::test(start_paused = true)]
async fn a_failed_acceptance_leaves_nothing_and_the_caller_hears_so() {
    let mut sim = Sim::with(|sim| sim.specs[0].queue = 0).await;
    sim.disk(Disk::Full);
    assert!(is_unreachable(&sim.dispatch("m1").await));
    assert!(sim.robots.dispatched("r").is_empty());
    assert_eq!(sim.status("m1").await, "-");
    assert_eq!(sim.open_in_memory("r"), 0);
    sim.disk(Disk::Well);
    let mut other = mission("r", "m1");
    other.action_name = "navigate_to".into();
    other.parameters.clear();
    let answer = sim.ask(other).await.unwrap();
    assert!(!answer.repeated);
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
    sim.crash().await;
    assert_eq!(sim.open_in_memory("r"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_acceptance_leaves_nothing_when_its_caller_went_away() {
    let sim = Sim::with(|sim| sim.specs[0].queue = 0).await;
    sim.disk(Disk::Hangs);
    sim.begin(mission("r", "m1")).await.abort();
    idle().await;
    sim.disk(Disk::Full);
    sleep(Duration::from_secs(1)).await;
    sim.disk(Disk::Well);
    assert!(sim.dispatch("m2").await.is_ok());
    assert!(is_state(&sim.dispatch("m1").await));
    assert_eq!(sim.robots.dispatched("r"), ["m2"]);
}

fn is_state<T>(answer: &Result<T, Refusal>) -> bool {
    matches!(answer, Err(Refusal::State(_)))
}

#[tokio::test(start_paused = true)]
async fn what_was_accepted_is_sent_although_its_caller_went_away() {
    let sim = Sim::new().await;
    sim.disk(Disk::Hangs);
    sim.begin(mission("r", "m1")).await.abort();
    idle().await;
    sim.disk(Disk::Well);
    idle().await;
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
    assert_eq!(sim.status("m1").await, "Dispatched");
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_robots_with_open_missions_are_up_in_time() {
    let mut sim = Sim::with(|sim| {
        sim.specs = (0..10_000)
            .map(|n| super::make::spec(&format!("r{n}")))
            .collect();
    })
    .await;
    let engine = sim.engine();
    let dispatch = |n: usize| {
        let command = mission(&format!("r{n}"), &format!("m{n}"));
        engine.dispatch(super::world::CALLER.into(), command)
    };
    // In portions: a journal that is behind takes no more.
    for portion in 0..10 {
        let all = (portion * 1000..(portion + 1) * 1000).map(dispatch);
        for answer in futures::future::join_all(all).await {
            answer.unwrap();
        }
    }
    sim.die();
    let started = std::time::Instant::now();
    sim.open().await;
    let took = started.elapsed();
    println!("10000 robots with a mission each: up and asked in {took:?}");
    assert_eq!(sim.engine().probe().counts().unknown, 10_000);
    if !cfg!(debug_assertions) {
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn commits_are_grouped() {
    let sim = Sim::with(|sim| {
        sim.specs = (0..1000)
            .map(|n| super::make::spec(&format!("r{n}")))
            .collect();
    })
    .await;
    let before = sim.commits().len();
    let mut asked = Vec::new();
    for n in 0..1000 {
        let engine = sim.engine();
        let command = mission(&format!("r{n}"), &format!("m{n}"));
        asked.push(tokio::spawn(async move {
            engine.dispatch(super::world::CALLER.into(), command).await
        }));
    }
    for asked in asked {
        asked.await.unwrap().unwrap();
    }
    let commits = sim.commits().len() - before;
    println!("1000 concurrent dispatches took {commits} commits");
    assert!(commits < 20, "{commits}");
}

#[tokio::test(start_paused = true)]
async fn the_writer_ends_when_the_engine_is_gone() {
    let mut sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(5), sim.close()).await;
    assert!(closed.is_ok(), "the writer's thread would never end");
}

#[tokio::test(start_paused = true)]
async fn a_commit_of_which_the_disk_is_unsure_is_not_called_a_failure() {
    let mut sim = Sim::new().await;
    sim.disk(Disk::Unsure);
    let asked = sim.begin(mission("r", "m1")).await;
    sleep(Duration::from_secs(3)).await;
    assert!(
        !asked.is_finished(),
        "its frames may come back after a crash"
    );
    // Not even if the disk is full from now on: the first try may be there.
    sim.disk(Disk::Full);
    sleep(Duration::from_secs(3)).await;
    assert!(!asked.is_finished());
    sim.disk(Disk::Well);
    sleep(Duration::from_secs(1)).await;
    let first = asked.await.unwrap().unwrap();
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
    sim.crash().await;
    assert_eq!(
        sim.dispatch("m1").await.unwrap().request_id,
        first.request_id
    );
}

#[tokio::test(start_paused = true)]
async fn a_cancel_action_that_could_not_be_accepted_ends_what_was_not_sent_durably() {
    let sim = Sim::new().await;
    sim.dispatch("m0").await.unwrap();
    sim.dispatch("m1").await.unwrap();
    sim.disk(Disk::Hangs);
    sim.say("m0", MissionStatus::Succeeded).await;
    // m1's attempt is on its way to the disk, which is about to be full.
    let cancel = sim.begin(super::make::cancel_action("r", "c1")).await;
    sim.disk(Disk::Full);
    sleep(Duration::from_secs(1)).await;
    assert!(is_unreachable(&cancel.await.unwrap()));
    sim.disk(Disk::Well);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(sim.status("m1").await, "Cancelled");
    assert_eq!(sim.robots.dispatched("r"), ["m0"]);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_action_that_could_not_be_accepted_still_cancels_durably() {
    let mut sim = Sim::new().await;
    sim.link("r", true).await;
    sim.dispatch("m1").await.unwrap();
    sim.disk(Disk::Full);
    let command = super::make::cancel_action("r", "c1");
    assert!(is_unreachable(&sim.ask(command).await));
    assert_eq!(sim.robots.cancelled("r"), ["m1"]);
    sim.disk(Disk::Well);
    sleep(Duration::from_secs(1)).await;
    sim.robots.set_down("r", true);
    sim.crash().await;
    sim.link("r", true).await;
    assert_eq!(
        sim.robots.cancelled("r"),
        ["m1", "m1"],
        "the wish was durable"
    );
}

#[tokio::test(start_paused = true)]
async fn draining_ends_with_nothing_being_handed_over_and_nothing_new() {
    let mut sim = Sim::new().await;
    let slow = Duration::from_millis(300);
    sim.robots.script("r", |s| {
        s.dispatch
            .push_back((slow, Ok(portarium_protocols::adapter::Handover::Sent)))
    });
    sim.dispatch("m1").await.unwrap();
    sim.dispatch("m2").await.unwrap();
    let before = sim.elapsed();
    sim.engine().drain().await;
    assert!(sim.elapsed() - before >= Duration::from_millis(250));
    assert!(is_unreachable(&sim.dispatch("m3").await));
    sim.say("m1", MissionStatus::Succeeded).await;
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
    sim.stop("s1").await;
    assert_eq!(sim.robots.stopped("r"), ["s1"]);
    sim.close().await;
    sim.open().await;
    assert_eq!(sim.status("m2").await, "Cancelled");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_comes_late_does_not_take_the_mission_that_was_accepted_meanwhile() {
    let sim = Sim::new().await;
    sim.dispatch("m0").await.unwrap();
    sim.disk(Disk::Hangs);
    let refused = sim.begin(mission("r", "m1")).await;
    let index_has = sim.engine().inner.index().by_mission_id("m1");
    let Some(crate::engine::index::Found::Open(first)) = index_has else {
        panic!("it is open");
    };
    sim.disk(Disk::Full);
    sleep(Duration::from_secs(1)).await;
    assert!(is_unreachable(&refused.await.unwrap()));
    sim.disk(Disk::Well);
    sim.dispatch("m1").await.unwrap();
    let open = sim.open_in_memory("r");
    sim.engine().observer().refused(&first);
    assert_eq!(sim.open_in_memory("r"), open);
    sim.say("m0", MissionStatus::Succeeded).await;
    assert_eq!(sim.robots.dispatched("r"), ["m0", "m1"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_piles_up_behind_a_disk_that_hangs_however_often_it_is_asked_for() {
    let sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    let engine = sim.engine();
    let (mission, robot) = ("m1".parse().unwrap(), "r".parse().unwrap());
    sim.disk(Disk::Hangs);
    for _ in 0..6000 {
        // Callers that do not wait.
        let asked = async {
            let _ = tokio::time::timeout(Duration::ZERO, engine.cancel(&mission, "")).await;
            let _ = tokio::time::timeout(Duration::ZERO, engine.hold(&robot, "x")).await;
            let _ = tokio::time::timeout(Duration::ZERO, engine.release(&robot)).await;
        };
        asked.await;
    }
    let backlog = engine.journal().backlog();
    assert!(backlog <= crate::journal::BACKLOG_LIMIT + 8, "{backlog}");
    let cancelled = sim.robots.cancelled("r").len();
    assert!(
        cancelled > 5000,
        "cancels are sent all the same: {cancelled}"
    );
    let asked = engine.cancel(&mission, "").await.unwrap_err();
    assert!(!asked.for_callers().contains('/'));
    sim.disk(Disk::Well);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(engine.journal().backlog(), 0);
    let said = engine.cancel(&mission, "").await.unwrap();
    assert_eq!(said, crate::engine::Cancelled::Requested);
}

#[tokio::test(start_paused = true)]
async fn the_engine_ends_whatever_hangs() {
    let sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    sim.say("m1", MissionStatus::Succeeded).await;
    let hanging = sim.engine().journal().reader().hang().await;
    // It is looked up on the disk, to be cleared on the wire.
    sim.say("m1", MissionStatus::Succeeded).await;
    let forever = Duration::from_secs(1_000_000);
    let never = (
        forever,
        Ok(portarium_protocols::adapter::StopAnswer::Requested),
    );
    sim.robots.script("r", |s| s.stop.push_back(never));
    sim.stop("s1").await;
    let closed = tokio::time::timeout(Duration::from_secs(5), sim.engine().close()).await;
    assert!(closed.is_ok(), "a task waits for the disk or a robot");
    drop(hanging);
}

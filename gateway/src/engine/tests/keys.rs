//! Who asked for what before.

use super::make::{cancel_action, mission, stop};
use super::world::{CALLER, Sim};
use crate::{
    engine::{Dispatched, Refusal},
    journal::Retention,
};
use portarium_protocols::mission::{ActionType, MissionStatus};
use std::time::Duration;
use tokio::time::sleep;

fn is_duplicate(answer: &Result<Dispatched, Refusal>) -> bool {
    matches!(answer, Err(Refusal::Duplicate(_)))
}

#[tokio::test(start_paused = true)]
async fn the_same_again_gets_the_same_answer_also_across_a_crash_and_after_the_end() {
    let mut sim = Sim::new().await;
    let first = sim.dispatch("m1").await.unwrap();
    let mut again = mission("r", "m1");
    again.requested_at = "2026-01-01T00:00:00Z".into();
    again.correlation_id = "other".into();
    for round in 0..4 {
        let answer = sim.ask(again.clone()).await.unwrap();
        assert_eq!(answer.request_id, first.request_id, "round {round}");
        assert!(answer.repeated);
        match round {
            0 => sim.crash().await,
            1 => sim.say("m1", MissionStatus::Succeeded).await,
            _ => sim.crash().await,
        }
    }
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
}

#[tokio::test(start_paused = true)]
async fn another_content_under_a_known_key_is_a_duplicate_also_after_the_end() {
    let mut sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    for _ in 0..3 {
        let mut other = mission("r", "m1");
        other.parameters.insert("x".into(), "2".into());
        assert!(is_duplicate(&sim.ask(other).await));
        let mut other = mission("r", "m2");
        other.plan_effect_idempotency_key = "plan-m1".into();
        assert!(is_duplicate(&sim.ask(other).await));
        let mut other = mission("r", "m1");
        other.plan_effect_idempotency_key = "plan-m2".into();
        other.idempotency_key = "key-m2".into();
        assert!(is_duplicate(&sim.ask(other).await));
        let mut other = mission("r", "m2");
        other.idempotency_key = "key-m1".into();
        assert!(is_duplicate(&sim.ask(other).await));
        sim.say("m1", MissionStatus::Succeeded).await;
        sim.crash().await;
    }
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
}

#[tokio::test(start_paused = true)]
async fn keys_are_the_callers_own() {
    let sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    let mut other = mission("r", "m2");
    other.plan_effect_idempotency_key = "plan-m1".into();
    other.idempotency_key = "key-m1".into();
    let engine = sim.engine();
    let answer = engine
        .dispatch("spiffe://example.org/other".into(), other)
        .await;
    assert!(!answer.unwrap().repeated);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_action_is_remembered_like_a_mission() {
    let mut sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    let first = sim.ask(cancel_action("r", "c1")).await.unwrap();
    sim.say("m1", MissionStatus::Cancelled).await;
    sim.crash().await;
    let again = sim.ask(cancel_action("r", "c1")).await.unwrap();
    assert_eq!(again.request_id, first.request_id);
    assert_eq!(sim.robots.cancelled("r"), ["m1"]);
}

#[tokio::test(start_paused = true)]
async fn two_that_ask_for_the_same_at_once_get_one_mission() {
    let sim = Sim::new().await;
    let engine = sim.engine();
    let both = tokio::join!(
        engine.dispatch(CALLER.into(), mission("r", "m1")),
        engine.dispatch(CALLER.into(), mission("r", "m1")),
    );
    assert_eq!(both.0.unwrap().request_id, both.1.unwrap().request_id);
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
}

async fn let_retention_run(sim: &Sim) {
    sim.dispatch("tick").await.unwrap();
    sim.say("tick", MissionStatus::Cancelled).await;
    sleep(Duration::from_secs(1)).await;
}

/// Until nothing is kept at all.
async fn let_all_go(sim: &mut Sim) {
    sleep(Duration::from_secs(2)).await;
    let kept = sim.engine().journal().reader().updates(0, None, 10).await;
    assert!(kept.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn retention_by_count_keeps_the_last_ones() {
    let mut sim = Sim::with(|sim| {
        sim.retention = Retention {
            at_most: 3,
            ..sim.retention
        };
    })
    .await;
    for n in 0..6 {
        sim.dispatch(&format!("m{n}")).await.unwrap();
        sim.say(&format!("m{n}"), MissionStatus::Succeeded).await;
    }
    let_retention_run(&sim).await;
    assert_eq!(sim.status("m0").await, "-");
    assert_eq!(sim.status("m2").await, "-");
    assert_eq!(sim.status("m5").await, "Succeeded");
    sim.crash().await;
    assert_eq!(sim.status("m5").await, "Succeeded");
    assert!(!sim.dispatch("m0").await.unwrap().repeated);
}

#[tokio::test(start_paused = true)]
async fn a_stop_with_a_missions_keys_does_not_take_them() {
    let mut sim = Sim::new().await;
    let first = sim.dispatch("m1").await.unwrap();
    let mut halt = stop("r", "s1", ActionType::Stop);
    halt.plan_effect_idempotency_key = "plan-m1".into();
    halt.idempotency_key = "key-m1".into();
    sim.halt(halt).await;
    for _ in 0..2 {
        let again = sim.dispatch("m1").await.unwrap();
        assert_eq!(again.request_id, first.request_id);
        sim.crash().await;
    }
}

#[tokio::test(start_paused = true)]
async fn retention_by_age_frees_keys_and_numbers_are_never_used_again() {
    let mut sim = Sim::with(|sim| sim.retention.keep_for = Duration::ZERO).await;
    let first = sim.dispatch("m1").await.unwrap();
    sim.say("m1", MissionStatus::Succeeded).await;
    let_retention_run(&sim).await;
    assert_eq!(sim.status("m1").await, "-");
    let again = sim.dispatch("m1").await.unwrap();
    assert!(!again.repeated);
    assert_ne!(again.request_id, first.request_id);
    sim.say("m1", MissionStatus::Succeeded).await;
    let_all_go(&mut sim).await;
    let head = *sim.engine().journal().head().borrow();
    sim.crash().await;
    assert!(
        *sim.engine().journal().head().borrow() >= head,
        "watchers would miss what comes"
    );
}

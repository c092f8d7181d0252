//! The robots' words.

use super::make::{manual, mission, report};
use super::world::{Disk, Sim, idle};
use crate::engine::Refusal;
use portarium_protocols::{
    adapter::{DispatchError, Handover, Report, Speaker},
    mission::MissionStatus,
};
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;

/// The states that a watcher saw of a mission.
async fn seen(sim: &Sim, id: &str) -> Vec<String> {
    let reader = sim.engine().journal().reader().clone();
    let updates = reader.updates(0, None, 1000).await.unwrap();
    updates
        .iter()
        .filter(|update| update.command.mission_id.as_str() == id)
        .map(|update| update.state.status.to_string())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_report_that_skips_states_passes_through_them() {
    let sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    sim.say("m1", MissionStatus::Succeeded).await;
    let all = ["Pending", "Dispatched", "Executing", "Succeeded"];
    assert_eq!(seen(&sim, "m1").await, all);
    assert!(sim.robots.settled().contains("m1"));
}

#[tokio::test(start_paused = true)]
async fn reports_that_repeat_or_regress_change_nothing_and_cost_no_row() {
    let sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    for _ in 0..10 {
        for status in [
            MissionStatus::Executing,
            MissionStatus::Dispatched,
            MissionStatus::Pending,
        ] {
            let mut word = report("m1", status);
            word.observed_at = format!("{:?}", sim.elapsed());
            sim.report(word).await;
        }
    }
    assert_eq!(
        seen(&sim, "m1").await,
        ["Pending", "Dispatched", "Executing"]
    );
    sim.say("m1", MissionStatus::Failed).await;
    sim.say("m1", MissionStatus::Succeeded).await;
    sim.say("m1", MissionStatus::Executing).await;
    assert_eq!(sim.status("m1").await, "Failed");
    assert_eq!(seen(&sim, "m1").await.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_robot_that_changes_its_mind_without_end_fills_no_journal_and_its_end_is_heard() {
    let sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    for n in 0..1_000 {
        let said = [MissionStatus::Executing, MissionStatus::WaitingPreemption][n % 2];
        let mut word = report("m1", said);
        word.detail = n.to_string();
        sim.report(word).await;
    }
    let rows = seen(&sim, "m1").await.len();
    assert!((200..250).contains(&rows), "{rows}");
    sim.say("m1", MissionStatus::Succeeded).await;
    assert_eq!(sim.status("m1").await, "Succeeded");
    // The next one is heard from its beginning on.
    sim.dispatch("m2").await.unwrap();
    sim.say("m2", MissionStatus::Executing).await;
    assert_eq!(sim.status("m2").await, "Executing");
}

#[tokio::test(start_paused = true)]
async fn a_word_of_the_robot_that_is_not_older_makes_an_unknown_outcome_known() {
    for (word, status) in [
        (MissionStatus::Dispatched, "Executing?"),
        (MissionStatus::Executing, "Executing"),
        (MissionStatus::WaitingPreemption, "WaitingPreemption"),
        (MissionStatus::Succeeded, "Succeeded"),
    ] {
        let mut sim = Sim::new().await;
        sim.dispatch("m1").await.unwrap();
        sim.say("m1", MissionStatus::Executing).await;
        let forgot = Ok(portarium_protocols::adapter::Reconciled::NotKnown);
        sim.robots
            .script("r", |s| s.reconcile.push_back((Duration::ZERO, forgot)));
        sim.crash().await;
        assert_eq!(sim.status("m1").await, "Executing?");
        sim.say("m1", word).await;
        assert_eq!(sim.status("m1").await, status);
    }
}

/// Whoever may write the topic that these share.
fn one_of(robots: &[&str]) -> Speaker {
    let robots = robots.iter().map(|id| id.parse().unwrap());
    Speaker::OneOf(Arc::new(robots.collect()))
}

#[tokio::test(start_paused = true)]
async fn a_robot_has_no_word_on_anothers_mission_nor_has_a_branch_that_is_not_its_own() {
    let sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    let other = Speaker::Robot("other".parse().unwrap());
    sim.report(Report {
        speaker: other.clone(),
        ..report("m1", MissionStatus::Succeeded)
    })
    .await;
    assert_eq!(sim.status("m1").await, "Dispatched");
    let told = sim.disbelieved();
    assert_eq!((told.len(), &told[0].speaker), (1, &other));
    assert_eq!(told[0].mission, Some("m1".parse().unwrap()));
    sim.report(Report {
        speaker: one_of(&["other", "another"]),
        ..report("m1", MissionStatus::Succeeded)
    })
    .await;
    assert_eq!(sim.status("m1").await, "Dispatched");
    sim.report(Report {
        speaker: one_of(&["other", "r"]),
        ..report("m1", MissionStatus::Executing)
    })
    .await;
    assert_eq!(sim.status("m1").await, "Executing");
    assert_eq!(sim.disbelieved().len(), 1, "of the second");
}

#[tokio::test(start_paused = true)]
async fn a_word_on_a_mission_that_was_believed_not_to_be_sent_is_believed() {
    let sim = Sim::new().await;
    let reason = "gone".to_owned();
    let gone: (_, Result<Handover, _>) =
        (Duration::ZERO, Err(DispatchError::Unreachable { reason }));
    sim.robots.script("r", |s| s.dispatch.push_back(gone));
    sim.dispatch("m1").await.unwrap();
    sim.say("m1", MissionStatus::Executing).await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
    assert_eq!(sim.status("m1").await, "Executing");
    sim.say("m1", MissionStatus::Succeeded).await;
    assert_eq!(sim.open_in_memory("r"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_word_on_what_nobody_knows_is_let_go() {
    let sim = Sim::new().await;
    sim.say("m9", MissionStatus::Succeeded).await;
    assert_eq!(sim.status("m9").await, "-");
}

#[tokio::test(start_paused = true)]
async fn a_manual_mission_may_fail_or_be_cancelled_without_an_operator() {
    for (end, expected) in [
        (MissionStatus::Failed, "Failed"),
        (MissionStatus::Cancelled, "Cancelled"),
    ] {
        let sim = Sim::new().await;
        sim.ask(manual("r", "m1")).await.unwrap();
        sim.say("m1", end).await;
        assert_eq!(sim.status("m1").await, expected);
    }
    let sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    sim.say("m1", MissionStatus::Executing).await;
    let answer = sim.engine().confirm(&"m1".parse().unwrap(), "").await;
    assert!(answer.is_err(), "it is not ManualOnly");
}

#[tokio::test(start_paused = true)]
async fn a_rejected_mission_fails_with_the_robots_reason() {
    let sim = Sim::new().await;
    let reason = "battery low".to_owned();
    let no: (_, Result<Handover, _>) = (Duration::ZERO, Err(DispatchError::Rejected { reason }));
    sim.robots.script("r", |s| s.dispatch.push_back(no));
    sim.ask(mission("r", "m1")).await.unwrap();
    assert_eq!(sim.status("m1").await, "Failed");
    assert!(sim.detail("m1").await.contains("battery low"));
    sim.dispatch("m2").await.unwrap();
    assert_eq!(sim.robots.dispatched("r"), ["m1", "m2"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_resumes_without_a_gap_or_a_repeat_at_any_position() {
    let mut sim = Sim::new().await;
    for n in 0..20 {
        let id = format!("m{n}");
        sim.dispatch(&id).await.unwrap();
        sim.say(&id, MissionStatus::Executing).await;
        sim.say(&id, MissionStatus::Succeeded).await;
    }
    sim.crash().await;
    let reader = sim.engine().journal().reader().clone();
    let all = reader.updates(0, None, 1000).await.unwrap();
    assert_eq!(all.len(), 80);
    for page in [1, 3, 7, 80] {
        let (mut after, mut got) = (0, Vec::new());
        loop {
            let next = reader.updates(after, None, page).await.unwrap();
            let Some(last) = next.last() else { break };
            after = last.position;
            got.extend(next.iter().map(|u| (u.position, u.state.clone())));
        }
        let expected: Vec<_> = all.iter().map(|u| (u.position, u.state.clone())).collect();
        assert_eq!(got, expected);
    }
    let number = sim.engine().number(&"m7".parse().unwrap()).unwrap();
    let one = reader.updates(0, Some(number), 1000).await.unwrap();
    assert_eq!(one.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_word_on_a_mission_that_was_not_sent_does_not_keep_it_from_the_robot() {
    let sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    sim.dispatch("m2").await.unwrap();
    sim.say("m2", MissionStatus::Succeeded).await;
    assert_eq!(sim.status("m2").await, "Pending");
    let told = sim.disbelieved();
    assert_eq!(told.len(), 1);
    assert!(told[0].reason.contains("not sent"), "{told:?}");
    sim.disk(Disk::Hangs);
    sim.say("m1", MissionStatus::Succeeded).await;
    // m2's attempt is on its way to the disk.
    sim.say("m2", MissionStatus::Executing).await;
    sim.disk(Disk::Well);
    idle().await;
    assert_eq!(sim.robots.dispatched("r"), ["m1", "m2"]);
    assert_eq!(sim.status("m2").await, "Dispatched");
}

#[tokio::test(start_paused = true)]
async fn a_robot_that_has_it_but_has_not_begun_has_been_heard() {
    let sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    sim.say("m1", MissionStatus::Pending).await;
    sleep(Duration::from_secs(100)).await;
    assert_eq!(sim.status("m1").await, "Dispatched");
}

#[tokio::test(start_paused = true)]
async fn a_manual_mission_succeeds_by_an_operator_alone() {
    let mut sim = Sim::new().await;
    sim.ask(manual("r", "m1")).await.unwrap();
    let id = "m1".parse().unwrap();
    assert!(
        sim.engine().confirm(&id, "").await.is_err(),
        "it has not begun"
    );
    for _ in 0..20 {
        let mut word = report("m1", MissionStatus::Succeeded);
        word.observed_at = format!("{:?}", sim.elapsed());
        sim.report(word).await;
    }
    assert!(
        seen(&sim, "m1").await.len() <= 4,
        "{:?}",
        seen(&sim, "m1").await
    );
    assert!(matches!(sim.dispatch("m2").await, Err(Refusal::State(_))));
    sim.crash().await;
    let view = sim.engine().status(&id).await.unwrap().unwrap();
    assert!(view.state.awaiting_confirmation);
    let known = Ok(portarium_protocols::adapter::Reconciled::Known(report(
        "m1",
        MissionStatus::Succeeded,
    )));
    sim.robots
        .script("r", |s| s.reconcile.push_back((Duration::ZERO, known)));
    sim.crash().await;
    assert_eq!(sim.status("m1").await, "Executing");
    sim.engine().confirm(&id, "seen").await.unwrap();
    assert_eq!(sim.status("m1").await, "Succeeded");
    assert!(sim.engine().confirm(&id, "").await.is_err());
    sim.dispatch("m2").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_words_on_a_stop_are_followed_and_repeats_cost_no_row() {
    let sim = Sim::new().await;
    sim.stop("s1").await;
    for status in [
        MissionStatus::Executing,
        MissionStatus::Executing,
        MissionStatus::Succeeded,
    ] {
        for n in 0..5 {
            let mut word = report("s1", status);
            word.observed_at = format!("{n}");
            sim.report(word).await;
        }
    }
    let all = ["Pending", "Dispatched", "Executing", "Succeeded"];
    assert_eq!(seen(&sim, "s1").await, all);
    assert_eq!(sim.open_in_memory("r"), 0);
}

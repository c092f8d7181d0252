//! A stop is a fence.

use super::{
    fake::Got,
    make::{mission, report, stop},
    world::{Disk, Sim, idle},
};
use crate::engine::{OperatorError, Refusal};
use portarium_protocols::{
    adapter::{DispatchError, Handover, StopAnswer},
    mission::{ActionType, MissionStatus},
};
use std::time::Duration;
use tokio::time::sleep;

#[tokio::test(start_paused = true)]
async fn of_ten_that_wait_none_moves_after_a_stop_also_after_a_crash() {
    let mut sim = Sim::new().await;
    for n in 0..11 {
        sim.dispatch(&format!("m{n}")).await.unwrap();
    }
    let answer = sim.stop("s1").await;
    assert!(answer.fence_durable && !answer.robot_unreachable);
    assert_eq!(answer.answer, Ok(StopAnswer::Requested));
    assert!(!answer.request_id.is_empty());
    assert_eq!(sim.robots.cancelled("r"), ["m0"]);
    sim.crash().await;
    sim.say("m0", MissionStatus::Cancelled).await;
    for n in 0..11 {
        assert_eq!(sim.status(&format!("m{n}")).await, "Cancelled");
    }
    sleep(Duration::from_secs(100)).await;
    assert_eq!(sim.robots.dispatched("r"), ["m0"]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_an_attempt_commits_keeps_it_from_the_robot() {
    let sim = Sim::new().await;
    sim.disk(Disk::Hangs);
    let asked = sim.begin(mission("r", "m1")).await;
    let before = sim.elapsed();
    let answer = sim.stop("s1").await;
    assert!(sim.elapsed() - before <= Duration::from_millis(22));
    assert!(!answer.fence_durable);
    assert!(answer.request_id.is_empty());
    assert_eq!(sim.robots.stopped("r"), ["s1"]);
    sim.disk(Disk::Well);
    idle().await;
    assert!(asked.await.unwrap().is_ok());
    assert_eq!(sim.status("m1").await, "Cancelled");
    assert!(sim.robots.dispatched("r").is_empty());
    assert!(sim.robots.cancelled("r").is_empty());
}

#[tokio::test(start_paused = true)]
async fn no_mission_is_sent_before_the_fence_is_durable() {
    let sim = Sim::new().await;
    sim.disk(Disk::Hangs);
    sim.stop("s1").await;
    let asked = sim.begin(mission("r", "m1")).await;
    sleep(Duration::from_secs(1)).await;
    assert!(sim.robots.dispatched("r").is_empty());
    sim.disk(Disk::Well);
    idle().await;
    asked.await.unwrap().unwrap();
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_being_handed_over_is_cancelled_and_ends_by_the_robots_word() {
    let sim = Sim::new().await;
    let slow = (Duration::from_secs(2), Ok(Handover::Sent));
    sim.robots.script("r", |s| s.dispatch.push_back(slow));
    sim.dispatch("m1").await.unwrap();
    sim.stop("s1").await;
    assert_eq!(sim.robots.cancelled("r"), ["m1"]);
    sleep(Duration::from_secs(3)).await;
    assert_eq!(sim.status("m1").await, "Dispatched");
    sim.say("m1", MissionStatus::Cancelled).await;
    assert_eq!(sim.status("m1").await, "Cancelled");
}

#[tokio::test(start_paused = true)]
async fn what_turns_out_not_to_have_been_handed_over_is_cancelled_by_the_stop() {
    let sim = Sim::new().await;
    let reason = "gone".to_owned();
    let slow = (
        Duration::from_secs(2),
        Err(DispatchError::Unreachable { reason }),
    );
    sim.robots.script("r", |s| s.dispatch.push_back(slow));
    sim.dispatch("m1").await.unwrap();
    sim.stop("s1").await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(sim.status("m1").await, "Cancelled");
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
}

#[tokio::test(start_paused = true)]
async fn a_repeat_of_a_stop_is_sent_again_and_the_same_stop_is_followed() {
    let sim = Sim::new().await;
    let first = sim.stop("s1").await;
    let second = sim.stop("s1").await;
    assert_eq!(sim.robots.stopped("r"), ["s1", "s1"]);
    assert_eq!(first.request_id, second.request_id);
    sim.say("s1", MissionStatus::Succeeded).await;
    assert_eq!(sim.status("s1").await, "Succeeded");
    sim.stop("s1").await;
    assert_eq!(sim.robots.stopped("r"), ["s1", "s1", "s1"]);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_stops_while_one_is_under_way_become_one_more() {
    let sim = Sim::new().await;
    let slow = (Duration::from_millis(500), Ok(StopAnswer::Accepted));
    sim.robots.script("r", |s| s.stop.push_back(slow));
    let mut asked = Vec::new();
    for n in 0..101 {
        let (engine, id) = (sim.engine(), format!("s{n}"));
        asked.push(tokio::spawn(async move {
            let command = stop("r", &id, ActionType::Stop);
            engine.stop("op".into(), command).await.unwrap()
        }));
        idle().await;
    }
    assert_eq!(sim.robots.stopped("r").len(), 1);
    for asked in asked {
        assert!(asked.await.unwrap().fence_durable);
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(sim.robots.stopped("r").len(), 2);
    assert!(sim.open_in_memory("r") <= 18);
}

#[tokio::test(start_paused = true)]
async fn an_emergency_stop_latches_across_a_crash_until_an_operator_releases() {
    let mut sim = Sim::new().await;
    sim.estop("e1").await;
    for _ in 0..2 {
        assert!(matches!(sim.dispatch("m1").await, Err(Refusal::State(_))));
        sim.crash().await;
    }
    sim.engine().release(&"r".parse().unwrap()).await.unwrap();
    sim.crash().await;
    sim.dispatch("m1").await.unwrap();
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
}

#[tokio::test(start_paused = true)]
async fn a_robot_is_not_released_while_a_stop_has_not_reached_it() {
    let sim = Sim::new().await;
    sim.link("r", false).await;
    sim.estop("e1").await;
    let robot = "r".parse().unwrap();
    let answer = sim.engine().release(&robot).await;
    assert!(matches!(answer, Err(OperatorError::State(_))));
    sim.link("r", true).await;
    sim.engine().release(&robot).await.unwrap();
}

/// Begins a release whose commit hangs, lets something else happen, and has both committed.
async fn while_releasing(sim: &mut Sim, other: impl Future<Output = ()> + Send + 'static) {
    let robot = "r".parse().unwrap();
    sim.disk(Disk::Hangs);
    let engine = sim.engine();
    let release = tokio::spawn(async move { engine.release(&robot).await });
    idle().await;
    let other = tokio::spawn(other);
    idle().await;
    sim.disk(Disk::Well);
    let _ = release.await.unwrap();
    other.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_release_does_not_undo_an_emergency_stop_of_the_same_moment() {
    let mut sim = Sim::new().await;
    sim.estop("e1").await;
    let engine = sim.engine();
    let command = stop("r", "e2", ActionType::EstopRequest);
    let estop = async move { drop(engine.stop("op".into(), command).await) };
    while_releasing(&mut sim, estop).await;
    for _ in 0..2 {
        assert!(sim.engine().robot(&"r".parse().unwrap()).unwrap().latched);
        sim.crash().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_held_robot_takes_no_mission_and_sends_none_until_released() {
    let mut sim = Sim::new().await;
    let robot = "r".parse().unwrap();
    sim.dispatch("m1").await.unwrap();
    sim.dispatch("m2").await.unwrap();
    sim.engine().hold(&robot, "").await.unwrap();
    sim.say("m1", MissionStatus::Succeeded).await;
    assert!(matches!(sim.dispatch("m3").await, Err(Refusal::State(_))));
    sim.crash().await;
    assert_eq!(sim.robots.dispatched("r"), ["m1"]);
    sim.stop("s1").await;
    assert_eq!(sim.robots.stopped("r"), ["s1"], "stops go all the same");
    sim.engine().release(&robot).await.unwrap();
    sim.dispatch("m4").await.unwrap();
    assert_eq!(sim.robots.dispatched("r"), ["m1", "m4"]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_answer_is_not_called_an_unreachable_robot() {
    let sim = Sim::new().await;
    let slow = (Duration::from_millis(500), Ok(StopAnswer::Accepted));
    sim.robots.script("r", |s| s.stop.push_back(slow));
    assert!(!sim.stop("s1").await.robot_unreachable);
    assert!(!sim.stop("s2").await.robot_unreachable);
}

#[tokio::test(start_paused = true)]
async fn a_coalesced_stop_never_weakens_an_emergency_stop() {
    let sim = Sim::new().await;
    let slow = (Duration::from_millis(200), Ok(StopAnswer::Requested));
    sim.robots.script("r", |s| s.stop.push_back(slow));
    sim.stop("s1").await;
    sim.estop("e1").await;
    sim.stop("s2").await;
    sleep(Duration::from_secs(1)).await;
    let sent = sim
        .robots
        .got("r", |got| *got == Got::Stop(ActionType::EstopRequest));
    assert_eq!(sent, ["e1"]);
    // Its word on the one that was sent covers the one that was not.
    sim.say("e1", MissionStatus::Succeeded).await;
    assert_eq!(sim.status("s2").await, "Succeeded");
}

#[tokio::test(start_paused = true)]
async fn an_emergency_stop_out_of_reach_stays_one_whatever_stops_come_after() {
    let mut sim = Sim::new().await;
    sim.link("r", false).await;
    sim.estop("e1").await;
    for n in 0..20 {
        sim.stop(&format!("s{n}")).await;
    }
    sim.crash().await;
    sim.link("r", true).await;
    let last = sim.robots.history();
    let last = last
        .iter()
        .rfind(|e| matches!(e.got, Got::Stop(_)))
        .unwrap();
    assert_eq!(last.got, Got::Stop(ActionType::EstopRequest));
}

#[tokio::test(start_paused = true)]
async fn stops_while_the_disk_hangs_do_not_grow_the_journals_queue_without_bound() {
    let sim = Sim::new().await;
    sim.disk(Disk::Hangs);
    let engine = sim.engine();
    for n in 0..20_000 {
        let command = stop("r", &format!("s{n}"), ActionType::Stop);
        // Dropped by an impatient caller.
        let asked = engine.stop("op".into(), command);
        let _ = tokio::time::timeout(Duration::ZERO, asked).await;
    }
    assert!(sim.robots.stopped("r").len() >= 1000);
    let backlog = engine.journal().backlog();
    assert!(backlog <= crate::journal::BACKLOG_LIMIT + 1, "{backlog}");
}

#[tokio::test(start_paused = true)]
async fn a_release_does_not_undo_a_hold_of_the_same_moment() {
    let mut sim = Sim::new().await;
    sim.estop("e1").await;
    let engine = sim.engine();
    let hold = async move {
        engine
            .hold(&"r".parse().unwrap(), "look at it")
            .await
            .unwrap()
    };
    while_releasing(&mut sim, hold).await;
    for _ in 0..2 {
        let view = sim.engine().robot(&"r".parse().unwrap()).unwrap();
        assert_eq!(view.hold.as_deref(), Some("look at it"));
        assert!(view.latched);
        sim.crash().await;
    }
}

#[tokio::test]
async fn a_mission_is_in_line_with_its_adapter_before_its_robots_lock_is_let_go() {
    let robots = super::fake::Robots::new();
    let adapter = robots.adapter(&tokio_util::sync::CancellationToken::new());
    let command = std::sync::Arc::new(super::make::mission("r", "m"));
    let within = std::time::Duration::from_secs(1);
    let id = command.mission_id.clone();
    let _call = crate::engine::driver::dispatch(adapter, id, command, within);
    // Nobody has polled the call yet: a stop that comes now goes behind the mission.
    assert_eq!(robots.dispatched("r"), ["m"]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_adds_nothing_to_a_fence_on_its_way_is_kept_and_latched_across_a_crash() {
    let mut sim = Sim::new().await;
    sim.estop("e1").await;
    sim.say("e1", MissionStatus::Succeeded).await;
    sim.disk(Disk::Hangs);
    // Its fence is on its way, and behind it a release.
    sim.stop("s1").await;
    let engine = sim.engine();
    let release = tokio::spawn(async move { engine.release(&"r".parse().unwrap()).await });
    idle().await;
    while !sim.engine().journal().is_congested() {
        sim.engine().journal().append(Default::default());
    }
    sim.link("r", false).await;
    sim.estop("e2").await;
    sim.estop("e2").await;
    let backlog = sim.engine().journal().backlog();
    assert!(backlog <= crate::journal::BACKLOG_LIMIT + 1, "{backlog}");
    sim.disk(Disk::Well);
    sleep(Duration::from_secs(1)).await;
    assert!(release.await.unwrap().is_err());
    sim.crash().await;
    assert!(sim.engine().robot(&"r".parse().unwrap()).unwrap().latched);
    let before = sim.robots.stopped("r").len();
    sim.link("r", true).await;
    assert!(sim.robots.stopped("r").len() > before);
}

#[test]
fn a_trouble_that_lasts_is_said_at_its_beginning_and_then_rarely() {
    let mut complaint = crate::engine::lane::Complaint::default();
    let start = tokio::time::Instant::now();
    let said = (0..3600)
        .filter(|second| complaint.is_due(start + Duration::from_secs(*second)))
        .count();
    assert_eq!(said, 6);
    complaint.end();
    assert!(complaint.is_due(start));
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_is_behind_keeps_back_reports_but_no_return_and_no_word_on_a_stop() {
    let sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    sim.stop("s1").await;
    sim.link("r", false).await;
    let robot = sim.engine().inner.robot(&"r".parse().unwrap()).unwrap();
    sim.disk(Disk::Hangs);
    while sim.engine().journal().backlog() <= crate::journal::BACKLOG_LIMIT {
        sim.engine().journal().append(Default::default());
    }
    for _ in 0..2 {
        sim.say("m1", MissionStatus::Executing).await;
    }
    assert!(!robot.lock().open.values().any(|open| open.state.heard));
    sim.link("r", true).await;
    assert_eq!(sim.robots.cancelled("r"), ["m1", "m1"]);
    sim.say("s1", MissionStatus::Succeeded).await;
    assert_eq!(
        robot.lock().stop.answered.1,
        Some(Ok(StopAnswer::Stationary))
    );
    // Who says more than is kept waits, and nothing of it is lost.
    let (updates, said) = (sim.updates(), Duration::from_millis(10));
    let more = tokio::spawn(async move {
        for _ in 0..5000 {
            let word = report("m1", MissionStatus::Executing);
            let update = portarium_protocols::adapter::Update::Report(word);
            updates.send(update).await.unwrap();
        }
    });
    sleep(said).await;
    assert!(!more.is_finished());
    sim.disk(Disk::Well);
    sleep(Duration::from_secs(1)).await;
    assert!(more.is_finished());
    assert_eq!(sim.status("m1").await, "Executing");
}

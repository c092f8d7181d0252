//! A stop is sent again until its robot has answered, and not where it would stop what came after it.

use super::{
    make::{report, stop},
    world::Sim,
};
use portarium_protocols::{
    adapter::{SignalError, StopAnswer},
    mission::{ActionType, MissionStatus},
};
use std::time::Duration;
use tokio::time::sleep;

#[tokio::test(start_paused = true)]
async fn a_stop_for_a_robot_out_of_reach_is_kept_and_sent_on_its_return_also_across_a_crash() {
    for crash in [false, true] {
        let mut sim = Sim::new().await;
        sim.link("r", false).await;
        let answer = sim.stop("s1").await;
        assert!(answer.robot_unreachable && answer.fence_durable);
        if crash {
            sim.crash().await;
        }
        // There is no time limit on it.
        sleep(Duration::from_secs(1000)).await;
        assert_eq!(sim.status("s1").await, "Pending");
        let before = sim.robots.stopped("r").len();
        let at = sim.elapsed();
        sim.link("r", true).await;
        assert_eq!(sim.robots.stopped("r").len(), before + 1);
        assert!(sim.elapsed() - at < Duration::from_millis(5));
        assert_eq!(sim.status("s1").await, "Dispatched");
    }
}

#[tokio::test(start_paused = true)]
async fn a_repeated_stop_for_a_robot_out_of_reach_is_kept_across_a_crash_too() {
    let mut sim = Sim::new().await;
    sim.stop("s1").await;
    sim.say("s1", MissionStatus::Succeeded).await;
    sim.link("r", false).await;
    sim.stop("s1").await;
    sim.crash().await;
    let before = sim.robots.stopped("r").len();
    sim.link("r", true).await;
    assert!(sim.robots.stopped("r").len() > before);
}

#[tokio::test(start_paused = true)]
async fn a_stop_under_a_name_that_was_used_before_is_kept_until_the_robot_answers_to_it() {
    for crash in [false, true] {
        let mut sim = Sim::new().await;
        sim.stop("s1").await;
        sim.say("s1", MissionStatus::Succeeded).await;
        // Taken for the robot, and lost: the robot is away, and nobody has noticed.
        sim.stop("s1").await;
        // Of the one before, as far as anybody can tell.
        sim.say("s1", MissionStatus::Succeeded).await;
        sim.link("r", false).await;
        if crash {
            sim.crash().await;
        }
        let before = sim.robots.stopped("r").len();
        sim.link("r", true).await;
        let after = sim.robots.stopped("r").len();
        assert_eq!(after, before + 1, "crash: {crash}");
        if crash {
            // Only from here it is known to have been sent once more.
            sim.link("r", true).await;
        }
        sim.say("s1", MissionStatus::Succeeded).await;
        let before = sim.robots.stopped("r").len();
        sim.link("r", true).await;
        sim.crash().await;
        sim.link("r", true).await;
        assert_eq!(sim.robots.stopped("r").len(), before, "crash: {crash}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_report_on_an_emergency_stop_does_not_answer_a_later_stop_that_it_is_sent_again_for() {
    for crash in [false, true] {
        let mut sim = Sim::new().await;
        sim.link("r", false).await;
        sim.estop("e1").await;
        sim.stop("s2").await;
        // One of those that seemed not to get through did.
        sim.say("e1", MissionStatus::Succeeded).await;
        if crash {
            sim.crash().await;
        }
        // Taken for the robot, and lost.
        sim.link("r", true).await;
        let before = sim.robots.stopped("r").len();
        sim.link("r", true).await;
        assert_eq!(sim.robots.stopped("r").len(), before + 1, "crash: {crash}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_report_on_an_emergency_stop_that_has_ended_does_not_answer_the_stop_behind_it() {
    let sim = Sim::new().await;
    sim.estop("e1").await;
    sim.say("e1", MissionStatus::Succeeded).await;
    sim.estop("e1").await;
    // Lost, which only the link's return will tell; of the other one the robot still speaks.
    sim.stop("s2").await;
    sim.say("e1", MissionStatus::Succeeded).await;
    let before = sim.robots.stopped("r").len();
    sim.link("r", true).await;
    assert_eq!(sim.robots.stopped("r").len(), before + 1);
    // From here on its word is on the one that was sent for both.
    sim.say("e1", MissionStatus::Succeeded).await;
    sim.link("r", true).await;
    assert_eq!(sim.robots.stopped("r").len(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_a_mission_has_overtaken_is_not_sent_again_whatever_its_name() {
    for crash in [false, true] {
        let mut sim = Sim::new().await;
        sim.stop("s1").await;
        sim.say("s1", MissionStatus::Succeeded).await;
        sim.stop("s1").await;
        sim.dispatch("m1").await.unwrap();
        if crash {
            sim.crash().await;
        }
        sim.link("r", false).await;
        sim.link("r", true).await;
        assert_eq!(sim.robots.stopped("r"), ["s1", "s1"], "crash: {crash}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_the_robot_has_not_answered_is_sent_once_more_after_a_start() {
    let mut sim = Sim::new().await;
    sim.stop("s1").await;
    sim.estop("e1").await;
    sim.stop("s2").await;
    sim.crash().await;
    assert_eq!(sim.robots.stopped("r"), ["s1", "e1", "s2", "e1"]);
    sim.say("e1", MissionStatus::Executing).await;
    sim.crash().await;
    assert_eq!(sim.robots.stopped("r").len(), 4);
}

#[tokio::test(start_paused = true)]
async fn after_a_start_a_stop_is_sent_once_more_for_a_mission_before_it_and_not_for_one_behind() {
    let mut sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    sim.stop("s1").await;
    sim.crash().await;
    assert_eq!(sim.robots.stopped("r"), ["s1", "s1"]);
    sim.say("m1", MissionStatus::Cancelled).await;
    sim.dispatch("m2").await.unwrap();
    sim.crash().await;
    assert_eq!(sim.robots.stopped("r").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_robot_that_was_away_without_being_seen_so_gets_again_what_it_did_not_answer() {
    let sim = Sim::new().await;
    sim.dispatch("m1").await.unwrap();
    sim.stop("s1").await;
    // Only its return is told: it was quicker than the news of its absence.
    sim.link("r", true).await;
    assert_eq!(sim.robots.stopped("r"), ["s1", "s1"]);
    assert_eq!(sim.robots.cancelled("r"), ["m1", "m1"]);
    assert_eq!(sim.robots.asked("r").last().unwrap(), "m1");
    sim.say("s1", MissionStatus::Executing).await;
    sim.say("m1", MissionStatus::Cancelled).await;
    sim.link("r", true).await;
    assert_eq!(sim.robots.stopped("r"), ["s1", "s1"], "it was answered");
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_nobody_answered_is_sent_on_the_robots_return_however_late() {
    for crash in [false, true] {
        let mut sim = Sim::new().await;
        sim.dispatch("m1").await.unwrap();
        sim.say("m1", MissionStatus::Executing).await;
        sim.stop("s1").await;
        sim.link("r", false).await;
        if crash {
            sim.crash().await;
        } else {
            sleep(Duration::from_secs(1000)).await;
            assert_eq!(sim.status("s1").await, "Dispatched?");
        }
        let before = sim.robots.stopped("r").len();
        sim.link("r", true).await;
        let stops = sim.robots.stopped("r");
        assert_eq!(stops.len(), before + 1, "crash: {crash} {stops:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_the_stops_that_nobody_answered_the_emergency_stop_is_sent_again() {
    for crash in [false, true] {
        let mut sim = Sim::new().await;
        sim.stop("s1").await;
        sim.estop("s2-emergency").await;
        sim.stop("s3").await;
        sim.link("r", false).await;
        if crash {
            sim.crash().await;
        }
        sim.link("r", true).await;
        let last = sim.robots.stopped("r").last().cloned();
        assert_eq!(last.as_deref(), Some("s2-emergency"));
        // Its word on that one is its word on all.
        sim.say("s2-emergency", MissionStatus::Succeeded).await;
        assert_eq!(sim.status("s3").await, "Succeeded");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_not_sent_again_to_a_robot_that_was_given_a_mission_after_it() {
    for crash in [false, true] {
        let mut sim = Sim::new().await;
        sim.stop("s1").await;
        sim.dispatch("m1").await.unwrap();
        sim.say("m1", MissionStatus::Executing).await;
        if crash {
            sim.crash().await;
        }
        for word in [MissionStatus::Executing, MissionStatus::Succeeded] {
            sim.say("m1", word).await;
            sim.link("r", false).await;
            sim.link("r", true).await;
            assert_eq!(sim.robots.stopped("r"), ["s1"], "crash: {crash}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_robot_that_refuses_to_stop_is_not_said_to_have_not_answered() {
    let sim = Sim::new().await;
    let reason = "not in this mode".to_owned();
    let no = (
        Duration::from_millis(5),
        Err(SignalError::Refused { reason }),
    );
    sim.robots.script("r", |s| s.stop.push_back(no));
    let answer = sim.stop("s1").await;
    assert_eq!(answer.answer, Err("not in this mode".to_owned()));
    assert!(!answer.robot_unreachable);
    assert_eq!(sim.status("s1").await, "Failed");
    // By a report, before the answer.
    let slow = (Duration::from_millis(10), Ok(StopAnswer::Requested));
    sim.robots.script("r", |s| s.stop.push_back(slow));
    let engine = sim.engine();
    let asked = tokio::spawn(async move {
        let command = stop("r", "s2", ActionType::Stop);
        engine.stop("op".into(), command).await.unwrap()
    });
    tokio::task::yield_now().await;
    let mut word = report("s2", MissionStatus::Failed);
    word.detail = "brakes are hot".into();
    sim.report(word).await;
    let answer = asked.await.unwrap().answer;
    assert_eq!(answer, Err("brakes are hot".to_owned()));
    sleep(Duration::from_millis(20)).await;
}

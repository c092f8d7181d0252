//! Watches, which go on across interruptions.

use crate::gateway::{Watch, World};
use portarium_protocols::grpc::pb::{self, DispatchStatus, MissionUpdate};
use std::{process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Child,
    time::timeout,
};
use tonic::Status;

fn update(position: u64, status: &str) -> MissionUpdate {
    MissionUpdate {
        position,
        mission_id: "m-1".into(),
        robot_id: "amr-7".into(),
        action_name: "dock".into(),
        status: status.into(),
        ..MissionUpdate::default()
    }
}

fn script(world: &World, watches: impl IntoIterator<Item = Watch>) {
    world.script.watches.lock().unwrap().extend(watches);
}

/// Starts a watch, and reads so many lines from it.
async fn first_lines(world: &World, words: &str, count: usize) -> (Child, Vec<String>) {
    let mut command = world.command(words);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut read = Vec::new();
    while read.len() < count {
        let line = timeout(Duration::from_secs(20), lines.next_line())
            .await
            .unwrap()
            .unwrap();
        read.push(line.expect("the watch ended"));
    }
    child.stdout = Some(lines.into_inner().into_inner());
    (child, read)
}

#[tokio::test]
async fn a_watch_that_is_interrupted_resumes_behind_the_last_update_it_saw() {
    let world = World::new().await;
    script(
        &world,
        [
            (
                vec![update(4, "Pending"), update(7, "Dispatched")],
                Some(Status::unavailable("bye")),
            ),
            (vec![], Some(Status::unavailable("again"))),
            (vec![update(9, "Executing")], None),
        ],
    );
    let (mut child, lines) = first_lines(&world, "mission watch m-1", 3).await;
    assert_eq!(
        lines,
        [
            "     4  m-1  amr-7  dock  Pending",
            "     7  m-1  amr-7  dock  Dispatched",
            "     9  m-1  amr-7  dock  Executing",
        ]
    );
    child.start_kill().unwrap();
    let output = child.wait_with_output().await.unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.starts_with("the watch was interrupted (bye); resuming\n"),
        "{told}"
    );
    let asked: Vec<(u64, bool)> = world
        .script
        .watched
        .lock()
        .unwrap()
        .iter()
        .map(|asked| (asked.after_position, asked.from_now))
        .collect();
    assert_eq!(asked[..3], [(0, false), (7, false), (7, false)]);
}

#[tokio::test]
async fn a_watch_from_now_on_resumes_where_it_began() {
    let world = World::new().await;
    *world.script.position.lock().unwrap() = Some(41);
    script(
        &world,
        [(vec![], None), (vec![update(42, "Pending")], None)],
    );
    let (_child, lines) =
        first_lines(&world, "mission watch --robot amr-7 --fleet amr --json", 1).await;
    let told: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(told["position"], 42);
    let watched = world.script.watched.lock().unwrap().clone();
    assert_eq!(
        (watched[0].from_now, watched[0].robot_id.as_str()),
        (true, "amr-7")
    );
    assert_eq!(
        (watched[1].from_now, watched[1].after_position),
        (false, 41)
    );
    assert_eq!(watched[1].fleet_id, "amr");
}

#[tokio::test]
async fn a_watch_ends_with_an_interrupt_and_in_order() {
    let world = World::new().await;
    script(
        &world,
        [(vec![update(1, "Pending")], Some(Status::unavailable("bye")))],
    );
    let (mut child, _) = first_lines(&world, "mission watch --after 0", 1).await;
    let pid = rustix::process::Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let status = timeout(Duration::from_secs(10), child.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn a_watch_whose_reader_went_away_ends_quietly() {
    let world = World::new().await;
    let many = (1..20_000)
        .map(|position| update(position, "Pending"))
        .collect();
    script(&world, [(many, None)]);
    let (mut child, _) = first_lines(&world, "mission watch m-1", 1).await;
    drop(child.stdout.take());
    let output = timeout(Duration::from_secs(20), child.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[tokio::test]
async fn a_dispatch_that_is_followed_ends_as_its_mission_does() {
    let world = World::new().await;
    *world.script.answer.lock().unwrap() = pb::DispatchMissionResponse {
        status: DispatchStatus::Dispatched.into(),
        ..pb::DispatchMissionResponse::default()
    };
    for (end, code) in [("Succeeded", 0), ("Failed", 1), ("Cancelled", 1)] {
        script(
            &world,
            [
                (vec![update(1, "Pending")], Some(Status::unavailable("bye"))),
                (vec![update(2, end), update(3, "never shown")], None),
            ],
        );
        let (exit, out, _) = world
            .says("mission dispatch --robot amr-7 --action dock --mission-id m-1 --follow")
            .await;
        assert_eq!(exit, code, "{out}");
        let lines: Vec<&str> = out.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                "     1  m-1  amr-7  dock  Pending".to_owned(),
                format!("     2  m-1  amr-7  dock  {end}")
            ]
        );
        let watched = world.script.watched.lock().unwrap().clone();
        assert_eq!(watched.last().unwrap().mission_id, "m-1");
        assert_eq!(watched.last().unwrap().after_position, 1);
    }
}

#[tokio::test]
async fn the_watch_of_one_mission_ends_with_it() {
    let world = World::new().await;
    script(
        &world,
        [(vec![update(1, "Pending"), update(5, "Failed")], None)],
    );
    let (exit, out, err) = world.says("mission watch m-1").await;
    assert_eq!((exit, out.lines().count(), err.as_str()), (0, 2, ""));
}

#[tokio::test]
async fn a_watch_does_not_go_on_with_an_identity_that_was_withdrawn() {
    let world = World::new().await;
    let mut child = world
        .command("mission watch m-1")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let watched = async {
        while world.script.watched.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(10), watched).await.unwrap();
    world.authority.set_entries(Vec::new());
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
    let interrupted = async {
        while let Some(line) = told.next_line().await.unwrap() {
            if line.starts_with("the watch was interrupted") {
                return;
            }
        }
    };
    timeout(Duration::from_secs(10), interrupted).await.unwrap();
}

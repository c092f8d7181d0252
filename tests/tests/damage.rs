//! Journals that are not as they were written.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use portarium_gateway::{
    clock::SystemClock,
    journal::{Journal, JournalError, Opened, Retention},
};
use portarium_protocols::grpc::pb;
use portarium_tests::{Caller, House, figure, happened, hints, mission, scaled};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::TempDir;

const ENDINGS: [&str; 3] = ["", "-wal", ".lock"];

fn open(path: &Path) -> Result<Opened, JournalError> {
    let retention = Retention {
        keep_for: Duration::from_secs(1_000_000),
        at_most: usize::MAX,
    };
    Journal::open(path, retention, &SystemClock)
}

/// All that a journal says, or why it says nothing.
async fn content(path: &Path) -> Result<Vec<String>, JournalError> {
    let opened = open(path)?;
    let loaded = &opened.loaded;
    let mut lines = vec![format!("{} {:?}", loaded.head, loaded.robots)];
    for found in &loaded.missions {
        let ended = found.ended.as_ref().map_err(|open| open.durable());
        let id = opened.journal.request_id(found.number);
        let keys = (&found.caller, &found.plan_key, &found.idempotency_key);
        lines.push(format!("{id} {} {keys:?} {ended:?}", found.mission_id));
    }
    let reader = opened.journal.reader();
    for update in reader.updates(0, None, usize::MAX).await? {
        lines.push(format!("{update:?}"));
    }
    Ok(lines)
}

fn file(path: &Path, ending: &str) -> PathBuf {
    format!("{}{ending}", path.display()).into()
}

fn copy(from: &Path, to: &Path) {
    for ending in ENDINGS {
        if file(from, ending).exists() {
            fs::copy(file(from, ending), file(to, ending)).unwrap();
        }
    }
}

async fn operator(house: &House) -> Caller {
    Caller::with(&house.identities, hints::OPERATOR, house.gateway.ports.grpc).await
}

/// An operator holds a robot, or releases it: durable when this returns.
async fn holds(operator: &Caller, robot: &str, held: bool) {
    let (robot_id, reason) = (robot.to_owned(), "a bent gripper".to_owned());
    operator
        .call(|mut client| {
            let (robot_id, reason) = (robot_id.clone(), reason.clone());
            async move {
                if held {
                    let hold = pb::HoldRobotRequest { robot_id, reason };
                    client.hold_robot(hold).await
                } else {
                    let release = pb::ReleaseRobotRequest { robot_id, reason };
                    client.release_robot(release).await
                }
            }
        })
        .await
        .unwrap();
}

/// A journal as a gateway left it that was killed. The last word is an operator's hold.
async fn written() -> (TempDir, PathBuf, usize) {
    let mut house = House::start().await;
    let names: Vec<_> = (0..60).map(|n| format!("mission-{n}")).collect();
    for (n, name) in names.iter().enumerate() {
        let request = mission(["m", "g"][n % 2], name, Duration::from_millis(1));
        house.caller.insist(&request, Duration::from_secs(20)).await;
    }
    house.watch.ended(&names, Duration::from_secs(20)).await;
    holds(&operator(&house).await, "m", true).await;
    house.gateway.kill();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.sqlite");
    copy(&house.gateway.journal_file(), &path);
    (dir, path, names.len())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_journal_with_flipped_bytes_is_refused_or_says_what_it_said_before() {
    let rounds = scaled(300);
    let (_dir, whole, missions) = written().await;
    for damaged in ["-wal", ""] {
        if damaged.is_empty() {
            // All of it in the file itself.
            let raw = rusqlite::Connection::open(&whole).unwrap();
            raw.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
                .unwrap();
        }
        let pristine = tempfile::tempdir().unwrap();
        let path = pristine.path().join("journal.sqlite");
        copy(&whole, &path);
        let before = content(&path).await.unwrap();
        assert!(before.len() > 4 * missions, "{}", before.len());
        let (mut refused, mut same, mut wrong) = (0, 0, Vec::new());
        for round in 0..rounds {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("journal.sqlite");
            copy(&whole, &path);
            let what = spoil(&file(&path, damaged), round % 4 == 0);
            match content(&path).await {
                Err(
                    JournalError::Damaged { .. }
                    | JournalError::CutShort { .. }
                    | JournalError::Newer { .. },
                ) => refused += 1,
                Ok(after) if after == before => same += 1,
                Ok(after) => {
                    let lost = before.len() - after.len().min(before.len());
                    wrong.push(format!("{what}: {lost} lines lost, or others"));
                }
                Err(other) => wrong.push(format!(
                    "{what}: {}",
                    portarium_identity::error_chain(&other)
                )),
            }
        }
        figure(
            "damage",
            &format!(
                "one bit of the journal{damaged} flipped, or its end cut off: {rounds} times, refused {refused}, all there {same}, told otherwise {}",
                happened(wrong.len(), rounds),
            ),
        );
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert!(refused > rounds / 3, "{refused}");
    }
}

/// Flips a bit, or cuts off the end.
fn spoil(victim: &Path, cut: bool) -> String {
    let mut bytes = fs::read(victim).unwrap();
    let (at, size) = (fastrand::usize(..bytes.len()), bytes.len());
    if cut {
        bytes.truncate(at);
    } else {
        bytes[at] ^= 1 << fastrand::u8(..8);
    }
    fs::write(victim, bytes).unwrap();
    format!("byte {at} of {size}, cut {cut}")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_gateway_does_not_start_on_a_journal_of_which_the_end_is_missing() {
    let mut house = House::start().await;
    for n in 0..20 {
        let request = mission("m", &format!("mission-{n}"), Duration::from_millis(1));
        house.caller.insist(&request, Duration::from_secs(20)).await;
    }
    house.gateway.kill();
    let log = file(&house.gateway.journal_file(), "-wal");
    let whole = fs::read(&log).unwrap();
    fs::write(&log, &whole[..whole.len() / 2]).unwrap();
    house.gateway.relaunch();
    let status = house.gateway.wait(Duration::from_secs(12)).await;
    assert_eq!(status.code(), Some(1), "{status}");
    let output = house.gateway.output();
    let last = output.lines().last().unwrap();
    assert!(last.contains("it is damaged (it ends at change"), "{last}");
    fs::write(&log, whole).unwrap();
    house.gateway.restart().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_robot_that_was_held_or_released_last_does_not_come_back_as_it_was_before() {
    let mut house = House::start().await;
    let request = mission("m", "before", Duration::from_millis(1));
    house.caller.insist(&request, Duration::from_secs(20)).await;
    house.watch.reaches("before", "Succeeded").await;
    let journal = house.gateway.journal_file();
    let log = file(&journal, "-wal");
    for held in [true, false] {
        let rest = fs::metadata(&log).unwrap().len() as usize;
        holds(&operator(&house).await, "m", held).await;
        house.gateway.kill();
        let whole = fs::read(&log).unwrap();
        assert!(whole.len() > rest, "nothing was written");
        let (mut cuts, mut opened) = (0, Vec::new());
        for at in (rest..whole.len()).step_by(97) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("journal.sqlite");
            copy(&journal, &path);
            fs::write(file(&path, "-wal"), &whole[..at]).unwrap();
            cuts += 1;
            if !matches!(content(&path).await, Err(JournalError::CutShort { .. })) {
                opened.push(at);
            }
        }
        figure(
            "damage",
            &format!(
                "an operator's {} cut off, wholly or in part: {cuts} times, opened all the same {}",
                if held { "hold" } else { "release" },
                opened.len(),
            ),
        );
        assert!(opened.is_empty(), "{rest} and more: {opened:?}");
        fs::write(&log, &whole[..rest]).unwrap();
        house.gateway.relaunch();
        let status = house.gateway.wait(Duration::from_secs(12)).await;
        assert_eq!(status.code(), Some(1), "{status}");
        fs::write(&log, whole).unwrap();
        house.gateway.restart().await;
        let found = house.caller.robot("m").await.unwrap();
        assert_eq!(found.hold_reason.is_empty(), !held, "{found:?}");
    }
}

//! What a journal refuses to open, and what it keeps.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::{Append, Attempt, Journal, JournalError, Mission, MissionState, Opened, Record};
use super::{Retention, RobotRow, Ticket, Writer};
use crate::clock::{Clock, SystemClock};
use portarium_protocols::mission::{ActionType, Command, CompletionMode, MissionStatus};
use rusqlite::Connection;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

const KEEP: Retention = Retention {
    keep_for: Duration::from_secs(3600),
    at_most: 1_000_000,
};

fn open(path: &Path) -> Result<Opened, JournalError> {
    Journal::open(path, KEEP, &SystemClock)
}

fn refusal(path: &Path) -> JournalError {
    match open(path) {
        Ok(_) => panic!("it was opened"),
        Err(error) => error,
    }
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.sqlite");
    (folder, path)
}

fn command(n: usize) -> Arc<Command> {
    Arc::new(Command {
        mission_id: format!("m{n}").parse().unwrap(),
        correlation_id: format!("correlation-{n}"),
        plan_effect_idempotency_key: format!("plan-{n}"),
        robot_id: format!("r{}", n % 100).parse().unwrap(),
        fleet_id: None,
        action_type: ActionType::ExecuteAction,
        action_name: "navigate_to".into(),
        parameters: [
            ("x".to_owned(), "1.5".to_owned()),
            ("y".to_owned(), "2.5".to_owned()),
        ]
        .into(),
        idempotency_key: format!("key-{n}"),
        supports_preemption: true,
        bypass_tier_evaluation: false,
        completion_mode: CompletionMode::Auto,
        requires_operator_confirmation: false,
        requested_at: "2026-01-01T00:00:00Z".into(),
    })
}

fn mission(n: usize) -> Arc<Mission> {
    Arc::new(Mission::new(command(n), "caller".into(), SystemTime::now()))
}

fn state(status: MissionStatus) -> MissionState {
    MissionState {
        status,
        attempt: Attempt::Open,
        ..MissionState::pending("2026-01-01T00:00:00.123Z".into())
    }
}

/// A mission from its acceptance to its end.
fn whole(n: usize) -> Append {
    let mission = mission(n);
    let mut records = vec![Record::Accepted(
        mission.clone(),
        state(MissionStatus::Pending),
    )];
    for status in [
        MissionStatus::Dispatched,
        MissionStatus::Executing,
        MissionStatus::Succeeded,
    ] {
        records.push(Record::Changed(mission.clone(), state(status)));
    }
    Append {
        records,
        ..Append::default()
    }
}

/// Writes and closes; all of it is in the one file afterwards.
async fn write(path: &Path, appends: impl IntoIterator<Item = Append>) {
    let Opened {
        journal,
        mut writer,
        ..
    } = open(path).unwrap();
    for append in appends {
        journal.append(append);
    }
    drop(journal);
    while let Some(batch) = writer.receive().await {
        writer.commit(batch).unwrap();
        writer.maintain();
    }
}

#[tokio::test]
async fn a_journal_is_opened_by_one_at_a_time_under_whatever_name() {
    let (folder, path) = folder();
    let first = open(&path).unwrap();
    assert!(matches!(refusal(&path), JournalError::InUse { .. }));
    let other = folder.path().join("other.sqlite");
    std::os::unix::fs::symlink(&path, &other).unwrap();
    assert!(matches!(refusal(&other), JournalError::InUse { .. }));
    drop(first);
    open(&path).unwrap();
}

#[tokio::test]
async fn a_newer_journal_is_refused_untouched() {
    let (_folder, path) = folder();
    write(&path, [whole(1)]).await;
    let raw = Connection::open(&path).unwrap();
    raw.pragma_update(None, "user_version", 99).unwrap();
    raw.pragma_update(None, "journal_mode", "DELETE").unwrap();
    drop(raw);
    let before = std::fs::read(&path).unwrap();
    match refusal(&path) {
        JournalError::Newer {
            found: 99,
            known: 3,
            ..
        } => {}
        other => panic!("{other}"),
    }
    assert!(std::fs::read(&path).unwrap() == before, "it was changed");
}

#[tokio::test]
async fn another_programs_database_is_refused_untouched() {
    let (_folder, path) = folder();
    let raw = Connection::open(&path).unwrap();
    raw.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)")
        .unwrap();
    drop(raw);
    let before = std::fs::read(&path).unwrap();
    assert!(matches!(refusal(&path), JournalError::Damaged { .. }));
    assert!(std::fs::read(&path).unwrap() == before, "it was changed");
    std::fs::write(
        &path,
        "not a database at all, but long enough to be looked at".repeat(30),
    )
    .unwrap();
    assert!(matches!(refusal(&path), JournalError::Damaged { .. }));
}

#[tokio::test]
async fn a_truncated_or_flipped_file_is_never_opened_as_if_it_were_whole() {
    let (_folder, path) = folder();
    write(&path, (0..300).map(whole)).await;
    let whole = std::fs::read(&path).unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let mut refused = 0;
    for round in 0..200 {
        let mut bytes = whole.clone();
        if round % 2 == 0 {
            bytes.truncate(random.usize(1..bytes.len()));
        } else {
            // Headers of pages: what a flip in a text does, nobody can tell.
            let page = random.usize(0..bytes.len() / 4096);
            let at = page * 4096 + random.usize(0..if page == 0 { 100 } else { 8 });
            bytes[at] ^= 1 << random.u8(0..8);
        }
        std::fs::write(&path, &bytes).unwrap();
        for end in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{end}", path.display()));
        }
        match open(&path) {
            // A counter or a spare byte: all is there.
            Ok(opened) => assert_eq!(opened.loaded.missions.len(), 300, "round {round}"),
            Err(JournalError::Damaged { .. } | JournalError::Newer { .. }) => refused += 1,
            Err(other) => panic!("round {round}: {}", portarium_identity::error_chain(&other)),
        }
    }
    assert!(refused > 100, "{refused}");
}

#[tokio::test]
async fn a_row_that_nobody_here_wrote_is_called_damage() {
    for change in [
        "UPDATE states SET status = 99 WHERE position = 2",
        "UPDATE missions SET command = '{}'",
        "UPDATE robots SET stop = 'x'",
        "ALTER TABLE journal RENAME COLUMN head TO hfad",
        "ALTER TABLE states RENAME TO stbtes",
        "ALTER TABLE states RENAME COLUMN mission TO missinn",
        "ALTER TABLE missions RENAME COLUMN plan_key TO plan_kez",
    ] {
        let (_folder, path) = folder();
        let accepted = Append {
            records: vec![Record::Accepted(mission(1), state(MissionStatus::Pending))],
            ..Append::default()
        };
        let stopped = Append {
            robot: Some(row(None)),
            ..Append::default()
        };
        write(&path, [accepted, stopped, whole(2)]).await;
        let raw = Connection::open(&path).unwrap();
        raw.execute(change, []).unwrap();
        drop(raw);
        let refused = refusal(&path);
        let damaged = matches!(refused, JournalError::Damaged { .. });
        assert!(damaged, "{change}: {refused:?}");
    }
}

/// A journal as an earlier version left it, with a robot that is held.
async fn of_version(version: i64, path: &Path) {
    let held = Append {
        robot: Some(RobotRow {
            hold: Some("a bent gripper".into()),
            ..row(None)
        }),
        ..Append::default()
    };
    write(path, [whole(1), held, whole(2)]).await;
    let raw = Connection::open(path).unwrap();
    let run = |sql: &str| raw.execute_batch(sql).unwrap();
    run("ALTER TABLE robots DROP COLUMN sum; ALTER TABLE robots DROP COLUMN change");
    if version == 2 {
        let columns = raw.query_row("SELECT * FROM robots", [], |row| {
            let columns = (0..7).map(|column| row.get_ref(column));
            Ok(super::sum::of(columns.collect::<Result<Vec<_>, _>>()?))
        });
        let sum = columns.unwrap();
        let column = format!("sum INTEGER NOT NULL DEFAULT {sum}");
        run(&format!("ALTER TABLE robots ADD COLUMN {column}"));
    } else {
        for table in ["journal", "missions", "states"] {
            run(&format!("ALTER TABLE {table} DROP COLUMN sum"));
        }
    }
    raw.pragma_update(None, "user_version", version).unwrap();
    let id: String = raw
        .query_row("SELECT id FROM journal", [], |row| row.get(0))
        .unwrap();
    let note = format!("{id} {0:020} {0:020}\n", 8);
    std::fs::write(lock_of(path), note).unwrap();
}

fn lock_of(path: &Path) -> String {
    format!("{}.lock", path.display())
}

#[tokio::test]
async fn a_journal_of_an_earlier_version_is_taken_over_with_all_that_it_has() {
    for version in [1, 2] {
        let (_folder, path) = folder();
        of_version(version, &path).await;
        let Opened {
            journal, loaded, ..
        } = open(&path).unwrap();
        assert_eq!((loaded.missions.len(), loaded.robots.len()), (2, 1));
        assert_eq!(loaded.robots[0].hold.as_deref(), Some("a bent gripper"));
        let updates = journal.reader().updates(0, None, 100).await.unwrap();
        assert_eq!(updates.len(), 8);
    }
}

#[tokio::test]
async fn what_is_damaged_in_a_journal_of_an_earlier_version_is_not_taken_over() {
    let (_folder, path) = folder();
    of_version(2, &path).await;
    let raw = Connection::open(&path).unwrap();
    raw.execute("UPDATE robots SET hold = NULL", []).unwrap();
    drop(raw);
    assert!(matches!(refusal(&path), JournalError::Damaged { .. }));

    let (_folder, path) = folder();
    of_version(2, &path).await;
    let note = std::fs::read_to_string(lock_of(&path)).unwrap();
    std::fs::write(lock_of(&path), note.replace("00008", "00009")).unwrap();
    assert!(matches!(refusal(&path), JournalError::CutShort { .. }));
}

#[tokio::test]
async fn a_journal_that_has_lost_a_robots_last_row_is_refused_whatever_came_before() {
    let (folder, path) = folder();
    let robot = |hold: Option<&str>| Append {
        robot: Some(RobotRow {
            hold: hold.map(str::to_owned),
            ..row(Some(0))
        }),
        ..Append::default()
    };
    // Each in a life of its own: how far the journal came has to survive that.
    for last in [Some("a bent gripper"), None, Some("another")] {
        write(&path, [whole(fastrand::usize(..))]).await;
        let before = std::fs::read(&path).unwrap();
        write(&path, [robot(last)]).await;
        let older = folder.path().join("older.sqlite");
        std::fs::write(&older, before).unwrap();
        std::fs::copy(lock_of(&path), lock_of(&older)).unwrap();
        let refused = refusal(&older);
        assert!(
            matches!(&refused, JournalError::CutShort { found, noted, .. }
                if (found.position, found.robots + 1) == (noted.position, noted.robots)),
            "{refused}"
        );
        open(&path).unwrap();
    }
}

fn row(fence: Option<u64>) -> RobotRow {
    RobotRow {
        robot_id: "r1".parse().unwrap(),
        fence,
        latched: false,
        hold: None,
        stop: None,
    }
}

#[tokio::test]
async fn a_fence_only_grows() {
    let (_folder, path) = folder();
    let robot = |fence| Append {
        robot: Some(row(fence)),
        ..Append::default()
    };
    write(&path, [whole(1), robot(None), robot(Some(2))]).await;
    assert_eq!(open(&path).unwrap().loaded.robots[0].fence, Some(5));
}

#[tokio::test]
async fn a_batch_that_does_not_fit_leaves_nothing_but_what_has_to_be_kept() {
    let (_folder, path) = folder();
    let Opened {
        journal,
        mut writer,
        ..
    } = open(&path).unwrap();
    let accepted = mission(1);
    journal.append(Append {
        records: vec![Record::Accepted(
            accepted.clone(),
            state(MissionStatus::Pending),
        )],
        ..Append::default()
    });
    let fence = Ticket::default();
    journal.append(Append {
        robot: Some(row(None)),
        done: Some(fence.clone()),
        ..Append::default()
    });
    (2..200).for_each(|n| journal.append(whole(n)));
    // As large as it is, and not a page more.
    let limit = |writer: &Writer, pages: u32| {
        let connection = writer.connection();
        connection
            .pragma_update(None, "max_page_count", pages)
            .unwrap();
    };
    limit(&writer, 1);
    let batch = writer.receive().await.unwrap();
    assert!(writer.commit(batch).is_err());
    assert!(accepted.accepted().await.is_err());
    assert!(fence.get().is_none(), "a fence is kept");
    let kept = journal.reader().updates(0, None, 10).await.unwrap();
    assert!(kept.is_empty());
    limit(&writer, 1_000_000);
    let batch = writer.receive().await.unwrap();
    writer.commit(batch).unwrap();
    assert!(matches!(fence.get(), Some(Ok(()))));
    assert_eq!(journal.backlog(), 0);
    let kept = journal.reader().updates(0, None, 10).await.unwrap();
    assert!(kept.is_empty());
}

#[tokio::test]
async fn a_crash_leaves_what_was_committed_and_nothing_of_the_rest() {
    let (folder, path) = folder();
    let Opened {
        journal,
        mut writer,
        ..
    } = open(&path).unwrap();
    for n in 0..10 {
        journal.append(whole(n));
    }
    let batch = writer.receive().await.unwrap();
    writer.commit(batch).unwrap();
    journal.append(whole(10));
    let _uncommitted = writer.receive().await.unwrap();
    let copy = folder.path().join("copy.sqlite");
    for end in ["", "-wal"] {
        let from = format!("{}{end}", path.display());
        std::fs::copy(from, format!("{}{end}", copy.display())).unwrap();
    }
    let loaded = open(&copy).unwrap().loaded;
    assert_eq!((loaded.missions.len(), loaded.head), (10, 40));
}

/// Run with `--release` for the figure.
#[tokio::test]
async fn a_large_journal_opens_in_time() {
    let (_folder, path) = folder();
    write(&path, (0..100_000).map(whole)).await;
    let started = Instant::now();
    let opened = open(&path).unwrap();
    let took = started.elapsed();
    let size = std::fs::metadata(&path).unwrap().len() >> 20;
    println!("100000 finished missions, {size} MiB: opened in {took:?}");
    assert_eq!(opened.loaded.missions.len(), 100_000);
    if !cfg!(debug_assertions) {
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
}

#[tokio::test]
async fn the_updates_of_one_mission_are_not_searched_for_behind_its_end() {
    let (_folder, path) = folder();
    write(&path, [whole(1)]).await;
    let db = Connection::open(&path).unwrap();
    let others =
        "WITH RECURSIVE n(i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < 500000)
        INSERT INTO states SELECT i, 100, 0, 0, 0, '', '', '', 0 FROM n";
    db.execute(others, []).unwrap();
    drop(db);
    let reader = super::Reader::open(&path).unwrap();
    let mut took = Vec::new();
    // Of none, all of the journal has to be searched.
    for (number, count) in [(99, 0), (1, 4)] {
        let mut best = Duration::MAX;
        for _ in 0..5 {
            let began = Instant::now();
            let found = reader.updates(0, Some(number), 256).await.unwrap();
            assert_eq!(found.len(), count);
            best = best.min(began.elapsed());
        }
        took.push(best);
    }
    assert!(took[1] * 5 < took[0], "{took:?}");
}

/// A wall clock that somebody sets.
struct Stepped(std::sync::atomic::AtomicU64);

impl Clock for Stepped {
    fn now(&self) -> SystemTime {
        let seconds = self.0.load(std::sync::atomic::Ordering::Relaxed);
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_journal_forgets_in_time_whatever_the_clock_says() {
    let (_folder, path) = folder();
    let clock = Stepped(1_800_000_000.into());
    let Opened {
        journal,
        mut writer,
        ..
    } = Journal::open(&path, KEEP, &clock).unwrap();
    for n in 0..500 {
        journal.append(whole(n));
    }
    clock
        .0
        .store(2_800_000_000, std::sync::atomic::Ordering::Relaxed);
    let start = tokio::time::Instant::now();
    let (mut turns, mut kept) = (0, 500);
    while kept > 0 {
        let batch = writer.receive().await.unwrap();
        writer.commit(batch).unwrap();
        writer.maintain();
        let left = journal.reader().updates(0, None, 10_000).await.unwrap();
        kept = left.len() / 4;
        turns += 1;
        let early = start.elapsed() < KEEP.keep_for;
        assert!(kept == 500 || !early, "{kept} after {:?}", start.elapsed());
        assert!(turns < 200, "it does not rest");
    }
    assert!(start.elapsed() < KEEP.keep_for + Duration::from_secs(5));
}

#[test]
fn the_writers_thread_forgets_without_work_and_ends_with_the_last_handle() {
    let (_folder, path) = folder();
    let retention = Retention {
        keep_for: Duration::from_millis(700),
        ..KEEP
    };
    let opened = Journal::open(&path, retention, &SystemClock).unwrap();
    let (journal, thread) = (opened.journal, opened.writer.spawn().unwrap());
    journal.append(whole(1));
    let raw = Connection::open(&path).unwrap();
    let kept = || -> i64 {
        let sql = "SELECT count(*) FROM missions";
        raw.query_row(sql, [], |row| row.get(0)).unwrap()
    };
    let within = Instant::now() + Duration::from_secs(10);
    while *journal.head().borrow() == 0 || kept() > 0 {
        assert!(Instant::now() < within, "an idle journal never forgets");
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(journal);
    thread.join().unwrap();
}

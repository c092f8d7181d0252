#![allow(clippy::unwrap_used)]
mod trail;

use super::{
    flood::{LINES_PER_SECOND, REASONS, SPEAKERS},
    writer::{Found, Turn},
    *,
};
use crate::policy::Principal;
use serde_json::Value;
use std::{os::unix::fs::PermissionsExt as _, sync::mpsc::Sender};

const NOW: SystemTime = SystemTime::UNIX_EPOCH;
const LONG: Duration = Duration::from_secs(10);
const ONE_FILE: Rotation = Rotation {
    bytes: u64::MAX,
    keep: 1,
};

fn entry(mission_id: &str) -> Entry<'_> {
    Entry {
        mission_id,
        ..Entry::new(Decision::Allowed, "DispatchMission")
    }
}

/// The lines but for those of the audit about itself; all of them follow from each other.
fn lines(bytes: &[u8]) -> Vec<Value> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    verify(&[file.path().to_owned()], None).unwrap();
    let text = std::str::from_utf8(bytes).unwrap();
    assert!(text.ends_with('\n'), "{text:?}");
    text.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line.get("audit").is_none())
        .collect()
}

/// The missions of the lines, and `n dropped` where lines are missing.
fn story(bytes: &[u8]) -> Vec<String> {
    let one = |line: Value| match line.get("dropped") {
        Some(n) => format!("{n} dropped"),
        None => line["mission_id"].as_str().unwrap_or("?").to_owned(),
    };
    lines(bytes).into_iter().map(one).collect()
}

/// A disk that fails while told so, and that waits for `gate` before each write if there is one.
#[derive(Clone, Default)]
struct Disk {
    content: Arc<Mutex<Vec<u8>>>,
    /// Bytes that still fit.
    space: Arc<Mutex<Option<usize>>>,
    syncs: Arc<AtomicU64>,
    gate: Option<Arc<Mutex<Receiver<()>>>>,
}

impl Disk {
    fn content(&self) -> Vec<u8> {
        self.content.lock().unwrap().clone()
    }
    fn whole_lines(&self) -> usize {
        let content = self.content();
        content.iter().filter(|byte| **byte == b'\n').count()
    }
    fn set_space(&self, space: Option<usize>) {
        *self.space.lock().unwrap() = space;
    }
    fn gated() -> (Self, Sender<()>) {
        let (open, gate) = mpsc::channel();
        // For the line about the start.
        open.send(()).unwrap();
        (
            Self {
                gate: Some(Arc::new(Mutex::new(gate))),
                ..Self::default()
            },
            open,
        )
    }
}

impl Sink for Disk {
    fn found(&mut self) -> io::Result<Found> {
        Ok(Found::default())
    }
    fn turn(&mut self, _: bool) -> io::Result<Turn> {
        Ok(Turn::Same)
    }
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(gate) = &self.gate {
            // Once the test has dropped its end, the gate stands open.
            let _ = gate.lock().unwrap().recv();
        }
        let mut space = self.space.lock().unwrap();
        let fits = space.unwrap_or(usize::MAX).min(bytes.len());
        if fits == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        *space = space.map(|left| left - fits);
        self.content
            .lock()
            .unwrap()
            .extend_from_slice(&bytes[..fits]);
        Ok(fits)
    }
    fn sync(&mut self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// Waits until something is so; fails after a long time.
fn wait_until(mut so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + LONG;
    while !so() {
        assert!(std::time::Instant::now() < deadline, "waited in vain");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_decision_is_one_line_with_the_fields_that_apply() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let audit = Audit::open(&path, ONE_FILE).unwrap();
    let who = Principal::workload("spiffe://a.b/ns/n/sa/s/pod");
    let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_323_045_006);
    audit.record(
        now,
        &Entry {
            caller: Some(&who),
            serial: who.serial().unwrap(),
            mission_id: "m-1",
            robot_id: "amr-7",
            action_type: "robot:execute_action",
            action_name: "dock\n\u{1b}",
            outcome: "POLICY_BLOCKED",
            reason: "no rule",
            ..Entry::new(Decision::Refused, "DispatchMission")
        },
    );
    assert!(audit.close(LONG));
    let text = std::fs::read_to_string(&path).unwrap();
    let (line, chain) = text.trim_end().rsplit_once(",\"chain\":\"").unwrap();
    assert_eq!(chain.len(), 64 + 2);
    assert_eq!(
        line.lines().nth(1).unwrap(),
        concat!(
            r#"{"time":"2026-01-02T03:04:05.006Z","decision":"refused","method":"DispatchMission","#,
            r#""caller":"spiffe://a.b/ns/n/sa/s/pod","serial":"01","mission_id":"m-1","#,
            r#""robot_id":"amr-7","action_type":"robot:execute_action","#,
            r#""action_name":"dock\n\u001b","outcome":"POLICY_BLOCKED","reason":"no rule""#
        )
    );
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn long_texts_are_cut_between_characters() {
    let disk = Disk::default();
    let audit = Audit::start(disk.clone(), 8).unwrap();
    let long = "ö".repeat(100_000);
    audit.record(
        NOW,
        &Entry {
            reason: &long,
            ..entry(&long[..511 * 2])
        },
    );
    assert!(audit.close(LONG));
    let line = lines(&disk.content()).remove(0);
    assert_eq!(line["reason"], "ö".repeat(256) + "…");
    assert!(disk.content().len() < 2500);
}

#[test]
fn a_full_queue_drops_lines_and_the_next_one_tells_how_many() {
    let (disk, open) = Disk::gated();
    let audit = Audit::start(disk.clone(), 2).unwrap();
    audit.record(NOW, &entry("first"));
    // The writer has taken it and waits at the gate; two more fit, three do not.
    wait_until(|| audit.counts().queued == 0);
    for mission in ["a", "b", "lost", "lost", "lost"] {
        audit.record(NOW, &entry(mission));
    }
    let counts = audit.counts();
    assert_eq!((counts.queued, counts.dropped), (2, 3));
    drop(open);
    wait_until(|| audit.counts().queued == 0);
    audit.record(NOW, &entry("last"));
    assert!(audit.close(LONG));
    assert_eq!(
        story(&disk.content()),
        ["first", "a", "b", "3 dropped", "last"]
    );
}

#[test]
fn lines_dropped_at_the_very_end_are_told_too() {
    let (disk, open) = Disk::gated();
    let audit = Audit::start(disk.clone(), 1).unwrap();
    audit.record(NOW, &entry("first"));
    wait_until(|| audit.counts().queued == 0);
    audit.record(NOW, &entry("second"));
    audit.record(NOW, &entry("lost"));
    drop(open);
    assert!(audit.close(LONG));
    assert_eq!(story(&disk.content()), ["first", "second", "1 dropped"]);
}

#[test]
fn a_full_disk_costs_lines_only_and_the_audit_recovers() {
    let disk = Disk::default();
    let audit = Audit::start(disk.clone(), 8).unwrap();
    audit.record(NOW, &entry("first"));
    wait_until(|| disk.whole_lines() == 2);
    disk.set_space(Some(10));
    audit.record(NOW, &entry("lost"));
    wait_until(|| audit.counts().dropped == 1);
    audit.record(NOW, &entry("lost too"));
    wait_until(|| audit.counts().dropped == 2);
    assert_eq!(audit.counts().write_errors, 2);
    disk.set_space(None);
    audit.record(NOW, &entry("last"));
    assert!(audit.close(LONG));
    // The line that the disk ended in stays as it is, on a line of its own.
    let content = disk.content();
    assert_eq!(story(&content), ["first", "2 dropped", "last"]);
    // The start, the first, what is torn and what tells of it, and the last two.
    assert_eq!(disk.whole_lines(), 6);
}

#[test]
fn a_device_that_is_full_never_stops_anyone() {
    let audit = Audit::open(Path::new("/dev/full"), ONE_FILE).unwrap();
    audit.record(NOW, &entry("lost"));
    wait_until(|| audit.counts().dropped == 1);
    assert!(!audit.close(LONG));
}

#[test]
fn a_line_is_synced_within_about_a_second_and_at_the_end() {
    let disk = Disk::default();
    let audit = Audit::start(disk.clone(), 8).unwrap();
    let syncs = || disk.syncs.load(Ordering::SeqCst);
    wait_until(|| syncs() == 1);
    audit.record(NOW, &entry("first"));
    let began = std::time::Instant::now();
    wait_until(|| syncs() == 2);
    assert!(began.elapsed() < Duration::from_secs(3));
    audit.record(NOW, &entry("second"));
    assert!(audit.close(LONG));
    assert_eq!(syncs(), 3);
}

#[test]
fn closing_does_not_wait_longer_than_it_may() {
    let (disk, open) = Disk::gated();
    let audit = Audit::start(disk, 8).unwrap();
    audit.record(NOW, &entry("stuck"));
    assert!(!audit.close(Duration::from_millis(20)));
    drop(open);
    assert!(audit.close(LONG));
}

#[test]
fn what_is_recorded_after_the_end_is_counted() {
    let audit = Audit::start(Disk::default(), 8).unwrap();
    assert!(audit.close(LONG));
    audit.record(NOW, &entry("late"));
    assert_eq!(audit.counts().dropped, 1);
}

/// All refused handshakes that the lines tell of, by reason.
fn refused_in(lines: &[Value]) -> std::collections::BTreeMap<&str, u64> {
    let mut refused = std::collections::BTreeMap::new();
    for line in lines {
        assert_eq!(
            (&line["method"], &line["decision"]),
            (&"handshake".into(), &"refused".into())
        );
        let count = line["suppressed"].as_u64().unwrap_or(1);
        *refused.entry(line["reason"].as_str().unwrap()).or_default() += count;
    }
    refused
}

#[test]
fn refused_handshakes_are_bounded_in_rate_and_the_rest_is_told_by_reason() {
    let disk = Disk::default();
    let audit = Audit::start(disk.clone(), 1000).unwrap();
    let remote = "192.0.2.1:5".parse().unwrap();
    let id = SpiffeId::new("spiffe://a.b/x").unwrap();
    let shown = Some((&id, "1f"));
    audit.handshake_refused(NOW, remote, shown, "not admitted");
    for _ in 0..LINES_PER_SECOND + 7 {
        audit.handshake_refused(NOW, remote, None, "no certificate");
    }
    audit.handshake_refused(NOW, remote, shown, "not admitted");
    // Told once the second is over, though nothing else comes.
    wait_until(|| disk.content().windows(12).any(|w| w == b"\"suppressed\""));
    audit.handshake_refused(NOW, remote, shown, "not admitted");
    assert_eq!(audit.counts().suppressed, 9);
    assert!(audit.close(LONG));
    let content = disk.content();
    let lines = lines(&content);
    assert_eq!(lines.len() as u32, LINES_PER_SECOND + 3);
    let one_each = |line: &&Value| line.get("suppressed").is_none();
    assert!(
        lines[..LINES_PER_SECOND as usize]
            .iter()
            .all(|line| one_each(&line))
    );
    assert_eq!(
        refused_in(&lines),
        [
            ("no certificate", u64::from(LINES_PER_SECOND) + 7),
            ("not admitted", 3)
        ]
        .into()
    );
    assert_eq!(lines[0]["remote"], "192.0.2.1:5");
    assert_eq!(lines[0]["caller"], "spiffe://a.b/x");
    assert_eq!(lines[0]["serial"], "1f");
}

#[test]
fn refused_handshakes_hide_no_word_that_is_not_believed() {
    let disk = Disk::default();
    let audit = Audit::start(disk.clone(), 1000).unwrap();
    let remote = "192.0.2.1:5".parse().unwrap();
    let robot = Speaker::Robot("r".parse().unwrap());
    for _ in 0..LINES_PER_SECOND + 5 {
        audit.handshake_refused(NOW, remote, None, "no certificate");
    }
    for _ in 0..LINES_PER_SECOND + 7 {
        audit.report_refused(NOW, &robot, "m1", "no message");
    }
    assert!(audit.close(LONG));
    let content = disk.content();
    let lines = lines(&content);
    let reports: Vec<_> = lines
        .iter()
        .filter(|line| line["method"] == "report")
        .collect();
    assert_eq!(reports.len() as u32, LINES_PER_SECOND + 1);
    assert_eq!(reports[0]["caller"], "r");
    assert_eq!(reports[0]["mission_id"], "m1");
    assert_eq!(reports[LINES_PER_SECOND as usize]["suppressed"], 7);
}

#[test]
fn a_robot_that_says_too_much_hides_no_other() {
    let disk = Disk::default();
    let audit = Audit::start(disk.clone(), 1000).unwrap();
    let robot = |n: usize| Speaker::Robot(format!("r{n}").parse().unwrap());
    for _ in 0..1_000 {
        audit.report_refused(NOW, &robot(0), "m1", "no message");
    }
    for n in 1..SPEAKERS + 10 {
        audit.report_refused(NOW, &robot(n), "m1", "no message");
    }
    assert!(audit.close(LONG));
    let content = disk.content();
    let lines = lines(&content);
    for n in 1..SPEAKERS {
        let name = format!("r{n}");
        assert!(
            lines.iter().any(|line| line["caller"] == name.as_str()),
            "{name}"
        );
    }
    assert_eq!(lines.len(), LINES_PER_SECOND as usize + SPEAKERS);
    assert_eq!(lines.last().unwrap()["suppressed"], 980 + 10);
}

#[test]
fn reasons_that_peers_make_up_take_a_bounded_number_of_lines() {
    let disk = Disk::default();
    let audit = Audit::start(disk.clone(), 1000).unwrap();
    let remote = "192.0.2.1:5".parse().unwrap();
    for n in 0..1000 {
        let reason = format!("{n} is no SPIFFE ID{}", "ö".repeat(10_000));
        audit.handshake_refused(NOW, remote, None, &reason);
    }
    assert!(audit.close(LONG));
    let content = disk.content();
    let lines = lines(&content);
    assert_eq!(lines.len(), LINES_PER_SECOND as usize + REASONS + 1);
    assert_eq!(refused_in(&lines).values().sum::<u64>(), 1000);
    assert!(content.len() < lines.len() * 1000);
}

#[test]
fn a_disk_that_fails_loses_no_count_of_refused_handshakes() {
    let disk = Disk::default();
    let audit = Audit::start(disk.clone(), 1000).unwrap();
    let remote = "192.0.2.1:5".parse().unwrap();
    for _ in 0..LINES_PER_SECOND + 7 {
        audit.handshake_refused(NOW, remote, None, "no certificate");
    }
    wait_until(|| disk.whole_lines() == LINES_PER_SECOND as usize + 1);
    disk.set_space(Some(0));
    wait_until(|| audit.counts().write_errors > 1);
    disk.set_space(None);
    assert!(audit.close(LONG));
    let content = disk.content();
    let total = u64::from(LINES_PER_SECOND) + 7;
    let dropped = audit.counts().dropped;
    let told: u64 = refused_in(&lines(&content)).values().sum();
    assert_eq!((told, dropped), (total, 0));
}

#[test]
fn who_got_a_connection_is_written_down() {
    let disk = Disk::default();
    let audit = Audit::start(disk.clone(), 8).unwrap();
    let id = SpiffeId::new("spiffe://a.b/x").unwrap();
    audit.handshake_admitted(NOW, "192.0.2.1:5".parse().unwrap(), (&id, "1f"));
    assert!(audit.close(LONG));
    let line = lines(&disk.content()).remove(0);
    for (field, value) in [
        ("decision", "allowed"),
        ("method", "handshake"),
        ("caller", "spiffe://a.b/x"),
        ("serial", "1f"),
        ("remote", "192.0.2.1:5"),
        ("outcome", "admitted"),
    ] {
        assert_eq!(line[field], value, "{line}");
    }
}

#[test]
fn reloads_are_written_down_with_what_was_wrong() {
    let disk = Disk::default();
    let audit = Audit::start(disk.clone(), 8).unwrap();
    let reason = "g.toml: nothing was reloaded";
    audit.reloaded(NOW, Some(reason));
    audit.reloaded(NOW, None);
    assert!(audit.close(LONG));
    let lines = lines(&disk.content());
    assert_eq!(lines[0]["decision"], "refused");
    assert_eq!(lines[0]["reason"], reason);
    assert_eq!(lines[1]["decision"], "allowed");
    assert_eq!(lines[1]["method"], "reload");
}

//! The chain: what it finds, and how it goes on across rotations, starts and accidents.
#![allow(clippy::panic)]

use super::*;
use std::{fs, path::PathBuf};

const SMALL: Rotation = Rotation {
    bytes: 4096,
    keep: 3,
};

struct Folder {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            path: dir.path().join("audit.jsonl"),
            _dir: dir,
        }
    }

    /// A run of the gateway that decides on these missions.
    fn run(&self, rotation: Rotation, missions: &[&str]) -> ChainHash {
        let audit = Audit::open(&self.path, rotation).unwrap();
        for mission in missions {
            audit.record(NOW, &entry(mission));
        }
        assert!(audit.close(LONG));
        audit.counts().head.unwrap()
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.path).unwrap()
    }

    /// Line by line, with their ends.
    fn lines(&self) -> Vec<String> {
        self.text()
            .split_inclusive('\n')
            .map(str::to_owned)
            .collect()
    }

    fn older(&self, number: usize) -> PathBuf {
        file::numbered(&self.path, number)
    }

    fn verify(&self, head: Option<ChainHash>) -> Result<Verified, NotVerified> {
        verify(std::slice::from_ref(&self.path), head)
    }

    fn broken(&self) -> (PathBuf, u64, Problem) {
        match self.verify(None) {
            Err(NotVerified::Broken(Broken::Line {
                file,
                line,
                problem,
            })) => (file, line, problem),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_changed_removed_inserted_or_moved_line_is_found_by_its_number() {
    let folder = Folder::new();
    let head = folder.run(ONE_FILE, &["a", "b", "c", "d"]);
    let good = folder.lines();
    let verified = folder.verify(Some(head)).unwrap();
    assert_eq!((verified.lines, verified.head), (5, head));
    assert_eq!(verified.after, ChainHash::START);
    let other = Folder::new();
    other.run(ONE_FILE, &["x"]);
    let foreign = other.lines().remove(1);

    type Harm<'a> = Box<dyn Fn(&mut Vec<String>) + 'a>;
    let harms: Vec<(&str, Harm<'_>, u64, Problem)> = vec![
        (
            "changed",
            Box::new(|l| l[2] = l[2].replace("\"b\"", "\"B\"")),
            3,
            Problem::NotNext,
        ),
        (
            "the last changed",
            Box::new(|l| l[4] = l[4].replace("allowed", "refused")),
            5,
            Problem::NotNext,
        ),
        (
            "the first changed",
            Box::new(|l| l[0] = l[0].replace("20", "21")),
            1,
            Problem::NotNext,
        ),
        (
            "replaced by the next",
            Box::new(|l| l[2] = l[3].clone()),
            3,
            Problem::NotNext,
        ),
        (
            "its hash taken",
            Box::new(|l| l[2] = "{}\n".into()),
            3,
            Problem::NoHash,
        ),
        (
            "removed",
            Box::new(|l| drop(l.remove(2))),
            3,
            Problem::NotNext,
        ),
        (
            "the first removed",
            Box::new(|l| drop(l.remove(0))),
            1,
            Problem::NoBeginning,
        ),
        (
            "inserted",
            Box::new(|l| l.insert(2, foreign.clone())),
            3,
            Problem::Inserted,
        ),
        (
            "inserted without a hash",
            Box::new(|l| l.insert(2, "{\"decision\":\"allowed\"}\n".into())),
            3,
            Problem::Inserted,
        ),
        (
            "an empty line",
            Box::new(|l| l.insert(4, "\n".into())),
            5,
            Problem::Inserted,
        ),
        (
            "doubled",
            Box::new(|l| l.insert(2, l[1].clone())),
            3,
            Problem::Inserted,
        ),
        (
            "exchanged",
            Box::new(|l| l.swap(2, 3)),
            3,
            Problem::Inserted,
        ),
        (
            "appended",
            Box::new(|l| l.push(foreign.clone())),
            6,
            Problem::NotNext,
        ),
        (
            "endless",
            Box::new(|l| l.push("x".repeat(100_000))),
            6,
            Problem::TooLong,
        ),
    ];
    for (what, harm, line, problem) in harms {
        let mut lines = good.clone();
        harm(&mut lines);
        fs::write(&folder.path, lines.concat()).unwrap();
        assert_eq!(
            folder.broken(),
            (folder.path.clone(), line, problem),
            "{what}"
        );
    }
}

#[test]
fn every_byte_counts() {
    let folder = Folder::new();
    folder.run(ONE_FILE, &["a", "b"]);
    let good = folder.text().into_bytes();
    for at in 0..good.len() - 1 {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        fs::write(&folder.path, &bytes).unwrap();
        assert!(folder.verify(None).is_err(), "byte {at}");
    }
}

#[test]
fn a_tail_that_was_cut_off_is_found_by_the_last_hash_that_was_seen() {
    let folder = Folder::new();
    let seen = folder.run(ONE_FILE, &["a", "b"]);
    let last = folder.run(ONE_FILE, &["c"]);
    // What came after what was seen is no harm.
    folder.verify(Some(seen)).unwrap();
    folder.verify(Some(last)).unwrap();
    let lines = folder.lines();
    fs::write(&folder.path, lines[..2].concat()).unwrap();
    folder.verify(None).unwrap();
    for head in [seen, last] {
        let cut = folder.verify(Some(head)).unwrap_err();
        let NotVerified::Broken(Broken::Head { lines: 2, .. }) = cut else {
            panic!("{cut:?}");
        };
    }
    // In the middle of a line, too.
    fs::write(&folder.path, lines[..3].concat().trim_end()).unwrap();
    assert_eq!(folder.verify(None).unwrap().unfinished.len(), 1);
    assert!(folder.verify(Some(seen)).is_err());
    fs::write(&folder.path, "").unwrap();
    let empty = folder.verify(None).unwrap_err();
    assert!(
        matches!(empty, NotVerified::Broken(Broken::Empty)),
        "{empty:?}"
    );
}

#[test]
fn a_file_that_is_full_is_put_aside_and_the_chain_goes_on() {
    let folder = Folder::new();
    let audit = Audit::open(&folder.path, SMALL).unwrap();
    let mut first = None;
    for n in 0..200 {
        let mission = format!("m-{n}");
        audit.record(NOW, &entry(&mission));
        wait_until(|| audit.counts().queued == 0);
        if n == 0 {
            wait_until(|| audit.counts().head.is_some());
            first = audit.counts().head;
        }
    }
    assert!(audit.close(LONG));
    let head = audit.counts().head.unwrap();
    assert!(!folder.older(4).exists());
    for number in 1..=3 {
        let length = folder.older(number).metadata().unwrap().len();
        assert!((4096..4096 + 1024).contains(&length), "{length}");
    }
    let verified = folder.verify(Some(head)).unwrap();
    let files = [folder.older(3), folder.older(2), folder.older(1)];
    assert_eq!(verified.files[..3], files);
    // The oldest are gone, which the first line of those that are left tells.
    assert_ne!(verified.after, ChainHash::START);
    folder.verify(Some(verified.after)).unwrap();
    assert!(folder.verify(first).is_err());
    // Named one by one it is the same.
    assert_eq!(verify(&verified.files, Some(head)).unwrap(), verified);
    // And the order counts.
    let reversed: Vec<_> = verified.files.iter().rev().cloned().collect();
    assert!(verify(&reversed, None).is_err());

    let harmed = folder.older(2);
    let text = fs::read_to_string(&harmed).unwrap();
    fs::write(&harmed, text.replacen("allowed", "refused", 1)).unwrap();
    assert_eq!(folder.broken(), (harmed.clone(), 2, Problem::NotNext));
    fs::remove_file(&harmed).unwrap();
    assert_eq!(folder.broken(), (folder.older(1), 1, Problem::NotNext));
}

#[test]
fn files_are_verified_while_the_gateway_writes_and_rotates() {
    let folder = Folder::new();
    let audit = Audit::open(&folder.path, SMALL).unwrap();
    wait_until(|| audit.counts().written > 0);
    let recorder = audit.clone();
    let over = Arc::new(AtomicBool::new(false));
    let until = over.clone();
    let recording = thread::spawn(move || {
        while !until.load(Ordering::Relaxed) {
            recorder.record(NOW, &entry("m"));
            thread::sleep(Duration::from_micros(50));
        }
    });
    let mut heads = std::collections::HashSet::new();
    wait_until(|| {
        heads.insert(folder.verify(None).unwrap().head.to_string());
        folder.older(3).exists() && heads.len() > 300
    });
    over.store(true, Ordering::Relaxed);
    recording.join().unwrap();
    assert!(audit.close(LONG));
}

#[test]
fn a_start_goes_on_with_the_chain_and_says_so() {
    let folder = Folder::new();
    let before = folder.run(ONE_FILE, &["a"]);
    folder.run(ONE_FILE, &["b"]);
    let marks: Vec<Value> = folder
        .lines()
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line.get("audit").is_some())
        .collect();
    assert_eq!(marks.len(), 2);
    assert_eq!(marks[0]["audit"], "begun");
    assert_eq!(marks[0]["after"], "0".repeat(64));
    assert_eq!(marks[1]["audit"], "resumed");
    assert_eq!(marks[1]["after"], before.to_string());
    assert_eq!(folder.verify(None).unwrap().lines, 4);
}

#[test]
fn what_a_crash_tore_stays_and_is_told_and_protected() {
    let folder = Folder::new();
    for torn in ["{\"time\":\"20", "{}\nhalf", "\0\0\0\0"] {
        let before = folder.run(ONE_FILE, &["a"]);
        let length = folder.text().len();
        let bytes = torn.len() as u64;
        fs::write(&folder.path, folder.text() + torn).unwrap();
        folder.run(ONE_FILE, &["b"]);
        let text = folder.text();
        assert_eq!(&text[length..length + torn.len()], torn);
        let verified = folder.verify(Some(before)).unwrap();
        let told = verified.unfinished.last().unwrap();
        assert_eq!((told.bytes, told.told), (bytes, true));
        let line = text[..length].lines().count() as u64 + 1;
        assert_eq!(told.line, line);

        let harmed = text[..length].to_owned() + "X" + &text[length + 1..];
        fs::write(&folder.path, harmed).unwrap();
        assert_eq!(folder.broken(), (folder.path.clone(), line, Problem::Torn));
        fs::write(&folder.path, text).unwrap();
    }
}

#[test]
fn a_disk_that_is_full_over_and_over_leaves_a_chain() {
    // At the start, in the middle of a line, in the middle of what tells of that.
    for space in [0, 1, 30, 200, 250, 400] {
        let disk = Disk::default();
        disk.set_space(Some(space));
        let audit = Audit::start(disk.clone(), 8).unwrap();
        let tries = || audit.counts().written + audit.counts().write_errors;
        wait_until(|| tries() > 0);
        for n in 0..6 {
            disk.set_space(Some(space));
            let before = tries();
            audit.record(NOW, &entry(&format!("m-{n}")));
            wait_until(|| tries() > before);
        }
        disk.set_space(None);
        audit.record(NOW, &entry("last"));
        assert!(audit.close(LONG));
        let written = story(&disk.content());
        assert_eq!(written.last().unwrap(), "last");
        let told = written
            .iter()
            .filter_map(|line| line.strip_suffix(" dropped"));
        let told: Vec<u64> = told.map(|n| n.parse().unwrap()).collect();
        let dropped = told.iter().sum::<u64>();
        assert_eq!(dropped, audit.counts().dropped, "{space}");
        assert_eq!(written.len() - told.len() + dropped as usize, 7, "{space}");
    }
}

#[test]
fn a_crash_between_the_steps_of_a_rotation_loses_nothing() {
    // Put aside, and no new file yet; or one without its first line, or with a part of it.
    for torn in [None, Some(""), Some("{\"time\"")] {
        let folder = Folder::new();
        let head = folder.run(ONE_FILE, &["a"]);
        fs::rename(&folder.path, folder.older(1)).unwrap();
        if let Some(torn) = torn {
            fs::write(&folder.path, torn).unwrap();
        }
        folder.run(ONE_FILE, &["b"]);
        let verified = folder.verify(Some(head)).unwrap();
        assert_eq!((verified.lines, verified.files.len()), (4, 2));
        // By itself the file says after what it comes.
        let alone = verify(&[folder.older(1), folder.path.clone()], None);
        assert_eq!(alone.unwrap().lines, 4);
        fs::remove_file(folder.older(1)).unwrap();
        assert_eq!(folder.verify(None).unwrap().after, head);
    }
}

#[test]
fn a_file_without_a_chain_is_put_aside() {
    let folder = Folder::new();
    let old = "{\"decision\":\"allowed\"}\n".repeat(10_000);
    fs::write(&folder.path, &old).unwrap();
    folder.run(ONE_FILE, &["a"]);
    assert_eq!(fs::read_to_string(folder.older(1)).unwrap(), old);
    assert_eq!(folder.broken(), (folder.older(1), 1, Problem::NoHash));
    assert_eq!(folder.lines().len(), 2);
}

#[test]
fn a_file_that_someone_else_moved_removed_or_emptied_is_begun_anew() {
    type Harm = fn(&Folder);
    let harms: [Harm; 3] = [
        |folder| fs::rename(&folder.path, folder.older(7)).unwrap(),
        |folder| fs::remove_file(&folder.path).unwrap(),
        |folder| {
            fs::copy(&folder.path, folder.older(7)).unwrap();
            fs::write(&folder.path, "").unwrap();
        },
    ];
    for harm in harms {
        let folder = Folder::new();
        let audit = Audit::open(&folder.path, ONE_FILE).unwrap();
        audit.record(NOW, &entry("a"));
        wait_until(|| audit.counts().written == 2);
        harm(&folder);
        audit.record(NOW, &entry("b"));
        assert!(audit.close(LONG));
        let kept = folder.older(7).exists();
        let verified = folder.verify(audit.counts().head).unwrap();
        assert_eq!(verified.lines, if kept { 4 } else { 2 });
        assert_eq!(verified.after == ChainHash::START, kept);
        assert!(folder.text().contains("\"b\""));
        assert_eq!(audit.counts().dropped, 0);
    }
}

#[test]
fn lines_that_someone_else_cuts_off_while_it_runs_are_missed() {
    let folder = Folder::new();
    let audit = Audit::open(&folder.path, ONE_FILE).unwrap();
    audit.record(NOW, &entry("a"));
    audit.record(NOW, &entry("b"));
    wait_until(|| audit.counts().written == 3);
    fs::write(&folder.path, folder.lines()[..2].concat()).unwrap();
    audit.record(NOW, &entry("c"));
    assert!(audit.close(LONG));
    assert_eq!(folder.broken(), (folder.path.clone(), 3, Problem::NotNext));
}

#[test]
fn a_folder_that_takes_no_new_file_costs_no_line() {
    let folder = Folder::new();
    let audit = Audit::open(&folder.path, SMALL).unwrap();
    wait_until(|| audit.counts().written == 1);
    // A folder where the oldest file would have to be removed.
    fs::create_dir(folder.older(3)).unwrap();
    for n in 0..50 {
        audit.record(NOW, &entry(&format!("m-{n}")));
        wait_until(|| audit.counts().queued == 0);
    }
    assert!(audit.close(LONG));
    let counts = audit.counts();
    assert_eq!((counts.dropped, counts.written), (0, 51));
    assert_eq!(counts.write_errors, 1, "tried again with every line");
    assert_eq!(folder.lines().len(), 51);
}

#[test]
fn a_second_gateway_on_the_same_file_is_refused_and_writes_nothing() {
    let folder = Folder::new();
    let audit = Audit::open(&folder.path, SMALL).unwrap();
    wait_until(|| audit.counts().written == 1);
    for n in 0..50 {
        // The file after a rotation is this gateway's as well.
        let second = Audit::open(&folder.path, SMALL).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::ResourceBusy);
        let before = audit.counts().written;
        audit.record(NOW, &entry(&format!("m-{n}")));
        wait_until(|| audit.counts().written > before);
    }
    assert!(audit.close(LONG));
    assert!(folder.older(2).exists());
    assert_eq!(audit.counts().written, folder.verify(None).unwrap().lines);
    Audit::open(&folder.path, SMALL).unwrap();
}

#[test]
fn the_head_is_shown_once_it_is_on_the_disk() {
    let folder = Folder::new();
    let audit = Audit::open(&folder.path, ONE_FILE).unwrap();
    wait_until(|| audit.counts().head.is_some());
    let started = audit.counts().head.unwrap();
    folder.verify(Some(started)).unwrap();
    audit.record(NOW, &entry("a"));
    wait_until(|| audit.counts().head != Some(started));
    folder.verify(audit.counts().head).unwrap();
}

#[test]
fn the_chain_is_what_any_tool_computes() {
    let folder = Folder::new();
    folder.run(ONE_FILE, &["a", "b"]);
    let script = r#"
        previous=$(printf '0%.0s' {1..64})
        while IFS= read -r line; do
            text=${line%',"chain":"'*}
            hash=$(printf '%s%s' "$previous" "$text" | sha256sum | cut -d' ' -f1)
            [[ $line == "$text,\"chain\":\"$hash\"}" ]] || exit 1
            previous=$hash
        done < "$1"
    "#;
    let shell = std::process::Command::new("bash")
        .args(["-c", script, "bash"])
        .arg(&folder.path)
        .status();
    assert!(shell.unwrap().success());
}

//! Power cuts: what a disk may hold of a journal when the power goes, rebuilt from the record of
//! what was done to its files.
//!
//! A write, a cut of a file's length, a new or removed name is certain once a sync that began after
//! it has ended. Until then it may be there, or not, or be there in part, and later ones may be
//! there without it. Whoever was told something adds that to the record himself, after he heard of
//! it: what stands in the record before a point was told before the power went.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Write as _,
    mem,
    path::{Path, PathBuf},
    sync::Mutex,
};

/// What a disk writes at once.
const SECTOR: usize = 512;

/// The event by which the test says what somebody was told.
const TOLD: u8 = 100;
const HEAD: usize = 16;

/// The record, for those who are told something.
pub struct Told(Mutex<File>);

impl Told {
    /// Appends to this record.
    pub fn to(record: &Path) -> Self {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(record)
            .unwrap();
        Self(Mutex::new(file))
    }

    /// Somebody was told this.
    pub fn note(&self, what: &str) {
        let mut bytes = vec![0; HEAD];
        bytes[0] = TOLD;
        bytes[4..8].copy_from_slice(&u32::try_from(what.len()).unwrap().to_ne_bytes());
        bytes.extend(what.as_bytes());
        self.0.lock().unwrap().write_all(&bytes).unwrap();
    }
}

/// What becomes of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unsynced {
    /// None of it is there.
    Dropped,
    /// All of it is there.
    Kept,
    /// Each sector is there, or not, or garbage; each change of a length is there or not.
    Torn,
}

/// One of the journal's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    Main,
    Log,
    Rollback,
    Lock,
}

const NAMES: [(Name, &str); 4] = [
    (Name::Main, ""),
    (Name::Log, "-wal"),
    (Name::Rollback, "-journal"),
    (Name::Lock, ".lock"),
];

#[derive(Debug)]
enum Event {
    Created(Name),
    Written(Name, usize, Vec<u8>),
    Cut(Name, usize),
    Removed(Name),
    SyncBegins(u64),
    /// Of a file, or of the folder.
    SyncEnded(Option<Name>, u64),
    Told(String),
}

/// A change that is not certain yet.
#[derive(Clone)]
enum Change {
    Bytes(usize, Vec<u8>),
    Length(usize),
}

/// A file, whatever its name is now.
#[derive(Clone, Default)]
struct Body {
    certain: Vec<u8>,
    changes: Vec<(usize, Change)>,
}

#[derive(Clone, Copy)]
enum Naming {
    Created(Name, usize),
    Removed(Name),
}

/// The disk, replayed from the record up to some event.
pub struct Disk {
    events: Vec<Event>,
    at: usize,
    bodies: Vec<Body>,
    /// By which names the bodies are known to the process.
    now: BTreeMap<Name, usize>,
    certain: BTreeMap<Name, usize>,
    namings: Vec<(usize, Naming)>,
    syncs: BTreeMap<u64, usize>,
    told: Vec<String>,
    copies: usize,
}

impl Disk {
    /// An empty disk, before the first event.
    pub fn before(record: &Path) -> Self {
        Self {
            events: parse(&fs::read(record).unwrap()),
            at: 0,
            bodies: Vec::new(),
            now: BTreeMap::new(),
            certain: BTreeMap::new(),
            namings: Vec::new(),
            syncs: BTreeMap::new(),
            told: Vec::new(),
            copies: 0,
        }
    }

    /// How many events the record has.
    pub fn events(&self) -> usize {
        self.events.len()
    }

    /// Goes on until this many events have happened.
    pub fn advance(&mut self, to: usize) {
        while self.at < to {
            let event = mem::replace(&mut self.events[self.at], Event::Told(String::new()));
            self.at += 1;
            self.apply(event);
        }
    }

    /// What was told since this was asked last.
    pub fn told(&mut self) -> Vec<String> {
        mem::take(&mut self.told)
    }

    /// How many changes of the journal's file and its log are not certain now.
    pub fn uncertain(&self) -> usize {
        let bodies = [Name::Main, Name::Log].map(|name| self.now.get(&name));
        let changes = bodies.into_iter().flatten();
        changes.map(|body| self.bodies[*body].changes.len()).sum()
    }

    /// How often the journal's file itself was synced: the log was copied into it.
    pub fn copies(&self) -> usize {
        self.copies
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Created(name) => {
                self.bodies.push(Body::default());
                let body = self.bodies.len() - 1;
                self.now.insert(name, body);
                self.namings.push((self.at, Naming::Created(name, body)));
            }
            Event::Removed(name) => {
                self.now.remove(&name);
                self.namings.push((self.at, Naming::Removed(name)));
            }
            Event::Written(name, place, bytes) => self.change(name, Change::Bytes(place, bytes)),
            Event::Cut(name, length) => self.change(name, Change::Length(length)),
            Event::SyncBegins(number) => {
                self.syncs.insert(number, self.at);
            }
            Event::SyncEnded(what, number) => {
                let began = self.syncs.remove(&number).expect("a sync that began");
                self.synced(what, began);
            }
            Event::Told(what) => self.told.push(what),
        }
    }

    fn change(&mut self, name: Name, change: Change) {
        let body = self.now[&name];
        self.bodies[body].changes.push((self.at, change));
    }

    fn synced(&mut self, what: Option<Name>, began: usize) {
        match what {
            Some(name) => {
                self.copies += usize::from(name == Name::Main);
                let body = &mut self.bodies[self.now[&name]];
                let later = body
                    .changes
                    .split_off(body.changes.partition_point(|c| c.0 < began));
                for (_, change) in mem::replace(&mut body.changes, later) {
                    change.make(&mut body.certain);
                }
            }
            None => {
                let later = self.namings.partition_point(|naming| naming.0 < began);
                for (_, naming) in self.namings.drain(..later) {
                    naming.make(&mut self.certain);
                }
            }
        }
    }

    /// Writes what the disk may hold if the power goes now, as a journal in this folder.
    pub fn rebuild(&self, dir: &Path, unsynced: Unsynced) -> PathBuf {
        // A file system keeps the order of names.
        let kept = match unsynced {
            Unsynced::Dropped => 0,
            Unsynced::Kept => self.namings.len(),
            Unsynced::Torn => fastrand::usize(..=self.namings.len()),
        };
        let mut names = self.certain.clone();
        for (_, naming) in &self.namings[..kept] {
            naming.make(&mut names);
        }
        let path = dir.join("journal.sqlite");
        for (name, body) in names {
            let (_, ending) = NAMES[name as usize];
            let bytes = self.bodies[body].after(unsynced);
            fs::write(format!("{}{ending}", path.display()), bytes).unwrap();
        }
        path
    }
}

impl Body {
    fn after(&self, unsynced: Unsynced) -> Vec<u8> {
        let mut bytes = self.certain.clone();
        for (_, change) in &self.changes {
            match unsynced {
                Unsynced::Dropped => {}
                Unsynced::Kept => change.make(&mut bytes),
                Unsynced::Torn => change.make_in_part(&mut bytes),
            }
        }
        bytes
    }
}

impl Change {
    fn make(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Bytes(place, new) => put(bytes, *place, new),
            Self::Length(length) => bytes.resize(*length, 0),
        }
    }

    fn make_in_part(&self, bytes: &mut Vec<u8>) {
        let Self::Bytes(place, new) = self else {
            if fastrand::bool() {
                self.make(bytes);
            }
            return;
        };
        // Sectors as they lie on the disk; what a write does not touch in them stays.
        let mut from = 0;
        while from < new.len() {
            let to = new.len().min(from + SECTOR - (place + from) % SECTOR);
            match fastrand::u8(..5) {
                0 | 1 => {}
                2 | 3 => put(bytes, place + from, &new[from..to]),
                _ => {
                    let garbage: Vec<u8> = (from..to).map(|_| fastrand::u8(..)).collect();
                    put(bytes, place + from, &garbage);
                }
            }
            from = to;
        }
    }
}

impl Naming {
    fn make(self, names: &mut BTreeMap<Name, usize>) {
        match self {
            Self::Created(name, body) => names.insert(name, body),
            Self::Removed(name) => names.remove(&name),
        };
    }
}

fn put(bytes: &mut Vec<u8>, place: usize, new: &[u8]) {
    let end = place + new.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[place..end].copy_from_slice(new);
}

fn parse(record: &[u8]) -> Vec<Event> {
    let mut rest = record;
    let mut events = Vec::new();
    while let Some((head, more)) = rest.split_at_checked(HEAD) {
        let length = u32::from_ne_bytes(head[4..8].try_into().unwrap()) as usize;
        let number = u64::from_ne_bytes(head[8..].try_into().unwrap());
        let place = || usize::try_from(number).unwrap();
        let (bytes, more) = more.split_at(length);
        rest = more;
        let name = NAMES
            .get(usize::from(head[1]).wrapping_sub(1))
            .map(|(name, _)| *name);
        let file = || name.expect("a file");
        events.push(match head[0] {
            1 => Event::Created(file()),
            2 => Event::Written(file(), place(), bytes.to_vec()),
            3 => Event::Cut(file(), place()),
            4 => Event::SyncBegins(number),
            5 => Event::SyncEnded(name, number),
            6 => Event::Removed(file()),
            TOLD => Event::Told(String::from_utf8(bytes.to_vec()).unwrap()),
            other => panic!("event {other}"),
        });
    }
    assert!(rest.is_empty(), "{} bytes are left", rest.len());
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record of writes by hand, as the shim would make it.
    fn record(events: &[(u8, u8, u64, &[u8])]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for (event, name, place, bytes) in events {
            let length = u32::try_from(bytes.len()).unwrap();
            file.write_all(&[*event, *name, 0, 0]).unwrap();
            file.write_all(&length.to_ne_bytes()).unwrap();
            file.write_all(&place.to_ne_bytes()).unwrap();
            file.write_all(bytes).unwrap();
        }
        file
    }

    fn held(disk: &Disk, unsynced: Unsynced) -> Option<Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        fs::read(disk.rebuild(dir.path(), unsynced)).ok()
    }

    #[test]
    fn only_what_a_sync_that_began_later_has_covered_is_certain() {
        let record = record(&[
            (1, 1, 0, b""),
            (2, 1, 0, b"first"),
            (4, 1, 7, b""),
            (2, 1, 5, b"second"),
            (5, 1, 7, b""),
            (100, 0, 0, b"told"),
            (4, 5, 8, b""),
            (5, 5, 8, b""),
        ]);
        let mut disk = Disk::before(record.path());
        disk.advance(5);
        assert_eq!(held(&disk, Unsynced::Dropped), None);
        assert_eq!(held(&disk, Unsynced::Kept).unwrap(), b"firstsecond");
        assert!(disk.told().is_empty());
        disk.advance(8);
        assert_eq!(disk.told(), ["told"]);
        assert_eq!(held(&disk, Unsynced::Dropped).unwrap(), b"first");
        let torn: Vec<_> = (0..50)
            .map(|_| held(&disk, Unsynced::Torn).unwrap())
            .collect();
        assert!(torn.iter().all(|bytes| bytes.starts_with(b"first")));
        assert!(torn.iter().any(|bytes| bytes == b"first"));
        assert!(torn.iter().any(|bytes| bytes == b"firstsecond"));
    }
}

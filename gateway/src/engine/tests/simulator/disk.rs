//! The disk: the journal's files, what of them is durable, and how commits go.
//!
//! SQLite writes to its log and then has it synced. What is not synced when the power goes is
//! there or not, whole or in part. SQLite syncs at each commit while `synchronous` is `FULL`; with
//! less it does when it likes, so nothing of it counts. The log only grows here, so a crash leaves
//! its first part: what was synced, and as much of the rest as chance has it.

use super::world::{Shared, World};
use crate::journal::{Batch, JournalError, Writer};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

/// How the disk takes commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Well,
    Slow(Duration),
    Hangs,
    /// Nothing is written.
    Full,
    /// It cannot say whether it has what was written.
    Unsure,
}

pub(super) struct Disk {
    folder: PathBuf,
    pub(super) mood: watch::Sender<Mood>,
    pub(super) well_since: Instant,
    starts: u64,
    /// SQLite syncs at each commit.
    syncs: bool,
    /// So much of the log is durable.
    synced: u64,
    /// A commit that was just made, and nobody has heard of: not synced yet.
    torn: bool,
    /// How the journal stands if the disk has what it was not sure of.
    maybe: Option<PathBuf>,
}

impl Disk {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            mood: watch::Sender::new(Mood::Well),
            well_since: Instant::now(),
            starts: 0,
            syncs: true,
            synced: 0,
            torn: false,
            maybe: None,
        }
    }

    pub(super) fn becomes(&mut self, mood: Mood) {
        self.mood.send_replace(mood);
        self.well_since = Instant::now();
    }

    pub(super) fn journal(&self) -> PathBuf {
        self.folder
            .join(self.starts.to_string())
            .join("journal.sqlite")
    }

    fn log(&self) -> PathBuf {
        with(&self.journal(), "-wal")
    }

    fn log_bytes(&self) -> u64 {
        fs::metadata(self.log()).map_or(0, |found| found.len())
    }

    pub(super) fn make_folder(&self) {
        fs::create_dir_all(self.journal().parent().unwrap()).unwrap();
    }

    /// A gateway has opened the journal.
    pub(super) fn opened(&mut self, writer: &Writer) {
        let level: i64 = writer
            .connection()
            .pragma_query_value(None, "synchronous", |row| row.get(0))
            .unwrap();
        self.syncs = level >= 2;
        self.synced = self.log_bytes();
        self.torn = false;
        self.maybe = None;
    }

    fn written(&mut self) {
        self.torn = false;
        self.maybe = None;
        if self.syncs {
            self.synced = self.log_bytes();
        }
    }

    /// A copy of the journal as it is now, to be written to.
    fn copy_aside(&self) -> PathBuf {
        let copy = self.folder.join("maybe.sqlite");
        for end in ["-wal", "-shm"] {
            let _ = fs::remove_file(with(&copy, end));
        }
        fs::copy(self.journal(), &copy).unwrap();
        if self.log().exists() {
            fs::copy(self.log(), with(&copy, "-wal")).unwrap();
        }
        copy
    }
}

impl World {
    /// The gateway is gone: what is durable is what the next one finds.
    pub(super) fn keep_what_is_durable(&mut self) {
        let (journal, log, bytes) = (self.disk.journal(), self.disk.log(), self.disk.log_bytes());
        let synced = self.disk.synced.min(bytes);
        let kept = match self.disk.torn || self.random.bool() {
            true => self.random.u64(synced..=bytes),
            false => bytes,
        };
        let maybe = self.disk.maybe.take();
        let took = maybe.filter(|_| self.random.bool());
        self.disk.starts += 1;
        self.disk.make_folder();
        let next = self.disk.journal();
        match took {
            Some(image) => {
                fs::copy(image, &next).unwrap();
            }
            None => {
                fs::copy(&journal, &next).unwrap();
                if log.exists() {
                    fs::copy(&log, with(&next, "-wal")).unwrap();
                    let cut = fs::OpenOptions::new()
                        .write(true)
                        .open(with(&next, "-wal"))
                        .unwrap();
                    cut.set_len(kept).unwrap();
                }
            }
        }
        self.happens(format_args!(
            "of {bytes} bytes of log, {synced} of them durable, {kept} are left"
        ));
    }
}

fn with(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// The journal's thread, as a task of one life.
pub(super) async fn write(world: Shared, life: u64, mut writer: Writer) {
    let mut mood = world.lock().disk.mood.subscribe();
    while let Some(batch) = writer.receive().await {
        if batch.len() == 0 {
            writer.maintain();
            continue;
        }
        let before = *mood.borrow();
        if let Mood::Slow(takes) = before {
            sleep(takes).await;
        }
        let _ = mood.wait_for(|mood| *mood != Mood::Hangs).await;
        let now = *mood.borrow();
        if !world.lock().goes_on(life) {
            return;
        }
        let appends = batch.len();
        let result = commit(&world, &mut writer, batch, now);
        if !publish(&world, life, appends, result.is_ok()) {
            return;
        }
        if result.is_err() {
            sleep(Duration::from_millis(100)).await;
        }
        let before = world.lock().disk.log_bytes();
        writer.maintain();
        let mut world = world.lock();
        if world.disk.log_bytes() != before {
            world.disk.written();
        }
    }
}

fn commit(
    world: &Shared,
    writer: &mut Writer,
    batch: Batch,
    mood: Mood,
) -> Result<(), JournalError> {
    writer.fail_sync(false);
    if mood == Mood::Full {
        allow_writing(writer, false);
        let result = writer.commit(batch);
        allow_writing(writer, true);
        return result;
    }
    if mood == Mood::Unsure {
        let copy = world.lock().disk.copy_aside();
        writer.write_to(&copy, &batch);
        world.lock().disk.maybe = Some(copy);
        writer.fail_sync(true);
    }
    writer.commit(batch)
}

fn allow_writing(writer: &Writer, may: bool) {
    writer
        .connection()
        .pragma_update(None, "query_only", !may)
        .unwrap();
}

/// The writer has told everybody, and nobody has heard it yet: the gateway may still die with the
/// commit half on the disk, or all of it.
fn publish(world: &Shared, life: u64, appends: usize, done: bool) -> bool {
    let mut world = world.lock();
    world.disk.torn = done;
    if !world.goes_on(life) {
        return false;
    }
    if done {
        world.disk.written();
    }
    let verdict = if done { "made" } else { "failed" };
    if !world.does(life, format_args!("a commit of {appends} is {verdict}")) {
        return false;
    }
    for command in std::mem::take(&mut world.settled) {
        world.settle(&command);
    }
    true
}

//! The one writer: groups what many callers append into one commit.

use super::{
    Append, Attempt, JournalError, Mission, MissionState, Record, RobotRow,
    lock::{Extent, Lock},
    maintenance::{Finished, Forgotten, Maintenance},
    reader::{flag, signed, to_millis},
    sum::{self, optional, text},
};
use crate::clock::Clock;
use portarium_protocols::mission::Command;
use rusqlite::{Connection, OptionalExtension as _, Transaction, types::ValueRef};
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::{
    runtime,
    sync::{mpsc, watch},
    time::timeout,
};

/// The most appends in one commit: bounds how long the first of them waits for the last.
const BATCH: usize = 512;

/// The pause after a failed commit, for what has to be retried.
const RETRY: Duration = Duration::from_millis(100);

/// Hears of what the writer did, on the writer's thread, after it is durable. Never waits.
pub trait Observer: Send + Sync {
    /// A commit of so many appends took so long.
    fn committed(&self, took: Duration, appends: usize);
    /// A mission's last state is durable at this position.
    fn ended(&self, mission: &Arc<Mission>, position: u64);
    /// A mission's acceptance could not be committed; its caller is told so.
    fn refused(&self, mission: &Arc<Mission>);
    /// These missions are no longer kept.
    fn forgotten(&self, missions: Vec<Forgotten>);
}

/// Owns the writing connection. Either [`Writer::spawn`]ed, or stepped by hand through
/// [`Writer::receive`] and [`Writer::commit`] where a test decides when and whether a commit
/// succeeds.
pub struct Writer {
    connection: Connection,
    clock: Arc<dyn Clock>,
    maintenance: Maintenance,
    jobs: mpsc::UnboundedReceiver<Append>,
    retry: VecDeque<Append>,
    /// So many at the front of `retry` may be on the disk although their commit failed.
    in_doubt: usize,
    reached: Extent,
    head: watch::Sender<u64>,
    backlog: Arc<AtomicUsize>,
    observer: Option<Arc<dyn Observer>>,
    #[cfg(test)]
    sync_fails: bool,
    id: Arc<str>,
    // Dropped last: nobody else opens the file before the connection is closed.
    lock: Lock,
}

/// Appends that are to be committed together.
pub struct Batch(Vec<Append>);

/// Faults for whoever steps the writer by hand.
#[cfg(test)]
impl Writer {
    /// The writing connection.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// From now on commits fail, or no longer, as they do where the disk cannot say whether it
    /// has them.
    pub(crate) fn fail_sync(&mut self, fails: bool) {
        self.sync_fails = fails;
    }

    /// Writes a batch to another file, a copy of this one: so it stands where the disk took what
    /// it said it could not.
    pub(crate) fn write_to(&mut self, copy: &std::path::Path, batch: &Batch) {
        let other = super::schema::open(copy);
        let Ok(other) = other else { return };
        let own = std::mem::replace(&mut self.connection, other);
        let written = self.write(&batch.0);
        self.connection = own;
        assert!(written.is_ok(), "a copy can be written: {written:?}");
    }
}

#[cfg(test)]
impl Batch {
    /// How many appends it has.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Writer {
    pub(super) fn new(
        connection: Connection,
        maintenance: Maintenance,
        (lock, id): (Lock, Arc<str>),
        jobs: mpsc::UnboundedReceiver<Append>,
        head: watch::Sender<u64>,
        backlog: Arc<AtomicUsize>,
        reached: Extent,
    ) -> Self {
        Self {
            connection,
            clock: maintenance.clock(),
            maintenance,
            jobs,
            retry: VecDeque::new(),
            in_doubt: 0,
            reached,
            head,
            backlog,
            observer: None,
            #[cfg(test)]
            sync_fails: false,
            id,
            lock,
        }
    }

    /// Runs on a thread of its own until every [`super::Journal`] handle is gone and all is
    /// written. The handle ends with it.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn spawn(mut self) -> std::io::Result<thread::JoinHandle<()>> {
        thread::Builder::new().name("journal".into()).spawn(move || {
            let runtime = match runtime::Builder::new_current_thread().enable_time().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    tracing::error!(%error, "the journal's thread cannot wait for work");
                    return;
                }
            };
            let mut failing = false;
            while let Some(batch) = runtime.block_on(self.receive()) {
                match self.commit(batch) {
                    Ok(()) => {
                        if std::mem::take(&mut failing) {
                            tracing::info!("the journal is written again");
                        }
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut failing, true) {
                            tracing::error!(error = %portarium_identity::error_chain(&error), "the journal cannot be written: new missions are refused until it can (is the disk full?)");
                        }
                        thread::sleep(RETRY);
                    }
                }
                self.maintain();
            }
        })
    }

    /// Sets who hears of commits.
    pub fn observe(&mut self, observer: Arc<dyn Observer>) {
        self.observer = Some(observer);
    }

    /// Looks after log and retention, if it is time.
    pub fn maintain(&mut self) {
        let forgotten = self
            .maintenance
            .between_commits(&mut self.connection, self.reached.position);
        if let Some(observer) = &self.observer
            && !forgotten.is_empty()
        {
            observer.forgotten(forgotten);
        }
    }

    /// The next batch; `None` when nothing can come any more. An empty one where nothing came for
    /// so long that log and retention are to be looked after.
    pub async fn receive(&mut self) -> Option<Batch> {
        let first = match self.retry.pop_front() {
            Some(append) => append,
            None => match timeout(self.maintenance.pause(), self.jobs.recv()).await {
                Ok(first) => first?,
                Err(_idle) => return Some(Batch(Vec::new())),
            },
        };
        Some(self.fill(first))
    }

    fn fill(&mut self, first: Append) -> Batch {
        let mut batch = vec![first];
        while batch.len() < BATCH {
            match self.retry.pop_front().or_else(|| self.jobs.try_recv().ok()) {
                Some(append) => batch.push(append),
                None => break,
            }
        }
        Batch(batch)
    }

    /// Commits a batch and only then lets anybody see it. What failed and may fail is told so;
    /// what failed and may not, or may be on the disk all the same, is kept for the next batch.
    ///
    /// # Errors
    /// As SQLite's.
    pub fn commit(&mut self, batch: Batch) -> Result<(), JournalError> {
        let (started, appends) = (Instant::now(), batch.0.len());
        if appends == 0 {
            return Ok(());
        }
        match self.write(&batch.0) {
            Ok(reached) => {
                self.in_doubt = 0;
                if let Some(observer) = &self.observer {
                    observer.committed(started.elapsed(), appends);
                }
                self.publish(batch, reached);
                Ok(())
            }
            Err(source) => {
                if is_in_doubt(&source) {
                    self.in_doubt = self.in_doubt.max(appends);
                }
                let error = JournalError::commit(source);
                self.refuse(batch, &error);
                Err(error)
            }
        }
    }

    fn write(&mut self, batch: &[Append]) -> rusqlite::Result<Extent> {
        let Extent {
            mut position,
            mut robots,
        } = self.reached;
        let now = to_millis(self.clock.now());
        let transaction = self.connection.transaction()?;
        for append in batch {
            let fence = position + 1;
            for record in &append.records {
                if record.mission().has_failed() {
                    continue;
                }
                position += 1;
                // A mission that is accepted in this very batch has no number yet: it is found
                // among the batch's acceptances.
                let number = match record {
                    Record::Accepted(mission, _) => {
                        insert_mission(&transaction, position, mission)?;
                        position
                    }
                    Record::Changed(mission, _) => match mission.number() {
                        Some(number) => number,
                        None => number_in(batch, self.reached.position, mission),
                    },
                };
                let (Record::Accepted(_, state) | Record::Changed(_, state)) = record;
                insert_state(&transaction, position, number, now, state)?;
            }
            if let Some(row) = &append.robot {
                robots += 1;
                upsert_robot(&transaction, row, fence, robots)?;
            }
        }
        #[cfg(test)]
        if self.sync_fails {
            return Err(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_FSYNC),
                None,
            ));
        }
        transaction.commit()?;
        Ok(Extent { position, robots })
    }

    fn publish(&mut self, batch: Batch, reached: Extent) {
        let (mut at, now) = (self.reached.position, to_millis(self.clock.now()));
        self.reached = reached;
        self.lock.note(&self.id, reached);
        let appends = batch.0.len();
        let mut done = Vec::new();
        for append in batch.0 {
            for record in append.records {
                if record.mission().has_failed() {
                    continue;
                }
                at += 1;
                let (Record::Accepted(mission, state) | Record::Changed(mission, state)) = &record;
                let ends = state.status.is_terminal();
                mission.set_durable(state.clone());
                if let Record::Accepted(..) = record {
                    mission.set_number(Ok(at));
                }
                if ends && let Some(number) = mission.number() {
                    self.maintenance.ended(Finished {
                        mission: number,
                        ended: at,
                        at: now,
                    });
                    if let Some(observer) = &self.observer {
                        observer.ended(mission, at);
                    }
                }
            }
            done.extend(append.done);
        }
        self.head.send_replace(reached.position);
        self.backlog.fetch_sub(appends, Ordering::Relaxed);
        for done in done {
            // Set here alone; a second time cannot be.
            let _ = done.set(Ok(()));
        }
    }

    fn refuse(&mut self, batch: Batch, error: &JournalError) {
        for (place, append) in batch.0.into_iter().enumerate().rev() {
            if append.may_fail() && place >= self.in_doubt {
                self.backlog.fetch_sub(1, Ordering::Relaxed);
                if let Some(observer) = &self.observer {
                    append
                        .accepted()
                        .for_each(|mission| observer.refused(mission));
                }
                append.fail(error);
            } else {
                self.retry.push_front(append);
            }
        }
    }
}

/// Whether what failed may be found on the disk after a crash: SQLite writes the log first and
/// then has it made durable, and where only the second fails, the log is whole. The same rows in
/// the same places are then written until they are durable; nobody is told that they are not.
fn is_in_doubt(error: &rusqlite::Error) -> bool {
    matches!(error, rusqlite::Error::SqliteFailure(e, _)
        if e.extended_code == rusqlite::ffi::SQLITE_IOERR_FSYNC
            || e.extended_code == rusqlite::ffi::SQLITE_IOERR_DIR_FSYNC)
}

/// The number that a mission accepted earlier in this batch gets.
fn number_in(batch: &[Append], start: u64, wanted: &Arc<Mission>) -> u64 {
    let mut position = start;
    for record in batch.iter().flat_map(|a| &a.records) {
        if record.mission().has_failed() {
            continue;
        }
        position += 1;
        if let Record::Accepted(mission, _) = record
            && Arc::ptr_eq(mission, wanted)
        {
            return position;
        }
    }
    position
}

fn insert_mission(
    transaction: &Transaction<'_>,
    number: u64,
    mission: &Mission,
) -> rusqlite::Result<()> {
    let command = &mission.command;
    let (plan_key, idempotency_key) = mission.keys();
    let json = as_json(command)?;
    let mut statement = transaction
        .prepare_cached("INSERT INTO missions VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?;
    let columns = [
        ValueRef::Integer(signed(number)),
        text(command.mission_id.as_str()),
        text(command.robot_id.as_str()),
        text(&mission.caller),
        text(plan_key),
        text(idempotency_key),
        ValueRef::Integer(to_millis(mission.accepted_at)),
        text(&json),
    ];
    sum::execute(&mut statement, &columns)?;
    Ok(())
}

fn as_json(command: &Command) -> rusqlite::Result<String> {
    serde_json::to_string(command).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))
}

fn insert_state(
    transaction: &Transaction<'_>,
    position: u64,
    number: u64,
    at: i64,
    state: &MissionState,
) -> rusqlite::Result<()> {
    let bit = |set: bool, bit: i64| if set { bit } else { 0 };
    let flags = bit(state.attempt == Attempt::Open, flag::ATTEMPT)
        | bit(state.heard, flag::HEARD)
        | bit(state.outcome_unknown, flag::UNKNOWN)
        | bit(state.cancel_requested, flag::CANCEL)
        | bit(state.awaiting_confirmation, flag::AWAITING);
    let mut statement = transaction
        .prepare_cached("INSERT INTO states VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?;
    let columns = [
        ValueRef::Integer(signed(position)),
        ValueRef::Integer(signed(number)),
        ValueRef::Integer(at),
        ValueRef::Integer(state.status as i64),
        ValueRef::Integer(flags),
        text(&state.action_execution_id),
        text(&state.observed_at),
        text(&state.detail),
    ];
    sum::execute(&mut statement, &columns)?;
    Ok(())
}

/// Writes a robot's row; `change` is the number of this write among those of all robots.
fn upsert_robot(
    transaction: &Transaction<'_>,
    row: &RobotRow,
    here: u64,
    change: u64,
) -> rusqlite::Result<()> {
    let stop = row.stop.as_deref().map(as_json).transpose()?;
    let before: Option<i64> = transaction
        .prepare_cached("SELECT fence FROM robots WHERE robot_id = ?1")?
        .query_row([row.robot_id.as_str()], |row| row.get(0))
        .optional()?;
    let fence = signed(row.fence.unwrap_or(here));
    let mut statement = transaction
        .prepare_cached("REPLACE INTO robots VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?;
    let columns = [
        text(row.robot_id.as_str()),
        // One gateway: no owner, and no epoch of his.
        text(""),
        ValueRef::Integer(0),
        ValueRef::Integer(before.map_or(fence, |before| before.max(fence))),
        ValueRef::Integer(i64::from(row.latched)),
        optional(row.hold.as_deref()),
        optional(stop.as_deref()),
        ValueRef::Integer(signed(change)),
    ];
    sum::execute(&mut statement, &columns)?;
    Ok(())
}

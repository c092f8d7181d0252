//! Checkpoints and retention, kept off the path of a dispatch.

use super::{
    JournalError, Retention,
    reader::{signed, to_millis, unsigned},
    schema, sum,
};
use crate::clock::Clock;
use rusqlite::{Connection, Transaction, types::ValueRef};
use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};
use tokio::time::Instant;

/// A log larger than this is copied into the file by the helper, while commits go on.
const CHECKPOINT_BYTES: u64 = 16 << 20;

/// A log larger than this is cut by the writer itself: a helper alone never catches up with a
/// writer that does not pause. Little is left to copy by then, so commits wait for milliseconds.
const TRUNCATE_BYTES: u64 = 64 << 20;

/// How often the log and the age of finished missions are looked at.
const PERIOD: Duration = Duration::from_millis(500);

/// How often an idle journal is looked at.
const IDLE: Duration = Duration::from_secs(60);

/// The longest the writer waits for a reader that stands in a checkpoint's way.
const CHECKPOINT_PATIENCE: Duration = Duration::from_millis(20);

/// The most missions deleted between two commits: bounds how long a commit waits for it.
const DELETE_AT_ONCE: usize = 256;

/// A finished mission, as retention needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Finished {
    /// Its number.
    pub(super) mission: u64,
    /// The position of its last state.
    pub(super) ended: u64,
    /// When it ended, in milliseconds since 1970.
    pub(super) at: i64,
}

/// The keys of a mission that is no longer kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forgotten {
    /// Its number.
    pub number: u64,
    /// Its id.
    pub mission_id: String,
    /// Who asked for it.
    pub caller: String,
    /// Its plan key.
    pub plan_key: String,
    /// Its idempotency key.
    pub idempotency_key: String,
}

/// What the writer does between commits.
pub(super) struct Maintenance {
    retention: Retention,
    clock: Arc<dyn Clock>,
    finished: VecDeque<Finished>,
    log: PathBuf,
    helper: Option<mpsc::SyncSender<()>>,
    looked: Option<Instant>,
}

impl Maintenance {
    pub(super) fn new(
        path: &Path,
        retention: Retention,
        finished: Vec<Finished>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            retention,
            clock,
            finished: finished.into(),
            log: schema::log_of(path),
            helper: None,
            looked: None,
        }
    }

    pub(super) fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }

    /// Starts the helper that copies the log into the file. It ends with the writer.
    pub(super) fn start_helper(&mut self, path: &Path) -> Result<(), JournalError> {
        let connection = schema::open_checkpointer(path)?;
        let (wake, woken) = mpsc::sync_channel::<()>(1);
        thread::Builder::new()
            .name("journal-checkpoint".into())
            .spawn(move || {
                while woken.recv().is_ok() {
                    if let Err(error) = schema::checkpoint(&connection, "PASSIVE") {
                        tracing::debug!(%error, "checkpoint put off");
                    }
                }
            })
            .map_err(|e| JournalError::open(path, e))?;
        self.helper = Some(wake);
        Ok(())
    }

    pub(super) fn ended(&mut self, finished: Finished) {
        self.finished.push_back(finished);
    }

    /// How long the writer may wait for work before it looks after log and retention.
    pub(super) fn pause(&self) -> Duration {
        match self.finished.front() {
            _ if self.looked.is_none() => Duration::ZERO,
            _ if self.finished.len() > self.retention.at_most => PERIOD,
            Some(next) => {
                let left = next.at.saturating_sub(self.oldest());
                Duration::from_millis(u64::try_from(left).unwrap_or(0)).clamp(PERIOD, IDLE)
            }
            None => IDLE,
        }
    }

    /// What ended before is not kept, in milliseconds since 1970.
    fn oldest(&self) -> i64 {
        let keep_for = i64::try_from(self.retention.keep_for.as_millis()).unwrap_or(i64::MAX);
        to_millis(self.clock.now()).saturating_sub(keep_for)
    }

    /// Looks after log and retention if it is time; returns what is no longer kept.
    pub(super) fn between_commits(
        &mut self,
        connection: &mut Connection,
        head: u64,
    ) -> Vec<Forgotten> {
        if self.looked.is_some_and(|looked| looked.elapsed() < PERIOD) {
            return Vec::new();
        }
        self.looked = Some(Instant::now());
        self.bound_log(connection);
        match self.forget(connection, head) {
            Ok(forgotten) => {
                if forgotten.len() == DELETE_AT_ONCE {
                    self.looked = None;
                }
                forgotten
            }
            Err(error) => {
                tracing::debug!(%error, "retention put off");
                Vec::new()
            }
        }
    }

    fn bound_log(&self, connection: &Connection) {
        let bytes = fs::metadata(&self.log).map_or(0, |m| m.len());
        if bytes > TRUNCATE_BYTES {
            let cut = connection
                .busy_timeout(CHECKPOINT_PATIENCE)
                .and_then(|()| schema::checkpoint(connection, "TRUNCATE"));
            let patient = connection.busy_timeout(schema::BUSY);
            if let Err(error) = cut.and(patient) {
                tracing::debug!(%error, "checkpoint put off");
            }
        } else if bytes > CHECKPOINT_BYTES
            && let Some(helper) = &self.helper
        {
            // Full means that it is at it.
            let _ = helper.try_send(());
        }
    }

    fn forget(
        &mut self,
        connection: &mut Connection,
        head: u64,
    ) -> rusqlite::Result<Vec<Forgotten>> {
        let oldest = self.oldest();
        let too_many = self.finished.len().saturating_sub(self.retention.at_most);
        let due = self
            .finished
            .iter()
            .enumerate()
            .take(DELETE_AT_ONCE)
            .take_while(|(n, finished)| *n < too_many || finished.at < oldest)
            .count();
        if due == 0 {
            return Ok(Vec::new());
        }
        let transaction = connection.transaction()?;
        let mut forgotten = Vec::with_capacity(due);
        for finished in self.finished.iter().take(due) {
            forgotten.push(forget_one(&transaction, *finished)?);
        }
        let id: String = transaction.query_row("SELECT id FROM journal", [], |row| row.get(0))?;
        let mut row = transaction.prepare("UPDATE journal SET id = ?1, head = ?2, sum = ?3")?;
        sum::execute(&mut row, &[sum::text(&id), ValueRef::Integer(signed(head))])?;
        drop(row);
        transaction.commit()?;
        self.finished.drain(..due);
        Ok(forgotten)
    }
}

fn forget_one(transaction: &Transaction<'_>, finished: Finished) -> rusqlite::Result<Forgotten> {
    let (mission, ended) = (signed(finished.mission), signed(finished.ended));
    transaction
        .prepare_cached("DELETE FROM states WHERE position BETWEEN ?1 AND ?2 AND mission = ?1")?
        .execute((mission, ended))?;
    transaction
        .prepare_cached(
            "DELETE FROM missions WHERE mission = ?1
             RETURNING mission, mission_id, caller, plan_key, idempotency_key",
        )?
        .query_row([mission], |row| {
            Ok(Forgotten {
                number: unsigned(row.get(0)?),
                mission_id: row.get(1)?,
                caller: row.get(2)?,
                plan_key: row.get(3)?,
                idempotency_key: row.get(4)?,
            })
        })
}

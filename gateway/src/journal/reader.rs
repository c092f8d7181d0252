//! Reading: all of it at the start, pages of updates and single missions later.

use super::{
    Attempt, JournalError, Mission, MissionState, RobotRow, maintenance::Finished, schema, sum,
};
use portarium_protocols::mission::{Command, MissionStatus};
use rusqlite::{Connection, OptionalExtension as _, Row};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{sync::Mutex, task::spawn_blocking};
use tokio_util::task::AbortOnDropHandle;

/// What a journal holds when it is opened.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The last position; 0 in an empty journal.
    pub head: u64,
    /// All missions that are kept, oldest first.
    pub missions: Vec<LoadedMission>,
    /// The robots' rows.
    pub robots: Vec<RobotRow>,
    /// How often one of them was written.
    pub(super) robot_changes: u64,
    /// The missions that have ended, in the order of their ends.
    pub(super) finished: Vec<Finished>,
}

/// A mission as found.
#[derive(Debug)]
pub struct LoadedMission {
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
    /// The position of the state that ended it, or the mission itself where it is open.
    pub ended: Result<u64, Arc<Mission>>,
}

/// One change of one mission, as watchers see it.
#[derive(Debug, Clone)]
pub struct Update {
    /// Grows from change to change.
    pub position: u64,
    /// What was asked.
    pub command: Arc<Command>,
    /// The state from this position on.
    pub state: MissionState,
}

/// Reads committed rows on a connection of its own.
#[derive(Clone)]
pub struct Reader {
    connection: Arc<Mutex<Connection>>,
    #[cfg(test)]
    at_once: Arc<std::sync::atomic::AtomicBool>,
}

/// The columns of `states`, of which those of `missions` follow where both are read.
const STATE_COLUMNS: usize = 9;
/// The columns of `missions`.
const MISSION_COLUMNS: usize = 9;
/// The columns of `robots`.
const ROBOT_COLUMNS: usize = 9;

impl Reader {
    pub(super) fn open(path: &Path) -> Result<Self, JournalError> {
        Ok(Self {
            connection: Arc::new(Mutex::new(schema::open_reader(path)?)),
            #[cfg(test)]
            at_once: Arc::default(),
        })
    }

    /// From now on reads are made where they are asked for: on a thread of their own they end at
    /// a moment that no seed decides.
    #[cfg(test)]
    pub(crate) fn read_at_once(&self) {
        self.at_once
            .store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Keeps all reads waiting, as a disk does that hangs.
    #[cfg(test)]
    pub(crate) async fn hang(&self) -> impl Drop + use<> {
        self.connection.clone().lock_owned().await
    }

    /// Up to `limit` changes after a position, of all missions or of the one with this number,
    /// behind whose end nothing is searched.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub async fn updates(
        &self,
        after: u64,
        mission: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Update>, JournalError> {
        self.blocking(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT s.*, m.* FROM states s
                 JOIN missions m ON m.mission = s.mission
                 WHERE s.position > max(?1, ifnull(?2, 1) - 1) AND (?2 IS NULL OR s.mission = ?2)
                 ORDER BY s.position LIMIT ?3",
            )?;
            let rows = statement.query_map(
                (
                    signed(after),
                    mission.map(signed),
                    i64::try_from(limit).unwrap_or(i64::MAX),
                ),
                |row| {
                    sum::check(row, 0, STATE_COLUMNS)?;
                    sum::check(row, STATE_COLUMNS, MISSION_COLUMNS)?;
                    Ok(Update {
                        position: unsigned(row.get(0)?),
                        state: state(row)?,
                        command: Arc::new(command(row, STATE_COLUMNS + 7)?),
                    })
                },
            )?;
            let mut found = Vec::new();
            for row in rows {
                let update: Update = row?;
                let ends = mission.is_some() && update.state.status.is_terminal();
                found.push(update);
                if ends {
                    break;
                }
            }
            Ok(found)
        })
        .await
    }

    /// The state at a position and what was asked, of a mission that has ended.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub async fn ended(&self, position: u64) -> Result<Option<Update>, JournalError> {
        let found = self.updates(position.saturating_sub(1), None, 1).await?;
        Ok(found.into_iter().find(|u| u.position == position))
    }

    /// What a mission asked and when it was accepted.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub async fn mission(
        &self,
        number: u64,
    ) -> Result<Option<(Command, SystemTime)>, JournalError> {
        self.blocking(move |connection| {
            connection
                .prepare_cached("SELECT * FROM missions WHERE mission = ?1")?
                .query_row([signed(number)], |row| {
                    sum::check(row, 0, MISSION_COLUMNS)?;
                    Ok((command(row, 7)?, from_millis(row.get(6)?)))
                })
                .optional()
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, JournalError> {
        let connection = self.connection.clone();
        #[cfg(test)]
        if self.at_once.load(std::sync::atomic::Ordering::Relaxed) {
            return read(&*connection.lock_owned().await).map_err(JournalError::read);
        }
        // Whoever waits here takes no thread: on a disk that hangs, calls and watches would take
        // all that there are for blocking work, also for cutting callers that were revoked. And it
        // waits in a task of its own: the connection is handed to the next in line, and a watcher that
        // does not read, or a call whose caller's others come first, would not take it.
        let reading = AbortOnDropHandle::new(tokio::spawn(async move {
            let connection = connection.lock_owned().await;
            spawn_blocking(move || read(&connection)).await
        }));
        reading
            .await
            .flatten()
            .map_err(|_| JournalError::Closed)?
            .map_err(|source| {
                let error = JournalError::read(source);
                tracing::warn!(error = %portarium_identity::error_chain(&error), "a caller's question was not answered");
                error
            })
    }
}

/// Reads everything that is kept, once, before the engine starts.
pub(super) fn load(connection: &Connection, path: &Path) -> Result<Loaded, JournalError> {
    let mut loaded = Loaded::default();
    read_all(connection, &mut loaded).map_err(|e| JournalError::opening(path, e))?;
    Ok(loaded)
}

fn read_all(connection: &Connection, loaded: &mut Loaded) -> rusqlite::Result<()> {
    loaded.head = connection.query_row("SELECT head FROM journal", [], |row| {
        Ok(unsigned(row.get(0)?))
    })?;
    let mut ended = BTreeMap::new();
    let mut last = BTreeMap::new();
    let mut positions = connection.prepare("SELECT * FROM states ORDER BY position")?;
    let mut rows = positions.query([])?;
    while let Some(row) = rows.next()? {
        sum::check(row, 0, STATE_COLUMNS)?;
        let (position, mission) = (unsigned(row.get(0)?), unsigned(row.get(1)?));
        loaded.head = loaded.head.max(position);
        if status(row.get(3)?, 3)?.is_terminal() {
            last.remove(&mission);
            ended.insert(mission, position);
            loaded.finished.push(Finished {
                mission,
                ended: position,
                at: row.get(2)?,
            });
        } else {
            last.insert(mission, position);
        }
    }
    let mut missions = connection.prepare("SELECT * FROM missions ORDER BY mission")?;
    let mut rows = missions.query([])?;
    while let Some(row) = rows.next()? {
        sum::check(row, 0, MISSION_COLUMNS)?;
        let number = unsigned(row.get(0)?);
        let ended = match (ended.get(&number), last.get(&number)) {
            (Some(position), _) => Ok(*position),
            (None, Some(position)) => Err(Arc::new(open_mission(connection, number, *position)?)),
            (None, None) => return Err(unreadable(0, "mission: it has no state")),
        };
        loaded.missions.push(LoadedMission {
            number,
            mission_id: row.get(1)?,
            caller: row.get(3)?,
            plan_key: row.get(4)?,
            idempotency_key: row.get(5)?,
            ended,
        });
    }
    for (robot, change) in robots(connection)? {
        loaded.robot_changes = loaded.robot_changes.max(change);
        loaded.robots.push(robot);
    }
    Ok(())
}

fn open_mission(connection: &Connection, number: u64, position: u64) -> rusqlite::Result<Mission> {
    connection
        .prepare_cached(
            "SELECT s.*, m.* FROM states s
             JOIN missions m ON m.mission = s.mission WHERE s.position = ?1",
        )?
        .query_row([signed(position)], |row| {
            let caller: String = row.get(STATE_COLUMNS + 3)?;
            Ok(Mission::loaded(
                number,
                Arc::new(command(row, STATE_COLUMNS + 7)?),
                caller.into(),
                from_millis(row.get(STATE_COLUMNS + 6)?),
                state(row)?,
            ))
        })
}

/// The robots' rows, each with the number of the change that wrote it.
fn robots(connection: &Connection) -> rusqlite::Result<Vec<(RobotRow, u64)>> {
    let mut statement = connection.prepare("SELECT * FROM robots")?;
    let rows = statement.query_map([], |row| {
        sum::check(row, 0, ROBOT_COLUMNS)?;
        let id: String = row.get(0)?;
        let robot = RobotRow {
            robot_id: id.parse().map_err(|_| unreadable(0, "robot id"))?,
            fence: Some(unsigned(row.get(3)?)),
            latched: row.get(4)?,
            hold: row.get(5)?,
            stop: match row.get_ref(6)? {
                rusqlite::types::ValueRef::Null => None,
                _ => Some(Arc::new(command(row, 6)?)),
            },
        };
        Ok((robot, unsigned(row.get(7)?)))
    })?;
    rows.collect()
}

fn state(row: &Row<'_>) -> rusqlite::Result<MissionState> {
    let flags: i64 = row.get(4)?;
    Ok(MissionState {
        status: status(row.get(3)?, 3)?,
        attempt: if flags & flag::ATTEMPT == 0 {
            Attempt::NotSent
        } else {
            Attempt::Open
        },
        heard: flags & flag::HEARD != 0,
        outcome_unknown: flags & flag::UNKNOWN != 0,
        cancel_requested: flags & flag::CANCEL != 0,
        awaiting_confirmation: flags & flag::AWAITING != 0,
        action_execution_id: text(row, 5)?,
        observed_at: text(row, 6)?,
        detail: text(row, 7)?,
    })
}

fn text(row: &Row<'_>, column: usize) -> rusqlite::Result<Arc<str>> {
    Ok(Arc::from(row.get_ref(column)?.as_str()?))
}

fn command(row: &Row<'_>, column: usize) -> rusqlite::Result<Command> {
    serde_json::from_str(row.get_ref(column)?.as_str()?).map_err(|_| unreadable(column, "command"))
}

fn status(code: i64, column: usize) -> rusqlite::Result<MissionStatus> {
    usize::try_from(code)
        .ok()
        .and_then(|code| MissionStatus::ALL.get(code).copied())
        .ok_or_else(|| unreadable(column, "status"))
}

/// A row that we did not write so: the file was changed by somebody else.
fn unreadable(column: usize, what: &str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(
        column,
        rusqlite::types::Type::Text,
        format!("unreadable {what}").into(),
    )
}

/// The bits of the column `flags`.
pub(super) mod flag {
    pub(in crate::journal) const ATTEMPT: i64 = 1;
    pub(in crate::journal) const HEARD: i64 = 2;
    pub(in crate::journal) const UNKNOWN: i64 = 4;
    pub(in crate::journal) const CANCEL: i64 = 8;
    pub(in crate::journal) const AWAITING: i64 = 16;
}

// SQLite's integers are signed; positions grow by one and never come near the sign.
pub(super) fn signed(position: u64) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(column: i64) -> u64 {
    u64::try_from(column).unwrap_or(0)
}

pub(super) fn to_millis(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn from_millis(millis: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

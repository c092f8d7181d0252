//! The file's layout and its version.

use super::{JournalError, parent, sum};
use rusqlite::{Connection, OpenFlags, Transaction, types::Value};
use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::ErrorKind,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// Grows with each change of the layout. A program refuses a version that it does not know.
const VERSION: i64 = 3;

/// `PORT` in the file's header: tells our files from other SQLite files.
const APPLICATION_ID: i64 = 0x504f_5254;

// Only integer keys that grow: rows are appended, and a commit touches the last pages alone.
// `owner` and `owner_epoch` say which gateway a robot belongs to; with one gateway they never
// change, with several each robot has one owner at a time. `head` is the last position when rows
// were last deleted: the last rows may be among them, and no position is given twice.
// This is version 1, of which `lay_out` makes the others.
const LAYOUT: &str = "
CREATE TABLE journal (
    id   TEXT NOT NULL,
    head INTEGER NOT NULL
) STRICT;
CREATE TABLE missions (
    mission         INTEGER PRIMARY KEY,
    mission_id      TEXT NOT NULL,
    robot_id        TEXT NOT NULL,
    caller          TEXT NOT NULL,
    plan_key        TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    accepted_at     INTEGER NOT NULL,
    command         TEXT NOT NULL
) STRICT;
CREATE TABLE states (
    position     INTEGER PRIMARY KEY,
    mission      INTEGER NOT NULL,
    at           INTEGER NOT NULL,
    status       INTEGER NOT NULL,
    flags        INTEGER NOT NULL,
    execution_id TEXT NOT NULL,
    observed_at  TEXT NOT NULL,
    detail       TEXT NOT NULL
) STRICT;
CREATE TABLE robots (
    robot_id    TEXT PRIMARY KEY,
    owner       TEXT NOT NULL,
    owner_epoch INTEGER NOT NULL,
    fence       INTEGER NOT NULL,
    latched     INTEGER NOT NULL,
    hold        TEXT,
    stop        TEXT
) STRICT, WITHOUT ROWID;
";

/// All tables. Each has its key first and, since version 2, a sum over its other columns last.
const TABLES: [(&str, &str); 4] = [
    ("journal", "id"),
    ("missions", "mission"),
    ("states", "position"),
    ("robots", "robot_id"),
];

/// Opens for writing; creates the file and its tables where there are none.
pub(super) fn open(path: &Path) -> Result<Connection, JournalError> {
    create_private(path)?;
    let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let failed = |e| JournalError::opening(path, e);
    // Before anything is set: to switch the log on already writes to the file.
    check(&connection, path)?;
    sync_log(path).map_err(|e| JournalError::open(path, e))?;
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .map_err(failed)?;
    // FULL: an acknowledged mission survives a power cut. NORMAL would lose the last ones.
    connection
        .pragma_update(None, "synchronous", "FULL")
        .map_err(failed)?;
    // Checkpoints are made by `maintenance`, where they hold up nobody.
    connection
        .pragma_update(None, "wal_autocheckpoint", 0)
        .map_err(failed)?;
    let version: i64 = pragma(&connection, "user_version", path)?;
    if version < VERSION {
        lay_out(&mut connection, version).map_err(failed)?;
        // Into the file itself: with a damaged log alone, it would look like a new one again.
        checkpoint(&connection, "TRUNCATE").map_err(failed)?;
    }
    if !is_laid_out(&connection).map_err(failed)? {
        return Err(JournalError::Damaged {
            path: path.to_path_buf(),
            reason: "a table is not as it was made".into(),
        });
    }
    Ok(connection)
}

/// Whether all tables have the columns of new ones. Their names are in the file too: what is read at
/// the start does not need all of them, and what is read later would fail.
fn is_laid_out(connection: &Connection) -> rusqlite::Result<bool> {
    let mut new = Connection::open_in_memory()?;
    lay_out(&mut new, 0)?;
    for (table, _) in TABLES {
        if columns(connection, table)? != columns(&new, table)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The names and types of a table's columns.
fn columns(connection: &Connection, table: &str) -> rusqlite::Result<Vec<(String, String)>> {
    connection
        .prepare("SELECT name, type FROM pragma_table_info(?1) ORDER BY cid")?
        .query_map([table], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect()
}

fn lay_out(connection: &mut Connection, version: i64) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    if version < 1 {
        transaction.execute_batch(LAYOUT)?;
        transaction.execute("INSERT INTO journal (id, head) VALUES (?1, 0)", [new_id()])?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    }
    if version < 2 {
        for (table, key) in TABLES {
            add_sums(&transaction, table, key)?;
        }
    }
    if version < 3 {
        count_robots(&transaction)?;
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()
}

fn add_sums(transaction: &Transaction<'_>, table: &str, key: &str) -> rusqlite::Result<()> {
    let mut all = transaction.prepare(&format!("SELECT * FROM {table}"))?;
    let columns = all.column_count();
    let sums = all
        .query_map([], |row| {
            let values = (0..columns)
                .map(|column| row.get_ref(column))
                .collect::<rusqlite::Result<Vec<_>>>()?;
            Ok((row.get::<_, Value>(0)?, sum::of(values)))
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let add = format!("ALTER TABLE {table} ADD COLUMN sum INTEGER NOT NULL DEFAULT 0");
    transaction.execute(&add, [])?;
    let mut set = transaction.prepare(&format!("UPDATE {table} SET sum = ?2 WHERE {key} = ?1"))?;
    for row in sums {
        set.execute(row)?;
    }
    Ok(())
}

/// Version 3: robots' rows are rewritten in place and have no position; `change` numbers these
/// writes, so that the last one of all is found to be missing.
fn count_robots(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    // What is damaged must not get a sum that fits.
    transaction
        .prepare("SELECT * FROM robots")?
        .query_map([], |row| sum::check(row, 0, 8))?
        .collect::<rusqlite::Result<()>>()?;
    // A sum is over the columns before it.
    transaction.execute_batch(
        "ALTER TABLE robots DROP COLUMN sum;
         ALTER TABLE robots ADD COLUMN change INTEGER NOT NULL DEFAULT 0;",
    )?;
    add_sums(transaction, "robots", "robot_id")
}

/// How long a connection waits for another one's lock.
pub(super) const BUSY: Duration = Duration::from_secs(5);

/// Opens for checkpoints beside the writer.
pub(super) fn open_checkpointer(path: &Path) -> Result<Connection, JournalError> {
    connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
}

/// Opens for reading only.
pub(super) fn open_reader(path: &Path) -> Result<Connection, JournalError> {
    connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

/// Copies the log into the file.
pub(super) fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<()> {
    connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()))
}

/// The journal's own name, made when it was.
pub(super) fn id(connection: &Connection, path: &Path) -> Result<String, JournalError> {
    connection
        .query_row("SELECT id, head, sum FROM journal", [], |row| {
            sum::check(row, 0, 3)?;
            row.get(0)
        })
        .map_err(|e| JournalError::opening(path, e))
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, JournalError> {
    let failed = |e| JournalError::opening(path, e);
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .map_err(failed)?;
    connection.busy_timeout(BUSY).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

/// Missions name places and goods: the file is its user's alone.
fn create_private(path: &Path) -> Result<(), JournalError> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(|e| JournalError::open(path, e))
}

/// Refuses what is not ours, too new or damaged, before anything is read from it.
fn check(connection: &Connection, path: &Path) -> Result<(), JournalError> {
    let found: i64 = pragma(connection, "user_version", path)?;
    if found > VERSION {
        return Err(JournalError::Newer {
            path: path.to_path_buf(),
            found,
            known: VERSION,
        });
    }
    let damaged = |reason: String| JournalError::Damaged {
        path: path.to_path_buf(),
        reason,
    };
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(|e| JournalError::opening(path, e))?;
    let application: i64 = pragma(connection, "application_id", path)?;
    if (found != 0 || tables != 0) && application != APPLICATION_ID {
        return Err(damaged("it is a database of another program".into()));
    }
    let verdict: String = pragma(connection, "quick_check(1)", path)?;
    if verdict != "ok" {
        return Err(damaged(verdict));
    }
    Ok(())
}

/// A process that was killed may have left commits in the log that are not on the disk yet. They
/// are told as durable from here on.
fn sync_log(path: &Path) -> std::io::Result<()> {
    match File::open(log_of(path)) {
        Ok(log) => log.sync_all()?,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    }
    File::open(parent(path))?.sync_all()
}

/// The file in which SQLite keeps what is not copied into the journal's file yet.
pub(super) fn log_of(path: &Path) -> PathBuf {
    let mut log = OsString::from(path);
    log.push("-wal");
    log.into()
}

fn pragma<T: rusqlite::types::FromSql>(
    connection: &Connection,
    name: &str,
    path: &Path,
) -> Result<T, JournalError> {
    connection
        .query_row(&format!("PRAGMA {name}"), [], |row| row.get(0))
        .map_err(|e| JournalError::opening(path, e))
}

/// Eight letters and digits; part of every `gateway_request_id`.
fn new_id() -> String {
    std::iter::repeat_with(fastrand::alphanumeric)
        .take(8)
        .map(|c| c.to_ascii_lowercase())
        .collect()
}

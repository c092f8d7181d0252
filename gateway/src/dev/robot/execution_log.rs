//! What robots really did, for tests to prove that nothing was executed twice and nothing moved
//! after a stop.

use portarium_protocols::{
    ids::{MissionId, RobotId},
    mission::MissionStatus,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Instant, SystemTime},
};
use thiserror::Error;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// So many entries are kept in memory.
const KEPT: usize = 1_000_000;

/// Why a log cannot be written or read.
#[derive(Debug, Error)]
pub enum LogError {
    /// The file cannot be opened.
    #[error("cannot open the execution log {path}: {source}")]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line before the last is no entry.
    #[error("line {line} of the execution log {path} is no entry: {reason}")]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogEvent {
    /// Motion began: one more execution of the mission.
    MotionStart,
    /// Motion ended; `outcome` says how, and is absent where the robot lost its memory.
    MotionEnd,
    /// A stop or e-stop request arrived; the mission is the stop's own.
    Stop,
    /// A cancel arrived; the mission is the one to be cancelled, known to the robot or not.
    Cancel,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// What happened.
    pub event: LogEvent,
    /// To which robot.
    pub robot: RobotId,
    /// With which mission.
    pub mission: MissionId,
    /// The mission's key; empty on stops and cancels.
    pub idempotency_key: String,
    /// The robot's name for the execution; empty on stops and cancels.
    pub execution: String,
    /// How the motion ended.
    pub outcome: Option<MissionStatus>,
    /// Nanoseconds since the log was opened, on a clock that is not stepped.
    pub monotonic_ns: u64,
    /// RFC 3339.
    pub wall: String,
}

/// An append-only log, in memory and, where wanted, in a file of JSON lines. Cheap to clone.
#[derive(Clone)]
pub struct ExecutionLog {
    opened: Instant,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    entries: Vec<LogEntry>,
    overflowed: bool,
    file: Option<File>,
    fsync: bool,
}

impl Default for ExecutionLog {
    fn default() -> Self {
        Self::in_memory()
    }
}

impl ExecutionLog {
    /// In memory only.
    pub fn in_memory() -> Self {
        Self {
            opened: Instant::now(),
            inner: Arc::default(),
        }
    }

    /// In memory and appended to a file. A line is with the operating system before the robot
    /// goes on, so it survives the process; with `fsync` it survives the machine.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path, fsync: bool) -> Result<Self, LogError> {
        let file = OpenOptions::new().append(true).create(true).open(path);
        let file = file.map_err(|source| LogError::Open {
            path: path.into(),
            source,
        })?;
        let inner = Inner {
            file: Some(file),
            fsync,
            ..Inner::default()
        };
        Ok(Self {
            opened: Instant::now(),
            inner: Arc::new(Mutex::new(inner)),
        })
    }

    /// Reads a file that a robot wrote, also one that was killed while it wrote the last line.
    ///
    /// # Errors
    /// When the file cannot be read, or a line before the last is no entry.
    pub fn read(path: &Path) -> Result<Vec<LogEntry>, LogError> {
        let text = std::fs::read_to_string(path).map_err(|source| LogError::Open {
            path: path.into(),
            source,
        })?;
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        let parsed = complete.lines().zip(1..).map(|(text, line)| {
            serde_json::from_str(text).map_err(|e| LogError::Line {
                path: path.into(),
                line,
                reason: e.to_string(),
            })
        });
        parsed.collect()
    }

    /// All entries so far; see [`Self::is_complete`].
    pub fn entries(&self) -> Vec<LogEntry> {
        self.inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entries
            .clone()
    }

    /// How often motion began under an idempotency key.
    pub fn executions_of(&self, key: &str) -> usize {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let of_key = |e: &&LogEntry| e.event == LogEvent::MotionStart && e.idempotency_key == key;
        inner.entries.iter().filter(of_key).count()
    }

    /// False once something happened that is not in memory or could not be written to the file:
    /// the log then proves nothing.
    pub fn is_complete(&self) -> bool {
        !self
            .inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .overflowed
    }

    /// Appends an entry, with the time of now.
    pub(super) fn add(
        &self,
        event: LogEvent,
        robot: &RobotId,
        mission: &MissionId,
        execution: Option<(&str, &str)>,
        outcome: Option<MissionStatus>,
    ) {
        let (idempotency_key, execution) = execution.unwrap_or_default();
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = self.opened.elapsed().as_nanos();
        let entry = LogEntry {
            event,
            robot: robot.clone(),
            mission: mission.clone(),
            idempotency_key: idempotency_key.into(),
            execution: execution.into(),
            outcome,
            monotonic_ns: u64::try_from(elapsed).unwrap_or(u64::MAX),
            wall: rfc3339(SystemTime::now()),
        };
        if let Err(error) = inner.write(&entry) {
            tracing::error!(%error, "cannot write the execution log");
            inner.overflowed = true;
        }
        if inner.entries.len() < KEPT {
            inner.entries.push(entry);
        } else {
            inner.overflowed = true;
        }
    }
}

impl Inner {
    fn write(&mut self, entry: &LogEntry) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        file.write_all(&line)?;
        if self.fsync { file.sync_data() } else { Ok(()) }
    }
}

pub(super) fn rfc3339(at: SystemTime) -> String {
    OffsetDateTime::from(at)
        .format(&Rfc3339)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_log_whose_last_line_was_cut_short_is_read_up_to_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let log = ExecutionLog::open(&path, true).unwrap();
        let (robot, mission) = ("r".parse().unwrap(), "m".parse().unwrap());
        log.add(
            LogEvent::MotionStart,
            &robot,
            &mission,
            Some(("k", "x")),
            None,
        );
        let outcome = Some(MissionStatus::Succeeded);
        log.add(
            LogEvent::MotionEnd,
            &robot,
            &mission,
            Some(("k", "x")),
            outcome,
        );
        OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"{\"event\":\"mo")
            .unwrap();
        let read = ExecutionLog::read(&path).unwrap();
        assert_eq!(read, log.entries());
        assert_eq!(
            (read.len(), log.executions_of("k"), log.executions_of("j")),
            (2, 1, 0)
        );
        assert!(log.is_complete() && read[0].monotonic_ns <= read[1].monotonic_ns);
        std::fs::write(&path, "nonsense\n").unwrap();
        assert!(matches!(
            ExecutionLog::read(&path),
            Err(LogError::Line { line: 1, .. })
        ));
    }
}

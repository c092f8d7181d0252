//! The journal: what was acknowledged, durably, in one SQLite file.
//!
//! The file is appended to and nothing else: a mission is one row, each change of its state is
//! another, and only retention deletes. A mission's number is the position of its first state, so
//! that no index has to be kept on disk; the keys are indexed in memory (see the engine).
//!
//! Commits of many callers are grouped by one writer; what it has committed becomes visible to
//! readers and watchers in the order of its positions, never earlier.

mod error;
mod lock;
mod maintenance;
mod reader;
mod record;
mod schema;
mod sum;
#[cfg(test)]
mod tests;
mod writer;

pub use error::JournalError;
pub use lock::Extent;
pub use maintenance::Forgotten;
pub use reader::{Loaded, LoadedMission, Reader, Update};
pub use record::{Append, Attempt, Mission, MissionState, Record, RobotRow, Ticket};
pub use writer::{Batch, Observer, Writer};

use crate::clock::{Clock, SteadyClock};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::{mpsc, watch};

/// The longest the writer's queue may become before work that can wait is turned away.
/// Stops are exempt.
pub const BACKLOG_LIMIT: usize = 4096;

/// How long and how many finished missions and their keys are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// A finished mission is kept for this long …
    pub keep_for: Duration,
    /// … but never more than these many.
    pub at_most: usize,
}

/// A handle on an open journal. Cheap to clone; the file closes with the last one.
#[derive(Clone)]
pub struct Journal {
    queue: mpsc::UnboundedSender<Append>,
    backlog: Arc<AtomicUsize>,
    head: watch::Receiver<u64>,
    reader: Reader,
    id: Arc<str>,
}

/// A journal just opened: the handle, its writer, which has to be run, and what it holds.
pub struct Opened {
    /// For the engine.
    pub journal: Journal,
    /// To be run: [`Writer::spawn`] on a thread of its own.
    pub writer: Writer,
    /// What was there.
    pub loaded: Loaded,
}

impl Journal {
    /// Opens the journal, creating it where there is none, and reads what it holds.
    ///
    /// # Errors
    /// Where another gateway has it open, a newer version wrote it, or it is damaged.
    pub fn open(
        path: &Path,
        retention: Retention,
        clock: &dyn Clock,
    ) -> Result<Opened, JournalError> {
        // A clock that is stepped forward must not let the keys of missions be forgotten: what is
        // asked for again would be executed again.
        let clock = Arc::new(SteadyClock::set_by(clock));
        let lock = lock::acquire(path)?;
        let connection = schema::open(path)?;
        let id: Arc<str> = schema::id(&connection, path)?.into();
        let mut loaded = reader::load(&connection, path)?;
        let found = Extent {
            position: loaded.head,
            robots: loaded.robot_changes,
        };
        if let Some(noted) = lock.noted(&id)
            && found.is_short_of(noted)
        {
            return Err(JournalError::CutShort {
                path: path.to_path_buf(),
                found,
                noted,
            });
        }
        let reader = Reader::open(path)?;
        let backlog = Arc::new(AtomicUsize::new(0));
        let (queue, jobs) = mpsc::unbounded_channel();
        let (head_sender, head) = watch::channel(loaded.head);
        let finished = std::mem::take(&mut loaded.finished);
        let mut maintenance = maintenance::Maintenance::new(path, retention, finished, clock);
        maintenance.start_helper(path)?;
        let writer = Writer::new(
            connection,
            maintenance,
            (lock, id.clone()),
            jobs,
            head_sender,
            backlog.clone(),
            found,
        );
        Ok(Opened {
            journal: Self {
                queue,
                backlog,
                head,
                reader,
                id,
            },
            writer,
            loaded,
        })
    }

    /// Hands records to the writer; never waits. They are committed in the order of the calls.
    ///
    /// Whoever must bound memory looks at [`Journal::is_congested`] first.
    pub fn append(&self, append: Append) {
        self.backlog.fetch_add(1, Ordering::Relaxed);
        if let Err(mpsc::error::SendError(append)) = self.queue.send(append) {
            append.fail(&JournalError::Closed);
        }
    }

    /// Appends not committed yet.
    pub fn backlog(&self) -> usize {
        self.backlog.load(Ordering::Relaxed)
    }

    /// Whether work that can wait should be turned away.
    pub fn is_congested(&self) -> bool {
        self.backlog() >= BACKLOG_LIMIT
    }

    /// The position of the last committed state; wakes with each commit.
    pub fn head(&self) -> watch::Receiver<u64> {
        self.head.clone()
    }

    /// For reading what is committed, off the writer's connection.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// What the caller knows a mission by in the gateway: unique over the journal's life.
    pub fn request_id(&self, number: u64) -> String {
        format!("{}-{number}", self.id)
    }
}

/// The folder that holds the journal.
fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

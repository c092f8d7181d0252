//! One process per journal, and a note of how far it came.

use super::{JournalError, parent};
use std::{
    fmt,
    fs::{File, OpenOptions, TryLockError},
    io::Read as _,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

/// How far a journal came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extent {
    /// The last position of a mission's state.
    pub position: u64,
    /// How often a robot's row was written: a hold and a release have no position.
    pub robots: u64,
}

impl Extent {
    /// Whether something is missing of what went as far as the other.
    pub(super) fn is_short_of(self, other: Self) -> bool {
        self.position < other.position || self.robots < other.robots
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { position, robots } = self;
        write!(f, "change {position} of missions and {robots} of robots")
    }
}

/// Holds the journal for this process until dropped. The kernel lets go of it when the process
/// dies, however it dies.
///
/// The file says how far the last commit went. SQLite takes a log that is damaged in the
/// middle for one that ends there, as it does after a power cut; what was acknowledged behind that
/// would be gone without a word. The note is written after the commit and not synced: it may be
/// behind after a power cut, and is never ahead.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

impl Lock {
    /// Notes that this journal's commits so far are on the disk.
    pub(super) fn note(&self, id: &str, reached: Extent) {
        let Extent { position, robots } = reached;
        // Twice: half a note is none.
        let note = format!("{id} {position:020} {robots:020} {position:020} {robots:020}\n");
        // Without it damage is found by less; no commit fails for it.
        if let Err(error) = self.file.write_all_at(note.as_bytes(), 0) {
            tracing::debug!(%error, "how far the journal came could not be noted");
        }
    }

    /// How far this journal came as far as was noted, if there is a whole note.
    pub(super) fn noted(&self, id: &str) -> Option<Extent> {
        let mut note = String::new();
        (&self.file).take(256).read_to_string(&mut note).ok()?;
        let words: Vec<&str> = note.split_ascii_whitespace().collect();
        let (position, robots) = match words[..] {
            [of, position, robots, p, r] if of == id && (p, r) == (position, robots) => {
                (position, robots)
            }
            // Beside a journal before version 3.
            [of, position, p] if of == id && p == position => (position, "0"),
            _ => return None,
        };
        Some(Extent {
            position: position.parse().ok()?,
            robots: robots.parse().ok()?,
        })
    }
}

pub(super) fn acquire(path: &Path) -> Result<Lock, JournalError> {
    // Beside the file itself, whichever of its names it was called by. One that is still to be
    // made has no other.
    let real = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let Some(name) = real.file_name() else {
        return Err(JournalError::open(
            path,
            std::io::Error::other("it names no file"),
        ));
    };
    let mut lock_name = name.to_os_string();
    lock_name.push(".lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(parent(&real).join(lock_name))
        .map_err(|e| JournalError::open(path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock { file }),
        Err(TryLockError::WouldBlock) => Err(JournalError::InUse {
            path: path.to_path_buf(),
        }),
        Err(TryLockError::Error(e)) => Err(JournalError::open(path, e)),
    }
}

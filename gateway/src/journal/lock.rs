//! One process per journal, and a note of how far it came.

use super::{JournalError, parent};
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::Read as _,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

/// Holds the journal for this process until dropped. The kernel lets go of it when the process
/// dies, however it dies.
///
/// The file says which position was committed last. SQLite takes a log that is damaged in the
/// middle for one that ends there, as it does after a power cut; what was acknowledged behind that
/// would be gone without a word. The note is written after the commit and not synced: it may be
/// behind after a power cut, and is never ahead.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

impl Lock {
    /// Notes that this journal's commits up to a position are on the disk.
    pub(super) fn note(&self, id: &str, position: u64) {
        let note = format!("{id} {position:020} {position:020}\n");
        // Without it damage is found by less; no commit fails for it.
        if let Err(error) = self.file.write_all_at(note.as_bytes(), 0) {
            tracing::debug!(%error, "the journal's last position could not be noted");
        }
    }

    /// The last position noted for this journal, if there is a whole note.
    pub(super) fn noted(&self, id: &str) -> Option<u64> {
        let mut note = String::new();
        (&self.file).take(256).read_to_string(&mut note).ok()?;
        let mut words = note.split_ascii_whitespace();
        let (of, first, second) = (words.next()?, words.next()?, words.next()?);
        (of == id && first == second).then(|| first.parse().ok())?
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

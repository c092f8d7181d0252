//! One process per journal.

use super::{JournalError, parent};
use std::{
    fs::{File, OpenOptions, TryLockError},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Holds the journal for this process until dropped. The kernel lets go of it when the process
/// dies, however it dies.
#[derive(Debug)]
pub(super) struct Lock(#[allow(dead_code, reason = "held for its drop")] File);

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
        .write(true)
        .mode(0o600)
        .open(parent(&real).join(lock_name))
        .map_err(|e| JournalError::open(path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => Err(JournalError::InUse {
            path: path.to_path_buf(),
        }),
        Err(TryLockError::Error(e)) => Err(JournalError::open(path, e)),
    }
}

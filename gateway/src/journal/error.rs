//! What can fail around the journal.

use super::Extent;
use std::{path::PathBuf, sync::Arc};
use thiserror::Error;

/// What can fail around the journal. Cheap to clone: one failed commit fails many callers.
#[derive(Debug, Clone, Error)]
pub enum JournalError {
    /// The file or its folder cannot be used.
    #[error("journal {path}: cannot open it (is the folder there and writable?)")]
    Open {
        /// The journal.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// Two gateways on one journal would send every mission twice.
    #[error(
        "journal {path}: another process has it open; stop that one or configure another journal.path"
    )]
    InUse {
        /// The journal.
        path: PathBuf,
    },
    /// Written by a later version of this program.
    #[error(
        "journal {path}: it has schema version {found}, this program knows {known}; run the newer version"
    )]
    Newer {
        /// The journal.
        path: PathBuf,
        /// In the file.
        found: i64,
        /// Known here.
        known: i64,
    },
    /// Not what the gateway wrote.
    #[error(
        "journal {path}: it is damaged ({reason}); restore it from a copy, or move it away to start with an empty one"
    )]
    Damaged {
        /// The journal.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// What was acknowledged last is missing.
    #[error(
        "journal {path}: it is damaged (it ends at {found}, and {noted} was written); restore it from a copy, or move it away to start with an empty one; to go on with what is left, remove {path}.lock"
    )]
    CutShort {
        /// The journal.
        path: PathBuf,
        /// What can be read.
        found: Extent,
        /// What is known to have been written.
        noted: Extent,
    },
    /// A commit failed; nothing of it is on disk.
    #[error("the journal could not be written")]
    Commit(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// A read failed.
    #[error("the journal could not be read")]
    Read(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// So much waits for the disk that nothing is taken that can wait.
    #[error("the journal is behind")]
    Behind,
    /// The writer has ended.
    #[error("the journal is closed")]
    Closed,
}

impl JournalError {
    pub(super) fn open(
        path: &std::path::Path,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Open {
            path: path.to_path_buf(),
            source: Arc::new(source),
        }
    }

    /// What callers are told: what happened and what to do. Paths and causes are the log's.
    pub fn for_callers(&self) -> &'static str {
        match self {
            Self::Commit(_) => {
                "the journal could not be written; the gateway's log says why (is its disk full?)"
            }
            Self::Read(_) => "the journal could not be read; the gateway's log says why",
            Self::Behind => "the journal is behind (does its disk hang?); try again later",
            Self::Closed => "the gateway is shutting down",
            Self::Open { .. }
            | Self::InUse { .. }
            | Self::Newer { .. }
            | Self::Damaged { .. }
            | Self::CutShort { .. } => "the journal cannot be used; the gateway's log says why",
        }
    }

    pub(super) fn commit(source: rusqlite::Error) -> Self {
        Self::Commit(Arc::new(source))
    }

    pub(super) fn read(source: rusqlite::Error) -> Self {
        Self::Read(Arc::new(source))
    }

    /// An error met while opening: damage where SQLite says so, or where a row is not as we write
    /// them.
    pub(super) fn opening(path: &std::path::Path, source: rusqlite::Error) -> Self {
        use rusqlite::{
            Error,
            ErrorCode::{DatabaseCorrupt, NotADatabase, Unknown},
        };
        let damaged = match &source {
            Error::FromSqlConversionFailure(..)
            | Error::IntegralValueOutOfRange(..)
            | Error::InvalidColumnType(..)
            | Error::Utf8Error(..)
            | Error::QueryReturnedNoRows => true,
            // `Unknown` is SQLite's code for statements that it cannot carry out, and ours are always
            // the same: then a table is not as we made it.
            Error::SqlInputError { .. } => true,
            _ => matches!(
                source.sqlite_error_code(),
                Some(DatabaseCorrupt | NotADatabase | Unknown)
            ),
        };
        if !damaged {
            return Self::open(path, source);
        }
        Self::Damaged {
            path: path.to_path_buf(),
            reason: source.to_string(),
        }
    }
}

//! The files: `FILE`, which is written to, and `FILE.1`, `FILE.2` and so on, the older ones.

use super::{
    Rotation,
    chain::{ChainHash, split},
    writer::{Found, Sink, Turn},
};
use std::{
    ffi::OsString,
    fs::{self, File, Metadata, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The longest line, in bytes; fields are bounded far below it.
pub(super) const LONGEST_LINE: usize = 64 * 1024;

/// More text without an end than this is no accident of a write.
pub(super) const MOST_TORN: usize = 64 * 1024;

/// After a rotation that failed, when to try again.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// Where the audit is written to.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    rotation: Rotation,
    file: File,
    /// A pipe or terminal that was configured can neither be read nor rotated nor synced.
    regular: bool,
    /// What the file's length is, unless someone else changes it.
    length: u64,
    rotate_from: Option<Instant>,
}

impl LogFile {
    /// Opens the file, appending. A new file belongs to its user alone.
    pub(super) fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_file() {
            // Two chains in one file would be none.
            file.try_lock().map_err(|error| match error {
                TryLockError::WouldBlock => io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "another gateway writes to it; end that one or give each its own",
                ),
                TryLockError::Error(error) => error,
            })?;
        }
        Ok(Self {
            path: path.to_owned(),
            rotation,
            file,
            regular: metadata.is_file(),
            length: metadata.len(),
            rotate_from: None,
        })
    }

    /// Takes the file up that is at the path now.
    fn reopen(&mut self) -> io::Result<Turn> {
        *self = Self::open(&self.path, self.rotation)?;
        Ok(Turn::Other {
            empty: self.length == 0,
        })
    }

    fn is_at_the_path(&self, own: &Metadata) -> io::Result<bool> {
        match fs::metadata(&self.path) {
            Ok(there) => Ok((there.dev(), there.ino()) == (own.dev(), own.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn rotate(&mut self) -> io::Result<Turn> {
        self.file.sync_data()?;
        let mut older = older(&self.path)?;
        older.reverse();
        for (number, path) in older {
            if number >= self.rotation.keep {
                fs::remove_file(path)?;
            } else {
                fs::rename(path, numbered(&self.path, number + 1))?;
            }
        }
        fs::rename(&self.path, numbered(&self.path, 1))?;
        let turn = self.reopen()?;
        File::open(folder(&self.path))?.sync_data()?;
        Ok(turn)
    }

    /// A file in which no line can be found to go on from is put aside.
    fn found_none(&mut self) -> io::Result<Found> {
        if self.length > MOST_TORN as u64 {
            tracing::warn!(path = %self.path.display(), "the audit's file does not end in a line with a chain; it is put aside, and a new one begun");
            self.rotate()?;
            return Ok(Found::default());
        }
        let torn = read_end(&self.file, MOST_TORN)?;
        let before = match older(&self.path)?.first() {
            Some((_, path)) => last_line(&File::open(path)?)?,
            None => None,
        };
        Ok(Found {
            head: before.map(|(head, _)| head),
            here: false,
            torn,
        })
    }
}

impl Sink for LogFile {
    fn found(&mut self) -> io::Result<Found> {
        if !self.regular {
            return Ok(Found::default());
        }
        match last_line(&self.file)? {
            Some((head, torn)) => Ok(Found {
                head: Some(head),
                here: true,
                torn,
            }),
            None => self.found_none(),
        }
    }

    fn turn(&mut self, may_rotate: bool) -> io::Result<Turn> {
        if !self.regular {
            return Ok(Turn::Same);
        }
        let own = self.file.metadata()?;
        if !self.is_at_the_path(&own)? {
            tracing::warn!(path = %self.path.display(), "someone else moved or removed the audit's file; it goes on in the one that is there now");
            return self.reopen();
        }
        if own.len() != self.length {
            tracing::warn!(path = %self.path.display(), "someone else wrote to the audit's file or cut it");
            self.length = own.len();
            return Ok(Turn::Other {
                empty: own.len() == 0,
            });
        }
        let due = self.rotate_from.is_none_or(|from| from <= Instant::now());
        if may_rotate && due && self.length >= self.rotation.bytes {
            self.rotate_from = Some(Instant::now() + TRY_AGAIN);
            return self.rotate();
        }
        Ok(Turn::Same)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.length += written as u64;
        Ok(written)
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.regular {
            self.file.sync_data()
        } else {
            Ok(())
        }
    }
}

fn folder(path: &Path) -> &Path {
    let parent = path.parent();
    parent
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

pub(super) fn numbered(path: &Path, number: usize) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    name.into()
}

/// The older files that are there, the newest of them first.
pub(super) fn older(path: &Path) -> io::Result<Vec<(usize, PathBuf)>> {
    let mut older = Vec::new();
    for entry in fs::read_dir(folder(path))? {
        let name = entry?.file_name();
        let number = path
            .file_name()
            .and_then(|own| name.to_str()?.strip_prefix(own.to_str()?))
            .and_then(|rest| rest.strip_prefix('.')?.parse::<usize>().ok());
        let Some(number) = number else { continue };
        let path = numbered(path, number);
        if path.file_name() == Some(&name) && number > 0 {
            older.push((number, path));
        }
    }
    older.sort_unstable();
    Ok(older)
}

/// The hash of the last whole line, and the text behind it.
fn last_line(file: &File) -> io::Result<Option<(ChainHash, Vec<u8>)>> {
    let end = read_end(file, MOST_TORN + LONGEST_LINE)?;
    let mut rest = end.as_slice();
    while let Some(newline) = rest.iter().rposition(|byte| *byte == b'\n') {
        if end.len() - newline - 1 > MOST_TORN {
            break;
        }
        rest = &end[..newline];
        let start = rest.iter().rposition(|byte| *byte == b'\n');
        if let Some((_, head)) = split(&rest[start.map_or(0, |at| at + 1)..]) {
            return Ok(Some((head, end[newline + 1..].to_vec())));
        }
    }
    Ok(None)
}

fn read_end(file: &File, at_most: usize) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    let from = length.saturating_sub(at_most as u64);
    let mut end = vec![0; usize::try_from(length - from).unwrap_or(at_most)];
    file.read_exact_at(&mut end, from)?;
    Ok(end)
}

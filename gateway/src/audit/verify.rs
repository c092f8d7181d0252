//! Whether files of the audit are as they were written.

use super::{
    chain::{ChainHash, Goes, Mark, Torn, split},
    file::{LONGEST_LINE, MOST_TORN, numbered, older},
};
use std::{
    collections::HashSet,
    fs::{self, File, Metadata},
    io::{self, BufRead as _, BufReader, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};
use thiserror::Error;

/// How often to look again for files that stay where they are, ...
const TRIES: u32 = 200;

/// ... and after how long.
const PAUSE: Duration = Duration::from_millis(5);

/// What was verified, and is as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The files, the oldest first.
    pub files: Vec<PathBuf>,
    /// Their lines.
    pub lines: u64,
    /// The hash of the line before the first: [`ChainHash::START`], unless older files are gone.
    pub after: ChainHash,
    /// The hash of the last line.
    pub head: ChainHash,
    /// Text without an end, which a crash or a full disk left.
    pub unfinished: Vec<Unfinished>,
}

/// Text without an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// Where.
    pub file: PathBuf,
    /// The number of the line, from 1.
    pub line: u64,
    /// How much it is.
    pub bytes: u64,
    /// A line behind it tells of it; it is then protected as lines are.
    pub told: bool,
}

/// Why files are not verified.
#[derive(Debug, Error)]
pub enum NotVerified {
    /// A file cannot be read.
    #[error("{} cannot be read: {source}", file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// They are not as they were written.
    #[error(transparent)]
    Broken(#[from] Broken),
}

/// Files are not as they were written.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Broken {
    /// The first line that does not fit.
    #[error("{}: line {line} {problem}", file.display())]
    Line {
        /// Where.
        file: PathBuf,
        /// The number of the line, from 1.
        line: u64,
        /// What is wrong with it.
        problem: Problem,
    },
    /// There is no line.
    #[error("there is no line; the gateway writes one whenever it starts")]
    Empty,
    /// No line has the hash that one had.
    #[error(
        "all {lines} lines follow from each other, but none has the hash {head}: the end was cut off, or lines up to that one were written anew, or it is in another file; the last hash is {last}"
    )]
    Head {
        /// The hash that was looked for.
        head: ChainHash,
        /// The last that is there.
        last: ChainHash,
        /// How many lines there are.
        lines: u64,
    },
}

/// What is wrong with a line.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// The first of all does not say after what it comes.
    #[error("does not begin a file: lines before it were removed, or it was changed")]
    NoBeginning,
    /// It has no hash.
    #[error("has no hash at its end: it was changed, or the gateway did not write it")]
    NoHash,
    /// Its hash is not that of its text and the line before.
    #[error(
        "does not follow from the line before: it was changed, or lines before it were removed or moved"
    )]
    NotNext,
    /// It does not belong there, while the line behind it does.
    #[error("was inserted or moved there: the line behind it follows from the one before")]
    Inserted,
    /// A crash left it, and it is not any more as the line behind it says.
    #[error("is what a crash left, and was changed since: the line behind it tells its hash")]
    Torn,
    /// It is longer than any line of the gateway.
    #[error("is longer than any that the gateway writes")]
    TooLong,
}

/// Verifies files, the oldest first; a single one together with the older ones that the gateway
/// put aside beside it. Where a hash is given, one of their lines must have it, or have come
/// right before the first.
pub fn verify(files: &[PathBuf], head: Option<ChainHash>) -> Result<Verified, NotVerified> {
    let opened = match files {
        [one] => with_older(one)?,
        many => {
            let opened = many.iter().map(|path| Ok((path.clone(), open(path)?)));
            opened.collect::<Result<Vec<_>, NotVerified>>()?
        }
    };
    let mut walk = Walk::new(head);
    for (path, file) in opened {
        walk.file(path, file)?;
    }
    walk.end()
}

fn open(path: &Path) -> Result<File, NotVerified> {
    File::open(path).map_err(|source| unreadable(path, source))
}

fn unreadable(path: &Path, source: io::Error) -> NotVerified {
    NotVerified::Read {
        file: path.to_owned(),
        source,
    }
}

/// The file and the older ones, the oldest first; begun anew where the gateway puts files aside
/// meanwhile.
fn with_older(path: &Path) -> Result<Vec<(PathBuf, File)>, NotVerified> {
    let mut tries = 0..TRIES;
    loop {
        let last = tries.next().is_none();
        match open_all(path) {
            Ok(opened) if is_newest(path, &opened) => return Ok(opened),
            // In what order they were is not known, and a wrong one would look like a forgery.
            Ok(_) if last => {
                let why = "the gateway rotates its files faster than they can be opened; try again";
                return Err(unreadable(path, io::Error::other(why)));
            }
            // There is no newest for a moment.
            Err(error) if last => return Err(error),
            _ => thread::sleep(PAUSE),
        }
    }
}

/// From the newest to the oldest, since a rotation moves them that way: none is missed, and one
/// that was opened already is known by its inode.
fn open_all(path: &Path) -> Result<Vec<(PathBuf, File)>, NotVerified> {
    let mut opened = vec![(path.to_owned(), open(path)?)];
    let older = older(path).map_err(|source| unreadable(path, source))?;
    let one_more = older.last().map_or(1, |(number, _)| number + 1);
    let numbers = older.into_iter().map(|(number, _)| number);
    for path in numbers.chain([one_more]).map(|n| numbered(path, n)) {
        match File::open(&path) {
            Ok(file) => opened.push((path, file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(unreadable(&path, source)),
        }
    }
    let mut seen = HashSet::new();
    let mut new = Vec::new();
    for (path, file) in opened {
        let metadata = file.metadata();
        let inode = inode(&metadata.map_err(|source| unreadable(&path, source))?);
        if seen.insert(inode) {
            new.push((path, file));
        }
    }
    new.reverse();
    Ok(new)
}

/// The newest that was opened is so still.
fn is_newest(path: &Path, opened: &[(PathBuf, File)]) -> bool {
    let now = fs::metadata(path).map(|there| inode(&there)).ok();
    let newest = opened.last().and_then(|(_, file)| file.metadata().ok());
    newest.map(|newest| inode(&newest)) == now
}

fn inode(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// A line that does not fit, and what may yet explain it.
struct Doubt {
    line: u64,
    problem: Problem,
    /// It and what came behind it.
    text: Vec<u8>,
    /// The line right behind it is looked at.
    fresh: bool,
}

struct Walk {
    files: Vec<PathBuf>,
    lines: u64,
    wanted: Option<ChainHash>,
    after: Option<ChainHash>,
    head: Option<ChainHash>,
    unfinished: Vec<Unfinished>,
    doubt: Option<Doubt>,
}

impl Walk {
    fn new(wanted: Option<ChainHash>) -> Self {
        Self {
            files: Vec::new(),
            lines: 0,
            wanted,
            after: None,
            head: None,
            unfinished: Vec::new(),
            doubt: None,
        }
    }

    fn file(&mut self, path: PathBuf, file: File) -> Result<(), NotVerified> {
        self.files.push(path.clone());
        let mut reader = BufReader::with_capacity(LONGEST_LINE, file);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let mut bounded = reader.by_ref().take(LONGEST_LINE as u64);
            let read = bounded.read_until(b'\n', &mut line);
            read.map_err(|source| unreadable(&path, source))?;
            match line.strip_suffix(b"\n") {
                Some(line) => self.line(&path, number, line)?,
                None if line.len() == LONGEST_LINE => {
                    return Err(broken(&path, number, Problem::TooLong));
                }
                None => {
                    self.file_ended(&path, number, line.len() as u64)?;
                    break;
                }
            }
        }
        Ok(())
    }

    fn file_ended(&mut self, path: &Path, line: u64, bytes: u64) -> Result<(), NotVerified> {
        if let Some(doubt) = &self.doubt {
            return Err(broken(path, doubt.line, doubt.problem));
        }
        if bytes > 0 {
            self.unfinished.push(Unfinished {
                file: path.to_owned(),
                line,
                bytes,
                told: false,
            });
        }
        Ok(())
    }

    fn line(&mut self, path: &Path, number: u64, line: &[u8]) -> Result<(), NotVerified> {
        let Some(doubt) = self.doubt.take() else {
            match self.next(line) {
                Ok(head) => self.went_on(head),
                Err(problem) => {
                    self.doubt = Some(Doubt {
                        line: number,
                        problem,
                        text: [line, b"\n"].concat(),
                        fresh: true,
                    });
                }
            }
            return Ok(());
        };
        self.in_doubt(path, line, doubt)
    }

    /// The hash of a line that follows.
    fn next(&mut self, line: &[u8]) -> Result<ChainHash, Problem> {
        let (text, hash) = split(line).ok_or(Problem::NoHash)?;
        if let Some(head) = self.head {
            return (head.next(text) == hash)
                .then_some(hash)
                .ok_or(Problem::NotNext);
        }
        let mark = mark_of(line).filter(|mark| mark.audit == Goes::Begun && mark.torn.is_none());
        let mark = mark.ok_or(Problem::NoBeginning)?;
        if mark.after.next(text) != hash {
            return Err(Problem::NotNext);
        }
        self.begin(mark.after);
        Ok(hash)
    }

    fn begin(&mut self, after: ChainHash) {
        self.after = Some(after);
        self.look_for(after);
    }

    fn went_on(&mut self, head: ChainHash) {
        self.lines += 1;
        self.head = Some(head);
        self.look_for(head);
    }

    fn look_for(&mut self, hash: ChainHash) {
        if self.wanted == Some(hash) {
            self.wanted = None;
        }
    }

    /// Text that does not fit is what a crash left, if a line behind it tells of it.
    fn in_doubt(&mut self, path: &Path, line: &[u8], mut doubt: Doubt) -> Result<(), NotVerified> {
        let follows = split(line).filter(|(text, hash)| {
            let head = self.head.or_else(|| Some(mark_of(line)?.after));
            head.is_some_and(|head| head.next(text) == *hash)
        });
        if let Some((_, hash)) = follows {
            let told = mark_of(line).and_then(|mark| Some((mark.after, mark.torn?)));
            let left = doubt.text.strip_suffix(b"\n").unwrap_or(&doubt.text);
            let Some((after, torn)) = told else {
                return Err(broken(
                    path,
                    doubt.line,
                    match doubt.fresh {
                        true => Problem::Inserted,
                        false => doubt.problem,
                    },
                ));
            };
            if Torn::of(left) != Some(torn) {
                return Err(broken(path, doubt.line, Problem::Torn));
            }
            if self.head.is_none() {
                self.begin(after);
            }
            self.unfinished.push(Unfinished {
                file: path.to_owned(),
                line: doubt.line,
                bytes: left.len() as u64,
                told: true,
            });
            self.went_on(hash);
            return Ok(());
        }
        doubt.text.extend_from_slice(line);
        doubt.text.push(b'\n');
        doubt.fresh = false;
        if doubt.text.len() > MOST_TORN {
            return Err(broken(path, doubt.line, doubt.problem));
        }
        self.doubt = Some(doubt);
        Ok(())
    }

    fn end(self) -> Result<Verified, NotVerified> {
        let (Some(after), Some(last)) = (self.after, self.head) else {
            return Err(Broken::Empty.into());
        };
        if let Some(head) = self.wanted {
            let lines = self.lines;
            return Err(Broken::Head { head, last, lines }.into());
        }
        Ok(Verified {
            files: self.files,
            lines: self.lines,
            after,
            head: last,
            unfinished: self.unfinished,
        })
    }
}

fn mark_of(line: &[u8]) -> Option<Mark> {
    serde_json::from_slice(line).ok()
}

fn broken(file: &Path, line: u64, problem: Problem) -> NotVerified {
    let file = file.to_owned();
    Broken::Line {
        file,
        line,
        problem,
    }
    .into()
}

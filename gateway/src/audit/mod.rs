//! The audit: one JSON line per decision, in a file of its own.
//!
//! ```json
//! {"time":"2026-01-02T03:04:05.678Z","decision":"refused","method":"DispatchMission",
//!  "caller":"spiffe://…","serial":"4f…","mission_id":"m-1","robot_id":"amr-7",
//!  "action_type":"robot:execute_action","action_name":"dock","outcome":"POLICY_BLOCKED",
//!  "reason":"no rule lets …"}
//! ```
//!
//! (on one line). Fields that do not apply are left out. Parameters, keys and tokens have no
//! field. Where lines had to be given up, `{"time":…,"dropped":n}` stands in their place, and
//! where many handshakes were refused for one reason, one line has the number in `suppressed`.
//!
//! Nobody waits for it: [`Audit::record`] puts the line into a bounded queue or counts it as
//! dropped, and a thread of its own writes and syncs. A disk that is full costs lines, and
//! nothing else.

mod entry;
mod flood;
#[cfg(test)]
mod tests;
mod writer;

pub use entry::{Decision, Entry};

use entry::{Line, Stamp};
use flood::Flood;
use portarium_identity::SpiffeId;
use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Receiver, SyncSender},
    },
    thread,
    time::{Duration, SystemTime},
};
use writer::{Sink, Writer};

/// How many lines may wait for the disk.
const QUEUE: usize = 4096;

/// Where decisions are written down. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Audit {
    lines: SyncSender<Message>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
enum Message {
    Line {
        json: Box<[u8]>,
        /// Lines given up between the one before and this one.
        dropped_before: u64,
    },
    /// Look at `closing`.
    Wake,
}

#[derive(Debug)]
struct Shared {
    /// Given up, and not yet told by a line.
    dropped: AtomicU64,
    dropped_ever: AtomicU64,
    queued: AtomicU64,
    write_errors: AtomicU64,
    closing: AtomicBool,
    flood: Flood,
    suppressed: AtomicU64,
    ended: Mutex<Receiver<()>>,
}

/// How the audit does, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditCounts {
    /// Lines that wait for the disk now.
    pub queued: u64,
    /// Lines given up since the start: queue full, or not written.
    pub dropped: u64,
    /// Refused handshakes since the start that were told together with others.
    pub suppressed: u64,
    /// Writes and syncs that failed since the start.
    pub write_errors: u64,
}

impl Audit {
    /// Opens the file, appending, and starts the writer. A new file belongs to its user alone.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)?;
        let torn = ends_amid_a_line(&mut file)?;
        Self::start(file, torn, QUEUE)
    }

    fn start(sink: impl Sink, torn: bool, queue: usize) -> io::Result<Self> {
        let (lines, received) = mpsc::sync_channel(queue);
        let (end, ended) = mpsc::channel();
        let shared = Arc::new(Shared {
            dropped: AtomicU64::new(0),
            dropped_ever: AtomicU64::new(0),
            queued: AtomicU64::new(0),
            write_errors: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            flood: Flood::default(),
            suppressed: AtomicU64::new(0),
            ended: Mutex::new(ended),
        });
        let writer = Writer::new(sink, torn, received, Arc::clone(&shared));
        thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || {
                writer.run();
                // Nobody may be waiting.
                let _ = end.send(());
            })?;
        Ok(Self { lines, shared })
    }

    /// Writes a decision down, later. Never waits; what does not fit is dropped and counted.
    pub fn record(&self, now: SystemTime, entry: &Entry<'_>) {
        self.send(&Line {
            time: Stamp(now),
            entry,
        });
    }

    /// Writes down who got a connection, with SPIFFE ID and serial number.
    pub fn handshake_admitted(&self, now: SystemTime, remote: SocketAddr, peer: (&SpiffeId, &str)) {
        let (id, serial) = peer;
        let entry = Entry {
            caller: Some(id),
            serial,
            remote: Some(remote),
            outcome: "admitted",
            ..Entry::new(Decision::Allowed, "handshake")
        };
        self.record(now, &entry);
    }

    /// Writes down that a peer got no connection. Beyond a few per second one line tells how many
    /// more there were of each reason.
    pub fn handshake_refused(
        &self,
        now: SystemTime,
        remote: SocketAddr,
        shown: Option<(&SpiffeId, &str)>,
        reason: &str,
    ) {
        if !self.shared.flood.admits(reason) {
            self.shared.suppressed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let entry = Entry {
            caller: shown.map(|(id, _)| id as _),
            serial: shown.map_or("", |(_, serial)| serial),
            remote: Some(remote),
            reason,
            ..Entry::new(Decision::Refused, "handshake")
        };
        self.record(now, &entry);
    }

    /// Writes down that the configuration was read again, and why it was refused, in case.
    pub fn reloaded(&self, now: SystemTime, refused: Option<&str>) {
        let decision = match refused {
            None => Decision::Allowed,
            Some(_) => Decision::Refused,
        };
        self.record(
            now,
            &Entry {
                reason: refused.unwrap_or_default(),
                ..Entry::new(decision, "reload")
            },
        );
    }

    /// How it does.
    pub fn counts(&self) -> AuditCounts {
        AuditCounts {
            queued: self.shared.queued.load(Ordering::Relaxed),
            dropped: self.shared.dropped_ever.load(Ordering::Relaxed),
            suppressed: self.shared.suppressed.load(Ordering::Relaxed),
            write_errors: self.shared.write_errors.load(Ordering::Relaxed),
        }
    }

    /// Ends the writer after what was recorded until now. Blocks for at most the limit; `true`
    /// where everything went to the disk in time.
    pub fn close(&self, limit: Duration) -> bool {
        self.shared.closing.store(true, Ordering::Release);
        // Where the queue is full the writer is awake, and looks once it is through.
        let _ = self.lines.try_send(Message::Wake);
        let ended = self
            .shared
            .ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let in_time = match ended.recv_timeout(limit) {
            // The second call finds the writer gone.
            Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => true,
            Err(mpsc::RecvTimeoutError::Timeout) => false,
        };
        in_time && self.shared.dropped.load(Ordering::Relaxed) == 0
    }

    fn send(&self, line: &Line<'_>) {
        let Ok(json) = serde_json::to_vec(line) else {
            return self.shared.drop_lines(1, 1);
        };
        // The count travels with the line, so that it is told in the right place.
        let dropped_before = self.shared.dropped.swap(0, Ordering::Relaxed);
        self.shared.queued.fetch_add(1, Ordering::Relaxed);
        let message = Message::Line {
            json: json.into(),
            dropped_before,
        };
        if self.lines.try_send(message).is_err() {
            self.shared.queued.fetch_sub(1, Ordering::Relaxed);
            self.shared.drop_lines(dropped_before + 1, 1);
        }
    }
}

impl Shared {
    /// Gives lines up: `untold` are to be told by the next line, `new` of them are new.
    fn drop_lines(&self, untold: u64, new: u64) {
        self.dropped.fetch_add(untold, Ordering::Relaxed);
        self.dropped_ever.fetch_add(new, Ordering::Relaxed);
    }
}

/// Whether a crash left the last line without its end.
fn ends_amid_a_line(file: &mut File) -> io::Result<bool> {
    if file.metadata()?.len() == 0 || !file.metadata()?.is_file() {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

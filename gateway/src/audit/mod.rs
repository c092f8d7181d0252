//! The audit: one JSON line per decision, in a file of its own.
//!
//! ```json
//! {"time":"2026-01-02T03:04:05.678Z","decision":"refused","method":"DispatchMission",
//!  "caller":"spiffe://…","serial":"4f…","mission_id":"m-1","robot_id":"amr-7",
//!  "action_type":"robot:execute_action","action_name":"dock","outcome":"POLICY_BLOCKED",
//!  "reason":"no rule lets …","chain":"5e…"}
//! ```
//!
//! (on one line). Fields that do not apply are left out. Parameters, keys and tokens have no
//! field; of a token that was needed and is good, `token_sub` and `token_jti` say whose it is. Where lines had to be given up, `{"time":…,"dropped":n}` stands in their place, and
//! where many handshakes, or robots' words, were refused for one reason, one line has the number in
//! `suppressed`.
//!
//! `chain` is a hash over the line and the one before, across files and starts; [`verify`] finds
//! by it what was changed. A line with `audit` in it says where the chain goes on from.
//!
//! Nobody waits for it: [`Audit::record`] puts the line into a bounded queue or counts it as
//! dropped, and a thread of its own writes and syncs. A disk that is full costs lines, and
//! nothing else.

mod chain;
mod entry;
mod file;
mod flood;
#[cfg(test)]
mod tests;
mod verify;
mod writer;

pub use chain::{ChainHash, NoHash};
pub use entry::{Decision, Entry};
pub use verify::{Broken, NotVerified, Problem, Unfinished, Verified, verify};

use entry::{Line, Stamp};
use file::LogFile;
use flood::{Floods, Kind};
use portarium_identity::SpiffeId;
use portarium_protocols::adapter::Speaker;
use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Receiver, SyncSender},
    },
    thread,
    time::{Duration, SystemTime},
};
use writer::{Sink, Writer};

/// How many lines may wait for the disk.
const QUEUE: usize = 4096;

/// When a file is put aside for a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// Once it has so many bytes.
    pub bytes: u64,
    /// How many older ones are kept.
    pub keep: usize,
}

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
    written: AtomicU64,
    /// The hash of the last line that is on the disk.
    head: Mutex<Option<ChainHash>>,
    closing: AtomicBool,
    floods: Floods,
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
    /// Refused handshakes and robots' words since the start that were told together with others.
    pub suppressed: u64,
    /// Writes and syncs that failed since the start.
    pub write_errors: u64,
    /// Lines written since the start.
    pub written: u64,
    /// The hash of the last line that is on the disk.
    pub head: Option<ChainHash>,
}

impl Audit {
    /// Opens the file, appending, and starts the writer. A new file belongs to its user alone.
    pub fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        Self::start(LogFile::open(path, rotation)?, QUEUE)
    }

    fn start(sink: impl Sink, queue: usize) -> io::Result<Self> {
        let (lines, received) = mpsc::sync_channel(queue);
        let (end, ended) = mpsc::channel();
        let shared = Arc::new(Shared {
            dropped: AtomicU64::new(0),
            dropped_ever: AtomicU64::new(0),
            queued: AtomicU64::new(0),
            write_errors: AtomicU64::new(0),
            written: AtomicU64::new(0),
            head: Mutex::new(None),
            closing: AtomicBool::new(false),
            floods: Floods::default(),
            suppressed: AtomicU64::new(0),
            ended: Mutex::new(ended),
        });
        let writer = Writer::new(sink, received, Arc::clone(&shared));
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
            ..Entry::new(Decision::Allowed, Kind::Handshake.method())
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
        if !self.shared.admits(Kind::Handshake, None, reason) {
            return;
        }
        let entry = Entry {
            caller: shown.map(|(id, _)| id as _),
            serial: shown.map_or("", |(_, serial)| serial),
            remote: Some(remote),
            reason,
            ..Entry::new(Decision::Refused, Kind::Handshake.method())
        };
        self.record(now, &entry);
    }

    /// Writes down that what was said in a robot's name is not believed. Beyond a few per second as
    /// handshakes, but for the first word of each robot.
    pub fn report_refused(
        &self,
        now: SystemTime,
        speaker: &Speaker,
        mission_id: &str,
        reason: &str,
    ) {
        let name = speaker.to_string();
        if !self.shared.admits(Kind::Report, Some(&name), reason) {
            return;
        }
        let entry = Entry {
            caller: Some(speaker),
            mission_id,
            reason,
            ..Entry::new(Decision::Refused, Kind::Report.method())
        };
        self.record(now, &entry);
    }

    /// Writes down that a connection was cut: by a `recheck`, since its peer would not be admitted any
    /// more, or by `HTTP/2`, whose rules it broke or which it did not begin to speak.
    pub fn connection_cut(
        &self,
        now: SystemTime,
        remote: SocketAddr,
        peer: (&SpiffeId, &str),
        by: &str,
        reason: &str,
    ) {
        let (id, serial) = peer;
        let entry = Entry {
            caller: Some(id),
            serial,
            remote: Some(remote),
            outcome: "cut",
            reason,
            ..Entry::new(Decision::Refused, by)
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
            written: self.shared.written.load(Ordering::Relaxed),
            head: *self.shared.head(),
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
    /// Whether this one gets a line of its own; it is counted if not.
    fn admits(&self, kind: Kind, speaker: Option<&str>, reason: &str) -> bool {
        let admitted = self.floods.of(kind).admits(speaker, reason);
        if !admitted {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }

    /// Gives lines up: `untold` are to be told by the next line, `new` of them are new.
    fn drop_lines(&self, untold: u64, new: u64) {
        self.dropped.fetch_add(untold, Ordering::Relaxed);
        self.dropped_ever.fetch_add(new, Ordering::Relaxed);
    }

    fn head(&self) -> MutexGuard<'_, Option<ChainHash>> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_head(&self, head: ChainHash) {
        *self.head() = Some(head);
    }
}

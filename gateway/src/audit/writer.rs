//! The thread that writes.

use super::{
    Message, Shared,
    chain::{ChainHash, Goes, Mark, Torn},
    entry::{Decision, Gap, Marked, Stamp, Suppressed},
    flood::Kind,
};
use serde::Serialize;
use std::{
    io,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    time::{Duration, Instant, SystemTime},
};

/// A line is on the disk at most this long after it was taken from the queue.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// While closing, how often to look whether all lines have come in.
const CLOSING_POLL: Duration = Duration::from_millis(5);

/// Lines are written together up to this size, in bytes.
const BATCH: usize = 64 * 1024;

/// A failing disk is told to the log this often.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// What lines are written to.
pub(super) trait Sink: Send + 'static {
    /// What is there already.
    fn found(&mut self) -> io::Result<Found>;
    /// Looks, before lines are appended, where they go.
    fn turn(&mut self, may_rotate: bool) -> io::Result<Turn>;
    /// Appends some of the bytes and tells how many.
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Makes durable what was appended.
    fn sync(&mut self) -> io::Result<()>;
}

/// What an earlier run left.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The hash of the last whole line, if there is one.
    pub(super) head: Option<ChainHash>,
    /// It is in the file that is appended to, not in an older one.
    pub(super) here: bool,
    /// Text without an end, behind that line.
    pub(super) torn: Vec<u8>,
}

/// Where the next lines go.
#[derive(Debug)]
pub(super) enum Turn {
    /// Behind the last.
    Same,
    /// Elsewhere: the file was rotated, or someone else moved, removed or changed it.
    Other {
        /// Nothing is there.
        empty: bool,
    },
}

/// A line that waits to be written, as far as it has to be made good where it is not.
enum Part {
    Decision,
    /// Tells of lines that were given up before.
    Gap(u64),
    /// Tells of those that were refused for this reason.
    Suppressed(Kind, Box<str>, u64),
    /// Is owed again.
    Mark,
}

pub(super) struct Writer<S> {
    sink: S,
    lines: Receiver<Message>,
    shared: Arc<Shared>,
    pending: Vec<(Part, Box<[u8]>)>,
    pending_bytes: usize,
    /// The hash of the last line that was written whole.
    head: ChainHash,
    /// The file has no whole line yet.
    fresh: bool,
    /// The next line tells where the audit goes on from.
    mark_owed: bool,
    /// Text without an end that the next line comes behind.
    torn: Vec<u8>,
    /// When the oldest line was written that may not be durable.
    unsynced_since: Option<Instant>,
    last_told: Option<Instant>,
}

impl<S: Sink> Writer<S> {
    pub(super) fn new(sink: S, lines: Receiver<Message>, shared: Arc<Shared>) -> Self {
        Self {
            sink,
            lines,
            shared,
            pending: Vec::new(),
            pending_bytes: 0,
            head: ChainHash::START,
            fresh: true,
            mark_owed: true,
            torn: Vec::new(),
            unsynced_since: None,
            last_told: None,
        }
    }

    /// Writes until it is told to close, or nobody is left who could record.
    pub(super) fn run(mut self) {
        self.begin();
        loop {
            let connected = match self.receive(self.patience()) {
                Ok(message) => {
                    self.take(message);
                    self.drain()
                }
                Err(RecvTimeoutError::Timeout) => true,
                Err(RecvTimeoutError::Disconnected) => false,
            };
            if self.shared.floods.over().is_some_and(is_past) {
                self.tell_suppressed();
            }
            self.write();
            let idle = !connected || self.batch_is_last();
            if idle && (!connected || self.shared.closing.load(Ordering::Acquire)) {
                return self.finish();
            }
            if self
                .unsynced_since
                .is_some_and(|since| since.elapsed() >= SYNC_EVERY)
            {
                self.sync();
            }
        }
    }

    /// Goes on where an earlier run ended.
    fn begin(&mut self) {
        match self.sink.found() {
            Ok(Found { head, here, torn }) => {
                self.head = head.unwrap_or(ChainHash::START);
                self.fresh = !here;
                self.torn = torn;
            }
            Err(error) => self.failed("read the end of", &error),
        }
        if !self.torn.is_empty() {
            let bytes = self.torn.len();
            tracing::warn!(bytes, after = %self.head, "the audit ends in the middle of a line, as after a crash");
        }
        self.write();
        self.sync();
        tracing::info!(head = %self.head, "the audit goes on");
    }

    /// How long to wait for the next line before something else is due.
    fn patience(&self) -> Duration {
        if self.shared.closing.load(Ordering::Acquire) {
            return CLOSING_POLL;
        }
        let sync = self.unsynced_since.map(|since| since + SYNC_EVERY);
        let due = [sync, self.shared.floods.over()]
            .into_iter()
            .flatten()
            .min();
        due.map_or(Duration::MAX, |due| {
            due.saturating_duration_since(Instant::now())
        })
    }

    fn receive(&self, wait: Duration) -> Result<Message, RecvTimeoutError> {
        if wait == Duration::MAX {
            self.lines
                .recv()
                .map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            self.lines.recv_timeout(wait)
        }
    }

    /// Nothing recorded waits any more.
    fn batch_is_last(&self) -> bool {
        self.shared.queued.load(Ordering::Acquire) == 0
    }

    /// Takes what is there, up to a batch; `false` when nobody can record any more.
    fn drain(&mut self) -> bool {
        while self.pending_bytes < BATCH {
            match self.lines.try_recv() {
                Ok(message) => self.take(message),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        true
    }

    fn take(&mut self, message: Message) {
        let Message::Line {
            json,
            dropped_before,
        } = message
        else {
            return;
        };
        self.shared.queued.fetch_sub(1, Ordering::Release);
        self.gap(dropped_before);
        self.push(json, Part::Decision);
    }

    fn gap(&mut self, dropped: u64) {
        if dropped == 0 {
            return;
        }
        let gap = Gap {
            time: Stamp(SystemTime::now()),
            dropped,
        };
        self.push_own(&gap, Part::Gap(dropped));
    }

    fn tell_suppressed(&mut self) {
        for kind in Kind::ALL {
            for (reason, count) in self.shared.floods.of(kind).end() {
                let line = Suppressed {
                    time: Stamp(SystemTime::now()),
                    decision: Decision::Refused,
                    method: kind.method(),
                    reason: &reason,
                    suppressed: count,
                };
                self.push_own(&line, Part::Suppressed(kind, reason.clone(), count));
            }
        }
    }

    fn push_own(&mut self, line: &impl Serialize, part: Part) {
        // Our own lines are texts and numbers; nothing in them can fail.
        if let Ok(json) = serde_json::to_vec(line) {
            self.push(json.into(), part);
        }
    }

    fn push(&mut self, json: Box<[u8]>, part: Part) {
        self.pending_bytes += json.len();
        self.pending.push((part, json));
    }

    /// Writes what is pending. What fails is given up, since a disk that is full would fill the
    /// memory next; the next line tells how many lines are missing.
    fn write(&mut self) {
        if self.pending.is_empty() && !self.mark_owed {
            return;
        }
        self.look_where();
        if self.mark_owed {
            self.push_mark();
        }
        let mut bytes = Vec::with_capacity(self.pending_bytes + 128 * self.pending.len());
        if !self.torn.is_empty() {
            bytes.push(b'\n');
        }
        let mut head = self.head;
        let seal = |(_, json): &(Part, Box<[u8]>)| {
            head = head.seal(json, &mut bytes);
            (bytes.len(), head)
        };
        let ends: Vec<(usize, ChainHash)> = self.pending.iter().map(seal).collect();
        let (written, result) = self.append(&bytes);
        let whole = ends.partition_point(|(end, _)| *end <= written);
        let mut good = 0;
        if let Some((end, head)) = ends[..whole].last() {
            (good, self.head, self.fresh) = (*end, *head, false);
            self.torn.clear();
        }
        if written > 0 {
            self.torn.extend_from_slice(&bytes[good..written]);
            self.unsynced_since.get_or_insert_with(Instant::now);
        }
        self.mark_owed = !self.torn.is_empty();
        self.pending_bytes = 0;
        for (part, _) in std::mem::take(&mut self.pending).split_off(whole) {
            self.make_good(part);
        }
        self.shared
            .written
            .fetch_add(whole as u64, Ordering::Relaxed);
        if let Err(error) = result {
            self.failed("write", &error);
        }
    }

    fn look_where(&mut self) {
        match self.sink.turn(self.torn.is_empty()) {
            Ok(Turn::Same) => {}
            Ok(Turn::Other { empty }) => {
                self.fresh = empty;
                self.mark_owed = true;
                self.torn.clear();
                tracing::info!(head = %self.head, "the audit goes on in another file");
            }
            Err(error) => self.failed("rotate", &error),
        }
    }

    /// Before all else that is pending.
    fn push_mark(&mut self) {
        let mark = Mark {
            audit: match self.fresh {
                true => Goes::Begun,
                false => Goes::Resumed,
            },
            after: self.head,
            torn: Torn::of(&self.torn),
        };
        let time = Stamp(SystemTime::now());
        self.push_own(&Marked { time, mark: &mark }, Part::Mark);
        self.pending.rotate_right(1);
    }

    fn append(&mut self, bytes: &[u8]) -> (usize, io::Result<()>) {
        let mut written = 0;
        while written < bytes.len() {
            match self.sink.append(&bytes[written..]) {
                Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
                Ok(n) => written += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (written, Err(error)),
            }
        }
        (written, Ok(()))
    }

    fn make_good(&mut self, lost: Part) {
        match lost {
            Part::Decision => self.shared.drop_lines(1, 1),
            Part::Gap(untold) => self.shared.drop_lines(untold, 0),
            Part::Suppressed(kind, reason, count) => {
                self.shared.floods.of(kind).untold(&reason, count)
            }
            Part::Mark => self.mark_owed = true,
        }
    }

    fn sync(&mut self) {
        self.unsynced_since = None;
        match self.sink.sync() {
            // Only what is durable is shown: what a power failure takes back is no tampering.
            Ok(()) => self.shared.set_head(self.head),
            Err(error) => self.failed("sync", &error),
        }
    }

    fn failed(&mut self, what: &str, error: &io::Error) {
        self.shared.write_errors.fetch_add(1, Ordering::Relaxed);
        if self
            .last_told
            .is_none_or(|told| told.elapsed() >= TELL_EVERY)
        {
            self.last_told = Some(Instant::now());
            let dropped = self.shared.dropped_ever.load(Ordering::Relaxed);
            tracing::warn!(%error, dropped, "cannot {what} the audit; the gateway goes on without");
        }
    }

    fn finish(mut self) {
        self.tell_suppressed();
        let untold = self.shared.dropped.swap(0, Ordering::Relaxed);
        self.gap(untold);
        self.write();
        self.sync();
        tracing::info!(head = %self.head, "the audit ends");
    }
}

fn is_past(at: Instant) -> bool {
    at <= Instant::now()
}

//! The thread that writes.

use super::{
    Message, Shared,
    entry::{Decision, Gap, Stamp, Suppressed},
};
use serde::Serialize;
use std::{
    fs::File,
    io::{self, Write as _},
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
    /// Appends some of the bytes and tells how many.
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Makes durable what was appended.
    fn sync(&mut self) -> io::Result<()>;
}

impl Sink for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write(bytes)
    }
    fn sync(&mut self) -> io::Result<()> {
        // A pipe or terminal that was configured has nothing to sync.
        if self.metadata()?.is_file() {
            self.sync_data()
        } else {
            Ok(())
        }
    }
}

/// A line of the batch, as far as it has to be made good where it does not get to the sink.
enum Part {
    Decision,
    /// Tells of lines that were given up before.
    Gap(u64),
    /// Tells of handshakes that were refused for this reason.
    Suppressed(Box<str>, u64),
}

pub(super) struct Writer<S> {
    sink: S,
    lines: Receiver<Message>,
    shared: Arc<Shared>,
    batch: Vec<u8>,
    /// What the batch consists of, and where each of it ends.
    parts: Vec<(usize, Part)>,
    /// The last line in the sink has no end.
    torn: bool,
    /// When the oldest line was written that may not be durable.
    unsynced_since: Option<Instant>,
    last_told: Option<Instant>,
}

impl<S: Sink> Writer<S> {
    pub(super) fn new(sink: S, torn: bool, lines: Receiver<Message>, shared: Arc<Shared>) -> Self {
        Self {
            sink,
            lines,
            shared,
            batch: Vec::with_capacity(BATCH),
            parts: Vec::new(),
            torn,
            unsynced_since: None,
            last_told: None,
        }
    }

    /// Writes until it is told to close, or nobody is left who could record.
    pub(super) fn run(mut self) {
        loop {
            let connected = match self.receive(self.patience()) {
                Ok(message) => {
                    self.take(message);
                    self.drain()
                }
                Err(RecvTimeoutError::Timeout) => true,
                Err(RecvTimeoutError::Disconnected) => false,
            };
            if self.shared.flood.over().is_some_and(is_past) {
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

    /// How long to wait for the next line before something else is due.
    fn patience(&self) -> Duration {
        if self.shared.closing.load(Ordering::Acquire) {
            return CLOSING_POLL;
        }
        let sync = self.unsynced_since.map(|since| since + SYNC_EVERY);
        let due = [sync, self.shared.flood.over()].into_iter().flatten().min();
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
        while self.batch.len() < BATCH {
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
        self.push(&json, Part::Decision);
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
        for (reason, count) in self.shared.flood.end() {
            let line = Suppressed {
                time: Stamp(SystemTime::now()),
                decision: Decision::Refused,
                method: "handshake",
                reason: &reason,
                suppressed: count,
            };
            self.push_own(&line, Part::Suppressed(reason.clone(), count));
        }
    }

    fn push_own(&mut self, line: &impl Serialize, part: Part) {
        // Our own lines are texts and numbers; nothing in them can fail.
        if let Ok(json) = serde_json::to_vec(line) {
            self.push(&json, part);
        }
    }

    fn push(&mut self, json: &[u8], part: Part) {
        self.batch.extend_from_slice(json);
        self.batch.push(b'\n');
        self.parts.push((self.batch.len(), part));
    }

    /// Writes the batch. What fails is given up, since a disk that is full would fill the memory
    /// next; the next line tells how many lines are missing.
    fn write(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        if self.torn {
            self.batch.insert(0, b'\n');
        }
        let shift = usize::from(self.torn);
        let mut written = 0;
        let result = loop {
            match self.sink.append(&self.batch[written..]) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => written += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
            if written == self.batch.len() {
                break Ok(());
            }
        };
        if written > 0 {
            self.torn = self.batch[written - 1] != b'\n';
            self.unsynced_since.get_or_insert_with(Instant::now);
        }
        self.batch.clear();
        for (end, part) in std::mem::take(&mut self.parts) {
            if end + shift > written {
                self.make_good(part);
            }
        }
        if let Err(error) = result {
            self.failed("write", &error);
        }
    }

    fn make_good(&self, lost: Part) {
        match lost {
            Part::Decision => self.shared.drop_lines(1, 1),
            Part::Gap(untold) => self.shared.drop_lines(untold, 0),
            Part::Suppressed(reason, count) => self.shared.flood.untold(&reason, count),
        }
    }

    fn sync(&mut self) {
        self.unsynced_since = None;
        if let Err(error) = self.sink.sync() {
            self.failed("sync", &error);
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
    }
}

fn is_past(at: Instant) -> bool {
    at <= Instant::now()
}

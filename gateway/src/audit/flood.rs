//! What is refused without a call: handshakes, and what is said in a robot's name. Anyone who reaches
//! the port, or the broker, can cause them, and must not fill the disk: a few of each kind per second
//! get a line each, the first word of each robot as well, so that none hides another, and the rest of
//! that second is told in one line per reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How many get a line of their own per second.
pub(super) const LINES_PER_SECOND: u32 = 20;

const SECOND: Duration = Duration::from_secs(1);

/// Whoever has had no line in this second gets one beyond that, up to so many.
pub(super) const SPEAKERS: usize = 64;

/// Reasons told apart. Peers write parts of some, so there could be any number.
pub(super) const REASONS: usize = 16;

/// The longest reason, in bytes.
const REASON_BYTES: usize = 512;

const OTHERS: &str = "other reasons";

/// The reasons of those that got no line, and how many there were of each.
pub(super) type Suppressed = BTreeMap<Box<str>, u64>;

/// What is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Handshake,
    Report,
}

impl Kind {
    pub(super) const ALL: [Self; 2] = [Self::Handshake, Self::Report];

    /// As its lines name it.
    pub(super) fn method(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Report => "report",
        }
    }
}

/// All kinds; none takes the place of another.
#[derive(Debug, Default)]
pub(super) struct Floods {
    handshakes: Flood,
    reports: Flood,
}

impl Floods {
    pub(super) fn of(&self, kind: Kind) -> &Flood {
        match kind {
            Kind::Handshake => &self.handshakes,
            Kind::Report => &self.reports,
        }
    }

    /// When the first second is over that is running, if one is.
    pub(super) fn over(&self) -> Option<Instant> {
        let over = Kind::ALL.iter().filter_map(|kind| self.of(*kind).over());
        over.min()
    }
}

#[derive(Debug, Default)]
pub(super) struct Flood(Mutex<Window>);

/// One second of them, or more while the writer is held up: then the queue is not for them.
#[derive(Debug, Default)]
struct Window {
    began: Option<Instant>,
    written: u32,
    heard: BTreeSet<Box<str>>,
    suppressed: Suppressed,
}

impl Flood {
    /// Whether this one gets a line of its own; it is counted if not. `speaker`: who is to have one
    /// each second, whatever others do.
    pub(super) fn admits(&self, speaker: Option<&str>, reason: &str) -> bool {
        let mut window = self.lock();
        window.began.get_or_insert_with(Instant::now);
        let is_first = speaker.is_some_and(|speaker| window.is_first_of(speaker));
        if is_first || window.written < LINES_PER_SECOND {
            window.written += 1;
            return true;
        }
        window.suppress(&reason[..reason.floor_char_boundary(REASON_BYTES)], 1);
        false
    }

    /// When the second is over that is running, if one is.
    pub(super) fn over(&self) -> Option<Instant> {
        self.lock().began.map(|began| began + SECOND)
    }

    /// Ends the second, and hands out what is to be told of it.
    pub(super) fn end(&self) -> Suppressed {
        std::mem::take(&mut *self.lock()).suppressed
    }

    /// What could not be told is told with the next.
    pub(super) fn untold(&self, reason: &str, count: u64) {
        let mut window = self.lock();
        window.began.get_or_insert_with(Instant::now);
        window.suppress(reason, count);
    }

    fn lock(&self) -> MutexGuard<'_, Window> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    fn is_first_of(&mut self, speaker: &str) -> bool {
        let room = self.heard.len() < SPEAKERS;
        room && !self.heard.contains(speaker) && self.heard.insert(speaker.into())
    }

    fn suppress(&mut self, reason: &str, count: u64) {
        if let Some(counted) = self.suppressed.get_mut(reason) {
            *counted += count;
            return;
        }
        let known = self.suppressed.len() < REASONS;
        let reason = if known { reason } else { OTHERS };
        *self.suppressed.entry(reason.into()).or_default() += count;
    }
}

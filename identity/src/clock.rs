//! Whether the wall clock can be believed.
//!
//! Certificates are checked by the wall clock, and a clock that was stepped accepts what has ended
//! or refuses what is good. So it is compared with one that cannot be stepped and also runs while
//! the machine sleeps: when the two part by more than [`STEP`], the wall clock is in doubt, and the
//! time of day is reckoned on from before. A sleep parts nothing. It is in doubt as well when it is
//! behind the moment at which our SVID was issued.
//!
//! In doubt no new handshake is made; connections that stand are judged by the reckoned time, and
//! end by their leases. The doubt ends when the step is undone, or when the Workload API brings a
//! new SVID that goes with the stepped clock: issued in its past, and for no longer than half of
//! the SVID's life, after which agents renew. That half is no danger: a clock that is ahead refuses
//! sooner. A machine whose clock was wrong at its start, or that was halted from outside (a virtual
//! machine's snapshot), so comes back by itself with the next renewal.
use rustix::time::{ClockId, clock_gettime};
use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

#[cfg(test)]
use {std::cell::Cell, tokio::time::Instant};

/// The wall clock is adjusted by less than this, and certificates' times leave room for as much.
const STEP: Duration = Duration::from_secs(5);

/// The wall clock, and what is known of it.
pub(crate) struct Clock {
    read: fn() -> Reading,
    known: Mutex<Known>,
}

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    wall: SystemTime,
    /// Since the machine's start, sleep included; never stepped.
    steady: Duration,
}

#[derive(Default)]
struct Known {
    /// When the wall clock was last believed; `None` before the first SVID.
    believed: Option<Reading>,
    /// The newest SVID's time. It cannot be earlier than its beginning.
    issued: Option<(SystemTime, SystemTime)>,
}

/// The time of day, and why it may be another one.
pub(crate) struct Now {
    pub(crate) time: SystemTime,
    pub(crate) doubt: Option<Doubt>,
}

/// Why the wall clock is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// It was set ahead by so much.
    Ahead(Duration),
    /// It was set back by so much.
    Back(Duration),
    /// It is so far before the moment at which our SVID was issued.
    BeforeIssue(Duration),
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ahead(by) => write!(f, "it was set ahead by {} s", by.as_secs()),
            Self::Back(by) => write!(f, "it was set back by {} s", by.as_secs()),
            Self::BeforeIssue(by) => write!(
                f,
                "it is {} s before the moment at which our SVID was issued",
                by.as_secs()
            ),
        }
    }
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self::reading(Reading::now)
    }

    fn reading(read: fn() -> Reading) -> Self {
        Self {
            read,
            known: Mutex::default(),
        }
    }

    /// The time to go by: the wall clock's, or the one reckoned while that is in doubt.
    pub(crate) fn now(&self) -> Now {
        let reading = (self.read)();
        self.known().judge(reading)
    }

    /// The Workload API brought an SVID for this time.
    pub(crate) fn issued(&self, not_before: SystemTime, not_after: SystemTime) {
        let reading = (self.read)();
        let mut known = self.known();
        // One that was there before the step says nothing of it.
        if known.issued.replace((not_before, not_after)) == Some((not_before, not_after)) {
            return;
        }
        let life = not_after.duration_since(not_before).unwrap_or_default();
        if reading.wall + STEP >= not_before && reading.wall < not_before + life / 2 {
            known.believed = Some(reading);
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn judge(&mut self, reading: Reading) -> Now {
        let reckoned = self.believed.map(|last| last.reckon(reading));
        let stepped = reckoned.and_then(|reckoned| step(reckoned, reading.wall));
        let behind = self.issued.and_then(|(issued, _)| {
            let by = issued.duration_since(reading.wall).ok()?;
            (by > STEP).then_some(Doubt::BeforeIssue(by))
        });
        let doubt = stepped.or(behind);
        let time = match (stepped, reckoned, self.issued) {
            (Some(_), Some(reckoned), _) => reckoned,
            (None, _, Some((issued, _))) if behind.is_some() => issued,
            _ => reading.wall,
        };
        match doubt {
            // Of a clock by which no SVID was ever good, nobody knows.
            None if self.believed.is_some() || self.is_good(reading.wall) => {
                self.believed = Some(reading);
            }
            // It never was right; when it is set right, that is no step.
            Some(Doubt::BeforeIssue(_)) => self.believed = None,
            _ => {}
        }
        Now { time, doubt }
    }

    fn is_good(&self, wall: SystemTime) -> bool {
        self.issued.is_some_and(|(_, end)| wall < end)
    }
}

fn step(reckoned: SystemTime, wall: SystemTime) -> Option<Doubt> {
    let doubt = match wall.duration_since(reckoned) {
        Ok(by) if by > STEP => Doubt::Ahead(by),
        Err(back) if back.duration() > STEP => Doubt::Back(back.duration()),
        _ => return None,
    };
    Some(doubt)
}

/// How long the machine has been running, sleep included; never stepped.
pub(crate) fn since_start() -> Duration {
    let steady = clock_gettime(ClockId::Boottime);
    let nanoseconds = u32::try_from(steady.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(steady.tv_sec).unwrap_or(0), nanoseconds)
}

impl Reading {
    fn now() -> Self {
        Self {
            wall: SystemTime::now(),
            steady: since_start(),
        }
    }

    /// The time of day at another moment, if the wall clock was right at this one.
    fn reckon(self, at: Self) -> SystemTime {
        self.wall + at.steady.saturating_sub(self.steady)
    }
}

#[cfg(test)]
impl Clock {
    /// One that passes as tokio's time does on this thread, also while that is paused.
    pub(crate) fn of_tokio() -> Self {
        fn read() -> Reading {
            let now = (SystemTime::now(), Instant::now());
            let (wall, instant) = BEGAN.get().unwrap_or(now);
            let (ahead, slept) = (AHEAD.get(), SLEPT.get());
            Reading {
                wall: wall + instant.elapsed() + slept + ahead,
                steady: instant.elapsed() + slept,
            }
        }
        BEGAN.set(Some((SystemTime::now(), Instant::now())));
        AHEAD.set(Duration::ZERO);
        SLEPT.set(Duration::ZERO);
        Self::reading(read)
    }

    /// Someone sets the wall clock of [`Clock::of_tokio`] ahead.
    pub(crate) fn set_ahead(by: Duration) {
        AHEAD.set(AHEAD.get() + by);
    }

    /// The machine of [`Clock::of_tokio`] sleeps, while tokio's time stands still.
    pub(crate) fn sleep_through(by: Duration) {
        SLEPT.set(SLEPT.get() + by);
    }
}

#[cfg(test)]
thread_local! {
    static BEGAN: Cell<Option<(SystemTime, Instant)>> = const { Cell::new(None) };
    static AHEAD: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static SLEPT: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

#[cfg(test)]
mod tests {
    use super::*;

    thread_local! {
        static WALL: Cell<i64> = const { Cell::new(0) };
        static STEADY: Cell<u64> = const { Cell::new(0) };
    }

    /// Two of them, in seconds.
    const HOURS: i64 = 7_200;

    fn at(seconds: i64) -> SystemTime {
        let seconds = u64::try_from(1_000_000 + seconds).unwrap_or(0);
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn read() -> Reading {
        Reading {
            wall: at(WALL.get()),
            steady: Duration::from_secs(STEADY.get()),
        }
    }

    fn step(by: i64) {
        WALL.set(WALL.get() + by);
    }

    fn pass(seconds: u64) {
        STEADY.set(STEADY.get() + seconds);
        step(seconds.cast_signed());
    }

    /// An SVID of an hour that arrives when it is issued, by a clock that is off by nothing.
    fn issue(clock: &Clock) {
        let now = at(STEADY.get().cast_signed());
        clock.issued(
            now - Duration::from_secs(10),
            now + Duration::from_secs(3_600),
        );
    }

    fn clock() -> Clock {
        let clock = Clock::reading(read);
        issue(&clock);
        assert_eq!(clock.now().doubt, None);
        clock
    }

    fn right(now: &Now) -> bool {
        now.time == at(STEADY.get().cast_signed())
    }

    #[test]
    fn a_clock_that_is_stepped_is_in_doubt_until_it_is_set_back_and_time_goes_on() {
        for by in [HOURS, -HOURS, 6, -6] {
            let clock = clock();
            pass(100);
            assert_eq!(clock.now().doubt, None);
            step(by);
            pass(50);
            let now = clock.now();
            assert!(now.doubt.is_some() && right(&now), "{by}: {:?}", now.doubt);
            if by.abs() == HOURS {
                // What the server issues by the right time does not go with the stepped one.
                issue(&clock);
                pass(50);
                let now = clock.now();
                assert!(now.doubt.is_some() && right(&now), "{by}: {:?}", now.doubt);
            }
            step(-by);
            assert_eq!(clock.now().doubt, None);
        }
    }

    #[test]
    fn a_sleep_and_small_corrections_raise_no_doubt() {
        let clock = clock();
        for _ in 0..100 {
            pass(1_000);
            step(-1);
            assert_eq!(clock.now().doubt, None);
        }
    }

    #[test]
    fn a_step_that_the_next_svid_goes_with_was_a_correction() {
        let clock = Clock::reading(read);
        // A machine that was halted for two hours, in which nothing of it ran.
        issue(&clock);
        assert_eq!(clock.now().doubt, None);
        step(HOURS);
        assert!(matches!(clock.now().doubt, Some(Doubt::Ahead(_))));
        clock.issued(at(WALL.get() - 10), at(WALL.get() + 3_600));
        assert_eq!(clock.now().doubt, None);
        assert_eq!(clock.now().time, at(WALL.get()));
    }

    #[test]
    fn a_clock_that_is_behind_its_first_svid_is_believed_as_soon_as_it_is_set_right() {
        let clock = Clock::reading(read);
        step(-HOURS);
        issue(&clock);
        let now = clock.now();
        assert!(matches!(now.doubt, Some(Doubt::BeforeIssue(_))));
        step(HOURS);
        assert_eq!(clock.now().doubt, None);
        step(-HOURS);
        assert!(clock.now().doubt.is_some());
    }

    #[test]
    fn a_clock_that_was_ahead_before_any_svid_could_be_used_is_believed_when_it_is_right() {
        let clock = Clock::reading(read);
        step(HOURS);
        issue(&clock);
        assert_eq!(
            clock.now().doubt,
            None,
            "its SVID has ended, which is enough"
        );
        step(-HOURS);
        issue(&clock);
        assert_eq!(clock.now().doubt, None);
    }
}

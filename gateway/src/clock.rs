//! The wall clock, which may be stepped. Whatever measures how long something takes goes by
//! tokio's clock, which may not, and which a test can stop.

use std::time::SystemTime;
use tokio::time::Instant;

/// The wall clock.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> SystemTime;
}

/// The machine's own clock.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// The wall clock as it was at one moment, and what has passed since: it goes on at its pace when
/// the machine's is stepped.
#[derive(Debug, Clone, Copy)]
pub struct SteadyClock {
    start: SystemTime,
    since: Instant,
}

impl SteadyClock {
    /// As late as the other clock is now.
    pub fn set_by(clock: &dyn Clock) -> Self {
        Self {
            start: clock.now(),
            since: Instant::now(),
        }
    }
}

impl Clock for SteadyClock {
    fn now(&self) -> SystemTime {
        self.start + self.since.elapsed()
    }
}

//! The wall clock, which may be stepped. Whatever measures how long something takes goes by
//! tokio's clock, which may not, and which a test can stop.

use std::time::SystemTime;

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

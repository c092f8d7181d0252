//! What happened, in order: hashed, so that two runs of one seed can be compared, and printed where
//! somebody replays one.

use std::{
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

pub(super) struct Trace {
    hash: DefaultHasher,
    steps: u64,
    print: bool,
}

impl Trace {
    pub(super) fn new(print: bool) -> Self {
        Self {
            // Its keys are fixed, other than a hash map's.
            hash: DefaultHasher::new(),
            steps: 0,
            print,
        }
    }

    pub(super) fn note(&mut self, at: Duration, what: fmt::Arguments<'_>) {
        self.steps += 1;
        let line = what.to_string();
        (at, &line).hash(&mut self.hash);
        if self.print {
            println!("{:>6} {:>12.3} s  {line}", self.steps, at.as_secs_f64());
        }
    }

    /// Grows with everything that happens.
    pub(super) fn steps(&self) -> u64 {
        self.steps
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash.finish()
    }
}

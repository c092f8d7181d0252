//! How often a robot may change what is known of its missions without ending them.
//!
//! Each such change is a row in the journal and goes to all who watch. A robot that is out of order,
//! or not what it should be, could fill the disk and hold up the words of all others.

use std::time::Duration;
use tokio::time::Instant;

/// Changes in a row, ...
const BURST: u32 = 200;

/// ... and one more after so long.
const EACH: Duration = Duration::from_millis(50);

/// What a robot has left.
#[derive(Debug, Default)]
pub(super) struct Words {
    /// When all of it will be there again.
    full: Option<Instant>,
}

impl Words {
    /// Takes one, if one is left.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let full = self.full.map_or(now, |full| full.max(now));
        let taken = full - now + EACH <= BURST * EACH;
        if taken {
            self.full = Some(full + EACH);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_heard_and_then_one_at_a_time() {
        let (mut words, now) = (Words::default(), Instant::now());
        let heard = (0..1_000).filter(|_| words.take(now)).count();
        assert_eq!(heard, 200);
        assert!(!words.take(now + EACH / 2));
        assert!(words.take(now + EACH));
        assert!(!words.take(now + EACH));
        let later = now + Duration::from_secs(3_600);
        let heard = (0..1_000).filter(|_| words.take(later)).count();
        assert_eq!(heard, 200);
    }
}

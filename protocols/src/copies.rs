//! Copies of stops on their way: one that arrives behind the next mission would stop that one.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

/// For so long the system goes on to send what it has not seen arrive (`TCP_USER_TIMEOUT`), also on
/// a connection that we have closed.
pub(crate) const RETRANSMITTED_FOR: Duration = Duration::from_secs(15);

/// One of them. Dropped when it has arrived, or cannot any more.
pub(crate) type OnItsWay = DropGuard;

/// Those to one robot.
#[derive(Debug, Default)]
pub(crate) struct Copies(Mutex<VecDeque<Copy>>);

#[derive(Debug, Clone)]
struct Copy {
    landed: CancellationToken,
    at_latest: Instant,
}

impl Copy {
    fn has_landed(&self) -> bool {
        self.landed.is_cancelled() || self.at_latest <= Instant::now()
    }
}

impl Copies {
    /// One is about to leave. `at_latest`: when it will have arrived, or never will, whatever
    /// becomes of its connection.
    pub(crate) fn leaves(&self, at_latest: Instant) -> OnItsWay {
        let landed = CancellationToken::new();
        let mut copies = self.lock();
        forget_landed(&mut copies);
        copies.push_back(Copy {
            landed: landed.clone(),
            at_latest,
        });
        landed.drop_guard()
    }

    /// Waits until none is on its way.
    pub(crate) async fn landed(&self) {
        while let Some(copy) = self.first() {
            // Late or not: the next look tells.
            let _ = timeout_at(copy.at_latest, copy.landed.cancelled()).await;
        }
    }

    /// None is on its way.
    pub(crate) fn have_landed(&self) -> bool {
        self.first().is_none()
    }

    fn first(&self) -> Option<Copy> {
        let mut copies = self.lock();
        forget_landed(&mut copies);
        copies.front().cloned()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Copy>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From the front, where those are that left first.
fn forget_landed(copies: &mut VecDeque<Copy>) {
    while copies.front().is_some_and(Copy::has_landed) {
        copies.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn all_have_landed_when_each_has_arrived_or_its_time_is_over() {
        let copies = Copies::default();
        copies.landed().await;
        let (first, lost, last) = (
            copies.leaves(Instant::now() + 9 * SECOND),
            copies.leaves(Instant::now() + 5 * SECOND),
            copies.leaves(Instant::now() + 9 * SECOND),
        );
        drop(last);
        assert!(timeout(SECOND, copies.landed()).await.is_err());
        drop(first);
        let began = Instant::now();
        copies.landed().await;
        assert_eq!(began.elapsed(), 4 * SECOND);
        assert!(copies.have_landed());
        drop(lost);
    }
}

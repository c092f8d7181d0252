//! The door of a listener: connections that have not shown yet who they are.
//!
//! Whoever reaches the port can come here, so what one newcomer can take is little: a place, which
//! it loses to the next one if it lets us wait, and a turn at the cryptography, which it has only
//! while we compute.

use std::{
    collections::BTreeMap,
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::ready,
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tokio_util::sync::{CancellationToken, PollSemaphore};

/// A newcomer keeps its place at least for so long: two round trips over a slow link.
const AT_LEAST: Duration = Duration::from_millis(500);

/// How often it is looked who could be sent away while all places are taken.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Door {
    places: Arc<Semaphore>,
    turns: Arc<Semaphore>,
    newcomers: Mutex<Newcomers>,
}

#[derive(Debug, Default)]
struct Newcomers {
    next: u64,
    // In the order in which they came.
    here: BTreeMap<u64, Arc<State>>,
}

#[derive(Debug)]
struct State {
    since: Instant,
    /// It is its turn to speak, not ours to compute.
    lets_us_wait: AtomicBool,
    sent_away: CancellationToken,
}

impl Door {
    pub(super) fn new(places: usize, turns: usize) -> Arc<Self> {
        Arc::new(Self {
            places: Arc::new(Semaphore::new(places)),
            turns: Arc::new(Semaphore::new(turns)),
            newcomers: Mutex::default(),
        })
    }

    /// Waits for a place. While there is none, those that let us wait are sent away, the oldest
    /// first: silence shall keep nobody out.
    pub(super) async fn place(self: &Arc<Self>) -> Place {
        loop {
            if self.places.available_permits() == 0 {
                self.send_one_away();
            }
            let place = timeout(LOOK_AGAIN, self.places.clone().acquire_owned()).await;
            if let Ok(Ok(permit)) = place {
                return Place {
                    door: self.clone(),
                    permit,
                };
            }
        }
    }

    fn send_one_away(&self) {
        let newcomers = self.lock();
        let slow = newcomers.here.values().find(|state| {
            state.lets_us_wait.load(Ordering::Acquire)
                && !state.sent_away.is_cancelled()
                && state.since.elapsed() >= AT_LEAST
        });
        if let Some(state) = slow {
            state.sent_away.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Newcomers> {
        self.newcomers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place that nobody has taken yet.
pub(super) struct Place {
    door: Arc<Door>,
    permit: OwnedSemaphorePermit,
}

impl Place {
    pub(super) fn enter(self) -> Newcomer {
        let state = Arc::new(State {
            since: Instant::now(),
            lets_us_wait: AtomicBool::new(true),
            sent_away: CancellationToken::new(),
        });
        let mut newcomers = self.door.lock();
        let number = newcomers.next;
        newcomers.next += 1;
        newcomers.here.insert(number, state.clone());
        drop(newcomers);
        Newcomer {
            door: self.door,
            number,
            state,
            _permit: self.permit,
        }
    }
}

/// One connection at the door; dropping it leaves.
pub(super) struct Newcomer {
    door: Arc<Door>,
    number: u64,
    state: Arc<State>,
    _permit: OwnedSemaphorePermit,
}

impl Newcomer {
    /// Drives `handshake` in turns with those of the others: cryptography is what costs, and
    /// requests on established connections shall not wait behind all of it. A turn lasts until
    /// the handshake waits for the other end. `Err`: it was sent away, since it did not end within this
    /// time; the same for all, so that the audit can tell them together.
    pub(super) async fn handshake<F: Future>(&self, handshake: F) -> Result<F::Output, Duration> {
        let mut handshake = pin!(handshake);
        let mut turns = PollSemaphore::new(self.door.turns.clone());
        let waits = &self.state.lets_us_wait;
        let worked = poll_fn(|cx| {
            // Something came in, or it is our turn: whatever is missing now is ours to do.
            waits.store(false, Ordering::Release);
            let _turn = ready!(turns.poll_acquire(cx));
            let polled = handshake.as_mut().poll(cx);
            waits.store(polled.is_pending(), Ordering::Release);
            polled
        });
        tokio::select! {
            biased;
            done = worked => Ok(done),
            () = self.state.sent_away.cancelled() => Err(AT_LEAST),
        }
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        self.door.lock().here.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use futures::{future::join_all, poll};
    use std::future::pending;

    #[tokio::test(start_paused = true)]
    async fn one_that_lets_us_wait_loses_its_place_to_the_next_but_not_at_once() {
        let door = Door::new(1, 1);
        let silent = door.place().await.enter();
        let began = Instant::now();
        let (sent_away, _) = tokio::join!(
            async {
                let outcome = silent.handshake(pending::<()>()).await;
                drop(silent);
                outcome
            },
            door.place()
        );
        assert_eq!(sent_away.unwrap_err(), AT_LEAST);
        assert!(began.elapsed() >= AT_LEAST);
        assert!(began.elapsed() <= AT_LEAST + LOOK_AGAIN);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_waits_for_its_turn_keeps_its_place() {
        let door = Door::new(1, 1);
        let newcomer = door.place().await.enter();
        let turn = door.turns.clone().acquire_owned().await.unwrap();
        let mut handshake = pin!(newcomer.handshake(async {}));
        assert!(poll!(&mut handshake).is_pending());
        let long = timeout(Duration::from_secs(60), door.place()).await;
        assert!(long.is_err(), "its place was taken");
        drop(turn);
        assert_eq!(handshake.await, Ok(()));
    }

    #[tokio::test]
    async fn a_turn_is_over_as_soon_as_the_other_end_is_waited_for() {
        let door = Door::new(3, 1);
        let (a, b) = (door.place().await.enter(), door.place().await.enter());
        let mut stuck = pin!(a.handshake(pending::<()>()));
        assert!(poll!(&mut stuck).is_pending());
        assert_eq!(b.handshake(async { 7 }).await, Ok(7));
    }

    #[tokio::test]
    async fn all_get_their_turns() {
        let door = Door::new(100, 2);
        let mut newcomers = Vec::new();
        for _ in 0..100 {
            newcomers.push(door.place().await.enter());
        }
        let work = || async {
            for _ in 0..5 {
                tokio::task::yield_now().await;
            }
        };
        let done = join_all(newcomers.iter().map(|n| n.handshake(work()))).await;
        assert!(done.iter().all(Result::is_ok));
        drop(newcomers);
        assert_eq!(door.places.available_permits(), 100);
        assert!(door.lock().here.is_empty());
    }
}

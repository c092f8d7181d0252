//! Whose call is worked on next.

use crate::policy::Caller;
use std::{
    collections::HashMap,
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Poll, ready},
};
use tokio::sync::Semaphore;
use tokio_util::sync::PollSemaphore;

/// Calls of one kind. A few of each caller's stand in the threads' line at a time, the others in a line
/// of their caller's: a thousand that come together would otherwise stand before everybody else's
/// calls and stops until all of them are decided on and written down.
#[derive(Debug)]
pub(super) struct Turns {
    at_a_time: usize,
    by_caller: Mutex<HashMap<Caller, Arc<Line>>>,
}

/// The calls of one caller.
#[derive(Debug)]
struct Line {
    calls: AtomicUsize,
    turns: Arc<Semaphore>,
}

impl Turns {
    /// So many calls of one caller at a time.
    pub(super) fn new(at_a_time: usize) -> Arc<Self> {
        Arc::new(Self {
            at_a_time,
            by_caller: Mutex::default(),
        })
    }

    /// Makes the call, and goes on with it whenever it has something to do, in its turn. It keeps its
    /// turn while it stands in the threads' line, and gives it up once it has to wait for anything
    /// else: a turn is work for a processor, not what the call is about. So no call may wait in a line
    /// that hands something over to it (an async mutex, a semaphore) within its own future: it would
    /// have it and stand here.
    pub(super) async fn take<C: Future>(&self, caller: Option<Caller>, call: C) -> C::Output {
        let Some(caller) = caller else {
            return call.await;
        };
        let queued = self.queue(caller);
        let mut turns = PollSemaphore::new(queued.line.turns.clone());
        let mut turn = None;
        let mut call = pin!(call);
        poll_fn(|cx| {
            if turn.take().is_some() || queued.is_alone() {
                return call.as_mut().poll(cx);
            }
            turn = ready!(turns.poll_acquire(cx));
            // To the end of the threads' line.
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }

    fn queue(&self, caller: Caller) -> Queued<'_> {
        let mut lines = self.lines();
        let line = lines.entry(caller.clone()).or_insert_with(|| {
            Arc::new(Line {
                calls: AtomicUsize::new(0),
                turns: Arc::new(Semaphore::new(self.at_a_time)),
            })
        });
        line.calls.fetch_add(1, Ordering::Relaxed);
        Queued {
            line: line.clone(),
            of: self,
            caller,
        }
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<Caller, Arc<Line>>> {
        self.by_caller
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// One call in its caller's line, until it is answered or given up.
struct Queued<'a> {
    line: Arc<Line>,
    of: &'a Turns,
    caller: Caller,
}

impl Queued<'_> {
    fn is_alone(&self) -> bool {
        self.line.calls.load(Ordering::Relaxed) == 1
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        // All that come and go do so under this lock.
        let mut lines = self.of.lines();
        if self.line.calls.fetch_sub(1, Ordering::Relaxed) == 1 {
            lines.remove(&self.caller);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::policy::Principal;
    use tokio::task::{JoinSet, yield_now};

    const AT_A_TIME: usize = 4;

    fn caller(name: &str) -> Caller {
        Principal::workload(&format!("spiffe://example.org/{name}")).caller()
    }

    async fn work(done: Arc<AtomicUsize>) {
        done.fetch_add(1, Ordering::Relaxed);
        yield_now().await;
        done.fetch_add(1, Ordering::Relaxed);
    }

    fn many(turns: &Arc<Turns>, done: &Arc<AtomicUsize>) -> JoinSet<()> {
        let mut calls = JoinSet::new();
        for _ in 0..1_000 {
            let (turns, done) = (turns.clone(), done.clone());
            calls.spawn(async move { turns.take(Some(caller("many")), work(done)).await });
        }
        calls
    }

    #[tokio::test]
    async fn a_call_of_another_does_not_wait_until_a_thousand_that_came_before_it_have_begun() {
        let turns = Turns::new(AT_A_TIME);
        let done = Arc::default();
        let calls = many(&turns, &done);
        let other = tokio::spawn({
            let (turns, done) = (turns.clone(), done.clone());
            async move {
                let call = async { done.load(Ordering::Relaxed) };
                turns.take(Some(caller("other")), call).await
            }
        });
        let before = other.await.unwrap();
        assert!(before <= 2 * AT_A_TIME, "{before}");
        calls.join_all().await;
        assert_eq!(done.load(Ordering::Relaxed), 2_000);
        assert!(turns.lines().is_empty());
    }

    #[tokio::test]
    async fn calls_that_are_given_up_give_their_turns_back() {
        let turns = Turns::new(AT_A_TIME);
        let done = Arc::default();
        let mut calls = many(&turns, &done);
        yield_now().await;
        let last = turns.take(Some(caller("many")), work(done.clone()));
        let mut last = pin!(last);
        let pending = futures::poll!(last.as_mut());
        assert!(pending.is_pending());
        calls.shutdown().await;
        last.await;
        assert!(turns.lines().is_empty());
    }
}

//! What the follower writes and everyone reads.
use crate::{
    IdentityState, PeerPolicy, RenewalOverdue, Snapshot, clock::Clock, state::rfc3339,
    stats::Counters,
};
use arc_swap::ArcSwap;
use spiffe::{X509BundleSet, X509Svid};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// How often a state other than Ready is logged.
const REPORT_EVERY: Duration = Duration::from_secs(15);

/// The latest snapshot and how things stand.
pub(crate) struct Shared {
    pub(crate) hint: Option<String>,
    renew_before: Duration,
    pub(crate) clock: Clock,
    pub(crate) counters: Counters,
    /// Whom nobody lets in.
    pub(crate) denied: Arc<ArcSwap<PeerPolicy>>,
    pub(crate) snapshot: watch::Sender<Option<Arc<Snapshot>>>,
    status: Mutex<Status>,
}

#[derive(Default)]
struct Status {
    problem: Option<IdentityState>,
    expired: bool,
    /// When what kind of problem was reported last.
    reported: Option<(Instant, &'static str)>,
}

impl Shared {
    pub(crate) fn new(hint: Option<String>, renew_before: Duration) -> Self {
        Self {
            hint,
            renew_before,
            clock: Clock::new(),
            counters: Counters::default(),
            denied: Arc::new(ArcSwap::from_pointee(PeerPolicy::new([]))),
            snapshot: watch::Sender::new(None),
            status: Mutex::default(),
        }
    }

    /// What keeps renewal from working.
    pub(crate) fn problem(&self) -> Option<IdentityState> {
        self.status().problem.clone()
    }

    /// What is left of an SVID, by the clock that says less.
    pub(crate) fn left(&self, snapshot: &Snapshot) -> Duration {
        snapshot.left(self.clock.now().time, Instant::now())
    }

    /// So long before its end an SVID's successor has to be there.
    pub(crate) fn margin(&self, snapshot: &Snapshot) -> Duration {
        self.renew_before.min(snapshot.life() / 12)
    }

    /// Whether the SVID should have been renewed by now. It goes by the SVID in use and the time
    /// alone: whatever else came and comes does not put it off.
    pub(crate) fn overdue(&self) -> Option<RenewalOverdue> {
        let current = self.current()?;
        (self.left(&current) <= self.margin(&current)).then(|| RenewalOverdue {
            not_after: current.not_after,
            problem: self.problem(),
        })
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The latest snapshot, whether it has ended or not.
    pub(crate) fn latest(&self) -> Option<Arc<Snapshot>> {
        self.snapshot.borrow().clone()
    }

    pub(crate) fn current(&self) -> Option<Arc<Snapshot>> {
        let (wall, now) = (self.clock.now().time, Instant::now());
        self.latest()
            .filter(|snapshot| !snapshot.is_over(wall, now))
    }

    pub(crate) fn state(&self) -> IdentityState {
        if let Some(doubt) = self.clock.now().doubt {
            return IdentityState::ClockInDoubt(doubt);
        }
        if self.current().is_some() {
            return IdentityState::Ready;
        }
        let status = self.status();
        if status.expired || self.snapshot.borrow().is_some() {
            return IdentityState::Expired;
        }
        status.problem.clone().unwrap_or(IdentityState::Starting)
    }

    /// Takes over an SVID and the bundles that came with it. On an error what was there stays.
    pub(crate) fn accept(
        &self,
        svid: &Arc<X509Svid>,
        bundles: &Arc<X509BundleSet>,
    ) -> Result<(), String> {
        self.status().problem = None;
        if self
            .current()
            .is_some_and(|current| current.holds(svid, bundles))
        {
            return Ok(());
        }
        let generation = self.counters.generations.load(Relaxed) + 1;
        let mut snapshot = Snapshot::build(generation, Arc::clone(svid), Arc::clone(bundles))?;
        self.clock.issued(snapshot.not_before, snapshot.not_after);
        let now = self.clock.now().time;
        snapshot.arrived(now);
        let over = snapshot.is_over(now, Instant::now());
        self.status().expired = over;
        if over {
            // Also the fault of a clock; the next look at the agent may find it set right.
            return Ok(());
        }
        self.counters.generations.store(generation, Relaxed);
        tracing::info!(
            spiffe_id = %snapshot.spiffe_id,
            serial = snapshot.serial,
            not_after = %rfc3339(snapshot.not_after),
            generation,
            "new SVID"
        );
        self.snapshot.send_replace(Some(Arc::new(snapshot)));
        Ok(())
    }

    /// The agent cannot be asked; what is there stays until it ends.
    pub(crate) fn renewal_fails(&self, problem: IdentityState) {
        self.status().problem = Some(problem);
    }

    /// What is there must not be used any longer.
    pub(crate) fn withdraw(&self, problem: IdentityState) {
        {
            let mut status = self.status();
            status.problem = Some(problem);
            status.expired = false;
        }
        self.remove_if(|_| true);
    }

    pub(crate) fn deny(&self, denied: PeerPolicy) {
        self.denied.store(Arc::new(denied));
        self.look_again();
    }

    /// Has followers look at what is there again.
    pub(crate) fn look_again(&self) {
        self.snapshot.send_modify(|_| {});
    }

    /// Takes the snapshot away once it has ended, so that followers hear of it.
    pub(crate) fn expire(&self) {
        let (wall, now) = (self.clock.now().time, Instant::now());
        let over = |snapshot: &Snapshot| snapshot.is_over(wall, now);
        if self.latest().is_some_and(|snapshot| over(&snapshot)) {
            // First: whoever is woken by the removal asks why.
            self.status().expired = true;
            self.remove_if(over);
        }
    }

    fn remove_if(&self, condition: impl FnOnce(&Snapshot) -> bool) -> bool {
        self.snapshot.send_if_modified(|snapshot| {
            let remove = snapshot.as_deref().is_some_and(condition);
            if remove {
                *snapshot = None;
            }
            remove
        })
    }

    /// What is to be said now, if anything: what is wrong, when it becomes another thing and every
    /// 15 s while it lasts.
    pub(crate) fn due_report(&self) -> Option<String> {
        let state = self.state();
        let overdue = self.overdue();
        let mut status = self.status();
        if let (IdentityState::Ready, Some(overdue)) = (&state, overdue) {
            return status.say("renewal_overdue", || overdue.to_string());
        }
        let wrong = match (&state, &status.problem) {
            (IdentityState::Ready | IdentityState::Starting, None) => {
                status.reported = None;
                return None;
            }
            (IdentityState::Ready, Some(problem)) => problem.clone(),
            _ => state.clone(),
        };
        let renewal = status.problem.clone().filter(|problem| *problem != wrong);
        status.say(wrong.as_str(), || match (state, renewal) {
            (IdentityState::Ready, _) => {
                format!("SVID renewal fails and the last good SVID is kept: {wrong}")
            }
            (IdentityState::ClockInDoubt(_), _) => wrong.to_string(),
            (_, Some(renewal)) => format!("no SVID: {wrong}; renewal fails: {renewal}"),
            (_, None) => format!("no SVID: {wrong}"),
        })
    }
}

impl Status {
    /// The words, unless the same kind of problem was reported a moment ago.
    fn say(&mut self, kind: &'static str, words: impl FnOnce() -> String) -> Option<String> {
        let silent = self
            .reported
            .is_some_and(|(at, last)| at.elapsed() < REPORT_EVERY && last == kind);
        if silent {
            return None;
        }
        self.reported = Some((Instant::now(), kind));
        Some(words())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_wrong_is_said_once_and_then_every_fifteen_seconds() {
        let shared = Shared::new(None, Duration::ZERO);
        assert_eq!(shared.due_report(), None);
        shared.renewal_fails(IdentityState::NoSocket);
        let report = shared.due_report();
        assert!(report.is_some_and(|r| r.starts_with("no SVID: the Workload API socket")));
        assert_eq!(shared.due_report(), None);
        shared.withdraw(IdentityState::PermissionDenied);
        assert!(shared.due_report().is_some_and(|r| r.contains("no entry")));
        tokio::time::advance(REPORT_EVERY - Duration::from_millis(1)).await;
        assert_eq!(shared.due_report(), None);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(shared.due_report().is_some());
        shared.status().expired = true;
        let report = shared.due_report();
        assert!(report.is_some_and(|r| r.contains("has expired") && r.contains("no entry")));
    }
}

//! The lane of a robot's stops, and how often its troubles are said.

use portarium_protocols::{
    adapter::StopAnswer,
    mission::{ActionType, Command},
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// A trouble that lasts is said when it begins, and then rarely.
#[derive(Debug, Default)]
pub(super) struct Complaint(Option<Instant>);

impl Complaint {
    /// How often it is said.
    const EVERY: Duration = Duration::from_secs(600);

    /// Whether to say it now.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        let due = self.0.is_none_or(|said| now - said >= Self::EVERY);
        if due {
            self.0 = Some(now);
        }
        due
    }

    /// It is over: the next one is said at once.
    pub(super) fn end(&mut self) {
        self.0 = None;
    }
}

/// The stop lane of a robot: one stop on its way, and at most one behind it.
#[derive(Debug, Default)]
pub(super) struct StopLane {
    pub(super) under_way: Option<Arc<Command>>,
    /// To be sent next; newer ones replace it and cover it.
    pub(super) next: Option<Arc<Command>>,
    /// The robot could not be reached: tried again then, or as soon as it returns.
    pub(super) retry_at: Option<Instant>,
    pub(super) undelivered: Complaint,
    /// Grows with each stop asked for.
    pub(super) requested: u64,
    /// What the robot answered to the last stop sent, and the last request it covers; `Err`: why
    /// it refused.
    pub(super) answered: (u64, Option<Result<StopAnswer, String>>),
    /// A mission was sent after this request: the robot was to move again.
    pub(super) overtaken: u64,
}

impl StopLane {
    /// A stop waits or is under way.
    pub(super) fn is_pending(&self) -> bool {
        self.next.is_some() || self.under_way.is_some()
    }

    /// What is to be sent again if the one that is under way comes to nothing: the latest, but
    /// never a mere stop in place of an emergency stop.
    pub(super) fn pending(&self) -> Option<Arc<Command>> {
        stronger(self.under_way.as_ref(), self.next.as_ref())
    }

    /// Puts a stop in line, which covers the one that waits.
    pub(super) fn put(&mut self, stop: &Arc<Command>) {
        let waits = self.next.take();
        self.next = stronger(waits.as_ref(), Some(stop));
        self.requested += 1;
        self.retry_at = None;
    }
}

/// The later of two stops, but never a mere stop in place of an emergency stop.
pub(super) fn stronger(
    earlier: Option<&Arc<Command>>,
    later: Option<&Arc<Command>>,
) -> Option<Arc<Command>> {
    let is_emergency = |stop: &&Arc<Command>| stop.action_type == ActionType::EstopRequest;
    later
        .filter(is_emergency)
        .or_else(|| earlier.filter(is_emergency))
        .or(later)
        .or(earlier)
        .cloned()
}

//! The lane of a robot's stops, and how often its troubles are said.

use portarium_protocols::{
    adapter::StopAnswer,
    ids::MissionId,
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
    /// Grows with each stop sent.
    sent: u64,
    /// No copy of a stop is on its way, up to that one; `None`: nor of one that an earlier life sent.
    landed: Option<u64>,
    landing_awaited: bool,
    /// What the robot answered to the last stop sent, and the last request it covers; `Err`: why
    /// it refused.
    pub(super) answered: (u64, Option<Result<StopAnswer, String>>),
    /// Handed over, and the robot has not said a word of it: what carried it may have lost it while
    /// the robot was away. With the last request that its answer covers.
    unheard: Option<(Arc<Command>, u64)>,
    /// The last one bears a name that was used before, for another request or for an earlier one
    /// that it covers: a report may be on that.
    doubtful: bool,
}

impl StopLane {
    /// A stop waits or is under way.
    pub(super) fn is_pending(&self) -> bool {
        self.next.is_some() || self.under_way.is_some()
    }

    /// None is pending, and no copy of an earlier one can reach the robot any more. A mission sent
    /// before that could be stopped by it.
    pub(super) fn is_over(&self) -> bool {
        !self.is_pending() && self.landed == Some(self.sent)
    }

    /// Takes what is to be sent now, unless one is under way.
    pub(super) fn take(&mut self, now: Instant) -> Option<Arc<Command>> {
        if self.under_way.is_some() || self.retry_at.is_some_and(|at| at > now) {
            return None;
        }
        self.under_way = Some(self.next.take()?);
        self.sent += 1;
        self.under_way.clone()
    }

    /// Whether the copies of those sent are to be awaited from now on, and up to which.
    pub(super) fn await_landing(&mut self) -> Option<u64> {
        let due = !self.is_pending() && !self.is_over() && !self.landing_awaited;
        self.landing_awaited |= due;
        due.then_some(self.sent)
    }

    pub(super) fn have_landed(&mut self, up_to: u64) {
        self.landing_awaited = false;
        self.landed = Some(up_to);
    }

    /// The one that waits or is under way: the latest, but never a mere stop in place of an
    /// emergency stop.
    pub(super) fn pending(&self) -> Option<Arc<Command>> {
        stronger(self.under_way.as_ref(), self.next.as_ref())
    }

    /// The one of which the robot has not said a word, be it on its way, to be sent or handed over.
    pub(super) fn unanswered(&self) -> Option<Arc<Command>> {
        stronger(self.unheard(), self.pending().as_ref())
    }

    fn unheard(&self) -> Option<&Arc<Command>> {
        self.unheard.as_ref().map(|(stop, _)| stop)
    }

    /// Puts a stop in line, which covers the one that waits. `known`: its name was used before.
    pub(super) fn put(&mut self, stop: &Arc<Command>, known: bool) {
        let waits = self.next.take();
        self.next = stronger(waits.as_ref(), Some(stop));
        let bears_its_name = self.next.as_ref().is_some_and(|n| Arc::ptr_eq(n, stop));
        self.doubtful = known || !bears_its_name || self.doubtful && waits.is_some();
        self.requested += 1;
        self.retry_at = None;
    }

    /// One did not get through, as far as is known: it, or a stronger one, is sent again, also for
    /// those that were asked for meanwhile.
    pub(super) fn failed(&mut self, stop: &Arc<Command>, number: u64) {
        self.next = stronger(Some(stop), self.next.as_ref());
        self.doubtful |= number < self.requested;
    }

    /// Where none is to be sent, the one that was not answered is, once more. From then on a report
    /// on it counts, whatever its name: that it was lost twice, and both times taken for another of
    /// its name, is not to be expected.
    pub(super) fn repeat_unheard(&mut self) {
        if !self.is_pending() && self.unheard.is_some() {
            self.next = self.unheard().cloned();
            self.doubtful = false;
        }
    }

    /// A stop was handed over, and how the robot answers is not known yet.
    pub(super) fn handed_over(&mut self, stop: &Arc<Command>, number: u64) {
        let reported = self.answered.0 >= number && !self.doubtful;
        if !reported || self.unheard.is_some() {
            let kept = stronger(self.unheard(), Some(stop));
            // An earlier one, which stands for this one too: what is said of it may not be.
            self.doubtful |= kept.as_ref().is_some_and(|kept| !Arc::ptr_eq(kept, stop));
            self.unheard = kept.map(|kept| (kept, number));
        }
    }

    /// The robot has answered to this request, and so to those before it. Whether one was handed
    /// over that it had not answered to.
    pub(super) fn heard(&mut self, number: u64) -> bool {
        self.unheard.take_if(|(_, last)| *last <= number).is_some()
    }

    /// As before, by a report.
    pub(super) fn reported(&mut self, number: u64) -> bool {
        !self.doubtful && self.heard(number)
    }

    /// After a start: the next in the order of the stops that are followed. `waits`: it was not
    /// handed over, so one of an earlier name is sent for it as well.
    pub(super) fn follow(&mut self, name: &MissionId, heard: bool, waits: bool) {
        self.requested += 1;
        match self.next.as_ref().is_some_and(|n| n.mission_id == *name) {
            true => self.doubtful = heard,
            false => self.doubtful |= waits,
        }
    }

    /// The last request that a report under this name answers, where nothing else follows it.
    pub(super) fn unheard_as(&self, name: &MissionId) -> Option<u64> {
        let (stop, number) = self.unheard.as_ref()?;
        (stop.mission_id == *name).then_some(*number)
    }

    /// A mission is sent: the robot is to move again. Sent once more, the stop would hit this
    /// mission in place of the one that it was meant for. Whether there was one.
    pub(super) fn overtaken(&mut self) -> bool {
        self.unheard.take().is_some()
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

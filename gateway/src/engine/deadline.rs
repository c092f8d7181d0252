//! What time does to missions.

use super::{
    RobotSpec,
    robot::{Active, CancelPhase, Phase, RobotState},
    transition::Word,
};
use crate::journal::Record;
use portarium_protocols::{ids::MissionId, mission::MissionStatus};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Far enough to be never; an idle robot looks at itself that often.
const NEVER: Duration = Duration::from_secs(24 * 3600);

impl RobotState {
    /// Ends what was not sent in time; what was sent and brought no word is cancelled at the
    /// robot and of unknown outcome.
    pub(super) fn expire(
        &mut self,
        now: Instant,
        spec: &RobotSpec,
        at: &Arc<str>,
        records: &mut Vec<Record>,
    ) {
        let within = humantime::format_duration(spec.deliver_within);
        let late: Vec<MissionId> = self
            .queue
            .iter()
            .filter(|id| self.deadline(id) <= now)
            .cloned()
            .collect();
        for id in late {
            let detail = format!("never sent: the robot could not take it within {within}");
            let word = Word {
                detail: &detail,
                observed_at: at,
                ..Word::default()
            };
            self.advance(&id, MissionStatus::Failed, &word, records);
        }
        if let Some(id) = self
            .unheard()
            .filter(|active| active.word_by <= now)
            .map(|active| active.id.clone())
        {
            let detail =
                format!("sent, but the robot said nothing within {within}; cancel requested");
            self.unknown_outcome(&id, &detail, at, records);
            self.edit(&id, records, |state| state.cancel_requested = true);
            if let Some(active) = &mut self.active {
                active.cancel = active.cancel.asked();
            }
        }
        if let Some(id) = self
            .cancelled_in_vain()
            .filter(|(_, since)| *since + spec.deliver_within <= now)
            .map(|(id, _)| id.clone())
        {
            let detail =
                format!("cancelled, but the robot has not said within {within} that it ended");
            self.unknown_outcome(&id, &detail, at, records);
        }
        let silent: Vec<MissionId> = self
            .unfinished_stops()
            .filter(|(_, sent)| *sent + spec.deliver_within <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in silent {
            let detail = format!("sent, but the robot has not said within {within} that it stands");
            self.edit(&id, records, |state| {
                state.outcome_unknown = true;
                state.detail = detail.into();
            });
        }
    }

    /// When the clock matters again.
    pub(super) fn next_moment(&self, now: Instant, spec: &RobotSpec) -> Instant {
        let waiting = self.queue.iter().map(|id| self.deadline(id));
        let unheard = self.unheard().map(|active| active.word_by);
        let cancelled = self
            .cancelled_in_vain()
            .map(|(_, since)| since + spec.deliver_within);
        let stops = self
            .unfinished_stops()
            .map(|(_, sent)| sent + spec.deliver_within);
        let stop = self.stop.next.as_ref().and(self.stop.retry_at);
        // Out of reach, its return is waited for.
        let cancel = self.cancel_due().filter(|_| self.link.is_ok());
        let cancel = cancel.map(|at| at.unwrap_or(now));
        waiting
            .chain(unheard)
            .chain(cancelled)
            .chain(stops)
            .chain(stop)
            .chain(cancel)
            .chain(self.retry_at)
            .chain(self.look_due())
            .fold(now + NEVER, Instant::min)
    }

    fn deadline(&self, id: &MissionId) -> Instant {
        self.open
            .get(id)
            .map_or_else(Instant::now, |open| open.deliver_by)
    }

    /// The mission that was sent and of which the robot has said nothing.
    fn unheard(&self) -> Option<&Active> {
        let active = self.active.as_ref()?;
        let open = self.open.get(&active.id)?;
        (matches!(active.phase, Phase::Sent | Phase::Lost)
            && !open.state.heard
            && !open.state.outcome_unknown)
            .then_some(active)
    }

    /// The mission whose cancel was delivered and brought no end, and since when it was last heard
    /// of: a robot that has forgotten a mission will never say that it ended.
    fn cancelled_in_vain(&self) -> Option<(&MissionId, Instant)> {
        let active = self.active.as_ref()?;
        let open = self.open.get(&active.id)?;
        let CancelPhase::Delivered(Some(since)) = active.cancel else {
            return None;
        };
        let ended = open.state.awaiting_confirmation;
        (!open.state.outcome_unknown && !ended).then_some((&active.id, since))
    }

    /// Stops that were sent and of which the robot has not said that it stands, and since when it
    /// has said nothing: it may have forgotten them, and one that never ends would keep its robot
    /// in the configuration.
    fn unfinished_stops(&self) -> impl Iterator<Item = (&MissionId, Instant)> {
        self.open
            .iter()
            .filter(|(_, open)| {
                open.mission.command.action_type.is_stop()
                    && open.state.status != MissionStatus::Pending
                    && !open.state.outcome_unknown
            })
            .map(|(id, open)| (id, open.deliver_by))
    }
}

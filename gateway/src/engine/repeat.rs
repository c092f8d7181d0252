//! The same message with the same key once more, for robots that are declared idempotent: they
//! execute a key at most once and answer a repeat with what became of it. Where nothing else can
//! tell, it is the only question there is.

use super::{
    RobotSpec,
    driver::{Calls, RETRY, dispatch},
    robot::{Phase, RobotState},
    transition::Word,
};
use crate::journal::Record;
use portarium_protocols::{
    adapter::{DispatchError, Handover},
    ids::MissionId,
    mission::MissionStatus,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// How long a repeat may be under way of which only the answer matters: the robot has said that it
/// has the mission.
const ANSWER_LIFE: Duration = Duration::from_secs(5);

impl RobotState {
    /// Whether the mission may be handed over again.
    pub(super) fn may_repeat(&self, id: &MissionId, spec: &RobotSpec) -> bool {
        self.open.get(id).is_some_and(|open| {
            spec.idempotent
                && self.reconciled
                && !open.state.cancel_requested
                && !open.state.awaiting_confirmation
                && !self.latched
                && self.hold.is_none()
                && self.fence_pending.is_none()
                && !self.stop.is_pending()
                && (open.state.heard || open.deliver_by > Instant::now())
        })
    }

    pub(super) fn repeat(&mut self, id: &MissionId, spec: &RobotSpec, calls: &Calls) {
        let (Some(open), Some(active)) = (self.open.get_mut(id), &mut self.active) else {
            return;
        };
        let Some(adapter) = spec.adapter.clone() else {
            return;
        };
        tracing::debug!(robot = %spec.id, mission = %id, "sent again under the same key: the robot is idempotent, and nothing else can tell what became of it");
        let left = open.deliver_by.saturating_duration_since(Instant::now());
        let life = if open.state.heard { ANSWER_LIFE } else { left };
        active.phase = Phase::Sending { again: true };
        active.word_by = open.deliver_by;
        open.offered = true;
        self.dispatching = true;
        self.row_behind |= self.stop.overtaken();
        // If this one brings no answer either, the next question takes its time.
        self.retry_at = Some(Instant::now() + RETRY);
        calls.push(dispatch(
            adapter,
            id.clone(),
            open.mission.command.clone(),
            life,
        ));
    }

    /// What came of a repeat. Unlike a first attempt it proves nothing by not getting through.
    pub(super) fn repeated(
        &mut self,
        id: &MissionId,
        result: Result<Handover, DispatchError>,
        at: &Arc<str>,
        records: &mut Vec<Record>,
    ) {
        let (Some(open), Some(active)) = (self.open.get_mut(id), &mut self.active) else {
            return;
        };
        active.phase = if open.state.heard || result.is_ok() {
            Phase::Sent
        } else {
            Phase::Lost
        };
        if matches!(result, Ok(_) | Err(DispatchError::Rejected { .. })) {
            self.retry_at = None;
            self.unanswered.end();
        }
        match result {
            Ok(Handover::Sent) => {}
            // Not a row of its own: the next one carries it, and after a crash the robot is asked.
            Ok(Handover::Accepted) => open.state.heard = true,
            Err(DispatchError::Rejected { reason }) if open.state.heard => {
                let detail =
                    format!("the robot had it, and refused to say what became of it: {reason}");
                self.unknown_outcome(id, &detail, at, records);
            }
            Err(DispatchError::Rejected { reason }) => {
                let detail = format!("the robot refused it: {reason}");
                let word = Word {
                    detail: &detail,
                    observed_at: at,
                    heard: true,
                    ..Word::default()
                };
                self.advance(id, MissionStatus::Failed, &word, records);
            }
            Err(DispatchError::Unreachable { reason } | DispatchError::Unknown { reason }) => {
                if self.unanswered.is_due(Instant::now()) {
                    tracing::warn!(mission = %id, %reason, "what became of the mission is still unknown; the robot is asked again until it answers");
                }
                self.reconciled = false;
                self.retry_at = Some(Instant::now() + RETRY);
            }
        }
    }
}

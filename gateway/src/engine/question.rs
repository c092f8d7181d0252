//! What became of a mission that the robot may have: it is asked.

use super::{
    RobotSpec,
    driver::{Calls, Done, RETRY},
    robot::{Phase, RobotState},
};
use crate::journal::Record;
use futures::FutureExt as _;
use portarium_protocols::{
    adapter::{Adapter, Reconciled, SignalError},
    ids::MissionId,
    mission::Command,
};
use std::sync::Arc;
use tokio::time::Instant;

impl RobotState {
    /// Asks the robot what became of a mission that it may have.
    pub(super) fn ask(&mut self, spec: &RobotSpec, calls: &Calls) {
        if self.link.is_err() || self.reconciled || self.reconciling || self.retry_at.is_some() {
            return;
        }
        let Some(active) = &self.active else {
            self.reconciled = true;
            return;
        };
        match active.phase {
            // Its own answer comes first.
            Phase::Sending { .. } => {}
            Phase::Committing(_) => self.reconciled = true,
            Phase::Sent | Phase::Lost => {
                let (Some(open), Some(adapter)) = (self.open.get(&active.id), spec.adapter.clone())
                else {
                    return;
                };
                self.reconciling = true;
                calls.push(
                    reconcile(adapter, active.id.clone(), open.mission.command.clone()).boxed(),
                );
            }
        }
    }

    pub(super) fn answered(
        &mut self,
        id: &MissionId,
        answer: Result<Reconciled, SignalError>,
        spec: &RobotSpec,
        at: &Arc<str>,
        records: &mut Vec<Record>,
        calls: &Calls,
    ) {
        self.reconciling = false;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                if self.unanswered.is_due(Instant::now()) {
                    tracing::warn!(robot = %spec.id, mission = %id, %error, "the robot could not be asked what became of a mission; it is asked again until it answers");
                }
                self.retry_at = Some(Instant::now() + RETRY);
                return;
            }
        };
        // The link went meanwhile: only what the robot knows counts, the rest is asked again.
        if self.link.is_err() && !matches!(answer, Reconciled::Known(_)) {
            return;
        }
        self.reconciled = self.link.is_ok();
        let Some(active) = self.active.as_mut().filter(|a| &a.id == id) else {
            return;
        };
        let Some(open) = self.open.get(id) else {
            return;
        };
        let lost = matches!(active.phase, Phase::Lost);
        active.phase = Phase::Sent;
        match answer {
            Reconciled::Known(report) => {
                self.take_report(&report, at, records);
            }
            // It is done with it, and said so.
            _ if open.state.awaiting_confirmation => {}
            Reconciled::NotKnown if open.state.heard => {
                self.unknown_outcome(
                    id,
                    "the robot had it and does not know it any more",
                    at,
                    records,
                );
            }
            Reconciled::NotKnown | Reconciled::CannotAsk if self.may_repeat(id, spec) => {
                self.repeat(id, spec, calls);
            }
            // It was heard of, or handed over for certain: its word is awaited.
            Reconciled::CannotAsk if open.state.heard || !lost => {}
            Reconciled::NotKnown | Reconciled::CannotAsk => {
                let detail = "whether the robot got it is unknown: the connection or the gateway failed while it was handed over";
                self.unknown_outcome(id, detail, at, records);
            }
        }
    }
}

async fn reconcile(adapter: Arc<dyn Adapter>, id: MissionId, command: Arc<Command>) -> Done {
    let result = adapter.reconcile(command).await;
    Done::Reconciled(id, result)
}

//! What became of a mission that the robot may have: it is asked.

use super::{
    RobotSpec,
    driver::{Calls, Done, RETRY},
    robot::{Phase, RobotState},
};
use crate::journal::{MissionState, Record};
use futures::FutureExt as _;
use portarium_protocols::{
    adapter::{Adapter, Reconciled, Said, SignalError},
    ids::MissionId,
    mission::{Command, MissionStatus},
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// After so long without a word of it, the mission that a robot has is asked for though nothing seems
/// to be wrong: a broker whose queue is full drops words, and all connections stand.
const SILENCE: Duration = Duration::from_secs(120);

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

    /// Asks for a mission of which nothing was heard for long.
    pub(super) fn look(&mut self, now: Instant, spec: &RobotSpec, calls: &Calls) {
        if self.look_due().is_none_or(|due| due > now) {
            return;
        }
        let (Some(active), Some(adapter)) = (&mut self.active, spec.adapter.clone()) else {
            return;
        };
        let Some(open) = self.open.get(&active.id) else {
            return;
        };
        self.reconciling = true;
        let (id, words, command) = (
            active.id.clone(),
            active.words,
            open.mission.command.clone(),
        );
        let look = async move { Done::Looked(id, words, adapter.reconcile(command).await) };
        calls.push(look.boxed());
    }

    /// When the robot will have said nothing for too long of the mission that it has.
    pub(super) fn look_due(&self) -> Option<Instant> {
        let active = self.active.as_ref()?;
        let open = self.open.get(&active.id)?;
        let may_ask = self.link.is_ok() && self.reconciled && !self.reconciling;
        (may_ask && matches!(active.phase, Phase::Sent) && !open.state.awaiting_confirmation).then(
            || (active.silent_since + SILENCE).max(self.retry_at.unwrap_or(active.silent_since)),
        )
    }

    /// Nothing was in doubt, so only what is new counts: an end, or what leads there and was not
    /// overtaken by a word.
    pub(super) fn looked(
        &mut self,
        id: &MissionId,
        words: u64,
        answer: Result<Reconciled, SignalError>,
        at: &Arc<str>,
        records: &mut Vec<Record>,
    ) {
        self.reconciling = false;
        let Some(active) = self.active.as_mut().filter(|a| &a.id == id) else {
            return;
        };
        match answer {
            Err(_) => self.retry_at = Some(Instant::now() + RETRY),
            Ok(answer) => {
                active.silent_since = Instant::now();
                let overtaken = active.words != words;
                if let Reconciled::Known(mut report) = answer
                    && (report.status.is_terminal() || !overtaken)
                {
                    report.said = Said::Before;
                    self.take_report(&report, at, records);
                }
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
        active.silent_since = Instant::now();
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

/// Whether a word that may be an old one tells what was not known.
pub(super) fn says_more(known: &MissionState, status: MissionStatus) -> bool {
    let stage = |status| match status {
        MissionStatus::Pending => 0,
        MissionStatus::Dispatched => 1,
        MissionStatus::Executing => 2,
        MissionStatus::WaitingPreemption => 3,
        MissionStatus::Succeeded | MissionStatus::Failed | MissionStatus::Cancelled => 4,
    };
    !known.heard || stage(status) > stage(known.status)
}

async fn reconcile(adapter: Arc<dyn Adapter>, id: MissionId, command: Arc<Command>) -> Done {
    let result = adapter.reconcile(command).await;
    Done::Reconciled(id, result)
}

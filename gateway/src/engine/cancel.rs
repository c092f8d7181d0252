//! Cancelling missions.

use super::{
    Engine, Inner, Robot,
    index::Found,
    robot::{CancelPhase, RobotState, stamp},
    transition::{Change, Word},
};
use crate::journal::{Append, JournalError, Mission, Record, Ticket};
use portarium_protocols::{
    adapter::{Cancel, SignalError},
    ids::MissionId,
    mission::{ActionType, MissionStatus},
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

/// The pause before a cancel or a stop that did not get through is sent again.
pub(super) const RESEND: Duration = Duration::from_secs(1);

/// What came of a cancel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cancelled {
    /// It had not been sent and is over.
    Now(SystemTime),
    /// It was sent; the robot is asked, and it ends by the robot's word. Durable.
    Requested,
    /// There is nothing to cancel, and why.
    Nothing(String),
    /// No such mission is known.
    Unknown,
}

impl Engine {
    /// Cancels a mission: at once while it waits, by the robot's word once it was sent.
    ///
    /// # Errors
    /// Where the journal is closed, or behind and this cancel is no news. The robot is asked all the
    /// same.
    pub async fn cancel(&self, id: &MissionId, reason: &str) -> Result<Cancelled, JournalError> {
        let found = self.inner.index().by_mission_id(id.as_str());
        let mission = match found {
            None => return Ok(Cancelled::Unknown),
            Some(Found::Open(mission)) => mission,
            Some(Found::Ended { position, .. }) => {
                return self.inner.ended_already(position).await;
            }
        };
        if mission.command.action_type != ActionType::ExecuteAction {
            return Ok(Cancelled::Nothing(format!(
                "a {} cannot be cancelled",
                mission.command.action_type.as_str()
            )));
        }
        let Some(robot) = self.inner.robot(&mission.command.robot_id) else {
            return Ok(Cancelled::Unknown);
        };
        let (change, done, at) = self.inner.request_cancel(&robot, &mission, reason);
        let Some(done) = done else {
            return Err(JournalError::Behind);
        };
        match done.wait().await {
            Ok(()) => {}
            Err(error) => return Err(error.clone()),
        }
        // What could not be accepted is not kept: it cannot be said to be cancelled, and comes anew
        // if it is asked for again.
        if mission.number().is_none() {
            return Ok(Cancelled::Unknown);
        }
        Ok(match change {
            Change::Ended => Cancelled::Now(at),
            Change::Made => Cancelled::Requested,
            Change::None => match mission.durable() {
                Some(state) => {
                    Cancelled::Nothing(format!("mission {id} has ended {}", state.status))
                }
                None => Cancelled::Unknown,
            },
        })
    }
}

impl Inner {
    async fn ended_already(&self, position: u64) -> Result<Cancelled, JournalError> {
        let found = self.journal.reader().ended(position).await?;
        Ok(found.map_or(Cancelled::Unknown, |update| {
            Cancelled::Nothing(format!(
                "mission {} has ended {}",
                update.command.mission_id, update.state.status
            ))
        }))
    }

    fn request_cancel(
        self: &Arc<Self>,
        robot: &Arc<Robot>,
        mission: &Arc<Mission>,
        reason: &str,
    ) -> (Change, Option<Ticket>, SystemTime) {
        let now = self.world.clock.now();
        let at = stamp(now);
        let mut records = Vec::new();
        let (change, done) = {
            let mut state = robot.lock();
            let id = &mission.command.mission_id;
            let change = if state.may_have_it(id) {
                // Asked again, it is sent again.
                state.want_cancel(id, reason, &at, &mut records);
                Change::Made
            } else {
                let detail = reason_or(reason, "cancelled before it was sent");
                let word = Word {
                    detail: &detail,
                    observed_at: &at,
                    ..Word::default()
                };
                state.advance(id, MissionStatus::Cancelled, &word, &mut records)
            };
            // Also without a record: what was changed before it is then durable too. But such
            // appends must not pile up behind a disk that hangs.
            let done = (!records.is_empty() || !self.journal.is_congested()).then(|| {
                let done = Ticket::default();
                self.journal.append(Append {
                    records,
                    done: Some(done.clone()),
                    robot: None,
                });
                done
            });
            (change, done)
        };
        self.send_cancel(robot);
        robot.wake.notify_one();
        (change, done, now)
    }

    /// Sends the cancel that is wanted, if there is one and the robot can be reached.
    pub(super) fn send_cancel(self: &Arc<Self>, robot: &Arc<Robot>) {
        let Some(cancel) = robot.lock().take_cancel(Instant::now()) else {
            return;
        };
        let Some(adapter) = robot.spec().adapter.clone() else {
            return;
        };
        let (inner, robot) = (self.clone(), robot.clone());
        let id = cancel.command.mission_id.clone();
        self.spawn_now(async move {
            let result = adapter.cancel(Arc::new(cancel)).await;
            inner.cancel_sent(&robot, &id, result);
        });
    }

    fn cancel_sent(&self, robot: &Robot, id: &MissionId, result: Result<(), SignalError>) {
        let mut state = robot.lock();
        let mut records = Vec::new();
        let robot_state = &mut *state;
        let Some(active) = robot_state.active.as_mut().filter(|a| &a.id == id) else {
            return;
        };
        let again = active.cancel == (CancelPhase::Sending { again: true });
        match result {
            Ok(()) if again => active.cancel = CancelPhase::Wanted(None),
            Ok(()) => active.cancel = CancelPhase::Delivered(Some(Instant::now())),
            Err(SignalError::Unreachable { reason }) => {
                if robot_state.unanswered.is_due(Instant::now()) {
                    tracing::warn!(robot = %robot.id(), mission = %id, %reason, "cancel not delivered; it is sent again until it is");
                }
                active.cancel = CancelPhase::Wanted(Some(Instant::now() + RESEND));
            }
            Err(SignalError::Refused { reason }) => {
                active.cancel = CancelPhase::Delivered(None);
                let detail: Arc<str> = format!("the robot refused the cancel: {reason}").into();
                state.edit(id, &mut records, |s| s.detail = detail);
            }
        }
        if !records.is_empty() {
            self.journal.append(Append {
                records,
                ..Append::default()
            });
        }
        drop(state);
        robot.wake.notify_one();
    }
}

impl CancelPhase {
    /// Asked for (again): one is sent behind the one that is on its way.
    pub(super) fn asked(self) -> Self {
        match self {
            Self::Sending { .. } => Self::Sending { again: true },
            Self::Idle | Self::Wanted(_) | Self::Delivered(_) => Self::Wanted(None),
        }
    }
}

impl RobotState {
    /// The active mission is to be cancelled at the robot. Not sent yet, it ends here.
    pub(super) fn want_cancel(
        &mut self,
        id: &MissionId,
        reason: &str,
        at: &Arc<str>,
        records: &mut Vec<Record>,
    ) {
        if !self.may_have_it(id) {
            let word = Word {
                detail: &reason_or(reason, "cancelled before it was sent"),
                observed_at: at,
                ..Word::default()
            };
            self.advance(id, MissionStatus::Cancelled, &word, records);
            return;
        }
        let detail: Arc<str> = reason_or(reason, "cancel requested").into();
        self.edit(id, records, |state| {
            if !state.cancel_requested {
                state.cancel_requested = true;
                state.detail = detail;
            }
        });
        if let Some(active) = self.active.as_mut().filter(|a| &a.id == id) {
            active.cancel = active.cancel.asked();
        }
    }

    fn take_cancel(&mut self, now: Instant) -> Option<Cancel> {
        let due = self.cancel_due()?;
        if self.link.is_err() || due.is_some_and(|at| at > now) {
            return None;
        }
        let active = self.active.as_mut()?;
        let open = self.open.get(&active.id)?;
        active.cancel = CancelPhase::Sending { again: false };
        Some(Cancel {
            command: open.mission.command.clone(),
            reason: open.state.detail.to_string(),
        })
    }

    /// Whether a cancel is wanted, and not before when.
    pub(super) fn cancel_due(&self) -> Option<Option<Instant>> {
        match self.active.as_ref()?.cancel {
            CancelPhase::Wanted(at) => Some(at),
            _ => None,
        }
    }
}

fn reason_or(reason: &str, otherwise: &str) -> String {
    if reason.is_empty() {
        otherwise.to_owned()
    } else {
        format!("{otherwise}: {reason}")
    }
}

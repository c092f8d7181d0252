//! What only an operator may say.

use super::{
    Engine, Inner, Robot,
    index::Found,
    robot::{RobotState, stamp},
    transition::{Change, Word},
};
use crate::journal::{Append, JournalError, Mission, Record, Ticket};
use portarium_protocols::{
    ids::{MissionId, RobotId},
    mission::{CompletionMode, MissionStatus},
};
use std::sync::Arc;
use thiserror::Error;

/// Why an operator's word was not taken.
#[derive(Debug, Clone, Error)]
pub enum OperatorError {
    /// No such mission.
    #[error("mission {0} is not known")]
    UnknownMission(MissionId),
    /// No such robot.
    #[error("robot {0} is not configured")]
    UnknownRobot(RobotId),
    /// It does not fit the mission's state.
    #[error("{0}")]
    State(String),
    /// It was not made durable.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl Engine {
    /// The confirmation that lets a `ManualOnly` mission succeed. Durable when it returns.
    ///
    /// # Errors
    /// Where the mission is not one, has not begun, has ended, or is of unknown outcome.
    pub async fn confirm(&self, id: &MissionId, note: &str) -> Result<(), OperatorError> {
        let (robot, mission) = self.inner.open_mission(id)?;
        if mission.command.completion_mode != CompletionMode::ManualOnly {
            return Err(OperatorError::State(format!(
                "mission {id} is not ManualOnly"
            )));
        }
        let detail = with_note("confirmed by an operator", note);
        self.inner
            .say(&robot, |state, at, records| {
                let open = state.open.get(id).ok_or_else(|| has_ended(id))?;
                let status = open.state.status;
                let begun = matches!(
                    status,
                    MissionStatus::Executing | MissionStatus::WaitingPreemption
                );
                if open.state.outcome_unknown || !begun {
                    return Err(OperatorError::State(format!(
                        "mission {id} is {status}{}; only one that the robot has begun can be confirmed",
                        if open.state.outcome_unknown { " and of unknown outcome" } else { "" }
                    )));
                }
                let word = Word { detail: &detail, observed_at: at, ..Word::default() };
                state.advance(id, MissionStatus::Succeeded, &word, records);
                Ok(())
            })
            .await
    }

    /// An operator's word on a mission of unknown outcome, or on a stop, which may wait for ever for a
    /// robot that never returns, and would keep it in the configuration. Durable when it returns.
    ///
    /// # Errors
    /// Where the outcome is not unknown, or `as_status` is no end.
    pub async fn resolve(
        &self,
        id: &MissionId,
        as_status: MissionStatus,
        note: &str,
    ) -> Result<(), OperatorError> {
        if !as_status.is_terminal() {
            return Err(OperatorError::State(format!(
                "{as_status} is no end; Succeeded, Failed or Cancelled is expected"
            )));
        }
        let (robot, _) = self.inner.open_mission(id)?;
        let detail = with_note("resolved by an operator", note);
        self.inner
            .say(&robot, |state, at, records| {
                let open = state.open.get(id).ok_or_else(|| has_ended(id))?;
                let is_stop = open.mission.command.action_type.is_stop();
                if !open.state.outcome_unknown && !is_stop {
                    return Err(OperatorError::State(format!(
                        "mission {id} is {} and its outcome is not unknown",
                        open.state.status
                    )));
                }
                let word = Word {
                    detail: &detail,
                    observed_at: at,
                    ..Word::default()
                };
                match state.advance(id, as_status, &word, records) {
                    Change::None => Err(has_ended(id)),
                    Change::Made | Change::Ended => Ok(()),
                }
            })
            .await
    }

    /// Keeps new missions from a robot. Durable when it returns, in force at once.
    ///
    /// # Errors
    /// Where the robot is not configured, or is held already and the journal is behind.
    pub async fn hold(&self, id: &RobotId, reason: &str) -> Result<(), OperatorError> {
        let reason = if reason.is_empty() {
            "no reason given"
        } else {
            reason
        };
        let robot = self.inner.known_robot(id)?;
        let done = {
            let mut state = robot.lock();
            state.stays(id)?;
            if state.hold.is_some() {
                self.inner.keeps_up()?;
            }
            state.hold = Some(reason.to_owned());
            state.holds += 1;
            self.inner.write_row(&mut state, &robot)
        };
        done.wait().await.clone()?;
        Ok(())
    }

    /// Ends an operator's hold and the latch of an emergency stop request: durable first, then
    /// in force.
    ///
    /// # Errors
    /// Where the robot is not configured, a stop has not reached it yet, or the journal is behind.
    pub async fn release(&self, id: &RobotId) -> Result<(), OperatorError> {
        self.inner.keeps_up()?;
        let robot = self.inner.known_robot(id)?;
        let (done, before) = {
            let mut state = robot.lock();
            state.stays(id)?;
            if state.stop.is_pending() {
                return Err(OperatorError::State(format!(
                    "a stop has not reached robot {id} yet; release it when it has"
                )));
            }
            let mut row = state.next_row(id);
            row.latched = false;
            row.hold = None;
            let done = Ticket::default();
            let append = Append {
                records: Vec::new(),
                robot: Some(row),
                done: Some(done.clone()),
            };
            self.inner.journal.append(append);
            (done, (state.stop.requested, state.holds))
        };
        done.wait().await.clone()?;
        let stays = {
            let mut state = robot.lock();
            state.stays(id)?;
            if (state.stop.requested, state.holds) == before {
                state.latched = false;
                state.hold = None;
                // A row that was written meanwhile has both still.
                state.row_behind = true;
                None
            } else {
                // The row that was written says otherwise: not even a crash may make that true.
                let stays = Ticket::default();
                self.inner.journal.append(Append {
                    records: Vec::new(),
                    robot: Some(state.next_row(id)),
                    done: Some(stays.clone()),
                });
                Some(stays)
            }
        };
        if let Some(stays) = stays {
            stays.wait().await.clone()?;
            return Err(OperatorError::State(format!(
                "robot {id} was stopped or held again in the same moment; it stays as it is"
            )));
        }
        robot.wake.notify_one();
        Ok(())
    }
}

impl Inner {
    /// What can wait is not taken while the journal is behind: it would pile up.
    fn keeps_up(&self) -> Result<(), JournalError> {
        match self.journal.is_congested() {
            false => Ok(()),
            true => Err(JournalError::Behind),
        }
    }

    fn known_robot(&self, id: &RobotId) -> Result<Arc<Robot>, OperatorError> {
        self.robot(id)
            .ok_or_else(|| OperatorError::UnknownRobot(id.clone()))
    }

    fn open_mission(&self, id: &MissionId) -> Result<(Arc<Robot>, Arc<Mission>), OperatorError> {
        match self.index().by_mission_id(id.as_str()) {
            None => Err(OperatorError::UnknownMission(id.clone())),
            Some(Found::Ended { .. }) => Err(has_ended(id)),
            Some(Found::Open(mission)) => {
                let robot = self.known_robot(&mission.command.robot_id)?;
                Ok((robot, mission))
            }
        }
    }

    /// Changes a robot's state and waits until that is durable.
    async fn say(
        &self,
        robot: &Robot,
        change: impl FnOnce(&mut RobotState, &Arc<str>, &mut Vec<Record>) -> Result<(), OperatorError>,
    ) -> Result<(), OperatorError> {
        self.keeps_up()?;
        let at = stamp(self.world.clock.now());
        let done = Ticket::default();
        {
            let mut state = robot.lock();
            let mut records = Vec::new();
            change(&mut state, &at, &mut records)?;
            self.journal.append(Append {
                records,
                robot: None,
                done: Some(done.clone()),
            });
        }
        robot.wake.notify_one();
        done.wait().await.clone()?;
        Ok(())
    }

    fn write_row(&self, state: &mut RobotState, robot: &Robot) -> Ticket {
        let done = Ticket::default();
        let row = Some(state.next_row(robot.id()));
        self.journal.append(Append {
            records: Vec::new(),
            robot: row,
            done: Some(done.clone()),
        });
        done
    }
}

impl RobotState {
    fn stays(&self, id: &RobotId) -> Result<(), OperatorError> {
        match self.retired {
            false => Ok(()),
            true => Err(OperatorError::State(format!(
                "robot {id} was configured anew in the same moment; try again"
            ))),
        }
    }
}

fn has_ended(id: &MissionId) -> OperatorError {
    OperatorError::State(format!("mission {id} has ended already"))
}

fn with_note(what: &str, note: &str) -> String {
    if note.is_empty() {
        what.to_owned()
    } else {
        format!("{what}: {note}")
    }
}

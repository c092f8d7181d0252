//! What is written: missions, their states, and the robots' rows.

use super::JournalError;
use portarium_protocols::{
    ids::RobotId,
    mission::{Command, MissionStatus},
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};
use tokio::sync::SetOnce;

/// Whether the command has left, as far as the journal can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// Not a byte was sent, for certain.
    NotSent,
    /// It may have been sent: the attempt is durable before its first byte.
    Open,
}

/// A mission's state at one moment. Each change is one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissionState {
    /// Where it is.
    pub status: MissionStatus,
    /// Whether it may have been sent.
    pub attempt: Attempt,
    /// The robot itself has said something of it.
    pub heard: bool,
    /// Whether the robot got or carried it out is not known, and nothing can tell.
    pub outcome_unknown: bool,
    /// Somebody asked for its end.
    pub cancel_requested: bool,
    /// The robot reported success of a `ManualOnly` mission.
    pub awaiting_confirmation: bool,
    /// The robot's name for the execution.
    pub action_execution_id: Arc<str>,
    /// When the robot saw it (RFC 3339), or we did.
    pub observed_at: Arc<str>,
    /// For people.
    pub detail: Arc<str>,
}

impl MissionState {
    /// Just accepted.
    pub fn pending(observed_at: Arc<str>) -> Self {
        Self {
            status: MissionStatus::Pending,
            attempt: Attempt::NotSent,
            heard: false,
            outcome_unknown: false,
            cancel_requested: false,
            awaiting_confirmation: false,
            action_execution_id: Arc::from(""),
            observed_at,
            detail: Arc::from(""),
        }
    }
}

/// An accepted mission. Its state as committed is read here, by whoever answers questions; the
/// state as worked on belongs to the engine.
#[derive(Debug)]
pub struct Mission {
    /// What was asked, by whom it is to be done.
    pub command: Arc<Command>,
    /// The caller without its pod; scopes the keys.
    pub caller: Arc<str>,
    /// When it was accepted, by the wall clock.
    pub accepted_at: SystemTime,
    number: SetOnce<Result<u64, JournalError>>,
    durable: Mutex<Option<MissionState>>,
}

impl Mission {
    /// A mission that is about to be appended.
    pub fn new(command: Arc<Command>, caller: Arc<str>, accepted_at: SystemTime) -> Self {
        Self {
            command,
            caller,
            accepted_at,
            number: SetOnce::new(),
            durable: Mutex::new(None),
        }
    }

    /// A mission that the journal holds.
    pub(super) fn loaded(
        number: u64,
        command: Arc<Command>,
        caller: Arc<str>,
        accepted_at: SystemTime,
        state: MissionState,
    ) -> Self {
        Self {
            command,
            caller,
            accepted_at,
            number: SetOnce::new_with(Some(Ok(number))),
            durable: Mutex::new(Some(state)),
        }
    }

    /// The plan key and the idempotency key by which it is known. None on stops: a stop is sent
    /// as often as it is asked for, and one that carries the keys of the mission that it is to
    /// stop must not take them.
    pub fn keys(&self) -> (&str, &str) {
        let command = &self.command;
        match command.action_type.is_stop() {
            true => ("", ""),
            false => (
                &command.plan_effect_idempotency_key,
                &command.idempotency_key,
            ),
        }
    }

    /// Waits until the acceptance is durable or has failed.
    ///
    /// # Errors
    /// As the commit's.
    pub async fn accepted(&self) -> Result<u64, JournalError> {
        self.number.wait().await.clone()
    }

    /// The mission's number, once the acceptance is durable.
    pub fn number(&self) -> Option<u64> {
        self.number.get().and_then(|n| n.as_ref().ok().copied())
    }

    /// The last committed state; `None` while the acceptance is not durable.
    pub fn durable(&self) -> Option<MissionState> {
        self.durable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn has_failed(&self) -> bool {
        matches!(self.number.get(), Some(Err(_)))
    }

    pub(super) fn set_number(&self, number: Result<u64, JournalError>) {
        // An error means it is set already, which happens when a writer fails what was retried.
        let _ = self.number.set(number);
    }

    pub(super) fn set_durable(&self, state: MissionState) {
        *self.durable.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
    }
}

/// One row to come.
#[derive(Debug)]
pub enum Record {
    /// A mission and its first state.
    Accepted(Arc<Mission>, MissionState),
    /// A later state of an accepted mission.
    Changed(Arc<Mission>, MissionState),
}

impl Record {
    pub(super) fn mission(&self) -> &Arc<Mission> {
        match self {
            Self::Accepted(mission, _) | Self::Changed(mission, _) => mission,
        }
    }
}

/// What is kept of a robot. Rewritten in place; there are few.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RobotRow {
    /// The robot.
    pub robot_id: RobotId,
    /// The position up to which everything not sent is cancelled; 0: never stopped. It only
    /// grows: `None` in a row to be written is the position of this very append.
    pub fence: Option<u64>,
    /// `robot:estop_request` holds until an operator releases the robot.
    pub latched: bool,
    /// An operator's hold and its reason.
    pub hold: Option<String>,
    /// The stop that the robot has not answered: it may not have got it yet.
    pub stop: Option<Arc<Command>>,
}

/// Set once the append is on disk or has failed; any number of tasks may wait for it.
pub type Ticket = Arc<SetOnce<Result<(), JournalError>>>;

/// Records that are committed together or not at all.
#[derive(Debug, Default)]
pub struct Append {
    /// In order.
    pub records: Vec<Record>,
    /// The robot's new row, if it changed.
    pub robot: Option<RobotRow>,
    /// Hears of the commit. An append without an acceptance is retried until it is committed.
    pub done: Option<Ticket>,
}

impl Append {
    /// Whether it may fail: a caller waits and is told. Anything else already happened and is
    /// retried until it is on disk.
    pub(super) fn may_fail(&self) -> bool {
        self.robot.is_none()
            && self
                .records
                .iter()
                .any(|r| matches!(r, Record::Accepted(..)))
    }

    /// The missions accepted by it.
    pub(super) fn accepted(&self) -> impl Iterator<Item = &Arc<Mission>> {
        self.records.iter().filter_map(|record| match record {
            Record::Accepted(mission, _) => Some(mission),
            Record::Changed(..) => None,
        })
    }

    pub(super) fn fail(self, error: &JournalError) {
        self.accepted()
            .for_each(|mission| mission.set_number(Err(error.clone())));
        if let Some(done) = self.done {
            let _ = done.set(Err(error.clone()));
        }
    }
}

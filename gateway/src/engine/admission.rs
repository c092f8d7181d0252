//! Accepting missions: what was known before, what stands against it, and the durable yes.

use super::{
    Engine, Inner, Robot, RobotSpec,
    index::Found,
    journal_refusal,
    robot::{Active, CancelPhase, Commit, Obstacle, Phase, RobotState, stamp},
    transition::Word,
};
use crate::journal::{Append, Attempt, Mission, MissionState, Record};
use portarium_protocols::{
    ids::{MissionId, RobotId},
    mission::{ActionType, Command, MissionStatus},
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

/// A mission that is durable here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dispatched {
    /// The gateway's own name for the acceptance.
    pub request_id: String,
    /// When it was accepted.
    pub at: SystemTime,
    /// The same was acknowledged before; nothing new is executed.
    pub repeated: bool,
}

/// Why a mission was not accepted; nothing of it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// `InvalidMission`
    Invalid(String),
    /// `UnsupportedAction`
    Unsupported(String),
    /// `InvalidState`
    State(String),
    /// `DuplicateRequest`
    Duplicate(String),
    /// `DISPATCH_STATUS_GATEWAY_UNREACHABLE`
    Unreachable {
        /// For people.
        message: String,
        /// When to try again.
        retry_after: Duration,
    },
}

/// What the index says of a request.
enum Known {
    New,
    Same(Found),
    Other(String),
}

impl Engine {
    /// Accepts a `robot:execute_action` or `robot:cancel_action`. When this returns
    /// [`Dispatched`], the mission is durable. Dropping the future changes nothing: what was
    /// begun goes on.
    ///
    /// # Errors
    /// As [`Refusal`] has them; nothing is kept then.
    pub async fn dispatch(
        &self,
        caller: Arc<str>,
        command: Command,
    ) -> Result<Dispatched, Refusal> {
        let inner = &self.inner;
        let command = Arc::new(command);
        let mission = match inner.admit(caller, &command)? {
            Admitted::New(mission, robot) => {
                if mission.command.action_type == ActionType::CancelAction {
                    inner.send_cancel(&robot);
                }
                robot.wake.notify_one();
                mission
            }
            Admitted::Known(found) => return inner.repeated(found, &command).await,
        };
        inner.dispatched(&mission, false).await
    }
}

enum Admitted {
    New(Arc<Mission>, Arc<Robot>),
    Known(Found),
}

impl Inner {
    pub(super) fn configured(&self, id: &RobotId) -> Result<Arc<Robot>, Refusal> {
        self.robot(id).ok_or_else(|| not_configured(id))
    }

    fn admit(&self, caller: Arc<str>, command: &Arc<Command>) -> Result<Admitted, Refusal> {
        let mut index = self.index();
        // Whoever has the index has the robot that is there: they are exchanged under it.
        let robot = self.configured(&command.robot_id)?;
        match known(&index, &caller, command) {
            Known::New => {}
            Known::Same(found) => return Ok(Admitted::Known(found)),
            Known::Other(reason) => return Err(Refusal::Duplicate(reason)),
        }
        let mut state = robot.lock();
        if let Some(refusal) = self.takes_none() {
            if command.action_type == ActionType::CancelAction {
                // What keeps the record out does not keep the cancel from the robot.
                self.cancel_active(&mut state, command, &stamp(self.world.clock.now()));
                robot.wake.notify_one();
            }
            return Err(refusal);
        }
        let mission = match command.action_type {
            ActionType::CancelAction => self.admit_cancel(&robot, &mut state, caller, command)?,
            _ => self.admit_mission(&robot, &mut state, caller, command)?,
        };
        drop(state);
        index.insert(&mission);
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(Admitted::New(mission, robot))
    }

    /// Why no mission at all is accepted now.
    fn takes_none(&self) -> Option<Refusal> {
        if self.draining.is_cancelled() {
            return Some(unreachable("the gateway is shutting down", 5));
        }
        if self.journal.is_congested() {
            return Some(unreachable("the journal is behind", 1));
        }
        let open = self.open.load(Ordering::Relaxed);
        (open >= self.world.limits.open_missions)
            .then(|| unreachable("the gateway has as many open missions as it takes", 1))
    }

    fn admit_mission(
        &self,
        robot: &Robot,
        state: &mut RobotState,
        caller: Arc<str>,
        command: &Arc<Command>,
    ) -> Result<Arc<Mission>, Refusal> {
        let spec = robot.spec();
        if robot.is_stray() {
            return Err(not_configured(robot.id()));
        }
        if !spec.actions.contains(&command.action_name) {
            return Err(unsupported(&spec, &command.action_name));
        }
        if let Some(obstacle) = state.obstacle(spec.queue) {
            return Err(obstacle.refuse(robot));
        }
        let now = self.world.clock.now();
        let mission = Arc::new(Mission::new(command.clone(), caller, now));
        let pending = MissionState::pending(stamp(now));
        let mut records = vec![Record::Accepted(mission.clone(), pending.clone())];
        state
            .observer
            .entered(state.adapter_name, None, MissionStatus::Pending);
        state.insert(
            mission.clone(),
            pending,
            Instant::now() + spec.deliver_within,
        );
        let id = command.mission_id.clone();
        if state.queue.is_empty() && state.may_send() {
            // The commit of the acceptance carries the attempt.
            state.begin_attempt(&id, Commit::Acceptance, &mut records);
        } else {
            state.queue.push_back(id);
        }
        self.journal.append(Append {
            records,
            ..Append::default()
        });
        Ok(mission)
    }

    /// `robot:cancel_action`: never queued. The cancel of what the robot has goes out at once;
    /// this mission ends when that one does.
    fn admit_cancel(
        &self,
        robot: &Robot,
        state: &mut RobotState,
        caller: Arc<str>,
        command: &Arc<Command>,
    ) -> Result<Arc<Mission>, Refusal> {
        let now = self.world.clock.now();
        let at = stamp(now);
        let Some(target) = self.cancel_active(state, command, &at) else {
            return Err(Refusal::State(format!(
                "robot {} has no mission to cancel",
                robot.id()
            )));
        };
        let mission = Arc::new(Mission::new(command.clone(), caller, now));
        let pending = MissionState::pending(at.clone());
        let mut records = vec![Record::Accepted(mission.clone(), pending.clone())];
        state
            .observer
            .entered(state.adapter_name, None, MissionStatus::Pending);
        state.insert(mission.clone(), pending, Instant::now());
        let (status, detail) = match state.open.contains_key(&target) {
            true => (
                MissionStatus::Dispatched,
                format!("cancels mission {target}"),
            ),
            false => (
                MissionStatus::Succeeded,
                format!("mission {target} ended Cancelled"),
            ),
        };
        let word = Word {
            detail: &detail,
            observed_at: &at,
            ..Word::default()
        };
        state.advance(&command.mission_id, status, &word, &mut records);
        self.journal.append(Append {
            records,
            ..Append::default()
        });
        Ok(mission)
    }

    /// Asks for the end of what the robot has, and says what that is. In an append of its own,
    /// which is kept until it is on disk: the cancel goes out, whether the mission that asks for it
    /// can be accepted or not.
    fn cancel_active(
        &self,
        state: &mut RobotState,
        command: &Command,
        at: &Arc<str>,
    ) -> Option<MissionId> {
        let target = state.active.as_ref().map(|active| active.id.clone())?;
        let mut records = Vec::new();
        let reason = format!("robot:cancel_action {}", command.mission_id);
        state.want_cancel(&target, &reason, at, &mut records);
        if !records.is_empty() {
            self.journal.append(Append {
                records,
                ..Append::default()
            });
        }
        Some(target)
    }

    async fn dispatched(&self, mission: &Mission, repeated: bool) -> Result<Dispatched, Refusal> {
        match mission.accepted().await {
            Ok(number) => Ok(Dispatched {
                request_id: self.journal.request_id(number),
                at: mission.accepted_at,
                repeated,
            }),
            Err(error) => Err(journal_refusal(&error)),
        }
    }

    /// The answer to what was asked before: the first one's, if it is the same.
    async fn repeated(&self, found: Found, command: &Command) -> Result<Dispatched, Refusal> {
        let other = || {
            Refusal::Duplicate(
                "plan_effect_idempotency_key was acknowledged for a mission of other content"
                    .into(),
            )
        };
        match found {
            Found::Open(mission) if same_content(&mission.command, command) => {
                self.dispatched(&mission, true).await
            }
            Found::Open(_) => Err(other()),
            Found::Ended { number, .. } => {
                let found = self.journal.reader().mission(number).await;
                match found.map_err(|e| journal_refusal(&e))? {
                    Some((known, at)) if same_content(&known, command) => Ok(Dispatched {
                        request_id: self.journal.request_id(number),
                        at,
                        repeated: true,
                    }),
                    Some(_) => Err(other()),
                    // Retention took it between the two looks.
                    None => Err(unreachable("the mission's record was just removed", 1)),
                }
            }
        }
    }
}

impl RobotState {
    /// Marks the attempt, which is to be durable before anything is sent.
    pub(super) fn begin_attempt(
        &mut self,
        id: &MissionId,
        commit: Commit,
        records: &mut Vec<Record>,
    ) {
        let Some(open) = self.open.get_mut(id) else {
            return;
        };
        open.state.attempt = Attempt::Open;
        let word_by = open.deliver_by;
        if open.state.status == MissionStatus::Pending {
            self.advance(id, MissionStatus::Dispatched, &Word::default(), records);
        } else {
            records.push(Record::Changed(open.mission.clone(), open.state.clone()));
        }
        let phase = Phase::Committing(commit);
        self.active = Some(Active::new(id.clone(), phase, CancelPhase::Idle, word_by));
    }
}

fn known(index: &super::index::Index, caller: &str, command: &Command) -> Known {
    if let Some(found) = index.by_plan_key(caller, &command.plan_effect_idempotency_key) {
        return Known::Same(found);
    }
    if index.by_mission_id(command.mission_id.as_str()).is_some() {
        return Known::Other(format!(
            "mission_id: mission {} is known under another plan_effect_idempotency_key",
            command.mission_id
        ));
    }
    if index
        .by_idempotency_key(caller, &command.idempotency_key)
        .is_some()
    {
        return Known::Other(
            "idempotency_key: it is known under another plan_effect_idempotency_key".into(),
        );
    }
    Known::New
}

/// Whether two requests ask for the same: `requested_at` and `correlation_id` do not count.
fn same_content(known: &Command, asked: &Command) -> bool {
    let Command {
        correlation_id,
        requested_at,
        ..
    } = known;
    let asked = Command {
        correlation_id: correlation_id.clone(),
        requested_at: requested_at.clone(),
        ..asked.clone()
    };
    *known == asked
}

impl Obstacle {
    fn refuse(self, robot: &Robot) -> Refusal {
        let id = robot.id();
        match self {
            Self::Latched => Refusal::State(format!(
                "robot {id} is latched by an emergency stop request; an operator has to release it"
            )),
            Self::Held(reason) => {
                Refusal::State(format!("robot {id} is held by an operator: {reason}"))
            }
            Self::Unknown(mission) => Refusal::State(format!(
                "robot {id} is held: the outcome of mission {mission} is unknown; it ends by the robot's word or by `mission resolve`"
            )),
            Self::Manual(mission) => Refusal::State(format!(
                "robot {id} takes no other mission until an operator has ended mission {mission} (ManualOnly)"
            )),
            Self::Busy => Refusal::State(format!("robot {id} is busy")),
            Self::Full(limit) => {
                unreachable(&format!("{limit} missions wait for robot {id} already"), 2)
            }
            Self::Unreachable(reason) => {
                unreachable(&format!("robot {id} is out of reach: {reason}"), 5)
            }
            Self::Unreconciled => unreachable(
                &format!("robot {id} is being asked what became of its missions"),
                1,
            ),
        }
    }
}

fn not_configured(id: &RobotId) -> Refusal {
    Refusal::Invalid(format!("robot_id: robot {id} is not configured"))
}

fn unreachable(message: &str, retry_after_seconds: u64) -> Refusal {
    Refusal::Unreachable {
        message: message.into(),
        retry_after: Duration::from_secs(retry_after_seconds),
    }
}

fn unsupported(spec: &RobotSpec, action: &str) -> Refusal {
    let known: Vec<&str> = spec.actions.iter().map(String::as_str).collect();
    Refusal::Unsupported(format!(
        "action_name: robot {} does not take {action:?}; it takes {}",
        spec.id,
        known.join(", ")
    ))
}

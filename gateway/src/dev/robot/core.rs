//! The robot itself: what it executes, remembers and says.

use super::{
    Behaviour, RobotConfig, WhenBusy,
    execution_log::{ExecutionLog, LogEvent, rfc3339},
    memory::{Motion, State},
    reports::{Reports, RobotReport},
};
use portarium_protocols::{
    ids::{MissionId, RobotId},
    mission::{ActionType, MissionStatus},
};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::{sync::watch, time::Instant};

/// So many missions wait at a robot that queues.
const QUEUED: usize = 16;
/// So many reports are kept while the robot is gone.
const HELD: usize = 1_000;

/// What arrives at a robot.
#[derive(Debug, Clone)]
pub struct Order {
    /// The mission, or the stop's own id.
    pub mission: MissionId,
    /// What is asked.
    pub action_type: ActionType,
    /// Empty on stops.
    pub idempotency_key: String,
    /// How long it is to take, where it says so.
    pub duration: Option<Duration>,
    /// When it is stale.
    pub expires: Option<Instant>,
}

/// What a robot answers to an order at once, where the protocol has an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It says nothing.
    Silence,
    /// It will do it, or did it before.
    Accepted,
    /// It will not.
    Refused(String),
    /// It stops.
    Stops {
        /// It stands still already.
        stationary: bool,
    },
}

/// A simulated robot. Cheap to clone; all clones are one robot. Its methods need a tokio runtime.
#[derive(Clone)]
pub struct SimulatedRobot(Arc<Inner>);

struct Inner {
    config: RobotConfig,
    log: ExecutionLog,
    reports: Reports,
    present: watch::Sender<bool>,
    state: Mutex<State>,
}

impl SimulatedRobot {
    /// A robot that behaves normally, standing still.
    pub(super) fn new(config: RobotConfig, reports: Reports, log: ExecutionLog) -> Self {
        let duration = config.duration;
        Self(Arc::new(Inner {
            config,
            log,
            reports,
            present: watch::Sender::new(true),
            state: Mutex::new(State::new(duration)),
        }))
    }

    /// Its name.
    pub fn id(&self) -> &RobotId {
        &self.0.config.id
    }

    /// What it really did.
    pub fn log(&self) -> &ExecutionLog {
        &self.0.log
    }

    /// What it said, together with the robots of the same connection.
    pub fn reports(&self) -> &Reports {
        &self.0.reports
    }

    /// How it behaves with what arrives from now on.
    pub fn set_behaviour(&self, behaviour: Behaviour) {
        self.state().behaviour = behaviour;
    }

    /// How long missions take from now on that do not say so themselves.
    pub fn set_duration(&self, duration: Duration) {
        self.state().duration = duration;
    }

    /// It drops its connection and neither hears nor says anything until it returns. What it is
    /// at goes on.
    pub fn vanish(&self) {
        self.0.present.send_replace(false);
    }

    /// It is back, and says what it has to say.
    pub fn come_back(&self) {
        let mut state = self.state();
        self.0.present.send_replace(true);
        for report in state.held.drain(..) {
            self.0.reports.push(report);
        }
    }

    /// Whether it is there.
    pub fn presence(&self) -> watch::Receiver<bool> {
        self.0.present.subscribe()
    }

    /// It loses its memory of missions and keys, as by a restart: what it is at ends, unreported.
    pub fn forget(&self) {
        let mut state = self.state();
        state.forget();
        if let Some(motion) = state.motion.take() {
            self.record_end(&motion, None);
        }
    }

    /// Whether it is moving.
    pub fn is_moving(&self) -> bool {
        self.state().motion.is_some()
    }

    /// Its last word on a mission; `None` if it does not know it.
    pub fn status(&self, mission: &MissionId) -> Option<RobotReport> {
        self.state()
            .missions
            .get(mission)
            .map(|known| known.last.clone())
    }

    /// Whether it answers at all.
    pub(super) fn talks(&self) -> bool {
        *self.0.present.borrow() && self.state().behaviour != Behaviour::NeverAnswer
    }

    /// An order arrives.
    pub fn order(&self, order: Order) -> Answer {
        let mut state = self.state();
        if !*self.0.present.borrow() {
            return Answer::Silence;
        }
        let answer = match order.action_type {
            ActionType::Stop | ActionType::EstopRequest => self.stop(&mut state, order),
            ActionType::CancelAction => self.cancel_action(&mut state, order),
            ActionType::ExecuteAction => self.execute(&mut state, order),
        };
        if state.behaviour == Behaviour::NeverAnswer {
            return Answer::Silence;
        }
        answer
    }

    /// A cancel arrives. Whether the robot knows the mission; it then reports on it.
    pub fn cancel(&self, mission: &MissionId) -> bool {
        let mut state = self.state();
        if !*self.0.present.borrow() {
            return false;
        }
        self.0
            .log
            .add(LogEvent::Cancel, self.id(), mission, None, None);
        let waits = |order: &Order| order.mission == *mission;
        if let Some(at) = state.waiting.iter().position(waits) {
            state.waiting.remove(at);
            self.say(
                &mut state,
                mission,
                MissionStatus::Cancelled,
                "cancelled before it began",
            );
        } else if state
            .motion
            .as_ref()
            .is_some_and(|motion| motion.mission == *mission)
        {
            self.halt(&mut state, None);
        } else if state.missions.contains_key(mission) {
            self.say_again(&mut state, mission);
        } else {
            return false;
        }
        true
    }

    fn execute(&self, state: &mut State, order: Order) -> Answer {
        if self.0.config.idempotent {
            let of_key = state.keys.get(&order.idempotency_key).cloned();
            if of_key
                .as_ref()
                .is_some_and(|mission| *mission != order.mission)
            {
                return self.refuse(state, order, "its idempotency key is another mission's");
            }
            if of_key.is_some() || state.missions.contains_key(&order.mission) {
                self.say_again(state, &order.mission);
                return Answer::Accepted;
            }
        }
        if state.behaviour == Behaviour::Refuse {
            return self.refuse(state, order, "it is told to refuse");
        }
        if order.expires.is_some_and(|at| at <= Instant::now()) {
            return self.refuse(state, order, "it is stale");
        }
        let Some(motion) = &state.motion else {
            state.remember(self.id(), &order);
            self.say(state, &order.mission, MissionStatus::Dispatched, "");
            self.begin(state, order);
            return Answer::Accepted;
        };
        if motion.mission == order.mission && motion.stopping_for.is_none() {
            // Not idempotent: the same mission again, from its beginning.
            let motion = state.motion.take();
            if let Some(motion) = motion {
                self.record_end(&motion, None);
            }
            self.begin(state, order);
            return Answer::Accepted;
        }
        if self.0.config.when_busy == WhenBusy::Refuse || state.waiting.len() >= QUEUED {
            return self.refuse(state, order, "it is busy");
        }
        state.remember(self.id(), &order);
        self.say(state, &order.mission, MissionStatus::Dispatched, "it waits");
        state.waiting.push_back(order);
        Answer::Accepted
    }

    fn refuse(&self, state: &mut State, order: Order, why: &str) -> Answer {
        state.remember(self.id(), &order);
        self.say(
            state,
            &order.mission,
            MissionStatus::Failed,
            &format!("refused: {why}"),
        );
        Answer::Refused(why.into())
    }

    fn begin(&self, state: &mut State, order: Order) {
        state.executions += 1;
        let number = state.executions;
        let mut duration = order.duration.unwrap_or(state.duration);
        if state.behaviour == Behaviour::Slow {
            duration *= 10;
        }
        let motion = Motion {
            number,
            mission: order.mission,
            key: order.idempotency_key,
            execution: format!("{}-{number}", self.id()),
            behaviour: state.behaviour,
            stopping_for: None,
        };
        let execution = Some((&*motion.key, &*motion.execution));
        self.0.log.add(
            LogEvent::MotionStart,
            self.id(),
            &motion.mission,
            execution,
            None,
        );
        let mission = motion.mission.clone();
        if let Some(known) = state.missions.get_mut(&mission) {
            known.last.action_execution_id.clone_from(&motion.execution);
        }
        state.motion = Some(motion);
        self.say(state, &mission, MissionStatus::Executing, "");
        if duration.is_zero() {
            self.finish(state, number);
            return;
        }
        let robot = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(duration).await;
            robot.finish(&mut robot.state(), number);
        });
    }

    /// The motion of this number has come to its own end, unless something else ended it.
    fn finish(&self, state: &mut State, number: u64) {
        let ended = |motion: &mut Motion| motion.number == number && motion.stopping_for.is_none();
        let Some(motion) = state.motion.take_if(ended) else {
            return;
        };
        let (outcome, why) = match motion.behaviour {
            Behaviour::Fail => (MissionStatus::Failed, "it is told to fail"),
            _ => (MissionStatus::Succeeded, ""),
        };
        self.record_end(&motion, Some(outcome));
        self.say(state, &motion.mission, outcome, why);
        self.begin_next(state);
    }

    fn begin_next(&self, state: &mut State) {
        while state.motion.is_none() {
            let Some(order) = state.waiting.pop_front() else {
                return;
            };
            if order.expires.is_some_and(|at| at <= Instant::now()) {
                self.say(
                    state,
                    &order.mission,
                    MissionStatus::Failed,
                    "refused: it is stale",
                );
            } else {
                self.begin(state, order);
            }
        }
    }

    fn stop(&self, state: &mut State, order: Order) -> Answer {
        self.0
            .log
            .add(LogEvent::Stop, self.id(), &order.mission, None, None);
        for waiting in std::mem::take(&mut state.waiting) {
            self.say(
                state,
                &waiting.mission,
                MissionStatus::Cancelled,
                "the robot was stopped",
            );
        }
        let stationary = self.halt_for(state, &order);
        Answer::Stops { stationary }
    }

    fn cancel_action(&self, state: &mut State, order: Order) -> Answer {
        if let Some(motion) = &state.motion {
            self.0
                .log
                .add(LogEvent::Cancel, self.id(), &motion.mission, None, None);
        }
        self.halt_for(state, &order);
        Answer::Accepted
    }

    /// Halts, and reports so on the order's own mission. Whether it stands still already.
    fn halt_for(&self, state: &mut State, order: &Order) -> bool {
        let repeat = state.missions.contains_key(&order.mission);
        state.remember(self.id(), order);
        let stationary = state.motion.is_none();
        if !(stationary && repeat) {
            self.say(state, &order.mission, MissionStatus::Executing, "");
        }
        if stationary {
            self.say(state, &order.mission, MissionStatus::Succeeded, "");
        } else {
            self.halt(state, Some(order.mission.clone()));
        }
        stationary
    }

    /// Decelerates; the motion then ends cancelled. Halting twice takes no longer.
    fn halt(&self, state: &mut State, on_behalf_of: Option<MissionId>) {
        let Some(motion) = &mut state.motion else {
            return;
        };
        let already = motion.stopping_for.is_some();
        let waiting = motion.stopping_for.get_or_insert_default();
        waiting.extend(on_behalf_of.filter(|id| !waiting.contains(id)));
        if already {
            return;
        }
        let (robot, number) = (self.clone(), motion.number);
        let deceleration = self.0.config.deceleration;
        tokio::spawn(async move {
            tokio::time::sleep(deceleration).await;
            robot.stand_still(&mut robot.state(), number);
        });
    }

    fn stand_still(&self, state: &mut State, number: u64) {
        let stops = |motion: &mut Motion| motion.number == number;
        let Some(motion) = state.motion.take_if(stops) else {
            return;
        };
        self.record_end(&motion, Some(MissionStatus::Cancelled));
        self.say(state, &motion.mission, MissionStatus::Cancelled, "");
        for stop in motion.stopping_for.into_iter().flatten() {
            self.say(state, &stop, MissionStatus::Succeeded, "");
        }
        self.begin_next(state);
    }

    fn record_end(&self, motion: &Motion, outcome: Option<MissionStatus>) {
        let execution = Some((&*motion.key, &*motion.execution));
        self.0.log.add(
            LogEvent::MotionEnd,
            self.id(),
            &motion.mission,
            execution,
            outcome,
        );
    }

    fn say(&self, state: &mut State, mission: &MissionId, status: MissionStatus, detail: &str) {
        if let Some(known) = state.missions.get_mut(mission) {
            known.last.status = status;
            known.last.observed_at = rfc3339(SystemTime::now());
            detail.clone_into(&mut known.last.detail);
            self.say_again(state, mission);
        }
    }

    /// Repeats the last word on a mission.
    fn say_again(&self, state: &mut State, mission: &MissionId) {
        let times = match state.behaviour {
            Behaviour::NeverAnswer => 0,
            Behaviour::AnswerTwice => 2,
            _ => 1,
        };
        let Some(known) = state.missions.get(mission) else {
            return;
        };
        for _ in 0..times {
            let report = known.last.clone();
            if *self.0.present.borrow() {
                self.0.reports.push(report);
            } else {
                if state.held.len() == HELD {
                    state.held.pop_front();
                }
                state.held.push_back(report);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

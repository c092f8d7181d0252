//! Stops: a fence, and a lane of their own.

use super::{
    Engine, Inner, Refusal, Robot,
    cancel::RESEND,
    robot::{OPEN_STOPS, RobotState, stamp},
    transition::Word,
};
use crate::journal::{Append, Attempt, Mission, MissionState, Record, Ticket};
use futures::FutureExt as _;
use portarium_protocols::{
    adapter::{SignalError, StopAnswer},
    ids::MissionId,
    mission::{ActionType, Command, MissionStatus},
};
use std::{future::Future, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};

/// The longest that an answer waits for the fence and for the robot's first word.
const PATIENCE: Duration = Duration::from_millis(20);

/// What is known of a stop when its answer is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// The gateway's own name for it; empty where it is not on disk yet.
    pub request_id: String,
    /// What the robot has said; `Err`: that it does not stop, and why.
    pub answer: Result<StopAnswer, String>,
    /// What waited is cancelled also after a crash.
    pub fence_durable: bool,
    /// The robot cannot be reached; the stop is kept for its return.
    pub robot_unreachable: bool,
}

impl Engine {
    /// Stops a robot. Waits for nothing but, for at most 20 ms, the fence and the robot's word.
    /// Dropping the future changes nothing: what was begun goes on.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] where the robot is not configured.
    pub async fn stop(&self, caller: Arc<str>, command: Command) -> Result<Stopped, Refusal> {
        let asked = Instant::now();
        let deadline = asked + PATIENCE;
        let inner = &self.inner;
        let command = Arc::new(command);
        let (robot, fenced) = loop {
            let robot = inner.configured(&command.robot_id)?;
            if let Some(fenced) = inner.fence(&robot, caller.clone(), &command) {
                break (robot, fenced);
            }
            // It is being exchanged by whoever has the index: the next look finds the new one.
            drop(inner.index());
        };
        let Fenced {
            number,
            mission,
            durable: fence,
        } = fenced;
        inner.send_stop(&robot);
        inner.world.observer.stop_sent(asked.elapsed());
        inner.send_cancel(&robot);
        robot.wake.notify_one();

        let fence_durable = matches!(timeout_at(deadline, fence.wait()).await, Ok(Ok(())));
        let answer = inner.answer(&robot, number, deadline).await;
        let request_id = mission
            .filter(|_| fence_durable)
            .and_then(|mission| mission.number())
            .map(|number| inner.journal.request_id(number))
            .unwrap_or_default();
        let robot_unreachable = answer.is_none() && robot.lock().stop_waits_for_return();
        Ok(Stopped {
            request_id,
            answer: answer.unwrap_or(Ok(StopAnswer::Requested)),
            fence_durable,
            robot_unreachable,
        })
    }
}

/// What a stop has set up.
struct Fenced {
    /// Which request of the robot's it is.
    number: u64,
    /// By which its outcome is followed.
    mission: Option<Arc<Mission>>,
    /// When the fence is on disk.
    durable: Ticket,
}

impl Inner {
    /// Cancels what waits, asks for the end of what was sent, and puts the stop on the lane, in
    /// one step that nothing of this robot can come between. `None`: the robot is no longer the one
    /// of its name.
    fn fence(&self, robot: &Robot, caller: Arc<str>, command: &Arc<Command>) -> Option<Fenced> {
        let at = stamp(self.world.clock.now());
        let new = self.follow_stop(caller, command);
        let mut records = Vec::new();
        let mut state = robot.lock();
        if state.retired {
            drop(state);
            if let Some(mission) = new {
                self.index().remove(&mission);
            }
            return None;
        }
        let latches = command.action_type == ActionType::EstopRequest && !state.latched;
        state.latched |= latches;
        state.cancel_all(command, &at, &mut records);
        state.stop.put(command, new.is_none());
        let number = state.stop.requested;
        let mission = match new {
            Some(mission) => {
                state.supersede(&mut records, &at);
                let pending = MissionState::pending(at);
                records.push(Record::Accepted(mission.clone(), pending.clone()));
                state
                    .observer
                    .entered(state.adapter_name, None, MissionStatus::Pending);
                state.insert(mission.clone(), pending, Instant::now());
                Some(mission)
            }
            // A repeat is sent again and followed under the same name.
            None => state
                .open
                .get_mut(&command.mission_id)
                .filter(|open| open.mission.command.action_type.is_stop())
                .map(|open| {
                    open.stop_number = number;
                    open.mission.clone()
                }),
        };
        // Behind a disk that hangs, a fence that has nothing new to say is the one before it.
        let nothing_new =
            records.is_empty() && !latches && !state.row_after_fence && self.journal.is_congested();
        let durable = match state.fence_pending.clone().filter(|_| nothing_new) {
            Some(pending) if pending.get().is_none() => {
                // The row on its way may name another stop.
                state.row_behind = true;
                pending
            }
            _ => self.append_fence(robot, &mut state, records),
        };
        Some(Fenced {
            number,
            mission,
            durable,
        })
    }

    fn append_fence(&self, robot: &Robot, state: &mut RobotState, records: Vec<Record>) -> Ticket {
        let durable = Ticket::default();
        let mut row = state.next_row(robot.id());
        // The position of this very append.
        row.fence = None;
        state.row_after_fence = false;
        state.fence_pending = Some(durable.clone());
        self.journal.append(Append {
            records,
            robot: Some(row),
            done: Some(durable.clone()),
        });
        durable
    }

    /// The stop's own mission, by which its outcome is followed. Nothing of the stop depends on
    /// it: an id that is taken or a journal that is behind costs only the record.
    fn follow_stop(&self, caller: Arc<str>, command: &Arc<Command>) -> Option<Arc<Mission>> {
        if self.journal.is_congested() {
            return None;
        }
        let mission = Arc::new(Mission::new(
            command.clone(),
            caller,
            self.world.clock.now(),
        ));
        let mut index = self.index();
        if index.by_mission_id(command.mission_id.as_str()).is_some() {
            return None;
        }
        index.insert(&mission);
        Some(mission)
    }

    /// Sends the stop that is next, unless one is under way: that one's end sends it.
    pub(super) fn send_stop(self: &Arc<Self>, robot: &Arc<Robot>) {
        let (command, number) = {
            let mut guard = robot.lock();
            let state = &mut *guard;
            let Some(command) = state.stop.take(Instant::now()) else {
                return;
            };
            let number = state.stop.requested;
            // The robot's word on this one is its word on all that were asked for so far.
            if let Some(open) = state.open.get_mut(&command.mission_id) {
                open.stop_number = number;
            }
            (command, number)
        };
        let Some(adapter) = robot.spec().adapter.clone() else {
            let gone = SignalError::Unreachable {
                reason: "it is not configured".into(),
            };
            return self.stop_answered(robot, &command, number, Err(gone));
        };
        let (inner, robot) = (self.clone(), robot.clone());
        self.spawn_now(async move {
            let result = adapter.stop(command.clone()).await;
            inner.stop_answered(&robot, &command, number, result);
        });
    }

    fn stop_answered(
        self: &Arc<Self>,
        robot: &Arc<Robot>,
        command: &Arc<Command>,
        number: u64,
        result: Result<StopAnswer, SignalError>,
    ) {
        let at = stamp(self.world.clock.now());
        let mut records = Vec::new();
        {
            let mut state = robot.lock();
            state.stop.under_way = None;
            if result.is_ok() {
                state.stop.undelivered.end();
            }
            match result {
                Ok(answer) => {
                    match answer {
                        StopAnswer::Requested => state.stop.handed_over(command, number),
                        StopAnswer::Accepted | StopAnswer::Stationary => {
                            state.stop.heard(number);
                        }
                    }
                    // A report may have come before the answer, and say more.
                    if state.stop.answered.0 < number || answer != StopAnswer::Requested {
                        state.stop.answered = (number, Some(Ok(answer)));
                    }
                    state.stopped(number, answer, &at, &mut records);
                }
                Err(SignalError::Unreachable { reason }) => {
                    if state.stop.undelivered.is_due(Instant::now()) {
                        tracing::warn!(robot = %robot.id(), stop = %command.mission_id, %reason, "stop not delivered; it is kept and tried again until the robot has it");
                    }
                    state.stop.failed(command, number);
                    state.stop.retry_at = Some(Instant::now() + RESEND);
                }
                Err(SignalError::Refused { reason }) => {
                    tracing::error!(robot = %robot.id(), stop = %command.mission_id, %reason, "the robot refused a stop");
                    state.stop.heard(number);
                    state.stop_refused(number, &reason, &at, &mut records);
                    state.stop.answered = (number, Some(Err(reason)));
                }
            }
            state.row_behind |= state.stop.unanswered().is_none();
            if !records.is_empty() {
                self.journal.append(Append {
                    records,
                    ..Append::default()
                });
            }
        }
        robot.stop_word.notify_waiters();
        self.send_stop(robot);
        robot.wake.notify_one();
    }

    /// The robot's answer to this request or a later one, if it comes in time.
    async fn answer(
        &self,
        robot: &Robot,
        number: u64,
        deadline: Instant,
    ) -> Option<Result<StopAnswer, String>> {
        loop {
            let word = robot.stop_word.notified();
            let (covered, answer) = robot.lock().stop.answered.clone();
            if covered >= number {
                return answer;
            }
            timeout_at(deadline, word).await.ok()?;
        }
    }

    /// Polls a future once right here, so that what it sends is on its way before this returns,
    /// and leaves the rest to a task, which ends with the engine.
    pub(super) fn spawn_now(&self, future: impl Future<Output = ()> + Send + 'static) {
        let mut future = Box::pin(future);
        if future.as_mut().now_or_never().is_none() {
            let closing = self.closing.clone();
            self.tasks.spawn(async move {
                closing.run_until_cancelled(future).await;
            });
        }
    }
}

impl RobotState {
    fn cancel_all(&mut self, stop: &Command, at: &Arc<str>, records: &mut Vec<Record>) {
        let reason = format!("{} {}", stop.action_type.as_str(), stop.mission_id);
        let detail = format!("cancelled before it was sent: {reason}");
        let word = Word {
            detail: &detail,
            observed_at: at,
            ..Word::default()
        };
        for id in std::mem::take(&mut self.queue) {
            self.advance(&id, MissionStatus::Cancelled, &word, records);
        }
        if let Some(id) = self.active.as_ref().map(|a| a.id.clone()) {
            self.want_cancel(&id, &reason, at, records);
        }
    }

    /// Keeps the number of stops that are followed within its bound.
    fn supersede(&mut self, records: &mut Vec<Record>, at: &Arc<str>) {
        let mut stops: Vec<(u64, MissionId)> = self.open_stops(u64::MAX);
        // The robot's word comes under the name that it was or is to be sent.
        let named = self.stop.pending();
        stops.retain(|(_, id)| named.as_ref().is_none_or(|stop| &stop.mission_id != id));
        stops.sort();
        while stops.len() >= OPEN_STOPS {
            let (_, oldest) = stops.remove(0);
            let word = Word {
                detail: "superseded by later stops of this robot",
                observed_at: at,
                ..Word::default()
            };
            self.advance(&oldest, MissionStatus::Cancelled, &word, records);
        }
    }

    /// The followed stops up to a request, in no order.
    fn open_stops(&self, up_to: u64) -> Vec<(u64, MissionId)> {
        self.open
            .iter()
            .filter(|(_, o)| o.mission.command.action_type.is_stop() && o.stop_number <= up_to)
            .map(|(id, o)| (o.stop_number, id.clone()))
            .collect()
    }

    /// A stop got through: so far did all that were asked for before it.
    pub(super) fn stopped(
        &mut self,
        number: u64,
        answer: StopAnswer,
        at: &Arc<str>,
        records: &mut Vec<Record>,
    ) {
        let (status, heard) = match answer {
            StopAnswer::Requested => (MissionStatus::Dispatched, false),
            StopAnswer::Accepted => (MissionStatus::Executing, true),
            StopAnswer::Stationary => (MissionStatus::Succeeded, true),
        };
        let word = Word {
            observed_at: at,
            heard,
            ..Word::default()
        };
        for (_, id) in self.open_stops(number) {
            if let Some(open) = self.open.get_mut(&id) {
                open.state.attempt = Attempt::Open;
                open.deliver_by = Instant::now();
            }
            self.advance(&id, status, &word, records);
        }
    }

    fn stop_refused(
        &mut self,
        number: u64,
        reason: &str,
        at: &Arc<str>,
        records: &mut Vec<Record>,
    ) {
        let detail = format!("the robot refused the stop: {reason}");
        let word = Word {
            detail: &detail,
            observed_at: at,
            heard: true,
            ..Word::default()
        };
        for (_, id) in self.open_stops(number) {
            self.advance(&id, MissionStatus::Failed, &word, records);
        }
    }
}

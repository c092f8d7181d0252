//! One task per robot: hands missions over one at a time, and minds the clock.

use super::{
    Inner, Robot, RobotSpec,
    robot::{CancelPhase, Commit, Phase, RobotState, stamp},
    transition::Word,
};
use crate::journal::{Append, Attempt, Journal, JournalError, Record, Ticket};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use portarium_protocols::{
    adapter::{Adapter, DispatchError, Handover, Reconciled, SignalError},
    ids::MissionId,
    mission::{Command, MissionStatus},
};
use std::{future, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep_until};

/// The pause before a mission that could not be sent, or a question that got no answer, is tried
/// again, where the link's return does not say so earlier.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// How often the pause before a mission that could not be sent is doubled: each attempt is two rows
/// in the journal.
const DOUBLED: u32 = 3;

/// What a robot's driver waits for.
pub(super) enum Done {
    Attempt(MissionId, Result<(), JournalError>),
    Dispatched(MissionId, Result<Handover, DispatchError>),
    Reconciled(MissionId, Result<Reconciled, SignalError>),
    /// And how many words were heard of it before.
    Looked(MissionId, u64, Result<Reconciled, SignalError>),
    Fence,
    /// No copy of a stop is on its way, up to that one.
    Landed(u64),
}

pub(super) type Calls = FuturesUnordered<BoxFuture<'static, Done>>;

impl Inner {
    /// Starts the robot's task.
    pub(super) fn drive(self: &Arc<Self>, robot: &Arc<Robot>) {
        let (inner, robot) = (self.clone(), robot.clone());
        self.tasks.spawn(async move { inner.run(robot).await });
    }

    async fn run(self: Arc<Self>, robot: Arc<Robot>) {
        let mut calls = Calls::new();
        // Never empty, so that the select below is never done with it.
        calls.push(future::pending().boxed());
        loop {
            if self.is_gone(&robot) {
                return;
            }
            let next = self.step(&robot, &calls);
            tokio::select! {
                biased;
                () = self.closing.cancelled() => return,
                Some(done) = calls.next() => self.done(&robot, &calls, done),
                () = robot.wake.notified() => {}
                () = sleep_until(next) => {}
            }
        }
    }

    /// Whether another one has taken its place, or none.
    fn is_gone(&self, robot: &Arc<Robot>) -> bool {
        let current = self.robot(robot.id());
        robot.lock().retired && current.is_none_or(|current| !Arc::ptr_eq(&current, robot))
    }

    /// Does what is due and says when the clock matters again.
    fn step(self: &Arc<Self>, robot: &Arc<Robot>, calls: &Calls) -> Instant {
        self.send_stop(robot);
        self.send_cancel(robot);
        let now = Instant::now();
        let at = stamp(self.world.clock.now());
        let spec = robot.spec();
        let mut records = Vec::new();
        let mut state = robot.lock();
        state.retry_at = state.retry_at.filter(|at| *at > now);
        state.await_fence(calls);
        state.await_landing(&spec, calls);
        state.expire(now, &spec, &at, &mut records);
        let behind = state.row_behind && !self.journal.is_congested();
        if !records.is_empty() || behind {
            self.journal.append(Append {
                records,
                robot: behind.then(|| state.next_row(robot.id())),
                done: None,
            });
        }
        state.ask(&spec, calls);
        state.look(now, &spec, calls);
        if !self.draining.is_cancelled() {
            state.next_attempt(&self.journal);
        }
        state.await_attempt(calls);
        state.next_moment(now, &spec)
    }

    fn done(&self, robot: &Robot, calls: &Calls, done: Done) {
        let at = stamp(self.world.clock.now());
        let spec = robot.spec();
        let mut records = Vec::new();
        let mut state = robot.lock();
        match done {
            Done::Fence => state.fence_awaited = false,
            Done::Landed(up_to) => state.stop.have_landed(up_to),
            Done::Attempt(id, Ok(())) => state.attempt(&id, &spec, &at, &mut records, calls),
            // The mission was not accepted and is gone already.
            Done::Attempt(_, Err(_)) => {}
            Done::Dispatched(id, result) => state.handed_over(&id, result, &at, &mut records),
            Done::Reconciled(id, answer) => {
                state.answered(&id, answer, &spec, &at, &mut records, calls);
            }
            Done::Looked(id, words, answer) => {
                state.looked(&id, words, answer, &at, &mut records);
            }
        }
        if !records.is_empty() {
            self.journal.append(Append {
                records,
                ..Append::default()
            });
        }
    }
}

impl RobotState {
    fn await_fence(&mut self, calls: &Calls) {
        let Some(ticket) = self.fence_pending.clone() else {
            return;
        };
        if ticket.get().is_some() {
            self.fence_pending = None;
        } else if !std::mem::replace(&mut self.fence_awaited, true) {
            calls.push(
                async move {
                    ticket.wait().await;
                    Done::Fence
                }
                .boxed(),
            );
        }
    }

    /// A stop is delivered with the first of its copies. The next mission waits for the last one.
    fn await_landing(&mut self, spec: &RobotSpec, calls: &Calls) {
        let Some(adapter) = spec.adapter.clone() else {
            return;
        };
        let Some(up_to) = self.stop.await_landing() else {
            return;
        };
        let robot = spec.id.clone();
        let mut landing = async move {
            adapter.stops_landed(&robot).await;
            Done::Landed(up_to)
        }
        .boxed();
        match (&mut landing).now_or_never() {
            Some(_) => self.stop.have_landed(up_to),
            None => calls.push(landing),
        }
    }

    /// Begins the attempt of what waits longest, if nothing stands against it.
    fn next_attempt(&mut self, journal: &Journal) {
        if !self.may_send() {
            return;
        }
        let Some(id) = self.queue.pop_front() else {
            return;
        };
        let (mut records, ticket) = (Vec::new(), Ticket::default());
        self.begin_attempt(&id, Commit::Own(ticket.clone()), &mut records);
        journal.append(Append {
            records,
            done: Some(ticket),
            robot: None,
        });
    }

    fn await_attempt(&mut self, calls: &Calls) {
        let Some(active) = &mut self.active else {
            return;
        };
        let Phase::Committing(commit) = &mut active.phase else {
            return;
        };
        let id = active.id.clone();
        match std::mem::replace(commit, Commit::Awaited) {
            Commit::Awaited => {}
            Commit::Acceptance => {
                let Some(open) = self.open.get(&id) else {
                    return;
                };
                let mission = open.mission.clone();
                calls.push(
                    async move { Done::Attempt(id, mission.accepted().await.map(drop)) }.boxed(),
                );
            }
            Commit::Own(ticket) => {
                calls.push(async move { Done::Attempt(id, ticket.wait().await.clone()) }.boxed());
            }
        }
    }

    /// The attempt is durable: the last look before the first byte.
    fn attempt(
        &mut self,
        id: &MissionId,
        spec: &RobotSpec,
        at: &Arc<str>,
        records: &mut Vec<Record>,
        calls: &Calls,
    ) {
        let Some(active) = self.active.as_ref().filter(|a| &a.id == id) else {
            return;
        };
        // A robot that reports on it has it already: an earlier attempt got through after all.
        if !matches!(active.phase, Phase::Committing(_)) {
            return;
        }
        let Some(open) = self.open.get(id) else {
            return;
        };
        // The commit may have taken its time: what is stale by now goes back and expires.
        let free = self.link.is_ok()
            && self.reconciled
            && !self.latched
            && self.hold.is_none()
            && self.fence_pending.is_none()
            && self.stop.is_over()
            && open.deliver_by > Instant::now();
        if free {
            self.send(id, spec, calls);
        } else {
            self.not_sent(id, "", at, records);
        }
    }

    fn send(&mut self, id: &MissionId, spec: &RobotSpec, calls: &Calls) {
        let (Some(open), Some(active)) = (self.open.get_mut(id), &mut self.active) else {
            return;
        };
        let Some(adapter) = spec.adapter.clone() else {
            return;
        };
        let expires_in = open.deliver_by.saturating_duration_since(Instant::now());
        active.phase = Phase::Sending { again: false };
        open.offered = true;
        self.dispatching = true;
        self.row_behind |= self.stop.overtaken();
        active.word_by = open.deliver_by;
        calls.push(dispatch(
            adapter,
            id.clone(),
            open.mission.command.clone(),
            expires_in,
        ));
    }

    fn handed_over(
        &mut self,
        id: &MissionId,
        result: Result<Handover, DispatchError>,
        at: &Arc<str>,
        records: &mut Vec<Record>,
    ) {
        self.dispatching = false;
        let Some(active) = self.active.as_mut().filter(|a| &a.id == id) else {
            return;
        };
        let Some(open) = self.open.get_mut(id) else {
            return;
        };
        match active.phase {
            Phase::Sending { again: false } => {}
            Phase::Sending { again: true } => return self.repeated(id, result, at, records),
            _ => return,
        }
        active.phase = Phase::Sent;
        if result.is_ok() {
            (self.retry_at, self.unsent) = (None, 0);
        }
        match result {
            Ok(Handover::Sent) => {}
            // Not a row of its own: the next one carries it, and after a crash the robot is asked.
            Ok(Handover::Accepted) => open.state.heard = true,
            // The robot's reports came before the answer, and say more.
            Err(_) if open.state.heard => {}
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
            Err(DispatchError::Unreachable { reason }) => self.not_sent(id, &reason, at, records),
            Err(DispatchError::Unknown { reason }) => {
                tracing::warn!(mission = %id, %reason, "whether the robot got the mission is unknown; it is asked");
                active.phase = Phase::Lost;
                self.reconciled = false;
            }
        }
    }

    /// Nothing of it was sent, for certain: it waits again, in front, or is over if somebody
    /// wanted that.
    fn not_sent(&mut self, id: &MissionId, reason: &str, at: &Arc<str>, records: &mut Vec<Record>) {
        let (Some(active), Some(open)) = (&self.active, self.open.get(id)) else {
            return;
        };
        if active.cancel != CancelPhase::Idle || open.state.cancel_requested {
            let word = Word {
                detail: "cancelled before it was sent",
                observed_at: at,
                ..Word::default()
            };
            self.advance(id, MissionStatus::Cancelled, &word, records);
            return;
        }
        self.active = None;
        self.queue.push_front(id.clone());
        let detail: Option<Arc<str>> =
            (!reason.is_empty()).then(|| format!("not sent yet: {reason}").into());
        if detail.is_some() {
            self.retry_at = Some(Instant::now() + RETRY * 2_u32.pow(self.unsent));
            self.unsent = DOUBLED.min(self.unsent + 1);
        }
        self.edit(id, records, |state| {
            state.attempt = Attempt::NotSent;
            if let Some(detail) = detail {
                state.detail = detail;
            }
        });
    }

    pub(super) fn unknown_outcome(
        &mut self,
        id: &MissionId,
        detail: &str,
        at: &Arc<str>,
        records: &mut Vec<Record>,
    ) {
        if self
            .open
            .get(id)
            .is_none_or(|open| open.state.outcome_unknown)
        {
            return;
        }
        tracing::warn!(mission = %id, detail, "outcome unknown: its robot is held until it reports or an operator resolves the mission");
        self.edit(id, records, |state| {
            state.outcome_unknown = true;
            state.detail = Arc::from(detail);
            state.observed_at = at.clone();
        });
    }
}

/// Hands a mission to its adapter, here and now: the first poll puts it in line on the robot's
/// connection while the robot's lock is held. A stop or a cancel that takes the lock next finds it
/// handed over and goes behind it; polled later, the mission could go behind both copies of the
/// stop, and move a robot that was to stand.
pub(super) fn dispatch(
    adapter: Arc<dyn Adapter>,
    id: MissionId,
    command: Arc<Command>,
    expires_in: Duration,
) -> BoxFuture<'static, Done> {
    let mut call = async move {
        let result = adapter.dispatch(command, expires_in).await;
        Done::Dispatched(id, result)
    }
    .boxed();
    match (&mut call).now_or_never() {
        Some(done) => future::ready(done).boxed(),
        None => call,
    }
}

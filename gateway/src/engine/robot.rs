//! One robot: what it is at, what waits for it, and what keeps missions from it.

use super::{
    EngineObserver, RobotSpec,
    lane::{Complaint, StopLane},
    transition::rfc3339,
    words::Words,
};
use crate::journal::{Attempt, Mission, MissionState, RobotRow, Ticket};
use arc_swap::ArcSwap;
use portarium_protocols::{
    ids::{MissionId, RobotId},
    mission::{ActionType, CompletionMode, MissionStatus},
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};
use tokio::{sync::Notify, time::Instant};

/// Stops of one robot that are followed to their ends; an older one is ended as superseded.
pub(super) const OPEN_STOPS: usize = 16;

/// A robot, as the engine has it.
pub struct Robot {
    id: RobotId,
    spec: ArcSwap<RobotSpec>,
    state: Mutex<RobotState>,
    /// Wakes the robot's driver.
    pub(super) wake: Notify,
    /// Wakes who waits for the robot's answer to a stop.
    pub(super) stop_word: Notify,
}

/// Why no new mission is accepted for a robot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Obstacle {
    Latched,
    Held(String),
    Unknown(MissionId),
    Manual(MissionId),
    Unreachable(String),
    Unreconciled,
    Busy,
    Full(usize),
}

pub(super) struct RobotState {
    /// Another one has taken its place, or none.
    pub(super) retired: bool,
    pub(super) observer: Arc<dyn EngineObserver>,
    pub(super) adapter_name: &'static str,
    /// `Err`: why it cannot be reached.
    pub(super) link: Result<(), String>,
    /// Fence, open missions and what the robot says of them are known.
    pub(super) reconciled: bool,
    pub(super) reconciling: bool,
    pub(super) latched: bool,
    pub(super) hold: Option<String>,
    /// Grows with each hold: a release that finds another one than it began with is void.
    pub(super) holds: u64,
    /// The position of the last fence; what was accepted before is cancelled.
    pub(super) fence: u64,
    /// The last fence, while it is not on disk; those before it are when it is. Until then no
    /// mission is sent.
    pub(super) fence_pending: Option<Ticket>,
    pub(super) fence_awaited: bool,
    /// The robot's row was written after that fence, and may say otherwise.
    pub(super) row_after_fence: bool,
    /// The adapter is at a dispatch; it is never given two at once, although a robot's word may
    /// end a mission before its hand-over has returned.
    pub(super) dispatching: bool,
    /// The robot's row on the disk names a stop that is not to be sent any more.
    pub(super) row_behind: bool,
    /// After a failed hand-over or question: not tried again before then.
    pub(super) retry_at: Option<Instant>,
    /// How often in a row a mission could not be sent, as far as that counts.
    pub(super) unsent: u32,
    /// Its missions stay in the dark, or a cancel does not get through.
    pub(super) unanswered: Complaint,
    /// All that has not ended, stops included.
    pub(super) open: BTreeMap<MissionId, Open>,
    /// What waits, in the order of acceptance.
    pub(super) queue: VecDeque<MissionId>,
    /// What the robot has, or is being handed.
    pub(super) active: Option<Active>,
    pub(super) stop: StopLane,
    /// What it may still say of its missions.
    pub(super) words: Words,
    pub(super) wordy: Complaint,
    /// Others speak of its missions.
    pub(super) strangers: Complaint,
}

/// A mission that has not ended.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) mission: Arc<Mission>,
    /// As worked on; what is durable is the mission's.
    pub(super) state: MissionState,
    pub(super) deliver_by: Instant,
    /// An adapter was given it, as far as is known: the robot may have it, whatever was said.
    pub(super) offered: bool,
    /// For stops: the order of their requests.
    pub(super) stop_number: u64,
}

/// What the robot has.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) id: MissionId,
    pub(super) phase: Phase,
    pub(super) cancel: CancelPhase,
    /// Until when its first word is awaited. Within `deliver_within` of the acceptance; a gateway
    /// that was away could not hear it, and gives the robot as long again.
    pub(super) word_by: Instant,
    /// What was heard of it since, and since when there is nothing.
    pub(super) words: u64,
    pub(super) silent_since: Instant,
}

impl Active {
    pub(super) fn new(id: MissionId, phase: Phase, cancel: CancelPhase, word_by: Instant) -> Self {
        Self {
            id,
            phase,
            cancel,
            word_by,
            words: 0,
            silent_since: Instant::now(),
        }
    }
}

/// How far the hand-over is.
#[derive(Debug, Clone)]
pub(super) enum Phase {
    /// The attempt is on its way to the disk; nothing was sent.
    Committing(Commit),
    /// The adapter has it. `again`: an earlier try may have got through.
    Sending { again: bool },
    /// It was handed over.
    Sent,
    /// Whether it was handed over is not known: the robot is asked.
    Lost,
}

/// Which commit makes the attempt durable.
#[derive(Debug, Clone)]
pub(super) enum Commit {
    /// That of the acceptance.
    Acceptance,
    /// One of its own.
    Own(Ticket),
    /// The driver waits for it already.
    Awaited,
}

/// How far a cancel of the active mission is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CancelPhase {
    Idle,
    /// Asked for, to be sent (again, not before then).
    Wanted(Option<Instant>),
    /// On its way; `again`: and asked for once more meanwhile.
    Sending {
        again: bool,
    },
    /// And since when the mission's end is due; `None`: the robot refused.
    Delivered(Option<Instant>),
}

impl Robot {
    pub(super) fn new(spec: RobotSpec, state: RobotState) -> Self {
        Self {
            id: spec.id.clone(),
            spec: ArcSwap::from_pointee(spec),
            state: Mutex::new(state),
            wake: Notify::new(),
            stop_word: Notify::new(),
        }
    }

    /// Its id.
    pub fn id(&self) -> &RobotId {
        &self.id
    }

    /// What the configuration says of it.
    pub fn spec(&self) -> Arc<RobotSpec> {
        self.spec.load_full()
    }

    /// It has open missions and is not configured.
    pub(super) fn is_stray(&self) -> bool {
        self.spec.load().adapter.is_none()
    }

    pub(super) fn replace_spec(&self, spec: RobotSpec) {
        self.spec.store(Arc::new(spec));
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, RobotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RobotState {
    pub(super) fn new(observer: Arc<dyn EngineObserver>, adapter_name: &'static str) -> Self {
        Self {
            retired: false,
            observer,
            adapter_name,
            link: Err("not connected yet".into()),
            reconciled: false,
            reconciling: false,
            latched: false,
            hold: None,
            holds: 0,
            fence: 0,
            fence_pending: None,
            fence_awaited: false,
            row_after_fence: false,
            dispatching: false,
            row_behind: false,
            retry_at: None,
            unsent: 0,
            unanswered: Complaint::default(),
            open: BTreeMap::new(),
            queue: VecDeque::new(),
            active: None,
            stop: StopLane::default(),
            words: Words::default(),
            wordy: Complaint::default(),
            strangers: Complaint::default(),
        }
    }

    /// What stands against accepting another mission, the gravest first.
    pub(super) fn obstacle(&self, queue_limit: usize) -> Option<Obstacle> {
        if self.latched {
            return Some(Obstacle::Latched);
        }
        if let Some(reason) = &self.hold {
            return Some(Obstacle::Held(reason.clone()));
        }
        if let Some(id) = self.unknown() {
            return Some(Obstacle::Unknown(id.clone()));
        }
        if let Some((id, _)) = self.open.iter().find(|(_, o)| {
            o.mission.command.action_type == ActionType::ExecuteAction
                && o.mission.command.completion_mode == CompletionMode::ManualOnly
        }) {
            return Some(Obstacle::Manual(id.clone()));
        }
        if let Err(reason) = &self.link {
            return Some(Obstacle::Unreachable(reason.clone()));
        }
        if !self.reconciled {
            return Some(Obstacle::Unreconciled);
        }
        let idle = self.active.is_none() && self.queue.is_empty();
        if !idle && queue_limit == 0 {
            return Some(Obstacle::Busy);
        }
        (!idle && self.queue.len() >= queue_limit).then_some(Obstacle::Full(queue_limit))
    }

    /// Whether the next mission may be sent now.
    pub(super) fn may_send(&self) -> bool {
        self.active.is_none()
            && !self.dispatching
            && self.link.is_ok()
            && self.reconciled
            && !self.latched
            && self.hold.is_none()
            && self.fence_pending.is_none()
            && self.stop.is_over()
            && self.retry_at.is_none()
            && self.unknown().is_none()
    }

    /// A stop is kept because the robot cannot be reached; not one that is merely under way, or
    /// behind one that is.
    pub(super) fn stop_waits_for_return(&self) -> bool {
        let failed = self.stop.next.is_some() && self.stop.retry_at.is_some();
        failed || self.link.is_err()
    }

    /// A mission of unknown outcome, which holds the robot. Stops do not.
    pub(super) fn unknown(&self) -> Option<&MissionId> {
        self.open
            .iter()
            .find(|(_, o)| o.state.outcome_unknown && !o.mission.command.action_type.is_stop())
            .map(|(id, _)| id)
    }

    pub(super) fn is_handing_over(&self) -> bool {
        self.stop.under_way.is_some()
            || self.dispatching
            || self.active.as_ref().is_some_and(|a| {
                matches!(a.phase, Phase::Committing(_) | Phase::Sending { .. })
                    || matches!(a.cancel, CancelPhase::Sending { .. })
            })
    }

    /// The row as it is now, to be written.
    pub(super) fn next_row(&mut self, id: &RobotId) -> RobotRow {
        self.row_behind = false;
        self.row_after_fence = true;
        self.row(id)
    }

    /// The row as it is now.
    pub(super) fn row(&self, id: &RobotId) -> RobotRow {
        RobotRow {
            robot_id: id.clone(),
            fence: Some(self.fence),
            latched: self.latched,
            hold: self.hold.clone(),
            stop: self.stop.unanswered(),
        }
    }

    /// Takes a mission in, without telling the journal.
    pub(super) fn insert(
        &mut self,
        mission: Arc<Mission>,
        state: MissionState,
        deliver_by: Instant,
    ) {
        let stop_number = self.stop.requested;
        let id = mission.command.mission_id.clone();
        let offered = state.status != MissionStatus::Pending;
        self.open.insert(
            id,
            Open {
                mission,
                state,
                deliver_by,
                offered,
                stop_number,
            },
        );
    }

    /// A mission whose acceptance could not be committed.
    pub(super) fn forget(&mut self, mission: &Arc<Mission>) {
        let id = &mission.command.mission_id;
        let known = self.open.get(id);
        if known.is_some_and(|open| !Arc::ptr_eq(&open.mission, mission)) {
            return;
        }
        if let Some(open) = self.open.remove(id) {
            self.observer
                .forgotten(self.adapter_name, open.state.status);
        }
        self.queue.retain(|queued| queued != id);
        if self.active.as_ref().is_some_and(|a| &a.id == id) {
            self.active = None;
        }
    }

    /// Whether a command of this mission may be with the robot.
    pub(super) fn may_have_it(&self, id: &MissionId) -> bool {
        let attempted = self
            .open
            .get(id)
            .is_some_and(|o| o.state.attempt == Attempt::Open);
        let unsent = self
            .active
            .as_ref()
            .is_some_and(|a| &a.id == id && matches!(a.phase, Phase::Committing(_)));
        attempted && !unsent
    }
}

/// RFC 3339 of a moment, shared by the rows it goes into.
pub(super) fn stamp(now: SystemTime) -> Arc<str> {
    Arc::from(rfc3339(now))
}

//! What a robot keeps in mind.

use super::{Behaviour, Order, RobotReport};
use portarium_protocols::{
    ids::{MissionId, RobotId},
    mission::MissionStatus,
};
use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

/// So many missions are remembered; the oldest are forgotten.
const REMEMBERED: usize = 10_000;

pub(super) struct State {
    pub(super) behaviour: Behaviour,
    pub(super) duration: Duration,
    /// The last word on each mission.
    pub(super) missions: HashMap<MissionId, Known>,
    /// Their order, for forgetting the oldest.
    order: VecDeque<MissionId>,
    pub(super) keys: HashMap<String, MissionId>,
    pub(super) motion: Option<Motion>,
    pub(super) waiting: VecDeque<Order>,
    pub(super) held: VecDeque<RobotReport>,
    pub(super) executions: u64,
}

pub(super) struct Known {
    pub(super) last: RobotReport,
    pub(super) key: String,
}

pub(super) struct Motion {
    pub(super) number: u64,
    pub(super) mission: MissionId,
    pub(super) key: String,
    pub(super) execution: String,
    /// Decided when it began.
    pub(super) behaviour: Behaviour,
    /// Set once it decelerates: it ends cancelled, and these are done when it stands still.
    pub(super) stopping_for: Option<Vec<MissionId>>,
}

impl State {
    pub(super) fn new(duration: Duration) -> Self {
        Self {
            behaviour: Behaviour::Normal,
            duration,
            missions: HashMap::new(),
            order: VecDeque::new(),
            keys: HashMap::new(),
            motion: None,
            waiting: VecDeque::new(),
            held: VecDeque::new(),
            executions: 0,
        }
    }

    /// Keeps a mission in memory, with nothing said about it yet.
    pub(super) fn remember(&mut self, robot: &RobotId, order: &Order) {
        if self.missions.contains_key(&order.mission) {
            return;
        }
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
            && let Some(known) = self.missions.remove(&oldest)
            && self.keys.get(&known.key) == Some(&oldest)
        {
            self.keys.remove(&known.key);
        }
        let last = RobotReport {
            robot: robot.clone(),
            mission: order.mission.clone(),
            action_type: order.action_type,
            status: MissionStatus::Pending,
            action_execution_id: String::new(),
            observed_at: String::new(),
            detail: String::new(),
        };
        let key = order.idempotency_key.clone();
        if !key.is_empty() {
            self.keys
                .entry(key.clone())
                .or_insert_with(|| order.mission.clone());
        }
        self.missions
            .insert(order.mission.clone(), Known { last, key });
        self.order.push_back(order.mission.clone());
    }

    /// Forgets all missions, keys and what is unsaid. The motion is left to the caller.
    pub(super) fn forget(&mut self) {
        self.missions.clear();
        self.order.clear();
        self.keys.clear();
        self.waiting.clear();
        self.held.clear();
    }
}

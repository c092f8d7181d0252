//! Taking up where the journal left off.

use super::{
    Inner, RegistryError, RobotSpec,
    registry::by_id,
    report::deliver_by,
    robot::{Active, CancelPhase, Phase, RobotState},
};
use crate::journal::{Attempt, Loaded, Mission};
use portarium_protocols::{
    ids::RobotId,
    mission::{ActionType, MissionStatus},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

/// Makes the robots, gives each its row and its open missions, and starts to drive them. No
/// mission is sent before the robot was asked what became of those it may have; stops and
/// cancels that were not delivered go out at once.
pub(super) fn take_up(
    inner: &Arc<Inner>,
    loaded: Loaded,
    specs: Vec<RobotSpec>,
) -> Result<(), RegistryError> {
    let mut specs = by_id(specs)?;
    for mission in &loaded.missions {
        inner.index().load(mission);
    }
    let open: Vec<Arc<Mission>> = loaded
        .missions
        .into_iter()
        .filter_map(|m| m.ended.err())
        .collect();
    for id in strays(&open, &specs) {
        tracing::warn!(robot = %id, "the journal has open missions for a robot that is not configured; they wait for its return, or for an operator to cancel or resolve them");
        specs.insert(id.clone(), stray(id));
    }
    let mut robots = BTreeMap::new();
    for (id, spec) in specs {
        robots.insert(id, inner.new_robot(spec));
    }
    for row in loaded.robots {
        match robots.get(&row.robot_id) {
            Some(robot) => robot.lock().inherit(row),
            None => {
                inner.absent().insert(row.robot_id.clone(), row);
            }
        }
    }
    let now = inner.world.clock.now();
    for mission in open {
        if let Some(robot) = robots.get(&mission.command.robot_id) {
            let within = robot.spec().deliver_within;
            if !mission.command.action_type.is_stop() {
                inner.open.fetch_add(1, Ordering::Relaxed);
            }
            robot.lock().take_up(mission, within, now);
        }
    }
    for robot in robots.values() {
        inner.drive(robot);
    }
    inner.robots.store(Arc::new(robots));
    Ok(())
}

fn strays(open: &[Arc<Mission>], specs: &BTreeMap<RobotId, RobotSpec>) -> BTreeSet<RobotId> {
    open.iter()
        .map(|mission| &mission.command.robot_id)
        .filter(|id| !specs.contains_key(*id))
        .cloned()
        .collect()
}

fn stray(id: RobotId) -> RobotSpec {
    RobotSpec {
        id,
        fleet: None,
        adapter_name: "none",
        address: String::new(),
        actions: BTreeSet::new(),
        idempotent: false,
        deliver_within: Duration::from_secs(60),
        queue: 0,
        adapter: None,
    }
}

impl RobotState {
    fn take_up(&mut self, mission: Arc<Mission>, within: Duration, now: SystemTime) {
        let Some(state) = mission.durable() else {
            return;
        };
        let id = mission.command.mission_id.clone();
        self.observer.recovered(self.adapter_name, state.status);
        let ago = now.duration_since(mission.accepted_at).unwrap_or_default();
        if state.outcome_unknown {
            self.observer.outcome_unknown(true);
        }
        match mission.command.action_type {
            // The robot's row says whether one is to be sent at once.
            ActionType::Stop | ActionType::EstopRequest => {
                let waits = state.status == MissionStatus::Pending;
                self.stop.follow(&id, state.heard, waits);
            }
            // Ends with the mission that it cancels, which is asked for below.
            ActionType::CancelAction => {}
            ActionType::ExecuteAction
                if state.attempt == Attempt::Open && self.active.is_none() =>
            {
                let cancel = match state.cancel_requested {
                    true => CancelPhase::Wanted(None),
                    false => {
                        // A stop behind it would have asked for its end.
                        self.stop.next = None;
                        CancelPhase::Idle
                    }
                };
                let phase = if state.heard {
                    Phase::Sent
                } else {
                    Phase::Lost
                };
                let word_by = Instant::now() + within;
                self.active = Some(Active::new(id, phase, cancel, word_by));
            }
            ActionType::ExecuteAction if state.status == MissionStatus::Pending => {
                self.queue.push_back(id);
            }
            // Its attempt came to nothing: it was in front when the gateway ended.
            ActionType::ExecuteAction => self.queue.push_front(id),
        }
        self.insert(mission, state, deliver_by(ago, within));
    }
}

//! The robots as configured, and their exchange while the gateway runs.

use super::{Engine, Inner, Robot, robot::RobotState};
use crate::journal::RobotRow;
use portarium_protocols::{
    adapter::{Adapter, Link},
    ids::{FleetId, MissionId, RobotId},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use thiserror::Error;

/// A robot as the engine needs it.
#[derive(Clone)]
pub struct RobotSpec {
    /// Its id.
    pub id: RobotId,
    /// Its fleet.
    pub fleet: Option<FleetId>,
    /// The protocol's name, for metrics and people.
    pub adapter_name: &'static str,
    /// Where it is from, so that a change of address is noticed. For comparison and for people.
    pub address: String,
    /// The actions it takes.
    pub actions: BTreeSet<String>,
    /// It executes an idempotency key at most once, also across its own restarts.
    pub idempotent: bool,
    /// The time from acceptance within which a mission must have reached it.
    pub deliver_within: Duration,
    /// The missions that may wait for it; 0: a busy robot refuses.
    pub queue: usize,
    /// What speaks to it; `None` for a robot that has open missions but is no longer configured.
    pub adapter: Option<Arc<dyn Adapter>>,
}

/// Why a registry cannot be taken over.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RegistryError {
    /// Two robots of one id.
    #[error("robot {0} is configured twice")]
    Twice(RobotId),
    /// A robot went away or moved while it has a mission.
    #[error(
        "robot {robot} cannot be removed or given another address or adapter while mission {mission} is open: hold it and let the mission end, or cancel it; a stop that never reached it ends by `mission resolve`"
    )]
    Busy {
        /// The robot.
        robot: RobotId,
        /// What it has.
        mission: MissionId,
    },
}

impl Engine {
    /// Whether a changed registry could be taken over now.
    ///
    /// # Errors
    /// Where a robot with open missions would go or move.
    pub fn check_robots(&self, specs: &[RobotSpec]) -> Result<(), RegistryError> {
        let specs = by_id(specs.to_vec())?;
        let leaving = leaving(&self.inner.robots.load(), &specs);
        leaving
            .iter()
            .try_for_each(|robot| robot.lock().may_leave(robot.id()))
    }

    /// Takes over a changed registry, whole, or refuses it whole.
    ///
    /// # Errors
    /// Where a robot with open missions would go or move.
    pub fn replace_robots(&self, specs: Vec<RobotSpec>) -> Result<(), RegistryError> {
        let inner = &self.inner;
        let specs = by_id(specs)?;
        // No mission is accepted meanwhile, and a stop that meets a retired robot waits here.
        let index = inner.index();
        let current = inner.robots.load_full();
        let leaving = leaving(&current, &specs);
        retire(&leaving)?;
        for robot in &leaving {
            let kept = robot.lock().row(robot.id());
            inner.absent().insert(robot.id().clone(), kept);
        }
        let mut next = BTreeMap::new();
        for (id, robot) in current.iter() {
            // Its missions are open still, and nothing speaks to it.
            if robot.is_stray() && !specs.contains_key(id) && !robot.lock().retired {
                next.insert(id.clone(), robot.clone());
            }
        }
        for (id, spec) in specs {
            let robot = match current.get(&id) {
                Some(robot) if !robot.lock().retired => {
                    inner.reconfigure(robot, spec);
                    robot.clone()
                }
                _ => inner.enter(spec),
            };
            next.insert(id, robot);
        }
        inner.robots.store(Arc::new(next));
        drop(index);
        for robot in leaving {
            robot.wake.notify_one();
        }
        Ok(())
    }
}

/// The robots that go, or make way for another of their name.
fn leaving(
    current: &BTreeMap<RobotId, Arc<Robot>>,
    specs: &BTreeMap<RobotId, RobotSpec>,
) -> Vec<Arc<Robot>> {
    let stays = |id: &RobotId, robot: &Robot| {
        let spec = robot.spec();
        if robot.is_stray() {
            // It returns, or is kept for as long as its missions are open.
            return specs.contains_key(id) || !robot.lock().open.is_empty();
        }
        specs
            .get(id)
            .is_some_and(|s| s.address == spec.address && s.adapter_name == spec.adapter_name)
    };
    current
        .iter()
        .filter(|(id, robot)| !stays(id, robot))
        .map(|(_, robot)| robot.clone())
        .collect()
}

/// Takes all of them out of service, or none.
fn retire(leaving: &[Arc<Robot>]) -> Result<(), RegistryError> {
    for (place, robot) in leaving.iter().enumerate() {
        let mut state = robot.lock();
        if let Err(busy) = state.may_leave(robot.id()) {
            drop(state);
            for retired in leaving.iter().take(place) {
                retired.lock().retired = false;
            }
            return Err(busy);
        }
        state.retired = true;
    }
    Ok(())
}

impl Inner {
    /// A robot with nothing to do, its link as its adapter sees it.
    pub(super) fn new_robot(&self, spec: RobotSpec) -> Arc<Robot> {
        let mut state = RobotState::new(self.world.observer.clone(), spec.adapter_name);
        state.link = link(&spec);
        Arc::new(Robot::new(spec, state))
    }

    /// A robot that was not there before, with what holds for its name.
    fn enter(self: &Arc<Self>, spec: RobotSpec) -> Arc<Robot> {
        let id = spec.id.clone();
        let robot = self.new_robot(spec);
        if let Some(kept) = self.absent().remove(&id) {
            robot.lock().inherit(kept);
        }
        self.drive(&robot);
        robot
    }

    fn reconfigure(&self, robot: &Robot, spec: RobotSpec) {
        let returns = robot.is_stray();
        let link = link(&spec);
        let mut state = robot.lock();
        if returns {
            state.adapter_name = spec.adapter_name;
            state.link = link;
            state.reconciled = false;
        }
        robot.replace_spec(spec);
        robot.wake.notify_one();
    }
}

fn link(spec: &RobotSpec) -> Result<(), String> {
    match &spec.adapter {
        None => Err("it is no longer in the configuration".into()),
        Some(adapter) => match adapter.link(&spec.id) {
            Link::Up => Ok(()),
            Link::Down { reason } => Err(reason),
        },
    }
}

impl RobotState {
    fn may_leave(&self, robot: &RobotId) -> Result<(), RegistryError> {
        match self.open.keys().next() {
            None => Ok(()),
            Some(mission) => Err(RegistryError::Busy {
                robot: robot.clone(),
                mission: mission.clone(),
            }),
        }
    }

    /// Hold, latch, fence and a stop not answered stay with the name, also when the robot behind
    /// it changes, or is taken out of the configuration and put in again.
    pub(super) fn inherit(&mut self, kept: RobotRow) {
        self.latched = kept.latched;
        self.hold = kept.hold;
        self.fence = kept.fence.unwrap_or_default();
        if let Some(stop) = &kept.stop {
            self.stop.put(stop, true);
        }
    }
}

pub(super) fn by_id(specs: Vec<RobotSpec>) -> Result<BTreeMap<RobotId, RobotSpec>, RegistryError> {
    let mut by_id = BTreeMap::new();
    for spec in specs {
        let id = spec.id.clone();
        if by_id.insert(id.clone(), spec).is_some() {
            return Err(RegistryError::Twice(id));
        }
    }
    Ok(by_id)
}

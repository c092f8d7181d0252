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
        "robot {robot} cannot be removed or given another address or adapter while mission {mission} is open: hold it and let the mission end, or cancel it"
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
        for (id, robot) in self.inner.robots.load().iter() {
            let stays = specs
                .get(id)
                .is_some_and(|s| s.address == robot.spec().address);
            if !stays && let Some(mission) = robot.lock().open.keys().next() {
                return Err(RegistryError::Busy {
                    robot: id.clone(),
                    mission: mission.clone(),
                });
            }
        }
        Ok(())
    }

    /// Takes over a changed registry, whole, or refuses it whole.
    ///
    /// # Errors
    /// Where a robot with open missions would go or move.
    pub fn replace_robots(&self, specs: Vec<RobotSpec>) -> Result<(), RegistryError> {
        self.check_robots(&specs)?;
        let specs = by_id(specs)?;
        let current = self.inner.robots.load_full();
        let mut next = BTreeMap::new();
        for (id, spec) in specs {
            match current.get(&id) {
                Some(robot) if robot.spec().address == spec.address => {
                    robot.replace_spec(spec);
                    next.insert(id, robot.clone());
                }
                previous => {
                    let robot = self.inner.new_robot(spec);
                    let kept = match previous {
                        Some(previous) => Some(previous.lock().row(&id)),
                        None => self.inner.absent().remove(&id),
                    };
                    if let Some(kept) = kept {
                        robot.lock().inherit(kept);
                    }
                    self.inner.drive(&robot);
                    next.insert(id, robot);
                }
            }
        }
        for (id, robot) in current.iter().filter(|(id, _)| !next.contains_key(*id)) {
            let kept = robot.lock().row(id);
            self.inner.absent().insert(id.clone(), kept);
        }
        self.inner.robots.store(Arc::new(next));
        Ok(())
    }
}

impl Inner {
    /// A robot with nothing to do, its link as its adapter sees it.
    pub(super) fn new_robot(&self, spec: RobotSpec) -> Arc<Robot> {
        let mut state = RobotState::new(self.world.observer.clone(), spec.adapter_name);
        state.link = match &spec.adapter {
            None => Err("it is no longer in the configuration".into()),
            Some(adapter) => match adapter.link(&spec.id) {
                Link::Up => Ok(()),
                Link::Down { reason } => Err(reason),
            },
        };
        Arc::new(Robot::new(spec, state))
    }
}

impl RobotState {
    /// Hold, latch and fence stay with the name, also when the robot behind it changes, or is
    /// taken out of the configuration and put in again.
    pub(super) fn inherit(&mut self, kept: RobotRow) {
        self.latched = kept.latched;
        self.hold = kept.hold;
        self.fence = kept.fence.unwrap_or_default();
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

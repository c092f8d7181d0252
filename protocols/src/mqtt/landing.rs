//! Which stops may still arrive over the stop lane, behind missions that leave after them.
//!
//! On *commands* none can: a copy there is in front of the next mission, and where that connection is
//! lost, the next mission goes out on one that has taken its client id over, upon which the broker has
//! heard the last of it. A copy on the stop lane has landed when the broker has acknowledged it. When
//! its connection ends before, what was on it may still be in the broker's or the network's buffers,
//! until the broker takes another one under the same client id, or until the system sends it no more.

use super::{connection::ACKNOWLEDGE_LIMIT, lane_state::LaneState, queue::PATIENCE};
use crate::{
    copies::{Copies, OnItsWay, RETRANSMITTED_FOR},
    ids::RobotId,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::time::Instant;

pub(super) struct Landing {
    /// What a gateway that died may have left on its way, to whichever robot.
    before: Copies,
    robots: Mutex<HashMap<RobotId, Arc<Copies>>>,
}

impl Landing {
    /// `client_ids`: all that a stop lane ever had.
    pub(super) fn new(stops: &LaneState, client_ids: &[String]) -> Self {
        let before = Copies::default();
        for client_id in client_ids {
            let left = before.leaves(Instant::now() + RETRANSMITTED_FOR);
            stops.left_on_its_way(client_id, vec![left]);
        }
        Self {
            before,
            robots: Mutex::default(),
        }
    }

    /// A stop is about to leave over the stop lane.
    pub(super) fn leaves(&self, robot: &RobotId) -> OnItsWay {
        // As long as it may wait for its first byte, and then for its acknowledgement.
        let given_up = Instant::now() + PATIENCE + ACKNOWLEDGE_LIMIT;
        let mut robots = self.robots();
        let copies = robots.entry(robot.clone()).or_default();
        copies.leaves(given_up + RETRANSMITTED_FOR)
    }

    pub(super) async fn landed(&self, robot: &RobotId) {
        self.before.landed().await;
        let copies = self.robots().get(robot).cloned();
        let Some(copies) = copies else { return };
        copies.landed().await;
        let mut robots = self.robots();
        if robots.get(robot).is_some_and(|copies| copies.have_landed()) {
            robots.remove(robot);
        }
    }

    fn robots(&self) -> MutexGuard<'_, HashMap<RobotId, Arc<Copies>>> {
        self.robots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "landing_tests.rs"]
mod tests;

//! What robots have said, in order, for a front to pass on when it can.

use portarium_protocols::{
    ids::{MissionId, RobotId},
    mission::{ActionType, MissionStatus},
};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

/// So many are kept for a front that cannot pass them on.
const KEPT: usize = 65_536;

/// A robot's word on a mission or a stop.
#[derive(Debug, Clone)]
pub struct RobotReport {
    /// Who says it.
    pub robot: RobotId,
    /// The mission, or the stop's own mission id.
    pub mission: MissionId,
    /// What was asked.
    pub action_type: ActionType,
    /// For stops: Executing is *accepted*, Succeeded is *stationary*.
    pub status: MissionStatus,
    /// The robot's name for the execution; empty where nothing was executed.
    pub action_execution_id: String,
    /// RFC 3339.
    pub observed_at: String,
    /// For people; may be empty.
    pub detail: String,
}

/// The reports of the robots of one connection, by position. Cheap to clone.
#[derive(Clone)]
pub struct Reports {
    ring: Arc<Mutex<Ring>>,
    last: watch::Sender<u64>,
}

#[derive(Default)]
struct Ring {
    reports: VecDeque<Arc<RobotReport>>,
    /// The position of the first one kept.
    first: u64,
}

impl Default for Reports {
    fn default() -> Self {
        Self::new()
    }
}

impl Reports {
    /// None yet.
    pub fn new() -> Self {
        let ring = Ring {
            reports: VecDeque::new(),
            first: 1,
        };
        Self {
            ring: Arc::new(Mutex::new(ring)),
            last: watch::Sender::new(0),
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, report: RobotReport) {
        let mut ring = self.ring();
        if ring.reports.len() == KEPT {
            ring.reports.pop_front();
            ring.first += 1;
        }
        ring.reports.push_back(Arc::new(report));
        let last = ring.first + ring.reports.len() as u64 - 1;
        // Inside the lock, so that the position never goes back.
        self.last.send_replace(last);
    }

    /// The reports after a position, at most `most` of them, each with its position.
    pub fn after(&self, position: u64, most: usize) -> Vec<(u64, Arc<RobotReport>)> {
        let ring = self.ring();
        let from = position.saturating_add(1).max(ring.first);
        let skip = usize::try_from(from - ring.first).unwrap_or(usize::MAX);
        let found = ring.reports.iter().skip(skip).take(most);
        (from..).zip(found.cloned()).collect()
    }

    /// The position of the last report; changes with each. 0: none yet.
    pub fn last(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn reports_are_read_by_position_and_the_oldest_go_when_there_are_too_many() {
        let reports = Reports::new();
        for n in 0..KEPT + 3 {
            reports.push(RobotReport {
                robot: "r".parse().unwrap(),
                mission: format!("m{n}").parse().unwrap(),
                action_type: ActionType::ExecuteAction,
                status: MissionStatus::Executing,
                action_execution_id: String::new(),
                observed_at: String::new(),
                detail: String::new(),
            });
        }
        let last = *reports.last().borrow();
        assert_eq!(last, KEPT as u64 + 3);
        let positions = |from, most| -> Vec<u64> {
            reports
                .after(from, most)
                .into_iter()
                .map(|(position, _)| position)
                .collect()
        };
        assert_eq!(positions(0, 2), [4, 5]);
        assert_eq!(positions(last - 1, 10), [last]);
        assert!(positions(last, 10).is_empty());
        assert!(positions(u64::MAX, 10).is_empty());
        assert_eq!(
            reports.after(last - 1, 1)[0].1.mission.as_str(),
            format!("m{}", KEPT + 2)
        );
    }
}

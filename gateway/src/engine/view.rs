//! What may be seen from outside: committed states only.

use super::{Engine, Inner, Robot, RobotSpec, index::Found};
use crate::journal::{Journal, JournalError, MissionState};
use portarium_protocols::{
    ids::{MissionId, RobotId},
    mission::Command,
};
use std::sync::{Arc, Weak};

/// A mission as committed.
#[derive(Debug, Clone)]
pub struct MissionView {
    /// What was asked.
    pub command: Arc<Command>,
    /// The last durable state.
    pub state: MissionState,
}

/// A robot as the engine sees it.
#[derive(Clone)]
pub struct RobotView {
    /// What is configured.
    pub spec: Arc<RobotSpec>,
    /// `Err`: why it cannot be reached.
    pub link: Result<(), String>,
    /// Fence, open missions and what the robot says of them are known.
    pub reconciled: bool,
    /// An emergency stop request holds.
    pub latched: bool,
    /// An operator's hold.
    pub hold: Option<String>,
    /// What the robot has.
    pub active: Option<MissionId>,
    /// What waits.
    pub queued: usize,
    /// Missions of unknown outcome, stops included.
    pub unknown: Vec<MissionId>,
    /// A stop waits for its return.
    pub stop_pending: bool,
}

impl Engine {
    /// The last durable state of a mission.
    ///
    /// # Errors
    /// Where the journal cannot be read.
    pub async fn status(&self, id: &MissionId) -> Result<Option<MissionView>, JournalError> {
        let found = self.inner.index().by_mission_id(id.as_str());
        match found {
            None => Ok(None),
            Some(Found::Open(mission)) => Ok(mission.durable().map(|state| MissionView {
                command: mission.command.clone(),
                state,
            })),
            Some(Found::Ended { position, .. }) => {
                let found = self.inner.journal.reader().ended(position).await?;
                Ok(found.map(|u| MissionView {
                    command: u.command,
                    state: u.state,
                }))
            }
        }
    }

    /// What was asked by a mission, if it is known.
    ///
    /// # Errors
    /// Where the journal cannot be read.
    pub async fn command(&self, id: &MissionId) -> Result<Option<Arc<Command>>, JournalError> {
        let found = self.inner.index().by_mission_id(id.as_str());
        match found {
            None => Ok(None),
            Some(Found::Open(mission)) => Ok(Some(mission.command.clone())),
            Some(Found::Ended { position, .. }) => {
                let found = self.inner.journal.reader().ended(position).await?;
                Ok(found.map(|u| u.command))
            }
        }
    }

    /// The number under which the journal has a mission's states.
    pub fn number(&self, id: &MissionId) -> Option<u64> {
        match self.inner.index().by_mission_id(id.as_str())? {
            Found::Open(mission) => mission.number(),
            Found::Ended { number, .. } => Some(number),
        }
    }

    /// The position of a mission's end, if it has ended.
    pub fn ended_at(&self, id: &MissionId) -> Option<u64> {
        match self.inner.index().by_mission_id(id.as_str())? {
            Found::Open(_) => None,
            Found::Ended { position, .. } => Some(position),
        }
    }

    /// The journal, for watching.
    pub fn journal(&self) -> &Journal {
        &self.inner.journal
    }

    /// One robot.
    pub fn robot(&self, id: &RobotId) -> Option<RobotView> {
        self.inner.robot(id).map(|robot| robot.view())
    }

    /// All robots, by id.
    pub fn robots(&self) -> Vec<RobotView> {
        self.inner
            .robots
            .load()
            .values()
            .map(|robot| robot.view())
            .collect()
    }

    /// For whoever counts: holds on to nothing.
    pub fn probe(&self) -> Probe {
        Probe(Arc::downgrade(&self.inner))
    }

    /// Robots that are not reconciled although they can be reached.
    pub fn unreconciled(&self) -> usize {
        let robots = self.inner.robots.load();
        robots
            .values()
            .filter(|robot| {
                let state = robot.lock();
                state.link.is_ok() && !state.reconciled
            })
            .count()
    }
}

/// Counts what the engine has, without keeping it from ending.
#[derive(Clone)]
pub struct Probe(Weak<Inner>);

/// What the engine has now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Missions that have not ended, stops included.
    pub open: usize,
    /// Missions that wait for their robot.
    pub queued: usize,
    /// Missions of unknown outcome.
    pub unknown: usize,
    /// Appends that wait for the journal.
    pub journal_backlog: usize,
    /// Robots that can be reached.
    pub reachable: usize,
    /// Robots that cannot.
    pub unreachable: usize,
}

impl Probe {
    /// All zero once the engine is gone.
    pub fn counts(&self) -> Counts {
        let Some(inner) = self.0.upgrade() else {
            return Counts::default();
        };
        let mut counts = Counts {
            journal_backlog: inner.journal.backlog(),
            ..Counts::default()
        };
        for robot in inner.robots.load().values() {
            let state = robot.lock();
            counts.open += state.open.len();
            counts.queued += state.queue.len();
            counts.unknown += state
                .open
                .values()
                .filter(|o| o.state.outcome_unknown)
                .count();
            match state.link {
                Ok(()) => counts.reachable += 1,
                Err(_) => counts.unreachable += 1,
            }
        }
        counts
    }
}

impl Robot {
    fn view(&self) -> RobotView {
        let state = self.lock();
        RobotView {
            spec: self.spec(),
            link: state.link.clone(),
            reconciled: state.reconciled,
            latched: state.latched,
            hold: state.hold.clone(),
            active: state.active.as_ref().map(|a| a.id.clone()),
            queued: state.queue.len(),
            unknown: state
                .open
                .iter()
                .filter(|(_, o)| o.state.outcome_unknown)
                .map(|(id, _)| id.clone())
                .collect(),
            stop_pending: state.stop.is_pending(),
        }
    }
}

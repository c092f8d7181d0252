//! The seam between the mission engine and a protocol.

use crate::{
    ids::{MissionId, RobotId},
    mission::{Command, MissionStatus},
};
use async_trait::async_trait;
use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};
use thiserror::Error;
use tokio::sync::mpsc;

/// What one protocol does for the engine. One adapter serves many robots.
///
/// The engine calls `dispatch` for one robot never twice at a time, and `cancel` and `stop` at any
/// time. Futures may be dropped only at shutdown; an adapter bounds each by itself (connection
/// lost, or a time limit of its own), so that no call waits forever.
#[async_trait]
pub trait Adapter: Send + Sync + 'static {
    /// Hands a mission to its robot, once. The adapter never sends it again by itself: no
    /// retransmission after a reconnect, no retry. `expires_in` is the time left until the
    /// mission is stale; a protocol that can make a message expire does.
    ///
    /// The first poll puts it in line on the robot's connection, before any await: what is called
    /// after that poll goes behind it. It is made under the engine's lock of the robot.
    async fn dispatch(
        &self,
        command: Arc<Command>,
        expires_in: Duration,
    ) -> Result<Handover, DispatchError>;

    /// Asks the robot to give a mission up that was sent: at once on the stop lane, and once more
    /// behind the last command on that command's connection, so that it cannot overtake it.
    /// Returns when the first of the two was delivered. The mission ends by the robot's reports.
    async fn cancel(&self, cancel: Arc<Cancel>) -> Result<(), SignalError>;

    /// Stops a robot: on the stop lane and behind the last command, as `cancel`.
    async fn stop(&self, stop: Arc<Command>) -> Result<StopAnswer, SignalError>;

    /// Waits until no copy of a stop that left for the robot can reach it any more, whatever the
    /// stop's answer was and whichever process sent it: the one that was not the first may be late,
    /// and would stop a mission that is sent before it comes.
    async fn stops_landed(&self, robot: &RobotId);

    /// Asks what became of a mission that may have been sent, after a crash or a lost
    /// connection.
    async fn reconcile(&self, command: Arc<Command>) -> Result<Reconciled, SignalError>;

    /// A mission has ended, durably: the adapter may forget it and clear what it left on the
    /// wire. Never waits.
    fn settle(&self, command: &Command);

    /// The robot can be reached as far as the adapter knows.
    fn link(&self, robot: &RobotId) -> Link;
}

/// What is known after a mission was handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handover {
    /// On its way; the robot has said nothing. A broker's acknowledgement is this.
    Sent,
    /// The robot itself says that it has it.
    Accepted,
}

/// Why a mission was not handed over, as far as that is known.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DispatchError {
    /// The robot refuses it and has not begun. It ends Failed.
    #[error("the robot refused it: {reason}")]
    Rejected {
        /// The robot's reason.
        reason: String,
    },
    /// Nothing was sent, for certain. It may be sent later.
    #[error("the robot is out of reach, nothing was sent: {reason}")]
    Unreachable {
        /// What is in the way.
        reason: String,
    },
    /// The robot may have got it.
    #[error("whether the robot got it is unknown: {reason}")]
    Unknown {
        /// What happened.
        reason: String,
    },
}

/// Why a cancel, a stop or a question did not get through.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SignalError {
    /// The robot cannot be reached now; the engine sends it again when it can.
    #[error("the robot is out of reach: {reason}")]
    Unreachable {
        /// What is in the way.
        reason: String,
    },
    /// The robot answered and refused.
    #[error("the robot refused: {reason}")]
    Refused {
        /// The robot's reason.
        reason: String,
    },
}

/// A cancel of a mission that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cancel {
    /// The mission as it was sent.
    pub command: Arc<Command>,
    /// Why, for people.
    pub reason: String,
}

/// A robot's first answer to a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopAnswer {
    /// Delivered; the robot has said nothing yet.
    Requested,
    /// The robot says that it obeys.
    Accepted,
    /// The robot says that it stands still.
    Stationary,
}

/// What the robot, or what it left on the wire, says of a mission that may have been sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reconciled {
    /// It is there.
    Known(Report),
    /// The robot does not know it. It may never have got it, or have forgotten it.
    NotKnown,
    /// This protocol has no way to ask, and the robot has said nothing.
    CannotAsk,
}

/// Who is on the other end of a report, as far as its protocol can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Speaker {
    /// This robot.
    Robot(RobotId),
    /// One of these: whoever may write the status topic that they share.
    OneOf(Arc<BTreeSet<RobotId>>),
}

impl Speaker {
    /// Whether this robot may have said it.
    pub fn may_be(&self, robot: &RobotId) -> bool {
        match self {
            Self::Robot(speaker) => speaker == robot,
            Self::OneOf(speakers) => speakers.contains(robot),
        }
    }
}

impl fmt::Display for Speaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Robot(robot) => robot.fmt(f),
            // Of which there may be thousands.
            Self::OneOf(robots) => write!(f, "one of {} robots on a shared topic", robots.len()),
        }
    }
}

/// When a report was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// Just now.
    Now,
    /// At some time: what carries the robot's words has kept it, and tells it again and again.
    Before,
}

/// A robot's word on a mission or a stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Who said it.
    pub speaker: Speaker,
    /// When.
    pub said: Said,
    /// The mission, or the stop's own mission id.
    pub mission: MissionId,
    /// What it says. For stops: Executing is *accepted*, Succeeded is *stationary*.
    pub status: MissionStatus,
    /// The robot's own name for the execution; may be empty.
    pub action_execution_id: String,
    /// When the robot saw it, RFC 3339 as sent; may be empty.
    pub observed_at: String,
    /// The robot's explanation, for people; may be empty. Already bounded and free of control
    /// characters.
    pub detail: String,
}

/// What was said in a robot's name and is not believed: no message of the contract, or one on what is
/// not the speaker's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disbelieved {
    /// Who said it.
    pub speaker: Speaker,
    /// The mission that it was on, where it named one.
    pub mission: Option<MissionId>,
    /// What is wrong with it, for people. Nothing of what was said.
    pub reason: &'static str,
}

/// Whether a robot can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// As far as is known.
    Up,
    /// It cannot, and why.
    Down {
        /// For people.
        reason: String,
    },
}

/// What an adapter tells the engine by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// A robot's word on a mission.
    Report(Report),
    /// A word that was dropped. Where others speak on the same connection, an adapter does not wait
    /// for a place for it.
    Disbelieved(Disbelieved),
    /// A robot can be reached now, or no longer. After `Up` the engine sends what it kept.
    Link {
        /// The robot.
        robot: RobotId,
        /// Its reachability from now on.
        link: Link,
    },
}

/// Where adapters put their updates. Bounded: an adapter that waits here lets its wire wait.
pub type UpdateSender = mpsc::Sender<Update>;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn speakers_are_told_in_few_words_however_many_there_are() {
        let robots = (0..10_000).map(|n| format!("r-{n}").parse().unwrap());
        let told = Speaker::OneOf(Arc::new(robots.collect())).to_string();
        assert_eq!(told, "one of 10000 robots on a shared topic");
        let alone = Speaker::Robot("r".parse().unwrap());
        assert_eq!(alone.to_string(), "r");
    }
}

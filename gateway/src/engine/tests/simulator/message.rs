//! What gateway and robot send each other.

use portarium_protocols::{
    adapter::{Report, StopAnswer},
    ids::MissionId,
    mission::Command,
};
use std::{fmt, sync::Arc};
use tokio::time::Instant;

#[derive(Clone)]
pub(super) enum Message {
    Mission {
        command: Arc<Command>,
        sent: u64,
        expires: Instant,
    },
    Cancel {
        mission: MissionId,
        sent: u64,
    },
    Stop {
        command: Arc<Command>,
        sent: u64,
    },
    Question {
        mission: MissionId,
    },
}

impl Message {
    pub(super) fn is_stop(&self) -> bool {
        matches!(self, Self::Stop { .. })
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mission { command, .. } => write!(f, "mission {}", command.mission_id),
            Self::Cancel { mission, .. } => write!(f, "cancel of {mission}"),
            Self::Stop { command, .. } => {
                write!(f, "{} {}", command.action_type.as_str(), command.mission_id)
            }
            Self::Question { mission } => write!(f, "question about {mission}"),
        }
    }
}

#[derive(Debug, Clone)]
pub(super) enum Answer {
    /// Not a byte of it left.
    NotSent,
    /// It left, and what became of it is not known.
    Lost,
    /// Delivered, perhaps only to a broker.
    Taken,
    Accepted,
    Rejected(String),
    Refused(String),
    Stopped(StopAnswer),
    Known(Report),
    NotKnown,
    CannotAsk,
}

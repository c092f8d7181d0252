//! What a mission is, which states it has, and which changes of state exist.
//!
//! Source: the contract with the control plane; see `proto/portarium/robotics/v1/mission.proto`.

use crate::ids::{FleetId, MissionId, RobotId};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, str::FromStr};
use thiserror::Error;

/// Where a mission is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MissionStatus {
    /// Accepted and durable; nothing was sent to the robot.
    Pending,
    /// The adapter began to hand it to the robot.
    Dispatched,
    /// The robot says that it is at it.
    Executing,
    /// The robot paused it for something more urgent.
    WaitingPreemption,
    /// Ended as asked.
    Succeeded,
    /// Ended otherwise.
    Failed,
    /// Ended because someone asked for that.
    Cancelled,
}

impl MissionStatus {
    /// All states, in the order of a mission's life.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Dispatched,
        Self::Executing,
        Self::WaitingPreemption,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Whether the mission has ended. Terminal states never regress.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// Whether the contract has this very change of state.
    pub fn may_become(self, next: Self) -> bool {
        use MissionStatus as S;
        matches!(
            (self, next),
            (S::Pending, S::Dispatched | S::Cancelled)
                | (S::Dispatched, S::Executing | S::Cancelled | S::Failed)
                | (
                    S::Executing,
                    S::WaitingPreemption | S::Succeeded | S::Failed | S::Cancelled
                )
                | (
                    S::WaitingPreemption,
                    S::Executing | S::Cancelled | S::Failed
                )
        )
    }

    /// The states to pass through from here to `target`, `target` included: a report that skips
    /// states passes through them. `None` where no way leads there; empty where it is here
    /// already.
    pub fn path_to(self, target: Self) -> Option<&'static [Self]> {
        use MissionStatus as S;
        Some(match (self, target) {
            (from, to) if from == to => &[],
            (S::Pending, S::Dispatched) => &[S::Dispatched],
            (S::Pending, S::Executing) => &[S::Dispatched, S::Executing],
            (S::Pending, S::WaitingPreemption) => {
                &[S::Dispatched, S::Executing, S::WaitingPreemption]
            }
            (S::Pending, S::Succeeded) => &[S::Dispatched, S::Executing, S::Succeeded],
            (S::Pending, S::Failed) => &[S::Dispatched, S::Failed],
            (S::Dispatched, S::WaitingPreemption) => &[S::Executing, S::WaitingPreemption],
            (S::Dispatched, S::Succeeded) => &[S::Executing, S::Succeeded],
            (S::WaitingPreemption, S::Succeeded) => &[S::Executing, S::Succeeded],
            (S::Dispatched | S::WaitingPreemption, S::Executing) => &[S::Executing],
            (S::Executing, S::WaitingPreemption) => &[S::WaitingPreemption],
            (S::Executing, S::Succeeded) => &[S::Succeeded],
            (S::Dispatched | S::Executing | S::WaitingPreemption, S::Failed) => &[S::Failed],
            (S::Pending | S::Dispatched | S::Executing | S::WaitingPreemption, S::Cancelled) => {
                &[S::Cancelled]
            }
            _ => return None,
        })
    }

    /// The name on the gRPC wire, `Pending` and so on.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Dispatched => "Dispatched",
            Self::Executing => "Executing",
            Self::WaitingPreemption => "WaitingPreemption",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Cancelled => "Cancelled",
        }
    }

    /// The name on the MQTT wire, `waiting_preemption` and so on.
    pub fn as_snake_case(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Dispatched => "dispatched",
            Self::Executing => "executing",
            Self::WaitingPreemption => "waiting_preemption",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for MissionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text that names no state.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "unknown mission status; one of Pending, Dispatched, Executing, WaitingPreemption, Succeeded, Failed, Cancelled is expected"
)]
pub struct UnknownStatus;

impl FromStr for MissionStatus {
    type Err = UnknownStatus;

    /// Reads either wire's name, without regard to case.
    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        Self::ALL
            .into_iter()
            .find(|s| {
                s.as_str().eq_ignore_ascii_case(text)
                    || s.as_snake_case().eq_ignore_ascii_case(text)
            })
            .ok_or(UnknownStatus)
    }
}

/// What kind of thing is asked of the robot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ActionType {
    /// `robot:execute_action`
    ExecuteAction,
    /// `robot:cancel_action`: cancels what the robot is at.
    CancelAction,
    /// `robot:stop`
    Stop,
    /// `robot:estop_request`: a stop that latches until an operator releases the robot.
    EstopRequest,
}

impl ActionType {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ExecuteAction => "robot:execute_action",
            Self::CancelAction => "robot:cancel_action",
            Self::Stop => "robot:stop",
            Self::EstopRequest => "robot:estop_request",
        }
    }

    /// Whether this is a stop-path action: never queued, never refused as a duplicate.
    pub fn is_stop(self) -> bool {
        matches!(self, Self::Stop | Self::EstopRequest)
    }
}

impl FromStr for ActionType {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        [
            Self::ExecuteAction,
            Self::CancelAction,
            Self::Stop,
            Self::EstopRequest,
        ]
        .into_iter()
        .find(|a| a.as_str() == text)
        .ok_or(())
    }
}

/// Who says that a mission succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CompletionMode {
    /// The robot.
    Auto,
    /// An operator; the robot's word is not enough.
    ManualOnly,
}

impl CompletionMode {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "Auto",
            Self::ManualOnly => "ManualOnly",
        }
    }
}

/// A mission as the control plane asks for it, with every rule of the contract checked.
///
/// Adapters get it behind an `Arc` and read it; they never change it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Names the mission for caller, gateway and robot.
    pub mission_id: MissionId,
    /// Carried along for tracing; never compared.
    pub correlation_id: String,
    /// The caller's key for the plan's effect. Empty on stops only.
    pub plan_effect_idempotency_key: String,
    /// The robot that is to carry it out.
    pub robot_id: RobotId,
    /// The fleet that the caller named, if any.
    pub fleet_id: Option<FleetId>,
    /// What kind of thing is asked.
    pub action_type: ActionType,
    /// The robot's action, for example `navigate_to`.
    pub action_name: String,
    /// Parameters by name; a value that is not a string is its JSON text. Never logged.
    pub parameters: BTreeMap<String, String>,
    /// The key under which an idempotent robot executes at most once. Empty on stops only.
    pub idempotency_key: String,
    /// The robot may pause it for something more urgent.
    pub supports_preemption: bool,
    /// Set on stops: no tier evaluation stands before them.
    pub bypass_tier_evaluation: bool,
    /// Who says that it succeeded.
    pub completion_mode: CompletionMode,
    /// An operator has to confirm it.
    pub requires_operator_confirmation: bool,
    /// RFC 3339, as the caller sent it; never compared.
    pub requested_at: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_consists_of_changes_the_contract_has_and_no_terminal_state_is_left() {
        for from in MissionStatus::ALL {
            for to in MissionStatus::ALL {
                let Some(path) = from.path_to(to) else {
                    // Only an end has no way on, and no way leads back to the beginning.
                    let back = matches!(to, MissionStatus::Pending | MissionStatus::Dispatched);
                    assert!(from.is_terminal() || back, "{from} {to}");
                    continue;
                };
                let mut at = from;
                for step in path {
                    assert!(
                        at.may_become(*step),
                        "{at} -> {step} on the way {from} -> {to}"
                    );
                    at = *step;
                }
                assert_eq!(at, to);
                assert!(!from.is_terminal() || from == to);
            }
        }
    }

    #[test]
    fn both_wires_names_are_read_whatever_their_case() {
        for status in MissionStatus::ALL {
            assert_eq!(status.as_str().to_uppercase().parse(), Ok(status));
            assert_eq!(status.as_snake_case().parse(), Ok(status));
        }
        assert_eq!("done".parse::<MissionStatus>(), Err(UnknownStatus));
    }
}

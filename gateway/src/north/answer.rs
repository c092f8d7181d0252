//! Answers in the contract's words.

use crate::engine::{Dispatched, Refusal, Stopped};
use portarium_protocols::{
    adapter::StopAnswer,
    grpc::{convert::InvalidMission, pb},
    mission::Command,
};
use std::time::SystemTime;

use crate::engine::rfc3339;

/// What the caller sent, returned with every answer.
#[derive(Debug, Clone)]
pub(super) struct Echo {
    pub(super) mission_id: String,
    pub(super) correlation_id: String,
    pub(super) plan_key: String,
}

impl Echo {
    pub(super) fn of(request: &pb::DispatchMissionRequest) -> Self {
        Self {
            mission_id: request.mission_id.clone(),
            correlation_id: request.correlation_id.clone(),
            plan_key: request.plan_effect_idempotency_key.clone(),
        }
    }

    fn answer(self, status: pb::DispatchStatus) -> pb::DispatchMissionResponse {
        pb::DispatchMissionResponse {
            status: status.into(),
            mission_id: self.mission_id,
            correlation_id: self.correlation_id,
            plan_effect_idempotency_key: self.plan_key,
            ..pb::DispatchMissionResponse::default()
        }
    }

    pub(super) fn dispatched(self, dispatched: &Dispatched) -> pb::DispatchMissionResponse {
        pb::DispatchMissionResponse {
            gateway_request_id: dispatched.request_id.clone(),
            dispatched_at: rfc3339(dispatched.at),
            message: match dispatched.repeated {
                true => "acknowledged before; nothing new is executed".into(),
                false => String::new(),
            },
            ..self.answer(pb::DispatchStatus::Dispatched)
        }
    }

    pub(super) fn stopped(
        self,
        command: &Command,
        stopped: &Stopped,
        at: SystemTime,
    ) -> pb::DispatchMissionResponse {
        let state = match stopped.answer {
            Ok(StopAnswer::Requested) => pb::StopState::Requested,
            Ok(StopAnswer::Accepted) => pb::StopState::Accepted,
            Ok(StopAnswer::Stationary) => pb::StopState::Stationary,
            Err(_) => pb::StopState::Refused,
        };
        pb::DispatchMissionResponse {
            // Made here where the caller's was no usable id: the stop is followed by it.
            mission_id: command.mission_id.to_string(),
            gateway_request_id: stopped.request_id.clone(),
            dispatched_at: rfc3339(at),
            message: stop_message(stopped),
            stop: Some(pb::StopOutcome {
                state: state.into(),
                fence_durable: stopped.fence_durable,
                robot_unreachable: stopped.robot_unreachable,
            }),
            ..self.answer(pb::DispatchStatus::Dispatched)
        }
    }

    pub(super) fn blocked(self, reason: String) -> pb::DispatchMissionResponse {
        pb::DispatchMissionResponse {
            policy_reason: reason.clone(),
            message: reason,
            ..self.answer(pb::DispatchStatus::PolicyBlocked)
        }
    }

    pub(super) fn invalid(self, invalid: &InvalidMission) -> pb::DispatchMissionResponse {
        self.refused(Refusal::Invalid(invalid.to_string()))
    }

    pub(super) fn refused(self, refusal: Refusal) -> pb::DispatchMissionResponse {
        let reason = reject_reason(&refusal);
        match refusal {
            Refusal::Unreachable {
                message,
                retry_after,
            } => pb::DispatchMissionResponse {
                message,
                retry_after_seconds: i32::try_from(retry_after.as_secs()).unwrap_or(i32::MAX),
                ..self.answer(pb::DispatchStatus::GatewayUnreachable)
            },
            Refusal::Invalid(message)
            | Refusal::Unsupported(message)
            | Refusal::State(message)
            | Refusal::Duplicate(message) => pb::DispatchMissionResponse {
                message,
                reject_reason: reason.into(),
                ..self.answer(pb::DispatchStatus::Rejected)
            },
        }
    }
}

/// The contract's word for a refusal.
pub(super) fn reject_reason(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Invalid(_) => "InvalidMission",
        Refusal::Unsupported(_) => "UnsupportedAction",
        Refusal::State(_) => "InvalidState",
        Refusal::Duplicate(_) => "DuplicateRequest",
        Refusal::Unreachable { .. } => "GATEWAY_UNREACHABLE",
    }
}

fn stop_message(stopped: &Stopped) -> String {
    let said = match &stopped.answer {
        Err(reason) => &*format!("the robot refuses to stop: {reason}"),
        Ok(_) if stopped.robot_unreachable => {
            "the robot is out of reach; the stop is kept and sent when it returns"
        }
        Ok(StopAnswer::Requested) => "stop requested; the robot has not answered yet",
        Ok(StopAnswer::Accepted) => "the robot accepted the stop",
        Ok(StopAnswer::Stationary) => "the robot stands still",
    };
    let fence = match stopped.fence_durable {
        true => "",
        false => "; the fence is in force but not on disk yet",
    };
    format!("{said}{fence}")
}

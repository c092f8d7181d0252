//! What `mission …` tells of the gateway's answers, for people and as JSON.

use super::output::clean;
use portarium_protocols::grpc::pb::{
    DispatchMissionResponse, DispatchStatus, GetMissionStatusResponse, StopState,
};
use serde_json::json;

pub(super) fn dispatch_told(answer: &DispatchMissionResponse, robot: &str) -> String {
    let mission = clean(&answer.mission_id);
    let why = [&answer.policy_reason, &answer.message].map(|text| clean(text));
    let why = why.iter().find(|text| !text.is_empty());
    let why = why.map(|text| format!(": {text}")).unwrap_or_default();
    let retry = match answer.retry_after_seconds {
        n if n > 0 => format!("; try again in {n} s"),
        _ => String::new(),
    };
    match answer.status() {
        DispatchStatus::Dispatched => {
            let robot = clean(robot);
            let request = clean(&answer.gateway_request_id);
            format!("mission {mission} is accepted for robot {robot} (request {request}){why}")
        }
        DispatchStatus::PolicyBlocked => format!("mission {mission} is not allowed{why}"),
        DispatchStatus::Rejected => {
            format!(
                "mission {mission} is refused, {}{why}{retry}",
                clean(&answer.reject_reason)
            )
        }
        DispatchStatus::GatewayUnreachable => {
            format!("mission {mission} is not taken now{why}{retry}")
        }
        DispatchStatus::Unspecified => {
            format!("mission {mission}: the gateway gave no status{why}")
        }
    }
}

pub(super) fn dispatch_json(answer: &DispatchMissionResponse) -> serde_json::Value {
    let mut told = json!({
        "status": answer.status().as_str_name(),
        "mission_id": answer.mission_id,
        "correlation_id": answer.correlation_id,
        "plan_effect_idempotency_key": answer.plan_effect_idempotency_key,
        "gateway_request_id": answer.gateway_request_id,
        "dispatched_at": answer.dispatched_at,
        "policy_reason": answer.policy_reason,
        "message": answer.message,
        "reject_reason": answer.reject_reason,
        "retry_after_seconds": answer.retry_after_seconds,
    });
    if let Some(stop) = &answer.stop {
        told["stop"] = json!({
            "state": stop.state().as_str_name(),
            "fence_durable": stop.fence_durable,
            "robot_unreachable": stop.robot_unreachable,
        });
    }
    told
}

pub(super) fn stop_told(answer: &DispatchMissionResponse, robot: &str) -> String {
    if answer.status() != DispatchStatus::Dispatched {
        return dispatch_told(answer, robot).replacen("mission ", "stop ", 1);
    }
    let (robot, stop) = (clean(robot), answer.stop.unwrap_or_default());
    let state = match stop.state() {
        StopState::Refused => &*format!("NOT STOPPED; {}", clean(&answer.message)),
        _ if stop.robot_unreachable => "out of reach; the stop is kept and sent when it returns",
        StopState::Stationary => "stationary",
        StopState::Accepted => "accepted; the robot obeys, and has not said that it stands still",
        StopState::Requested | StopState::Unspecified => {
            "requested; the robot has not answered yet"
        }
    };
    let fence = if stop.fence_durable {
        "what waited for it is cancelled, durably"
    } else {
        "what waited for it is cancelled, but not yet on disk: a crash now could bring it back"
    };
    format!(
        "robot {robot}: {state}\n{fence} (stop {})",
        clean(&answer.mission_id)
    )
}

pub(super) fn status_told(answer: &GetMissionStatusResponse) -> String {
    let mut told = format!(
        "mission {}: {}",
        clean(&answer.mission_id),
        clean(&answer.status)
    );
    for (is, words) in [
        (answer.outcome_unknown, "outcome unknown"),
        (answer.cancel_requested, "cancel requested"),
        (answer.awaiting_confirmation, "awaits confirmation"),
    ] {
        if is {
            told.push_str(", ");
            told.push_str(words);
        }
    }
    for (label, text) in [
        ("observed", &answer.observed_at),
        ("execution", &answer.action_execution_id),
        ("detail", &answer.detail),
    ] {
        if !text.is_empty() {
            told.push_str(&format!("\n  {label:<10} {}", clean(text)));
        }
    }
    told
}

pub(super) fn status_json(answer: &GetMissionStatusResponse) -> serde_json::Value {
    json!({
        "mission_id": answer.mission_id,
        "status": answer.status,
        "action_execution_id": answer.action_execution_id,
        "observed_at": answer.observed_at,
        "outcome_unknown": answer.outcome_unknown,
        "detail": answer.detail,
        "cancel_requested": answer.cancel_requested,
        "awaiting_confirmation": answer.awaiting_confirmation,
    })
}

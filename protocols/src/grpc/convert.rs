//! Between the contract's messages and the vocabulary.
//!
//! Both sides of the contract use it: the gateway for what the control plane sends, a robot that
//! serves the contract for what the gateway sends.

use super::pb;
use crate::{
    ids::MissionId,
    mission::{ActionType, Command, CompletionMode},
};
use std::{collections::BTreeMap, str::FromStr};
use thiserror::Error;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// The longest key or correlation id, in bytes.
pub const MAX_KEY_BYTES: usize = 256;
/// The longest action name and parameter name, in bytes.
pub const MAX_NAME_BYTES: usize = 128;
/// The longest time, in bytes: RFC 3339 allows any number of digits of a second.
const MAX_TIME_BYTES: usize = 64;
/// The most parameters of a mission.
pub const MAX_PARAMETERS: usize = 256;
/// The longest parameter, in bytes.
pub const MAX_PARAMETER_BYTES: usize = 16 * 1024;
/// The most that all names and values of parameters come to, in bytes.
pub const MAX_PARAMETERS_BYTES: usize = 64 * 1024;
/// The largest message of the contract that either side has to take, in bytes: for
/// `max_decoding_message_size` of servers. Room for the parameters and all other fields.
pub const MAX_REQUEST_BYTES: usize = 128 * 1024;

/// Which rule of the contract a mission breaks. Its answer is `DISPATCH_STATUS_REJECTED` with
/// `InvalidMission`. Never holds a parameter's value.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{field}: {reason}")]
pub struct InvalidMission {
    /// The field of `DispatchMissionRequest`.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

fn invalid(field: &'static str, reason: impl ToString) -> InvalidMission {
    InvalidMission {
        field,
        reason: reason.to_string(),
    }
}

/// Checks every rule of the contract.
///
/// A stop is taken as liberally as is safe: it needs a known kind of action, a robot and
/// `bypass_tier_evaluation`; whatever else is malformed is left out, and a mission id that cannot
/// be used is replaced by one of our own.
pub fn parse(request: pb::DispatchMissionRequest) -> Result<Command, InvalidMission> {
    let action_type = request.action_type.parse::<ActionType>();
    let action_type = action_type.map_err(|()| {
        invalid(
            "action_type",
            "is none of robot:execute_action, robot:cancel_action, robot:stop, robot:estop_request",
        )
    })?;
    if action_type.is_stop() {
        parse_stop(request, action_type)
    } else {
        parse_mission(request, action_type)
    }
}

fn parse_stop(
    request: pb::DispatchMissionRequest,
    action_type: ActionType,
) -> Result<Command, InvalidMission> {
    if !request.bypass_tier_evaluation {
        return Err(invalid("bypass_tier_evaluation", "must be true for stops"));
    }
    let own_id = || MissionId::from_str(&format!("stop-{:032x}", fastrand::u128(..)));
    let mission_id = request.mission_id.parse().or_else(|_| own_id());
    let parameters = request.parameters.unwrap_or_default();
    Ok(Command {
        mission_id: mission_id.map_err(|e| invalid("mission_id", e))?,
        correlation_id: printable(&request.correlation_id, MAX_KEY_BYTES),
        plan_effect_idempotency_key: key("", request.plan_effect_idempotency_key)
            .unwrap_or_default(),
        robot_id: id("robot_id", &request.robot_id)?,
        fleet_id: request.fleet_id.parse().ok(),
        action_type,
        action_name: printable(&request.action_name, MAX_NAME_BYTES),
        parameters: self::parameters(parameters).unwrap_or_default(),
        idempotency_key: key("", request.idempotency_key).unwrap_or_default(),
        supports_preemption: request.supports_preemption,
        bypass_tier_evaluation: true,
        completion_mode: CompletionMode::Auto,
        requires_operator_confirmation: false,
        requested_at: timestamp(request.requested_at).unwrap_or_default(),
    })
}

fn parse_mission(
    request: pb::DispatchMissionRequest,
    action_type: ActionType,
) -> Result<Command, InvalidMission> {
    let executes = action_type == ActionType::ExecuteAction;
    if executes && request.action_name.is_empty() {
        return Err(invalid("action_name", "is empty"));
    }
    if executes && !request.supports_preemption {
        return Err(invalid(
            "supports_preemption",
            "must be true for robot:execute_action",
        ));
    }
    let completion_mode = completion_mode(&request.completion_mode)?;
    if completion_mode == CompletionMode::ManualOnly && !request.requires_operator_confirmation {
        return Err(invalid(
            "requires_operator_confirmation",
            "must be true for ManualOnly",
        ));
    }
    let required = |field, text: String| match key(field, text) {
        Ok(key) if key.is_empty() => Err(invalid(field, "is empty")),
        other => other,
    };
    let fleet = Some(&request.fleet_id).filter(|fleet| !fleet.is_empty());
    Ok(Command {
        mission_id: id("mission_id", &request.mission_id)?,
        correlation_id: key("correlation_id", request.correlation_id)?,
        plan_effect_idempotency_key: required(
            "plan_effect_idempotency_key",
            request.plan_effect_idempotency_key,
        )?,
        robot_id: id("robot_id", &request.robot_id)?,
        fleet_id: fleet.map(|fleet| id("fleet_id", fleet)).transpose()?,
        action_type,
        action_name: bounded("action_name", request.action_name, MAX_NAME_BYTES)?,
        parameters: parameters(request.parameters.unwrap_or_default())?,
        idempotency_key: required("idempotency_key", request.idempotency_key)?,
        supports_preemption: request.supports_preemption,
        bypass_tier_evaluation: request.bypass_tier_evaluation,
        completion_mode,
        requires_operator_confirmation: request.requires_operator_confirmation,
        requested_at: timestamp(request.requested_at)?,
    })
}

fn id<T: FromStr<Err = crate::ids::IdError>>(
    field: &'static str,
    text: &str,
) -> Result<T, InvalidMission> {
    text.parse().map_err(|error| invalid(field, error))
}

fn key(field: &'static str, text: String) -> Result<String, InvalidMission> {
    bounded(field, text, MAX_KEY_BYTES)
}

fn bounded(field: &'static str, text: String, max: usize) -> Result<String, InvalidMission> {
    if text.len() > max {
        return Err(invalid(
            field,
            format_args!("is {} bytes long; at most {max} are allowed", text.len()),
        ));
    }
    if text.chars().any(char::is_control) {
        return Err(invalid(field, "contains a control character"));
    }
    Ok(text)
}

/// The contract lists two modes; an empty field is neither, and who has to say that a mission
/// succeeded is nothing to be guessed.
fn completion_mode(text: &str) -> Result<CompletionMode, InvalidMission> {
    [CompletionMode::Auto, CompletionMode::ManualOnly]
        .into_iter()
        .find(|mode| mode.as_str() == text)
        .ok_or_else(|| invalid("completion_mode", "is neither Auto nor ManualOnly"))
}

fn parameters(
    parameters: pb::ActionParameters,
) -> Result<BTreeMap<String, String>, InvalidMission> {
    let fields = parameters.fields;
    let too = |what: String| Err(invalid("parameters", what));
    if fields.len() > MAX_PARAMETERS {
        return too(format!(
            "has {} entries; at most {MAX_PARAMETERS} are allowed",
            fields.len()
        ));
    }
    let mut total = 0;
    for (name, value) in &fields {
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
            return too(format!(
                "a name is not 1 to {MAX_NAME_BYTES} bytes without control characters"
            ));
        }
        if value.len() > MAX_PARAMETER_BYTES {
            return too(format!(
                "a value is longer than {MAX_PARAMETER_BYTES} bytes"
            ));
        }
        total += name.len() + value.len();
    }
    if total > MAX_PARAMETERS_BYTES {
        return too(format!("come to more than {MAX_PARAMETERS_BYTES} bytes"));
    }
    Ok(fields.into_iter().collect())
}

fn timestamp(text: String) -> Result<String, InvalidMission> {
    // The library takes any byte between date and time, a line end as well.
    let between = text.as_bytes().get(10);
    let plain = text.len() <= MAX_TIME_BYTES && matches!(between, Some(b'T' | b't' | b' '));
    if text.is_empty() || plain && OffsetDateTime::parse(&text, &Rfc3339).is_ok() {
        Ok(text)
    } else {
        Err(invalid("requested_at", "is no RFC 3339 time"))
    }
}

/// The request that says the same as the command.
pub fn dispatch_request(command: &Command) -> pb::DispatchMissionRequest {
    let fleet_id = command.fleet_id.as_ref().map(ToString::to_string);
    let fields = command.parameters.clone().into_iter().collect();
    pb::DispatchMissionRequest {
        mission_id: command.mission_id.to_string(),
        correlation_id: command.correlation_id.clone(),
        plan_effect_idempotency_key: command.plan_effect_idempotency_key.clone(),
        robot_id: command.robot_id.to_string(),
        fleet_id: fleet_id.unwrap_or_default(),
        action_type: command.action_type.as_str().to_owned(),
        action_name: command.action_name.clone(),
        parameters: Some(pb::ActionParameters { fields }),
        idempotency_key: command.idempotency_key.clone(),
        supports_preemption: command.supports_preemption,
        bypass_tier_evaluation: command.bypass_tier_evaluation,
        completion_mode: command.completion_mode.as_str().to_owned(),
        requires_operator_confirmation: command.requires_operator_confirmation,
        requested_at: command.requested_at.clone(),
    }
}

/// At most `max` bytes of the text, without what forges log lines: a peer's words for people.
pub(super) fn printable(text: &str, max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max));
    let reorders = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    for c in text.chars().filter(|c| !c.is_control() && !reorders(*c)) {
        if out.len() + c.len_utf8() > max {
            break;
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests;

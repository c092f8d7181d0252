//! The JSON of the contract: written for robots, and read from them as from strangers.

use super::config::MqttRobot;
use crate::{
    adapter::Cancel,
    mission::{Command, MissionStatus},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, collections::BTreeMap, time::SystemTime};
use thiserror::Error;
use time::{
    OffsetDateTime, format_description::StaticFormatDescription, macros::format_description,
};

/// The largest payload that is read, in bytes.
pub const MAX_PAYLOAD_BYTES: usize = 64 * 1024;
/// How much of a robot's explanation is kept, in bytes.
pub const MAX_DETAIL_BYTES: usize = 1024;
/// How much of a robot's other texts is kept, in bytes.
pub const MAX_TEXT_BYTES: usize = 200;

const SCHEMA_VERSION: u64 = 1;
/// RFC 3339 in UTC with milliseconds, as JavaScript writes it.
const SENT_AT: StaticFormatDescription =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Outgoing<T> {
    schema_version: u64,
    sent_at: String,
    payload: T,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CommandPayload<'a> {
    mission_id: &'a str,
    correlation_id: &'a str,
    plan_effect_idempotency_key: &'a str,
    robot_id: &'a str,
    fleet_id: &'a str,
    gateway_id: &'a str,
    action_type: &'a str,
    action_name: &'a str,
    parameters: &'a BTreeMap<String, String>,
    idempotency_key: &'a str,
    supports_preemption: bool,
    bypass_tier_evaluation: bool,
    completion_mode: &'a str,
    requires_operator_confirmation: bool,
    requested_at: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CancelPayload<'a> {
    mission_id: &'a str,
    correlation_id: &'a str,
    plan_effect_idempotency_key: &'a str,
    reason: &'a str,
}

fn envelope<T: Serialize>(payload: T, now: SystemTime) -> Result<Bytes, serde_json::Error> {
    let sent_at = OffsetDateTime::from(now)
        .format(SENT_AT)
        .unwrap_or_default();
    let message = Outgoing {
        schema_version: SCHEMA_VERSION,
        sent_at,
        payload,
    };
    serde_json::to_vec(&message).map(Bytes::from)
}

pub(crate) fn command(
    command: &Command,
    robot: &MqttRobot,
    now: SystemTime,
) -> Result<Bytes, serde_json::Error> {
    let fleet = command.fleet_id.as_ref().or(robot.fleet.as_ref());
    let payload = CommandPayload {
        mission_id: command.mission_id.as_str(),
        correlation_id: &command.correlation_id,
        plan_effect_idempotency_key: &command.plan_effect_idempotency_key,
        robot_id: command.robot_id.as_str(),
        fleet_id: fleet.map_or("", |f| f.as_str()),
        gateway_id: &robot.gateway_id,
        action_type: command.action_type.as_str(),
        action_name: &command.action_name,
        parameters: &command.parameters,
        idempotency_key: &command.idempotency_key,
        supports_preemption: command.supports_preemption,
        bypass_tier_evaluation: command.bypass_tier_evaluation,
        completion_mode: command.completion_mode.as_str(),
        requires_operator_confirmation: command.requires_operator_confirmation,
        requested_at: &command.requested_at,
    };
    envelope(payload, now)
}

pub(crate) fn cancel(cancel: &Cancel, now: SystemTime) -> Result<Bytes, serde_json::Error> {
    let payload = CancelPayload {
        mission_id: cancel.command.mission_id.as_str(),
        correlation_id: &cancel.command.correlation_id,
        plan_effect_idempotency_key: &cancel.command.plan_effect_idempotency_key,
        reason: &cancel.reason,
    };
    envelope(payload, now)
}

/// Why a payload is not read. Never shows the payload.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PayloadError {
    /// Longer than [`MAX_PAYLOAD_BYTES`].
    #[error("{0} bytes are more than the {MAX_PAYLOAD_BYTES} allowed")]
    TooLarge(usize),
    /// Not the JSON expected.
    #[error("no JSON message of the contract (line {line}, column {column})")]
    Json {
        /// Where reading stopped.
        line: usize,
        /// Where reading stopped.
        column: usize,
    },
    /// Another version of the contract.
    #[error("schemaVersion {0} is not supported; {SCHEMA_VERSION} is")]
    SchemaVersion(u64),
    /// A status or a presence that the contract does not have.
    #[error("it names a state that the contract does not have")]
    State,
    /// The topic's mission id is none.
    #[error("its topic names no mission")]
    MissionId,
    /// Its topic is another robot's, or another tenant's, than the mission is of.
    #[error("it is about a mission of another robot or tenant")]
    Speaker,
}

impl PayloadError {
    /// The same without what the sender chose: reasons that are counted are to be few.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge(_) => "it is longer than any message of the contract",
            Self::Json { .. } => "it is no JSON message of the contract",
            Self::SchemaVersion(_) => "its schemaVersion is not supported",
            Self::State => "it names a state that the contract does not have",
            Self::MissionId => "its topic names no mission",
            Self::Speaker => "it is about a mission of another robot or tenant",
        }
    }
}

/// A mission's status as the robot wrote it, bounded and free of control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Where the mission is.
    pub status: MissionStatus,
    /// The robot's name for the execution; may be empty.
    pub action_execution_id: String,
    /// When the robot saw it, as sent; may be empty.
    pub observed_at: String,
    /// The robot's explanation; may be empty.
    pub detail: String,
}

#[derive(Deserialize)]
struct Incoming<T> {
    #[serde(rename = "schemaVersion")]
    schema_version: u64,
    payload: T,
}

#[derive(Deserialize)]
struct StatusPayload<'a> {
    #[serde(borrow)]
    status: Cow<'a, str>,
    action_execution_id: Option<Cow<'a, str>>,
    observed_at: Option<Cow<'a, str>>,
    detail: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct PresencePayload<'a> {
    #[serde(borrow)]
    state: Cow<'a, str>,
}

fn open<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Result<T, PayloadError> {
    if payload.len() > MAX_PAYLOAD_BYTES {
        return Err(PayloadError::TooLarge(payload.len()));
    }
    let message: Incoming<T> = serde_json::from_slice(payload).map_err(|e| PayloadError::Json {
        line: e.line(),
        column: e.column(),
    })?;
    if message.schema_version != SCHEMA_VERSION {
        return Err(PayloadError::SchemaVersion(message.schema_version));
    }
    Ok(message.payload)
}

/// Reads a status message.
pub fn parse_status(payload: &[u8]) -> Result<Status, PayloadError> {
    let read: StatusPayload<'_> = open(payload)?;
    Ok(Status {
        status: read.status.parse().map_err(|_| PayloadError::State)?,
        action_execution_id: for_people(read.action_execution_id, MAX_TEXT_BYTES),
        observed_at: for_people(read.observed_at, MAX_TEXT_BYTES),
        detail: for_people(read.detail, MAX_DETAIL_BYTES),
    })
}

/// Reads a presence message: whether the robot is online.
pub fn parse_presence(payload: &[u8]) -> Result<bool, PayloadError> {
    let read: PresencePayload<'_> = open(payload)?;
    match read.state.as_ref() {
        "online" => Ok(true),
        "offline" => Ok(false),
        _ => Err(PayloadError::State),
    }
}

/// Bounds a text and drops what forges log lines or terminals.
fn for_people(text: Option<Cow<'_, str>>, max_bytes: usize) -> String {
    let mut kept = String::new();
    for c in text
        .as_deref()
        .unwrap_or_default()
        .chars()
        .filter(|c| !is_deceptive(*c))
    {
        if kept.len() + c.len_utf8() > max_bytes {
            break;
        }
        kept.push(c);
    }
    kept
}

fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
#[path = "payload_tests.rs"]
mod tests;

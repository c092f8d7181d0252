//! The JSON of the contract as a robot reads and writes it.

use super::{core::Order, execution_log::rfc3339, reports::RobotReport};
use portarium_protocols::{
    ids::{MissionId, RobotId},
    mission::ActionType,
};
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

const SCHEMA_VERSION: u64 = 1;
/// The longest time that a mission may ask for.
const MAX_SECONDS: f64 = 3600.0;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<T> {
    schema_version: u64,
    #[serde(default)]
    sent_at: String,
    payload: T,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CommandPayload {
    mission_id: MissionId,
    robot_id: RobotId,
    action_type: String,
    #[serde(default)]
    idempotency_key: String,
    #[serde(default)]
    parameters: Parameters,
}

#[derive(Deserialize, Default)]
struct Parameters {
    duration: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CancelPayload {
    mission_id: MissionId,
}

#[derive(Serialize)]
struct StatusPayload<'a> {
    status: &'a str,
    action_execution_id: &'a str,
    observed_at: &'a str,
    detail: &'a str,
}

#[derive(Serialize)]
struct PresencePayload {
    state: &'static str,
}

fn open<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Result<T, String> {
    let envelope: Envelope<T> = serde_json::from_slice(payload)
        .map_err(|e| format!("no JSON of the contract at column {}", e.column()))?;
    if envelope.schema_version != SCHEMA_VERSION {
        return Err(format!(
            "schema version {} is unknown",
            envelope.schema_version
        ));
    }
    Ok(envelope.payload)
}

fn seal<T: Serialize>(payload: T) -> Vec<u8> {
    let sent_at = rfc3339(SystemTime::now());
    let envelope = Envelope {
        schema_version: SCHEMA_VERSION,
        sent_at,
        payload,
    };
    // Texts and integers only: this cannot fail.
    serde_json::to_vec(&envelope).unwrap_or_default()
}

/// Reads a command, for the robot that it names.
pub(super) fn command(
    payload: &[u8],
    expires: Option<Instant>,
) -> Result<(RobotId, Order), String> {
    let read: CommandPayload = open(payload)?;
    let order = Order {
        mission: read.mission_id,
        action_type: read
            .action_type
            .parse::<ActionType>()
            .map_err(|()| "unknown action type")?,
        idempotency_key: read.idempotency_key,
        duration: read.parameters.duration.as_deref().and_then(seconds),
        expires,
    };
    Ok((read.robot_id, order))
}

pub(super) fn cancel(payload: &[u8]) -> Result<MissionId, String> {
    open::<CancelPayload>(payload).map(|read| read.mission_id)
}

pub(super) fn status(report: &RobotReport) -> Vec<u8> {
    seal(StatusPayload {
        status: report.status.as_snake_case(),
        action_execution_id: &report.action_execution_id,
        observed_at: &report.observed_at,
        detail: &report.detail,
    })
}

pub(super) fn presence(online: bool) -> Vec<u8> {
    seal(PresencePayload {
        state: if online { "online" } else { "offline" },
    })
}

/// A decimal number of seconds; `None` if it is none, negative, or longer than an hour.
pub(super) fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.parse().ok()?;
    (0.0..=MAX_SECONDS)
        .contains(&seconds)
        .then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_command_is_read_with_its_duration_and_nonsense_is_not() {
        let json = |version: u64, action: &str| {
            serde_json::json!({
                "schemaVersion": version, "sentAt": "2026-08-01T00:00:00Z",
                "payload": {
                    "missionId": "m", "robotId": "r", "actionType": action, "actionName": "spin",
                    "idempotencyKey": "k", "parameters": {"duration": "2.5", "angle": "1"},
                },
            })
            .to_string()
        };
        let (robot, order) = command(json(1, "robot:execute_action").as_bytes(), None).unwrap();
        assert_eq!(robot.as_str(), "r");
        assert_eq!(
            (order.mission.as_str(), &*order.idempotency_key),
            ("m", "k")
        );
        assert_eq!(order.duration, Some(Duration::from_millis(2500)));
        assert!(command(json(2, "robot:execute_action").as_bytes(), None).is_err());
        assert!(command(json(1, "robot:dance").as_bytes(), None).is_err());
        assert!(command(b"{}", None).is_err());
    }

    #[test]
    fn a_time_that_is_no_sensible_time_is_none() {
        for bad in ["", "x", "-1", "NaN", "inf", "3601"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
        assert_eq!(seconds("0"), Some(Duration::ZERO));
    }
}

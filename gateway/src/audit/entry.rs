//! What a line says.

use super::chain::Mark;
use serde::{Serialize, Serializer};
use std::{fmt, net::SocketAddr, time::SystemTime};
use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};

/// The longest text of a field, in bytes. Callers write some of them.
const MAX_BYTES: usize = 512;

const RFC3339_MS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// It went on.
    Allowed,
    /// It did not.
    Refused,
}

/// One decision. Texts that are empty are left out; texts that are too long are cut.
#[derive(Clone, Serialize)]
pub struct Entry<'a> {
    /// What was decided.
    pub decision: Decision,
    /// The RPC's name, `handshake`, `report`, `recheck`, `HTTP/2` or `reload`.
    #[serde(serialize_with = "bounded")]
    pub method: &'a str,
    /// Who asked: a principal or a SPIFFE ID; of a report, the robot.
    #[serde(serialize_with = "shown", skip_serializing_if = "Option::is_none")]
    pub caller: Option<&'a dyn Shown>,
    /// The serial number of the caller's certificate.
    #[serde(serialize_with = "bounded", skip_serializing_if = "str::is_empty")]
    pub serial: &'a str,
    /// `sub` of the access token that the call needed and showed, verified.
    #[serde(serialize_with = "bounded", skip_serializing_if = "str::is_empty")]
    pub token_sub: &'a str,
    /// Its `jti`.
    #[serde(serialize_with = "bounded", skip_serializing_if = "str::is_empty")]
    pub token_jti: &'a str,
    /// The mission, as the caller named it.
    #[serde(serialize_with = "bounded", skip_serializing_if = "str::is_empty")]
    pub mission_id: &'a str,
    /// The robot, as the caller named it.
    #[serde(serialize_with = "bounded", skip_serializing_if = "str::is_empty")]
    pub robot_id: &'a str,
    /// The mission's action type.
    #[serde(serialize_with = "bounded", skip_serializing_if = "str::is_empty")]
    pub action_type: &'a str,
    /// The mission's action name.
    #[serde(serialize_with = "bounded", skip_serializing_if = "str::is_empty")]
    pub action_name: &'a str,
    /// What came of it: `DISPATCHED`, `POLICY_BLOCKED`, `InvalidMission`, `accepted` and so on.
    #[serde(serialize_with = "bounded", skip_serializing_if = "str::is_empty")]
    pub outcome: &'a str,
    /// Why, for people.
    #[serde(serialize_with = "bounded", skip_serializing_if = "str::is_empty")]
    pub reason: &'a str,
    /// Where a connection came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<SocketAddr>,
}

/// What a caller is written as.
pub trait Shown: fmt::Display + Sync {}
impl<T: fmt::Display + Sync> Shown for T {}

impl<'a> Entry<'a> {
    /// A decision on a call of the method, with all else empty.
    pub fn new(decision: Decision, method: &'a str) -> Self {
        Self {
            decision,
            method,
            caller: None,
            serial: "",
            token_sub: "",
            token_jti: "",
            mission_id: "",
            robot_id: "",
            action_type: "",
            action_name: "",
            outcome: "",
            reason: "",
            remote: None,
        }
    }
}

/// An entry with its time.
#[derive(Serialize)]
pub(super) struct Line<'a> {
    pub(super) time: Stamp,
    #[serde(flatten)]
    pub(super) entry: &'a Entry<'a>,
}

/// Stands where lines were given up.
#[derive(Serialize)]
pub(super) struct Gap {
    pub(super) time: Stamp,
    pub(super) dropped: u64,
}

/// Stands for what was refused and got no line of its own.
#[derive(Serialize)]
pub(super) struct Suppressed<'a> {
    pub(super) time: Stamp,
    pub(super) decision: Decision,
    pub(super) method: &'a str,
    pub(super) reason: &'a str,
    pub(super) suppressed: u64,
}

/// Tells where the audit goes on from.
#[derive(Serialize)]
pub(super) struct Marked<'a> {
    pub(super) time: Stamp,
    #[serde(flatten)]
    pub(super) mark: &'a Mark,
}

/// RFC 3339, UTC, with milliseconds.
pub(super) struct Stamp(pub(super) SystemTime);

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = OffsetDateTime::from(self.0).format(RFC3339_MS);
        serializer.serialize_str(&text.map_err(serde::ser::Error::custom)?)
    }
}

fn shown<S: Serializer>(caller: &Option<&dyn Shown>, serializer: S) -> Result<S::Ok, S::Error> {
    match caller {
        Some(caller) => serializer.collect_str(caller),
        None => serializer.serialize_none(),
    }
}

fn bounded<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    if text.len() <= MAX_BYTES {
        return serializer.serialize_str(text);
    }
    serializer.collect_str(&format_args!(
        "{}…",
        &text[..text.floor_char_boundary(MAX_BYTES)]
    ))
}

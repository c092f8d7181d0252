//! The file as it is written: every key known, nothing believed yet.

use serde::{
    Deserialize, Deserializer,
    de::{Error, Unexpected, Visitor},
};
use std::{collections::BTreeMap, fmt};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Raw {
    pub(super) development: Option<Flag>,
    pub(super) identity: RawIdentity,
    pub(super) grpc: RawListener,
    pub(super) health: RawListener,
    pub(super) admin: RawListener,
    pub(super) journal: RawJournal,
    pub(super) audit: RawAudit,
    pub(super) engine: RawEngine,
    pub(super) log: RawLog,
    pub(super) tokens: Option<RawTokens>,
    pub(super) policy: Vec<RawRule>,
    pub(super) mqtt: BTreeMap<String, RawBroker>,
    pub(super) robots: Vec<RawRobot>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawIdentity {
    pub(super) endpoint_socket: Option<Text>,
    pub(super) hint: Option<Text>,
    pub(super) renew_before: Option<Text>,
    pub(super) deny: Option<Vec<Text>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawListener {
    pub(super) listen: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawJournal {
    pub(super) path: Option<Text>,
    pub(super) keep_finished_for: Option<Text>,
    pub(super) keep_finished_at_most: Option<Count>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAudit {
    pub(super) path: Option<Text>,
    pub(super) rotate_bytes: Option<Count>,
    pub(super) keep: Option<Count>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawEngine {
    pub(super) shutdown_grace: Option<Text>,
    pub(super) open_missions_at_most: Option<Count>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLog {
    pub(super) format: Option<Text>,
    pub(super) filter: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTokens {
    pub(super) issuer: Option<Text>,
    pub(super) audience: Option<Text>,
    pub(super) methods: Option<Vec<Text>>,
    pub(super) stops: Option<Flag>,
    pub(super) keys_file: Option<Text>,
    pub(super) keys_url: Option<Text>,
    pub(super) keys_ca_file: Option<Text>,
    pub(super) keys_trust_domain: Option<Text>,
    pub(super) keys_refresh: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawRule {
    pub(super) peers: Option<Vec<Text>>,
    pub(super) methods: Option<Vec<Text>>,
    pub(super) robots: Option<Vec<Text>>,
    pub(super) fleets: Option<Vec<Text>>,
    pub(super) actions: Option<Vec<Text>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawBroker {
    pub(super) address: Option<Text>,
    pub(super) peers: Option<Vec<Text>>,
    pub(super) shared_status_topic: Option<Flag>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawRobot {
    pub(super) id: Option<Text>,
    pub(super) fleet: Option<Text>,
    pub(super) tenant: Option<Text>,
    pub(super) adapter: Option<Text>,
    pub(super) broker: Option<Text>,
    pub(super) address: Option<Text>,
    pub(super) peers: Option<Vec<Text>>,
    pub(super) jwt_audience: Option<Text>,
    pub(super) actions: Option<Vec<Text>>,
    pub(super) redelivery: Option<Text>,
    pub(super) deliver_within: Option<Text>,
    pub(super) queue: Option<Count>,
}

/// A text that was written as one. The crate `config` would turn numbers and flags into texts,
/// texts such as `"yes"` into flags, and cut fractions off: the three types here do not.
#[derive(Debug, Clone)]
pub(super) struct Text(pub(super) String);

/// A flag; in the environment the text `true` or `false`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flag(pub(super) bool);

/// A whole number, not negative; in the environment its digits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Count(pub(super) u64);

struct Leaf<T>(&'static str, fn(Value<'_>) -> Option<T>);

enum Value<'a> {
    Text(&'a str),
    Flag(bool),
    Number(i64),
}

impl<'de, T> Visitor<'de> for Leaf<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.1)(Value::Text(text)).ok_or_else(|| E::invalid_type(Unexpected::Str(text), &self))
    }
    fn visit_bool<E: Error>(self, flag: bool) -> Result<T, E> {
        (self.1)(Value::Flag(flag)).ok_or_else(|| E::invalid_type(Unexpected::Bool(flag), &self))
    }
    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        (self.1)(Value::Number(number))
            .ok_or_else(|| E::invalid_type(Unexpected::Signed(number), &self))
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Leaf("a text in quotes", |value| match value {
            Value::Text(text) => Some(Self(text.to_owned())),
            _ => None,
        }))
    }
}

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Leaf("true or false", |value| match value {
            Value::Flag(flag) => Some(Self(flag)),
            Value::Text(text) => text.parse().ok().map(Self),
            Value::Number(_) => None,
        }))
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Leaf("a whole number, 0 or more", |value| match value {
            Value::Number(number) => number.try_into().ok().map(Self),
            Value::Text(text) => text.parse().ok().map(Self),
            Value::Flag(_) => None,
        }))
    }
}

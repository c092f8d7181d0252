//! What the adapter is told, and what it refuses to start with.

use crate::ids::{FleetId, RobotId, TenantId};
use portarium_identity::{ClientTls, SpiffeId};
use std::{collections::HashSet, fmt, io, time::Duration};
use thiserror::Error;

/// The longest client id base accepted, in bytes. A SPIFFE ID has at most 2,048.
const MAX_CLIENT_ID_BYTES: usize = 2_048;

/// Where a broker listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// A DNS name or an IP address, without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A robot behind the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MqttRobot {
    /// Its name, in topics too.
    pub robot_id: RobotId,
    /// The tenant in whose branch of the topics it lives.
    pub tenant: TenantId,
    /// Sent as `fleetId` where the command names no fleet.
    pub fleet: Option<FleetId>,
    /// Sent as `gatewayId`.
    pub gateway_id: String,
}

/// One broker and the robots behind it.
#[derive(Clone)]
pub struct MqttConfig {
    /// Where the broker listens.
    pub broker: Broker,
    /// Mutual TLS with the gateway's SVID. `None` is plaintext, which only `development` allows.
    pub tls: Option<ClientTls>,
    /// Renews plaintext connections as though certificates of this lifetime were in use.
    /// Without effect where `tls` is set: there the certificates say how long a connection lives.
    pub plaintext_lease: Option<Duration>,
    /// What the MQTT client ids begin with; see [`client_id_base`].
    pub client_id_base: String,
    /// The robots; robot ids are unique.
    pub robots: Vec<MqttRobot>,
    /// Also listens to `portarium/{tenant}/missions/+/status`, where a robot does not show who
    /// it is.
    pub shared_status_topic: bool,
}

/// Why the adapter does not start or take a new list of robots.
#[derive(Debug, Error)]
pub enum MqttError {
    /// Two robots of one broker have one name.
    #[error("robot {0} is configured twice on one broker; robot ids must be unique")]
    DuplicateRobot(RobotId),
    /// The client id is empty, too long, or has control characters.
    #[error(
        "{0:?} cannot be an MQTT client id: 1 to {MAX_CLIENT_ID_BYTES} visible characters are allowed"
    )]
    ClientId(String),
    /// The stop lane has a thread of its own, and the system refused it.
    #[error("cannot start the thread of the stop lane: {0}")]
    Thread(#[from] io::Error),
}

/// The client id base that belongs to an identity: trust domain and path, with `:` for `/`.
///
/// Neither `:` nor the `~` before the connection's name is allowed in a SPIFFE ID, so that no two
/// identities share a client id and take each other's session over. `#` and `+` are avoided,
/// since mosquitto refuses pattern ACLs to clients that have them in their id.
pub fn client_id_base(id: &SpiffeId) -> String {
    id.to_string()
        .trim_start_matches("spiffe://")
        .replace('/', ":")
}

impl MqttConfig {
    pub(crate) fn validate(&self) -> Result<(), MqttError> {
        let base = &self.client_id_base;
        if base.is_empty()
            || base.len() > MAX_CLIENT_ID_BYTES
            || base.chars().any(|c| c.is_control() || c.is_whitespace())
        {
            return Err(MqttError::ClientId(base.clone()));
        }
        check_unique(&self.robots)
    }
}

pub(crate) fn check_unique(robots: &[MqttRobot]) -> Result<(), MqttError> {
    let mut seen = HashSet::new();
    match robots.iter().find(|r| !seen.insert(&r.robot_id)) {
        Some(twice) => Err(MqttError::DuplicateRobot(twice.robot_id.clone())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_client_id_names_the_whole_identity_and_has_no_character_with_a_meaning_to_brokers() {
        let id = SpiffeId::new("spiffe://portarium.robotics/ns/portarium/sa/gateway/dev").unwrap();
        assert_eq!(
            client_id_base(&id),
            "portarium.robotics:ns:portarium:sa:gateway:dev"
        );
    }

    #[test]
    fn a_robot_named_twice_is_refused() {
        let robot = MqttRobot {
            robot_id: "r".parse().unwrap(),
            tenant: "t".parse().unwrap(),
            fleet: None,
            gateway_id: "g".into(),
        };
        assert!(check_unique(&[robot.clone(), robot]).is_err());
    }
}

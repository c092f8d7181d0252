//! CONNECT and CONNACK: what we ask for, and what the broker grants.

use super::{dial::LinkError, inbox::RECEIVE_MAXIMUM, incoming::MAX_PACKET_BYTES};
use rumqttc::v5::mqttbytes::v5::{ConnAck, Connect, ConnectProperties};
use std::time::Duration;

/// Publishes that wait for their PUBACK; the broker's receive maximum may set it lower.
const WINDOW: u16 = 512;
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Who connects, and what is to outlast the connection.
#[derive(Debug, Clone)]
pub(crate) struct Hello {
    pub(crate) client_id: String,
    /// How long the broker keeps the session; `None`: not at all, and none is resumed.
    pub(crate) session: Option<Duration>,
}

pub(crate) fn connect(hello: &Hello) -> Connect {
    let seconds = |d: Duration| u32::try_from(d.as_secs()).unwrap_or(u32::MAX);
    let mut properties = ConnectProperties::new();
    properties.session_expiry_interval = Some(hello.session.map_or(0, seconds));
    properties.receive_maximum = Some(RECEIVE_MAXIMUM);
    properties.max_packet_size = Some(MAX_PACKET_BYTES);
    Connect {
        keep_alive: u16::try_from(KEEP_ALIVE.as_secs()).unwrap_or(u16::MAX),
        client_id: hello.client_id.clone(),
        clean_start: hello.session.is_none(),
        properties: Some(properties),
    }
}

/// What the broker grants in its CONNACK.
pub(crate) struct Granted {
    pub(crate) window: u16,
    pub(crate) max_packet: Option<u32>,
    pub(crate) ping_after: Duration,
    pub(crate) can_retain: bool,
}

impl Granted {
    pub(crate) fn of(connack: &ConnAck) -> Result<Self, LinkError> {
        let properties = connack.properties.as_ref();
        if properties.and_then(|p| p.max_qos) == Some(0) {
            return Err(LinkError::NoQos1);
        }
        let window = properties
            .and_then(|p| p.receive_max)
            .unwrap_or(u16::MAX)
            .clamp(1, WINDOW);
        let keep_alive = properties
            .and_then(|p| p.server_keep_alive)
            .filter(|seconds| *seconds > 0)
            .map_or(KEEP_ALIVE, |seconds| Duration::from_secs(seconds.into()));
        Ok(Self {
            window,
            max_packet: properties.and_then(|p| p.max_packet_size),
            ping_after: (keep_alive / 2).clamp(Duration::from_secs(1), Duration::from_secs(4)),
            can_retain: properties.and_then(|p| p.retain_available) != Some(0),
        })
    }
}

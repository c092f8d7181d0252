//! Making a connection to the broker.

use super::front::{BATCH, Front};
use crate::dev::robot::wire;
use portarium_identity::{IdentityError, Lease, Peer};
use rumqttc::{
    TlsConfiguration, Transport,
    v5::{
        AsyncClient, ClientError, ConnectionError, Event, EventLoop, MqttOptions,
        mqttbytes::{
            QoS,
            v5::{LastWill, LastWillProperties, Packet},
        },
    },
};
use std::{
    collections::VecDeque,
    sync::Mutex,
    time::{Duration, SystemTime},
};
use thiserror::Error;
use tokio::{sync::watch, time::timeout};

const CONNECT_TIME: Duration = Duration::from_secs(10);
/// Unacknowledged reports on one connection.
const IN_FLIGHT: u16 = 100;
const PACKET_BYTES: u32 = 256 * 1024;

/// Why a robot has no connection.
#[derive(Debug, Error)]
pub(super) enum FrontError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Connection(#[from] Box<ConnectionError>),
    #[error(transparent)]
    Client(#[from] Box<ClientError>),
    #[error("no answer within {CONNECT_TIME:?}")]
    Timeout,
    #[error("the certificates end, and no new connection could be made")]
    Expired,
}

impl From<ConnectionError> for FrontError {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(Box::new(error))
    }
}

impl From<ClientError> for FrontError {
    fn from(error: ClientError) -> Self {
        Self::Client(Box::new(error))
    }
}

/// What the acknowledgements to come are for: a report's position, or something else. Brokers
/// acknowledge in order.
pub(super) type Sent = Mutex<VecDeque<Option<u64>>>;

/// Who is on the other end, once it is known.
type PeerSeen = Option<watch::Receiver<Option<Peer>>>;

/// A connection whose CONNECT was answered.
pub(super) struct Connection {
    pub(super) client: AsyncClient,
    pub(super) events: EventLoop,
    pub(super) session_present: bool,
    pub(super) lease: Option<Lease>,
    pub(super) sent: Sent,
}

impl Front {
    pub(super) async fn connect(&self) -> Result<Connection, FrontError> {
        let (options, peer) = self.options()?;
        let (client, mut events) = AsyncClient::new(options, 2 * BATCH);
        let mut network = events.options.network_options();
        network.set_tcp_nodelay(true);
        events.options.set_network_options(network);
        let session_present = loop {
            let event = timeout(CONNECT_TIME, events.poll())
                .await
                .map_err(|_| FrontError::Timeout)?;
            if let Event::Incoming(Packet::ConnAck(answer)) = event? {
                break answer.session_present;
            }
        };
        let peer = peer.and_then(|peer| peer.borrow().clone());
        Ok(Connection {
            client,
            events,
            session_present,
            lease: peer.map(|peer: Peer| peer.lease(SystemTime::now())),
            sent: Mutex::default(),
        })
    }

    fn options(&self) -> Result<(MqttOptions, PeerSeen), FrontError> {
        let config = &self.config;
        let mut options = MqttOptions::new(&config.client_id, &config.host, config.port);
        options
            .set_clean_start(false)
            .set_session_expiry_interval(Some(3600))
            .set_keep_alive(config.keep_alive)
            .set_max_packet_size(Some(PACKET_BYTES))
            .set_outgoing_inflight_upper_limit(IN_FLIGHT);
        if let Some(robot) = self.alone() {
            let delay = u32::try_from(config.will_delay.as_secs()).unwrap_or(u32::MAX);
            let properties = LastWillProperties {
                delay_interval: Some(delay),
                payload_format_indicator: None,
                message_expiry_interval: None,
                content_type: None,
                response_topic: None,
                correlation_data: None,
                user_properties: Vec::new(),
            };
            let topic = self.presence_topic(robot.id());
            let offline = wire::presence(false);
            options.set_last_will(LastWill::new(
                topic,
                offline,
                QoS::AtLeastOnce,
                true,
                Some(properties),
            ));
        }
        let Some(tls) = &config.tls else {
            return Ok((options, None));
        };
        let (tls, peer) = tls.config()?;
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls)));
        Ok((options, Some(peer)))
    }
}

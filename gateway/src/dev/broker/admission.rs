//! Who is let in, with what, and what its identity allows.

use super::{
    AclRule, Shared, client_id_prefix,
    router::{Attach, Attached},
    session::Will,
    topic::{covers, valid_name},
};
use portarium_identity::Peer;
use rumqttc::v5::mqttbytes::{
    QoS,
    v5::{ConnAck, ConnAckProperties, Connect, ConnectProperties, ConnectReturnCode, LastWill},
};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

const MAX_CLIENT_ID_BYTES: usize = 1024;

/// What a client's identity allows, and until when.
pub(super) struct Permit<'a> {
    client_id_prefix: String,
    rules: Vec<&'a AclRule>,
    pub(super) ends: Instant,
}

impl<'a> Permit<'a> {
    pub(super) fn of(peer: &Peer, rules: &'a [AclRule], now: SystemTime) -> Self {
        Self {
            client_id_prefix: client_id_prefix(&peer.spiffe_id),
            rules: rules
                .iter()
                .filter(|rule| rule.who.matches(&peer.spiffe_id))
                .collect(),
            ends: peer.lease(now).ends,
        }
    }

    /// Whether a client ID belongs to the identity: see [`client_id_prefix`].
    fn owns(&self, client_id: &str) -> bool {
        let of_a_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        client_id
            .strip_prefix(&*self.client_id_prefix)
            .is_some_and(|rest| rest.chars().next().is_none_or(|c| !of_a_name(c)))
    }

    pub(super) fn may_publish(&self, name: &str) -> bool {
        self.rules
            .iter()
            .flat_map(|rule| &rule.publish)
            .any(|allowed| covers(allowed, name))
    }

    pub(super) fn may_subscribe(&self, filter: &str) -> bool {
        self.rules
            .iter()
            .flat_map(|rule| &rule.subscribe)
            .any(|allowed| covers(allowed, filter))
    }
}

pub(super) fn expiry(seconds: u32, shared: &Shared) -> Duration {
    Duration::from_secs(seconds.into()).min(shared.limits.session_expiry)
}

/// A client that was let in.
pub(super) struct Client {
    pub(super) attached: Attached,
    pub(super) keep_alive: Duration,
}

/// Gives a client its session, or says why not.
pub(super) fn admit(
    connect: &Connect,
    will: Option<LastWill>,
    permit: Option<&Permit<'_>>,
    shared: &Shared,
) -> Result<(Client, ConnAck), ConnectReturnCode> {
    let client_id = connect.client_id.as_str();
    if client_id.is_empty() || client_id.len() > MAX_CLIENT_ID_BYTES {
        return Err(ConnectReturnCode::ClientIdentifierNotValid);
    }
    if permit.is_some_and(|permit| !permit.owns(client_id)) {
        return Err(ConnectReturnCode::NotAuthorized);
    }
    let none = ConnectProperties::new();
    let asked = connect.properties.as_ref().unwrap_or(&none);
    if asked.authentication_method.is_some() {
        return Err(ConnectReturnCode::BadAuthenticationMethod);
    }
    if asked.receive_maximum == Some(0) || asked.max_packet_size == Some(0) {
        return Err(ConnectReturnCode::ProtocolError);
    }
    let will = will.map(|will| check_will(will, permit)).transpose()?;
    let wanted = asked.session_expiry_interval.unwrap_or(0);
    let expiry = expiry(wanted, shared);
    let window = usize::from(asked.receive_maximum.unwrap_or(u16::MAX));
    let attach = Attach {
        client_id,
        clean_start: connect.clean_start,
        expiry,
        window: window.min(shared.limits.in_flight),
        max_packet: asked.max_packet_size,
        will,
    };
    let attached = shared
        .router()
        .attach(attach, Instant::now())
        .ok_or(ConnectReturnCode::QuotaExceeded)?;
    let longest = shared.limits.keep_alive;
    let keep_alive = match Duration::from_secs(connect.keep_alive.into()) {
        Duration::ZERO => longest,
        asked => asked.min(longest),
    };
    let answer = ConnAck {
        session_present: attached.resumed,
        code: ConnectReturnCode::Success,
        properties: Some(ConnAckProperties {
            session_expiry_interval: whole(expiry).filter(|granted| *granted != wanted),
            server_keep_alive: whole(keep_alive)
                .and_then(|seconds| u16::try_from(seconds).ok())
                .filter(|granted| *granted != connect.keep_alive),
            ..offers(shared)
        }),
    };
    Ok((
        Client {
            attached,
            keep_alive,
        },
        answer,
    ))
}

fn whole(time: Duration) -> Option<u32> {
    u32::try_from(time.as_secs()).ok()
}

fn check_will(will: LastWill, permit: Option<&Permit<'_>>) -> Result<Will, ConnectReturnCode> {
    if will.qos == QoS::ExactlyOnce {
        return Err(ConnectReturnCode::QoSNotSupported);
    }
    let name = std::str::from_utf8(&will.topic).unwrap_or_default();
    if !valid_name(name) {
        return Err(ConnectReturnCode::TopicNameInvalid);
    }
    if permit.is_some_and(|permit| !permit.may_publish(name)) {
        return Err(ConnectReturnCode::NotAuthorized);
    }
    let delay = will
        .properties
        .as_ref()
        .and_then(|p| p.delay_interval)
        .unwrap_or(0);
    Ok(Will {
        will,
        delay: Duration::from_secs(delay.into()),
        due: None,
    })
}

/// What this broker has and has not.
fn offers(shared: &Shared) -> ConnAckProperties {
    ConnAckProperties {
        session_expiry_interval: None,
        receive_max: None,
        max_qos: Some(1),
        retain_available: None,
        max_packet_size: Some(shared.limits.packet_bytes),
        assigned_client_identifier: None,
        topic_alias_max: None,
        reason_string: None,
        user_properties: Vec::new(),
        wildcard_subscription_available: None,
        subscription_identifiers_available: Some(0),
        shared_subscription_available: Some(0),
        server_keep_alive: None,
        response_information: None,
        server_reference: None,
        authentication_method: None,
        authentication_data: None,
    }
}

//! One client's connection, from its handshake to its end.

use super::{
    Access, AclRule, Shared, client_id_prefix,
    router::{Attach, Attached, Routed},
    session::{Message, Will},
    topic::{covers, valid_filter, valid_name},
    wire::{Incoming, Reader, WireError, put_disconnect},
};
use bytes::BytesMut;
use portarium_identity::TlsError;
use rumqttc::v5::mqttbytes::{
    QoS,
    v5::{
        ConnAck, ConnAckProperties, Connect, ConnectProperties, ConnectReturnCode,
        DisconnectReasonCode, Filter, LastWill, Packet, PingResp, PubAck, PubAckReason, Publish,
        SubAck, Subscribe, SubscribeReasonCode, UnsubAck, UnsubAckReason, Unsubscribe,
    },
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, split},
    net::TcpStream,
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

/// How long a client may take for its CONNECT, and for taking what is written to it.
const CONNECT_TIME: Duration = Duration::from_secs(5);
const WRITE_TIME: Duration = Duration::from_secs(10);
/// Acknowledgements that may wait for the writer before the reader waits too.
const REPLIES: usize = 64;
const MAX_CLIENT_ID_BYTES: usize = 1024;

#[derive(Debug, Error)]
pub(super) enum ConnectionError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("cannot write: {0}")]
    Write(std::io::Error),
    #[error("no CONNECT within {CONNECT_TIME:?}")]
    NoConnect,
    #[error("the client did not begin with CONNECT")]
    NotConnect,
    #[error("connection refused: {0:?}")]
    Refused(ConnectReturnCode),
    #[error("the client took nothing for {WRITE_TIME:?}")]
    Stalled,
    #[error("client {client_id}: {reason:?}")]
    Ended {
        client_id: Box<str>,
        reason: DisconnectReasonCode,
    },
}

/// What a client's identity allows.
struct Permit<'a> {
    client_id_prefix: String,
    rules: Vec<&'a AclRule>,
    ends: Instant,
}

/// Handshakes, and serves the client until its connection ends.
pub(super) async fn serve(stream: TcpStream, shared: &Shared) -> Result<(), ConnectionError> {
    stream.set_nodelay(true).map_err(ConnectionError::Write)?;
    match &shared.access {
        Access::Open => run(stream, None, shared).await,
        Access::Identities { tls, rules } => {
            let (stream, peer) = tls.accept(stream).await?;
            let permit = Permit {
                client_id_prefix: client_id_prefix(&peer.spiffe_id),
                rules: rules
                    .iter()
                    .filter(|rule| rule.who.matches(&peer.spiffe_id))
                    .collect(),
                ends: peer.lease(SystemTime::now()).ends,
            };
            run(stream, Some(permit), shared).await
        }
    }
}

/// How a connection came to its end.
enum End {
    Left {
        with_will: bool,
        session_expiry: Option<u32>,
    },
    Lost(ConnectionError),
    Told(DisconnectReasonCode),
}

async fn run<IO: AsyncRead + AsyncWrite>(
    stream: IO,
    permit: Option<Permit<'_>>,
    shared: &Shared,
) -> Result<(), ConnectionError> {
    let (read, mut write) = split(stream);
    let mut reader = Reader::new(read, shared.limits.packet_bytes);
    let first = tokio::select! {
        first = timeout(CONNECT_TIME, reader.next()) => first,
        () = shared.stop.cancelled() => return Ok(()),
    };
    let admitted = match first.map_err(|_| ConnectionError::NoConnect)? {
        Ok(Incoming::Packet(Packet::Connect(connect, will, _))) => {
            admit(&connect, will, permit.as_ref(), shared)
        }
        Ok(_) => return Err(ConnectionError::NotConnect),
        Err(WireError::Level(_)) => Err(ConnectReturnCode::UnsupportedProtocolVersion),
        Err(error) => return Err(error.into()),
    };
    let mut buffer = BytesMut::new();
    let (client, answer) = match admitted {
        Ok((client, answer)) => (Some(client), answer),
        Err(code) => (
            None,
            ConnAck {
                session_present: false,
                code,
                properties: None,
            },
        ),
    };
    let code = answer.code;
    put(&Packet::ConnAck(answer), &mut buffer);
    let greeted = send(&mut write, &mut buffer).await;
    let Some(Client {
        attached,
        keep_alive,
    }) = client
    else {
        return Err(ConnectionError::Refused(code));
    };
    let Attached {
        session,
        number,
        wake,
        taken_over,
        ..
    } = attached;
    let (replies, waiting) = mpsc::channel(REPLIES);
    let talk = Conversation {
        session: &session,
        permit: permit.as_ref(),
        shared,
    };
    let lease_ends = async {
        match &permit {
            Some(permit) => sleep_until(permit.ends).await,
            None => std::future::pending().await,
        }
    };
    let end = match greeted {
        Err(error) => End::Lost(error),
        Ok(()) => tokio::select! {
            end = talk.read(&mut reader, keep_alive, replies) => end,
            end = talk.write(&mut write, number, &wake, waiting) => end,
            _ = taken_over => End::Told(DisconnectReasonCode::SessionTakenOver),
            () = lease_ends => End::Told(DisconnectReasonCode::MaximumConnectTime),
            () = shared.stop.cancelled() => End::Told(DisconnectReasonCode::ServerShuttingDown),
        },
    };
    let says_will = match &end {
        End::Left {
            with_will,
            session_expiry,
        } => {
            if let Some(seconds) = session_expiry {
                session.state().expiry = expiry(*seconds, shared);
            }
            *with_will
        }
        End::Lost(_) => true,
        End::Told(reason) => *reason != DisconnectReasonCode::ServerShuttingDown,
    };
    shared
        .router()
        .detach(&session, number, says_will, Instant::now());
    match end {
        End::Left { .. } | End::Lost(ConnectionError::Wire(WireError::Closed)) => Ok(()),
        End::Lost(error) => Err(error),
        End::Told(reason) => {
            buffer.clear();
            put_disconnect(&mut buffer, reason);
            send(&mut write, &mut buffer).await?;
            write.shutdown().await.map_err(ConnectionError::Write)?;
            Err(ConnectionError::Ended {
                client_id: session.client_id.clone(),
                reason,
            })
        }
    }
}

fn expiry(seconds: u32, shared: &Shared) -> Duration {
    Duration::from_secs(seconds.into()).min(shared.limits.session_expiry)
}

struct Client {
    attached: Attached,
    keep_alive: Duration,
}

/// Gives a client its session, or says why not.
fn admit(
    connect: &Connect,
    will: Option<LastWill>,
    permit: Option<&Permit<'_>>,
    shared: &Shared,
) -> Result<(Client, ConnAck), ConnectReturnCode> {
    let client_id = connect.client_id.as_str();
    if client_id.is_empty() || client_id.len() > MAX_CLIENT_ID_BYTES {
        return Err(ConnectReturnCode::ClientIdentifierNotValid);
    }
    if permit.is_some_and(|permit| !owns(&permit.client_id_prefix, client_id)) {
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

/// Whether a client ID belongs to the identity of the prefix: see [`client_id_prefix`].
fn owns(prefix: &str, client_id: &str) -> bool {
    let of_a_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    client_id
        .strip_prefix(prefix)
        .is_some_and(|rest| rest.chars().next().is_none_or(|c| !of_a_name(c)))
}

fn check_will(will: LastWill, permit: Option<&Permit<'_>>) -> Result<Will, ConnectReturnCode> {
    if will.qos == QoS::ExactlyOnce {
        return Err(ConnectReturnCode::QoSNotSupported);
    }
    let name = std::str::from_utf8(&will.topic).unwrap_or_default();
    if !valid_name(name) {
        return Err(ConnectReturnCode::TopicNameInvalid);
    }
    if !may_publish(permit, name) {
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

fn may_publish(permit: Option<&Permit<'_>>, name: &str) -> bool {
    permit.is_none_or(|permit| {
        permit
            .rules
            .iter()
            .flat_map(|rule| &rule.publish)
            .any(|allowed| covers(allowed, name))
    })
}

fn may_subscribe(permit: Option<&Permit<'_>>, filter: &str) -> bool {
    permit.is_none_or(|permit| {
        permit
            .rules
            .iter()
            .flat_map(|rule| &rule.subscribe)
            .any(|allowed| covers(allowed, filter))
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

struct Conversation<'a> {
    session: &'a Arc<super::session::Session>,
    permit: Option<&'a Permit<'a>>,
    shared: &'a Shared,
}

impl Conversation<'_> {
    async fn read<R: AsyncRead + Unpin>(
        &self,
        reader: &mut Reader<R>,
        keep_alive: Duration,
        replies: mpsc::Sender<Packet>,
    ) -> End {
        loop {
            let packet = match timeout(keep_alive * 3 / 2, reader.next()).await {
                Err(_) => return End::Told(DisconnectReasonCode::KeepAliveTimeout),
                Ok(Ok(Incoming::Packet(packet))) => packet,
                Ok(Ok(Incoming::Disconnect {
                    with_will,
                    session_expiry,
                })) => {
                    return End::Left {
                        with_will,
                        session_expiry,
                    };
                }
                Ok(Err(WireError::TooLarge { .. })) => {
                    return End::Told(DisconnectReasonCode::PacketTooLarge);
                }
                Ok(Err(WireError::Malformed(error))) => {
                    tracing::debug!(%error, "malformed packet");
                    return End::Told(DisconnectReasonCode::MalformedPacket);
                }
                Ok(Err(error)) => return End::Lost(error.into()),
            };
            match self.answer(packet) {
                Ok(None) => {}
                Ok(Some(reply)) => {
                    if timeout(WRITE_TIME, replies.send(reply)).await.is_err() {
                        return End::Lost(ConnectionError::Stalled);
                    }
                }
                Err(reason) => return End::Told(reason),
            }
        }
    }

    fn answer(&self, packet: Packet) -> Result<Option<Packet>, DisconnectReasonCode> {
        match packet {
            Packet::Publish(publish) => self.publish(publish),
            Packet::PubAck(ack) => {
                self.session.state().acknowledge(ack.pkid);
                Ok(None)
            }
            Packet::PingReq(_) => Ok(Some(Packet::PingResp(PingResp))),
            Packet::Subscribe(subscribe) => self.subscribe(&subscribe).map(Some),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(&unsubscribe).map(Some),
            _ => Err(DisconnectReasonCode::ProtocolError),
        }
    }

    fn publish(&self, publish: Publish) -> Result<Option<Packet>, DisconnectReasonCode> {
        if publish.qos == QoS::ExactlyOnce {
            return Err(DisconnectReasonCode::QoSNotSupported);
        }
        if publish
            .properties
            .as_ref()
            .is_some_and(|p| p.topic_alias.is_some())
        {
            return Err(DisconnectReasonCode::TopicAliasInvalid);
        }
        let (pkid, qos) = (publish.pkid, publish.qos);
        let message = Arc::new(Message::from_publish(publish, Instant::now()));
        if !valid_name(message.name()) {
            return Err(DisconnectReasonCode::TopicNameInvalid);
        }
        let reason = if may_publish(self.permit, message.name()) {
            match self
                .shared
                .router()
                .publish(&self.session.client_id, &message)
            {
                Routed::Delivered => PubAckReason::Success,
                Routed::NobodySubscribed => PubAckReason::NoMatchingSubscribers,
                Routed::Dropped => PubAckReason::QuotaExceeded,
            }
        } else {
            tracing::warn!(client_id = %self.session.client_id, topic = message.name(), "publish refused");
            PubAckReason::NotAuthorized
        };
        Ok((qos == QoS::AtLeastOnce).then_some(Packet::PubAck(PubAck {
            pkid,
            reason,
            properties: None,
        })))
    }

    fn subscribe(&self, packet: &Subscribe) -> Result<Packet, DisconnectReasonCode> {
        if packet.pkid == 0 {
            return Err(DisconnectReasonCode::ProtocolError);
        }
        if packet.properties.as_ref().is_some_and(|p| p.id.is_some()) {
            return Err(DisconnectReasonCode::SubscriptionIdentifiersNotSupported);
        }
        Ok(Packet::SubAck(SubAck {
            pkid: packet.pkid,
            return_codes: packet
                .filters
                .iter()
                .map(|filter| self.subscribe_to(filter))
                .collect(),
            properties: None,
        }))
    }

    fn subscribe_to(&self, filter: &Filter) -> SubscribeReasonCode {
        if filter.path.starts_with("$share/") {
            return SubscribeReasonCode::SharedSubscriptionsNotSupported;
        }
        if !valid_filter(&filter.path) {
            return SubscribeReasonCode::TopicFilterInvalid;
        }
        if !may_subscribe(self.permit, &filter.path) {
            tracing::warn!(client_id = %self.session.client_id, filter = filter.path, "subscription refused");
            return SubscribeReasonCode::NotAuthorized;
        }
        match self
            .shared
            .router()
            .subscribe(self.session, filter, Instant::now())
        {
            Some(qos) => SubscribeReasonCode::Success(qos),
            None => SubscribeReasonCode::QuotaExceeded,
        }
    }

    fn unsubscribe(&self, packet: &Unsubscribe) -> Result<Packet, DisconnectReasonCode> {
        if packet.pkid == 0 || packet.filters.is_empty() {
            return Err(DisconnectReasonCode::ProtocolError);
        }
        let mut router = self.shared.router();
        let ended = packet.filters.iter().map(|filter| {
            if router.unsubscribe(self.session, filter) {
                UnsubAckReason::Success
            } else {
                UnsubAckReason::NoSubscriptionExisted
            }
        });
        Ok(Packet::UnsubAck(UnsubAck {
            pkid: packet.pkid,
            reasons: ended.collect(),
            properties: None,
        }))
    }

    async fn write<W: AsyncWrite + Unpin>(
        &self,
        to: &mut W,
        number: u64,
        wake: &tokio::sync::Notify,
        mut replies: mpsc::Receiver<Packet>,
    ) -> End {
        let mut buffer = BytesMut::with_capacity(4096);
        loop {
            tokio::select! {
                Some(reply) = replies.recv() => put(&reply, &mut buffer),
                () = wake.notified() => {}
            }
            loop {
                while let Ok(reply) = replies.try_recv() {
                    put(&reply, &mut buffer);
                }
                if !self
                    .session
                    .state()
                    .fill(number, &mut buffer, Instant::now())
                {
                    return End::Told(DisconnectReasonCode::SessionTakenOver);
                }
                if buffer.is_empty() {
                    break;
                }
                if let Err(error) = send(to, &mut buffer).await {
                    return End::Lost(error);
                }
            }
        }
    }
}

/// Appends one of our own small packets, which have no length that could be refused.
fn put(packet: &Packet, buffer: &mut BytesMut) {
    if let Err(error) = packet.write(buffer, None) {
        tracing::error!(%error, "cannot encode a packet");
    }
}

async fn send<W: AsyncWrite + Unpin>(
    to: &mut W,
    buffer: &mut BytesMut,
) -> Result<(), ConnectionError> {
    let written = timeout(WRITE_TIME, async {
        to.write_all(buffer).await?;
        to.flush().await
    });
    written
        .await
        .map_err(|_| ConnectionError::Stalled)?
        .map_err(ConnectionError::Write)?;
    buffer.clear();
    Ok(())
}

//! What is said on an established connection: requests and their answers, and what is delivered.

use super::{
    Shared,
    admission::Permit,
    connection::{ConnectionError, End, WRITE_TIME, put, send},
    router::Routed,
    session::{Message, Session},
    topic::{valid_filter, valid_name},
    wire::{Reader, WireError},
};
use bytes::BytesMut;
use rumqttc::v5::mqttbytes::{
    QoS,
    v5::{
        DisconnectReasonCode, Filter, Packet, PingResp, PubAck, PubAckReason, Publish, SubAck,
        Subscribe, SubscribeReasonCode, UnsubAck, UnsubAckReason, Unsubscribe,
    },
};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, mpsc},
    time::{Instant, timeout},
};

/// An established connection's two directions.
pub(super) struct Conversation<'a> {
    pub(super) session: &'a Arc<Session>,
    pub(super) permit: Option<&'a Permit<'a>>,
    pub(super) shared: &'a Shared,
}

impl Conversation<'_> {
    pub(super) async fn read<R: AsyncRead + Unpin>(
        &self,
        reader: &mut Reader<R>,
        keep_alive: Duration,
        replies: mpsc::Sender<Packet>,
    ) -> End {
        loop {
            let packet = match timeout(keep_alive * 3 / 2, reader.next()).await {
                Err(_) => return End::Told(DisconnectReasonCode::KeepAliveTimeout),
                Ok(Ok(Packet::Disconnect(packet))) => return End::Left(packet),
                Ok(Ok(packet)) => packet,
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
        let reason = if self
            .permit
            .is_none_or(|permit| permit.may_publish(message.name()))
        {
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
        if self
            .permit
            .is_some_and(|permit| !permit.may_subscribe(&filter.path))
        {
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

    pub(super) async fn write<W: AsyncWrite + Unpin>(
        &self,
        to: &mut W,
        number: u64,
        wake: &Notify,
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

//! What the tests of broker and robots share: a broker, and a client that tells all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::broker::{Access, Broker, Limits};
use bytes::Bytes;
use rumqttc::v5::{
    AsyncClient, ConnectionError, Event, MqttOptions,
    mqttbytes::{
        QoS,
        v5::{ConnAck, Packet, PubAckReason, Publish, PublishProperties, SubscribeReasonCode},
    },
};
use std::{collections::VecDeque, time::Duration};
use tokio::{net::TcpListener, sync::mpsc};

pub(super) async fn broker(limits: Limits) -> Broker {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Broker::start(listener, Access::Open, limits).unwrap()
}

pub(super) fn options(broker: &Broker, id: &str) -> MqttOptions {
    let mut options = MqttOptions::new(id, "127.0.0.1", broker.local_addr().port());
    options.set_keep_alive(Duration::from_secs(5));
    options.set_outgoing_inflight_upper_limit(50);
    options
}

/// A client whose connection is not made again when it is lost.
pub(super) struct Client {
    pub(super) client: AsyncClient,
    packets: mpsc::Receiver<Result<Packet, ConnectionError>>,
    /// Messages that came while something else was waited for.
    early: VecDeque<Publish>,
    polling: tokio::task::JoinHandle<()>,
}

impl Client {
    pub(super) async fn connect(options: MqttOptions) -> (Self, ConnAck) {
        let (client, mut events) = AsyncClient::new(options, 100);
        let (sender, packets) = mpsc::channel(10_000);
        let polling = tokio::spawn(async move {
            loop {
                let result = match events.poll().await {
                    // Not pings: whoever waits in vain is to notice.
                    Ok(Event::Incoming(Packet::PingResp(_)) | Event::Outgoing(_)) => continue,
                    Ok(Event::Incoming(packet)) => Ok(packet),
                    Err(error) => Err(error),
                };
                let lost = result.is_err();
                if sender.send(result).await.is_err() || lost {
                    return;
                }
            }
        });
        let mut client = Self {
            client,
            packets,
            early: VecDeque::new(),
            polling,
        };
        let Packet::ConnAck(answer) = client.next().await.expect("connected") else {
            panic!("no CONNACK")
        };
        (client, answer)
    }

    pub(super) async fn next(&mut self) -> Result<Packet, ConnectionError> {
        let waited = tokio::time::timeout(Duration::from_secs(10), self.packets.recv());
        waited
            .await
            .expect("nothing came")
            .expect("connection was lost before")
    }

    pub(super) async fn subscribe(&mut self, filter: &str) -> SubscribeReasonCode {
        self.client
            .subscribe(filter, QoS::AtLeastOnce)
            .await
            .unwrap();
        loop {
            match self.next().await.unwrap() {
                Packet::SubAck(ack) => return ack.return_codes[0],
                Packet::Publish(publish) => self.early.push_back(publish),
                _ => {}
            }
        }
    }

    pub(super) async fn publish(
        &mut self,
        topic: &str,
        retain: bool,
        payload: &str,
    ) -> PubAckReason {
        self.publish_expiring(topic, retain, payload, None).await
    }

    pub(super) async fn publish_expiring(
        &mut self,
        topic: &str,
        retain: bool,
        payload: &str,
        seconds: Option<u32>,
    ) -> PubAckReason {
        let properties = PublishProperties {
            message_expiry_interval: seconds,
            ..PublishProperties::default()
        };
        let payload = Bytes::copy_from_slice(payload.as_bytes());
        self.client
            .publish_with_properties(topic, QoS::AtLeastOnce, retain, payload, properties)
            .await
            .unwrap();
        loop {
            match self.next().await.unwrap() {
                Packet::PubAck(ack) => return ack.reason,
                Packet::Publish(publish) => self.early.push_back(publish),
                _ => {}
            }
        }
    }

    pub(super) async fn message(&mut self) -> Publish {
        if let Some(early) = self.early.pop_front() {
            return early;
        }
        loop {
            if let Packet::Publish(publish) = self.next().await.unwrap() {
                return publish;
            }
        }
    }

    pub(super) async fn text(&mut self) -> String {
        String::from_utf8(self.message().await.payload.to_vec()).unwrap()
    }

    /// Drops the connection without a word.
    pub(super) async fn vanish(self) {
        self.polling.abort();
        let _ = self.polling.await;
    }
}

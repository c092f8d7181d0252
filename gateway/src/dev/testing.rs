//! What the tests of broker and robots share: a broker, and a client that tells all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::broker::{Access, Broker, Limits};
use bytes::Bytes;
use portarium_identity::{
    PeerPolicy, SvidConfig, SvidManager,
    authority::{Authority, AuthorityConfig, Entry},
};
use rumqttc::v5::{
    AsyncClient, ConnectionError, Event, MqttOptions,
    mqttbytes::{
        QoS,
        v5::{ConnAck, Packet, PubAckReason, Publish, PublishProperties, SubscribeReasonCode},
    },
};
use rumqttc::{TlsConfiguration, Transport};
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
        let waited = tokio::time::timeout(Duration::from_secs(15), self.packets.recv());
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

/// An embedded authority with one SVID for each name.
pub(super) struct Identities {
    _authority: Authority,
    folder: tempfile::TempDir,
}

pub(super) fn id_of(name: &str) -> String {
    format!("spiffe://dev.test/sa/{name}")
}

pub(super) fn only(names: &[&str]) -> PeerPolicy {
    PeerPolicy::new(names.iter().map(|name| id_of(name).parse().unwrap()))
}

impl Identities {
    pub(super) async fn start(names: &[&str], svid_ttl: Duration) -> Self {
        portarium_identity::install_crypto_provider();
        let folder = tempfile::tempdir().unwrap();
        let entry = |name: &&str| Entry {
            spiffe_id: id_of(name),
            hint: (*name).to_owned(),
            dns_names: vec!["localhost".into()],
        };
        let config = AuthorityConfig {
            trust_domain: "dev.test".into(),
            socket: folder.path().join("agent.sock"),
            svid_ttl,
            entries: names.iter().map(entry).collect(),
        };
        let authority = Authority::start(config).await.unwrap();
        Self {
            _authority: authority,
            folder,
        }
    }

    pub(super) async fn manager(&self, name: &str) -> SvidManager {
        let socket = self.folder.path().join("agent.sock");
        let config = SvidConfig {
            endpoint_socket: Some(format!("unix://{}", socket.display())),
            hint: Some(name.into()),
            ..SvidConfig::default()
        };
        let manager = SvidManager::start(config).unwrap();
        manager.ready().await;
        manager
    }

    /// Options of a client that shows its identity.
    pub(super) async fn options(&self, broker: &Broker, name: &str, id: &str) -> MqttOptions {
        let tls = self.manager(name).await.client_tls(only(&["broker"]), &[]);
        let (config, _) = tls.config().unwrap();
        let mut options = options(broker, id);
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(config)));
        options
    }
}

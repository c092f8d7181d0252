//! Both connections against a broker whose every acknowledgement of a stop the test decides.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::{
    adapter::{Adapter, StopAnswer},
    ids::RobotId,
    mission::{ActionType, Command, CompletionMode},
    mqtt::{Broker, MqttAdapter, MqttConfig, MqttRobot, incoming::next_packet},
};
use bytes::BytesMut;
use rumqttc::v5::mqttbytes::{
    QoS,
    v5::{ConnAck, ConnectReturnCode, Packet, PingResp, PubAck, SubAck, SubscribeReasonCode},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

const PATIENCE: Duration = Duration::from_secs(10);
/// Long enough for whatever is to come to have come.
const MOMENT: Duration = Duration::from_millis(200);

/// A client's connection, seen from the broker.
struct Client {
    id: String,
    stream: TcpStream,
    incoming: BytesMut,
}

impl Client {
    /// Has read its CONNECT, and not answered.
    async fn of(stream: TcpStream) -> Self {
        let mut client = Self {
            id: String::new(),
            stream,
            incoming: BytesMut::new(),
        };
        match client.next().await {
            Some(Packet::Connect(connect, ..)) => client.id = connect.client_id,
            other => panic!("{other:?}"),
        }
        client
    }

    /// `None`: it has left.
    async fn next(&mut self) -> Option<Packet> {
        loop {
            if let Some(packet) = next_packet(&mut self.incoming).unwrap() {
                return Some(packet);
            }
            if self.stream.read_buf(&mut self.incoming).await.ok()? == 0 {
                return None;
            }
        }
    }

    async fn send(&mut self, packet: Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, None).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn admit(&mut self) {
        let welcome = ConnAck {
            session_present: false,
            code: ConnectReturnCode::Success,
            properties: None,
        };
        self.send(Packet::ConnAck(welcome)).await;
    }

    /// The packet id of the next publish.
    async fn publish(&mut self) -> u16 {
        loop {
            match self.next().await {
                Some(Packet::Publish(publish)) => return publish.pkid,
                Some(Packet::PingReq(_)) => self.send(Packet::PingResp(PingResp)).await,
                other => panic!("{other:?}"),
            }
        }
    }

    async fn acknowledge(&mut self, id: u16) {
        self.send(Packet::PubAck(PubAck::new(id, None))).await;
    }

    /// Agrees to everything until it leaves.
    async fn oblige(mut self) {
        while let Some(packet) = self.next().await {
            match packet {
                Packet::Publish(publish) => self.acknowledge(publish.pkid).await,
                Packet::PingReq(_) => self.send(Packet::PingResp(PingResp)).await,
                Packet::Subscribe(subscribe) => {
                    let granted = SubscribeReasonCode::Success(QoS::AtLeastOnce);
                    let granted = SubAck {
                        pkid: subscribe.pkid,
                        return_codes: vec![granted; subscribe.filters.len()],
                        properties: None,
                    };
                    self.send(Packet::SubAck(granted)).await;
                }
                _ => {}
            }
        }
    }
}

/// A gateway whose command connection is served, and the connections of its stop lane.
struct Setup {
    adapter: Arc<MqttAdapter>,
    stop_lanes: mpsc::Receiver<Client>,
    robot: RobotId,
}

impl Setup {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (lanes, stop_lanes) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut client = Client::of(stream).await;
                if client.id.ends_with("~commands") {
                    client.admit().await;
                    tokio::spawn(client.oblige());
                } else {
                    lanes.send(client).await.unwrap();
                }
            }
        });
        let robot: RobotId = "r".parse().unwrap();
        let config = MqttConfig {
            broker: Broker {
                host: "127.0.0.1".into(),
                port,
            },
            client_id_base: "gw".into(),
            tls: None,
            robots: vec![MqttRobot {
                robot_id: robot.clone(),
                tenant: "t".parse().unwrap(),
                fleet: None,
                gateway_id: "gw".into(),
            }],
            shared_status_topic: false,
            plaintext_lease: None,
        };
        Self {
            // Nobody listens to it: what it has to say does not matter here.
            adapter: MqttAdapter::start(config, mpsc::channel(1_024).0).unwrap(),
            stop_lanes,
            robot,
        }
    }

    /// The next connection of the stop lane, which waits to be admitted.
    async fn stop_lane(&mut self) -> Client {
        let client = timeout(PATIENCE, self.stop_lanes.recv()).await;
        client.unwrap().unwrap()
    }

    /// The stop lane, as it stands a moment after a start.
    async fn started(&mut self) -> Client {
        self.stop_lane().await.admit().await;
        let mut lane = self.stop_lane().await;
        lane.admit().await;
        self.landed().await;
        while !self.adapter.stats().commands.connected {
            sleep(Duration::from_millis(1)).await;
        }
        lane
    }

    async fn stop(&self) -> Duration {
        let began = Instant::now();
        let stop = Arc::new(Command {
            mission_id: "s".parse().unwrap(),
            correlation_id: String::new(),
            plan_effect_idempotency_key: String::new(),
            robot_id: self.robot.clone(),
            fleet_id: None,
            action_type: ActionType::Stop,
            action_name: String::new(),
            parameters: Default::default(),
            idempotency_key: String::new(),
            supports_preemption: false,
            bypass_tier_evaluation: true,
            completion_mode: CompletionMode::Auto,
            requires_operator_confirmation: false,
            requested_at: String::new(),
        });
        assert_eq!(self.adapter.stop(stop).await, Ok(StopAnswer::Requested));
        began.elapsed()
    }

    async fn landed(&self) {
        let landed = self.adapter.stops_landed(&self.robot);
        timeout(PATIENCE, landed).await.unwrap();
    }

    async fn assert_on_their_way(&self) {
        let landed = timeout(MOMENT, self.adapter.stops_landed(&self.robot)).await;
        assert!(landed.is_err(), "a copy may still arrive");
        let another = "another".parse().unwrap();
        timeout(MOMENT, self.adapter.stops_landed(&another))
            .await
            .expect("they are not to this robot");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_is_delivered_with_its_first_acknowledgement_and_has_landed_with_the_last() {
    let mut setup = Setup::new().await;
    let mut lane = setup.started().await;
    let took = setup.stop().await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    let id = lane.publish().await;
    setup.assert_on_their_way().await;
    // A second one waits for nothing.
    let took = setup.stop().await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    let second = lane.publish().await;
    lane.acknowledge(second).await;
    setup.assert_on_their_way().await;
    lane.acknowledge(id).await;
    setup.landed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_on_a_connection_that_broke_has_landed_when_the_broker_takes_the_next_one() {
    let mut setup = Setup::new().await;
    let mut lane = setup.started().await;
    setup.stop().await;
    lane.publish().await;
    let id = lane.id.clone();
    drop(lane);
    let mut next = setup.stop_lane().await;
    assert_eq!(next.id, id);
    setup.assert_on_their_way().await;
    next.admit().await;
    setup.landed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_never_left_is_not_waited_for() {
    let mut setup = Setup::new().await;
    let lane = setup.started().await;
    drop(lane);
    // Its connection is not made again.
    let waits = setup.stop_lane().await;
    setup.stop().await;
    setup.landed().await;
    drop(waits);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_gateway_that_died_arrives_once_both_its_client_ids_are_taken_over() {
    let mut setup = Setup::new().await;
    let mut first = setup.stop_lane().await;
    let anybody = setup.adapter.stops_landed(&setup.robot);
    assert!(timeout(MOMENT, anybody).await.is_err());
    first.admit().await;
    let mut second = setup.stop_lane().await;
    assert_ne!(first.id, second.id);
    assert!(matches!(first.next().await, Some(Packet::Disconnect(_))));
    let anybody = setup.adapter.stops_landed(&setup.robot);
    assert!(timeout(MOMENT, anybody).await.is_err());
    second.admit().await;
    setup.landed().await;
}

//! One connection against a broker whose every packet the test decides.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::mqtt::{
    config::MqttRobot,
    queue::{Queue, queue},
    router::Router,
};
use rumqttc::v5::mqttbytes::v5::{ConnAck, PingResp, PubAck, PubAckReason};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::mpsc,
};

struct Broker {
    stream: DuplexStream,
    incoming: BytesMut,
}

impl Broker {
    async fn next(&mut self) -> Packet {
        loop {
            if let Some(packet) = next_packet(&mut self.incoming).unwrap() {
                return packet;
            }
            assert!(
                self.stream.read_buf(&mut self.incoming).await.unwrap() > 0,
                "closed"
            );
        }
    }

    async fn publish(&mut self) -> Publish {
        match self.next().await {
            Packet::Publish(publish) => publish,
            other => panic!("{other:?}"),
        }
    }

    async fn send(&mut self, packet: Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, None).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn acknowledge(&mut self, id: u16, reason: PubAckReason) {
        let mut ack = PubAck::new(id, None);
        ack.reason = reason;
        self.send(Packet::PubAck(ack)).await;
    }
}

fn granting(receive_max: u16) -> ConnAck {
    let [high, low] = receive_max.to_be_bytes();
    // Receive maximum, and a maximum packet size of 2,000 bytes.
    let bytes = [0x20, 11, 0, 0, 8, 0x21, high, low, 0x27, 0, 0, 0x07, 0xd0];
    match next_packet(&mut BytesMut::from(bytes.as_slice())).unwrap() {
        Some(Packet::ConnAck(connack)) => connack,
        other => panic!("{other:?}"),
    }
}

async fn connected(connack: ConnAck) -> (Result<Connection, LinkError>, Broker) {
    let (ours, theirs) = tokio::io::duplex(4_096);
    let mut broker = Broker {
        stream: theirs,
        incoming: BytesMut::new(),
    };
    let dialled = Dialled {
        stream: Box::new(ours),
        lease: None,
        generation: None,
        trust: None,
    };
    let hello = Hello {
        client_id: "c".into(),
        session: Some(Duration::from_secs(60)),
    };
    let open = Connection::open(dialled, &hello, Arc::new(LaneState::new()));
    let answer = async {
        match broker.next().await {
            Packet::Connect(connect, None, None) => {
                assert_eq!(connect.client_id, "c");
                assert!(!connect.clean_start);
            }
            other => panic!("{other:?}"),
        }
        broker.send(Packet::ConnAck(connack)).await;
    };
    let (connection, ()) = tokio::join!(open, answer);
    (connection, broker)
}

/// A connection that is served in the background until it is lost.
async fn serving(receive_max: u16) -> (Queue, Broker, tokio::task::JoinHandle<LinkError>) {
    let (connection, broker) = connected(granting(receive_max)).await;
    let (queue, mut feed) = queue();
    let mut connection = connection.unwrap();
    let task = tokio::spawn(async move {
        connection
            .serve(Some(&mut feed), None, pending::<()>())
            .await
            .unwrap_err()
    });
    (queue, broker, task)
}

fn put(queue: &Queue, topic: &str) -> oneshot::Receiver<Outcome> {
    let (message, answer) = Message::new(topic.into(), "p".into());
    queue.command(message);
    answer
}

#[tokio::test]
async fn a_refused_publish_costs_the_others_nothing_whatever_the_order_of_pubacks() {
    let (queue, mut broker, _task) = serving(3).await;
    let answers: Vec<_> = ["a", "b", "c", "d", "e"].map(|t| put(&queue, t)).into();
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(broker.publish().await.pkid);
    }
    // The newest first, and the refusals in between: a later publish takes each freed place.
    broker
        .acknowledge(ids[2], PubAckReason::NotAuthorized)
        .await;
    let fourth = broker.publish().await.pkid;
    broker
        .acknowledge(ids[1], PubAckReason::NoMatchingSubscribers)
        .await;
    let fifth = broker.publish().await.pkid;
    for id in [fifth, fourth, ids[0]] {
        broker.acknowledge(id, PubAckReason::Success).await;
    }
    let mut outcomes = Vec::new();
    for answer in answers {
        outcomes.push(answer.await.unwrap());
    }
    assert_eq!(
        outcomes,
        [
            Outcome::Delivered,
            Outcome::NobodyListens,
            Outcome::Refused(PubAckReason::NotAuthorized),
            Outcome::Delivered,
            Outcome::Delivered
        ]
    );
}

#[tokio::test]
async fn a_connection_that_ends_leaves_unknown_what_was_sent_and_names_the_brokers_reason() {
    let (queue, mut broker, task) = serving(1).await;
    let (sent, waiting) = (put(&queue, "sent"), put(&queue, "waiting"));
    broker.publish().await;
    // As mosquitto writes it: a reason and no properties.
    broker.stream.write_all(b"\xe0\x01\x8e").await.unwrap();
    assert!(matches!(
        task.await.unwrap(),
        LinkError::Ended(DisconnectReasonCode::SessionTakenOver)
    ));
    match sent.await.unwrap() {
        Outcome::Unknown(reason) => assert!(reason.contains("second gateway"), "{reason}"),
        other => panic!("{other:?}"),
    }
    // What the connection never took is the lane's to refuse; here its queue died with it.
    assert!(waiting.await.is_err());
}

#[tokio::test]
async fn a_message_too_large_for_the_broker_is_refused_and_the_connection_lives() {
    let (queue, mut broker, _task) = serving(10).await;
    let (message, answer) = Message::new("large".into(), vec![b' '; 2_000].into());
    queue.command(message);
    assert!(matches!(answer.await.unwrap(), Outcome::NotSent(_)));
    let small = put(&queue, "small");
    let id = broker.publish().await.pkid;
    broker.acknowledge(id, PubAckReason::Success).await;
    assert_eq!(small.await.unwrap(), Outcome::Delivered);
}

#[tokio::test]
async fn a_refused_connection_says_why_and_what_to_do() {
    let refusal = ConnAck {
        session_present: false,
        code: ConnectReturnCode::NotAuthorized,
        properties: None,
    };
    let Err(error) = connected(refusal).await.0 else {
        panic!("connected")
    };
    assert!(error.to_string().contains("NotAuthorized") && error.to_string().contains("ACL"));
    let mut no_qos1 = granting(1);
    no_qos1.properties.as_mut().unwrap().max_qos = Some(0);
    assert!(matches!(connected(no_qos1).await.0, Err(LinkError::NoQos1)));
}

#[tokio::test]
async fn bytes_that_are_no_mqtt_end_the_connection_and_nothing_else() {
    for bytes in [
        // A publish whose property length runs beyond the packet.
        b"\x30\x04\x00\x01a\xff".as_slice(),
        // A packet type that does not exist, a length that never ends, a packet beyond our limit.
        b"\x00\x02ab",
        b"\x30\xff\xff\xff\xff\xff",
        b"\x30\xff\xff\xff\x7f",
        // What only clients send.
        b"\x82\x08\x00\x01\x00\x00\x03a/b\x00",
    ] {
        let (_queue, mut broker, task) = serving(1).await;
        broker.stream.write_all(bytes).await.unwrap();
        broker.stream.shutdown().await.unwrap();
        let lost = task.await.unwrap();
        assert!(matches!(lost, LinkError::Malformed(_)), "{bytes:?}: {lost}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_broker_is_given_up_within_ten_seconds_though_nothing_says_that_it_is_gone() {
    let (_queue, mut broker, task) = serving(1).await;
    let began = Instant::now();
    assert!(matches!(broker.next().await, Packet::PingReq(_)));
    assert!(began.elapsed() <= Duration::from_secs(4));
    assert!(matches!(task.await.unwrap(), LinkError::Silent(_)));
    assert!(began.elapsed() <= Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_answers_pings_but_acknowledges_nothing_is_given_up() {
    let (queue, mut broker, task) = serving(1).await;
    let (stuck, behind) = (put(&queue, "stuck"), put(&queue, "behind"));
    broker.publish().await;
    let answering = tokio::spawn(async move {
        loop {
            if let Packet::PingReq(_) = broker.next().await {
                broker.send(Packet::PingResp(PingResp)).await;
            }
        }
    });
    // What waits behind it is told in good time that it was not sent.
    let began = Instant::now();
    assert!(matches!(behind.await.unwrap(), Outcome::NotSent(_)));
    assert!(began.elapsed() <= Duration::from_secs(7));
    assert!(matches!(stuck.await.unwrap(), Outcome::Unknown(_)));
    assert!(matches!(task.await.unwrap(), LinkError::Unacknowledged(_)));
    answering.abort();
}

#[tokio::test]
async fn statuses_are_acknowledged_as_the_engine_takes_them_while_pubacks_are_read() {
    let (connection, mut broker) = connected(granting(10)).await;
    let robot = MqttRobot {
        robot_id: "r".parse().unwrap(),
        tenant: "t".parse().unwrap(),
        fleet: None,
        gateway_id: "g".into(),
    };
    let router = Arc::new(Router::new(vec![robot], true));
    let (updates, mut engine) = mpsc::channel(1);
    let mut inbox = Inbox::new(router, updates, Arc::default());
    let (queue, mut feed) = queue();
    let mut connection = connection.unwrap();
    let _task = tokio::spawn(async move {
        connection
            .serve(Some(&mut feed), Some(&mut inbox), pending::<()>())
            .await
    });
    for id in 1..=3 {
        let payload = r#"{"schemaVersion":1,"payload":{"status":"executing"}}"#;
        let mut status = Publish::new(
            "portarium/t/missions/m/status",
            QoS::AtLeastOnce,
            payload,
            None,
        );
        status.pkid = id;
        broker.send(Packet::Publish(status)).await;
    }
    assert_eq!(broker.next().await, Packet::PubAck(PubAck::new(1, None)));
    // The engine takes nothing; a command goes out and comes back all the same.
    let sent = put(&queue, "command");
    let id = broker.publish().await.pkid;
    broker.acknowledge(id, PubAckReason::Success).await;
    assert_eq!(sent.await.unwrap(), Outcome::Delivered);
    for id in 2..=3 {
        engine.recv().await.unwrap();
        assert_eq!(broker.next().await, Packet::PubAck(PubAck::new(id, None)));
    }
}

#[test]
fn every_form_of_a_disconnect_is_read() {
    for (bytes, code) in [
        (
            b"\xe0\x00".as_slice(),
            DisconnectReasonCode::NormalDisconnection,
        ),
        (b"\xe0\x01\x8b", DisconnectReasonCode::ServerShuttingDown),
        (
            b"\xe0\x02\x8b\x00",
            DisconnectReasonCode::ServerShuttingDown,
        ),
        (
            b"\xe0\x06\x8b\x04\x1f\x00\x01x",
            DisconnectReasonCode::ServerShuttingDown,
        ),
    ] {
        let read = next_packet(&mut BytesMut::from(bytes)).unwrap();
        assert_eq!(read, Some(Packet::Disconnect(Disconnect::new(code))));
    }
    assert!(next_packet(&mut BytesMut::from(b"\xe0\x01\x01".as_slice())).is_err());
}

#[tokio::test]
async fn leave_is_taken_once_what_was_sent_is_acknowledged() {
    let (connection, mut broker) = connected(granting(10)).await;
    let mut connection = connection.unwrap();
    let (message, answer) = Message::for_tests();
    connection.publish(message);
    let finish = connection.finish(None, Duration::from_secs(5));
    let ends = async {
        let id = broker.publish().await.pkid;
        broker.acknowledge(id, PubAckReason::Success).await;
        broker.next().await
    };
    let ((), last) = tokio::join!(finish, ends);
    assert!(matches!(last, Packet::Disconnect(_)));
    assert_eq!(answer.await.unwrap(), Outcome::Delivered);
}

#[tokio::test]
async fn a_broker_that_sends_on_and_takes_no_acknowledgement_is_left() {
    let (_queue, mut broker, task) = serving(10).await;
    let mut bytes = BytesMut::new();
    let mut publish = Publish::new("t", QoS::AtLeastOnce, "p", None);
    // The pipe takes 1,024 acknowledgements before any has to wait.
    for n in 0..3 * RECEIVE_MAXIMUM {
        publish.pkid = n + 1;
        Packet::Publish(publish.clone())
            .write(&mut bytes, None)
            .unwrap();
    }
    let flood = async {
        // It fails once we have left.
        let _ = broker.stream.write_all(&bytes).await;
        pending::<()>().await
    };
    tokio::select! {
        () = flood => {}
        error = task => {
            let error = error.unwrap().to_string();
            assert!(error.contains("receive maximum"), "{error}");
        }
        () = tokio::time::sleep(Duration::from_secs(5)) => panic!("all of it was taken"),
    }
}

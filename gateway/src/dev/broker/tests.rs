#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::dev::testing::{Client, broker, options};
use rumqttc::v5::{
    AsyncClient, ConnectionError, MqttOptions, StateError,
    mqttbytes::{
        QoS,
        v5::{
            ConnectReturnCode, DisconnectReasonCode, LastWill, LastWillProperties, Packet,
            PubAckReason, SubscribeReasonCode,
        },
    },
};

/// A session that outlives its connection.
fn lasting(broker: &Broker, id: &str) -> MqttOptions {
    let mut options = options(broker, id);
    options.set_clean_start(false);
    options.set_session_expiry_interval(Some(60));
    options
}

fn with_will(mut options: MqttOptions, delay: u32) -> MqttOptions {
    let properties = LastWillProperties {
        delay_interval: Some(delay),
        payload_format_indicator: None,
        message_expiry_interval: None,
        content_type: None,
        response_topic: None,
        correlation_data: None,
        user_properties: Vec::new(),
    };
    options.set_last_will(LastWill::new(
        "will",
        "gone",
        QoS::AtLeastOnce,
        true,
        Some(properties),
    ));
    options
}

#[tokio::test]
async fn a_retained_message_reaches_later_subscribers_until_an_empty_one_clears_it() {
    let broker = broker(Limits::default()).await;
    let (mut publisher, _) = Client::connect(options(&broker, "p")).await;
    publisher.publish("a/b", true, "1").await;
    publisher.publish("a/b", true, "2").await;
    publisher.publish("a/c", true, "x").await;
    publisher.publish("a/c", true, "").await;
    let (mut subscriber, _) = Client::connect(options(&broker, "s")).await;
    subscriber
        .client
        .subscribe("a/+", QoS::AtLeastOnce)
        .await
        .unwrap();
    let message = subscriber.message().await;
    assert_eq!((&message.payload[..], message.retain), (&b"2"[..], true));
    assert_eq!(
        publisher.publish("a/c", false, "live").await,
        PubAckReason::Success
    );
    assert_eq!(subscriber.text().await, "live");
}

#[tokio::test]
async fn a_publisher_is_told_when_nobody_is_subscribed_and_a_lasting_session_is_somebody() {
    let broker = broker(Limits::default()).await;
    let (mut publisher, _) = Client::connect(options(&broker, "p")).await;
    assert_eq!(
        publisher.publish("t", false, "1").await,
        PubAckReason::NoMatchingSubscribers
    );
    let (mut robot, _) = Client::connect(lasting(&broker, "r")).await;
    robot.subscribe("t").await;
    robot.vanish().await;
    assert_eq!(
        publisher.publish("t", false, "2").await,
        PubAckReason::Success
    );
    let (mut passing, _) = Client::connect(options(&broker, "q")).await;
    passing.subscribe("u").await;
    passing.client.unsubscribe("u").await.unwrap();
    while !matches!(passing.next().await.unwrap(), Packet::UnsubAck(_)) {}
    assert_eq!(
        publisher.publish("u", false, "3").await,
        PubAckReason::NoMatchingSubscribers
    );
}

#[tokio::test]
async fn a_resumed_session_gets_what_came_meanwhile_in_order_and_what_was_in_flight_again() {
    let broker = broker(Limits::default()).await;
    let (mut publisher, _) = Client::connect(options(&broker, "p")).await;
    let mut unacknowledging = lasting(&broker, "r");
    unacknowledging.set_manual_acks(true);
    let (mut robot, answer) = Client::connect(unacknowledging).await;
    assert!(!answer.session_present);
    robot.subscribe("t").await;
    publisher.publish("t", false, "0").await;
    let first = robot.message().await;
    assert!(!first.dup);
    robot.vanish().await;
    for n in 1..=300 {
        publisher.publish("t", false, &n.to_string()).await;
    }
    let (mut robot, answer) = Client::connect(lasting(&broker, "r")).await;
    assert!(answer.session_present);
    let again = robot.message().await;
    assert_eq!(
        (again.pkid, again.dup, &again.payload[..]),
        (first.pkid, true, &b"0"[..])
    );
    for n in 1..=300 {
        assert_eq!(robot.text().await, n.to_string());
    }
}

#[tokio::test]
async fn a_second_connection_takes_the_session_over_and_the_first_is_told() {
    let broker = broker(Limits::default()).await;
    let (mut watcher, _) = Client::connect(options(&broker, "w")).await;
    watcher.subscribe("will").await;
    let (mut first, _) = Client::connect(with_will(lasting(&broker, "r"), 0)).await;
    first.subscribe("t").await;
    let (mut second, answer) = Client::connect(lasting(&broker, "r")).await;
    assert!(answer.session_present);
    let reason_code = match first.next().await {
        Err(ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. })) => {
            reason_code
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(reason_code, DisconnectReasonCode::SessionTakenOver);
    assert_eq!(watcher.text().await, "gone");
    let (mut publisher, _) = Client::connect(options(&broker, "p")).await;
    publisher.publish("t", false, "1").await;
    assert_eq!(second.text().await, "1");
}

#[tokio::test]
async fn a_will_goes_out_when_a_client_vanishes_and_not_when_it_takes_its_leave() {
    let broker = broker(Limits::default()).await;
    let (mut watcher, _) = Client::connect(options(&broker, "w")).await;
    watcher.subscribe("#").await;
    let (mut polite, _) = Client::connect(with_will(options(&broker, "polite"), 0)).await;
    polite.client.disconnect().await.unwrap();
    assert!(polite.next().await.is_err());
    let (rude, _) = Client::connect(with_will(options(&broker, "rude"), 0)).await;
    watcher.publish("between", false, "1").await;
    assert_eq!(watcher.text().await, "1");
    rude.vanish().await;
    let will = watcher.message().await;
    assert_eq!(
        (&will.topic[..], &will.payload[..]),
        (&b"will"[..], &b"gone"[..])
    );
    let (mut late, _) = Client::connect(options(&broker, "late")).await;
    late.subscribe("will").await;
}

#[tokio::test]
async fn a_delayed_will_does_not_go_out_when_its_client_is_back_in_time() {
    let broker = broker(Limits::default()).await;
    let (mut watcher, _) = Client::connect(options(&broker, "w")).await;
    watcher.subscribe("#").await;
    let (first, _) = Client::connect(with_will(lasting(&broker, "r"), 1)).await;
    first.vanish().await;
    let (second, _) = Client::connect(with_will(lasting(&broker, "r"), 1)).await;
    // Taking over is no vanishing either.
    let (third, _) = Client::connect(with_will(lasting(&broker, "r"), 1)).await;
    watcher.publish("between", false, "1").await;
    assert_eq!(watcher.text().await, "1");
    let vanished = Instant::now();
    third.vanish().await;
    assert_eq!(watcher.text().await, "gone");
    assert!(vanished.elapsed() >= Duration::from_secs(1));
    drop(second);
}

#[tokio::test]
async fn a_message_whose_time_is_over_is_dropped_and_one_that_waited_carries_the_time_left() {
    let broker = broker(Limits::default()).await;
    let (mut robot, _) = Client::connect(lasting(&broker, "r")).await;
    robot.subscribe("t").await;
    robot.vanish().await;
    let (mut publisher, _) = Client::connect(options(&broker, "p")).await;
    publisher
        .publish_expiring("t", false, "stale", Some(1))
        .await;
    publisher
        .publish_expiring("t", false, "fresh", Some(100))
        .await;
    publisher
        .publish_expiring("kept", true, "stale", Some(1))
        .await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let (mut robot, _) = Client::connect(lasting(&broker, "r")).await;
    let message = robot.message().await;
    assert_eq!(&message.payload[..], b"fresh");
    let left = message.properties.unwrap().message_expiry_interval.unwrap();
    assert!((90..=99).contains(&left), "{left}");
    robot
        .client
        .subscribe("kept", QoS::AtLeastOnce)
        .await
        .unwrap();
    publisher.publish("t", false, "next").await;
    assert_eq!(robot.text().await, "next");
}

#[tokio::test]
async fn no_more_is_in_flight_than_the_client_takes_at_a_time() {
    let broker = broker(Limits::default()).await;
    let mut narrow = options(&broker, "s");
    narrow.set_receive_maximum(Some(3));
    narrow.set_manual_acks(true);
    let (mut subscriber, _) = Client::connect(narrow).await;
    subscriber.subscribe("t").await;
    let (mut publisher, _) = Client::connect(options(&broker, "p")).await;
    for n in 0..10 {
        publisher.publish("t", false, &n.to_string()).await;
    }
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(subscriber.message().await);
    }
    let more = tokio::time::timeout(Duration::from_millis(200), subscriber.message());
    assert!(more.await.is_err());
    for n in 3..10 {
        subscriber.client.ack(&held.remove(0)).await.unwrap();
        held.push(subscriber.message().await);
        assert_eq!(&held.last().unwrap().payload[..], n.to_string().as_bytes());
    }
}

#[tokio::test]
async fn what_somebody_gets_is_not_refused_because_anothers_queue_is_full() {
    let limits = Limits {
        queued_messages: 1,
        ..Limits::default()
    };
    let broker = broker(limits).await;
    for (id, filter) in [("all", "#"), ("one", "t")] {
        let (mut client, _) = Client::connect(lasting(&broker, id)).await;
        client.subscribe(filter).await;
        client.vanish().await;
    }
    let (mut publisher, _) = Client::connect(options(&broker, "p")).await;
    for (topic, reason) in [
        ("other", PubAckReason::Success),
        ("t", PubAckReason::Success),
        ("t", PubAckReason::QuotaExceeded),
    ] {
        assert_eq!(
            publisher.publish(topic, false, "x").await,
            reason,
            "{topic}"
        );
    }
}

#[tokio::test]
async fn what_a_full_queue_drops_its_publisher_is_told() {
    let limits = Limits {
        queued_messages: 2,
        ..Limits::default()
    };
    let broker = broker(limits).await;
    let (mut robot, _) = Client::connect(lasting(&broker, "r")).await;
    robot.subscribe("t").await;
    robot.vanish().await;
    let (mut publisher, _) = Client::connect(options(&broker, "p")).await;
    for (payload, reason) in [
        ("1", PubAckReason::Success),
        ("2", PubAckReason::Success),
        ("3", PubAckReason::QuotaExceeded),
    ] {
        assert_eq!(publisher.publish("t", false, payload).await, reason);
    }
    let (mut robot, _) = Client::connect(lasting(&broker, "r")).await;
    assert_eq!(
        (robot.text().await, robot.text().await),
        ("1".into(), "2".into())
    );
}

#[tokio::test]
async fn a_silent_client_is_disconnected_after_one_and_a_half_keep_alives() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let broker = broker(Limits {
        keep_alive: Duration::from_secs(1),
        ..Limits::default()
    })
    .await;
    let mut stream = tokio::net::TcpStream::connect(broker.local_addr())
        .await
        .unwrap();
    let started = Instant::now();
    let connect = [
        0x10, 14, 0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 60, 0, 0, 1, b'x',
    ];
    stream.write_all(&connect).await.unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    assert!(all.ends_with(&[0xE0, 2, 0x8D, 0]), "{all:?}");
    assert!(started.elapsed() >= Duration::from_millis(1500));
}

#[tokio::test]
async fn what_breaks_the_rules_of_the_protocol_ends_the_connection_with_its_reason() {
    let broker = broker(Limits {
        packet_bytes: 1000,
        ..Limits::default()
    })
    .await;
    for (payload, topic, qos, reason) in [
        (
            "x",
            "t",
            QoS::ExactlyOnce,
            DisconnectReasonCode::QoSNotSupported,
        ),
        (
            "x",
            "$SYS/t",
            QoS::AtLeastOnce,
            DisconnectReasonCode::TopicNameInvalid,
        ),
    ] {
        let (mut client, answer) = Client::connect(options(&broker, "c")).await;
        assert_eq!(answer.properties.unwrap().max_qos, Some(1));
        client
            .client
            .publish(topic, qos, false, payload)
            .await
            .unwrap();
        match client.next().await {
            Err(ConnectionError::MqttState(StateError::ServerDisconnect {
                reason_code, ..
            })) => {
                assert_eq!(reason_code, reason);
            }
            other => panic!("{other:?}"),
        }
    }
    let (mut client, _) = Client::connect(options(&broker, "c")).await;
    assert_eq!(
        client.subscribe("$share/g/t").await,
        SubscribeReasonCode::SharedSubscriptionsNotSupported
    );
}

#[tokio::test]
async fn more_sessions_than_allowed_are_refused_and_a_known_one_is_not() {
    let broker = broker(Limits {
        sessions: 1,
        ..Limits::default()
    })
    .await;
    let (first, _) = Client::connect(lasting(&broker, "a")).await;
    first.vanish().await;
    let (_, mut events) = AsyncClient::new(options(&broker, "b"), 10);
    match events.poll().await {
        Err(ConnectionError::ConnectionRefused(code)) => {
            assert_eq!(code, ConnectReturnCode::QuotaExceeded);
        }
        other => panic!("{other:?}"),
    }
    let (_known, answer) = Client::connect(lasting(&broker, "a")).await;
    assert!(answer.session_present);
}

#[tokio::test]
async fn one_connection_more_than_allowed_is_closed_until_another_ends() {
    let limits = Limits {
        connections: 1,
        ..Limits::default()
    };
    let broker = broker(limits).await;
    let (first, _) = Client::connect(options(&broker, "a")).await;
    let (_client, mut events) = AsyncClient::new(options(&broker, "b"), 10);
    assert!(events.poll().await.is_err());
    first.vanish().await;
    while events.poll().await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_session_is_forgotten_when_its_time_is_over() {
    let limits = Limits {
        session_expiry: Duration::from_secs(1),
        ..Limits::default()
    };
    let broker = broker(limits).await;
    let (mut robot, answer) = Client::connect(lasting(&broker, "r")).await;
    assert_eq!(answer.properties.unwrap().session_expiry_interval, Some(1));
    robot.subscribe("t").await;
    robot.vanish().await;
    let (mut publisher, _) = Client::connect(options(&broker, "p")).await;
    assert_eq!(
        publisher.publish("t", false, "1").await,
        PubAckReason::Success
    );
    while publisher.publish("t", false, "2").await != PubAckReason::NoMatchingSubscribers {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (_robot, answer) = Client::connect(lasting(&broker, "r")).await;
    assert!(!answer.session_present);
}

#[tokio::test]
async fn a_stopped_broker_tells_its_clients_and_frees_its_port() {
    let first = broker(Limits::default()).await;
    let address = first.local_addr();
    let (mut client, _) = Client::connect(options(&first, "c")).await;
    first.stop().await;
    match client.next().await {
        Err(ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. })) => {
            assert_eq!(reason_code, DisconnectReasonCode::ServerShuttingDown);
        }
        other => panic!("{other:?}"),
    }
    let listener = TcpListener::bind(address).await.unwrap();
    Broker::start(listener, Access::Open, Limits::default()).unwrap();
}

#[tokio::test]
async fn plaintext_is_served_on_loopback_only() {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    assert!(Broker::start(listener, Access::Open, Limits::default()).is_err());
}

#[tokio::test]
async fn more_retained_messages_than_allowed_are_dropped_and_their_publisher_is_told() {
    let limits = Limits {
        retained: 2,
        retained_bytes: 10,
        ..Limits::default()
    };
    let broker = broker(limits).await;
    let (mut client, _) = Client::connect(options(&broker, "p")).await;
    for (topic, payload, kept) in [
        ("a", "1", true),
        ("b", "1", true),
        ("c", "1", false),
        ("a", "12345678", false),
        ("c", "1", true),
        ("b", "", true),
        ("a", "123", true),
    ] {
        let dropped = client.publish(topic, true, payload).await == PubAckReason::QuotaExceeded;
        assert_eq!(dropped, !kept, "{topic} {payload}");
    }
}

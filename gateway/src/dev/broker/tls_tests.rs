#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::dev::testing::{Client, Identities, id_of, only};
use rumqttc::v5::{
    AsyncClient, ConnectionError, MqttOptions, StateError,
    mqttbytes::{
        QoS,
        v5::{
            ConnectReturnCode, DisconnectReasonCode, LastWill, PubAckReason, SubscribeReasonCode,
        },
    },
};

async fn broker(identities: &Identities) -> Broker {
    let rule = |name: &str, publish: &[&str], subscribe: &[&str]| AclRule {
        who: id_of(name).parse().unwrap(),
        publish: publish.iter().map(|filter| (*filter).to_owned()).collect(),
        subscribe: subscribe
            .iter()
            .map(|filter| (*filter).to_owned())
            .collect(),
    };
    let access = Access::Identities {
        tls: identities
            .manager("broker")
            .await
            .server_tls(only(&["gateway", "robot"]), &[]),
        rules: vec![
            rule("gateway", &["commands/#"], &["status/#"]),
            rule("robot", &["status/robot"], &["commands/robot"]),
        ],
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Broker::start(listener, access, Limits::default()).unwrap()
}

const ALL: [&str; 4] = ["broker", "gateway", "robot", "stranger"];
const LONG: Duration = Duration::from_secs(3600);

async fn refusal(options: MqttOptions) -> ConnectionError {
    let (_client, mut events) = AsyncClient::new(options, 10);
    events.poll().await.expect_err("refused")
}

#[tokio::test]
async fn a_client_id_belongs_to_the_identity_it_begins_with() {
    let identities = Identities::start(&ALL, LONG).await;
    let broker = broker(&identities).await;
    for id in ["dev.test:sa:robot", "dev.test:sa:robot~1"] {
        Client::connect(identities.options(&broker, "robot", id).await).await;
    }
    for id in [
        "dev.test:sa:gateway",
        "dev.test:sa:gateway~1",
        "dev.test:sa:robot2",
        "dev.test:sa:robot:x",
        "x",
    ] {
        match refusal(identities.options(&broker, "robot", id).await).await {
            ConnectionError::ConnectionRefused(code) => {
                assert_eq!(code, ConnectReturnCode::NotAuthorized)
            }
            other => panic!("{id}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn an_identity_may_do_what_its_rules_say_and_nothing_else() {
    let identities = Identities::start(&ALL, LONG).await;
    let broker = broker(&identities).await;
    let options = |name: &'static str| {
        let (identities, broker) = (&identities, &broker);
        async move {
            identities
                .options(broker, name, &format!("dev.test:sa:{name}"))
                .await
        }
    };
    let (mut robot, _) = Client::connect(options("robot").await).await;
    let (mut gateway, _) = Client::connect(options("gateway").await).await;
    for (filter, refused) in [("commands/robot", false), ("commands/+", true), ("#", true)] {
        let answer = robot.subscribe(filter).await;
        assert_eq!(
            answer == SubscribeReasonCode::NotAuthorized,
            refused,
            "{filter}"
        );
    }
    assert_eq!(
        gateway.publish("commands/robot", false, "go").await,
        PubAckReason::Success
    );
    assert_eq!(robot.text().await, "go");
    assert_eq!(
        robot.publish("commands/robot", false, "go").await,
        PubAckReason::NotAuthorized
    );
    assert_eq!(
        robot.publish("status/other", true, "x").await,
        PubAckReason::NotAuthorized
    );
    let mut forging = options("robot").await;
    forging.set_last_will(LastWill::new(
        "status/other",
        "x",
        QoS::AtLeastOnce,
        true,
        None,
    ));
    match refusal(forging).await {
        ConnectionError::ConnectionRefused(code) => {
            assert_eq!(code, ConnectReturnCode::NotAuthorized)
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_identity_that_the_policy_does_not_admit_gets_no_connection() {
    let identities = Identities::start(&ALL, LONG).await;
    let broker = broker(&identities).await;
    let stranger = identities
        .options(&broker, "stranger", "dev.test:sa:stranger")
        .await;
    assert!(!matches!(
        refusal(stranger).await,
        ConnectionError::ConnectionRefused(_)
    ));
}

#[tokio::test]
async fn a_connection_ends_before_its_certificates_do() {
    let identities = Identities::start(&ALL, Duration::from_secs(10)).await;
    let broker = broker(&identities).await;
    let options = identities
        .options(&broker, "robot", "dev.test:sa:robot")
        .await;
    let ends = identities
        .manager("robot")
        .await
        .current()
        .unwrap()
        .not_after;
    let (mut robot, _) = Client::connect(options).await;
    let ended = robot.next().await.expect_err("the connection ends");
    assert!(std::time::SystemTime::now() < ends);
    match ended {
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => {
            assert_eq!(reason_code, DisconnectReasonCode::MaximumConnectTime);
        }
        other => panic!("{other:?}"),
    }
}

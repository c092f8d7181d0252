#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::dev::{
    broker::{Access, AclRule, Broker, Limits},
    robot::{Behaviour, LogEvent},
    testing::{Client, Identities, broker, id_of, only, options},
};
use rumqttc::v5::mqttbytes::{QoS, v5::PubAckReason};
use serde_json::{Value, json};
use std::time::SystemTime;
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};

fn config(broker: &Broker) -> MqttRobotConfig {
    let tenant = "t".parse().unwrap();
    let mut config = MqttRobotConfig::new("127.0.0.1", broker.local_addr().port(), "robot", tenant);
    config.will_delay = Duration::ZERO;
    config
}

fn robots(count: usize) -> Vec<RobotConfig> {
    (0..count)
        .map(|n| RobotConfig::new(format!("r{n}").parse().unwrap()))
        .collect()
}

async fn started(config: MqttRobotConfig, count: usize) -> MqttRobots {
    let started = MqttRobots::start(config, robots(count), &ExecutionLog::in_memory());
    timeout(Duration::from_secs(10), started.ready())
        .await
        .expect("ready");
    started
}

/// The gateway's side.
struct Control(Client);

impl Control {
    async fn connect(broker: &Broker) -> Self {
        let (mut client, _) = Client::connect(options(broker, "control")).await;
        client.subscribe("portarium/t/missions/+/status").await;
        client.subscribe("portarium/t/robots/#").await;
        Self(client)
    }

    async fn dispatch(
        &mut self,
        robot: &str,
        mission: &str,
        action: &str,
        duration: &str,
    ) -> PubAckReason {
        let payload = json!({
            "missionId": mission, "robotId": robot, "actionType": action, "actionName": "spin",
            "idempotencyKey": format!("key-{mission}"), "parameters": {"duration": duration},
        });
        let message =
            json!({"schemaVersion": 1, "sentAt": "2026-08-01T00:00:00Z", "payload": payload});
        let topic = format!("portarium/t/robots/{robot}/commands/{mission}");
        self.0.publish(&topic, false, &message.to_string()).await
    }

    async fn cancel(&mut self, mission: &str) {
        let message = json!({"schemaVersion": 1, "sentAt": "", "payload": {"missionId": mission}});
        self.0
            .publish(
                &format!("portarium/t/missions/{mission}/cancel"),
                false,
                &message.to_string(),
            )
            .await;
    }

    /// The next message whose topic ends so, with its state or status.
    async fn next(&mut self, end: &str) -> String {
        loop {
            let message = self.0.message().await;
            if message.topic.ends_with(end.as_bytes()) {
                let json: Value = serde_json::from_slice(&message.payload).unwrap();
                assert_eq!(json["schemaVersion"], 1);
                let payload = &json["payload"];
                let said = payload.get("status").or(payload.get("state")).unwrap();
                return said.as_str().unwrap().to_owned();
            }
        }
    }
}

#[tokio::test]
async fn a_mission_is_reported_from_dispatched_to_succeeded_and_the_last_word_is_retained() {
    let broker = broker(Limits::default()).await;
    let robot = started(config(&broker), 1).await;
    let mut control = Control::connect(&broker).await;
    assert_eq!(control.next("r0/presence").await, "online");
    assert_eq!(
        control
            .dispatch("r0", "m", "robot:execute_action", "0.05")
            .await,
        PubAckReason::Success
    );
    for status in ["dispatched", "executing", "succeeded"] {
        assert_eq!(control.next("missions/m/status").await, status);
    }
    let mut later = Control::connect(&broker).await;
    assert_eq!(later.next("missions/m/status").await, "succeeded");
    let entries = robot.robots()[0].log().entries();
    assert_eq!(entries[0].event, LogEvent::MotionStart);
    assert_eq!(entries[0].idempotency_key, "key-m");
}

#[tokio::test]
async fn cancels_and_stops_arrive_and_are_answered() {
    let broker = broker(Limits::default()).await;
    let _robot = started(config(&broker), 1).await;
    let mut control = Control::connect(&broker).await;
    control
        .dispatch("r0", "a", "robot:execute_action", "60")
        .await;
    control.cancel("a").await;
    while control.next("missions/a/status").await != "cancelled" {}
    control
        .dispatch("r0", "b", "robot:execute_action", "60")
        .await;
    control.dispatch("r0", "s", "robot:stop", "").await;
    assert_eq!(control.next("missions/s/status").await, "executing");
    assert_eq!(control.next("missions/b/status").await, "cancelled");
    assert_eq!(control.next("missions/s/status").await, "succeeded");
}

#[tokio::test]
async fn a_robot_with_its_own_branch_writes_there_only() {
    let broker = broker(Limits::default()).await;
    let own = MqttRobotConfig {
        statuses: StatusTopics::Own,
        ..config(&broker)
    };
    let _robot = started(own, 1).await;
    let mut control = Control::connect(&broker).await;
    control
        .dispatch("r0", "m", "robot:execute_action", "0")
        .await;
    while control.next("robots/r0/missions/m/status").await != "succeeded" {}
    let (mut other, _) = Client::connect(options(&broker, "other")).await;
    other
        .client
        .subscribe("portarium/t/missions/#", QoS::AtLeastOnce)
        .await
        .unwrap();
    other
        .publish("portarium/t/missions/marker", true, "marker")
        .await;
    assert_eq!(other.text().await, "marker");
}

#[tokio::test]
async fn a_robot_that_vanishes_is_offline_and_tells_the_end_when_it_is_back() {
    let broker = broker(Limits::default()).await;
    let running = started(config(&broker), 1).await;
    let robot = running.robots()[0].clone();
    let mut control = Control::connect(&broker).await;
    assert_eq!(control.next("r0/presence").await, "online");
    control
        .dispatch("r0", "m", "robot:execute_action", "0.05")
        .await;
    assert_eq!(control.next("m/status").await, "dispatched");
    assert_eq!(control.next("m/status").await, "executing");
    robot.vanish();
    assert_eq!(control.next("r0/presence").await, "offline");
    while robot.is_moving() {
        sleep(Duration::from_millis(5)).await;
    }
    // The session outlives the connection: the robot gets what was sent meanwhile.
    assert_eq!(
        control
            .dispatch("r0", "n", "robot:execute_action", "0")
            .await,
        PubAckReason::Success
    );
    robot.come_back();
    assert_eq!(control.next("m/status").await, "succeeded");
    while control.next("n/status").await != "succeeded" {}
    assert_eq!(robot.log().executions_of("key-m"), 1);
}

#[tokio::test]
async fn a_restarted_broker_is_found_again_and_gets_what_it_had_not_acknowledged() {
    let first = broker(Limits::default()).await;
    let address = first.local_addr();
    let running = started(config(&first), 1).await;
    let mut control = Control::connect(&first).await;
    control
        .dispatch("r0", "m", "robot:execute_action", "0.3")
        .await;
    assert_eq!(control.next("m/status").await, "dispatched");
    assert_eq!(control.next("m/status").await, "executing");
    first.stop().await;
    while running.robots()[0].is_moving() {
        sleep(Duration::from_millis(5)).await;
    }
    let listener = TcpListener::bind(address).await.unwrap();
    let second = Broker::start(listener, Access::Open, Limits::default()).unwrap();
    let mut control = Control::connect(&second).await;
    assert_eq!(control.next("r0/presence").await, "online");
    while control.next("m/status").await != "succeeded" {}
}

#[tokio::test]
async fn many_robots_behind_one_connection_each_get_their_own() {
    let broker = broker(Limits::default()).await;
    let running = started(config(&broker), 150).await;
    let mut control = Control::connect(&broker).await;
    for n in 0..150 {
        control
            .dispatch(
                &format!("r{n}"),
                &format!("m{n}"),
                "robot:execute_action",
                "0",
            )
            .await;
    }
    let executions: usize = (0..150)
        .map(|n| {
            running.robots()[0]
                .log()
                .executions_of(&format!("key-m{n}"))
        })
        .sum();
    let (mut later, _) = Client::connect(options(&broker, "later")).await;
    later.subscribe("portarium/t/missions/+/status").await;
    let mut succeeded = std::collections::HashSet::new();
    while succeeded.len() < 150 {
        let message = later.message().await;
        if message.payload.windows(9).any(|w| w == b"succeeded") {
            succeeded.insert(message.topic);
        }
    }
    assert!(executions <= 150);
    let log = running.robots()[0].log();
    assert!((0..150).all(|n| log.executions_of(&format!("key-m{n}")) == 1));
}

#[tokio::test]
async fn a_robot_that_is_stopped_says_that_it_leaves() {
    let broker = broker(Limits::default()).await;
    let running = started(
        MqttRobotConfig {
            will_delay: Duration::from_secs(60),
            ..config(&broker)
        },
        1,
    )
    .await;
    let mut control = Control::connect(&broker).await;
    assert_eq!(control.next("r0/presence").await, "online");
    running.stop().await;
    assert_eq!(control.next("r0/presence").await, "offline");
}

#[tokio::test]
async fn nonsense_on_a_robots_topics_is_ignored() {
    let broker = broker(Limits::default()).await;
    let running = started(config(&broker), 1).await;
    running.robots()[0].set_behaviour(Behaviour::Normal);
    let mut control = Control::connect(&broker).await;
    control
        .0
        .publish("portarium/t/robots/r0/commands/x", false, "{}")
        .await;
    control
        .0
        .publish("portarium/t/missions/x/cancel", false, "\u{0}")
        .await;
    control
        .dispatch("r0", "m", "robot:execute_action", "0")
        .await;
    while control.next("m/status").await != "succeeded" {}
    assert_eq!(running.robots()[0].log().entries().len(), 2);
}

#[tokio::test]
async fn a_robot_renews_its_connection_before_its_certificates_end_and_is_never_offline() {
    let identities =
        Identities::start(&["broker", "robot", "gateway"], Duration::from_secs(10)).await;
    let rule = |name: &str| AclRule {
        who: id_of(name).parse().unwrap(),
        publish: vec!["portarium/#".into()],
        subscribe: vec!["portarium/#".into()],
    };
    let access = Access::Identities {
        tls: identities
            .manager("broker")
            .await
            .server_tls(only(&["robot", "gateway"]), &[]),
        rules: vec![rule("robot"), rule("gateway")],
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let broker = Broker::start(listener, access, Limits::default()).unwrap();
    let manager = identities.manager("robot").await;
    let config = MqttRobotConfig {
        tls: Some(manager.client_tls(only(&["broker"]), &[])),
        client_id: "dev.test:sa:robot".into(),
        will_delay: Duration::from_secs(2),
        ..config(&broker)
    };
    let _running = started(config, 1).await;
    let first = manager.current().unwrap().not_after;
    let options = identities
        .options(&broker, "gateway", "dev.test:sa:gateway")
        .await;
    let mut control = Control(Client::connect(options).await.0);
    control.0.subscribe("portarium/t/robots/+/presence").await;
    assert_eq!(control.next("r0/presence").await, "online");
    // The next connection says so again; a loss would say offline.
    assert_eq!(control.next("r0/presence").await, "online");
    assert!(SystemTime::now() < first);
    // And what is sent now gets through.
    let options = identities
        .options(&broker, "gateway", "dev.test:sa:gateway~2")
        .await;
    let mut control = Control(Client::connect(options).await.0);
    control.0.subscribe("portarium/t/missions/+/status").await;
    assert_eq!(
        control
            .dispatch("r0", "m", "robot:execute_action", "0")
            .await,
        PubAckReason::Success
    );
    while control.next("m/status").await != "succeeded" {}
}

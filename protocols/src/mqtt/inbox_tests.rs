#![allow(clippy::unwrap_used)]
use super::*;
use crate::{ids::RobotId, mission::MissionStatus, mqtt::config::MqttRobot};
use rumqttc::v5::mqttbytes::QoS;
use tokio::sync::mpsc;

fn inbox(shared: bool, capacity: usize) -> (Inbox, mpsc::Receiver<Update>) {
    let robot = MqttRobot {
        robot_id: "r".parse().unwrap(),
        tenant: "t".parse().unwrap(),
        fleet: None,
        gateway_id: "g".into(),
    };
    let (updates, engine) = mpsc::channel(capacity);
    let router = Arc::new(Router::new(vec![robot], shared));
    (Inbox::new(router, updates, Arc::default()), engine)
}

fn message(topic: &str, id: u16, status: &str) -> Publish {
    let payload = format!(r#"{{"schemaVersion":1,"payload":{{"status":"{status}"}}}}"#);
    let mut publish = Publish::new(topic, QoS::AtLeastOnce, payload, None);
    publish.pkid = id;
    publish
}

fn next(engine: &mut mpsc::Receiver<Update>) -> Option<(Option<RobotId>, MissionStatus)> {
    match engine.try_recv() {
        Ok(Update::Report(report)) => {
            let alone = match report.speaker {
                Speaker::Robot(robot) => Some(robot),
                Speaker::OneOf(_) => None,
            };
            Some((alone, report.status))
        }
        _ => None,
    }
}

fn disbelieved(engine: &mut mpsc::Receiver<Update>) -> Option<Disbelieved> {
    match engine.try_recv() {
        Ok(Update::Disbelieved(disbelieved)) => Some(disbelieved),
        _ => None,
    }
}

#[test]
fn the_robot_is_named_only_where_the_topic_is_its_own() {
    let (mut inbox, mut engine) = inbox(true, 10);
    inbox.accept(&message(
        "portarium/t/robots/r/missions/m/status",
        1,
        "executing",
    ));
    inbox.accept(&message("portarium/t/missions/m/status", 2, "succeeded"));
    assert_eq!(
        next(&mut engine),
        Some((Some("r".parse().unwrap()), MissionStatus::Executing))
    );
    assert_eq!(next(&mut engine), Some((None, MissionStatus::Succeeded)));
}

#[test]
fn nobody_reports_on_the_mission_of_another_robot_or_tenant() {
    let (mut inbox, mut engine) = inbox(true, 10);
    let robots = [("r", "t"), ("s", "t"), ("v", "u")].map(|(id, tenant)| MqttRobot {
        robot_id: id.parse().unwrap(),
        tenant: tenant.parse().unwrap(),
        fleet: None,
        gateway_id: "g".into(),
    });
    inbox.router.replace_fleet(robots.to_vec());
    let mission = "m".parse().unwrap();
    inbox.router.track(&mission, &Arc::new(robots[0].clone()));
    for forged in [
        "portarium/t/robots/s/missions/m/status",
        "portarium/u/missions/m/status",
    ] {
        let forged = message(forged, 1, "succeeded");
        assert_eq!(inbox.accept(&forged), Acknowledge::Now);
        let told = disbelieved(&mut engine).unwrap();
        assert_eq!(told.mission.as_ref(), Some(&mission));
        assert!(told.reason.contains("another robot"), "{told:?}");
        // Nor is it an answer to the question what became of the mission.
        assert_eq!(inbox.router.last(&mission), None);
    }
    assert_eq!(inbox.counters.invalid.load(Ordering::Relaxed), 2);
    inbox.accept(&message("portarium/t/missions/m/status", 2, "executing"));
    assert_eq!(next(&mut engine), Some((None, MissionStatus::Executing)));
}

#[test]
fn strangers_other_tenants_and_clearings_are_dropped_and_acknowledged() {
    let (mut inbox, mut engine) = inbox(false, 10);
    let mut cleared = message("portarium/t/robots/r/missions/m/status", 1, "executing");
    cleared.payload = bytes::Bytes::new();
    for publish in [
        message(
            "portarium/t/robots/stranger/missions/m/status",
            1,
            "executing",
        ),
        message("portarium/u/robots/r/missions/m/status", 1, "executing"),
        message("portarium/t/missions/m/status", 1, "executing"),
        message("elsewhere", 1, "executing"),
        cleared,
    ] {
        assert_eq!(inbox.accept(&publish), Acknowledge::Now);
        assert!(engine.try_recv().is_err());
    }
    assert_eq!(inbox.counters.invalid.load(Ordering::Relaxed), 0);
}

#[test]
fn what_a_robot_says_that_is_no_message_is_told_as_its_own_but_waited_for_by_nobody() {
    let (mut inbox, mut engine) = inbox(false, 3);
    let robot = Speaker::Robot("r".parse().unwrap());
    let nonsense = [
        "portarium/t/robots/r/missions/m/status",
        "portarium/t/robots/r/missions/a b/status",
        "portarium/t/robots/r/presence",
    ];
    for topic in nonsense.iter().cycle().take(10) {
        let said = message(topic, 1, "nonsense");
        assert_eq!(inbox.accept(&said), Acknowledge::Now);
    }
    for mission in [Some("m"), None, None] {
        let told = disbelieved(&mut engine).unwrap();
        assert_eq!(told.speaker, robot);
        assert_eq!(told.mission.as_ref().map(|m| m.as_str()), mission);
        assert!(!told.reason.contains("nonsense"), "{told:?}");
    }
    assert!(
        engine.try_recv().is_err(),
        "only as many as there was room for"
    );
    assert_eq!(inbox.counters.invalid.load(Ordering::Relaxed), 10);
}

#[tokio::test]
async fn a_status_is_acknowledged_once_the_engine_has_it_and_in_order() {
    let (mut inbox, mut engine) = inbox(true, 1);
    let topic = "portarium/t/robots/r/missions/m/status";
    assert_eq!(
        inbox.accept(&message(topic, 1, "dispatched")),
        Acknowledge::Now
    );
    assert_eq!(
        inbox.accept(&message(topic, 2, "executing")),
        Acknowledge::Later
    );
    assert_eq!(
        inbox.accept(&message(topic, 3, "succeeded")),
        Acknowledge::Later
    );
    for (status, acknowledged) in [
        (MissionStatus::Dispatched, 2),
        (MissionStatus::Executing, 3),
    ] {
        assert_eq!(next(&mut engine).unwrap().1, status);
        assert_eq!(inbox.hand_over().await, acknowledged);
    }
    assert_eq!(next(&mut engine).unwrap().1, MissionStatus::Succeeded);
    assert!(!inbox.is_waiting());
}

#[tokio::test]
async fn what_waits_outlives_its_connection_but_not_its_packet_id() {
    let (mut inbox, mut engine) = inbox(true, 1);
    let topic = "portarium/t/robots/r/missions/m/status";
    inbox.accept(&message(topic, 1, "dispatched"));
    inbox.accept(&message(topic, 2, "executing"));
    inbox.connection_gone();
    next(&mut engine).unwrap();
    assert_eq!(inbox.hand_over().await, 0);
    assert_eq!(next(&mut engine).unwrap().1, MissionStatus::Executing);
}

#[test]
fn a_refused_subscription_makes_its_tenant_unreachable_until_it_is_granted() {
    let (mut inbox, _engine) = inbox(true, 1);
    let router = Arc::clone(&inbox.router);
    router.broker_up();
    let robot: RobotId = "r".parse().unwrap();
    let filters = topic::filters(&"t".parse().unwrap(), true);
    let granted = SubscribeReasonCode::Success(QoS::AtLeastOnce);
    let refused = SubscribeReasonCode::NotAuthorized;
    inbox.subscribed(&filters, &[refused, granted, granted]);
    assert!(router.obstacle(&robot).is_some());
    inbox.subscribed(&filters, &[granted, refused, granted]);
    assert!(
        router.obstacle(&robot).is_none(),
        "presence alone can be done without"
    );
}

#[test]
fn a_cleared_presence_counts_as_one_that_was_never_published() {
    let (mut inbox, _engine) = inbox(true, 1);
    let router = Arc::clone(&inbox.router);
    router.broker_up();
    let robot: RobotId = "r".parse().unwrap();
    let mut presence = message("portarium/t/robots/r/presence", 1, "");
    presence.payload = r#"{"schemaVersion":1,"payload":{"state":"offline"}}"#.into();
    assert_eq!(inbox.accept(&presence), Acknowledge::Now);
    assert!(router.obstacle(&robot).is_some());
    presence.payload = bytes::Bytes::new();
    assert_eq!(inbox.accept(&presence), Acknowledge::Now);
    assert!(router.obstacle(&robot).is_none());
}

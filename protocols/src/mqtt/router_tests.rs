#![allow(clippy::unwrap_used)]
use super::*;
use crate::adapter::Said;
use crate::mission::MissionStatus;
use futures::FutureExt;

fn robot(id: &str, tenant: &str) -> MqttRobot {
    MqttRobot {
        robot_id: id.parse().unwrap(),
        tenant: tenant.parse().unwrap(),
        fleet: None,
        gateway_id: "g".into(),
    }
}

fn router() -> Router {
    Router::new(vec![robot("a", "t"), robot("b", "u")], true)
}

fn id(text: &str) -> RobotId {
    text.parse().unwrap()
}

fn report(robot: Option<&str>, status: MissionStatus) -> Report {
    Report {
        speaker: match robot {
            Some(robot) => Speaker::Robot(id(robot)),
            None => Speaker::OneOf(Arc::new([id("a")].into())),
        },
        said: Said::Now,
        mission: "m".parse().unwrap(),
        status,
        action_execution_id: String::new(),
        observed_at: String::new(),
        detail: String::new(),
    }
}

#[test]
fn a_robot_is_reachable_while_the_broker_is_its_tenant_is_heard_and_it_is_not_offline() {
    let router = router();
    assert_ne!(router.link(&id("a")), Link::Up);
    router.broker_up();
    assert_eq!(router.link(&id("a")), Link::Up);
    assert_ne!(router.link(&id("stranger")), Link::Up);
    router.presence("t", "a", false, true);
    assert_ne!(router.link(&id("a")), Link::Up);
    router.presence("t", "a", true, true);
    router.set_deaf("t", Some("refused"));
    assert_eq!(
        router.link(&id("a")),
        Link::Down {
            reason: "refused".into()
        }
    );
    assert_eq!(router.link(&id("b")), Link::Up);
    router.set_deaf("t", None);
    assert_eq!(router.link(&id("a")), Link::Up);
}

#[test]
fn presence_in_another_tenants_branch_is_not_the_robots() {
    let router = router();
    router.broker_up();
    router.presence("u", "a", false, false);
    assert_eq!(router.link(&id("a")), Link::Up);
}

#[tokio::test]
async fn an_interruption_is_told_even_if_it_is_over_and_a_retained_presence_is_no_news() {
    let router = router();
    router.broker_up();
    router.broker_down("gone");
    router.broker_up();
    let unsaid = router.unsaid().await;
    assert_eq!(unsaid, HashMap::from([(id("a"), true), (id("b"), true)]));
    router.presence("t", "a", true, true);
    assert!(router.unsaid().now_or_never().is_none());
    router.presence("t", "a", true, false);
    assert_eq!(router.unsaid().await, HashMap::from([(id("a"), true)]));
}

#[test]
fn what_the_robot_itself_said_counts_more_than_the_shared_topic() {
    let router = router();
    let mission = "m".parse().unwrap();
    router.note(&report(None, MissionStatus::Failed));
    assert_eq!(router.last(&mission), None, "nobody asked");
    router.track(&mission, &Arc::new(robot("a", "t")));
    for (from, status, last) in [
        (None, MissionStatus::Executing, MissionStatus::Executing),
        (
            Some("a"),
            MissionStatus::WaitingPreemption,
            MissionStatus::WaitingPreemption,
        ),
        (
            None,
            MissionStatus::Succeeded,
            MissionStatus::WaitingPreemption,
        ),
        (
            Some("a"),
            MissionStatus::Cancelled,
            MissionStatus::Cancelled,
        ),
    ] {
        router.note(&report(from, status));
        assert_eq!(router.last(&mission).unwrap().status, last);
    }
}

#[test]
fn only_topics_that_had_a_status_are_cleared_and_all_of_them_for_unknown_missions() {
    let router = router();
    let mission = "m".parse().unwrap();
    router.track(&mission, &Arc::new(robot("a", "t")));
    router.note(&report(Some("a"), MissionStatus::Succeeded));
    assert_eq!(
        router.forget(&mission),
        Left {
            on_shared: false,
            on_robots: true
        }
    );
    assert_eq!(
        router.forget(&mission),
        Left {
            on_shared: true,
            on_robots: true
        }
    );
}

#[test]
fn what_is_kept_of_missions_is_bounded() {
    let router = router();
    for n in 0..=MAX_TRACKED {
        router.track(
            &format!("m{n}").parse().unwrap(),
            &Arc::new(robot("a", "t")),
        );
    }
    assert_eq!(lock(&router.tracked).len(), MAX_TRACKED);
}

//! The MQTT adapter against a real broker.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "mqtt_support/mod.rs"]
mod support;

use portarium_protocols::{
    adapter::{
        Adapter, Cancel, DispatchError, Handover, Link, Reconciled, Said, SignalError, Speaker,
        StopAnswer, Update,
    },
    ids::MissionId,
    mission::MissionStatus,
};
use std::{sync::Arc, time::Duration};
use support::{Gateway, Mosquitto, Robot, command, robot, stop, until};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_mission_reaches_its_robot_and_its_statuses_come_back() {
    let broker = Mosquitto::start();
    let robot = Robot::start(broker.port, "r1").await;
    let mut gateway = Gateway::start(broker.port).await;
    let sent = gateway.adapter.dispatch(command("r1", "m1"), MINUTE).await;
    assert_eq!(sent, Ok(Handover::Sent));
    let heard = robot.next_command().await;
    assert_eq!(heard["payload"]["missionId"], "m1");
    assert_eq!(heard["payload"]["gatewayId"], "gw");
    robot.report("m1", "executing").await;
    robot.report_shared("m1", "succeeded").await;
    let first = gateway.next_report().await;
    assert_eq!(first.speaker, Speaker::Robot("r1".parse().unwrap()));
    assert_eq!(first.status, MissionStatus::Executing);
    assert_eq!(first.said, Said::Now);
    let second = gateway.next_report().await;
    assert!(matches!(second.speaker, Speaker::OneOf(_)), "{second:?}");
    assert_eq!(second.status, MissionStatus::Succeeded);
    gateway.adapter.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn where_nobody_is_subscribed_nothing_was_sent() {
    let broker = Mosquitto::start();
    let gateway = Gateway::start(broker.port).await;
    let sent = gateway.adapter.dispatch(command("r1", "m1"), MINUTE).await;
    assert!(
        matches!(sent, Err(DispatchError::Unreachable { .. })),
        "{sent:?}"
    );
    let stopped = gateway.adapter.stop(stop("r1", "s1")).await;
    assert!(
        matches!(stopped, Err(SignalError::Unreachable { .. })),
        "{stopped:?}"
    );
    let cancel = Arc::new(Cancel {
        command: command("r1", "m1"),
        reason: "test".into(),
    });
    let cancelled = gateway.adapter.cancel(cancel).await;
    assert!(
        matches!(cancelled, Err(SignalError::Unreachable { .. })),
        "{cancelled:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_stop_arrives_at_once_and_once_more_behind_the_command_before_it() {
    let broker = Mosquitto::start();
    let robot = Robot::start(broker.port, "r1").await;
    let gateway = Gateway::start(broker.port).await;
    let adapter = Arc::clone(&gateway.adapter);
    let dispatch = tokio::spawn(async move { adapter.dispatch(command("r1", "m1"), MINUTE).await });
    tokio::task::yield_now().await;
    assert_eq!(dispatch.await.unwrap(), Ok(Handover::Sent));
    assert_eq!(
        gateway.adapter.stop(stop("r1", "s1")).await,
        Ok(StopAnswer::Requested)
    );
    let mut order = Vec::new();
    for _ in 0..3 {
        order.push(
            robot.next_command().await["payload"]["missionId"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
    }
    assert_eq!(order, ["m1", "s1", "s1"]);
    let cancel = Arc::new(Cancel {
        command: command("r1", "m1"),
        reason: "test".into(),
    });
    assert_eq!(gateway.adapter.cancel(cancel).await, Ok(()));
    for _ in 0..2 {
        assert_eq!(robot.next_cancel().await["payload"]["reason"], "test");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_stop_overtakes_a_stuffed_command_connection_and_comes_once_more_behind_all_of_it() {
    const COMMANDS: usize = 3_000;
    let broker = Mosquitto::start();
    let robot = Robot::start(broker.port, "r1").await;
    let gateway = Gateway::start(broker.port).await;
    let dispatches = (0..COMMANDS).map(|n| {
        let command = command("r1", &format!("m{n}"));
        gateway.adapter.dispatch(command, MINUTE)
    });
    // Every command is under way before the stop, and none is with the broker.
    broker.halt();
    let stopped = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let going_on = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            broker.go_on();
        };
        let stopping = gateway.adapter.stop(stop("r1", "s1"));
        tokio::join!(stopping, going_on).0
    };
    let (sent, stopped) = tokio::join!(futures::future::join_all(dispatches), stopped);
    assert!(sent.iter().all(|sent| *sent == Ok(Handover::Sent)));
    assert_eq!(stopped, Ok(StopAnswer::Requested));
    let mut heard = Vec::new();
    for _ in 0..COMMANDS + 2 {
        let command = robot.next_command().await;
        heard.push(command["payload"]["missionId"] == "s1");
    }
    let stops: Vec<_> = (0..heard.len()).filter(|n| heard[*n]).collect();
    println!("the stop arrived as number {stops:?} of {}", heard.len());
    assert!(stops[0] < COMMANDS, "it did not overtake");
    assert_eq!(stops[1], COMMANDS + 1, "it was overtaken");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_killed_broker_costs_certainty_but_never_sends_twice_and_all_works_when_it_is_back() {
    let mut broker = Mosquitto::start();
    let mut robot = Robot::start(broker.port, "r1").await;
    let mut gateway = Gateway::start(broker.port).await;
    let mut dispatches = Vec::new();
    for n in 0..400 {
        let adapter = Arc::clone(&gateway.adapter);
        let command = command("r1", &format!("m{n}"));
        dispatches.push(tokio::spawn(async move {
            adapter.dispatch(command, MINUTE).await
        }));
    }
    robot.next_command().await;
    broker.kill();
    let (mut sent, mut unknown, mut unreachable) = (0, 0, 0);
    for dispatch in dispatches {
        match dispatch.await.unwrap() {
            Ok(_) => sent += 1,
            Err(DispatchError::Unknown { .. }) => unknown += 1,
            Err(DispatchError::Unreachable { .. }) => unreachable += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    println!("sent {sent}, unknown {unknown}, unreachable {unreachable}");
    gateway.until_link(false).await;
    let down = gateway
        .adapter
        .dispatch(command("r1", "down"), MINUTE)
        .await;
    assert!(
        matches!(down, Err(DispatchError::Unreachable { .. })),
        "{down:?}"
    );
    broker.restart();
    robot.reconnected().await;
    gateway.until_link(true).await;
    assert_eq!(
        gateway
            .adapter
            .dispatch(command("r1", "again"), MINUTE)
            .await,
        Ok(Handover::Sent)
    );
    let heard = robot.commands_until("again").await;
    let mut unique = heard.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), heard.len(), "a command arrived twice");
    assert!(gateway.adapter.stats().commands.reconnects >= 1);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_settled_missions_retained_status_is_cleared_and_an_open_ones_is_found_again() {
    let broker = Mosquitto::start();
    let robot = Robot::start(broker.port, "r1").await;
    robot.report("open", "executing").await;
    robot.report("ended", "succeeded").await;
    robot.report_shared("ended", "succeeded").await;
    let mut gateway = Gateway::start(broker.port).await;
    for _ in 0..3 {
        gateway.next_report().await;
    }
    gateway.adapter.settle(&command("r1", "ended"));
    until("the cleared status", async || {
        broker.retained().await.len() == 1
    })
    .await;
    assert!(broker.retained().await[0].contains("open"));
    match gateway.adapter.reconcile(command("r1", "open")).await {
        Ok(Reconciled::Known(report)) => {
            assert_eq!(report.status, MissionStatus::Executing);
            assert_eq!(report.said, Said::Before);
        }
        other => panic!("{other:?}"),
    }
    let never_heard_of = gateway.adapter.reconcile(command("r1", "new")).await;
    assert_eq!(never_heard_of, Ok(Reconciled::CannotAsk));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_robots_last_will_takes_its_link_down_and_its_word_brings_it_up() {
    let broker = Mosquitto::start();
    let mut gateway = Gateway::start(broker.port).await;
    let r1 = "r1".parse().unwrap();
    assert_eq!(gateway.adapter.link(&r1), Link::Up);
    let robot = Robot::start(broker.port, "r1").await;
    robot.online().await;
    gateway.until_link(true).await;
    robot.die();
    gateway.until_link(false).await;
    let sent = gateway.adapter.dispatch(command("r1", "m1"), MINUTE).await;
    assert!(
        matches!(sent, Err(DispatchError::Unreachable { .. })),
        "{sent:?}"
    );
    let robot = Robot::start(broker.port, "r1").await;
    robot.online().await;
    gateway.until_link(true).await;
    assert_eq!(gateway.adapter.link(&r1), Link::Up);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn what_was_heard_before_a_broker_forgot_everything_is_no_answer() {
    let mut broker = Mosquitto::start();
    let mut robot = Robot::start(broker.port, "r1").await;
    let mut gateway = Gateway::start(broker.port).await;
    let sent = gateway.adapter.dispatch(command("r1", "m1"), MINUTE).await;
    assert_eq!(sent, Ok(Handover::Sent));
    robot.report("m1", "executing").await;
    gateway.next_report().await;
    for kept in [true, false] {
        let answer = gateway.adapter.reconcile(command("r1", "m1")).await;
        match (kept, answer) {
            (true, Ok(Reconciled::Known(report))) => {
                assert_eq!(report.status, MissionStatus::Executing);
            }
            (false, Ok(Reconciled::CannotAsk)) => return,
            (_, other) => panic!("{other:?}"),
        }
        broker.kill();
        gateway.until_link(false).await;
        broker.restart();
        robot.reconnected().await;
        gateway.until_link(true).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn what_a_broker_keeps_for_a_robot_that_is_gone_is_not_delivered() {
    let broker = Mosquitto::start();
    let mut gateway = Gateway::start(broker.port).await;
    let lasting = || {
        let mut options = Robot::options(broker.port, "t1", "r1");
        options.set_clean_start(false);
        options.set_session_expiry_interval(Some(3_600));
        options
    };
    let robot = Robot::with(lasting(), "t1", "r1").await;
    robot.online().await;
    gateway.until_link(true).await;
    robot.die();
    gateway.until_link(false).await;
    for n in 0..3 {
        let stopped = gateway.adapter.stop(stop("r1", &format!("s{n}"))).await;
        assert!(
            matches!(stopped, Err(SignalError::Unreachable { .. })),
            "{stopped:?}"
        );
    }
    let cancel = Arc::new(Cancel {
        command: command("r1", "m1"),
        reason: "test".into(),
    });
    let cancelled = gateway.adapter.cancel(cancel).await;
    assert!(
        matches!(cancelled, Err(SignalError::Unreachable { .. })),
        "{cancelled:?}"
    );
    // What was sent in vain does not pile up at the broker.
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let robot = Robot::with(lasting(), "t1", "r1").await;
    robot.online().await;
    gateway.until_link(true).await;
    let stopped = gateway.adapter.stop(stop("r1", "last")).await;
    assert_eq!(stopped, Ok(StopAnswer::Requested));
    assert_eq!(robot.commands_until("last").await, ["last"]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_slow_engine_makes_the_broker_wait_while_commands_are_still_acknowledged() {
    let broker = Mosquitto::start();
    let robot = Robot::start(broker.port, "r1").await;
    let mut gateway = Gateway::with(broker.port, 1, None).await;
    for n in 0..800 {
        robot.report(&format!("m{n}"), "executing").await;
    }
    // The engine reads nothing, yet the command comes back.
    let sent = gateway.adapter.dispatch(command("r1", "m"), MINUTE).await;
    assert_eq!(sent, Ok(Handover::Sent));
    for n in 0..800 {
        assert_eq!(
            gateway.next_report().await.mission.as_str(),
            format!("m{n}")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn a_new_tenant_is_heard_after_a_reload_and_a_removed_robot_is_not_commanded() {
    let broker = Mosquitto::start();
    let mut gateway = Gateway::start(broker.port).await;
    gateway
        .adapter
        .replace_robots(vec![robot("r2", "t2")])
        .unwrap();
    let r2 = Robot::start_in(broker.port, "t2", "r2").await;
    assert_eq!(
        gateway.adapter.dispatch(command("r2", "m1"), MINUTE).await,
        Ok(Handover::Sent)
    );
    r2.report("m1", "executing").await;
    assert_eq!(gateway.next_report().await.mission.as_str(), "m1");
    let gone = gateway.adapter.dispatch(command("r1", "m2"), MINUTE).await;
    assert!(
        matches!(gone, Err(DispatchError::Unreachable { .. })),
        "{gone:?}"
    );
    assert!(
        gateway
            .adapter
            .replace_robots(vec![robot("r", "t"), robot("r", "u")])
            .is_err()
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn renewed_connections_lose_no_command_no_stop_and_no_status() {
    let broker = Mosquitto::start();
    let robot = Arc::new(Robot::start(broker.port, "r1").await);
    let mut gateway = Gateway::with(broker.port, 1_024, Some(Duration::from_secs(7))).await;
    let missions = gateway
        .carry_missions(&robot, |stats| {
            stats.commands.renewals >= 2 && stats.stops.renewals >= 2
        })
        .await;
    assert_eq!(gateway.adapter.stats().commands.reconnects, 0);
    assert_eq!(gateway.adapter.stats().stops.reconnects, 0);
    let stops = usize::try_from(gateway.adapter.stats().stops.published).unwrap();
    assert_eq!(stops, missions, "each stop went over its own lane");
    assert!(!gateway.saw_link_down(), "a renewal is no outage");
    println!("{missions} missions over two renewals of each connection");
}

/// They would drive live statuses out of the queue that the broker has for us.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn what_the_broker_has_retained_comes_at_the_start_and_with_no_renewal() {
    let broker = Mosquitto::start();
    let robot = Robot::start(broker.port, "r1").await;
    for n in 0..50 {
        robot.report(&format!("old-{n}"), "succeeded").await;
    }
    let gateway = Gateway::with(broker.port, 1_024, Some(Duration::from_secs(7))).await;
    let stats = || gateway.adapter.stats();
    until("what was retained", async || stats().reports == 50).await;
    until("a renewal", async || stats().commands.renewals == 1).await;
    robot.report("new", "executing").await;
    until("what is new", async || stats().reports > 50).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(stats().reports, 51);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn after_shutdown_the_broker_keeps_statuses_for_the_next_start() {
    let broker = Mosquitto::start();
    let robot = Robot::start(broker.port, "r1").await;
    let gateway = Gateway::start(broker.port).await;
    gateway.adapter.shutdown().await;
    let sent = gateway.adapter.dispatch(command("r1", "m"), MINUTE).await;
    assert!(
        matches!(sent, Err(DispatchError::Unreachable { .. })),
        "{sent:?}"
    );
    // Both are sent while nobody listens; retained alone would bring the second only.
    robot.report("m1", "executing").await;
    robot.report("m1", "succeeded").await;
    let mut gateway = Gateway::start(broker.port).await;
    assert_eq!(gateway.next_report().await.status, MissionStatus::Executing);
    assert_eq!(gateway.next_report().await.status, MissionStatus::Succeeded);
    assert!(matches!(
        gateway.updates.try_recv(),
        Err(_) | Ok(Update::Link { .. } | Update::Report(_))
    ));
}

/// A broker ends the connection on a topic that it takes for malformed, and with it those of all
/// robots.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs mosquitto: run by tests/run"]
async fn every_character_that_an_identifier_may_have_is_one_that_a_topic_may_have() {
    let broker = Mosquitto::start();
    let gateway = Gateway::start(broker.port).await;
    let last_of_planes = (0x1_FF00..=char::MAX as u32).filter(|c| c & 0xFF00 == 0xFF00);
    let allowed: Vec<char> = (0..0x1_0000)
        .chain(last_of_planes)
        .filter_map(char::from_u32)
        .filter(|c| format!("m{c}").parse::<MissionId>().is_ok())
        .collect();
    for some in allowed.chunks(40) {
        let id = format!("m{}", some.iter().collect::<String>());
        let sent = gateway.adapter.dispatch(command("r1", &id), MINUTE).await;
        let nobody_listens = matches!(&sent, Err(DispatchError::Unreachable { reason })
            if reason.contains("not subscribed"));
        assert!(nobody_listens, "{sent:?} for {id:?}");
    }
}

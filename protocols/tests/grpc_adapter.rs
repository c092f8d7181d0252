//! The southbound adapter against robots on real sockets, without TLS.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use portarium_identity::PeerPolicy;
use portarium_protocols::{
    adapter::{
        Adapter, Cancel, DispatchError, Handover, Link, Reconciled, Report, SignalError, Speaker,
        StopAnswer, Update,
    },
    grpc::{GrpcAdapter, GrpcRobot, Target, convert, pb, server::ServerLimits},
    mission::{Command, MissionStatus},
};
use std::{sync::Arc, time::Duration};
use support::{Robot, Served, until};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

const MINUTE: Duration = Duration::from_secs(60);

struct Gateway {
    adapter: Arc<GrpcAdapter>,
    updates: mpsc::Receiver<Update>,
}

fn grpc_robot(target: &Target) -> GrpcRobot {
    GrpcRobot {
        robot_id: "r".parse().unwrap(),
        target: target.clone(),
        peers: PeerPolicy::new([]),
        jwt_audience: None,
    }
}

impl Gateway {
    fn start(target: &Target) -> Self {
        let (sender, updates) = mpsc::channel(16);
        let adapter = GrpcAdapter::start([grpc_robot(target)], None, sender).unwrap();
        Self {
            adapter: Arc::new(adapter),
            updates,
        }
    }

    async fn connected(target: &Target) -> Self {
        let mut gateway = Self::start(target);
        gateway.until_link(Link::Up).await;
        gateway
    }

    async fn next(&mut self) -> Update {
        let next = timeout(Duration::from_secs(10), self.updates.recv());
        next.await.expect("an update in time").unwrap()
    }

    async fn until_link(&mut self, wanted: Link) {
        loop {
            if let Update::Link { link, .. } = self.next().await
                && std::mem::discriminant(&link) == std::mem::discriminant(&wanted)
            {
                return;
            }
        }
    }

    async fn until_report(&mut self, mission: &str, status: MissionStatus) -> Report {
        loop {
            if let Update::Report(report) = self.next().await
                && report.mission.as_str() == mission
                && report.status == status
            {
                return report;
            }
        }
    }
}

fn command(id: &str, action_type: &str) -> Arc<Command> {
    let request = pb::DispatchMissionRequest {
        mission_id: id.into(),
        plan_effect_idempotency_key: "p".into(),
        robot_id: "r".into(),
        action_type: action_type.into(),
        action_name: "navigate_to".into(),
        idempotency_key: "i".into(),
        supports_preemption: true,
        bypass_tier_evaluation: true,
        completion_mode: "Auto".into(),
        ..Default::default()
    };
    Arc::new(convert::parse(request).unwrap())
}

fn mission(id: &str) -> Arc<Command> {
    command(id, "robot:execute_action")
}

fn cancel(id: &str) -> Arc<Cancel> {
    Arc::new(Cancel {
        command: mission(id),
        reason: "not needed".into(),
    })
}

#[tokio::test]
async fn a_mission_is_accepted_and_its_reports_come_by_the_watch_with_the_robots_name() {
    let robot = Robot::new(true);
    let served = Served::start(robot.clone(), None).await;
    let mut gateway = Gateway::connected(&served.target).await;
    until("the watch stands", || robot.count("watch 0") == 1).await;
    let handover = gateway.adapter.dispatch(mission("m"), MINUTE).await;
    assert_eq!(handover, Ok(Handover::Accepted));
    robot.report("m", "Executing");
    robot.report("m", "Succeeded");
    gateway.until_report("m", MissionStatus::Executing).await;
    let report = gateway.until_report("m", MissionStatus::Succeeded).await;
    assert_eq!(report.speaker, Speaker::Robot("r".parse().unwrap()));
    assert_eq!(robot.count("dispatch m"), 1);
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_no_refusal() {
    let robot = Robot::new(true);
    *robot.dispatch_answer.lock().unwrap() = Some(Ok(pb::DispatchMissionResponse {
        status: pb::DispatchStatus::Dispatched.into(),
        message: "x".repeat(100_000),
        ..Default::default()
    }));
    let served = Served::start(robot.clone(), None).await;
    let gateway = Gateway::connected(&served.target).await;
    let handover = gateway.adapter.dispatch(mission("m"), MINUTE).await;
    assert!(
        matches!(handover, Err(DispatchError::Unknown { .. })),
        "{handover:?}"
    );
}

#[tokio::test]
async fn a_robot_without_a_watch_is_asked_until_the_mission_has_ended_and_each_state_is_told_once()
{
    let robot = Robot::new(false);
    let served = Served::start(robot.clone(), None).await;
    let mut gateway = Gateway::connected(&served.target).await;
    gateway
        .adapter
        .dispatch(mission("m"), MINUTE)
        .await
        .unwrap();
    gateway.until_report("m", MissionStatus::Dispatched).await;
    let began = Instant::now();
    robot.report("m", "Executing");
    let next = gateway.next().await;
    assert!(
        matches!(&next, Update::Report(r) if r.status == MissionStatus::Executing),
        "{next:?}"
    );
    assert!(
        began.elapsed() < Duration::from_millis(300),
        "{:?}",
        began.elapsed()
    );
    robot.report("m", "Succeeded");
    let next = gateway.next().await;
    assert!(
        matches!(&next, Update::Report(r) if r.status == MissionStatus::Succeeded),
        "{next:?}"
    );
    let asked = robot.count("status m");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(robot.count("status m") <= asked + 1);
}

#[tokio::test]
async fn a_settled_mission_is_asked_for_no_longer() {
    let robot = Robot::new(false);
    let served = Served::start(robot.clone(), None).await;
    let mut gateway = Gateway::connected(&served.target).await;
    gateway
        .adapter
        .dispatch(mission("m"), MINUTE)
        .await
        .unwrap();
    gateway.until_report("m", MissionStatus::Dispatched).await;
    gateway.adapter.settle(&mission("m"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let asked = robot.count("status m");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(robot.count("status m"), asked);
}

#[tokio::test]
async fn what_happened_while_the_connection_was_lost_is_asked_for_when_it_returns() {
    for watchable in [true, false] {
        let robot = Robot::new(watchable);
        let served = Served::start(robot.clone(), None).await;
        let address = served.target.to_string();
        let mut gateway = Gateway::connected(&served.target).await;
        gateway
            .adapter
            .dispatch(mission("m"), MINUTE)
            .await
            .unwrap();
        robot.report("m", "Executing");
        gateway.until_report("m", MissionStatus::Executing).await;
        served.crash().await;
        gateway
            .until_link(Link::Down {
                reason: String::new(),
            })
            .await;
        assert!(matches!(
            gateway.adapter.link(&"r".parse().unwrap()),
            Link::Down { .. }
        ));
        // A new process counts its updates anew.
        let returned = Robot::new(watchable);
        returned.report("m", "Succeeded");
        let _served = Served::start_at(&address, returned, None, ServerLimits::default()).await;
        gateway.until_report("m", MissionStatus::Succeeded).await;
        assert_eq!(gateway.adapter.link(&"r".parse().unwrap()), Link::Up);
    }
}

#[tokio::test]
async fn nothing_is_sent_to_a_robot_that_is_out_of_reach() {
    let served = Served::start(Robot::new(true), None).await;
    let target = served.target.clone();
    served.crash().await;
    let gateway = Gateway::start(&target);
    let dispatched = gateway.adapter.dispatch(mission("m"), MINUTE).await;
    assert!(
        matches!(dispatched, Err(DispatchError::Unreachable { .. })),
        "{dispatched:?}"
    );
    let stopped = gateway.adapter.stop(command("s", "robot:stop")).await;
    assert!(
        matches!(stopped, Err(SignalError::Unreachable { .. })),
        "{stopped:?}"
    );
    let id = "r".parse().unwrap();
    let landed = gateway.adapter.stops_landed(&id);
    timeout(Duration::from_secs(1), landed).await.unwrap();
    let asked = gateway.adapter.reconcile(mission("m")).await;
    assert!(
        matches!(asked, Err(SignalError::Unreachable { .. })),
        "{asked:?}"
    );
}

#[tokio::test]
async fn a_crash_while_the_dispatch_is_under_way_leaves_it_unknown_and_it_is_not_sent_again() {
    let robot = Robot::new(true);
    *robot.dispatch_delay.lock().unwrap() = MINUTE;
    let served = Served::start(robot.clone(), None).await;
    let address = served.target.to_string();
    let mut gateway = Gateway::connected(&served.target).await;
    let adapter = gateway.adapter.clone();
    let dispatch = tokio::spawn(async move { adapter.dispatch(mission("m"), MINUTE).await });
    until("it arrives", || robot.count("dispatch m") == 1).await;
    served.crash().await;
    let outcome = dispatch.await.unwrap();
    assert!(
        matches!(outcome, Err(DispatchError::Unknown { .. })),
        "{outcome:?}"
    );
    let _served = Served::start_at(&address, robot.clone(), None, ServerLimits::default()).await;
    gateway.until_link(Link::Up).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(robot.count("dispatch m"), 1);
    assert_eq!(
        gateway.adapter.reconcile(mission("m")).await,
        Ok(Reconciled::NotKnown)
    );
}

#[tokio::test]
async fn a_stuck_dispatch_does_not_delay_a_stop_which_comes_once_more_behind_it() {
    let robot = Robot::new(true);
    *robot.dispatch_delay.lock().unwrap() = Duration::from_secs(1);
    let served = Served::start(robot.clone(), None).await;
    let gateway = Gateway::connected(&served.target).await;
    let adapter = gateway.adapter.clone();
    let dispatch = tokio::spawn(async move { adapter.dispatch(mission("m"), MINUTE).await });
    until("it arrives", || robot.count("dispatch m") == 1).await;
    let began = Instant::now();
    let answer = gateway.adapter.stop(command("s", "robot:stop")).await;
    assert_eq!(answer, Ok(StopAnswer::Stationary));
    assert!(
        began.elapsed() < Duration::from_millis(500),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(dispatch.await.unwrap(), Ok(Handover::Accepted));
    // That it has landed is known when the second one was answered as well.
    let id = "r".parse().unwrap();
    let landed = gateway.adapter.stops_landed(&id);
    timeout(Duration::from_secs(10), landed).await.unwrap();
    assert_eq!(robot.count("stop s"), 2);
    let calls = robot.calls();
    let at = |call: &str| calls.iter().position(|c| c == call).unwrap();
    let last_stop = calls.iter().rposition(|c| c == "stop s").unwrap();
    assert!(
        at("stop s") < at("dispatched m") && at("dispatched m") < last_stop,
        "{calls:?}"
    );
}

#[tokio::test]
async fn a_mission_that_does_not_answer_is_given_up_as_unknown_within_its_limit() {
    let robot = Robot::new(true);
    *robot.dispatch_delay.lock().unwrap() = MINUTE;
    let served = Served::start(robot.clone(), None).await;
    let gateway = Gateway::connected(&served.target).await;
    let outcome = gateway
        .adapter
        .dispatch(mission("m"), Duration::from_millis(300))
        .await;
    assert!(
        matches!(outcome, Err(DispatchError::Unknown { .. })),
        "{outcome:?}"
    );
    until("the robot's handler ends", || {
        robot.in_flight.load(std::sync::atomic::Ordering::SeqCst) == 0
    })
    .await;
    let late = gateway
        .adapter
        .dispatch(mission("m-2"), Duration::ZERO)
        .await;
    assert!(
        matches!(late, Err(DispatchError::Unreachable { .. })),
        "{late:?}"
    );
    assert_eq!(robot.count("dispatch m-2"), 0);
}

#[tokio::test]
async fn a_cancel_goes_out_twice_and_is_refused_in_the_robots_words_where_it_knows_no_mission() {
    let robot = Robot::new(true);
    let served = Served::start(robot.clone(), None).await;
    let gateway = Gateway::connected(&served.target).await;
    let refused = gateway.adapter.cancel(cancel("m")).await;
    let reason = "never heard of it".to_owned();
    assert_eq!(refused, Err(SignalError::Refused { reason }));
    gateway
        .adapter
        .dispatch(mission("m"), MINUTE)
        .await
        .unwrap();
    assert_eq!(gateway.adapter.cancel(cancel("m")).await, Ok(()));
    until("all four arrive", || robot.count("cancel m") == 4).await;
}

#[tokio::test]
async fn a_cancel_that_overtakes_its_mission_is_decided_by_the_one_behind_it() {
    let robot = Robot::new(true);
    *robot.dispatch_delay.lock().unwrap() = Duration::from_millis(300);
    let served = Served::start(robot.clone(), None).await;
    let gateway = Gateway::connected(&served.target).await;
    let adapter = gateway.adapter.clone();
    let dispatch = tokio::spawn(async move { adapter.dispatch(mission("m"), MINUTE).await });
    until("it arrives", || robot.count("dispatch m") == 1).await;
    assert_eq!(gateway.adapter.cancel(cancel("m")).await, Ok(()));
    assert_eq!(dispatch.await.unwrap(), Ok(Handover::Accepted));
}

#[tokio::test]
async fn a_duplicate_is_accepted_if_the_robot_has_the_mission_and_rejected_otherwise() {
    let robot = Robot::new(true);
    let served = Served::start(robot.clone(), None).await;
    let gateway = Gateway::connected(&served.target).await;
    *robot.dispatch_answer.lock().unwrap() = Some(Ok(pb::DispatchMissionResponse {
        status: pb::DispatchStatus::Rejected.into(),
        reject_reason: "DuplicateRequest".into(),
        ..Default::default()
    }));
    let unknown = gateway.adapter.dispatch(mission("m"), MINUTE).await;
    assert!(
        matches!(unknown, Err(DispatchError::Rejected { .. })),
        "{unknown:?}"
    );
    robot.report("m", "Executing");
    let known = gateway.adapter.dispatch(mission("m"), MINUTE).await;
    assert_eq!(known, Ok(Handover::Accepted));
}

#[tokio::test]
async fn reconcile_tells_what_the_robot_knows() {
    let robot = Robot::new(true);
    let served = Served::start(robot.clone(), None).await;
    let gateway = Gateway::connected(&served.target).await;
    assert_eq!(
        gateway.adapter.reconcile(mission("m")).await,
        Ok(Reconciled::NotKnown)
    );
    robot.report("m", "WaitingPreemption");
    let known = gateway.adapter.reconcile(mission("m")).await.unwrap();
    assert!(
        matches!(&known, Reconciled::Known(r) if r.status == MissionStatus::WaitingPreemption),
        "{known:?}"
    );
}

#[tokio::test]
async fn robots_come_and_go_and_one_that_stays_keeps_its_connection() {
    let (one, two) = (Robot::new(true), Robot::new(true));
    let served_one = Served::start(one.clone(), None).await;
    let served_two = Served::start(two.clone(), None).await;
    let mut gateway = Gateway::connected(&served_one.target).await;
    until("both connections", || {
        served_one.connections.stats().open == 2
    })
    .await;
    gateway
        .adapter
        .replace_robots([grpc_robot(&served_one.target)]);
    assert_eq!(gateway.adapter.link(&"r".parse().unwrap()), Link::Up);
    assert_eq!(served_one.connections.stats().established, 2);
    gateway
        .adapter
        .replace_robots([grpc_robot(&served_two.target)]);
    gateway.until_link(Link::Up).await;
    gateway
        .adapter
        .dispatch(mission("m"), MINUTE)
        .await
        .unwrap();
    assert_eq!((one.count("dispatch m"), two.count("dispatch m")), (0, 1));
    until("the old ones are closed", || {
        served_one.connections.stats().open == 0
    })
    .await;
    gateway.adapter.shutdown();
    until("all are closed", || {
        served_two.connections.stats().open == 0
    })
    .await;
    let gone = gateway.adapter.dispatch(mission("m-2"), MINUTE).await;
    assert!(
        matches!(gone, Err(DispatchError::Unreachable { .. })),
        "{gone:?}"
    );
}

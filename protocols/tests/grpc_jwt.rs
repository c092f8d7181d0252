//! Robots that ask for a JWT-SVID beside the certificate.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use base64ct::{Base64UrlUnpadded, Encoding as _};
use portarium_identity::{
    PeerPolicy, SvidConfig, SvidManager,
    authority::{Authority, AuthorityConfig, Entry},
    install_crypto_provider,
};
use portarium_protocols::{
    adapter::{Adapter as _, Cancel, DispatchError, Handover, Link, SignalError, StopAnswer},
    grpc::{ALPN, GrpcAdapter, GrpcRobot, convert, pb},
    mission::Command,
};
use std::{sync::Arc, time::Duration};
use support::{Robot, Served, until};
use tempfile::TempDir;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

const GATEWAY: &str = "spiffe://test.domain/ns/a/sa/gateway/1";
const ROBOT: &str = "spiffe://test.domain/ns/a/sa/robot/1";
const MINUTE: Duration = Duration::from_secs(60);

struct World {
    authority: Authority,
    gateway: SvidManager,
    robot: Arc<Robot>,
    served: Served,
    _dir: TempDir,
}

fn only(id: &str) -> PeerPolicy {
    PeerPolicy::new([id.parse().unwrap()])
}

impl World {
    async fn new() -> Self {
        install_crypto_provider();
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let entry = |id: &str, hint: &str| Entry {
            spiffe_id: id.into(),
            hint: hint.into(),
            dns_names: vec!["localhost".into()],
        };
        let authority = Authority::start(AuthorityConfig {
            trust_domain: "test.domain".into(),
            socket: socket.clone(),
            svid_ttl: 60 * MINUTE,
            entries: vec![entry(GATEWAY, "gateway"), entry(ROBOT, "robot")],
        })
        .await
        .unwrap();
        let manager = |hint: &str| {
            SvidManager::start(SvidConfig {
                endpoint_socket: Some(format!("unix://{}", socket.display())),
                hint: Some(hint.into()),
                ..SvidConfig::default()
            })
            .unwrap()
        };
        let (gateway, own) = (manager("gateway"), manager("robot"));
        gateway.ready().await;
        own.ready().await;
        let robot = Robot::new(false);
        let served = Served::start(robot.clone(), Some(own.server_tls(only(GATEWAY), ALPN))).await;
        Self {
            authority,
            gateway,
            robot,
            served,
            _dir: dir,
        }
    }

    fn adapter(&self) -> GrpcAdapter {
        let (sender, _) = mpsc::channel(16);
        let one = GrpcRobot {
            robot_id: "r".parse().unwrap(),
            target: self.served.target.clone(),
            peers: only(ROBOT),
            jwt_audience: Some("arm-1".into()),
        };
        GrpcAdapter::start([one], Some(self.gateway.clone()), sender).unwrap()
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

/// Hands the mission over as soon as that can be.
async fn hand_over(adapter: &GrpcAdapter) {
    let began = Instant::now();
    loop {
        let mission = command("m", "robot:execute_action");
        match adapter.dispatch(mission, MINUTE).await {
            Ok(Handover::Accepted) => return,
            other => assert!(began.elapsed() < Duration::from_secs(20), "{other:?}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Who says so, and to whom.
fn claims(authorization: Option<&String>) -> serde_json::Value {
    let token = authorization.unwrap().strip_prefix("Bearer ").unwrap();
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&Base64UrlUnpadded::decode_vec(payload).unwrap()).unwrap()
}

#[tokio::test]
async fn each_call_shows_our_jwt_svid_for_the_audience_that_the_robot_asks_for() {
    let world = World::new().await;
    let adapter = world.adapter();
    hand_over(&adapter).await;
    let stopped = adapter.stop(command("s", "robot:stop")).await;
    assert_eq!(stopped, Ok(StopAnswer::Stationary));
    let shown = world.robot.authorizations.lock().unwrap().clone();
    for authorization in &shown {
        let claims = claims(authorization.as_ref());
        assert_eq!(claims["sub"], GATEWAY);
        assert_eq!(claims["aud"][0], "arm-1");
    }
    assert!(shown.len() >= 2);
}

#[tokio::test]
async fn without_a_jwt_svid_a_mission_waits_and_a_stop_does_not() {
    let world = World::new().await;
    // The SVID stays; the agent answers no longer.
    world.authority.pause();
    let adapter = world.adapter();
    until("the robot is reached", || {
        matches!(adapter.link(&"r".parse().unwrap()), Link::Up)
    })
    .await;
    let mission = command("m", "robot:execute_action");
    let sent = adapter.dispatch(mission, MINUTE).await;
    let Err(DispatchError::Unreachable { reason }) = sent else {
        panic!("{sent:?}");
    };
    assert!(reason.contains("JWT-SVID"), "{reason}");
    let began = Instant::now();
    let stopped = adapter.stop(command("s", "robot:stop")).await;
    assert_eq!(stopped, Ok(StopAnswer::Stationary));
    assert!(began.elapsed() < Duration::from_millis(500));
    assert!(
        world
            .robot
            .authorizations
            .lock()
            .unwrap()
            .iter()
            .all(Option::is_none)
    );
    assert_eq!(world.robot.count("dispatch m"), 0);

    world.authority.resume();
    hand_over(&adapter).await;
}

fn cancel() -> Arc<Cancel> {
    Arc::new(Cancel {
        command: command("m", "robot:execute_action"),
        reason: String::new(),
    })
}

/// Until the stop has got through, as the engine sends it again.
async fn stopped(adapter: &GrpcAdapter) {
    let began = Instant::now();
    while adapter.stop(command("s", "robot:stop")).await != Ok(StopAnswer::Stationary) {
        assert!(began.elapsed() < Duration::from_secs(10));
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_robot_that_insists_on_a_jwt_svid_refuses_nothing_for_good_for_want_of_one() {
    let world = World::new().await;
    *world.robot.insists.lock().unwrap() = Some(String::new());
    world.authority.pause();
    let adapter = world.adapter();
    until("the robot is reached", || {
        matches!(adapter.link(&"r".parse().unwrap()), Link::Up)
    })
    .await;
    let sent = adapter.stop(command("s", "robot:stop")).await;
    let Err(SignalError::Unreachable { reason }) = sent else {
        panic!("{sent:?}");
    };
    assert!(reason.contains("show a JWT-SVID"), "{reason}");
    let sent = adapter.cancel(cancel()).await;
    assert!(
        matches!(sent, Err(SignalError::Unreachable { .. })),
        "{sent:?}"
    );
    world.authority.resume();
    stopped(&adapter).await;
    hand_over(&adapter).await;
    assert_eq!(adapter.cancel(cancel()).await, Ok(()));
}

#[tokio::test]
async fn a_jwt_svid_that_a_robot_does_not_take_is_replaced_and_the_call_made_again() {
    let world = World::new().await;
    let adapter = world.adapter();
    hand_over(&adapter).await;
    let shown = world.robot.authorizations.lock().unwrap().clone();
    *world.robot.insists.lock().unwrap() = shown.last().unwrap().clone();
    let sent = adapter.stop(command("s", "robot:stop")).await;
    assert!(
        matches!(sent, Err(SignalError::Unreachable { .. })),
        "{sent:?}"
    );
    let mission = command("n", "robot:execute_action");
    let sent = adapter.dispatch(mission, MINUTE).await;
    assert!(
        matches!(sent, Err(DispatchError::Unreachable { .. })),
        "{sent:?}"
    );
    stopped(&adapter).await;
}

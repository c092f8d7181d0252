//! Listener, connections and adapter with SVIDs of the embedded authority.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use hyper::{
    body::{Body, Bytes, Frame},
    http::Request,
};
use portarium_identity::{
    PeerPolicy, SvidConfig, SvidManager,
    authority::{Authority, AuthorityConfig, Entry},
    install_crypto_provider,
};
use portarium_protocols::{
    adapter::{Adapter, Link, Update},
    grpc::{
        ALPN, Connection, GrpcAdapter, GrpcError, GrpcRobot, connect,
        pb::{self, mission_service_client::MissionServiceClient},
        server::ServerLimits,
    },
};
use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer};
use std::{
    collections::HashSet,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};
use support::{Robot, Served, until};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tower::Service as _;

const GATEWAY: &str = "spiffe://test.domain/ns/a/sa/gateway/1";
const ROBOT: &str = "spiffe://test.domain/ns/a/sa/robot/1";

struct World {
    authority: Authority,
    gateway: SvidManager,
    robot: SvidManager,
    _dir: TempDir,
}

fn entry(id: &str, hint: &str) -> Entry {
    Entry {
        spiffe_id: id.into(),
        hint: hint.into(),
        dns_names: vec!["localhost".into()],
    }
}

fn only(id: &str) -> PeerPolicy {
    PeerPolicy::new([id.parse().unwrap()])
}

impl World {
    async fn new(svid_ttl: Duration) -> Self {
        install_crypto_provider();
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let authority = Authority::start(AuthorityConfig {
            trust_domain: "test.domain".into(),
            socket: socket.clone(),
            svid_ttl,
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
        let (gateway, robot) = (manager("gateway"), manager("robot"));
        gateway.ready().await;
        robot.ready().await;
        Self {
            authority,
            gateway,
            robot,
            _dir: dir,
        }
    }

    async fn serve(&self, robot: Arc<Robot>, admits: &str) -> Served {
        let tls = self.robot.server_tls(only(admits), ALPN);
        Served::start(robot, Some(tls)).await
    }
}

fn dispatch(id: &str) -> pb::DispatchMissionRequest {
    pb::DispatchMissionRequest {
        mission_id: id.into(),
        action_type: "robot:execute_action".into(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_renews_connections_before_their_end_and_no_call_fails() {
    let world = World::new(Duration::from_secs(10)).await;
    let robot = Robot::new(true);
    *robot.dispatch_delay.lock().unwrap() = Duration::from_millis(400);
    let served = world.serve(robot, GATEWAY).await;
    let tls = world.gateway.client_tls(only(ROBOT), ALPN);
    let connection = Arc::new(Connection::start(served.target.clone(), Some(tls), "test"));
    connection.ready().await.unwrap();
    let serials = Arc::new(Mutex::new(HashSet::new()));
    let end = Instant::now() + Duration::from_secs(26);
    let callers = (0..8).map(|caller| {
        let (connection, serials) = (connection.clone(), serials.clone());
        tokio::spawn(async move {
            let mut calls = 0;
            while Instant::now() < end {
                let channel = connection.channel().expect("the connection stays up");
                let peer = channel.peer().expect("TLS has a peer").clone();
                assert_eq!(peer.spiffe_id.to_string(), ROBOT);
                serials.lock().unwrap().insert(peer.serial);
                let mut client = MissionServiceClient::new(channel);
                client
                    .dispatch_mission(dispatch(&format!("m-{caller}-{calls}")))
                    .await
                    .unwrap();
                calls += 1;
            }
            calls
        })
    });
    let mut calls = 0;
    for caller in callers.collect::<Vec<_>>() {
        calls += caller.await.unwrap();
    }
    assert!(calls > 8 * 40, "{calls}");
    let serials = serials.lock().unwrap().len();
    assert!(serials >= 4, "{serials} certificates of the robot seen");
    until("the old ones are gone", || {
        served.connections.stats().open == 1
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_is_not_renewed_is_cut_at_its_end_whatever_is_on_it() {
    let world = World::new(Duration::from_secs(10)).await;
    let served = world.serve(Robot::new(true), GATEWAY).await;
    let tls = world.gateway.client_tls(only(ROBOT), ALPN);
    let channel = connect(&served.target, Some(&tls)).await.unwrap();
    let peer = channel.peer().unwrap().clone();
    let ends = peer.not_after.min(peer.own_not_after);
    let mut client = MissionServiceClient::new(channel);
    let watch = client
        .watch_missions(pb::WatchMissionsRequest::default())
        .await
        .unwrap();
    let ended = timeout(Duration::from_secs(15), watch.into_inner().message()).await;
    assert!(ended.unwrap().is_err());
    assert!(std::time::SystemTime::now() < ends);
    until("the server's side is gone", || {
        served.connections.stats().open == 0
    })
    .await;
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused_and_counted() {
    let world = World::new(Duration::from_secs(60)).await;
    let served = world.serve(Robot::new(true), GATEWAY).await;
    let mut roots = RootCertStore::empty();
    for authority in world.authority.bundle() {
        roots.add(CertificateDer::from(authority)).unwrap();
    }
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(served.target.to_string()).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let mut stream = connector
        .connect("localhost".try_into().unwrap(), tcp)
        .await
        .unwrap();
    let mut answer = Vec::new();
    let error = stream.read_to_end(&mut answer).await.unwrap_err();
    assert!(error.to_string().contains("CertificateRequired"), "{error}");
    assert!(answer.is_empty());
    let stats = served.connections.stats();
    assert_eq!(
        (stats.accepted, stats.failed_handshake, stats.established),
        (1, 1, 0)
    );
}

#[tokio::test]
async fn a_client_that_the_policy_does_not_admit_learns_why_it_is_down() {
    let world = World::new(Duration::from_secs(60)).await;
    let served = world
        .serve(Robot::new(true), "spiffe://test.domain/someone/else")
        .await;
    let tls = world.gateway.client_tls(only(ROBOT), ALPN);
    let error = connect(&served.target, Some(&tls)).await.unwrap_err();
    assert!(matches!(error, GrpcError::Refused(_)), "{error}");
    assert!(error.to_string().contains("alert"), "{error}");
    let connection = Connection::start(served.target.clone(), Some(tls), "test");
    let mut state = connection.state();
    let refused = |state: &Result<_, portarium_protocols::grpc::Down>| {
        state
            .as_ref()
            .is_err_and(|down| down.reason.contains("alert"))
    };
    timeout(Duration::from_secs(5), state.wait_for(refused))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_the_robot_is_not_connected_to() {
    let world = World::new(Duration::from_secs(60)).await;
    let served = world.serve(Robot::new(true), GATEWAY).await;
    let tls = world
        .gateway
        .client_tls(only("spiffe://test.domain/someone/else"), ALPN);
    let error = connect(&served.target, Some(&tls)).await.unwrap_err();
    assert!(matches!(error, GrpcError::Tls(_)), "{error}");
}

#[tokio::test]
async fn a_peer_that_a_new_policy_does_not_admit_is_cut() {
    let world = World::new(Duration::from_secs(60)).await;
    let tls = world.robot.server_tls(only(GATEWAY), ALPN);
    let served = Served::start(Robot::new(true), Some(tls.clone())).await;
    let client = world.gateway.client_tls(only(ROBOT), ALPN);
    let channel = connect(&served.target, Some(&client)).await.unwrap();
    assert_eq!(served.connections.recheck(&tls), 0);
    tls.replace_policy(PeerPolicy::new([]));
    assert_eq!(served.connections.recheck(&tls), 1);
    until("the client sees it", || channel.is_closed()).await;
    until("its place is free", || served.connections.stats().open == 0).await;
}

#[tokio::test]
async fn a_recheck_cuts_the_connection_before_the_last_one_too() {
    let world = World::new(Duration::from_secs(10)).await;
    let served = world.serve(Robot::new(true), GATEWAY).await;
    let tls = world.gateway.client_tls(only(ROBOT), ALPN);
    let connection = Connection::start(served.target.clone(), Some(tls), "test");
    let first = connection.ready().await.unwrap();
    let serial = first.peer().unwrap().serial.clone();
    let mut client = MissionServiceClient::new(first);
    let watch = client
        .watch_missions(pb::WatchMissionsRequest::default())
        .await
        .unwrap();
    drop(client);
    until("the connection is renewed", || {
        let channel = connection.channel().unwrap();
        channel.peer().unwrap().serial != serial
    })
    .await;
    world.authority.set_entries(vec![entry(ROBOT, "robot")]);
    let mut snapshots = world.gateway.snapshots();
    snapshots.wait_for(Option::is_none).await.unwrap();
    connection.recheck();
    let ended = timeout(Duration::from_millis(500), watch.into_inner().message()).await;
    assert!(ended.expect("it is cut at once").is_err());
}

#[tokio::test]
async fn one_caller_cannot_take_the_places_of_all_others() {
    let world = World::new(Duration::from_secs(60)).await;
    let both = PeerPolicy::new([GATEWAY, ROBOT].map(|id| id.parse().unwrap()));
    let tls = world.robot.server_tls(both, ALPN);
    let limits = ServerLimits {
        max_per_peer: 2,
        ..Default::default()
    };
    let served = Served::start_at("127.0.0.1:0", Robot::new(true), Some(tls), limits).await;
    let greedy = world.gateway.client_tls(only(ROBOT), ALPN);
    let _one = connect(&served.target, Some(&greedy)).await.unwrap();
    let two = connect(&served.target, Some(&greedy)).await.unwrap();
    assert!(connect(&served.target, Some(&greedy)).await.is_err());
    let other = world.robot.client_tls(only(ROBOT), ALPN);
    connect(&served.target, Some(&other)).await.unwrap();
    assert_eq!(served.connections.stats().turned_away, 1);
    drop(two);
    until("a place is free", || served.connections.stats().open == 1).await;
    connect(&served.target, Some(&greedy)).await.unwrap();
}

#[tokio::test]
async fn connections_that_let_us_wait_do_not_keep_others_from_their_handshakes() {
    let world = World::new(Duration::from_secs(60)).await;
    let tls = world.robot.server_tls(only(GATEWAY), ALPN);
    let limits = ServerLimits {
        max_handshakes: 1,
        max_pending: 10,
        ..Default::default()
    };
    let served = Served::start_at("127.0.0.1:0", Robot::new(true), Some(tls), limits).await;
    let mut waiting = Vec::new();
    for n in 0..30 {
        let mut tcp = TcpStream::connect(served.target.to_string()).await.unwrap();
        if n % 2 == 0 {
            // A TLS record that announces a ClientHello of 512 bytes, and then no more.
            tcp.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252])
                .await
                .unwrap();
        }
        waiting.push(tcp);
    }
    let client = world.gateway.client_tls(only(ROBOT), ALPN);
    let began = Instant::now();
    connect(&served.target, Some(&client)).await.unwrap();
    let took = began.elapsed();
    // Three times ten places, each lost after half a second.
    assert!(took < Duration::from_secs(3), "{took:?}");
    until("the others are given up", || {
        served.connections.stats().failed_timeout == 30
    })
    .await;
}

#[tokio::test]
async fn a_caller_whose_requests_never_end_is_shed_and_can_still_stop() {
    let world = World::new(Duration::from_secs(60)).await;
    let robot = Robot::new(true);
    let served = world.serve(robot.clone(), GATEWAY).await;
    let tls = world.gateway.client_tls(only(ROBOT), ALPN);
    // A length that is announced and never comes: 100 KiB of each request, on ten connections.
    let mut announced = vec![0, 0, 1, 200, 0];
    announced.resize(100 * 1024, 0);
    let mut open = Vec::new();
    let mut refused = 0;
    for _ in 0..10 {
        let mut channel = connect(&served.target, Some(&tls)).await.unwrap();
        for _ in 0..40 {
            let body = tonic::body::Body::new(Endless(Some(announced.clone().into())));
            let request = Request::post("/portarium.robotics.v1.MissionService/DispatchMission")
                .header("content-type", "application/grpc")
                .body(body)
                .unwrap();
            let mut call = Box::pin(channel.call(request));
            if let Ok(answer) = timeout(Duration::from_millis(20), &mut call).await {
                refused += usize::from(answer.unwrap().headers()["grpc-status"] == "8");
            }
            open.push(call);
        }
        let mut client = MissionServiceClient::new(channel);
        let mut stop = dispatch("s");
        stop.action_type = "robot:stop".into();
        client.dispatch_mission(stop).await.unwrap();
    }
    assert!(refused > 40, "{refused} were refused");
    assert_eq!(robot.count("stop s"), 10);
}

/// A body of which more is always to come.
struct Endless(Option<Bytes>);

impl Body for Endless {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.0.take() {
            Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
            None => Poll::Pending,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_adapters_watch_resumes_on_each_new_connection_and_no_update_is_lost_or_doubled() {
    let world = World::new(Duration::from_secs(10)).await;
    let robot = Robot::new(true);
    let served = world.serve(robot.clone(), GATEWAY).await;
    let (sender, mut updates) = mpsc::channel(16);
    let one = GrpcRobot {
        robot_id: "r".parse().unwrap(),
        target: served.target.clone(),
        peers: only(ROBOT),
        jwt_audience: None,
    };
    let adapter = GrpcAdapter::start([one], Some(world.gateway.clone()), sender).unwrap();
    until("the watch stands", || robot.count("watch 0") == 1).await;
    let reporting = tokio::spawn(async move {
        for n in 0..1000 {
            robot.report(&format!("m-{n}"), "Executing");
            sleep(Duration::from_millis(20)).await;
        }
        robot
    });
    let mut links = Vec::new();
    let mut next = 0;
    while next < 1000 {
        match timeout(Duration::from_secs(10), updates.recv())
            .await
            .unwrap()
            .unwrap()
        {
            Update::Report(report) => {
                assert_eq!(report.mission.as_str(), format!("m-{next}"));
                next += 1;
            }
            Update::Link { link, .. } => links.push(link),
            Update::Disbelieved(said) => panic!("{said:?}"),
        }
    }
    let robot = reporting.await.unwrap();
    let resumed = robot
        .calls()
        .iter()
        .filter(|c| c.starts_with("watch "))
        .count();
    assert!(resumed >= 3, "{resumed} watches");
    // Down at first, before it was ever up; never again.
    let went_up = links.iter().position(|link| *link == Link::Up).unwrap();
    assert_eq!(links[went_up..], [Link::Up]);
    drop(adapter);
}

#[tokio::test]
async fn the_adapter_lets_its_robots_go_once_its_own_entry_is_gone() {
    let world = World::new(Duration::from_secs(60)).await;
    let served = world.serve(Robot::new(true), GATEWAY).await;
    let (sender, _updates) = mpsc::channel(16);
    let one = GrpcRobot {
        robot_id: "r".parse().unwrap(),
        target: served.target.clone(),
        peers: only(ROBOT),
        jwt_audience: None,
    };
    let adapter = GrpcAdapter::start([one], Some(world.gateway.clone()), sender).unwrap();
    until("both connections stand", || {
        served.connections.stats().open == 2
    })
    .await;
    world.authority.set_entries(vec![entry(ROBOT, "robot")]);
    until("both are gone", || served.connections.stats().open == 0).await;
    let robot = "r".parse().unwrap();
    until("it is said", || {
        matches!(adapter.link(&robot), Link::Down { .. })
    })
    .await;
}

//! The listener and client connections, without TLS.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use portarium_protocols::grpc::{
    ChannelError, Connection, Connections, GrpcError, connect,
    pb::{self, mission_service_client::MissionServiceClient},
    server::{ServerLimits, serve},
};
use std::time::{Duration, Instant};
use support::{Robot, Served, until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

fn status_of(mission: &str) -> pb::GetMissionStatusRequest {
    pb::GetMissionStatusRequest {
        mission_id: mission.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn plaintext_is_refused_off_loopback() {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let served = serve(
        listener,
        None,
        tonic::service::Routes::default(),
        ServerLimits::default(),
        Connections::new(),
        CancellationToken::new(),
    );
    assert!(matches!(
        served.await,
        Err(GrpcError::PlaintextOffLoopback(_))
    ));
}

#[tokio::test]
async fn shutdown_lets_calls_in_flight_finish_and_takes_no_new_connection() {
    let robot = Robot::new(true);
    *robot.dispatch_delay.lock().unwrap() = Duration::from_millis(300);
    let served = Served::start(robot.clone(), None).await;
    let channel = connect(&served.target, None).await.unwrap();
    let mut client = MissionServiceClient::new(channel);
    let call = tokio::spawn(async move {
        let request = pb::DispatchMissionRequest {
            mission_id: "m".into(),
            action_type: "robot:execute_action".into(),
            ..Default::default()
        };
        client.dispatch_mission(request).await
    });
    until("the call arrives", || robot.count("dispatch m") == 1).await;
    served.shutdown.cancel();
    assert!(call.await.unwrap().is_ok());
    served.task.await.unwrap().unwrap();
    assert!(connect(&served.target, None).await.is_err());
    assert_eq!(served.connections.stats().open, 0);
}

#[tokio::test]
async fn one_connection_more_than_allowed_is_closed_at_once_and_counted() {
    let limits = ServerLimits {
        max_connections: 2,
        ..Default::default()
    };
    let served = Served::start_at("127.0.0.1:0", Robot::new(true), None, limits).await;
    let _one = connect(&served.target, None).await.unwrap();
    let _two = connect(&served.target, None).await.unwrap();
    assert!(connect(&served.target, None).await.is_err());
    let stats = served.connections.stats();
    assert_eq!((stats.accepted, stats.turned_away, stats.open), (3, 1, 2));
    drop(_one);
    until("a place is free", || served.connections.stats().open == 1).await;
    assert!(connect(&served.target, None).await.is_ok());
}

#[tokio::test]
async fn a_client_that_says_nothing_is_given_up() {
    let served = Served::start(Robot::new(true), None).await;
    let mut silent = TcpStream::connect(served.target.to_string()).await.unwrap();
    silent.write_all(b"PRI * HTTP/2.0").await.unwrap();
    let began = Instant::now();
    let mut rest = Vec::new();
    let _ = silent.read_to_end(&mut rest).await;
    assert!(
        (4..=7).contains(&began.elapsed().as_secs()),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn a_peer_that_does_not_answer_pings_is_closed() {
    let limits = ServerLimits {
        keepalive_interval: Duration::from_millis(200),
        keepalive_timeout: Duration::from_millis(300),
        ..Default::default()
    };
    let served = Served::start_at("127.0.0.1:0", Robot::new(true), None, limits).await;
    let mut half_open = TcpStream::connect(served.target.to_string()).await.unwrap();
    half_open
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    until("it is in", || served.connections.stats().open == 1).await;
    until("it is gone", || served.connections.stats().open == 0).await;
}

#[tokio::test]
async fn a_connection_is_up_again_within_two_seconds_of_the_peers_return() {
    let robot = Robot::new(true);
    robot.report("m", "Executing");
    let served = Served::start(robot.clone(), None).await;
    let address = served.target.to_string();
    let connection = Connection::start(served.target.clone(), None, "test");
    connection.ready().await.unwrap();
    served.crash().await;
    let mut state = connection.state();
    state.wait_for(Result::is_err).await.unwrap();
    let down = connection.channel().unwrap_err();
    assert!(!down.reason.is_empty());
    tokio::time::sleep(Duration::from_secs(3)).await;
    let _served = Served::start_at(&address, robot, None, ServerLimits::default()).await;
    let returned = Instant::now();
    let channel = connection.ready().await.unwrap();
    assert!(
        returned.elapsed() < Duration::from_secs(2),
        "{:?}",
        returned.elapsed()
    );
    MissionServiceClient::new(channel)
        .get_mission_status(status_of("m"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_call_on_a_connection_that_is_gone_is_known_not_to_be_sent() {
    let served = Served::start(Robot::new(true), None).await;
    let channel = connect(&served.target, None).await.unwrap();
    served.crash().await;
    until("the end is seen", || channel.is_closed()).await;
    let status = MissionServiceClient::new(channel)
        .get_mission_status(status_of("m"))
        .await
        .unwrap_err();
    assert!(ChannelError::was_not_sent(&status), "{status:?}");
    assert_eq!(status.code(), tonic::Code::Unavailable);
}

#[tokio::test]
async fn a_call_that_the_peer_took_before_it_crashed_may_have_been_processed() {
    let robot = Robot::new(true);
    *robot.dispatch_delay.lock().unwrap() = Duration::from_secs(60);
    let served = Served::start(robot.clone(), None).await;
    let channel = connect(&served.target, None).await.unwrap();
    let call = tokio::spawn(async move {
        let request = pb::DispatchMissionRequest {
            mission_id: "m".into(),
            action_type: "robot:execute_action".into(),
            ..Default::default()
        };
        MissionServiceClient::new(channel)
            .dispatch_mission(request)
            .await
    });
    until("the call arrives", || robot.count("dispatch m") == 1).await;
    served.crash().await;
    let status = call.await.unwrap().unwrap_err();
    assert!(!ChannelError::was_not_sent(&status), "{status:?}");
}

#[tokio::test]
async fn a_call_after_a_goaway_is_known_not_to_be_sent() {
    let robot = Robot::new(true);
    let served = Served::start(robot.clone(), None).await;
    let channel = connect(&served.target, None).await.unwrap();
    let mut client = MissionServiceClient::new(channel);
    let _watch = client
        .watch_missions(pb::WatchMissionsRequest::default())
        .await
        .unwrap();
    served.shutdown.cancel();
    let status = loop {
        match client.get_mission_status(status_of("m")).await {
            Err(status) if status.code() == tonic::Code::NotFound => {}
            Err(status) => break status,
            Ok(_) => panic!("no such mission"),
        }
    };
    assert!(ChannelError::was_not_sent(&status), "{status:?}");
}

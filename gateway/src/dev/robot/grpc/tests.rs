#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::dev::robot::Behaviour;
use portarium_protocols::grpc::pb::{
    self, DispatchStatus, mission_service_client::MissionServiceClient,
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

async fn started(watch: bool) -> GrpcRobots {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let robot = RobotConfig::new("r".parse().unwrap());
    let config = GrpcRobotConfig { tls: None, watch };
    GrpcRobots::start(listener, config, vec![robot], &ExecutionLog::in_memory()).unwrap()
}

async fn client(robots: &GrpcRobots) -> MissionServiceClient<Channel> {
    let url = format!("http://{}", robots.local_addr());
    loop {
        match Endpoint::from_shared(url.clone()).unwrap().connect().await {
            Ok(channel) => return MissionServiceClient::new(channel),
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

fn dispatch(mission: &str, action: &str, duration: &str) -> pb::DispatchMissionRequest {
    pb::DispatchMissionRequest {
        mission_id: mission.into(),
        robot_id: "r".into(),
        action_type: action.into(),
        idempotency_key: format!("key-{mission}"),
        parameters: Some(pb::ActionParameters {
            fields: [("duration".to_owned(), duration.to_owned())].into(),
        }),
        ..pb::DispatchMissionRequest::default()
    }
}

fn cancel(mission: &str) -> pb::CancelMissionRequest {
    pb::CancelMissionRequest {
        mission_id: mission.into(),
        ..pb::CancelMissionRequest::default()
    }
}

async fn status(
    client: &mut MissionServiceClient<Channel>,
    mission: &str,
) -> Result<String, Status> {
    let request = pb::GetMissionStatusRequest {
        mission_id: mission.into(),
        ..pb::GetMissionStatusRequest::default()
    };
    client
        .get_mission_status(request)
        .await
        .map(|response| response.into_inner().status)
}

const EXECUTE: &str = "robot:execute_action";

#[tokio::test]
async fn a_mission_is_dispatched_watched_and_asked_for() {
    let robots = started(true).await;
    let mut client = client(&robots).await;
    let watch = pb::WatchMissionsRequest {
        mission_id: "m".into(),
        ..pb::WatchMissionsRequest::default()
    };
    let mut updates = client
        .watch_missions(watch.clone())
        .await
        .unwrap()
        .into_inner();
    let answer = client
        .dispatch_mission(dispatch("m", EXECUTE, "0.05"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.status(), DispatchStatus::Dispatched);
    let mut positions = Vec::new();
    for expected in ["Dispatched", "Executing", "Succeeded"] {
        let update = updates.message().await.unwrap().unwrap();
        assert_eq!((&*update.status, &*update.robot_id), (expected, "r"));
        positions.push(update.position);
    }
    assert_eq!(status(&mut client, "m").await.unwrap(), "Succeeded");
    assert_eq!(
        status(&mut client, "other").await.unwrap_err().code(),
        Code::NotFound
    );
    let resumed = pb::WatchMissionsRequest {
        after_position: positions[1],
        ..watch
    };
    let mut updates = client.watch_missions(resumed).await.unwrap().into_inner();
    assert_eq!(
        updates.message().await.unwrap().unwrap().position,
        positions[2]
    );
}

#[tokio::test]
async fn a_refusal_is_a_response_and_names_its_reason() {
    let robots = started(true).await;
    let mut client = client(&robots).await;
    client
        .dispatch_mission(dispatch("a", EXECUTE, "60"))
        .await
        .unwrap();
    for (request, reason) in [
        (dispatch("b", EXECUTE, "1"), "InvalidState"),
        (dispatch("a/b", EXECUTE, "1"), "InvalidMission"),
        (dispatch("c", "robot:dance", "1"), "InvalidMission"),
        (
            pb::DispatchMissionRequest {
                robot_id: "x".into(),
                ..dispatch("d", EXECUTE, "1")
            },
            "InvalidMission",
        ),
    ] {
        let answer = client.dispatch_mission(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), DispatchStatus::Rejected);
        assert_eq!(answer.reject_reason, reason);
        assert!(!answer.message.is_empty());
    }
}

#[tokio::test]
async fn a_cancel_is_accepted_once_and_changes_nothing_afterwards() {
    let robots = started(true).await;
    let mut client = client(&robots).await;
    client
        .dispatch_mission(dispatch("m", EXECUTE, "60"))
        .await
        .unwrap();
    assert!(
        client
            .cancel_mission(cancel("m"))
            .await
            .unwrap()
            .into_inner()
            .accepted
    );
    while status(&mut client, "m").await.unwrap() != "Cancelled" {
        sleep(Duration::from_millis(5)).await;
    }
    let again = client
        .cancel_mission(cancel("m"))
        .await
        .unwrap()
        .into_inner();
    assert!(!again.accepted && !again.cancelled_at.is_empty());
    assert!(
        !client
            .cancel_mission(cancel("other"))
            .await
            .unwrap()
            .into_inner()
            .accepted
    );
}

#[tokio::test]
async fn a_stop_answers_accepted_while_it_decelerates_and_stationary_when_it_stands() {
    let robots = started(true).await;
    let mut client = client(&robots).await;
    client
        .dispatch_mission(dispatch("m", EXECUTE, "60"))
        .await
        .unwrap();
    let stop = |id: &str| dispatch(id, "robot:stop", "");
    let answer = client
        .dispatch_mission(stop("s"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.stop.unwrap().state(), pb::StopState::Accepted);
    while status(&mut client, "s").await.unwrap() != "Succeeded" {
        sleep(Duration::from_millis(5)).await;
    }
    let answer = client
        .dispatch_mission(stop("s"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.stop.unwrap().state(), pb::StopState::Stationary);
}

#[tokio::test]
async fn a_robot_of_the_bare_contract_has_no_watch_and_nobody_confirms_at_a_robot() {
    let robots = started(false).await;
    let mut client = client(&robots).await;
    let refused = client
        .watch_missions(pb::WatchMissionsRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    let refused = client
        .confirm_mission(pb::ConfirmMissionRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_robot_that_vanishes_cuts_its_callers_off_and_is_there_again_later() {
    let robots = started(true).await;
    let robot = robots.robots()[0].clone();
    let mut before = client(&robots).await;
    robot.set_behaviour(Behaviour::NeverAnswer);
    let mut waiting = before.clone();
    let unanswered =
        tokio::spawn(async move { waiting.dispatch_mission(dispatch("m", EXECUTE, "0")).await });
    while robot.log().executions_of("key-m") == 0 {
        sleep(Duration::from_millis(5)).await;
    }
    robot.vanish();
    assert!(unanswered.await.unwrap().is_err());
    assert!(status(&mut before, "m").await.is_err());
    robot.set_behaviour(Behaviour::Normal);
    robot.come_back();
    let mut after = client(&robots).await;
    assert_eq!(status(&mut after, "m").await.unwrap(), "Succeeded");
}

//! The contract's `MissionService` as a robot answers it.

use crate::dev::robot::{
    Answer, Order, Reports, RobotReport, SimulatedRobot, execution_log::rfc3339, wire::seconds,
};
use futures::{Stream, StreamExt as _, stream};
use portarium_protocols::{
    grpc::pb::{self, mission_service_server::MissionService},
    ids::{MissionId, RobotId},
    mission::MissionStatus,
};
use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    time::SystemTime,
};
use tonic::{Request, Response, Status};

/// Reports taken at a time.
const BATCH: usize = 64;

/// Robots behind one listener.
#[derive(Clone)]
pub(super) struct Service {
    pub(super) by_id: HashMap<RobotId, SimulatedRobot>,
    pub(super) reports: Reports,
    pub(super) watch: bool,
}

impl Service {
    fn known(&self, mission: &str) -> Option<(&SimulatedRobot, RobotReport)> {
        let mission: MissionId = mission.parse().ok()?;
        self.by_id
            .values()
            .find_map(|robot| Some((robot, robot.status(&mission)?)))
    }

    /// Leaves the caller waiting if the robot that he asks does not talk: the one that knows the
    /// mission, or the one that is alone.
    async fn unless_silent(&self, mission: &str) {
        let alone = || self.by_id.values().next().filter(|_| self.by_id.len() == 1);
        let asked = self.known(mission).map(|(robot, _)| robot).or_else(alone);
        if asked.is_some_and(|robot| !robot.talks()) {
            std::future::pending::<()>().await;
        }
    }
}

fn order(request: &pb::DispatchMissionRequest) -> Result<Order, String> {
    let parameters = request.parameters.as_ref();
    Ok(Order {
        mission: request
            .mission_id
            .parse()
            .map_err(|e| format!("mission_id {e}"))?,
        action_type: request
            .action_type
            .parse()
            .map_err(|()| "action_type is unknown")?,
        idempotency_key: request.idempotency_key.clone(),
        duration: parameters
            .and_then(|p| p.fields.get("duration"))
            .and_then(|text| seconds(text)),
        expires: None,
    })
}

fn answer_to(request: pb::DispatchMissionRequest) -> pb::DispatchMissionResponse {
    pb::DispatchMissionResponse {
        status: pb::DispatchStatus::Dispatched.into(),
        gateway_request_id: request.mission_id.clone(),
        mission_id: request.mission_id,
        correlation_id: request.correlation_id,
        plan_effect_idempotency_key: request.plan_effect_idempotency_key,
        dispatched_at: rfc3339(SystemTime::now()),
        ..pb::DispatchMissionResponse::default()
    }
}

fn rejected(
    request: pb::DispatchMissionRequest,
    reason: &str,
    message: String,
) -> pb::DispatchMissionResponse {
    pb::DispatchMissionResponse {
        status: pb::DispatchStatus::Rejected.into(),
        reject_reason: reason.into(),
        message,
        dispatched_at: String::new(),
        ..answer_to(request)
    }
}

fn update(position: u64, report: &RobotReport) -> pb::MissionUpdate {
    pb::MissionUpdate {
        position,
        mission_id: report.mission.to_string(),
        robot_id: report.robot.to_string(),
        status: report.status.to_string(),
        action_execution_id: report.action_execution_id.clone(),
        observed_at: report.observed_at.clone(),
        detail: report.detail.clone(),
        action_type: report.action_type.as_str().into(),
        ..pb::MissionUpdate::default()
    }
}

/// The reports after a position that a request selects, without an end.
fn follow(
    reports: Reports,
    wanted: pb::WatchMissionsRequest,
) -> impl Stream<Item = pb::MissionUpdate> {
    let mut last = reports.last();
    let position = if wanted.from_now {
        *last.borrow_and_update()
    } else {
        wanted.after_position
    };
    let batches = stream::unfold(
        (reports, last, position),
        |(reports, mut last, position)| async move {
            loop {
                last.borrow_and_update();
                let batch = reports.after(position, BATCH);
                if let Some((newest, _)) = batch.last() {
                    let newest = *newest;
                    return Some((VecDeque::from(batch), (reports, last, newest)));
                }
                last.changed().await.ok()?;
            }
        },
    );
    batches
        .flat_map(stream::iter)
        .filter_map(move |(position, report)| {
            let selected = (wanted.mission_id.is_empty()
                || wanted.mission_id == report.mission.as_str())
                && (wanted.robot_id.is_empty() || wanted.robot_id == report.robot.as_str());
            std::future::ready(selected.then(|| update(position, &report)))
        })
}

#[tonic::async_trait]
impl MissionService for Service {
    async fn dispatch_mission(
        &self,
        request: Request<pb::DispatchMissionRequest>,
    ) -> Result<Response<pb::DispatchMissionResponse>, Status> {
        let request = request.into_inner();
        let Some(robot) = self.by_id.get(&*request.robot_id) else {
            let message = "robot_id names another robot".into();
            return Ok(Response::new(rejected(request, "InvalidMission", message)));
        };
        let order = match order(&request) {
            Ok(order) => order,
            Err(message) => return Ok(Response::new(rejected(request, "InvalidMission", message))),
        };
        let response = match robot.order(order) {
            Answer::Silence => std::future::pending().await,
            Answer::Accepted => answer_to(request),
            Answer::Refused(why) => rejected(request, "InvalidState", why),
            Answer::Stops { stationary } => {
                let state = if stationary {
                    pb::StopState::Stationary
                } else {
                    pb::StopState::Accepted
                };
                let stop = pb::StopOutcome {
                    state: state.into(),
                    ..pb::StopOutcome::default()
                };
                pb::DispatchMissionResponse {
                    stop: Some(stop),
                    ..answer_to(request)
                }
            }
        };
        Ok(Response::new(response))
    }

    async fn cancel_mission(
        &self,
        request: Request<pb::CancelMissionRequest>,
    ) -> Result<Response<pb::CancelMissionResponse>, Status> {
        let request = request.into_inner();
        let Ok(mission) = request.mission_id.parse::<MissionId>() else {
            return Err(Status::invalid_argument("mission_id"));
        };
        let before = self
            .known(mission.as_str())
            .map(|(_, report)| report.status);
        for robot in self.by_id.values() {
            robot.cancel(&mission);
        }
        self.unless_silent(mission.as_str()).await;
        let after = self.known(mission.as_str()).map(|(_, report)| report);
        let ended = after.filter(|report| report.status == MissionStatus::Cancelled);
        Ok(Response::new(pb::CancelMissionResponse {
            accepted: before.is_some_and(|status| !status.is_terminal()),
            cancelled_at: ended.map(|report| report.observed_at).unwrap_or_default(),
            message: before.map_or_else(
                || "unknown mission".into(),
                |status| format!("it was {status}"),
            ),
        }))
    }

    async fn get_mission_status(
        &self,
        request: Request<pb::GetMissionStatusRequest>,
    ) -> Result<Response<pb::GetMissionStatusResponse>, Status> {
        let mission = request.into_inner().mission_id;
        self.unless_silent(&mission).await;
        let Some((_, report)) = self.known(&mission) else {
            return Err(Status::not_found("unknown mission"));
        };
        Ok(Response::new(pb::GetMissionStatusResponse {
            mission_id: report.mission.to_string(),
            status: report.status.to_string(),
            action_execution_id: report.action_execution_id,
            observed_at: report.observed_at,
            detail: report.detail,
            ..pb::GetMissionStatusResponse::default()
        }))
    }

    type WatchMissionsStream =
        Pin<Box<dyn Stream<Item = Result<pb::MissionUpdate, Status>> + Send>>;

    async fn watch_missions(
        &self,
        request: Request<pb::WatchMissionsRequest>,
    ) -> Result<Response<Self::WatchMissionsStream>, Status> {
        if !self.watch {
            return Err(Status::unimplemented("this robot has no WatchMissions"));
        }
        let updates = follow(self.reports.clone(), request.into_inner());
        Ok(Response::new(Box::pin(updates.map(Ok))))
    }

    async fn confirm_mission(
        &self,
        _: Request<pb::ConfirmMissionRequest>,
    ) -> Result<Response<pb::ConfirmMissionResponse>, Status> {
        Err(not_a_robots())
    }

    async fn resolve_mission(
        &self,
        _: Request<pb::ResolveMissionRequest>,
    ) -> Result<Response<pb::ResolveMissionResponse>, Status> {
        Err(not_a_robots())
    }

    async fn list_robots(
        &self,
        _: Request<pb::ListRobotsRequest>,
    ) -> Result<Response<pb::ListRobotsResponse>, Status> {
        Err(not_a_robots())
    }

    async fn get_robot(
        &self,
        _: Request<pb::GetRobotRequest>,
    ) -> Result<Response<pb::Robot>, Status> {
        Err(not_a_robots())
    }

    async fn hold_robot(
        &self,
        _: Request<pb::HoldRobotRequest>,
    ) -> Result<Response<pb::Robot>, Status> {
        Err(not_a_robots())
    }

    async fn release_robot(
        &self,
        _: Request<pb::ReleaseRobotRequest>,
    ) -> Result<Response<pb::Robot>, Status> {
        Err(not_a_robots())
    }

    async fn list_peers(
        &self,
        _: Request<pb::ListPeersRequest>,
    ) -> Result<Response<pb::ListPeersResponse>, Status> {
        Err(not_a_robots())
    }
}

fn not_a_robots() -> Status {
    Status::unimplemented("a robot does not serve this")
}

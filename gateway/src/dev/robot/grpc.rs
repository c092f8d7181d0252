//! Robots that serve the contract's `MissionService` themselves.

use super::{
    Answer, ExecutionLog, Order, RobotConfig, SimulatedRobot,
    execution_log::rfc3339,
    reports::{Reports, RobotReport},
    wire::seconds,
};
use futures::{Stream, StreamExt as _, stream};
use portarium_identity::ServerTls;
use portarium_protocols::{
    grpc::{
        Connections,
        pb::{
            self,
            mission_service_server::{MissionService, MissionServiceServer},
        },
        server::{ServerLimits, serve},
    },
    ids::{MissionId, RobotId},
    mission::MissionStatus,
};
use std::{
    collections::{HashMap, VecDeque},
    io,
    net::SocketAddr,
    pin::Pin,
    time::{Duration, SystemTime},
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, service::Routes};

/// Reports taken at a time.
const BATCH: usize = 64;
const BIND_RETRY: Duration = Duration::from_millis(50);

/// How robots serve gRPC.
#[derive(Clone)]
pub struct GrpcRobotConfig {
    /// Mutual TLS; `None` is plaintext, for development on a loopback address.
    pub tls: Option<ServerTls>,
    /// Whether they have `WatchMissions`; robots that speak the bare contract have not.
    pub watch: bool,
}

/// Robots behind one listener. Dropping it cuts all connections.
///
/// A robot that is alone behind its listener closes it when it vanishes, with all connections.
/// One of many only falls silent.
pub struct GrpcRobots {
    robots: Vec<SimulatedRobot>,
    local_addr: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl GrpcRobots {
    /// Serves on a listener, in the background.
    ///
    /// # Errors
    /// When the listener has no address.
    pub fn start(
        listener: TcpListener,
        config: GrpcRobotConfig,
        robots: Vec<RobotConfig>,
        log: &ExecutionLog,
    ) -> io::Result<Self> {
        let local_addr = listener.local_addr()?;
        let reports = Reports::new();
        let robots: Vec<_> = robots
            .into_iter()
            .map(|robot| SimulatedRobot::new(robot, reports.clone(), log.clone()))
            .collect();
        let stop = CancellationToken::new();
        let service = Service {
            by_id: robots
                .iter()
                .map(|robot| (robot.id().clone(), robot.clone()))
                .collect(),
            reports,
            watch: config.watch,
        };
        let task = tokio::spawn(run(listener, local_addr, config.tls, service, stop.clone()));
        Ok(Self {
            robots,
            local_addr,
            stop,
            task,
        })
    }

    /// The robots, in the order given.
    pub fn robots(&self) -> &[SimulatedRobot] {
        &self.robots
    }

    /// Where they listen.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Ends it once what is under way is answered, or after a second.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let _ = tokio::time::timeout(Duration::from_secs(1), &mut self.task).await;
    }
}

impl Drop for GrpcRobots {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<ServerTls>,
    service: Service,
    stop: CancellationToken,
) {
    let alone = service
        .by_id
        .values()
        .next()
        .filter(|_| service.by_id.len() == 1)
        .cloned();
    let mut presence = alone.as_ref().map(SimulatedRobot::presence);
    let mut listener = Some(listener);
    while !stop.is_cancelled() {
        let Some(listening) = listener.take() else {
            match TcpListener::bind(address).await {
                Ok(bound) => listener = Some(bound),
                Err(error) => {
                    tracing::warn!(%address, %error, "cannot listen again");
                    sleep(BIND_RETRY).await;
                }
            }
            continue;
        };
        let routes = Routes::new(MissionServiceServer::new(service.clone()));
        let limits = ServerLimits::default();
        let serving = serve(
            listening,
            tls.clone(),
            routes,
            limits,
            Connections::new(),
            stop.clone(),
        );
        // Dropping what serves cuts its connections.
        tokio::select! {
            ended = serving => {
                if let Err(error) = ended {
                    tracing::error!(%address, %error, "cannot serve");
                }
                return;
            }
            () = becomes(&mut presence, false) => {}
        }
        tokio::select! {
            () = becomes(&mut presence, true) => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn becomes(presence: &mut Option<watch::Receiver<bool>>, wanted: bool) {
    match presence {
        // An error means that the robot is gone, which cannot be: the service has it.
        Some(presence) => drop(presence.wait_for(|present| *present == wanted).await),
        None => std::future::pending().await,
    }
}

#[derive(Clone)]
struct Service {
    by_id: HashMap<RobotId, SimulatedRobot>,
    reports: Reports,
    watch: bool,
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
}

fn not_a_robots() -> Status {
    Status::unimplemented("a robot does not serve this")
}

#[cfg(test)]
#[path = "grpc_tests.rs"]
mod tests;

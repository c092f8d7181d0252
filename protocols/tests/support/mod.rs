//! A robot that serves the contract and does as the test says, and a listener around it.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub
)]

use portarium_identity::ServerTls;
use portarium_protocols::grpc::{
    Connections, GrpcError, Target,
    pb::{
        self,
        mission_service_server::{MissionService, MissionServiceServer},
    },
    server::{ServerLimits, serve},
};
use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, metadata::MetadataMap};

/// What the robot was asked, and how it answers.
#[derive(Default)]
pub struct Robot {
    /// Every call in order of arrival, for example `dispatch m-1`.
    pub calls: Mutex<Vec<String>>,
    /// The `authorization` of each dispatch and stop.
    pub authorizations: Mutex<Vec<Option<String>>>,
    pub missions: Mutex<HashMap<String, String>>,
    pub updates: Mutex<Vec<pb::MissionUpdate>>,
    pub news: watch::Sender<u64>,
    /// Whether `WatchMissions` is served.
    pub watchable: bool,
    /// How long a dispatch takes to be answered.
    pub dispatch_delay: Mutex<Duration>,
    /// The answer to a dispatch; by default `DISPATCHED`.
    pub dispatch_answer: Mutex<Option<Result<pb::DispatchMissionResponse, Status>>>,
    /// Calls without a bearer token, or with this one, are refused.
    pub insists: Mutex<Option<String>>,
    /// Bodies that were begun and not ended by an answer.
    pub in_flight: AtomicU32,
    position: AtomicU64,
}

impl Robot {
    pub fn new(watchable: bool) -> Arc<Self> {
        Arc::new(Self {
            watchable,
            ..Self::default()
        })
    }

    pub fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }

    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    pub fn count(&self, call: &str) -> usize {
        self.calls().iter().filter(|c| *c == call).count()
    }

    fn admit(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let refused = self.insists.lock().unwrap().clone();
        let shown = metadata.get("authorization").map(|shown| shown.to_str());
        match (refused, shown) {
            (Some(_), None) => Err(Status::unauthenticated("show a JWT-SVID")),
            (Some(refused), Some(Ok(shown))) if shown == refused => {
                Err(Status::unauthenticated("another one"))
            }
            _ => Ok(()),
        }
    }

    /// The robot reports a mission's state.
    pub fn report(&self, mission: &str, status: &str) {
        self.missions
            .lock()
            .unwrap()
            .insert(mission.into(), status.into());
        let position = self.position.fetch_add(1, Ordering::SeqCst) + 1;
        self.updates.lock().unwrap().push(pb::MissionUpdate {
            position,
            mission_id: mission.into(),
            status: status.into(),
            ..Default::default()
        });
        self.news.send_replace(position);
    }
}

type Updates = Pin<Box<dyn Stream<Item = Result<pb::MissionUpdate, Status>> + Send>>;

struct InFlight(Arc<Robot>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

pub struct Service(pub Arc<Robot>);

#[tonic::async_trait]
impl MissionService for Service {
    async fn dispatch_mission(
        &self,
        request: Request<pb::DispatchMissionRequest>,
    ) -> Result<Response<pb::DispatchMissionResponse>, Status> {
        let shown = request.metadata().get("authorization");
        let shown = shown.map(|value| value.to_str().unwrap().to_owned());
        self.0.authorizations.lock().unwrap().push(shown);
        self.0.admit(request.metadata())?;
        let request = request.into_inner();
        self.0.in_flight.fetch_add(1, Ordering::SeqCst);
        let _in_flight = InFlight(self.0.clone());
        let verb = if request.action_type == "robot:execute_action" {
            "dispatch"
        } else {
            "stop"
        };
        self.0.note(format!("{verb} {}", request.mission_id));
        if verb == "dispatch" {
            let delay = *self.0.dispatch_delay.lock().unwrap();
            tokio::time::sleep(delay).await;
            self.0.note(format!("dispatched {}", request.mission_id));
        }
        let stop = (verb == "stop").then(|| pb::StopOutcome {
            state: pb::StopState::Stationary.into(),
            ..Default::default()
        });
        if verb == "dispatch"
            && let Some(answer) = self.0.dispatch_answer.lock().unwrap().clone()
        {
            return answer.map(Response::new);
        }
        let mut missions = self.0.missions.lock().unwrap();
        missions
            .entry(request.mission_id.clone())
            .or_insert("Dispatched".into());
        Ok(Response::new(pb::DispatchMissionResponse {
            status: pb::DispatchStatus::Dispatched.into(),
            mission_id: request.mission_id,
            stop,
            ..Default::default()
        }))
    }

    async fn cancel_mission(
        &self,
        request: Request<pb::CancelMissionRequest>,
    ) -> Result<Response<pb::CancelMissionResponse>, Status> {
        self.0.admit(request.metadata())?;
        let request = request.into_inner();
        self.0.note(format!("cancel {}", request.mission_id));
        let known = self
            .0
            .missions
            .lock()
            .unwrap()
            .contains_key(&request.mission_id);
        Ok(Response::new(pb::CancelMissionResponse {
            accepted: known,
            cancelled_at: String::new(),
            message: if known {
                String::new()
            } else {
                "never heard of it\u{7}".into()
            },
        }))
    }

    async fn get_mission_status(
        &self,
        request: Request<pb::GetMissionStatusRequest>,
    ) -> Result<Response<pb::GetMissionStatusResponse>, Status> {
        let request = request.into_inner();
        self.0.note(format!("status {}", request.mission_id));
        let missions = self.0.missions.lock().unwrap();
        let status = missions
            .get(&request.mission_id)
            .ok_or_else(|| Status::not_found("no such mission"))?;
        Ok(Response::new(pb::GetMissionStatusResponse {
            mission_id: request.mission_id,
            status: status.clone(),
            ..Default::default()
        }))
    }

    type WatchMissionsStream = Updates;

    async fn watch_missions(
        &self,
        request: Request<pb::WatchMissionsRequest>,
    ) -> Result<Response<Updates>, Status> {
        if !self.0.watchable {
            return Err(Status::unimplemented("not served"));
        }
        let request = request.into_inner();
        self.0.note(format!("watch {}", request.after_position));
        let robot = self.0.clone();
        let state = (robot.news.subscribe(), request.after_position, robot);
        Ok(Response::new(Box::pin(futures::stream::unfold(
            state,
            |(mut news, after, robot)| async move {
                let next = loop {
                    news.borrow_and_update();
                    let found = robot
                        .updates
                        .lock()
                        .unwrap()
                        .iter()
                        .find(|u| u.position > after)
                        .cloned();
                    match found {
                        Some(update) => break update,
                        None => news.changed().await.ok()?,
                    }
                };
                let position = next.position;
                Some((Ok(next), (news, position, robot)))
            },
        ))))
    }

    async fn confirm_mission(
        &self,
        _: Request<pb::ConfirmMissionRequest>,
    ) -> Result<Response<pb::ConfirmMissionResponse>, Status> {
        Err(Status::unimplemented("not served"))
    }
    async fn resolve_mission(
        &self,
        _: Request<pb::ResolveMissionRequest>,
    ) -> Result<Response<pb::ResolveMissionResponse>, Status> {
        Err(Status::unimplemented("not served"))
    }
    async fn list_robots(
        &self,
        _: Request<pb::ListRobotsRequest>,
    ) -> Result<Response<pb::ListRobotsResponse>, Status> {
        Err(Status::unimplemented("not served"))
    }
    async fn get_robot(
        &self,
        _: Request<pb::GetRobotRequest>,
    ) -> Result<Response<pb::Robot>, Status> {
        Err(Status::unimplemented("not served"))
    }
    async fn hold_robot(
        &self,
        _: Request<pb::HoldRobotRequest>,
    ) -> Result<Response<pb::Robot>, Status> {
        Err(Status::unimplemented("not served"))
    }
    async fn release_robot(
        &self,
        _: Request<pb::ReleaseRobotRequest>,
    ) -> Result<Response<pb::Robot>, Status> {
        Err(Status::unimplemented("not served"))
    }
    async fn list_peers(
        &self,
        _: Request<pb::ListPeersRequest>,
    ) -> Result<Response<pb::ListPeersResponse>, Status> {
        Err(Status::unimplemented("not served"))
    }
}

/// A listener that serves a robot.
pub struct Served {
    pub target: Target,
    pub connections: Arc<Connections>,
    pub shutdown: CancellationToken,
    pub task: JoinHandle<Result<(), GrpcError>>,
}

impl Served {
    pub async fn start(robot: Arc<Robot>, tls: Option<ServerTls>) -> Self {
        Self::start_at("127.0.0.1:0", robot, tls, ServerLimits::default()).await
    }

    pub async fn start_at(
        address: &str,
        robot: Arc<Robot>,
        tls: Option<ServerTls>,
        limits: ServerLimits,
    ) -> Self {
        let listener = listen(address).await;
        let port = listener.local_addr().unwrap().port();
        let routes = tonic::service::Routes::new(MissionServiceServer::new(Service(robot)));
        let connections = Connections::new();
        let shutdown = CancellationToken::new();
        Self {
            target: format!("127.0.0.1:{port}").parse().unwrap(),
            task: tokio::spawn(serve(
                listener,
                tls,
                routes,
                limits,
                connections.clone(),
                shutdown.clone(),
            )),
            connections,
            shutdown,
        }
    }

    /// Cuts everything at once, as a crash does.
    pub async fn crash(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// A listener on an address that may just have been left.
async fn listen(address: &str) -> TcpListener {
    for _ in 0..100 {
        if let Ok(listener) = TcpListener::bind(address).await {
            return listener;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("cannot bind {address}");
}

/// Waits until `what` holds; panics after ten seconds.
pub async fn until(name: &str, mut what: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{name} did not come true");
}

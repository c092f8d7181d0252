//! A client of the mission service, as a control plane is one.

use crate::{Identities, hints, only, soon};
use portarium_identity::SvidManager;
use portarium_protocols::grpc::{
    ALPN, Channel, ChannelError, Connection, Credential,
    pb::{self, mission_service_client::MissionServiceClient},
};
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};
use tonic::{Response, Status};

/// How long a call may take.
const CALL_TIME: Duration = Duration::from_secs(10);

/// A caller with its own SVID, on a connection that is made anew before its certificates end.
/// Counts the calls that failed.
pub struct Caller {
    connection: Connection,
    failed: AtomicU64,
    resent: AtomicU64,
}

/// An ordinary mission, with keys of its own, that takes this long.
pub fn mission(robot: &str, id: &str, takes: Duration) -> pb::DispatchMissionRequest {
    pb::DispatchMissionRequest {
        mission_id: id.into(),
        correlation_id: format!("correlation-{id}"),
        plan_effect_idempotency_key: format!("plan-{id}"),
        idempotency_key: format!("key-{id}"),
        robot_id: robot.into(),
        action_type: "robot:execute_action".into(),
        action_name: "navigate_to".into(),
        parameters: Some(pb::ActionParameters {
            fields: [("duration".to_owned(), takes.as_secs_f64().to_string())].into(),
        }),
        supports_preemption: true,
        completion_mode: "Auto".into(),
        ..Default::default()
    }
}

/// A stop under a mission id of its own.
pub fn stop(robot: &str, id: &str) -> pb::DispatchMissionRequest {
    pb::DispatchMissionRequest {
        mission_id: id.into(),
        robot_id: robot.into(),
        action_type: "robot:stop".into(),
        bypass_tier_evaluation: true,
        ..Default::default()
    }
}

impl Caller {
    /// Connected to the gateway as the control plane.
    pub async fn control_plane(identities: &Identities, port: u16) -> Self {
        Self::with(identities, hints::CONTROL_PLANE, port).await
    }

    /// Connected as the workload with this hint.
    pub async fn with(identities: &Identities, hint: &str, port: u16) -> Self {
        Self::of(&identities.manager(hint).await, port).await
    }

    /// Connected as whoever this is.
    pub async fn of(manager: &SvidManager, port: u16) -> Self {
        Self::showing(None, manager, port).await
    }

    /// As [`Caller::of`], with something to show beside the certificate.
    pub async fn showing(
        credential: Option<Arc<dyn Credential>>,
        manager: &SvidManager,
        port: u16,
    ) -> Self {
        let tls = manager.client_tls(only(hints::GATEWAY), ALPN);
        let target = format!("localhost:{port}").parse().unwrap();
        let connection = Connection::start_showing(credential, target, Some(tls), "test");
        soon("a connection to the gateway", connection.ready())
            .await
            .unwrap();
        Self {
            connection,
            failed: AtomicU64::new(0),
            resent: AtomicU64::new(0),
        }
    }

    /// A client on the connection of now.
    pub fn client(&self) -> Result<MissionServiceClient<Channel>, Status> {
        self.channel().map(MissionServiceClient::new)
    }

    /// The connection of now.
    pub fn channel(&self) -> Result<Channel, Status> {
        let channel = self.connection.channel();
        channel.map_err(|down| Status::unavailable(down.reason.to_string()))
    }

    /// How many calls failed.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// How many calls were made again because they were certainly not sent, as gRPC's clients do
    /// by themselves.
    pub fn resent(&self) -> u64 {
        self.resent.load(Ordering::Relaxed)
    }

    /// Makes a call; again, once, if it certainly did not leave this process.
    pub async fn call<T, F>(
        &self,
        call: impl Fn(MissionServiceClient<Channel>) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut state = self.connection.state();
        let mut answer = self.attempt(&call).await;
        if answer.as_ref().is_err_and(ChannelError::was_not_sent) {
            self.resent.fetch_add(1, Ordering::Relaxed);
            // A connection that has just ended is about to be known as such.
            let next = async {
                let _ = state.changed().await;
                self.connection.ready().await
            };
            let _ = timeout(Duration::from_secs(1), next).await;
            answer = self.attempt(&call).await;
        }
        if answer.is_err() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }

    async fn attempt<T, F>(
        &self,
        call: &impl Fn(MissionServiceClient<Channel>) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let answer = timeout(CALL_TIME, call(self.client()?)).await;
        let late = |_| Status::deadline_exceeded("the test's patience is over");
        Ok(answer.map_err(late)??.into_inner())
    }

    /// `DispatchMission`
    pub async fn dispatch(
        &self,
        request: &pb::DispatchMissionRequest,
    ) -> Result<pb::DispatchMissionResponse, Status> {
        self.call(|mut client| {
            let request = request.clone();
            async move { client.dispatch_mission(request).await }
        })
        .await
    }

    /// Dispatches and insists on the acknowledgement; returns its `gateway_request_id`.
    pub async fn accepted(&self, request: &pb::DispatchMissionRequest) -> String {
        let answer = self.dispatch(request).await.unwrap();
        assert_eq!(
            answer.status(),
            pb::DispatchStatus::Dispatched,
            "{}: {}",
            request.mission_id,
            answer.message
        );
        answer.gateway_request_id
    }

    /// Dispatches until it is acknowledged, as a control plane does with the same keys: after
    /// failed calls, when told that the gateway cannot, and while the robot is held.
    pub async fn insist(&self, request: &pb::DispatchMissionRequest, patience: Duration) -> String {
        let begin = Instant::now();
        loop {
            let last = match self.dispatch(request).await {
                Ok(answer) if answer.status() == pb::DispatchStatus::Dispatched => {
                    return answer.gateway_request_id;
                }
                Ok(answer) => {
                    let later = answer.status() == pb::DispatchStatus::GatewayUnreachable
                        || answer.reject_reason == "InvalidState";
                    assert!(later, "{}: {answer:?}", request.mission_id);
                    answer.message
                }
                Err(status) => status.to_string(),
            };
            assert!(
                begin.elapsed() < patience,
                "{} was not accepted within {patience:?}: {last}",
                request.mission_id
            );
            sleep(Duration::from_millis(20 + fastrand::u64(..30))).await;
        }
    }

    /// `GetMissionStatus`
    pub async fn status(&self, mission: &str) -> Result<pb::GetMissionStatusResponse, Status> {
        self.call(|mut client| {
            let request = pb::GetMissionStatusRequest {
                mission_id: mission.into(),
                ..Default::default()
            };
            async move { client.get_mission_status(request).await }
        })
        .await
    }

    /// `CancelMission`
    pub async fn cancel(&self, mission: &str) -> Result<pb::CancelMissionResponse, Status> {
        self.call(|mut client| {
            let request = pb::CancelMissionRequest {
                mission_id: mission.into(),
                reason: "test".into(),
                ..Default::default()
            };
            async move { client.cancel_mission(request).await }
        })
        .await
    }

    /// `ResolveMission`
    pub async fn resolve(
        &self,
        mission: &str,
        status: &str,
    ) -> Result<pb::ResolveMissionResponse, Status> {
        self.call(|mut client| {
            let request = pb::ResolveMissionRequest {
                mission_id: mission.into(),
                status: status.into(),
                note: "test".into(),
            };
            async move { client.resolve_mission(request).await }
        })
        .await
    }

    /// `GetRobot`
    pub async fn robot(&self, robot: &str) -> Result<pb::Robot, Status> {
        self.call(|mut client| {
            let request = pb::GetRobotRequest {
                robot_id: robot.into(),
            };
            async move { client.get_robot(request).await }
        })
        .await
    }

    /// Waits until the gateway has these robots in reach, and knows what they are at.
    pub async fn robots_reachable(&self, robots: &[&str]) {
        for robot in robots {
            crate::until(&format!("{robot} in reach"), async || {
                let found = self.robot(robot).await;
                found.is_ok_and(|robot| robot.reachable && robot.reconciled)
            })
            .await;
        }
        self.failed.store(0, Ordering::Relaxed);
        self.resent.store(0, Ordering::Relaxed);
    }
}

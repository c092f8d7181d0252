//! The mission service: the contract towards the control plane and operators.
//!
//! Each call passes the same gate: who is it, may it call this method, may
//! it do so to this robot; and each decision is one line of the audit. What a mission promises is
//! the engine's.

mod answer;
mod dispatch;
mod gate;
mod missions;
mod places;
mod robots;
#[cfg(test)]
mod tests;
mod tokens;
mod unread;
mod watch;

use gate::{About, Gate};
use places::{Place, Places};
pub use tokens::Tokens;
pub use watch::POSITION;

use crate::{
    audit::Audit,
    config::Development,
    engine::Engine,
    policy::{Method, Policy, Principal},
};
use arc_swap::ArcSwap;
use axum::middleware::from_fn_with_state;
use portarium_protocols::grpc::{
    convert::MAX_REQUEST_BYTES,
    pb::{self, mission_service_server::MissionServiceServer},
};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status,
    service::{Routes, interceptor::InterceptedService},
};

/// Dispatches of one caller that may wait for the journal at a time; ...
const WAITING_DISPATCHES: usize = 512;

/// ... its cancels, which no dispatch shall keep out; ...
const WAITING_CANCELS: usize = 256;

/// ... and all its other calls but stops, which wait for nothing.
const WAITING_OTHERS: usize = 512;

/// Watches that one caller may have open.
const WATCHES: usize = 128;

/// Streams that one connection may have open: more than all of the above, so that a stop finds
/// one whatever waits on its caller's only connection.
pub const STREAMS: u32 = 2048;

const _: () =
    assert!(WAITING_DISPATCHES + WAITING_CANCELS + WAITING_OTHERS + WATCHES < STREAMS as usize);

/// The longest that a call waits for the journal. The caller asks again with the same key and
/// learns what came of it.
const JOURNAL_PATIENCE: Duration = Duration::from_secs(10);

/// The service's name, for health checks.
pub const SERVICE: &str = "portarium.robotics.v1.MissionService";

/// What the service hears for metrics.
pub trait ServiceObserver: Send + Sync {
    /// A dispatch was answered: its status, and how long it took.
    fn dispatched(&self, status: pb::DispatchStatus, took: Duration);
    /// An access token was looked at: `ok`, `refused` or `no_keys`.
    fn token_checked(&self, result: &'static str);
}

/// The mission service.
#[derive(Clone)]
pub struct Service {
    engine: Engine,
    gate: Gate,
    observer: Arc<dyn ServiceObserver>,
    dispatches: Arc<Places>,
    cancels: Arc<Places>,
    others: Arc<Places>,
    watches: Arc<Places>,
    closing: CancellationToken,
}

impl Service {
    /// Puts the service before the engine. `development`: callers without identity may do
    /// everything. `tokens`: which calls need an access token. Watches end when `closing` is cancelled.
    pub fn new(
        engine: Engine,
        policy: Arc<ArcSwap<Policy>>,
        audit: Audit,
        development: Option<Development>,
        tokens: Option<Arc<Tokens>>,
        observer: Arc<dyn ServiceObserver>,
        closing: CancellationToken,
    ) -> Self {
        Self {
            engine,
            gate: Gate::new(policy, audit, development, tokens),
            observer,
            dispatches: Places::new(WAITING_DISPATCHES),
            cancels: Places::new(WAITING_CANCELS),
            others: Places::new(WAITING_OTHERS),
            watches: Places::new(WATCHES),
            closing,
        }
    }

    /// A place among the calls that may wait for the journal.
    fn place(
        &self,
        places: &Arc<Places>,
        principal: &Principal,
        method: Method,
        about: About<'_>,
    ) -> Result<Place, Status> {
        places.enter(principal.caller()).ok_or_else(|| {
            let reason = "too many calls wait for the journal; nothing was done, try again later";
            self.gate
                .refused(principal, method, about, "RESOURCE_EXHAUSTED", reason);
            Status::resource_exhausted(reason)
        })
    }

    /// Everything that the listener serves: the contract, health and reflection.
    ///
    /// # Errors
    /// Where the compiled descriptors cannot be read.
    pub fn routes(
        self,
    ) -> Result<(Routes, tonic_health::server::HealthReporter), tonic_reflection::server::Error>
    {
        let (reporter, health) = tonic_health::server::health_reporter();
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let gate = self.gate.clone();
        let told = move |request: Request<()>| gate.reflected(request);
        let unread = from_fn_with_state(self.gate.clone(), unread::told);
        let service = MissionServiceServer::new(self).max_decoding_message_size(MAX_REQUEST_BYTES);
        let routes = Routes::new(service)
            .add_service(health)
            .add_service(InterceptedService::new(
                reflection().build_v1()?,
                told.clone(),
            ))
            .add_service(InterceptedService::new(reflection().build_v1alpha()?, told));
        let routes = Routes::from(routes.into_axum_router().layer(unread));
        Ok((routes, reporter))
    }
}

#[tonic::async_trait]
impl pb::mission_service_server::MissionService for Service {
    type WatchMissionsStream = watch::Updates;

    async fn dispatch_mission(
        &self,
        request: Request<pb::DispatchMissionRequest>,
    ) -> Result<Response<pb::DispatchMissionResponse>, Status> {
        self.dispatch(request).await.map(Response::new)
    }

    async fn cancel_mission(
        &self,
        request: Request<pb::CancelMissionRequest>,
    ) -> Result<Response<pb::CancelMissionResponse>, Status> {
        self.cancel(request).await.map(Response::new)
    }

    async fn get_mission_status(
        &self,
        request: Request<pb::GetMissionStatusRequest>,
    ) -> Result<Response<pb::GetMissionStatusResponse>, Status> {
        self.status(request).await.map(Response::new)
    }

    async fn watch_missions(
        &self,
        request: Request<pb::WatchMissionsRequest>,
    ) -> Result<Response<Self::WatchMissionsStream>, Status> {
        self.watch(request).await
    }

    async fn confirm_mission(
        &self,
        request: Request<pb::ConfirmMissionRequest>,
    ) -> Result<Response<pb::ConfirmMissionResponse>, Status> {
        self.confirm(request).await.map(Response::new)
    }

    async fn resolve_mission(
        &self,
        request: Request<pb::ResolveMissionRequest>,
    ) -> Result<Response<pb::ResolveMissionResponse>, Status> {
        self.resolve(request).await.map(Response::new)
    }

    async fn list_robots(
        &self,
        request: Request<pb::ListRobotsRequest>,
    ) -> Result<Response<pb::ListRobotsResponse>, Status> {
        self.list(&request).map(Response::new)
    }

    async fn get_robot(
        &self,
        request: Request<pb::GetRobotRequest>,
    ) -> Result<Response<pb::Robot>, Status> {
        self.show(&request).map(Response::new)
    }

    async fn hold_robot(
        &self,
        request: Request<pb::HoldRobotRequest>,
    ) -> Result<Response<pb::Robot>, Status> {
        self.hold(request).await.map(Response::new)
    }

    async fn release_robot(
        &self,
        request: Request<pb::ReleaseRobotRequest>,
    ) -> Result<Response<pb::Robot>, Status> {
        self.release(request).await.map(Response::new)
    }
}

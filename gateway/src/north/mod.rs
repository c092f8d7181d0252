//! The mission service: the contract towards the control plane and operators.
//!
//! Each call passes the same gate: who is it, may it call this method, may
//! it do so to this robot; and each decision is one line of the audit. What a mission promises is
//! the engine's.

mod answer;
mod dispatch;
mod gate;
mod missions;
mod peers;
mod places;
mod robots;
#[cfg(test)]
mod tests;
mod tokens;
mod turns;
mod unread;
mod watch;

use gate::{About, Gate};
use places::{Place, Places};
pub use tokens::Tokens;
use turns::Turns;
pub use watch::POSITION;

use crate::{
    audit::Audit,
    config::Development,
    engine::Engine,
    peers::Standing,
    policy::{Caller, Method, Policy, Principal},
};
use arc_swap::ArcSwap;
use axum::middleware::from_fn_with_state;
use portarium_protocols::{
    grpc::{
        REQUESTS,
        convert::MAX_REQUEST_BYTES,
        pb::{self, mission_service_server::MissionServiceServer},
    },
    mission::ActionType,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
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

/// Calls of one caller that are worked on at a time, its cancels aside: enough for a few threads, and
/// few for those who stand behind them.
const TURNS: usize = 4;

/// Lists of peers that one caller may be reading: they are megabytes.
const LISTS: usize = 2;

/// Watches that one caller may have open.
const WATCHES: usize = 128;

/// Streams that one connection may have open: more than one caller's requests but stops, so that a
/// stop finds one whatever waits on its caller's only connection.
pub const STREAMS: u32 = 4096;

const _: () = assert!(REQUESTS < STREAMS as usize);

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
    standing: Arc<dyn Fn() -> Standing + Send + Sync>,
    dispatches: Arc<Places>,
    cancels: Arc<Places>,
    others: Arc<Places>,
    watches: Arc<Places>,
    lists: Arc<Places>,
    turns: Arc<Turns>,
    turns_of_cancels: Arc<Turns>,
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
            standing: Arc::new(Standing::default),
            dispatches: Places::new(WAITING_DISPATCHES),
            cancels: Places::new(WAITING_CANCELS),
            others: Places::new(WAITING_OTHERS),
            watches: Places::new(WATCHES),
            lists: Places::new(LISTS),
            turns: Turns::new(TURNS),
            turns_of_cancels: Turns::new(TURNS),
            closing,
        }
    }

    /// Whose line a call stands in. Without an identity it ends before it could hold up anybody.
    fn caller<T>(&self, request: &Request<T>) -> Option<Caller> {
        let principal = self.gate.principal(request.extensions());
        principal.map(|principal| principal.caller())
    }

    /// Whom it asks for the connections that stand; there are none otherwise.
    pub fn asking(mut self, standing: impl Fn() -> Standing + Send + Sync + 'static) -> Self {
        self.standing = Arc::new(standing);
        self
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
            let reason = "too many calls wait, of this caller or of all, for the journal or to be read; nothing was done, try again later";
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
        let started = Instant::now();
        let (caller, kind) = (self.caller(&request), dispatch::kind(request.get_ref()));
        let dispatched = self.dispatch(request);
        let response = match kind {
            Some(kind) if kind.is_stop() => dispatched.await,
            Some(ActionType::CancelAction) => self.turns_of_cancels.take(caller, dispatched).await,
            _ => self.turns.take(caller, dispatched).await,
        }?;
        self.observer
            .dispatched(response.status(), started.elapsed());
        Ok(Response::new(response))
    }

    async fn cancel_mission(
        &self,
        request: Request<pb::CancelMissionRequest>,
    ) -> Result<Response<pb::CancelMissionResponse>, Status> {
        let caller = self.caller(&request);
        self.turns_of_cancels
            .take(caller, self.cancel(request))
            .await
            .map(Response::new)
    }

    async fn get_mission_status(
        &self,
        request: Request<pb::GetMissionStatusRequest>,
    ) -> Result<Response<pb::GetMissionStatusResponse>, Status> {
        let caller = self.caller(&request);
        self.turns
            .take(caller, self.status(request))
            .await
            .map(Response::new)
    }

    async fn watch_missions(
        &self,
        request: Request<pb::WatchMissionsRequest>,
    ) -> Result<Response<Self::WatchMissionsStream>, Status> {
        let caller = self.caller(&request);
        self.turns.take(caller, self.watch(request)).await
    }

    async fn confirm_mission(
        &self,
        request: Request<pb::ConfirmMissionRequest>,
    ) -> Result<Response<pb::ConfirmMissionResponse>, Status> {
        let caller = self.caller(&request);
        self.turns
            .take(caller, self.confirm(request))
            .await
            .map(Response::new)
    }

    async fn resolve_mission(
        &self,
        request: Request<pb::ResolveMissionRequest>,
    ) -> Result<Response<pb::ResolveMissionResponse>, Status> {
        let caller = self.caller(&request);
        self.turns
            .take(caller, self.resolve(request))
            .await
            .map(Response::new)
    }

    async fn list_robots(
        &self,
        request: Request<pb::ListRobotsRequest>,
    ) -> Result<Response<pb::ListRobotsResponse>, Status> {
        let caller = self.caller(&request);
        self.turns
            .take(caller, async { self.list(&request) })
            .await
            .map(Response::new)
    }

    async fn get_robot(
        &self,
        request: Request<pb::GetRobotRequest>,
    ) -> Result<Response<pb::Robot>, Status> {
        let caller = self.caller(&request);
        self.turns
            .take(caller, async { self.show(&request) })
            .await
            .map(Response::new)
    }

    async fn hold_robot(
        &self,
        request: Request<pb::HoldRobotRequest>,
    ) -> Result<Response<pb::Robot>, Status> {
        let caller = self.caller(&request);
        self.turns
            .take(caller, self.hold(request))
            .await
            .map(Response::new)
    }

    async fn release_robot(
        &self,
        request: Request<pb::ReleaseRobotRequest>,
    ) -> Result<Response<pb::Robot>, Status> {
        let caller = self.caller(&request);
        self.turns
            .take(caller, self.release(request))
            .await
            .map(Response::new)
    }

    async fn list_peers(
        &self,
        request: Request<pb::ListPeersRequest>,
    ) -> Result<Response<pb::ListPeersResponse>, Status> {
        let caller = self.caller(&request);
        let answered = async { self.peers(&request).map(Response::new) };
        self.turns.take(caller, answered).await
    }
}

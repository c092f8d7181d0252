//! Southbound: robots that serve `MissionService` themselves.
//!
//! Each robot has two connections. The *command* connection carries dispatches, one at a time,
//! and what reports on them. The *stop lane* carries stops and cancels and nothing else; the stop
//! lanes of all robots run on a thread of their own, so that nothing that fills the others delays
//! them.
//!
//! A stop or cancel goes out twice: at once on the stop lane, and on the command connection behind
//! the last dispatch. HTTP/2 keeps the order in which streams are opened, but a server works on
//! them in parallel, so order on the wire is no order at the robot. What guarantees it is that the
//! second one is sent when the dispatch before it was answered or given up. In the same way the robot
//! gets its next mission when both are answered; one whose connection broke may come for as long as
//! the system sends it again. What a robot has received and not read, because it hangs, is not known.

mod answers;
#[cfg(fuzzing)]
pub mod fuzzing;
mod lane;
mod open;
mod reports;
mod robot;

use super::{ALPN, GrpcError, Target};
use crate::{
    adapter::{
        Adapter, Cancel, DispatchError, Handover, Link, Reconciled, SignalError, StopAnswer,
        UpdateSender,
    },
    ids::RobotId,
    mission::Command,
    peers::ConnectedPeer,
};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use portarium_identity::{PeerPolicy, Snapshot, SvidManager};
use robot::RobotLink;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};
use tokio::{runtime, sync::watch};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::AbortOnDropHandle,
};

/// One robot that serves the contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcRobot {
    /// The robot.
    pub robot_id: RobotId,
    /// Where it listens.
    pub target: Target,
    /// Who it has to be. Not looked at without an identity (`development`).
    pub peers: PeerPolicy,
    /// The audience of the JWT-SVIDs that the robot asks for beside our certificate. None are shown
    /// without an identity (`development`).
    pub jwt_audience: Option<String>,
}

/// How the adapter stands, for metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcStats {
    /// The robots that it serves.
    pub robots: usize,
    /// Both connections of each of them are up.
    pub connected: bool,
    /// The oldest SVID generation that those which are up run on; `None` where there is none, or
    /// without TLS.
    pub generation: Option<u64>,
}

type Robots = ArcSwap<HashMap<RobotId, Arc<RobotLink>>>;

/// The adapter for all robots that speak gRPC.
pub struct GrpcAdapter {
    robots: Arc<Robots>,
    /// Held while the robots are replaced.
    replacing: Mutex<()>,
    identity: Option<SvidManager>,
    updates: UpdateSender,
    stop_lane: StopLane,
    _rechecks: Option<AbortOnDropHandle<()>>,
}

impl GrpcAdapter {
    /// Begins to connect to the robots, on the current runtime and the stop lanes' thread.
    /// Without an identity (`development` only) connections are plaintext.
    pub fn start(
        robots: impl IntoIterator<Item = GrpcRobot>,
        identity: Option<SvidManager>,
        updates: UpdateSender,
    ) -> Result<Self, GrpcError> {
        let linked = Arc::<Robots>::default();
        let rechecks = identity.as_ref().map(|identity| {
            let rechecks = recheck_on_change(identity.snapshots(), linked.clone());
            AbortOnDropHandle::new(tokio::spawn(rechecks))
        });
        let adapter = Self {
            robots: linked,
            replacing: Mutex::default(),
            identity,
            updates,
            stop_lane: StopLane::start().map_err(GrpcError::StopLane)?,
            _rechecks: rechecks,
        };
        adapter.replace_robots(robots);
        Ok(adapter)
    }

    /// Serves these robots from now on. Connections of robots that stay as they are stay up;
    /// what is under way to a robot that goes or changes ends *unknown*, and its open missions
    /// are asked for on the new connection.
    pub fn replace_robots(&self, robots: impl IntoIterator<Item = GrpcRobot>) {
        let _one_at_a_time = self
            .replacing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = self.robots.load_full();
        let links = robots.into_iter().map(|robot| {
            let id = robot.robot_id.clone();
            let link = match before.get(&id) {
                Some(link) if *link.config() == robot => link.clone(),
                old => self.link_to(robot, old.map(|link| link.open_missions())),
            };
            (id, link)
        });
        let links: HashMap<_, _> = links.collect();
        self.robots.store(Arc::new(links));
    }

    /// How it stands.
    pub fn stats(&self) -> GrpcStats {
        let robots = self.robots.load();
        let connections = || robots.values().flat_map(|robot| robot.generations());
        GrpcStats {
            robots: robots.len(),
            connected: connections().all(|connection| connection.is_some()),
            generation: connections().flatten().flatten().min(),
        }
    }

    /// Who is on the other end of its connections.
    pub fn peers(&self) -> Vec<ConnectedPeer> {
        let robots = self.robots.load();
        robots.values().flat_map(|robot| robot.peers()).collect()
    }

    /// Closes all connections. What is under way ends *unknown*.
    pub fn shutdown(&self) {
        self.replace_robots([]);
    }

    fn link_to(&self, robot: GrpcRobot, open: Option<Arc<open::OpenMissions>>) -> Arc<RobotLink> {
        let tls = self.identity.as_ref();
        let tls = tls.map(|identity| identity.client_tls(robot.peers.clone(), ALPN));
        let jwt = self.identity.as_ref().zip(robot.jwt_audience.clone());
        let jwt = jwt.map(|(identity, audience)| Arc::new(identity.jwt_svids(audience)));
        let updates = self.updates.clone();
        Arc::new(RobotLink::start(
            robot,
            tls,
            jwt,
            &self.stop_lane.runtime,
            open.unwrap_or_default(),
            updates,
            Arc::downgrade(&self.robots),
        ))
    }

    fn robot(&self, id: &RobotId) -> Result<Arc<RobotLink>, String> {
        let robots = self.robots.load();
        let robot = robots.get(id).cloned();
        robot.ok_or_else(|| format!("no gRPC robot {id} is configured"))
    }

    fn signalled(&self, id: &RobotId) -> Result<Arc<RobotLink>, SignalError> {
        self.robot(id)
            .map_err(|reason| SignalError::Unreachable { reason })
    }
}

#[async_trait]
impl Adapter for GrpcAdapter {
    async fn dispatch(
        &self,
        command: Arc<Command>,
        expires_in: Duration,
    ) -> Result<Handover, DispatchError> {
        let robot = self.robot(&command.robot_id);
        let robot = robot.map_err(|reason| DispatchError::Unreachable { reason })?;
        robot.dispatch(command, expires_in).await
    }

    async fn cancel(&self, cancel: Arc<Cancel>) -> Result<(), SignalError> {
        let robot = self.signalled(&cancel.command.robot_id)?;
        robot.cancel(cancel).await
    }

    async fn stop(&self, stop: Arc<Command>) -> Result<StopAnswer, SignalError> {
        let robot = self.signalled(&stop.robot_id)?;
        robot.stop(stop).await
    }

    async fn stops_landed(&self, robot: &RobotId) {
        if let Ok(robot) = self.robot(robot) {
            robot.stops_landed().await;
        }
    }

    async fn reconcile(&self, command: Arc<Command>) -> Result<Reconciled, SignalError> {
        let robot = self.signalled(&command.robot_id)?;
        robot.reconcile(&command).await
    }

    fn settle(&self, command: &Command) {
        if let Ok(robot) = self.robot(&command.robot_id) {
            robot.open_missions().remove(&command.mission_id);
        }
    }

    fn link(&self, robot: &RobotId) -> Link {
        match self.robot(robot) {
            Ok(robot) => robot.link(),
            Err(reason) => Link::Down { reason },
        }
    }
}

/// Cuts connections to robots that no longer verify, whenever SVID or bundles change.
async fn recheck_on_change(
    mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    robots: Arc<Robots>,
) {
    while snapshots.changed().await.is_ok() {
        for robot in robots.load_full().values() {
            robot.recheck();
            // Verifying takes a fraction of a millisecond each.
            tokio::task::yield_now().await;
        }
    }
}

/// The stop lanes' own thread with its own runtime; it ends with the adapter.
struct StopLane {
    runtime: runtime::Handle,
    _until_dropped: DropGuard,
}

impl StopLane {
    fn start() -> std::io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let end = CancellationToken::new();
        let ended = end.clone();
        thread::Builder::new()
            .name("grpc-stop-lane".to_owned())
            .spawn(move || runtime.block_on(ended.cancelled_owned()))?;
        Ok(Self {
            runtime: handle,
            _until_dropped: end.drop_guard(),
        })
    }
}

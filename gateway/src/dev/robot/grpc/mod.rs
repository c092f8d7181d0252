//! Robots that serve the contract's `MissionService` themselves.

mod service;
#[cfg(test)]
mod tests;

use super::{ExecutionLog, RobotConfig, SimulatedRobot, reports::Reports};
use portarium_identity::ServerTls;
use portarium_protocols::grpc::{
    Connections,
    pb::mission_service_server::MissionServiceServer,
    server::{ServerLimits, serve},
};
use service::Service;
use std::{io, net::SocketAddr, time::Duration};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

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

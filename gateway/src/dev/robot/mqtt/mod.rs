//! Robots that speak MQTT: the contract's topics, a lasting session, presence with a last will.

mod connect;
mod front;
#[cfg(test)]
mod tests;

use super::{ExecutionLog, RobotConfig, SimulatedRobot, reports::Reports};
use front::Front;
use portarium_identity::ClientTls;
use portarium_protocols::ids::TenantId;
use std::{
    sync::{Mutex, atomic::AtomicU64},
    time::Duration,
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// Where robots write their statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusTopics {
    /// `portarium/{tenant}/missions/{mission}/status`, which all robots of a tenant share.
    Shared,
    /// `portarium/{tenant}/robots/{robot}/missions/{mission}/status`, the robot's own branch.
    Own,
}

/// A connection to a broker, for one robot or many.
#[derive(Clone)]
pub struct MqttRobotConfig {
    /// The broker's host name or address.
    pub host: String,
    /// The broker's port.
    pub port: u16,
    /// Mutual TLS; `None` is plaintext, for development.
    pub tls: Option<ClientTls>,
    /// Unique on the broker. With TLS: see [`crate::dev::broker::client_id_prefix`].
    pub client_id: String,
    /// Whose topics these are.
    pub tenant: TenantId,
    /// Where the statuses go.
    pub statuses: StatusTopics,
    /// How long the broker waits before it says that a lost robot is offline. More than nothing
    /// keeps a renewed connection from looking like a loss. Whole seconds.
    pub will_delay: Duration,
    /// The MQTT keep-alive. Whole seconds.
    pub keep_alive: Duration,
}

impl MqttRobotConfig {
    /// Plaintext, statuses on the shared topic, offline a second after a loss.
    pub fn new(host: &str, port: u16, client_id: &str, tenant: TenantId) -> Self {
        Self {
            host: host.into(),
            port,
            tls: None,
            client_id: client_id.into(),
            tenant,
            statuses: StatusTopics::Shared,
            will_delay: Duration::from_secs(1),
            keep_alive: Duration::from_secs(5),
        }
    }
}

/// Robots behind one connection, which is made again whenever it is lost and anew before its
/// certificates end. Dropping it drops the connection, without a word.
///
/// A robot that is alone on its connection drops it when it vanishes. One of many falls silent
/// only, and the connection acknowledges what is sent to it.
pub struct MqttRobots {
    robots: Vec<SimulatedRobot>,
    ready: watch::Receiver<bool>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl MqttRobots {
    /// Starts connecting, in the background.
    pub fn start(config: MqttRobotConfig, robots: Vec<RobotConfig>, log: &ExecutionLog) -> Self {
        let reports = Reports::new();
        let robots: Vec<_> = robots
            .into_iter()
            .map(|robot| SimulatedRobot::new(robot, reports.clone(), log.clone()))
            .collect();
        let (ready_now, ready) = watch::channel(false);
        let stop = CancellationToken::new();
        let front = Front {
            config,
            by_id: robots
                .iter()
                .map(|robot| (robot.id().clone(), robot.clone()))
                .collect(),
            reports,
            acknowledged: AtomicU64::new(0),
            taken: Mutex::default(),
            ready: ready_now,
            stop: stop.clone(),
        };
        let task = tokio::spawn(front.run());
        Self {
            robots,
            ready,
            stop,
            task,
        }
    }

    /// The robots, in the order given.
    pub fn robots(&self) -> &[SimulatedRobot] {
        &self.robots
    }

    /// Waits until they are connected and subscribed.
    pub async fn ready(&self) {
        // An error means that the task has ended: it will not become ready, and says why.
        let _ = self.ready.clone().wait_for(|ready| *ready).await;
    }

    /// They say that they leave, and leave.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let _ = (&mut self.task).await;
    }
}

impl Drop for MqttRobots {
    fn drop(&mut self) {
        self.task.abort();
    }
}

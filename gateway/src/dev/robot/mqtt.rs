//! Robots that speak MQTT: the contract's topics, a lasting session, presence with a last will.

use super::{
    ExecutionLog, RobotConfig, SimulatedRobot,
    core::Order,
    reports::{Reports, RobotReport},
    wire,
};
use portarium_identity::{ClientTls, IdentityError, Lease, Peer};
use portarium_protocols::ids::{RobotId, TenantId};
use rumqttc::{
    TlsConfiguration, Transport,
    v5::{
        AsyncClient, ClientError, ConnectionError, Event, EventLoop, MqttOptions,
        mqttbytes::{
            QoS,
            v5::{
                Filter, LastWill, LastWillProperties, Packet, PubAckReason, Publish,
                SubscribeReasonCode,
            },
        },
    },
};
use std::{
    collections::{HashMap, VecDeque},
    pin::pin,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use thiserror::Error;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

const CONNECT_TIME: Duration = Duration::from_secs(10);
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// Filters in one SUBSCRIBE, and reports taken at a time.
const BATCH: usize = 64;
/// Unacknowledged reports on one connection.
const IN_FLIGHT: u16 = 100;
const PACKET_BYTES: u32 = 256 * 1024;

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

/// Why a robot has no connection.
#[derive(Debug, Error)]
enum FrontError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Connection(#[from] Box<ConnectionError>),
    #[error(transparent)]
    Client(#[from] Box<ClientError>),
    #[error("no answer within {CONNECT_TIME:?}")]
    Timeout,
}

impl From<ConnectionError> for FrontError {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(Box::new(error))
    }
}

impl From<ClientError> for FrontError {
    fn from(error: ClientError) -> Self {
        Self::Client(Box::new(error))
    }
}

struct Front {
    config: MqttRobotConfig,
    by_id: HashMap<RobotId, SimulatedRobot>,
    reports: Reports,
    /// The position up to which the broker has acknowledged reports.
    acknowledged: AtomicU64,
    ready: watch::Sender<bool>,
    stop: CancellationToken,
}

/// What the acknowledgements to come are for: a report's position, or something else. Brokers
/// acknowledge in order.
type Sent = Mutex<VecDeque<Option<u64>>>;

struct Connection {
    client: AsyncClient,
    events: EventLoop,
    session_present: bool,
    lease: Option<Lease>,
    sent: Sent,
}

/// How a connection came to its end.
enum End {
    Lost(FrontError),
    Vanished,
    Renewed(Box<Connection>),
    Stopped,
}

impl Front {
    async fn run(self) {
        let mut next = None;
        let mut retry = FIRST_RETRY;
        while !self.stop.is_cancelled() {
            self.present().await;
            let connected = match next.take() {
                Some(connection) => Ok(connection),
                None => tokio::select! {
                    connected = self.connect() => connected,
                    () = self.stop.cancelled() => return,
                },
            };
            let end = match connected {
                Ok(connection) => {
                    retry = FIRST_RETRY;
                    self.live(connection).await
                }
                Err(error) => End::Lost(error),
            };
            match end {
                End::Renewed(connection) => next = Some(*connection),
                End::Vanished => {
                    self.ready.send_replace(false);
                }
                End::Stopped => return,
                End::Lost(error) => {
                    self.ready.send_replace(false);
                    tracing::info!(client_id = self.config.client_id, %error, "no connection to the broker");
                    tokio::select! {
                        () = sleep(retry) => retry = (retry * 2).min(LAST_RETRY),
                        () = self.stop.cancelled() => return,
                    }
                }
            }
        }
    }

    /// The robot that is alone on this connection.
    fn alone(&self) -> Option<&SimulatedRobot> {
        self.by_id.values().next().filter(|_| self.by_id.len() == 1)
    }

    /// Waits until a robot that is alone is there.
    async fn present(&self) {
        if let Some(robot) = self.alone() {
            let mut presence = robot.presence();
            tokio::select! {
                _ = presence.wait_for(|present| *present) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    async fn vanished(&self) {
        match self.alone() {
            // An error means that the robot is gone, which cannot be: it is ours.
            Some(robot) => drop(robot.presence().wait_for(|present| !*present).await),
            None => std::future::pending().await,
        }
    }

    async fn connect(&self) -> Result<Connection, FrontError> {
        let (options, peer) = self.options()?;
        let (client, mut events) = AsyncClient::new(options, 2 * BATCH);
        let mut network = events.options.network_options();
        network.set_tcp_nodelay(true);
        events.options.set_network_options(network);
        let session_present = loop {
            let event = timeout(CONNECT_TIME, events.poll())
                .await
                .map_err(|_| FrontError::Timeout)?;
            if let Event::Incoming(Packet::ConnAck(answer)) = event? {
                break answer.session_present;
            }
        };
        let peer = peer.and_then(|peer| peer.borrow().clone());
        Ok(Connection {
            client,
            events,
            session_present,
            lease: peer.map(|peer: Peer| peer.lease(SystemTime::now())),
            sent: Mutex::default(),
        })
    }

    fn options(&self) -> Result<(MqttOptions, Option<watch::Receiver<Option<Peer>>>), FrontError> {
        let config = &self.config;
        let mut options = MqttOptions::new(&config.client_id, &config.host, config.port);
        options
            .set_clean_start(false)
            .set_session_expiry_interval(Some(3600))
            .set_keep_alive(config.keep_alive)
            .set_max_packet_size(Some(PACKET_BYTES))
            .set_outgoing_inflight_upper_limit(IN_FLIGHT);
        if let Some(robot) = self.alone() {
            let delay = u32::try_from(config.will_delay.as_secs()).unwrap_or(u32::MAX);
            let properties = LastWillProperties {
                delay_interval: Some(delay),
                payload_format_indicator: None,
                message_expiry_interval: None,
                content_type: None,
                response_topic: None,
                correlation_data: None,
                user_properties: Vec::new(),
            };
            let topic = self.presence_topic(robot.id());
            let offline = wire::presence(false);
            options.set_last_will(LastWill::new(
                topic,
                offline,
                QoS::AtLeastOnce,
                true,
                Some(properties),
            ));
        }
        let Some(tls) = &config.tls else {
            return Ok((options, None));
        };
        let (tls, peer) = tls.config()?;
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls)));
        Ok((options, Some(peer)))
    }

    async fn live(&self, connection: Connection) -> End {
        let Connection {
            client,
            mut events,
            session_present,
            lease,
            sent,
        } = connection;
        if session_present {
            self.ready.send_replace(true);
        }
        let mut pump = pin!(self.pump(&mut events, &sent));
        let mut talk = pin!(self.talk(&client, &sent, session_present));
        let mut renewed = pin!(self.renew(lease));
        let mut taken_over = false;
        loop {
            tokio::select! {
                error = &mut pump, if !taken_over => {
                    // The broker gave the session to the next connection, which is about to
                    // hear so.
                    taken_over = lease.is_some_and(|lease| lease.renew <= Instant::now());
                    if !taken_over {
                        return End::Lost(error);
                    }
                }
                error = &mut talk, if !taken_over => return End::Lost(error),
                next = &mut renewed => return End::Renewed(Box::new(next)),
                () = self.vanished() => return End::Vanished,
                () = self.stop.cancelled() => break,
            }
        }
        if taken_over {
            return End::Stopped;
        }
        let leave = async {
            for robot in self.by_id.keys() {
                self.say_presence(&client, &sent, robot, false).await?;
            }
            client.disconnect().await?;
            Ok::<_, FrontError>(())
        };
        // Whoever does not get through within a second leaves without a word.
        let left = async { tokio::join!(leave, &mut pump) };
        let _ = timeout(Duration::from_secs(1), left).await;
        End::Stopped
    }

    /// Makes the next connection when it is time to; by then the broker has closed this one.
    async fn renew(&self, lease: Option<Lease>) -> Connection {
        let Some(lease) = lease else {
            return std::future::pending().await;
        };
        sleep_until(lease.renew).await;
        loop {
            match self.connect().await {
                Ok(next) => return next,
                Err(error) => {
                    tracing::info!(client_id = self.config.client_id, %error, "cannot renew the connection")
                }
            }
            sleep(LAST_RETRY).await;
        }
    }

    async fn pump(&self, events: &mut EventLoop, sent: &Sent) -> FrontError {
        let mut unsubscribed = (self.by_id.len() + 1).div_ceil(BATCH);
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::Publish(publish))) => self.receive(&publish),
                Ok(Event::Incoming(Packet::PubAck(ack))) => {
                    if !matches!(
                        ack.reason,
                        PubAckReason::Success | PubAckReason::NoMatchingSubscribers
                    ) {
                        tracing::warn!(reason = ?ack.reason, "the broker refused a message");
                    }
                    let oldest = sent
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .pop_front();
                    if let Some(Some(position)) = oldest {
                        self.acknowledged.store(position, Ordering::Relaxed);
                    }
                }
                Ok(Event::Incoming(Packet::SubAck(ack))) => {
                    if ack
                        .return_codes
                        .iter()
                        .any(|code| !matches!(code, SubscribeReasonCode::Success(_)))
                    {
                        tracing::error!(codes = ?ack.return_codes, "the broker refused a subscription");
                    }
                    unsubscribed = unsubscribed.saturating_sub(1);
                    if unsubscribed == 0 {
                        self.ready.send_replace(true);
                    }
                }
                Ok(_) => {}
                Err(error) => return error.into(),
            }
        }
    }

    /// Subscribes where the session is new, says that the robots are there, and passes on what
    /// they say: from the first report on that the broker did not acknowledge.
    async fn talk(&self, client: &AsyncClient, sent: &Sent, subscribed: bool) -> FrontError {
        let talking = async {
            if !subscribed {
                self.subscribe(client).await?;
            }
            for robot in self.by_id.keys() {
                self.say_presence(client, sent, robot, true).await?;
            }
            let mut position = self.acknowledged.load(Ordering::Relaxed);
            let mut last = self.reports.last();
            loop {
                last.borrow_and_update();
                loop {
                    let reports = self.reports.after(position, BATCH);
                    let Some((newest, _)) = reports.last() else {
                        break;
                    };
                    position = *newest;
                    for (at, report) in reports {
                        self.publish(
                            client,
                            sent,
                            Some(at),
                            self.status_topic(&report),
                            wire::status(&report),
                        )
                        .await?;
                    }
                }
                // An error means that the reports are gone, which cannot be: they are ours.
                let _ = last.changed().await;
            }
        };
        let result: Result<std::convert::Infallible, FrontError> = talking.await;
        match result {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn subscribe(&self, client: &AsyncClient) -> Result<(), FrontError> {
        let tenant = &self.config.tenant;
        let commands = |robot: &RobotId| format!("portarium/{tenant}/robots/{robot}/commands/+");
        let mut filters: Vec<_> = self.by_id.keys().map(commands).collect();
        filters.push(format!("portarium/{tenant}/missions/+/cancel"));
        for some in filters.chunks(BATCH) {
            let some = some
                .iter()
                .map(|filter| Filter::new(filter, QoS::AtLeastOnce));
            client.subscribe_many(some).await?;
        }
        Ok(())
    }

    async fn say_presence(
        &self,
        client: &AsyncClient,
        sent: &Sent,
        robot: &RobotId,
        online: bool,
    ) -> Result<(), FrontError> {
        self.publish(
            client,
            sent,
            None,
            self.presence_topic(robot),
            wire::presence(online),
        )
        .await
    }

    async fn publish(
        &self,
        client: &AsyncClient,
        sent: &Sent,
        position: Option<u64>,
        topic: String,
        payload: Vec<u8>,
    ) -> Result<(), FrontError> {
        sent.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(position);
        client
            .publish(topic, QoS::AtLeastOnce, true, payload)
            .await?;
        Ok(())
    }

    fn presence_topic(&self, robot: &RobotId) -> String {
        format!("portarium/{}/robots/{robot}/presence", self.config.tenant)
    }

    fn status_topic(&self, report: &RobotReport) -> String {
        let (tenant, mission) = (&self.config.tenant, &report.mission);
        match self.config.statuses {
            StatusTopics::Shared => format!("portarium/{tenant}/missions/{mission}/status"),
            StatusTopics::Own => {
                format!(
                    "portarium/{tenant}/robots/{}/missions/{mission}/status",
                    report.robot
                )
            }
        }
    }

    fn receive(&self, publish: &Publish) {
        let topic = String::from_utf8_lossy(&publish.topic);
        let after = publish
            .properties
            .as_ref()
            .and_then(|p| p.message_expiry_interval);
        let expires = after.map(|seconds| Instant::now() + Duration::from_secs(seconds.into()));
        let read = if topic.ends_with("/cancel") {
            wire::cancel(&publish.payload).map(|mission| {
                for robot in self.by_id.values() {
                    robot.cancel(&mission);
                }
            })
        } else {
            wire::command(&publish.payload, expires)
                .and_then(|(id, order)| self.order(&topic, &id, order))
        };
        if let Err(reason) = read {
            tracing::warn!(%topic, reason, "message ignored");
        }
    }

    fn order(&self, topic: &str, id: &RobotId, order: Order) -> Result<(), String> {
        let own = format!("/robots/{id}/commands/{}", order.mission);
        match self.by_id.get(id).filter(|_| topic.ends_with(&own)) {
            // What it answers it says by its reports.
            Some(robot) => drop(robot.order(order)),
            None => return Err("it is not on its robot's and mission's topic".into()),
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "mqtt_tests.rs"]
mod tests;

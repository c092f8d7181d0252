//! The connection of MQTT robots: made, renewed, and made again when it is lost.

use super::{
    MqttRobotConfig, StatusTopics,
    connect::{Connection, FrontError, Sent},
};
use crate::dev::robot::{Order, Reports, RobotReport, SimulatedRobot, wire};
use bytes::Bytes;
use portarium_identity::Lease;
use portarium_protocols::ids::RobotId;
use rumqttc::v5::{
    AsyncClient, Event, EventLoop,
    mqttbytes::{
        QoS,
        v5::{Filter, Packet, PubAckReason, Publish, SubscribeReasonCode},
    },
};
use std::{
    collections::{HashMap, VecDeque},
    pin::pin,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

/// Messages that are remembered to tell a second delivery; more than a broker has in flight.
const REMEMBERED: usize = 256;
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// Filters in one SUBSCRIBE, and reports taken at a time.
pub(super) const BATCH: usize = 64;

/// Keeps a connection and passes on what is said on it and to it.
pub(super) struct Front {
    pub(super) config: MqttRobotConfig,
    pub(super) by_id: HashMap<RobotId, SimulatedRobot>,
    pub(super) reports: Reports,
    /// The position up to which the broker has acknowledged reports.
    pub(super) acknowledged: AtomicU64,
    /// The last messages that were taken, by packet id and topic.
    pub(super) taken: Mutex<VecDeque<(u16, Bytes)>>,
    pub(super) ready: watch::Sender<bool>,
    pub(super) stop: CancellationToken,
}

/// How a connection came to its end.
enum End {
    Lost(FrontError),
    Vanished,
    Renewed(Box<Connection>),
    Stopped,
}

impl Front {
    pub(super) async fn run(self) {
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
    pub(super) fn alone(&self) -> Option<&SimulatedRobot> {
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
        let mut over = pin!(async {
            match lease {
                Some(lease) => sleep_until(lease.ends).await,
                None => std::future::pending().await,
            }
        });
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
                () = &mut over => return End::Lost(FrontError::Expired),
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

    pub(super) fn presence_topic(&self, robot: &RobotId) -> String {
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

    /// A broker delivers what it holds unacknowledged once more when a session goes on, under the
    /// same packet id. A robot that executes whatever arrives must not take that for another
    /// order.
    fn taken_before(&self, publish: &Publish) -> bool {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let message = (publish.pkid, publish.topic.clone());
        if publish.dup && taken.contains(&message) {
            return true;
        }
        taken.push_back(message);
        if taken.len() > REMEMBERED {
            taken.pop_front();
        }
        false
    }

    fn receive(&self, publish: &Publish) {
        if self.taken_before(publish) {
            tracing::info!(topic = %String::from_utf8_lossy(&publish.topic), "delivered again by the broker; taken before");
            return;
        }
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

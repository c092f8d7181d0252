//! The adapter's side of the seam: missions, cancels and stops as messages.

use super::{
    LaneHandle, MqttAdapter,
    config::MqttRobot,
    payload,
    queue::{Item, Message, Outcome},
    topic,
};
use crate::{
    adapter::{
        Adapter, Cancel, DispatchError, Handover, Link, Reconciled, SignalError, StopAnswer,
    },
    copies::OnItsWay,
    ids::RobotId,
    mission::Command,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout, timeout_at},
};

/// How long a stop or a cancel waits for the broker's word.
const SIGNAL_LIMIT: Duration = Duration::from_secs(2);
/// How long a broker keeps what is sent to a robot that is said to be gone, in case it is not. Not
/// longer: the engine sends it again, and many times over before the robot returns.
const GONE_LIFE: Duration = Duration::from_secs(1);
/// How long a retained status may take to arrive once the broker has confirmed the subscription.
const RETAINED_LIMIT: Duration = Duration::from_millis(500);

#[async_trait]
impl Adapter for MqttAdapter {
    async fn dispatch(
        &self,
        command: Arc<Command>,
        expires_in: Duration,
    ) -> Result<Handover, DispatchError> {
        let unreachable = |reason: String| DispatchError::Unreachable { reason };
        let robot = self.robot(&command.robot_id).map_err(unreachable)?;
        if let Some(reason) = self.router.obstacle(&command.robot_id) {
            return Err(unreachable(reason));
        }
        let payload =
            encode(payload::command(&command, &robot, SystemTime::now())).map_err(unreachable)?;
        let topic = topic::command(&robot.tenant, &robot.robot_id, &command.mission_id);
        let (mut message, answer) = Message::new(topic, payload);
        message.expires = Some(Instant::now() + expires_in);
        self.router.track(&command.mission_id, &robot);
        self.commands.queue.command(message);
        match outcome(answer).await {
            Outcome::Delivered => Ok(Handover::Sent),
            Outcome::Unknown(reason) => Err(DispatchError::Unknown { reason }),
            nothing_delivered => Err(unreachable(why(nothing_delivered))),
        }
    }

    async fn cancel(&self, cancel: Arc<Cancel>) -> Result<(), SignalError> {
        let robot = self.signalled(&cancel.command.robot_id)?;
        let topic = topic::cancel(&robot.tenant, &cancel.command.mission_id);
        let payload = payload::cancel(&cancel, SystemTime::now());
        // Late, it finds its mission ended.
        self.signal(&robot, topic, payload, None).await
    }

    async fn stop(&self, stop: Arc<Command>) -> Result<StopAnswer, SignalError> {
        let robot = self.signalled(&stop.robot_id)?;
        let topic = topic::command(&robot.tenant, &robot.robot_id, &stop.mission_id);
        self.router.track(&stop.mission_id, &robot);
        let payload = payload::command(&stop, &robot, SystemTime::now());
        let copy = self.landing.leaves(&robot.robot_id);
        self.signal(&robot, topic, payload, Some(copy)).await?;
        Ok(StopAnswer::Requested)
    }

    async fn stops_landed(&self, robot: &RobotId) {
        self.landing.landed(robot).await;
    }

    /// MQTT cannot ask a robot, but the broker has what it said last: a subscription to exactly
    /// its topics brings the retained status, whenever the connection was made.
    async fn reconcile(&self, command: Arc<Command>) -> Result<Reconciled, SignalError> {
        let robot = self.signalled(&command.robot_id)?;
        if let Some(reason) = self.commands.state.obstacle() {
            return Err(SignalError::Unreachable {
                reason: reason.to_string(),
            });
        }
        let mission = &command.mission_id;
        let noted = self.router.ask(mission, &robot);
        let mut filters = vec![topic::robot_status(&robot.tenant, &robot.robot_id, mission)];
        if self.router.shared_status_topic {
            filters.push(topic::shared_status(&robot.tenant, mission));
        }
        let (done, confirmed) = oneshot::channel();
        self.commands.queue.put(Item::Subscribe {
            filters: filters.clone(),
            done,
        });
        match timeout(SIGNAL_LIMIT, confirmed).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => {
                let reason = "the broker did not confirm the question".to_owned();
                return Err(SignalError::Unreachable { reason });
            }
        }
        // Once one of the two topics has answered, the other may have its moment too.
        let _ = timeout(RETAINED_LIMIT, noted.notified()).await;
        self.commands.queue.put(Item::Unsubscribe { filters });
        Ok(self
            .router
            .last(mission)
            .map_or(Reconciled::CannotAsk, Reconciled::Known))
    }

    fn settle(&self, command: &Command) {
        let left = self.router.forget(&command.mission_id);
        let fleet = self.router.fleet();
        let Some(robot) = fleet.robot(command.robot_id.as_str()) else {
            return;
        };
        let own = left
            .on_robots
            .then(|| topic::robot_status(&robot.tenant, &robot.robot_id, &command.mission_id));
        let shared = left
            .on_shared
            .then(|| topic::shared_status(&robot.tenant, &command.mission_id));
        for topic in own.into_iter().chain(shared) {
            if !self.commands.queue.clear(Message::clearing(topic)) {
                self.counters.uncleared.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn link(&self, robot: &RobotId) -> Link {
        self.router.link(robot)
    }
}

impl MqttAdapter {
    fn robot(&self, id: &RobotId) -> Result<Arc<MqttRobot>, String> {
        let fleet = self.router.fleet();
        fleet
            .robot(id.as_str())
            .cloned()
            .ok_or_else(|| format!("robot {id} is not configured on this broker"))
    }

    fn signalled(&self, id: &RobotId) -> Result<Arc<MqttRobot>, SignalError> {
        self.robot(id)
            .map_err(|reason| SignalError::Unreachable { reason })
    }

    /// Sends on the stop lane at once and behind the last command on its connection; returns
    /// when the first of the two is delivered. A broker that keeps it for a robot that is gone has
    /// not delivered it: it may lose it, and nobody may know for how long.
    async fn signal(
        &self,
        robot: &MqttRobot,
        topic: String,
        payload: Result<Bytes, serde_json::Error>,
        copy: Option<OnItsWay>,
    ) -> Result<(), SignalError> {
        let unreachable = |reason: String| SignalError::Unreachable { reason };
        let payload = encode(payload).map_err(unreachable)?;
        let gone = self.router.gone(&robot.robot_id);
        let expires = gone.map(|_| Instant::now() + GONE_LIFE);
        let at_once = self
            .stops
            .send(topic.clone(), payload.clone(), expires, copy);
        let behind = self.commands.send(topic, payload, expires, None);
        if let Some(reason) = gone {
            return Err(unreachable(reason.to_owned()));
        }
        timeout_at(
            Instant::now() + SIGNAL_LIMIT,
            first_delivered(at_once, behind),
        )
        .await
        .unwrap_or_else(|_| {
            Err(format!(
                "no acknowledgement from the broker within {SIGNAL_LIMIT:?}"
            ))
        })
        .map_err(unreachable)
    }
}

impl LaneHandle {
    fn send(
        &self,
        topic: String,
        payload: Bytes,
        expires: Option<Instant>,
        copy: Option<OnItsWay>,
    ) -> oneshot::Receiver<Outcome> {
        let (mut message, answer) = Message::new(topic, payload);
        message.expires = expires;
        message.copy = copy;
        self.queue.put(Item::Publish(message));
        answer
    }
}

async fn first_delivered(
    at_once: oneshot::Receiver<Outcome>,
    behind: oneshot::Receiver<Outcome>,
) -> Result<(), String> {
    let (mut at_once, mut behind) = (pin!(outcome(at_once)), pin!(outcome(behind)));
    let (first, rest) = tokio::select! {
        first = &mut at_once => (first, behind),
        first = &mut behind => (first, at_once),
    };
    if first == Outcome::Delivered {
        return Ok(());
    }
    match rest.await {
        Outcome::Delivered => Ok(()),
        _ => Err(why(first)),
    }
}

async fn outcome(answer: oneshot::Receiver<Outcome>) -> Outcome {
    answer
        .await
        .unwrap_or_else(|_| Outcome::Unknown("the connection's task ended".to_owned()))
}

fn why(outcome: Outcome) -> String {
    match outcome {
        Outcome::NobodyListens => {
            "the broker says that the robot is not subscribed to its topic".to_owned()
        }
        Outcome::Refused(code) => format!(
            "the broker refused the message: {code:?}; for NotAuthorized grant the gateway's user \
             `write` on the robot's topics in the broker's ACL"
        ),
        Outcome::NotSent(reason) | Outcome::Unknown(reason) => reason,
        Outcome::Delivered => "it was delivered".to_owned(),
    }
}

fn encode(payload: Result<Bytes, serde_json::Error>) -> Result<Bytes, String> {
    payload.map_err(|e| format!("the message cannot be written: {e}"))
}

//! The adapter between the engine and the simulated wires.

use super::{
    message::{Answer, Message},
    wire::down,
    world::Shared,
};
use async_trait::async_trait;
use portarium_protocols::{
    adapter::{
        Adapter, Cancel, DispatchError, Handover, Link, Reconciled, SignalError, StopAnswer,
    },
    ids::RobotId,
    mission::Command,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

/// How long it waits for an answer.
const LIMIT: Duration = Duration::from_secs(6);

/// The adapter of one life of the gateway. What a dead gateway was about to do never happens.
pub(super) struct SimAdapter {
    pub(super) world: Shared,
    pub(super) life: u64,
}

impl SimAdapter {
    /// Waits for the answer and hands it on, if there is still somebody to hand it to.
    async fn answer(&self, id: &RobotId, answered: oneshot::Receiver<Answer>) -> Answer {
        let answer = match timeout(LIMIT, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Answer::Lost,
        };
        let heard = {
            let mut world = self.world.lock();
            world.does(self.life, format_args!("{id}'s adapter hears {answer:?}"))
        };
        if !heard {
            std::future::pending::<()>().await;
        }
        answer
    }

    async fn signal(
        &self,
        id: &RobotId,
        message: impl FnOnce(u64) -> Message,
    ) -> Result<Answer, SignalError> {
        let lost = || SignalError::Unreachable {
            reason: "no connection".into(),
        };
        let answered = {
            let mut world = self.world.lock();
            let sent = world.trace.steps();
            let message = message(sent);
            if !world.does(self.life, format_args!("{message} is sent to {id}")) {
                None
            } else if !world.robot(id).wire.up {
                return Err(lost());
            } else {
                let (call, answered) = world.call(id);
                world.put(id, call, message.clone(), false);
                if !matches!(message, Message::Question { .. }) {
                    world.put(id, call, message, true);
                }
                Some(answered)
            }
        };
        let Some(answered) = answered else {
            return std::future::pending().await;
        };
        match self.answer(id, answered).await {
            Answer::NotSent | Answer::Lost => Err(lost()),
            Answer::Refused(reason) => Err(SignalError::Refused { reason }),
            answer => Ok(answer),
        }
    }
}

#[async_trait]
impl Adapter for SimAdapter {
    async fn dispatch(
        &self,
        command: Arc<Command>,
        expires_in: Duration,
    ) -> Result<Handover, DispatchError> {
        let id = &command.robot_id;
        let reason = || "no connection".to_owned();
        let answered = {
            let mut world = self.world.lock();
            let sent = world.trace.steps();
            let expires = Instant::now() + expires_in;
            let message = Message::Mission {
                command: command.clone(),
                sent,
                expires,
            };
            if !world.does(self.life, format_args!("{message} is sent to {id}")) {
                None
            } else {
                world.begin_handover(&command, expires_in);
                if !world.robot(id).wire.up {
                    world.end_handover(&command, false);
                    return Err(DispatchError::Unreachable { reason: reason() });
                }
                let (call, answered) = world.call(id);
                world.put(id, call, message, true);
                Some(answered)
            }
        };
        let Some(answered) = answered else {
            return std::future::pending().await;
        };
        let answer = self.answer(id, answered).await;
        let unsent = matches!(answer, Answer::NotSent);
        {
            let mut world = self.world.lock();
            world.end_handover(&command, !unsent);
            if matches!(answer, Answer::Accepted) {
                world.book.spoke(&command.mission_id);
            }
        }
        match answer {
            Answer::NotSent => Err(DispatchError::Unreachable { reason: reason() }),
            Answer::Taken => Ok(Handover::Sent),
            Answer::Accepted => Ok(Handover::Accepted),
            Answer::Rejected(reason) => Err(DispatchError::Rejected { reason }),
            _ => Err(DispatchError::Unknown { reason: reason() }),
        }
    }

    async fn cancel(&self, cancel: Arc<Cancel>) -> Result<(), SignalError> {
        let mission = cancel.command.mission_id.clone();
        let id = &cancel.command.robot_id;
        self.signal(id, |sent| Message::Cancel { mission, sent })
            .await
            .map(drop)
    }

    async fn stop(&self, stop: Arc<Command>) -> Result<StopAnswer, SignalError> {
        let command = stop.clone();
        let answer = self
            .signal(&stop.robot_id, |sent| Message::Stop { command, sent })
            .await?;
        Ok(match answer {
            Answer::Stopped(answer) => answer,
            _ => StopAnswer::Requested,
        })
    }

    async fn stops_landed(&self, robot: &RobotId) {
        loop {
            let changed = {
                let mut world = self.world.lock();
                if !world.goes_on(self.life) {
                    None
                } else if world.robot(robot).wire.stops_out == 0 {
                    return;
                } else {
                    Some(world.robot(robot).wire.landed.clone())
                }
            };
            match changed {
                Some(changed) => changed.notified().await,
                None => std::future::pending().await,
            }
        }
    }

    async fn reconcile(&self, command: Arc<Command>) -> Result<Reconciled, SignalError> {
        let mission = command.mission_id.clone();
        let answer = self
            .signal(&command.robot_id, |_| Message::Question { mission })
            .await?;
        {
            let book = &mut self.world.lock().book;
            book.asked_robot(&command.mission_id);
            if matches!(answer, Answer::Known(_)) {
                book.spoke(&command.mission_id);
            }
        }
        Ok(match answer {
            Answer::Known(report) => Reconciled::Known(report),
            Answer::NotKnown => Reconciled::NotKnown,
            _ => Reconciled::CannotAsk,
        })
    }

    fn settle(&self, command: &Command) {
        let mut world = self.world.lock();
        if world.is_alive(self.life) {
            world.settled.push(command.clone());
        }
    }

    fn link(&self, robot: &RobotId) -> Link {
        match self.world.lock().robot(robot).wire.up {
            true => Link::Up,
            false => down(),
        }
    }
}

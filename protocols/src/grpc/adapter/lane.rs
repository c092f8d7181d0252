//! What a robot gets on its command connection, one at a time and in order.

use super::{
    answers::{self, Dispatched},
    robot::{Shared, ask, cancel_request, client, limited, send_cancel, send_stop},
};
use crate::{
    adapter::{Cancel, DispatchError, Handover, Reconciled, SignalError, StopAnswer},
    copies::OnItsWay,
    grpc::{Channel, convert::dispatch_request},
    mission::Command,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;

/// How long a robot may take to answer a dispatch.
pub(super) const DISPATCH_LIMIT: Duration = Duration::from_secs(5);
/// Orders that wait for one robot: a dispatch, and the stops and cancels behind it.
pub(super) const MAX_WAITING: u32 = 16;

/// What is to be sent, and who waits for the answer.
pub(super) enum Order {
    /// A mission.
    Dispatch {
        command: Arc<Command>,
        expires: Instant,
        answer: oneshot::Sender<Result<Handover, DispatchError>>,
    },
    /// The second of the two that a cancel is sent as.
    Cancel {
        cancel: Arc<Cancel>,
        answer: oneshot::Sender<Result<(), SignalError>>,
    },
    /// The second of the two that a stop is sent as.
    Stop {
        stop: Arc<Command>,
        copy: OnItsWay,
        answer: oneshot::Sender<Result<StopAnswer, SignalError>>,
    },
}

/// The queue in front of the command connection.
pub(super) struct Lane {
    orders: mpsc::Sender<Order>,
    _task: AbortOnDropHandle<()>,
}

impl Lane {
    pub(super) fn start(shared: Arc<Shared>) -> Self {
        let (orders, waiting) = mpsc::channel(MAX_WAITING as usize);
        Self {
            orders,
            _task: AbortOnDropHandle::new(tokio::spawn(run(shared, waiting))),
        }
    }

    pub(super) async fn dispatch(
        &self,
        command: Arc<Command>,
        expires: Instant,
    ) -> Result<Handover, DispatchError> {
        let (answer, answered) = oneshot::channel();
        let order = Order::Dispatch {
            command,
            expires,
            answer,
        };
        self.orders
            .try_send(order)
            .map_err(|_| unreachable("too many orders wait for it"))?;
        answered.await.unwrap_or_else(|_| {
            Err(DispatchError::Unknown {
                reason: "the connection to the robot was given up".to_owned(),
            })
        })
    }

    /// Puts an order behind what waits. The receiver fails at once where too much does.
    pub(super) fn behind<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<T>) -> Order,
    ) -> oneshot::Receiver<T> {
        let (answer, answered) = oneshot::channel();
        // A full queue drops the order, and with it the sender.
        let _ = self.orders.try_send(order(answer));
        answered
    }
}

async fn run(shared: Arc<Shared>, mut waiting: mpsc::Receiver<Order>) {
    // Nobody may wait for an answer any longer: sent it was all the same.
    while let Some(order) = waiting.recv().await {
        match order {
            Order::Dispatch {
                command,
                expires,
                answer,
            } => {
                let _ = answer.send(dispatch(&shared, &command, expires).await);
            }
            Order::Cancel { cancel, answer } => {
                let _ = answer.send(match shared.command.channel() {
                    Ok(channel) => {
                        send_cancel(channel, cancel_request(&cancel), shared.jwt.as_deref()).await
                    }
                    Err(down) => Err(down.into()),
                });
            }
            Order::Stop { stop, copy, answer } => {
                let _ = answer.send(match shared.command.channel() {
                    Ok(channel) => {
                        let jwt = shared.jwt.as_deref();
                        send_stop(channel, dispatch_request(&stop), copy, jwt).await
                    }
                    Err(down) => Err(down.into()),
                });
            }
        }
    }
}

async fn dispatch(
    shared: &Shared,
    command: &Command,
    expires: Instant,
) -> Result<Handover, DispatchError> {
    let limit = DISPATCH_LIMIT.min(expires.saturating_duration_since(Instant::now()));
    if limit.is_zero() {
        return Err(unreachable("its time was over before it could be sent"));
    }
    let channel = shared.command.channel();
    let channel = channel.map_err(|down| unreachable(&down.reason))?;
    if shared
        .jwt
        .as_ref()
        .is_some_and(|jwt| jwt.current().is_none())
    {
        return Err(unreachable(
            "it asks for a JWT-SVID, and the Workload API has given none",
        ));
    }
    shared.open.add(command);
    let result = match send(shared, channel.clone(), command, limit).await {
        Dispatched::Settled(result) => result,
        Dispatched::Duplicate => duplicate(shared, command, channel).await,
    };
    if let Err(DispatchError::Rejected { .. } | DispatchError::Unreachable { .. }) = result {
        shared.open.remove(&command.mission_id);
    }
    result
}

async fn send(shared: &Shared, channel: Channel, command: &Command, limit: Duration) -> Dispatched {
    let mut client = client(channel);
    let call = client.dispatch_mission(limited(dispatch_request(command), limit));
    match timeout(limit, call).await {
        Ok(Ok(answer)) => answers::of_dispatch(answer.get_ref()),
        Ok(Err(status)) => answers::of_failed_dispatch(&status, shared.jwt.as_deref()),
        Err(_) => Dispatched::Settled(Err(DispatchError::Unknown {
            reason: format!("the robot did not answer within {limit:?}"),
        })),
    }
}

/// A robot that calls the mission a duplicate has it, if it knows it by its id.
async fn duplicate(
    shared: &Shared,
    command: &Command,
    channel: Channel,
) -> Result<Handover, DispatchError> {
    let what = "the robot calls it a duplicate";
    match ask(shared, &command.mission_id, channel).await {
        Ok(Reconciled::Known(_)) => Ok(Handover::Accepted),
        Ok(Reconciled::NotKnown) => Err(DispatchError::Rejected {
            reason: format!("{what} of another mission"),
        }),
        Ok(Reconciled::CannotAsk) => Err(DispatchError::Unknown {
            reason: format!("{what} and cannot be asked for it"),
        }),
        Err(error) => Err(DispatchError::Unknown {
            reason: format!("{what}, and {error}"),
        }),
    }
}

fn unreachable(reason: &str) -> DispatchError {
    DispatchError::Unreachable {
        reason: reason.to_owned(),
    }
}

//! What waits to be sent on a connection, and how its senders hear what became of it.

use crate::copies::OnItsWay;
use bytes::Bytes;
use rumqttc::v5::mqttbytes::v5::PubAckReason;
use std::{collections::VecDeque, future::pending, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

/// Commands, stops and cancels that may wait for one connection. At the rate of a bare bridge
/// (3,600/s) this is what it sends within [`PATIENCE`], about 20 MB.
const COMMANDS: usize = 16_384;
/// Room that only signals use, so that commands never crowd out the copy of a stop.
const SIGNALS: usize = 1_024;
/// Retained statuses that may wait to be cleared; beyond this they are cleared another time.
const CLEARINGS: usize = 4_096;
/// How long a message may wait before its first byte is sent.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Why a message that waited longer is not sent.
pub(crate) const TOO_SLOW: &str = "the broker takes messages too slowly: it waited 5 s in vain";

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The broker has it and somebody is subscribed.
    Delivered,
    /// The broker says that nobody is subscribed: it went nowhere.
    NobodyListens,
    /// The broker refused it: it went nowhere.
    Refused(PubAckReason),
    /// No byte of it was sent.
    NotSent(String),
    /// It was sent and the connection ended before the broker answered.
    Unknown(String),
}

/// One PUBLISH to come. It has no `Debug`: parameters are in it.
pub(crate) struct Message {
    pub(crate) topic: Bytes,
    pub(crate) payload: Bytes,
    pub(crate) retain: bool,
    /// Past this it is not sent; a broker is told the time left.
    pub(crate) expires: Option<Instant>,
    /// Past this it is not sent.
    pub(crate) patience: Instant,
    pub(crate) outcome: Option<oneshot::Sender<Outcome>>,
    /// Of a stop that may arrive behind what is sent after it.
    pub(crate) copy: Option<OnItsWay>,
}

impl Message {
    pub(crate) fn new(topic: String, payload: Bytes) -> (Self, oneshot::Receiver<Outcome>) {
        let (outcome, answer) = oneshot::channel();
        let message = Self {
            topic: topic.into(),
            payload,
            retain: false,
            expires: None,
            patience: Instant::now() + PATIENCE,
            outcome: Some(outcome),
            copy: None,
        };
        (message, answer)
    }

    /// An empty retained message, which makes the broker forget the retained one.
    pub(crate) fn clearing(topic: String) -> Self {
        Self {
            topic: topic.into(),
            payload: Bytes::new(),
            retain: true,
            expires: None,
            patience: Instant::now() + Duration::from_secs(3_600),
            outcome: None,
            copy: None,
        }
    }

    pub(crate) fn resolve(self, outcome: Outcome) {
        if let Some(waiting) = self.outcome {
            // Whoever waited may have given up.
            let _ = waiting.send(outcome);
        }
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> (Self, oneshot::Receiver<Outcome>) {
        Self::new("t".into(), Bytes::from_static(b"p"))
    }
}

/// One thing to be sent.
pub(crate) enum Item {
    Publish(Message),
    /// Answered when the broker acknowledged it; dropped unanswered where it could not be sent.
    Subscribe {
        filters: Vec<String>,
        done: oneshot::Sender<()>,
    },
    Unsubscribe {
        filters: Vec<String>,
    },
}

impl Item {
    fn refuse(self, reason: &str) {
        if let Self::Publish(message) = self {
            message.resolve(Outcome::NotSent(reason.to_owned()));
        }
    }
}

/// The senders' end. Never waits.
#[derive(Clone)]
pub(crate) struct Queue {
    urgent: mpsc::Sender<Item>,
    clearings: mpsc::Sender<Message>,
}

/// The connection's end.
pub(crate) struct Feed {
    /// What left the queue to be looked at, and comes before it. Filled only while the window is
    /// full.
    ahead: VecDeque<Item>,
    urgent: mpsc::Receiver<Item>,
    clearings: mpsc::Receiver<Message>,
}

pub(crate) fn queue() -> (Queue, Feed) {
    let (urgent, urgent_rx) = mpsc::channel(COMMANDS + SIGNALS);
    let (clearings, clearings_rx) = mpsc::channel(CLEARINGS);
    (
        Queue { urgent, clearings },
        Feed {
            ahead: VecDeque::new(),
            urgent: urgent_rx,
            clearings: clearings_rx,
        },
    )
}

impl Queue {
    /// Puts a command in. Its place is behind whatever was put in before.
    pub(crate) fn command(&self, message: Message) {
        if self.urgent.capacity() <= SIGNALS {
            let reason = format!("{COMMANDS} commands wait for the broker already");
            return message.resolve(Outcome::NotSent(reason));
        }
        self.put(Item::Publish(message));
    }

    /// Puts a stop, a cancel or a subscription in, behind whatever was put in before.
    pub(crate) fn put(&self, item: Item) {
        if let Err(e) = self.urgent.try_send(item) {
            match e {
                mpsc::error::TrySendError::Full(item) => {
                    item.refuse("the queue to the broker is full")
                }
                mpsc::error::TrySendError::Closed(item) => item.refuse("the adapter has ended"),
            }
        }
    }

    /// Puts in a retained status to be cleared; false where there is no room.
    pub(crate) fn clear(&self, message: Message) -> bool {
        self.clearings.try_send(message).is_ok()
    }
}

impl Feed {
    /// Waits for something to send and takes at most `room` of it; clearings only where
    /// `leisure` is given and nothing else waits. Cancel safe: what is taken is in `taken`.
    pub(crate) async fn take(&mut self, taken: &mut Vec<Item>, room: usize, leisure: bool) {
        if !self.ahead.is_empty() {
            return taken.extend(self.ahead.drain(..room.min(self.ahead.len())));
        }
        tokio::select! {
            biased;
            count = self.urgent.recv_many(taken, room) => if count == 0 { pending().await },
            Some(message) = self.clearings.recv(), if leisure => taken.push(Item::Publish(message)),
        }
    }

    /// Refuses what has waited too long, also while nothing can be taken: no caller waits forever
    /// behind a broker that acknowledges slowly.
    pub(crate) fn sweep(&mut self, now: Instant) {
        while self.ahead.len() < COMMANDS
            && let Ok(item) = self.urgent.try_recv()
        {
            self.ahead.push_back(item);
        }
        while let Some(Item::Publish(first)) = self.ahead.front()
            && first.patience <= now
            && let Some(item) = self.ahead.pop_front()
        {
            item.refuse(TOO_SLOW);
        }
    }

    /// Refuses whatever comes, for as long as it is polled. Cancel safe.
    pub(crate) async fn refuse(&mut self, reason: &Arc<str>) -> std::convert::Infallible {
        self.ahead.drain(..).for_each(|item| item.refuse(reason));
        loop {
            tokio::select! {
                Some(item) = self.urgent.recv() => item.refuse(reason),
                // A status that is not cleared now comes again with the next subscription, and
                // the engine then settles its mission again.
                Some(_) = self.clearings.recv() => {}
                else => pending().await,
            }
        }
    }

    /// Takes nothing more, and refuses what is there.
    pub(crate) fn close(&mut self, reason: &str) {
        self.urgent.close();
        self.clearings.close();
        self.ahead.drain(..).for_each(|item| item.refuse(reason));
        while let Ok(item) = self.urgent.try_recv() {
            item.refuse(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn topic(item: &Item) -> &[u8] {
        match item {
            Item::Publish(message) => &message.topic,
            _ => panic!("no publish"),
        }
    }

    #[tokio::test]
    async fn a_stop_leaves_behind_the_command_put_in_before_it_and_before_any_clearing() {
        let (queue, mut feed) = queue();
        assert!(queue.clear(Message::clearing("clearing".into())));
        queue.command(Message::new("command".into(), Bytes::new()).0);
        queue.put(Item::Publish(Message::new("stop".into(), Bytes::new()).0));
        let mut taken = Vec::new();
        feed.take(&mut taken, 10, true).await;
        assert_eq!(
            taken.iter().map(topic).collect::<Vec<_>>(),
            [b"command".as_slice(), b"stop"]
        );
        taken.clear();
        feed.take(&mut taken, 10, true).await;
        assert_eq!(topic(&taken[0]), b"clearing");
    }

    #[tokio::test]
    async fn commands_that_crowd_the_queue_are_refused_unsent_and_leave_room_for_stops() {
        let (queue, _feed) = queue();
        for _ in 0..COMMANDS {
            queue.command(Message::for_tests().0);
        }
        let (refused, mut answer) = Message::for_tests();
        queue.command(refused);
        assert!(matches!(answer.try_recv(), Ok(Outcome::NotSent(_))));
        let (stop, mut answer) = Message::for_tests();
        queue.put(Item::Publish(stop));
        assert!(matches!(
            answer.try_recv(),
            Err(oneshot::error::TryRecvError::Empty)
        ));
    }

    #[tokio::test]
    async fn what_waited_too_long_is_refused_and_the_rest_keeps_its_order() {
        let (queue, mut feed) = queue();
        let (old, mut refused) = Message::for_tests();
        let late = old.patience;
        queue.command(old);
        for name in ["a", "b", "c"] {
            let (mut message, _) = Message::new(name.into(), Bytes::new());
            message.patience = late + Duration::from_secs(1);
            queue.command(message);
        }
        feed.sweep(late);
        assert_eq!(refused.try_recv(), Ok(Outcome::NotSent(TOO_SLOW.into())));
        queue.command(Message::new("d".into(), Bytes::new()).0);
        let mut taken = Vec::new();
        feed.take(&mut taken, 2, true).await;
        feed.take(&mut taken, 2, true).await;
        feed.take(&mut taken, 2, true).await;
        assert_eq!(
            taken.iter().map(topic).collect::<Vec<_>>(),
            [b"a", b"b", b"c", b"d"]
        );
    }

    #[tokio::test]
    async fn what_waits_when_the_adapter_ends_was_not_sent() {
        let (queue, mut feed) = queue();
        let (waiting, mut early) = Message::for_tests();
        queue.command(waiting);
        feed.close("over");
        let (message, mut late) = Message::for_tests();
        queue.command(message);
        assert_eq!(early.try_recv(), Ok(Outcome::NotSent("over".into())));
        assert!(matches!(late.try_recv(), Ok(Outcome::NotSent(_))));
    }
}

//! What was published and is not acknowledged yet, by packet id.

use super::queue::{Message, Outcome};
use crate::copies::OnItsWay;
use rumqttc::v5::mqttbytes::v5::PubAckReason;
use std::collections::VecDeque;
use tokio::{sync::oneshot, time::Instant};

/// One publish that waits for its PUBACK.
#[derive(Debug)]
struct Entry {
    outcome: Option<oneshot::Sender<Outcome>>,
    copy: Option<OnItsWay>,
    /// The position of its first byte in the connection's outgoing bytes.
    begins: u64,
    since: Instant,
}

/// The table of one connection. It dies with its connection: nothing in it is ever sent again.
///
/// Packet ids are 1 to the window's size, so that a PUBACK finds its publish whatever the order
/// in which the broker acknowledges.
#[derive(Debug)]
pub(crate) struct InFlight {
    entries: Vec<Option<Entry>>,
    /// Used longest ago first: a late PUBACK of an id finds it unused, not another's.
    free: VecDeque<u16>,
}

impl InFlight {
    pub(crate) fn new(window: u16) -> Self {
        Self {
            entries: (0..window).map(|_| None).collect(),
            free: (1..=window).collect(),
        }
    }

    pub(crate) fn room(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives a publish its packet id. None where the window is full: it is told that it was not sent.
    pub(crate) fn begin(&mut self, message: Message, begins: u64, now: Instant) -> Option<u16> {
        let Some(id) = self.free.pop_front() else {
            message.resolve(Outcome::NotSent("the window is full".to_owned()));
            return None;
        };
        self.entries[usize::from(id) - 1] = Some(Entry {
            outcome: message.outcome,
            copy: message.copy,
            begins,
            since: now,
        });
        Some(id)
    }

    /// Resolves the publish that a PUBACK names. False where it names none.
    pub(crate) fn acknowledge(&mut self, id: u16, reason: PubAckReason) -> bool {
        let slot = usize::from(id)
            .checked_sub(1)
            .and_then(|i| self.entries.get_mut(i));
        let Some(entry) = slot.and_then(Option::take) else {
            return false;
        };
        self.free.push_back(id);
        entry.resolve(match reason {
            PubAckReason::Success => Outcome::Delivered,
            PubAckReason::NoMatchingSubscribers => Outcome::NobodyListens,
            other => Outcome::Refused(other),
        });
        true
    }

    /// When the publish that waits longest was made.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.entries.iter().flatten().map(|e| e.since).min()
    }

    /// The connection is over after `written` outgoing bytes: what had begun by then may have
    /// arrived, what had not cannot have. Returns the copies of stops that may still do.
    pub(crate) fn abandon(&mut self, written: u64, reason: &str) -> Vec<OnItsWay> {
        let mut on_their_way = Vec::new();
        for mut entry in self.entries.iter_mut().filter_map(Option::take) {
            let outcome = if entry.begins < written {
                on_their_way.extend(entry.copy.take());
                Outcome::Unknown(format!("{reason}, before the broker acknowledged it"))
            } else {
                Outcome::NotSent(reason.to_owned())
            };
            entry.resolve(outcome);
        }
        self.free = (1..).take(self.entries.len()).collect();
        on_their_way
    }
}

impl Entry {
    fn resolve(self, outcome: Outcome) {
        if let Some(waiting) = self.outcome {
            // Whoever waited may have given up.
            let _ = waiting.send(outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn publish(table: &mut InFlight, begins: u64) -> (u16, oneshot::Receiver<Outcome>) {
        let (message, outcome) = Message::for_tests();
        let Some(id) = table.begin(message, begins, Instant::now()) else {
            panic!("the window is full");
        };
        (id, outcome)
    }

    #[test]
    fn each_puback_resolves_its_own_publish_whatever_their_order() {
        let mut table = InFlight::new(3);
        let mut sent: Vec<_> = (0..3).map(|n| publish(&mut table, n)).collect();
        assert_eq!(table.room(), 0);
        let reasons = [
            PubAckReason::NotAuthorized,
            PubAckReason::NoMatchingSubscribers,
            PubAckReason::Success,
        ];
        for ((id, _), reason) in sent.iter().zip(reasons).rev() {
            assert!(table.acknowledge(*id, reason));
        }
        let outcomes: Vec<_> = sent
            .iter_mut()
            .map(|(_, o)| o.try_recv().unwrap())
            .collect();
        assert_eq!(
            outcomes,
            [
                Outcome::Refused(PubAckReason::NotAuthorized),
                Outcome::NobodyListens,
                Outcome::Delivered
            ]
        );
        assert!(table.is_empty());
    }

    #[test]
    fn a_puback_for_nothing_resolves_nothing() {
        let mut table = InFlight::new(2);
        let (id, mut outcome) = publish(&mut table, 0);
        for other in [0, id + 1, 3, u16::MAX] {
            assert!(!table.acknowledge(other, PubAckReason::Success));
        }
        assert!(outcome.try_recv().is_err());
        assert!(table.acknowledge(id, PubAckReason::Success));
        assert!(!table.acknowledge(id, PubAckReason::Success));
    }

    #[test]
    fn a_full_window_hands_the_message_back_and_a_freed_id_is_used_last() {
        let mut table = InFlight::new(2);
        let (first, _a) = publish(&mut table, 0);
        assert!(table.acknowledge(first, PubAckReason::Success));
        let (second, _b) = publish(&mut table, 0);
        assert_ne!(first, second);
        let (_, _c) = publish(&mut table, 0);
        let (message, _d) = Message::for_tests();
        assert!(table.begin(message, 0, Instant::now()).is_none());
    }

    #[test]
    fn a_lost_connection_leaves_unknown_what_had_begun_and_nothing_else() {
        let mut table = InFlight::new(4);
        let (_, mut begun) = publish(&mut table, 0);
        let (_, mut partly) = publish(&mut table, 99);
        let (_, mut never) = publish(&mut table, 100);
        table.abandon(100, "gone");
        assert!(matches!(begun.try_recv(), Ok(Outcome::Unknown(_))));
        assert!(matches!(partly.try_recv(), Ok(Outcome::Unknown(_))));
        assert!(matches!(never.try_recv(), Ok(Outcome::NotSent(_))));
        assert_eq!(table.room(), 4);
    }
}

//! What a client is owed: its queue, what is in flight, its will. Outlives its connections.

use bytes::{Bytes, BytesMut};
use rumqttc::v5::mqttbytes::{
    QoS,
    v5::{LastWill, Packet, Publish, PublishProperties},
};
use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

/// Stop filling a write buffer beyond this; the rest goes with the next one.
const BATCH_BYTES: usize = 64 * 1024;

/// A message on its way through the broker. Its bytes are its own: a slice of the connection's
/// read buffer would keep the whole buffer alive for as long as the message is queued or retained.
#[derive(Debug)]
pub(super) struct Message {
    topic: Bytes,
    payload: Bytes,
    pub(super) qos: QoS,
    pub(super) retain: bool,
    properties: Option<PublishProperties>,
    expires: Option<Instant>,
}

impl Message {
    pub(super) fn from_publish(publish: Publish, now: Instant) -> Self {
        let after = publish
            .properties
            .as_ref()
            .and_then(|p| p.message_expiry_interval);
        Self {
            topic: Bytes::copy_from_slice(&publish.topic),
            payload: Bytes::copy_from_slice(&publish.payload),
            qos: publish.qos,
            retain: publish.retain,
            properties: publish.properties,
            expires: after.map(|s| now + Duration::from_secs(s.into())),
        }
    }

    pub(super) fn from_will(will: LastWill, now: Instant) -> Self {
        let given = will.properties;
        let after = given.as_ref().and_then(|p| p.message_expiry_interval);
        Self {
            topic: will.topic,
            payload: will.message,
            qos: will.qos,
            retain: will.retain,
            properties: given.map(|p| PublishProperties {
                payload_format_indicator: p.payload_format_indicator,
                response_topic: p.response_topic,
                correlation_data: p.correlation_data,
                user_properties: p.user_properties,
                content_type: p.content_type,
                ..PublishProperties::default()
            }),
            expires: after.map(|s| now + Duration::from_secs(s.into())),
        }
    }

    /// The topic; empty if it is no UTF-8, which is no valid name.
    pub(super) fn name(&self) -> &str {
        std::str::from_utf8(&self.topic).unwrap_or_default()
    }

    pub(super) fn clears(&self) -> bool {
        self.payload.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.topic.len() + self.payload.len()
    }

    pub(super) fn expired(&self, now: Instant) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }

    /// The properties with the time that is left, in whole seconds begun.
    fn properties_at(&self, now: Instant) -> Option<PublishProperties> {
        let mut properties = self.properties.clone()?;
        properties.message_expiry_interval = self.expires.map(|at| {
            let left = at.saturating_duration_since(now);
            u32::try_from(left.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
        });
        Some(properties)
    }
}

/// A message for one client.
#[derive(Debug, Clone)]
pub(super) struct Delivery {
    pub(super) message: Arc<Message>,
    pub(super) qos: QoS,
    pub(super) retain: bool,
}

impl Delivery {
    fn packet(&self, pkid: u16, dup: bool, now: Instant) -> Packet {
        Packet::Publish(Publish {
            dup,
            qos: self.qos,
            retain: self.retain,
            topic: self.message.topic.clone(),
            pkid,
            payload: self.message.payload.clone(),
            properties: self.message.properties_at(now),
        })
    }
}

struct Flight {
    pkid: u16,
    delivery: Delivery,
    /// Sent on the present connection; what was sent on an earlier one goes again first.
    sent: bool,
}

/// The will of the present or last connection.
pub(super) struct Will {
    pub(super) will: LastWill,
    pub(super) delay: Duration,
    /// When it is due, once the connection has ended without a word.
    pub(super) due: Option<Instant>,
}

/// The present connection.
pub(super) struct Link {
    pub(super) number: u64,
    /// How many QoS 1 messages may be unacknowledged.
    pub(super) window: usize,
    pub(super) max_packet: Option<u32>,
    /// Something may be there to be sent.
    pub(super) wake: Arc<Notify>,
    /// Dropped when another connection takes over.
    pub(super) _taken_over: oneshot::Sender<()>,
}

/// How much may wait for one client.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueLimits {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) link: Option<Link>,
    pub(super) will: Option<Will>,
    /// How long the session outlives its connection.
    pub(super) expiry: Duration,
    /// When it ends, while there is no connection.
    pub(super) ends: Option<Instant>,
    pub(super) filters: HashSet<Box<str>>,
    queue: VecDeque<Delivery>,
    queued_bytes: usize,
    flights: VecDeque<Flight>,
    last_pkid: u16,
}

impl State {
    /// Puts a message behind the others, unless the queue is full: the oldest are kept.
    pub(super) fn push(&mut self, delivery: Delivery, limits: QueueLimits) -> bool {
        if self.link.is_none() && delivery.qos == QoS::AtMostOnce {
            return true;
        }
        let bytes = delivery.message.bytes();
        if self.queue.len() >= limits.messages || self.queued_bytes + bytes > limits.bytes {
            return false;
        }
        self.queued_bytes += bytes;
        self.queue.push_back(delivery);
        self.wake();
        true
    }

    fn wake(&self) {
        if let Some(link) = &self.link {
            link.wake.notify_one();
        }
    }

    /// A new connection: what was in flight goes again, in its order and before all else.
    pub(super) fn connect(&mut self, link: Link) {
        self.link = Some(link);
        self.ends = None;
        for flight in &mut self.flights {
            flight.sent = false;
        }
        self.wake();
    }

    pub(super) fn acknowledge(&mut self, pkid: u16) {
        if let Some(at) = self.flights.iter().position(|f| f.pkid == pkid && f.sent) {
            self.flights.remove(at);
            self.wake();
        }
    }

    /// Writes what may be sent now. False once the connection is no longer the session's.
    pub(super) fn fill(&mut self, number: u64, buffer: &mut BytesMut, now: Instant) -> bool {
        let Some(link) = self.link.as_ref().filter(|link| link.number == number) else {
            return false;
        };
        let (window, max_packet) = (link.window, link.max_packet);
        let mut in_flight = 0;
        self.flights.retain_mut(|flight| {
            let room = in_flight < window && buffer.len() < BATCH_BYTES;
            if !flight.sent {
                // What is over is not sent again either: no stale command moves a robot.
                if flight.delivery.message.expired(now) {
                    return false;
                }
                if room {
                    let packet = flight.delivery.packet(flight.pkid, true, now);
                    flight.sent = write(&packet, buffer, max_packet);
                    if !flight.sent {
                        return false;
                    }
                }
            }
            in_flight += 1;
            true
        });
        if self.flights.iter().any(|flight| !flight.sent) {
            return true;
        }
        while buffer.len() < BATCH_BYTES {
            let waits = |d: &Delivery| d.qos != QoS::AtMostOnce && in_flight >= window;
            if self.queue.front().is_none_or(waits) {
                break;
            }
            let Some(delivery) = self.queue.pop_front() else {
                break;
            };
            self.queued_bytes -= delivery.message.bytes();
            if delivery.message.expired(now) {
                continue;
            }
            if delivery.qos == QoS::AtMostOnce {
                write(&delivery.packet(0, false, now), buffer, max_packet);
                continue;
            }
            let pkid = self.next_pkid();
            if write(&delivery.packet(pkid, false, now), buffer, max_packet) {
                self.flights.push_back(Flight {
                    pkid,
                    delivery,
                    sent: true,
                });
                in_flight += 1;
            }
        }
        true
    }

    fn next_pkid(&mut self) -> u16 {
        loop {
            self.last_pkid = self.last_pkid.checked_add(1).unwrap_or(1);
            if !self.flights.iter().any(|f| f.pkid == self.last_pkid) {
                return self.last_pkid;
            }
        }
    }
}

/// False, and nothing written, for a message larger than the client takes: the standard has it
/// dropped as if it had been delivered.
fn write(packet: &Packet, buffer: &mut BytesMut, max_packet: Option<u32>) -> bool {
    let before = buffer.len();
    let written = packet.write(buffer, max_packet);
    if let Err(error) = &written {
        tracing::warn!(%error, "message dropped");
        buffer.truncate(before);
    }
    written.is_ok()
}

/// A client's session.
pub(super) struct Session {
    pub(super) client_id: Box<str>,
    state: Mutex<State>,
}

impl Session {
    pub(super) fn new(client_id: &str) -> Self {
        Self {
            client_id: client_id.into(),
            state: Mutex::default(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

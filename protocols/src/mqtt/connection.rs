//! One MQTT 5 connection, from CONNECT to its end.
//!
//! Packets are rumqttc's, the loop is ours; the module above says why.

use super::{
    dial::{Dialled, HANDSHAKE_LIMIT, LinkError, Stream},
    inbox::{Acknowledge, Inbox, RECEIVE_MAXIMUM},
    inflight::InFlight,
    lane_state::LaneState,
    outgoing::{self, Outgoing},
    queue::{Feed, Item, Message, Outcome},
};
use bytes::BytesMut;
use portarium_identity::Lease;
use rumqttc::v5::mqttbytes::{
    self, QoS,
    v5::{
        ConnAck, Connect, ConnectProperties, ConnectReturnCode, Disconnect, DisconnectReasonCode,
        Packet, PacketType, PubAck, Publish, SubAck,
    },
};
use std::{collections::HashMap, future::pending, io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, ReadHalf, WriteHalf},
    sync::oneshot,
    time::{Instant, Interval, MissedTickBehavior, interval, timeout, timeout_at},
};

/// The largest packet read. The broker is told, and keeps larger ones back.
const MAX_PACKET_BYTES: u32 = 128 * 1024;
/// Publishes that wait for their PUBACK; the broker's receive maximum may set it lower.
const WINDOW: u16 = 512;
/// Nothing is taken from the queue while this much waits for the socket.
const MAX_UNWRITTEN_BYTES: usize = 64 * 1024;
const READ_CHUNK: usize = 16 * 1024;
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A broker that says nothing for this long, though pinged, is gone.
const SILENCE_LIMIT: Duration = Duration::from_secs(9);
/// A broker that leaves a publish unacknowledged for this long does not work.
const ACKNOWLEDGE_LIMIT: Duration = Duration::from_secs(10);
/// Subscriptions' packet ids begin beyond those of publishes.
const FIRST_SUBSCRIBE_ID: u16 = 50_000;

/// Who connects, and what is to outlast the connection.
#[derive(Debug, Clone)]
pub(crate) struct Hello {
    pub(crate) client_id: String,
    /// How long the broker keeps the session; `None`: not at all, and none is resumed.
    pub(crate) session: Option<Duration>,
}

struct Subscribing {
    filters: Vec<String>,
    done: Option<oneshot::Sender<()>>,
}

pub(crate) struct Connection {
    reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
    incoming: BytesMut,
    outgoing: Outgoing,
    inflight: InFlight,
    subscribing: HashMap<u16, Subscribing>,
    next_subscribe_id: u16,
    batch: Vec<Item>,
    tick: Interval,
    ping_after: Duration,
    heard: Instant,
    can_retain: bool,
    state: Arc<LaneState>,
    pub(crate) lease: Option<Lease>,
    pub(crate) generation: Option<u64>,
}

impl Connection {
    /// Speaks CONNECT and waits for CONNACK.
    pub(crate) async fn open(
        dialled: Dialled,
        hello: &Hello,
        state: Arc<LaneState>,
    ) -> Result<Self, LinkError> {
        timeout(HANDSHAKE_LIMIT, Self::open_unbounded(dialled, hello, state))
            .await
            .map_err(|_| LinkError::Timeout(HANDSHAKE_LIMIT))?
    }

    async fn open_unbounded(
        dialled: Dialled,
        hello: &Hello,
        state: Arc<LaneState>,
    ) -> Result<Self, LinkError> {
        let (mut reader, mut writer) = tokio::io::split(dialled.stream);
        let mut outgoing = Outgoing::default();
        outgoing.put(&Packet::Connect(connect(hello), None, None))?;
        outgoing.write_to(&mut writer).await?;
        let mut incoming = BytesMut::with_capacity(READ_CHUNK);
        let connack = loop {
            match next_packet(&mut incoming)? {
                Some(Packet::ConnAck(connack)) => break connack,
                Some(other) => return Err(unexpected(&other)),
                None => read_some(&mut reader, &mut incoming).await?,
            }
        };
        if connack.code != ConnectReturnCode::Success {
            return Err(LinkError::Refused(connack.code));
        }
        let granted = Granted::of(&connack)?;
        outgoing.max_packet = granted.max_packet;
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            reader,
            writer,
            incoming,
            outgoing,
            inflight: InFlight::new(granted.window),
            subscribing: HashMap::new(),
            next_subscribe_id: FIRST_SUBSCRIBE_ID,
            batch: Vec::new(),
            tick,
            ping_after: granted.ping_after,
            heard: Instant::now(),
            can_retain: granted.can_retain,
            state,
            lease: dialled.lease,
            generation: dialled.generation,
        })
    }

    /// Carries messages both ways until `until` is done. Without a feed nothing new is sent.
    pub(crate) async fn serve<T>(
        &mut self,
        mut feed: Option<&mut Feed>,
        mut inbox: Option<&mut Inbox>,
        until: impl Future<Output = T>,
    ) -> Result<T, LinkError> {
        let mut until = std::pin::pin!(until);
        loop {
            tokio::select! {
                done = &mut until => return Ok(done),
                step = self.step(feed.as_deref_mut(), inbox.as_deref_mut()) => step?,
            }
        }
    }

    /// Waits until everything sent is acknowledged, for at most `limit`, and takes leave.
    pub(crate) async fn finish(mut self, mut inbox: Option<&mut Inbox>, limit: Duration) {
        let deadline = Instant::now() + limit;
        while !self.inflight.is_empty() || !self.outgoing.is_empty() {
            match timeout_at(deadline, self.step(None, inbox.as_deref_mut())).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => break,
            }
        }
        self.inflight.abandon(self.outgoing.written(), "the connection was renewed or shut down");
        let leave = Disconnect::new(DisconnectReasonCode::NormalDisconnection);
        if self.outgoing.put(&Packet::Disconnect(leave)).is_ok() {
            // The broker may be gone already; then there is nobody to take leave of.
            let _ = timeout(Duration::from_millis(200), self.outgoing.write_to(&mut self.writer)).await;
        }
    }

    /// Sends a subscription. The answer comes when the broker acknowledged it.
    pub(crate) fn subscribe(&mut self, filters: Vec<String>) -> oneshot::Receiver<()> {
        let (done, answer) = oneshot::channel();
        self.send_subscribe(filters, Some(done));
        answer
    }

    pub(crate) fn unsubscribe(&mut self, filters: Vec<String>) {
        let id = self.subscribe_id();
        self.outgoing.put_small(&outgoing::unsubscribe(id, filters));
    }

    /// One thing happens. Cancel safe: all waiting is done by the futures selected among, which
    /// are cancel safe, and what they yield is dealt with at once.
    async fn step(
        &mut self,
        mut feed: Option<&mut Feed>,
        mut inbox: Option<&mut Inbox>,
    ) -> Result<(), LinkError> {
        let may_read = inbox.as_deref().is_none_or(Inbox::has_room);
        let waiting = inbox.as_deref().is_some_and(Inbox::is_waiting);
        let room = self.inflight.room();
        let may_take = feed.is_some() && room > 0 && self.outgoing.len() < MAX_UNWRITTEN_BYTES;
        // Clearings leave most of the window to commands and stops.
        let leisure = self.inflight.len() < room / 4 + 1;
        let done = tokio::select! {
            written = self.outgoing.write_to(&mut self.writer), if !self.outgoing.is_empty() => {
                written.map_err(LinkError::from)
            }
            read = read_some(&mut self.reader, &mut self.incoming), if may_read => {
                match read {
                    Ok(()) => self.take_packets(inbox),
                    Err(error) => Err(error),
                }
            }
            () = take(feed.as_deref_mut(), &mut self.batch, room, leisure), if may_take => {
                self.send_batch();
                Ok(())
            }
            id = hand_over(inbox.as_deref_mut()), if waiting => {
                self.acknowledge(id);
                Ok(())
            }
            _ = self.tick.tick() => {
                if let (Some(feed), false) = (feed, may_take) {
                    feed.sweep(Instant::now());
                }
                self.check_time(may_read)
            }
        };
        if let Err(error) = &done {
            self.inflight.abandon(self.outgoing.written(), &error.to_string());
        }
        done
    }

    fn send_batch(&mut self) {
        let mut batch = std::mem::take(&mut self.batch);
        for item in batch.drain(..) {
            match item {
                Item::Publish(message) => self.publish(message),
                Item::Subscribe { filters, done } => self.send_subscribe(filters, Some(done)),
                Item::Unsubscribe { filters } => self.unsubscribe(filters),
            }
        }
        self.batch = batch;
    }

    fn publish(&mut self, message: Message) {
        let now = Instant::now();
        let expiry = match outgoing::expiry(&message, now) {
            Ok(expiry) => expiry,
            Err(reason) => return message.resolve(Outcome::NotSent(reason)),
        };
        if message.retain && !self.can_retain {
            return message.resolve(Outcome::NotSent("the broker retains nothing".to_owned()));
        }
        let mut publish = outgoing::publish(&message, expiry);
        if let Err(error) = self.outgoing.check_size(&publish) {
            return message.resolve(Outcome::NotSent(error.to_string()));
        }
        match self.inflight.begin(message, self.outgoing.end(), now) {
            Ok(id) => {
                publish.pkid = id;
                self.outgoing.put_small(&Packet::Publish(publish));
                self.state.count_published();
            }
            Err(message) => message.resolve(Outcome::NotSent("the window is full".to_owned())),
        }
    }

    fn send_subscribe(&mut self, filters: Vec<String>, done: Option<oneshot::Sender<()>>) {
        let id = self.subscribe_id();
        self.outgoing.put_small(&outgoing::subscribe(id, &filters));
        self.subscribing.insert(id, Subscribing { filters, done });
    }

    fn subscribe_id(&mut self) -> u16 {
        let id = self.next_subscribe_id;
        self.next_subscribe_id = id.checked_add(1).unwrap_or(FIRST_SUBSCRIBE_ID);
        id
    }

    fn take_packets(&mut self, mut inbox: Option<&mut Inbox>) -> Result<(), LinkError> {
        self.heard = Instant::now();
        while let Some(packet) = next_packet(&mut self.incoming)? {
            self.take_packet(packet, inbox.as_deref_mut())?;
        }
        Ok(())
    }

    fn take_packet(&mut self, packet: Packet, inbox: Option<&mut Inbox>) -> Result<(), LinkError> {
        match packet {
            // An id that nothing waits for is left from before; it says nothing about us.
            Packet::PubAck(ack) => _ = self.inflight.acknowledge(ack.pkid, ack.reason),
            Packet::Publish(publish) => self.take_publish(&publish, inbox)?,
            Packet::SubAck(ack) => self.take_suback(&ack, inbox),
            Packet::PingResp(_) | Packet::UnsubAck(_) => {}
            Packet::Disconnect(end) => return Err(LinkError::Ended(end.reason_code)),
            other => return Err(unexpected(&other)),
        }
        Ok(())
    }

    fn take_publish(
        &mut self,
        publish: &Publish,
        inbox: Option<&mut Inbox>,
    ) -> Result<(), LinkError> {
        if publish.qos == QoS::ExactlyOnce {
            return Err(LinkError::Malformed("QoS 2, which was not subscribed to".to_owned()));
        }
        if inbox.is_none_or(|inbox| inbox.accept(publish) == Acknowledge::Now) {
            self.acknowledge(publish.pkid);
        }
        Ok(())
    }

    fn take_suback(&mut self, ack: &SubAck, inbox: Option<&mut Inbox>) {
        let Some(asked) = self.subscribing.remove(&ack.pkid) else {
            return;
        };
        if let Some(inbox) = inbox {
            inbox.subscribed(&asked.filters, &ack.return_codes);
        }
        if let Some(done) = asked.done {
            // Whoever waited may have given up.
            let _ = done.send(());
        }
    }

    /// Acknowledges a message; 0 is the id of those that need none.
    fn acknowledge(&mut self, id: u16) {
        if id != 0 {
            self.outgoing.put_small(&Packet::PubAck(PubAck::new(id, None)));
        }
    }

    fn check_time(&mut self, reading: bool) -> Result<(), LinkError> {
        let now = Instant::now();
        if !reading {
            // We do not listen, so that its silence means nothing.
            self.heard = now;
        }
        if now - self.heard >= SILENCE_LIMIT {
            return Err(LinkError::Silent(SILENCE_LIMIT));
        }
        if self.inflight.oldest().is_some_and(|since| now - since >= ACKNOWLEDGE_LIMIT) {
            return Err(LinkError::Unacknowledged(ACKNOWLEDGE_LIMIT));
        }
        let quiet = now - self.heard >= self.ping_after;
        let mute = now - self.outgoing.last_put() >= self.ping_after;
        if quiet || mute {
            self.outgoing.put_ping(now, self.ping_after);
        }
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.inflight.abandon(self.outgoing.written(), "the connection was given up");
    }
}

/// What the broker grants in its CONNACK.
struct Granted {
    window: u16,
    max_packet: Option<u32>,
    ping_after: Duration,
    can_retain: bool,
}

impl Granted {
    fn of(connack: &ConnAck) -> Result<Self, LinkError> {
        let properties = connack.properties.as_ref();
        if properties.and_then(|p| p.max_qos) == Some(0) {
            return Err(LinkError::NoQos1);
        }
        let window = properties.and_then(|p| p.receive_max).unwrap_or(u16::MAX).clamp(1, WINDOW);
        let keep_alive = properties
            .and_then(|p| p.server_keep_alive)
            .filter(|seconds| *seconds > 0)
            .map_or(KEEP_ALIVE, |seconds| Duration::from_secs(seconds.into()));
        Ok(Self {
            window,
            max_packet: properties.and_then(|p| p.max_packet_size),
            ping_after: (keep_alive / 2).clamp(Duration::from_secs(1), Duration::from_secs(4)),
            can_retain: properties.and_then(|p| p.retain_available) != Some(0),
        })
    }
}

fn connect(hello: &Hello) -> Connect {
    let seconds = |d: Duration| u32::try_from(d.as_secs()).unwrap_or(u32::MAX);
    let mut properties = ConnectProperties::new();
    properties.session_expiry_interval = Some(hello.session.map_or(0, seconds));
    properties.receive_maximum = Some(RECEIVE_MAXIMUM);
    properties.max_packet_size = Some(MAX_PACKET_BYTES);
    Connect {
        keep_alive: u16::try_from(KEEP_ALIVE.as_secs()).unwrap_or(u16::MAX),
        client_id: hello.client_id.clone(),
        clean_start: hello.session.is_none(),
        properties: Some(properties),
    }
}

fn unexpected(packet: &Packet) -> LinkError {
    // Only the kind: its content is the peer's.
    let text = format!("{packet:?}");
    let kind = text.split(['(', ' ']).next().unwrap_or_default();
    LinkError::Malformed(format!("an unexpected {kind}"))
}

fn next_packet(incoming: &mut BytesMut) -> Result<Option<Packet>, LinkError> {
    let malformed = |e: mqttbytes::Error| LinkError::Malformed(e.to_string());
    let header = match mqttbytes::v5::check(incoming.iter(), Some(MAX_PACKET_BYTES)) {
        Ok(header) => header,
        Err(mqttbytes::Error::InsufficientBytes(_)) => return Ok(None),
        Err(error) => return Err(malformed(error)),
    };
    if header.packet_type().map_err(malformed)? == PacketType::Disconnect {
        let frame = incoming.split_to(header.frame_length());
        return disconnect(&frame).map(|end| Some(Packet::Disconnect(end))).map_err(malformed);
    }
    Packet::read(incoming, Some(MAX_PACKET_BYTES)).map(Some).map_err(malformed)
}

/// Reads a DISCONNECT. rumqttc reads none without properties, which is what mosquitto sends.
fn disconnect(frame: &[u8]) -> Result<Disconnect, mqttbytes::Error> {
    let lengths_end = frame.iter().skip(1).position(|byte| byte & 0x80 == 0).unwrap_or_default();
    let code = frame.get(lengths_end + 2).copied().unwrap_or_default();
    Ok(Disconnect::new(code.try_into()?))
}

async fn read_some(
    reader: &mut ReadHalf<Box<dyn Stream>>,
    incoming: &mut BytesMut,
) -> Result<(), LinkError> {
    incoming.reserve(READ_CHUNK);
    match reader.read_buf(incoming).await {
        Ok(0) => Err(LinkError::Closed),
        Ok(_) => Ok(()),
        // How TLS says that the peer closed without a word.
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(LinkError::Closed),
        Err(e) => Err(LinkError::Io(e)),
    }
}

async fn take(feed: Option<&mut Feed>, batch: &mut Vec<Item>, room: usize, leisure: bool) {
    match feed {
        Some(feed) => feed.take(batch, room, leisure).await,
        None => pending().await,
    }
}

async fn hand_over(inbox: Option<&mut Inbox>) -> u16 {
    match inbox {
        Some(inbox) => inbox.hand_over().await,
        None => pending().await,
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;

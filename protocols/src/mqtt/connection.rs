//! One MQTT 5 connection, from CONNECT to its end.
//!
//! Packets are rumqttc's, the loop is ours; the module above says why.

use super::{
    dial::{Dialled, HANDSHAKE_LIMIT, LinkError, Stream, Trust},
    handshake::{Granted, Hello, connect},
    inbox::{Acknowledge, Inbox, RECEIVE_MAXIMUM},
    incoming::{next_packet, read_some, unexpected},
    inflight::InFlight,
    lane_state::LaneState,
    outgoing::{self, Outgoing},
    queue::{Feed, Item, Message, Outcome},
};
use bytes::BytesMut;
use portarium_identity::Lease;
use rumqttc::v5::mqttbytes::{
    QoS,
    v5::{
        ConnectReturnCode, Disconnect, DisconnectReasonCode, Packet, Publish, RetainForwardRule,
        SubAck,
    },
};
use std::{collections::HashMap, future::pending, sync::Arc, time::Duration};
use tokio::{
    io::{ReadHalf, WriteHalf},
    sync::oneshot,
    time::{Instant, Interval, MissedTickBehavior, interval, timeout, timeout_at},
};

/// Nothing is taken from the queue while this much waits for the socket.
const MAX_UNWRITTEN_BYTES: usize = 64 * 1024;
/// A broker that says nothing for this long, though pinged, is gone.
const SILENCE_LIMIT: Duration = Duration::from_secs(9);
/// A broker that leaves a publish unacknowledged for this long does not work.
pub(crate) const ACKNOWLEDGE_LIMIT: Duration = Duration::from_secs(10);
/// How often the peer's certificate is looked at again where no change asks for it.
const TRUST_FOR: Duration = Duration::from_secs(5);
/// Subscriptions' packet ids begin beyond those of publishes.
const FIRST_SUBSCRIBE_ID: u16 = 50_000;

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
    trust: Option<Trust>,
    trusted: Instant,
    state: Arc<LaneState>,
    client_id: String,
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
            .map_err(LinkError::before_connack)
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
        let mut incoming = BytesMut::new();
        let connack = loop {
            match next_packet(&mut incoming)? {
                Some(Packet::ConnAck(connack)) => break connack,
                Some(_) => return Err(unexpected()),
                None => read_some(&mut reader, &mut incoming).await?,
            }
        };
        if connack.code != ConnectReturnCode::Success {
            return Err(LinkError::Refused(connack.code));
        }
        state.taken_over(&hello.client_id);
        let granted = Granted::of(&connack)?;
        outgoing.max_packet = granted.max_packet;
        if let Some(trust) = &dialled.trust {
            state.stands(trust.who());
        }
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
            trust: dialled.trust,
            trusted: Instant::now(),
            state,
            client_id: hello.client_id.clone(),
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
        self.abandon("the connection was renewed or shut down");
        let leave = Disconnect::new(DisconnectReasonCode::NormalDisconnection);
        if self.outgoing.put(&Packet::Disconnect(leave)).is_ok() {
            // The broker may be gone already; then there is nobody to take leave of.
            let _ = timeout(
                Duration::from_millis(200),
                self.outgoing.write_to(&mut self.writer),
            )
            .await;
        }
    }

    /// Sends a subscription. The answer comes when the broker acknowledged it.
    pub(crate) fn subscribe(
        &mut self,
        filters: Vec<String>,
        retained: RetainForwardRule,
    ) -> oneshot::Receiver<()> {
        let (done, answer) = oneshot::channel();
        self.send_subscribe(filters, retained, Some(done));
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
                self.acknowledge(id)
            }
            _ = self.tick.tick() => {
                if let (Some(feed), false) = (feed, may_take) {
                    feed.sweep(Instant::now());
                }
                self.check_time(may_read)
            }
        };
        if let Err(error) = &done {
            self.abandon(&error.to_string());
        }
        done
    }

    fn abandon(&mut self, reason: &str) {
        let on_their_way = self.inflight.abandon(self.outgoing.written(), reason);
        self.state.left_on_its_way(&self.client_id, on_their_way);
    }

    fn send_batch(&mut self) {
        let mut batch = std::mem::take(&mut self.batch);
        for item in batch.drain(..) {
            match item {
                Item::Publish(message) => self.publish(message),
                // A question: the retained message is what it is asked for.
                Item::Subscribe { filters, done } => {
                    let retained = RetainForwardRule::OnEverySubscribe;
                    self.send_subscribe(filters, retained, Some(done));
                }
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
        if let Some(id) = self.inflight.begin(message, self.outgoing.end(), now) {
            publish.pkid = id;
            self.outgoing.put_small(&Packet::Publish(publish));
            self.state.count_published();
        }
    }

    fn send_subscribe(
        &mut self,
        filters: Vec<String>,
        retained: RetainForwardRule,
        done: Option<oneshot::Sender<()>>,
    ) {
        let id = self.subscribe_id();
        self.outgoing
            .put_small(&outgoing::subscribe(id, &filters, retained));
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
            _ => return Err(unexpected()),
        }
        Ok(())
    }

    fn take_publish(
        &mut self,
        publish: &Publish,
        inbox: Option<&mut Inbox>,
    ) -> Result<(), LinkError> {
        if publish.qos == QoS::ExactlyOnce {
            return Err(LinkError::Malformed(
                "QoS 2, which was not subscribed to".to_owned(),
            ));
        }
        if inbox.is_none_or(|inbox| inbox.accept(publish) == Acknowledge::Now) {
            return self.acknowledge(publish.pkid);
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

    /// Acknowledges a message; 0 is the id of those that need none. A broker that sends on and
    /// takes no acknowledgement breaks its word: they would fill the memory.
    fn acknowledge(&mut self, id: u16) -> Result<(), LinkError> {
        if id != 0 && self.outgoing.put_ack(id) > usize::from(RECEIVE_MAXIMUM) {
            return Err(LinkError::Malformed(
                "more messages at a time than our receive maximum".to_owned(),
            ));
        }
        Ok(())
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
        if self
            .inflight
            .oldest()
            .is_some_and(|since| now - since >= ACKNOWLEDGE_LIMIT)
        {
            return Err(LinkError::Unacknowledged(ACKNOWLEDGE_LIMIT));
        }
        if let Some(trust) = &mut self.trust
            && (trust.may_have_changed() || now - self.trusted >= TRUST_FOR)
        {
            trust.recheck()?;
            self.trusted = now;
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
        self.abandon("the connection was given up");
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

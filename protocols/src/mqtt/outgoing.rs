//! The bytes that wait for the socket, and the packets they are made of.

use super::queue::{Message, TOO_SLOW};
use bytes::BytesMut;
use rumqttc::v5::mqttbytes::{
    self, QoS,
    v5::{
        Filter, Packet, PingReq, PubAck, Publish, PublishProperties, RetainForwardRule, Subscribe,
        Unsubscribe,
    },
};
use std::{collections::VecDeque, io, time::Duration};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    time::Instant,
};

/// Bytes to be written, with the position that each byte has in the connection's whole output.
#[derive(Debug)]
pub(crate) struct Outgoing {
    bytes: BytesMut,
    written: u64,
    unflushed: bool,
    last_put: Instant,
    last_ping: Option<Instant>,
    /// Where those acknowledgements end that the socket may not have taken.
    acknowledged: VecDeque<u64>,
    pub(crate) max_packet: Option<u32>,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self {
            bytes: BytesMut::new(),
            written: 0,
            unflushed: false,
            last_put: Instant::now(),
            last_ping: None,
            acknowledged: VecDeque::new(),
            max_packet: None,
        }
    }
}

impl Outgoing {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Everything was handed to the system.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty() && !self.unflushed
    }

    /// How many bytes the socket has taken.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// The position of the next byte to be put in.
    pub(crate) fn end(&self) -> u64 {
        self.written + self.bytes.len() as u64
    }

    pub(crate) fn last_put(&self) -> Instant {
        self.last_put
    }

    pub(crate) fn check_size(&self, publish: &Publish) -> Result<(), mqttbytes::Error> {
        // The packet id is not counted while it is 0.
        let size = publish.size() + 2;
        match self.max_packet {
            Some(max) if size > max as usize => Err(mqttbytes::Error::OutgoingPacketTooLarge {
                pkt_size: u32::try_from(size).unwrap_or(u32::MAX),
                max,
            }),
            _ => Ok(()),
        }
    }

    pub(crate) fn put(&mut self, packet: &Packet) -> io::Result<()> {
        let before = self.bytes.len();
        self.last_put = Instant::now();
        match packet.write(&mut self.bytes, None) {
            Ok(_) => Ok(()),
            Err(error) => {
                self.bytes.truncate(before);
                Err(io::Error::other(error))
            }
        }
    }

    /// Puts in a packet of ours whose size was checked, or that is small.
    pub(crate) fn put_small(&mut self, packet: &Packet) {
        // Encoding fails for lengths beyond the protocol's only, 256 MB.
        let put = self.put(packet);
        debug_assert!(put.is_ok(), "{put:?}");
    }

    /// Puts in the acknowledgement of a message, and says how many the socket has not taken.
    pub(crate) fn put_ack(&mut self, id: u16) -> usize {
        self.put_small(&Packet::PubAck(PubAck::new(id, None)));
        while self
            .acknowledged
            .front()
            .is_some_and(|end| *end <= self.written)
        {
            self.acknowledged.pop_front();
        }
        self.acknowledged.push_back(self.end());
        self.acknowledged.len()
    }

    pub(crate) fn put_ping(&mut self, now: Instant, every: Duration) {
        if self.last_ping.is_none_or(|last| now - last >= every) {
            self.last_ping = Some(now);
            self.put_small(&Packet::PingReq(PingReq));
        }
    }

    /// Writes everything. Cancel safe: what was written is taken off as it is written.
    pub(crate) async fn write_to(
        &mut self,
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        self.unflushed = true;
        while !self.bytes.is_empty() {
            match writer.write_buf(&mut self.bytes).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => self.written += count as u64,
            }
        }
        writer.flush().await?;
        self.unflushed = false;
        Ok(())
    }
}

/// The expiry interval that the broker is told, or why the message is not sent any more.
pub(crate) fn expiry(message: &Message, now: Instant) -> Result<Option<u32>, String> {
    if now >= message.patience {
        return Err(TOO_SLOW.to_owned());
    }
    let Some(expires) = message.expires else {
        return Ok(None);
    };
    let left = expires.saturating_duration_since(now);
    if left.is_zero() {
        return Err("it is stale".to_owned());
    }
    // Whole seconds, upwards: 0 would mean something else.
    let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
    Ok(Some(u32::try_from(seconds).unwrap_or(u32::MAX)))
}

pub(crate) fn publish(message: &Message, expiry: Option<u32>) -> Publish {
    Publish {
        qos: QoS::AtLeastOnce,
        retain: message.retain,
        topic: message.topic.clone(),
        payload: message.payload.clone(),
        properties: expiry.map(|seconds| PublishProperties {
            message_expiry_interval: Some(seconds),
            ..PublishProperties::default()
        }),
        ..Publish::default()
    }
}

pub(crate) fn subscribe(id: u16, filters: &[String], retained: RetainForwardRule) -> Packet {
    let filters = filters.iter().map(|path| {
        let mut filter = Filter::new(path.clone(), QoS::AtLeastOnce);
        // The statuses that we clear need not come back to us.
        filter.nolocal = true;
        filter.retain_forward_rule = retained.clone();
        filter
    });
    let mut subscribe = Subscribe::new_many(filters, None);
    subscribe.pkid = id;
    Packet::Subscribe(subscribe)
}

pub(crate) fn unsubscribe(id: u16, filters: Vec<String>) -> Packet {
    Packet::Unsubscribe(Unsubscribe {
        pkid: id,
        filters,
        properties: None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn with_expiry(left: Duration) -> (Message, Instant) {
        let now = Instant::now();
        let mut message = Message::for_tests().0;
        message.expires = Some(now + left);
        (message, now)
    }

    #[test]
    fn the_broker_is_told_the_time_left_in_whole_seconds_upwards() {
        for (left, told) in [(1, 1), (1_000, 1), (1_001, 2), (60_000, 60)] {
            let (message, now) = with_expiry(Duration::from_millis(left));
            assert_eq!(expiry(&message, now), Ok(Some(told)), "{left} ms");
            let properties = publish(&message, Some(told)).properties.unwrap();
            assert_eq!(properties.message_expiry_interval, Some(told));
        }
    }

    #[test]
    fn what_is_stale_or_waited_too_long_is_not_sent() {
        let (message, now) = with_expiry(Duration::ZERO);
        assert!(expiry(&message, now).is_err());
        let (message, now) = with_expiry(Duration::from_secs(60));
        assert!(expiry(&message, now + Duration::from_secs(30)).is_err());
    }

    #[test]
    fn a_message_beyond_the_brokers_limit_is_found_before_it_breaks_the_connection() {
        let mut message = Message::for_tests().0;
        message.payload = vec![0; 100].into();
        let publish = publish(&message, None);
        let outgoing = |max| Outgoing {
            max_packet: Some(max),
            ..Outgoing::default()
        };
        let size = u32::try_from(publish.size()).unwrap() + 2;
        assert!(outgoing(size).check_size(&publish).is_ok());
        assert!(outgoing(size - 1).check_size(&publish).is_err());
    }

    #[tokio::test]
    async fn positions_tell_what_the_socket_has_taken() {
        let (mut ours, theirs) = tokio::io::duplex(3);
        let mut outgoing = Outgoing::default();
        outgoing.put_small(&Packet::PingReq(PingReq));
        let second = outgoing.end();
        outgoing.put_small(&Packet::PingReq(PingReq));
        // The pipe takes three of four bytes: the second packet has begun.
        let write = outgoing.write_to(&mut ours);
        assert!(
            tokio::time::timeout(Duration::from_millis(20), write)
                .await
                .is_err()
        );
        assert_eq!(outgoing.written(), 3);
        assert!(second < outgoing.written());
        drop(theirs);
        assert!(outgoing.write_to(&mut ours).await.is_err());
    }
}

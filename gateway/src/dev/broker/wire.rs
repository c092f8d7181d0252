//! Packets on a stream, with the client library's codec.
//!
//! Three things of it do not serve the server's side and are done here: a DISCONNECT of one or no
//! byte is an error to it, it writes a DISCONNECT with a reason wrongly, and what is cut short
//! inside a complete packet reads as "more bytes are needed".

use bytes::{BufMut as _, BytesMut};
use rumqttc::v5::mqttbytes::{
    Error,
    v5::{Disconnect, DisconnectReasonCode, Packet, PacketType, check},
};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Why there is no next packet.
#[derive(Debug, Error)]
pub(super) enum WireError {
    #[error("the client closed the connection")]
    Closed,
    #[error("cannot read: {0}")]
    Read(#[from] std::io::Error),
    #[error("packet of {size} bytes; at most {limit} are allowed")]
    TooLarge { size: usize, limit: u32 },
    #[error("MQTT 5 is expected; the client speaks protocol level {0}")]
    Level(u8),
    #[error("malformed packet: {0}")]
    Malformed(Error),
}

pub(super) struct Reader<R> {
    io: R,
    buffer: BytesMut,
    limit: u32,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(io: R, limit: u32) -> Self {
        Self {
            io,
            buffer: BytesMut::with_capacity(8 * 1024),
            limit,
        }
    }

    pub(super) async fn next(&mut self) -> Result<Packet, WireError> {
        loop {
            match check(self.buffer.iter(), Some(self.limit)) {
                Ok(header) => {
                    let packet_type = header.packet_type().map_err(WireError::Malformed)?;
                    return self.parse(packet_type, header.frame_length());
                }
                Err(Error::InsufficientBytes(missing)) => {
                    self.buffer.reserve(missing);
                    if self.io.read_buf(&mut self.buffer).await? == 0 {
                        return Err(WireError::Closed);
                    }
                }
                Err(Error::PayloadSizeLimitExceeded {
                    pkt_size: size,
                    max: limit,
                }) => {
                    return Err(WireError::TooLarge { size, limit });
                }
                Err(error) => return Err(WireError::Malformed(error)),
            }
        }
    }

    fn parse(&mut self, packet_type: PacketType, length: usize) -> Result<Packet, WireError> {
        let read = if packet_type == PacketType::Disconnect && length <= 3 {
            let packet = self.buffer.split_to(length);
            let reason = packet.get(2).copied().unwrap_or_default();
            DisconnectReasonCode::try_from(reason)
                .map(|reason| Packet::Disconnect(Disconnect::new(reason)))
        } else {
            Packet::read(&mut self.buffer, None)
        };
        read.map_err(|error| match error {
            Error::InvalidProtocolLevel(level) => WireError::Level(level),
            error => WireError::Malformed(error),
        })
    }
}

/// Appends a DISCONNECT.
pub(super) fn put_disconnect(buffer: &mut BytesMut, reason: DisconnectReasonCode) {
    buffer.put_slice(&[0xE0, 2, reason as u8, 0]);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    async fn read(bytes: &[u8]) -> Result<Packet, WireError> {
        Reader::new(bytes, 100).next().await
    }

    #[tokio::test]
    async fn a_disconnect_is_read_in_each_of_its_lengths() {
        use DisconnectReasonCode::{
            DisconnectWithWillMessage as WithWill, NormalDisconnection as Normal,
        };
        for (bytes, reason, expiry) in [
            (&[0xE0, 0][..], Normal, None),
            (&[0xE0, 1, 0x00], Normal, None),
            (&[0xE0, 1, 0x04], WithWill, None),
            (&[0xE0, 2, 0x04, 0], WithWill, None),
            (&[0xE0, 7, 0x00, 5, 0x11, 0, 0, 0, 9], Normal, Some(9)),
        ] {
            let Packet::Disconnect(read) = read(bytes).await.unwrap() else {
                panic!("{bytes:?}")
            };
            let read_expiry = read.properties.and_then(|p| p.session_expiry_interval);
            assert_eq!(
                (read.reason_code, read_expiry),
                (reason, expiry),
                "{bytes:?}"
            );
        }
    }

    #[tokio::test]
    async fn our_own_disconnect_is_what_the_standard_says() {
        let mut buffer = BytesMut::new();
        put_disconnect(&mut buffer, DisconnectReasonCode::SessionTakenOver);
        assert_eq!(&buffer[..], [0xE0, 2, 0x8E, 0]);
    }

    #[tokio::test]
    async fn what_is_cut_short_too_large_or_nonsense_is_an_error_and_never_a_panic() {
        assert!(matches!(read(&[]).await, Err(WireError::Closed)));
        assert!(matches!(
            read(&[0x30, 0xFF, 0xFF, 0x7F]).await,
            Err(WireError::TooLarge { .. })
        ));
        assert!(matches!(
            read(&[0x30, 0xFF, 0xFF, 0xFF, 0xFF]).await,
            Err(WireError::Malformed(_))
        ));
        // A complete SUBSCRIBE whose content ends inside its packet identifier.
        assert!(matches!(
            read(&[0x82, 1, 0]).await,
            Err(WireError::Malformed(_))
        ));
        let level_4 = [
            0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 9, 0, 1, b'x',
        ];
        assert!(matches!(read(&level_4).await, Err(WireError::Level(4))));
        let mut bytes = [0u8; 64];
        for seed in 0..20_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            random.fill(&mut bytes);
            bytes[1] %= 62;
            let _ = read(&bytes).await;
        }
    }
}

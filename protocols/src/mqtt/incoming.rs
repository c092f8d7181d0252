//! Packets out of the broker's bytes.

use super::dial::{LinkError, Stream};
use bytes::BytesMut;
use rumqttc::v5::mqttbytes::{
    self,
    v5::{Disconnect, Packet, PacketType},
};
use std::io;
use tokio::io::{AsyncReadExt, ReadHalf};

/// The largest packet read. The broker is told, and keeps larger ones back.
pub(crate) const MAX_PACKET_BYTES: u32 = 128 * 1024;
const READ_CHUNK: usize = 16 * 1024;

/// Takes the next packet off, if it is there whole.
pub(crate) fn next_packet(incoming: &mut BytesMut) -> Result<Option<Packet>, LinkError> {
    let malformed = |e: mqttbytes::Error| LinkError::Malformed(e.to_string());
    let header = match mqttbytes::v5::check(incoming.iter(), Some(MAX_PACKET_BYTES)) {
        Ok(header) => header,
        Err(mqttbytes::Error::InsufficientBytes(_)) => return Ok(None),
        Err(error) => return Err(malformed(error)),
    };
    if header.packet_type().map_err(malformed)? == PacketType::Disconnect {
        let frame = incoming.split_to(header.frame_length());
        return disconnect(&frame)
            .map(|end| Some(Packet::Disconnect(end)))
            .map_err(malformed);
    }
    Packet::read(incoming, Some(MAX_PACKET_BYTES))
        .map(Some)
        .map_err(malformed)
}

/// Reads a DISCONNECT. rumqttc reads none without properties, which is what mosquitto sends.
fn disconnect(frame: &[u8]) -> Result<Disconnect, mqttbytes::Error> {
    let lengths_end = frame
        .iter()
        .skip(1)
        .position(|byte| byte & 0x80 == 0)
        .unwrap_or_default();
    let code = frame.get(lengths_end + 2).copied().unwrap_or_default();
    Ok(Disconnect::new(code.try_into()?))
}

/// Reads what is there, at least one byte. Cancel safe.
pub(crate) async fn read_some(
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

pub(crate) fn unexpected() -> LinkError {
    LinkError::Malformed("a packet that has no place here".to_owned())
}

/// Packets as they come, `first` bytes of them before the others; how many there are. For fuzz targets,
/// and there under `--cfg fuzzing` alone.
#[cfg(fuzzing)]
pub fn fuzz_packets(bytes: &[u8], first: usize) -> usize {
    let (before, after) = bytes.split_at(first.min(bytes.len()));
    let mut incoming = BytesMut::new();
    let mut packets = 0;
    for part in [before, after] {
        incoming.extend_from_slice(part);
        loop {
            let left = incoming.len();
            match next_packet(&mut incoming) {
                Ok(Some(_)) => packets += 1,
                Ok(None) => break,
                Err(_) => return packets,
            }
            assert!(incoming.len() < left, "a packet of nothing");
        }
    }
    packets
}

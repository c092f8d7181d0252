//! HTTP/2 frames, whether they make sense or not.

use crate::wire::{Door, PREFACE};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf, split},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

/// A stream's number, as clients count.
pub fn stream(n: u32) -> u32 {
    2 * n + 1
}

/// Settings with this one.
pub fn setting(id: u16, value: u32) -> Vec<u8> {
    let payload = [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(SETTINGS, 0, 0, &payload)
}

/// A header, without Huffman and without an index.
pub fn header(name: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name.as_bytes(), value] {
        bytes.extend(length(text.len()));
        bytes.extend(text);
    }
    bytes
}

/// HPACK's integer with a prefix of seven bits.
fn length(length: usize) -> Vec<u8> {
    let Some(mut rest) = length.checked_sub(127) else {
        return vec![u8::try_from(length).unwrap()];
    };
    let mut bytes = vec![127];
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).unwrap());
    bytes
}

/// The headers of a call of the mission service.
pub fn call(method: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let path = format!("/portarium.robotics.v1.MissionService/{method}");
    let usual = [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", path.as_str()),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    usual
        .iter()
        .chain(more)
        .flat_map(|(name, value)| header(name, value.as_bytes()))
        .collect()
}

/// A connection on which anything is sent; what comes back is read aside, unless nobody reads.
pub struct Line {
    write: WriteHalf<TlsStream<TcpStream>>,
    read: Reading,
}

enum Reading {
    Not {
        _held: ReadHalf<TlsStream<TcpStream>>,
    },
    All(JoinHandle<Heard>),
}

/// All that the gateway sent until it closed.
#[derive(Debug, Default)]
pub struct Heard {
    /// The error codes of its GOAWAY frames.
    pub goaways: Vec<u32>,
    /// The error codes of its RST_STREAM frames, and how many of each.
    pub resets: std::collections::BTreeMap<u32, usize>,
    /// All other frames.
    pub others: usize,
}

impl Line {
    /// Through the door, the preface and empty settings sent.
    pub async fn open(door: &Door) -> io::Result<Self> {
        Self::with(door, &frame(SETTINGS, 0, 0, &[])).await
    }

    /// As [`Self::open`], with this in place of the settings.
    pub async fn with(door: &Door, first: &[u8]) -> io::Result<Self> {
        let (read, write) = split(door.knock().await?);
        let mut line = Self {
            write,
            read: Reading::All(tokio::spawn(hear(read))),
        };
        line.send(&[PREFACE, first].concat()).await?;
        Ok(line)
    }

    /// As [`Self::with`], and reads nothing of what comes.
    pub async fn deaf(door: &Door, first: &[u8]) -> io::Result<Self> {
        let (read, write) = split(door.knock().await?);
        let mut line = Self {
            write,
            read: Reading::Not { _held: read },
        };
        line.send(&[PREFACE, first].concat()).await?;
        Ok(line)
    }

    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write.write_all(bytes).await
    }

    /// Sends this so many times, or until the other end has closed, or takes no more for a while.
    pub async fn flood(&mut self, times: usize, mut bytes: impl FnMut(u32) -> Vec<u8>) -> usize {
        for n in 0..times {
            let bytes = bytes(u32::try_from(n).unwrap());
            let sent = timeout(Duration::from_secs(2), self.send(&bytes)).await;
            if !matches!(sent, Ok(Ok(()))) {
                return n;
            }
        }
        times
    }

    /// Waits until the other end has closed; what it said.
    pub async fn closed(self, patience: Duration) -> Heard {
        let Reading::All(heard) = self.read else {
            panic!("nobody reads");
        };
        let heard = timeout(patience, heard).await;
        heard.expect("the gateway closes the connection").unwrap()
    }

    /// Closes; what was heard until then.
    pub async fn close(mut self) -> Heard {
        // The other end may have closed before us.
        let _ = self.write.shutdown().await;
        self.closed(Duration::from_secs(20)).await
    }
}

async fn hear(mut read: ReadHalf<TlsStream<TcpStream>>) -> Heard {
    let mut heard = Heard::default();
    loop {
        let mut head = [0; 9];
        if read.read_exact(&mut head).await.is_err() {
            return heard;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        if read.read_exact(&mut payload).await.is_err() {
            return heard;
        }
        let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        match head[3] {
            GOAWAY => heard.goaways.push(code(4)),
            RST_STREAM => *heard.resets.entry(code(0)).or_default() += 1,
            _ => heard.others += 1,
        }
    }
}

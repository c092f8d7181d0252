//! One client's connection, from its handshake to its end.

use super::{
    Access, Shared,
    admission::{Client, Permit, admit, expiry},
    conversation::Conversation,
    router::Parting,
    wire::{Reader, WireError, put_disconnect},
};
use bytes::BytesMut;
use portarium_identity::TlsError;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectReturnCode, Disconnect, DisconnectReasonCode, Packet,
};
use std::time::{Duration, SystemTime};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, split},
    net::TcpStream,
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

/// How long a client may take for its CONNECT, ...
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// ... and for taking what is written to it.
pub(super) const WRITE_TIME: Duration = Duration::from_secs(10);
/// Acknowledgements that may wait for the writer before the reader waits too.
const REPLIES: usize = 64;

#[derive(Debug, Error)]
pub(super) enum ConnectionError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("cannot write: {0}")]
    Write(std::io::Error),
    #[error("no CONNECT within {CONNECT_TIME:?}")]
    NoConnect,
    #[error("the client did not begin with CONNECT")]
    NotConnect,
    #[error("connection refused: {0:?}")]
    Refused(ConnectReturnCode),
    #[error("the client took nothing for {WRITE_TIME:?}")]
    Stalled,
    #[error("client {client_id}: {reason:?}")]
    Ended {
        client_id: Box<str>,
        reason: DisconnectReasonCode,
    },
}

/// How a connection came to its end.
pub(super) enum End {
    /// The client took its leave.
    Left(Disconnect),
    Lost(ConnectionError),
    /// The client is to be told so.
    Told(DisconnectReasonCode),
}

impl End {
    fn parting(&self, shared: &Shared) -> Parting {
        match self {
            Self::Left(packet) => Parting {
                says_will: packet.reason_code != DisconnectReasonCode::NormalDisconnection,
                expiry: packet
                    .properties
                    .as_ref()
                    .and_then(|p| p.session_expiry_interval)
                    .map(|seconds| expiry(seconds, shared)),
            },
            Self::Lost(_) => Parting {
                says_will: true,
                expiry: None,
            },
            Self::Told(reason) => Parting {
                says_will: *reason != DisconnectReasonCode::ServerShuttingDown,
                expiry: None,
            },
        }
    }
}

/// Handshakes, and serves the client until its connection ends.
pub(super) async fn serve(stream: TcpStream, shared: &Shared) -> Result<(), ConnectionError> {
    stream.set_nodelay(true).map_err(ConnectionError::Write)?;
    match &shared.access {
        Access::Open => run(stream, None, shared).await,
        Access::Identities { tls, rules } => {
            let (stream, peer) = tls.accept(stream).await?;
            let permit = Permit::of(&peer, rules, SystemTime::now());
            run(stream, Some(permit), shared).await
        }
    }
}

async fn run<IO: AsyncRead + AsyncWrite>(
    stream: IO,
    permit: Option<Permit<'_>>,
    shared: &Shared,
) -> Result<(), ConnectionError> {
    let (read, mut write) = split(stream);
    let mut reader = Reader::new(read, shared.limits.packet_bytes);
    let first = tokio::select! {
        first = timeout(CONNECT_TIME, reader.next()) => first,
        () = shared.stop.cancelled() => return Ok(()),
    };
    let admitted = match first.map_err(|_| ConnectionError::NoConnect)? {
        Ok(Packet::Connect(connect, will, _)) => admit(&connect, will, permit.as_ref(), shared),
        Ok(_) => return Err(ConnectionError::NotConnect),
        Err(WireError::Level(_)) => Err(ConnectReturnCode::UnsupportedProtocolVersion),
        Err(error) => return Err(error.into()),
    };
    match admitted {
        Ok((client, answer)) => {
            let client_id = client.attached.session.client_id.clone();
            let end = converse(client, answer, &mut reader, &mut write, permit, shared).await;
            part(end, client_id, &mut write).await
        }
        Err(code) => {
            let answer = ConnAck {
                session_present: false,
                code,
                properties: None,
            };
            greet(&mut write, answer).await?;
            Err(ConnectionError::Refused(code))
        }
    }
}

async fn greet<W: AsyncWrite + Unpin>(
    write: &mut W,
    answer: ConnAck,
) -> Result<(), ConnectionError> {
    let mut buffer = BytesMut::new();
    put(&Packet::ConnAck(answer), &mut buffer);
    send(write, &mut buffer).await
}

/// Answers and delivers until the connection ends; the session then has no connection.
async fn converse<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    client: Client,
    answer: ConnAck,
    reader: &mut Reader<R>,
    write: &mut W,
    permit: Option<Permit<'_>>,
    shared: &Shared,
) -> End {
    let Client {
        attached,
        keep_alive,
    } = client;
    let (session, number) = (&attached.session, attached.number);
    let (replies, waiting) = mpsc::channel(REPLIES);
    let talk = Conversation {
        session,
        permit: permit.as_ref(),
        shared,
    };
    let lease_ends = async {
        match &permit {
            Some(permit) => sleep_until(permit.ends).await,
            None => std::future::pending().await,
        }
    };
    let end = match greet(write, answer).await {
        Err(error) => End::Lost(error),
        Ok(()) => tokio::select! {
            end = talk.read(reader, keep_alive, replies) => end,
            end = talk.write(write, number, &attached.wake, waiting) => end,
            _ = attached.taken_over => End::Told(DisconnectReasonCode::SessionTakenOver),
            () = lease_ends => End::Told(DisconnectReasonCode::MaximumConnectTime),
            () = shared.stop.cancelled() => End::Told(DisconnectReasonCode::ServerShuttingDown),
        },
    };
    let parting = end.parting(shared);
    shared
        .router()
        .detach(session, number, parting, Instant::now());
    end
}

async fn part<W: AsyncWrite + Unpin>(
    end: End,
    client_id: Box<str>,
    write: &mut W,
) -> Result<(), ConnectionError> {
    match end {
        End::Left(_) | End::Lost(ConnectionError::Wire(WireError::Closed)) => Ok(()),
        End::Lost(error) => Err(error),
        End::Told(reason) => {
            let mut buffer = BytesMut::new();
            put_disconnect(&mut buffer, reason);
            send(write, &mut buffer).await?;
            write.shutdown().await.map_err(ConnectionError::Write)?;
            Err(ConnectionError::Ended { client_id, reason })
        }
    }
}

/// Appends one of our own small packets, which have no length that could be refused.
pub(super) fn put(packet: &Packet, buffer: &mut BytesMut) {
    if let Err(error) = packet.write(buffer, None) {
        tracing::error!(%error, "cannot encode a packet");
    }
}

pub(super) async fn send<W: AsyncWrite + Unpin>(
    to: &mut W,
    buffer: &mut BytesMut,
) -> Result<(), ConnectionError> {
    let written = timeout(WRITE_TIME, async {
        to.write_all(buffer).await?;
        to.flush().await
    });
    written
        .await
        .map_err(|_| ConnectionError::Stalled)?
        .map_err(ConnectionError::Write)?;
    buffer.clear();
    Ok(())
}

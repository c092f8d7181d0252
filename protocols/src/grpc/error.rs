//! What can fail in this module, apart from missions themselves.

use portarium_identity::TlsError;
use std::{io, net::SocketAddr, time::Duration};
use thiserror::Error;

/// What can fail in serving, connecting and starting the adapter.
#[derive(Debug, Error)]
pub enum GrpcError {
    /// Without TLS only loopback may be served.
    #[error(
        "without TLS only a loopback address may be served, not {0}; bind 127.0.0.1 or ::1, or configure an identity"
    )]
    PlaintextOffLoopback(SocketAddr),
    /// The listener has no address: it is no bound socket.
    #[error("the listener is not bound: {0}")]
    Listener(#[source] io::Error),
    /// The text names no `host:port`.
    #[error(
        "{text:?} is no gRPC target: {reason}; write host:port, for example robot-7.local:50051 or [fd00::7]:50051"
    )]
    Target {
        /// As written.
        text: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// No TCP connection.
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    /// No TCP connection in time.
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    /// No mutual TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// TLS stands, but the other end does not speak HTTP/2 with us. A server that does not
    /// accept our certificate says so here, since TLS 1.3 lets the client finish first.
    #[error(
        "the peer closed the connection right after the TLS handshake, as one does that does not admit our SPIFFE ID (its log or audit says why): {0}"
    )]
    Refused(String),
    /// The thread of the stop lanes cannot be started.
    #[error("cannot start the thread of the stop lanes: {0}")]
    StopLane(#[source] io::Error),
}

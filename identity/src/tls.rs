//! TLS 1.3 as a view of the current SVID.
use crate::{IdentityError, Peer};
use rustls::pki_types::ServerName;
use std::sync::Arc;
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};
use tokio_rustls::{client, server};

/// Why a handshake failed.
#[derive(Debug, Error)]
pub enum TlsError {
    /// No SVID, or no configuration.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The handshake itself.
    #[error("TLS handshake: {0}")]
    Handshake(std::io::Error),
    /// The peer took too long.
    #[error("TLS handshake did not end within {0:?}")]
    Timeout(std::time::Duration),
    /// What the peer showed is no X.509-SVID.
    #[error("peer certificate: {0}")]
    Peer(String),
}

/// The client's side. Cheap to clone.
#[derive(Clone)]
pub struct ClientTls {}

impl ClientTls {
    /// A configuration that presents the SVID current at each handshake. The receiver tells who
    /// was on the other end of the last handshake made with it: for libraries that hide the
    /// stream (one connection per configuration then).
    pub fn config(
        &self,
    ) -> Result<(Arc<rustls::ClientConfig>, watch::Receiver<Option<Peer>>), IdentityError> {
        todo!()
    }
    /// Handshakes on a stream.
    pub async fn connect<IO: AsyncRead + AsyncWrite + Unpin>(
        &self,
        name: ServerName<'static>,
        stream: IO,
    ) -> Result<(client::TlsStream<IO>, Peer), TlsError> {
        let _ = (name, stream);
        todo!()
    }
}

/// The server's side. Cheap to clone.
#[derive(Clone)]
pub struct ServerTls {}

impl ServerTls {
    /// Handshakes on an accepted stream; bounded in time.
    pub async fn accept<IO: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: IO,
    ) -> Result<(server::TlsStream<IO>, Peer), TlsError> {
        let _ = stream;
        todo!()
    }
    /// Replaces who is admitted, for handshakes from now on (configuration reload).
    pub fn replace_policy(&self, policy: crate::PeerPolicy) {
        todo!("{policy:?}")
    }
}

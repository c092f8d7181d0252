//! From an address to an authenticated byte stream, and why that or what follows fails.

use super::config::{Broker, MqttConfig};
use crate::{copies::RETRANSMITTED_FOR, peers::ConnectedPeer};
use portarium_identity::{ClientTls, IdentityError, Lease, Snapshot, TlsError};
use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, DisconnectReasonCode};
use rustls::pki_types::{CertificateDer, ServerName};
use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
    time::timeout,
};

/// TCP and TLS together may take this long; CONNECT and CONNACK the same once more.
pub(crate) const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// Why there is no connection, or no longer. Says what to do where that is known.
#[derive(Debug, Error)]
pub(crate) enum LinkError {
    #[error("nothing listens at the configured address, or the network is in the way: {0}")]
    Tcp(io::Error),
    #[error("{0:?} is neither a host name nor an IP address")]
    Host(String),
    #[error(
        "mutual TLS failed; compare the broker's SPIFFE ID with its configured `broker_id`, and its CA list with our trust domain: {0}"
    )]
    Tls(TlsError),
    #[error("we have no SVID to connect with: {0}")]
    Identity(IdentityError),
    #[error(
        "the broker refused our certificate; its CA list must have our trust domain's CA, and \
         mosquitto must know the SVID's first DNS name: {0}"
    )]
    CertificateRefused(io::Error),
    #[error("the broker or we ourselves are not trusted any more: {0}")]
    Distrusted(TlsError),
    #[error("the broker did not answer within {0:?}")]
    Timeout(Duration),
    #[error("the broker refused the connection: {}", explain(*.0))]
    Refused(ConnectReturnCode),
    #[error("the broker offers no QoS 1, without which no command is acknowledged")]
    NoQos1,
    #[error("the broker ended the connection: {}", explain_end(*.0))]
    Ended(DisconnectReasonCode),
    #[error("the broker closed the connection without a reason; its log has one")]
    Closed,
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("the broker has been silent for {0:?}")]
    Silent(Duration),
    #[error("the broker has acknowledged nothing for {0:?}")]
    Unacknowledged(Duration),
    #[error("the broker sent what is no MQTT 5: {0}")]
    Malformed(String),
    #[error("its certificates end and no new connection could be made")]
    LeaseOver,
}

impl From<TlsError> for LinkError {
    fn from(error: TlsError) -> Self {
        match error {
            TlsError::Identity(error) => Self::Identity(error),
            other => Self::Tls(other),
        }
    }
}

impl LinkError {
    /// What an error before CONNACK means: with TLS 1.3 a refused certificate shows only there.
    pub(crate) fn before_connack(self) -> Self {
        match self {
            Self::Io(e) if e.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => {
                Self::CertificateRefused(e)
            }
            other => other,
        }
    }
}

fn explain(code: ConnectReturnCode) -> String {
    use ConnectReturnCode as C;
    match code {
        C::NotAuthorized | C::BadUserNamePassword | C::Banned => format!(
            "{code:?}; the broker's ACL or user list does not know our identity (mosquitto takes \
             the certificate's CN, which is the SVID's first DNS name)"
        ),
        C::ClientIdentifierNotValid | C::BadClientId => {
            format!("{code:?}; the broker does not accept our client id")
        }
        C::UnsupportedProtocolVersion | C::RefusedProtocolVersion => {
            format!("{code:?}; MQTT 5 is needed")
        }
        other => format!("{other:?}"),
    }
}

fn explain_end(code: DisconnectReasonCode) -> String {
    match code {
        DisconnectReasonCode::SessionTakenOver => {
            "SessionTakenOver; another process uses our client id: is a second gateway running \
             with this identity?"
                .to_owned()
        }
        other => format!("{other:?}"),
    }
}

pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A byte stream to the broker on which no MQTT was spoken yet.
pub(crate) struct Dialled {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) lease: Option<Lease>,
    /// The generation of the SVID presented; `None` in plaintext.
    pub(crate) generation: Option<u64>,
    pub(crate) trust: Option<Trust>,
}

/// What a connection's trust stands on: the authority may leave the bundle, or our own entry be
/// withdrawn, while it lives.
pub(crate) struct Trust {
    tls: ClientTls,
    changes: watch::Receiver<Option<Arc<Snapshot>>>,
    who: Arc<ConnectedPeer>,
    chain: Vec<CertificateDer<'static>>,
}

impl Trust {
    /// Lives as long as the connection.
    pub(crate) fn who(&self) -> &Arc<ConnectedPeer> {
        &self.who
    }

    /// Whether anything that it stands on may be another since the last call.
    pub(crate) fn may_have_changed(&mut self) -> bool {
        // The sender lives in the manager, and that in `tls`.
        let changed = self.changes.has_changed().unwrap_or_default();
        self.changes.mark_unchanged();
        changed
    }

    pub(crate) fn recheck(&self) -> Result<(), LinkError> {
        let checked = self.tls.recheck(&self.who.peer, &self.chain);
        checked.map_err(LinkError::Distrusted)
    }
}

/// How to reach one broker.
pub(crate) struct Dialer {
    broker: Broker,
    tls: Option<ClientTls>,
    plaintext_lease: Option<Duration>,
}

impl Dialer {
    pub(crate) fn new(config: &MqttConfig) -> Self {
        Self {
            broker: config.broker.clone(),
            tls: config.tls.clone(),
            plaintext_lease: config.plaintext_lease,
        }
    }

    pub(crate) fn broker(&self) -> &Broker {
        &self.broker
    }

    pub(crate) async fn dial(&self) -> Result<Dialled, LinkError> {
        timeout(HANDSHAKE_LIMIT, self.dial_unbounded())
            .await
            .map_err(|_| LinkError::Timeout(HANDSHAKE_LIMIT))?
    }

    async fn dial_unbounded(&self) -> Result<Dialled, LinkError> {
        let address = (self.broker.host.as_str(), self.broker.port);
        let tcp = TcpStream::connect(address).await.map_err(LinkError::Tcp)?;
        // Without it a lone command waits 40 ms for a delayed acknowledgement.
        tcp.set_nodelay(true)?;
        socket2::SockRef::from(&tcp).set_tcp_user_timeout(Some(RETRANSMITTED_FOR))?;
        let Some(tls) = &self.tls else {
            let lease = self.plaintext_lease.map(Lease::of);
            return Ok(Dialled {
                stream: Box::new(tcp),
                lease,
                generation: None,
                trust: None,
            });
        };
        let name = ServerName::try_from(self.broker.host.clone())
            .map_err(|_| LinkError::Host(self.broker.host.clone()))?;
        let changes = tls.changes();
        let remote = tcp.peer_addr()?;
        let (stream, peer) = tls.connect(name, tcp).await?;
        let (lease, generation) = (peer.lease(SystemTime::now()), peer.own_generation);
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let trust = Trust {
            tls: tls.clone(),
            changes,
            who: Arc::new(ConnectedPeer::now(peer, remote)),
            chain: chain.iter().map(|c| c.clone().into_owned()).collect(),
        };
        Ok(Dialled {
            stream: Box::new(stream),
            lease: Some(lease),
            generation: Some(generation),
            trust: Some(trust),
        })
    }
}

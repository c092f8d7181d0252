//! TLS 1.3 as a view of the current SVID.
use crate::{
    IdentityError, Peer, PeerError, PeerPolicy, Snapshot, SpiffeId, SvidManager, chain,
    config::{self, ClientSide, Live, Material, Policy},
    stats::{Handshakes, Outcome},
};
use arc_swap::ArcSwapOption;
use futures::TryFutureExt as _;
use rustls::{
    ClientConfig, CommonState, ServerConfig,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::Acceptor,
};
use std::{
    fmt,
    future::Future,
    io,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::timeout,
};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector, client, server};

/// How long a handshake may take, on either side.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// Why a handshake failed.
#[derive(Debug, Error)]
pub enum TlsError {
    /// No SVID, or no configuration.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The handshake itself.
    #[error("TLS handshake: {}", told(.0))]
    Handshake(std::io::Error),
    /// The peer took too long.
    #[error("TLS handshake did not end within {0:?}")]
    Timeout(std::time::Duration),
    /// What the peer showed is no X.509-SVID, or (in a recheck) no longer one that we accept.
    #[error("peer certificate: {0}")]
    Peer(String),
    /// In a recheck: the SVID that we showed has ended since.
    #[error("our own SVID, on which the connection rests, has ended")]
    OwnEnded,
}

impl TlsError {
    /// Who the peer showed to be and by which serial number, where that is why the handshake
    /// failed. Its authority has signed the certificate; that the peer holds its key is looked at
    /// after the policy, and not shown.
    pub fn not_admitted(&self) -> Option<(&SpiffeId, &str)> {
        match self {
            Self::Handshake(error) => match peer_error(error)? {
                PeerError::NotAdmitted { peer, serial } => Some((peer, serial)),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether the peer went away, and nobody refused anything.
    pub fn is_broken_connection(&self) -> bool {
        matches!(self, Self::Handshake(error)
            if error.get_ref().is_none_or(|inner| !inner.is::<rustls::Error>()))
    }
}

/// Our own reason inside of a failed handshake.
fn peer_error(error: &io::Error) -> Option<&PeerError> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::Other(other) => other.0.downcast_ref(),
        _ => None,
    }
}

/// Without rustls' "other error" before our own words.
fn told(error: &io::Error) -> &dyn fmt::Display {
    match peer_error(error) {
        Some(ours) => ours,
        None => error,
    }
}

/// The client's side. Cheap to clone.
#[derive(Clone)]
pub struct ClientTls {
    inner: Arc<Side<ClientConfig>>,
}

impl ClientTls {
    pub(crate) fn new(manager: SvidManager, policy: PeerPolicy, alpn: &[&[u8]]) -> Self {
        Self {
            inner: Arc::new(Side::new(manager, policy, alpn)),
        }
    }

    /// A configuration that presents the SVID current at each handshake. The receiver tells who
    /// was on the other end of the last handshake made with it: for libraries that hide the
    /// stream (one connection per configuration then).
    pub fn config(
        &self,
    ) -> Result<(Arc<ClientConfig>, watch::Receiver<Option<Peer>>), IdentityError> {
        self.inner.manager.for_handshake()?;
        let (seen, receiver) = watch::channel(None);
        let side = ClientSide {
            material: Material::Live(Box::new(Live {
                manager: self.inner.manager.clone(),
                seen,
                handshake: Mutex::default(),
            })),
            policy: Arc::clone(&self.inner.policy),
        };
        let config = config::client_config(side, &self.inner.alpn).map_err(refused)?;
        Ok((Arc::new(config), receiver))
    }

    /// Handshakes on a stream, within 5 s. The name is sent (SNI) and not checked: who is on the
    /// other end is its SPIFFE ID.
    ///
    /// As always with TLS 1.3 this ends before the server has looked at our certificate: a
    /// refusal shows at the first read.
    pub async fn connect<IO: AsyncRead + AsyncWrite + Unpin>(
        &self,
        name: ServerName<'static>,
        stream: IO,
    ) -> Result<(client::TlsStream<IO>, Peer), TlsError> {
        let counted = &self.inner.manager.counters().client;
        let (own, config) = counting(counted, self.inner.config(build_client))?;
        let connecting = TlsConnector::from(config).connect(name, stream);
        let stream = bounded(counted, connecting.map_ok(Ok)).await?;
        let peer = peer(stream.get_ref().1, &own)?;
        Ok((stream, peer))
    }

    /// Changes whenever a live connection is to be looked at again ([`Self::recheck`]).
    pub fn changes(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.inner.manager.snapshots()
    }

    /// Whether a live connection would stand if it were made now: the authority of the peer's
    /// chain (leaf first) may have left the bundle since the handshake, and our own SVID of then
    /// may have ended.
    pub fn recheck(&self, peer: &Peer, chain: &[CertificateDer<'_>]) -> Result<(), TlsError> {
        self.inner.recheck(peer, chain, Snapshot::verify_server)
    }
}

/// The server's side. Cheap to clone.
#[derive(Clone)]
pub struct ServerTls {
    inner: Arc<Side<ServerConfig>>,
}

impl ServerTls {
    pub(crate) fn new(manager: SvidManager, policy: PeerPolicy, alpn: &[&[u8]]) -> Self {
        Self {
            inner: Arc::new(Side::new(manager, policy, alpn)),
        }
    }

    /// Handshakes on an accepted stream, within 5 s.
    pub async fn accept<IO: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: IO,
    ) -> Result<(server::TlsStream<IO>, Peer), TlsError> {
        let counted = &self.inner.manager.counters().server;
        counting(counted, self.inner.config(build_server))?;
        let accepting = async {
            let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
            // Whoever let us wait is shown what is good now, not what was good when it came.
            match self.inner.config(build_server) {
                Ok((own, config)) => Ok(Ok((own, hello.into_stream(config).await?))),
                Err(error) => Ok(Err(error)),
            }
        };
        let (own, stream) = bounded(counted, accepting).await?;
        let peer = peer(stream.get_ref().1, &own)?;
        Ok((stream, peer))
    }

    /// Replaces who is admitted, for handshakes from now on (configuration reload).
    pub fn replace_policy(&self, policy: PeerPolicy) {
        self.inner.policy.replace(policy);
    }

    /// Whether a live connection would stand if it were made now: the authority of the peer's
    /// chain (leaf first) may have left the bundle since the handshake, the policy may have
    /// changed, and our own SVID of then may have ended.
    pub fn recheck(&self, peer: &Peer, chain: &[CertificateDer<'_>]) -> Result<(), TlsError> {
        self.inner.recheck(peer, chain, Snapshot::verify_client)
    }
}

/// What both sides have: one configuration for each generation, made when it is first needed.
struct Side<C> {
    manager: SvidManager,
    policy: Arc<Policy>,
    alpn: Vec<Vec<u8>>,
    cached: ArcSwapOption<(u64, Arc<C>)>,
}

impl<C> Side<C> {
    fn new(manager: SvidManager, policy: PeerPolicy, alpn: &[&[u8]]) -> Self {
        Self {
            policy: Policy::new(policy, manager.denied()),
            manager,
            alpn: alpn.iter().map(|protocol| protocol.to_vec()).collect(),
            cached: ArcSwapOption::empty(),
        }
    }

    fn snapshot(&self) -> Result<Arc<Snapshot>, IdentityError> {
        let current = self.manager.current();
        current.ok_or_else(|| IdentityError::NotReady(self.manager.state()))
    }

    /// The snapshot and the configuration that presents just that one.
    fn config(
        &self,
        build: impl FnOnce(&Self, Arc<Snapshot>) -> Result<C, rustls::Error>,
    ) -> Result<(Arc<Snapshot>, Arc<C>), IdentityError> {
        let snapshot = self.manager.for_handshake()?;
        if let Some((generation, config)) = self.cached.load().as_deref()
            && *generation == snapshot.generation
        {
            return Ok((snapshot, Arc::clone(config)));
        }
        let config = Arc::new(build(self, Arc::clone(&snapshot)).map_err(refused)?);
        let entry = (snapshot.generation, Arc::clone(&config));
        self.cached.store(Some(Arc::new(entry)));
        Ok((snapshot, config))
    }

    fn recheck(
        &self,
        peer: &Peer,
        chain: &[CertificateDer<'_>],
        verify: impl FnOnce(
            &Snapshot,
            &CertificateDer<'_>,
            &[CertificateDer<'_>],
            UnixTime,
        ) -> Result<chain::Leaf, rustls::Error>,
    ) -> Result<(), TlsError> {
        let snapshot = self.snapshot()?;
        // The lease goes by a clock that stands still while the machine sleeps.
        let now = self.manager.time();
        if now >= peer.own_not_after {
            return Err(TlsError::OwnEnded);
        }
        let now = now.duration_since(SystemTime::UNIX_EPOCH);
        let now = UnixTime::since_unix_epoch(now.unwrap_or_default());
        let (leaf, intermediates) = chain.split_first().ok_or_else(nothing_shown)?;
        let peer = verify(&snapshot, leaf, intermediates, now)
            .map_err(|e| TlsError::Peer(e.to_string()))?;
        if self.policy.admits(&peer.spiffe_id) {
            Ok(())
        } else {
            Err(TlsError::Peer(format!(
                "the policy does not admit {}",
                peer.spiffe_id
            )))
        }
    }
}

fn build_client(
    side: &Side<ClientConfig>,
    snapshot: Arc<Snapshot>,
) -> Result<ClientConfig, rustls::Error> {
    let ours = ClientSide {
        material: Material::Fixed(side.manager.clone(), snapshot),
        policy: Arc::clone(&side.policy),
    };
    config::client_config(ours, &side.alpn)
}

fn build_server(
    side: &Side<ServerConfig>,
    snapshot: Arc<Snapshot>,
) -> Result<ServerConfig, rustls::Error> {
    let manager = side.manager.clone();
    config::server_config(manager, snapshot, Arc::clone(&side.policy), &side.alpn)
}

fn refused(error: rustls::Error) -> IdentityError {
    IdentityError::Tls(error.to_string())
}

fn nothing_shown() -> TlsError {
    TlsError::Peer("none was shown".into())
}

fn counting<T>(counted: &Handshakes, config: Result<T, IdentityError>) -> Result<T, IdentityError> {
    config.inspect_err(|_| counted.count(Outcome::NoIdentity))
}

async fn bounded<S>(
    counted: &Handshakes,
    handshake: impl Future<Output = io::Result<Result<S, IdentityError>>>,
) -> Result<S, TlsError> {
    let (outcome, result) = match timeout(HANDSHAKE_LIMIT, handshake).await {
        Ok(Ok(Ok(stream))) => (Outcome::Ok, Ok(stream)),
        Ok(Ok(Err(error))) => (Outcome::NoIdentity, Err(error.into())),
        Ok(Err(e)) => (Outcome::of_io(&e), Err(TlsError::Handshake(e))),
        Err(_) => (Outcome::Timeout, Err(TlsError::Timeout(HANDSHAKE_LIMIT))),
    };
    counted.count(outcome);
    result
}

fn peer(connection: &CommonState, own: &Snapshot) -> Result<Peer, TlsError> {
    let chain = connection.peer_certificates().unwrap_or_default();
    let (leaf, intermediates) = chain.split_first().ok_or_else(nothing_shown)?;
    let facts = chain::inspect(leaf, intermediates).map_err(|e| TlsError::Peer(e.to_string()))?;
    let authorities = own.authorities_under(&facts, leaf, intermediates);
    Ok(config::peer_of(facts, authorities, own))
}

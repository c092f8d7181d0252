//! rustls configurations as views of a snapshot.
use crate::{
    Peer, PeerError, PeerPolicy, Snapshot, SpiffeId, SvidManager, chain::Leaf, stats::Outcome,
};
use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig,
    SignatureScheme,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};
use std::{
    fmt,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};
use tokio::sync::watch;

/// The policy of one side, without whom the manager denies; replaceable while connections are made.
pub(crate) struct Policy {
    admitted: ArcSwap<PeerPolicy>,
    denied: Arc<ArcSwap<PeerPolicy>>,
}

impl Policy {
    pub(crate) fn new(admitted: PeerPolicy, denied: Arc<ArcSwap<PeerPolicy>>) -> Arc<Self> {
        Arc::new(Self {
            admitted: ArcSwap::from_pointee(admitted),
            denied,
        })
    }

    pub(crate) fn replace(&self, admitted: PeerPolicy) {
        self.admitted.store(Arc::new(admitted));
    }

    pub(crate) fn admits(&self, id: &SpiffeId) -> bool {
        self.admitted.load().admits(id) && !self.denied.load().admits(id)
    }
}

/// aws-lc-rs with X25519 before all others: the post-quantum hybrid costs 30 % of the handshakes
/// per second and stays on offer as the second.
pub(crate) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let first = [
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::X25519MLKEM768,
        ];
        let mut provider = aws_lc_rs::default_provider();
        let rest = std::mem::take(&mut provider.kx_groups);
        let rest = rest
            .into_iter()
            .filter(|g| first.iter().all(|f| f.name() != g.name()));
        provider.kx_groups = first.into_iter().chain(rest).collect();
        Arc::new(provider)
    });
    &PROVIDER
}

pub(crate) fn peer_error(error: PeerError) -> rustls::Error {
    rustls::Error::Other(OtherError(Arc::new(error)))
}

/// A client's configuration; `side` says where its material comes from.
pub(crate) fn client_config(
    side: ClientSide,
    alpn: &[Vec<u8>],
) -> Result<ClientConfig, rustls::Error> {
    let side = Arc::new(side);
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&side) as _)
        .with_client_cert_resolver(side);
    config.alpn_protocols = alpn.to_vec();
    // A resumed session would skip the verifier.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// A server's configuration for one generation.
pub(crate) fn server_config(
    manager: SvidManager,
    snapshot: Arc<Snapshot>,
    policy: Arc<Policy>,
    alpn: &[Vec<u8>],
) -> Result<ServerConfig, rustls::Error> {
    let side = Arc::new(ServerSide {
        manager,
        snapshot,
        policy,
    });
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::clone(&side) as _)
        .with_cert_resolver(side);
    config.alpn_protocols = alpn.to_vec();
    // A resumed session would skip the verifier.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn admit(policy: &Policy, peer: &Leaf) -> Result<(), rustls::Error> {
    if policy.admits(&peer.spiffe_id) {
        Ok(())
    } else {
        Err(peer_error(PeerError::NotAdmitted {
            peer: peer.spiffe_id.clone(),
            serial: peer.serial.clone(),
        }))
    }
}

fn verify_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let algorithms = &provider().signature_verification_algorithms;
    verify_tls13_signature(message, certificate, signature, algorithms)
}

fn no_tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
}

fn schemes() -> Vec<SignatureScheme> {
    provider()
        .signature_verification_algorithms
        .supported_schemes()
}

/// Our side of a connection that we make.
pub(crate) struct ClientSide {
    pub(crate) material: Material,
    pub(crate) policy: Arc<Policy>,
}

/// Where a client's configuration takes its material from.
pub(crate) enum Material {
    /// From one snapshot, as long as it is good: a configuration for one generation.
    Fixed(SvidManager, Arc<Snapshot>),
    /// From the manager, anew at each handshake.
    Live(Box<Live>),
}

/// The other end may have let us wait: what was good when the handshake began may have ended or been
/// taken away since, and the clock be in doubt.
fn still_good(manager: &SvidManager, snapshot: &Snapshot) -> Result<(), rustls::Error> {
    let good = manager.for_handshake().is_ok() && !manager.is_over(snapshot);
    good.then_some(())
        .ok_or_else(|| peer_error(PeerError::NoIdentity))
}

impl Material {
    fn snapshot(&self) -> Result<Arc<Snapshot>, rustls::Error> {
        match self {
            Self::Fixed(manager, snapshot) => {
                still_good(manager, snapshot)?;
                Ok(Arc::clone(snapshot))
            }
            Self::Live(live) => live
                .manager
                .for_handshake()
                .map_err(|_| peer_error(PeerError::NoIdentity)),
        }
    }
}

/// What a configuration remembers that follows the manager and tells of its last handshake. One
/// connection at a time uses it.
pub(crate) struct Live {
    pub(crate) manager: SvidManager,
    /// Who was on the other end of the last handshake.
    pub(crate) seen: watch::Sender<Option<Peer>>,
    pub(crate) handshake: Mutex<Handshake>,
}

/// A handshake under way.
#[derive(Default)]
pub(crate) struct Handshake {
    presented: Option<Arc<Snapshot>>,
    verified: Option<Peer>,
}

impl Live {
    fn handshake(&self) -> std::sync::MutexGuard<'_, Handshake> {
        self.handshake
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Ours is asked for before theirs is verified.
    fn verified(&self, peer: Leaf, authorities: Vec<Arc<str>>, current: Arc<Snapshot>) {
        let mut handshake = self.handshake();
        let own = handshake.presented.take().unwrap_or(current);
        handshake.verified = Some(peer_of(peer, authorities, &own));
    }

    /// The peer's signature has shown that it holds the key.
    fn publish(&self) {
        let verified = self.handshake().verified.take();
        self.manager.counters().client.count(Outcome::Ok);
        self.seen.send_replace(verified);
    }

    fn failed(&self, error: &rustls::Error) {
        self.manager.counters().client.count(Outcome::of_tls(error));
    }
}

pub(crate) fn peer_of(peer: Leaf, authorities: Vec<Arc<str>>, own: &Snapshot) -> Peer {
    Peer {
        spiffe_id: peer.spiffe_id,
        serial: peer.serial,
        thumbprint: peer.thumbprint,
        not_after: peer.not_after,
        authorities,
        own_generation: own.generation,
        own_not_after: own.not_after,
        own_deadline: own.deadline(),
    }
}

impl ClientSide {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(Leaf, Arc<Snapshot>), rustls::Error> {
        let snapshot = self.material.snapshot()?;
        let peer = snapshot.verify_server(leaf, intermediates, now)?;
        admit(&self.policy, &peer)?;
        Ok((peer, snapshot))
    }
}

impl fmt::Debug for ClientSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientSide")
    }
}

impl ResolvesClientCert for ClientSide {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let snapshot = self.material.snapshot().ok()?;
        let key = snapshot.certified_key();
        if let Material::Live(live) = &self.material {
            live.handshake().presented = Some(snapshot);
        }
        Some(key)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ServerCertVerifier for ClientSide {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.verify(leaf, intermediates, now);
        if let Material::Live(live) = &self.material {
            match verified {
                Ok((peer, current)) => {
                    let authorities = current.authorities_under(&peer, leaf, intermediates);
                    live.verified(peer, authorities, current);
                }
                Err(error) => {
                    live.failed(&error);
                    return Err(error);
                }
            }
        } else {
            verified?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let valid = verify_signature(message, certificate, signature)?;
        if let Material::Live(live) = &self.material {
            live.publish();
        }
        Ok(valid)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

/// Our side of a connection that is made to us, for one generation.
struct ServerSide {
    manager: SvidManager,
    snapshot: Arc<Snapshot>,
    policy: Arc<Policy>,
}

impl fmt::Debug for ServerSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerSide")
    }
}

impl ResolvesServerCert for ServerSide {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.snapshot.certified_key())
    }
}

impl ClientCertVerifier for ServerSide {
    /// None: a client of SPIFFE has one certificate for us, whoever signed it.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        still_good(&self.manager, &self.snapshot)?;
        let peer = self.snapshot.verify_client(leaf, intermediates, now)?;
        admit(&self.policy, &peer)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

//! One coherent moment of the identity.
use crate::{
    PeerError, SpiffeId, TrustDomain,
    chain::{self, Leaf},
    config::{self, peer_error},
    issuer::Authorities,
    token::Thumbprint,
};
use base64ct::{Base64, Encoding as _};
use rustls::{
    RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime},
    server::{ParsedCertificate, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use spiffe::{X509BundleSet, X509Svid};
use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::time::Instant;
use zeroize::Zeroizing;

/// One coherent moment: key, chain and bundles of the same update.
pub struct Snapshot {
    /// Grows with each update that changed anything; 1 is the first.
    pub generation: u64,
    /// Who we are.
    pub spiffe_id: SpiffeId,
    /// When the SVID ends.
    pub not_after: SystemTime,
    /// When it began.
    pub not_before: SystemTime,
    /// The leaf's serial number, lower-case hex.
    pub serial: String,
    /// The leaf's thumbprint: what access tokens are bound to.
    pub thumbprint: Thumbprint,
    /// The hint it came with.
    pub hint: Option<String>,
    svid: Arc<X509Svid>,
    bundles: Arc<X509BundleSet>,
    /// NotAfter on the clock that is not stepped, as seen on arrival.
    deadline: Instant,
    certified_key: Arc<CertifiedKey>,
    trust: BTreeMap<TrustDomain, Trust>,
}

/// The authorities of one trust domain.
struct Trust {
    authorities: Authorities,
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Snapshot {
    /// Makes a snapshot, or says why the material is unusable.
    pub(crate) fn build(
        generation: u64,
        svid: Arc<X509Svid>,
        bundles: Arc<X509BundleSet>,
    ) -> Result<Self, String> {
        let chain: Vec<CertificateDer<'static>> = svid
            .cert_chain()
            .iter()
            .map(|c| CertificateDer::from(c.as_bytes().to_vec()))
            .collect();
        let (first, intermediates) = chain.split_first().ok_or("the SVID has no certificate")?;
        let leaf = chain::inspect(first, intermediates).map_err(|e| e.to_string())?;
        let trust = bundles
            .iter()
            .filter_map(|(domain, bundle)| {
                let authorities = bundle.authorities().iter().map(|c| c.as_bytes());
                Some((domain.clone(), Trust::build(authorities)?))
            })
            .collect::<BTreeMap<_, _>>();
        if !trust.contains_key(leaf.spiffe_id.trust_domain()) {
            return Err(
                "the bundle of the SVID's own trust domain holds no usable authority".into(),
            );
        }
        Ok(Self {
            generation,
            spiffe_id: leaf.spiffe_id,
            not_after: leaf.not_after,
            not_before: leaf.not_before,
            serial: leaf.serial,
            thumbprint: leaf.thumbprint,
            hint: svid.hint().map(str::to_owned),
            deadline: Instant::now(),
            certified_key: certified_key(chain, svid.private_key().as_bytes())?,
            trust,
            svid,
            bundles,
        })
    }

    /// It arrived now, at this time of day.
    pub(crate) fn arrived(&mut self, now: SystemTime) {
        let left = self.not_after.duration_since(now).unwrap_or_default();
        self.deadline = Instant::now() + left;
    }

    /// Whether this is the same material.
    pub(crate) fn holds(&self, svid: &X509Svid, bundles: &X509BundleSet) -> bool {
        self.svid.as_ref() == svid && self.bundles.as_ref() == bundles
    }

    /// Whether the SVID has ended, on either clock: stepping the wall clock back revives nothing,
    /// and the other one stands still while a machine sleeps.
    pub(crate) fn is_over(&self, wall: SystemTime, now: Instant) -> bool {
        self.not_after <= wall || self.deadline <= now
    }

    /// What is left of the SVID, by the clock that says less.
    pub(crate) fn left(&self, wall: SystemTime, now: Instant) -> Duration {
        let by_day = self.not_after.duration_since(wall).unwrap_or_default();
        by_day.min(self.deadline.saturating_duration_since(now))
    }

    /// From its beginning to its end.
    pub(crate) fn life(&self) -> Duration {
        let life = self.not_after.duration_since(self.not_before);
        life.unwrap_or_default()
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    pub(crate) fn certified_key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified_key)
    }

    /// Verifies the certificate of a server that we connect to. Its name is not looked at: who it
    /// is, is its SPIFFE ID.
    pub(crate) fn verify_server(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Leaf, rustls::Error> {
        let facts = chain::inspect(leaf, intermediates).map_err(peer_error)?;
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(leaf)?,
            &self.trust_of(&facts)?.roots,
            intermediates,
            now,
            config::provider().signature_verification_algorithms.all,
        )?;
        Ok(facts)
    }

    /// Verifies the certificate of a client that connects to us.
    pub(crate) fn verify_client(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Leaf, rustls::Error> {
        let facts = chain::inspect(leaf, intermediates).map_err(peer_error)?;
        self.trust_of(&facts)?
            .clients
            .verify_client_cert(leaf, intermediates, now)?;
        Ok(facts)
    }

    /// The authorities of the peer's own trust domain, and of no other.
    fn trust_of(&self, peer: &Leaf) -> Result<&Trust, rustls::Error> {
        let domain = peer.spiffe_id.trust_domain();
        self.trust
            .get(domain)
            .ok_or_else(|| peer_error(PeerError::NoBundle(domain.clone())))
    }

    /// What the certificate of a peer that was verified rests on.
    pub(crate) fn authorities_under(
        &self,
        peer: &Leaf,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Vec<Arc<str>> {
        let trust = self.trust.get(peer.spiffe_id.trust_domain());
        trust.map_or_else(Vec::new, |trust| {
            trust.authorities.under(leaf, intermediates)
        })
    }

    /// The authorities of all bundles, by trust domain and by id as in [`Peer`](crate::Peer).
    pub fn authorities(&self) -> impl Iterator<Item = (&TrustDomain, &Arc<str>)> {
        self.trust
            .iter()
            .flat_map(|(domain, trust)| trust.authorities.ids().map(move |id| (domain, id)))
    }

    /// The DNS names that the SVID carries.
    pub fn dns_names(&self) -> Vec<String> {
        let leaf = self.certified_key.cert.first();
        leaf.map(chain::dns_names).unwrap_or_default()
    }

    /// The trust domains whose peers can be verified, in order.
    pub fn trust_domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.trust.keys()
    }

    /// The certificate chain, leaf first, PEM.
    pub fn chain_pem(&self) -> String {
        self.svid
            .cert_chain()
            .iter()
            .map(|c| certificate_pem(c.as_bytes()))
            .collect()
    }

    /// The private key, PKCS#8 PEM; zeroized on drop. Never log it.
    pub fn key_pem(&self) -> Zeroizing<String> {
        pem("PRIVATE KEY", self.svid.private_key().as_bytes())
    }

    /// The bundles of all trust domains delivered (own first), PEM.
    pub fn bundle_pem(&self) -> String {
        let own = self.spiffe_id.trust_domain();
        let of_own = self.bundles.get_ref(own);
        let others = self.bundles.iter().filter(|(domain, _)| *domain != own);
        of_own
            .into_iter()
            .chain(others.map(|(_, bundle)| bundle))
            .flat_map(|bundle| bundle.authorities())
            .map(|c| certificate_pem(c.as_bytes()))
            .collect()
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("generation", &self.generation)
            .field("spiffe_id", &self.spiffe_id.to_string())
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .field("hint", &self.hint)
            .finish_non_exhaustive()
    }
}

impl Trust {
    /// `None` where the bundle has no usable authority: its domain's peers are refused then.
    fn build<'a>(authorities: impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        let bundle: Vec<_> = authorities.map(CertificateDer::from).collect();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(bundle.iter().cloned());
        let roots = Arc::new(roots);
        let provider = Arc::clone(config::provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider)
            .build()
            .ok()?;
        Some(Self {
            authorities: Authorities::of(bundle.iter()),
            roots,
            clients,
        })
    }
}

fn certified_key(
    chain: Vec<CertificateDer<'static>>,
    pkcs8: &[u8],
) -> Result<Arc<CertifiedKey>, String> {
    let unusable = |e: rustls::Error| format!("the SVID's key is unusable: {e}");
    // Borrowed: rustls takes an owned key without clearing it from memory afterwards.
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8));
    let key = any_supported_type(&key).map_err(unusable)?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => Ok(Arc::new(certified)),
        Err(error) => Err(unusable(error)),
    }
}

fn certificate_pem(der: &[u8]) -> String {
    std::mem::take(&mut *pem("CERTIFICATE", der))
}

/// Made without growing the text, so that no copy of a key stays behind.
fn pem(label: &str, der: &[u8]) -> Zeroizing<String> {
    const LINE: usize = 64;
    let base64 = Zeroizing::new(Base64::encode_string(der));
    let frame = 2 * (label.len() + "-----BEGIN -----\n".len());
    let mut text = Zeroizing::new(String::with_capacity(
        frame + base64.len() + base64.len().div_ceil(LINE),
    ));
    for part in ["-----BEGIN ", label, "-----\n"] {
        text.push_str(part);
    }
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, next) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = next;
    }
    for part in ["-----END ", label, "-----\n"] {
        text.push_str(part);
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pem_is_written_in_lines_of_64_without_growing() {
        for length in [0, 1, 47, 48, 49, 96, 1_000] {
            let text = pem("PRIVATE KEY", &vec![7; length]);
            assert!(text.lines().all(|line| line.len() <= 64));
            let (label, der) = x509_parser::pem::parse_x509_pem(text.as_bytes())
                .map(|(_, pem)| (pem.label, pem.contents))
                .unwrap();
            assert_eq!((label.as_str(), der), ("PRIVATE KEY", vec![7; length]));
            assert!(text.len() <= text.capacity());
        }
    }

    use crate::authority::{Authority, AuthorityConfig, MintSpec, Minted};
    use spiffe::X509Bundle;
    use std::time::Duration;

    async fn authority(folder: &tempfile::TempDir, trust_domain: &str) -> Authority {
        let config = AuthorityConfig {
            trust_domain: trust_domain.into(),
            socket: folder.path().join(trust_domain),
            svid_ttl: Duration::from_secs(60),
            entries: Vec::new(),
        };
        Authority::start(config).await.unwrap()
    }

    fn mint(authority: &Authority, id: &str) -> Minted {
        authority
            .mint(&MintSpec::svid(id, Duration::from_secs(60)))
            .unwrap()
    }

    fn bundle(authority: &Authority, trust_domain: &str) -> X509Bundle {
        let trust_domain = TrustDomain::new(trust_domain).unwrap();
        X509Bundle::parse_from_der(trust_domain, &authority.bundle().concat()).unwrap()
    }

    fn snapshot(own: &Minted, bundles: Vec<X509Bundle>) -> Result<Snapshot, String> {
        let svid = X509Svid::parse_from_der(&own.chain_der.concat(), &own.key_pkcs8_der).unwrap();
        let bundles: X509BundleSet = bundles.into_iter().collect();
        let mut snapshot = Snapshot::build(1, Arc::new(svid), Arc::new(bundles))?;
        snapshot.arrived(SystemTime::now());
        Ok(snapshot)
    }

    /// What both sides say to a peer; they say the same.
    fn verdict(snapshot: &Snapshot, peer: &Minted) -> String {
        let leaf = CertificateDer::from(peer.chain_der[0].clone());
        let said = |verified: Result<Leaf, rustls::Error>| match verified {
            Ok(leaf) => leaf.spiffe_id.to_string(),
            Err(error) => error.to_string(),
        };
        let by_client = said(snapshot.verify_server(&leaf, &[], UnixTime::now()));
        let by_server = said(snapshot.verify_client(&leaf, &[], UnixTime::now()));
        assert_eq!(by_client, by_server);
        by_client
    }

    #[tokio::test]
    async fn a_peer_verifies_against_the_bundle_of_its_own_trust_domain_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (
            authority(&folder, "a.test").await,
            authority(&folder, "b.test").await,
        );
        let own = mint(&a, "spiffe://a.test/own");
        let peer_of_b = mint(&b, "spiffe://b.test/peer");
        let alone = snapshot(&own, vec![bundle(&a, "a.test")]).unwrap();
        let federated = vec![bundle(&a, "a.test"), bundle(&b, "b.test")];
        let federated = snapshot(&own, federated).unwrap();
        assert!(verdict(&alone, &peer_of_b).contains("no trust bundle"));
        assert_eq!(verdict(&federated, &peer_of_b), "spiffe://b.test/peer");
        // An authority vouches for its own trust domain only.
        let forged = mint(&b, "spiffe://a.test/own");
        assert!(verdict(&federated, &forged).contains("UnknownIssuer"));
        let pem = federated.bundle_pem();
        assert!(pem.starts_with(&alone.bundle_pem()) && pem.len() > alone.bundle_pem().len());
    }

    #[tokio::test]
    async fn an_empty_bundle_trusts_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (
            authority(&folder, "a.test").await,
            authority(&folder, "b.test").await,
        );
        let own = mint(&a, "spiffe://a.test/own");
        let empty = |name| X509Bundle::new(TrustDomain::new(name).unwrap());
        let foreign = vec![bundle(&a, "a.test"), empty("b.test")];
        let foreign = snapshot(&own, foreign).unwrap();
        assert!(verdict(&foreign, &mint(&b, "spiffe://b.test/x")).contains("no trust bundle"));
        assert!(
            snapshot(&own, vec![empty("a.test")])
                .unwrap_err()
                .contains("no usable authority")
        );
        assert!(snapshot(&own, Vec::new()).is_err());
    }

    #[tokio::test]
    async fn a_key_of_another_certificate_makes_no_snapshot() {
        let folder = tempfile::tempdir().unwrap();
        let a = authority(&folder, "a.test").await;
        let (one, other) = (mint(&a, "spiffe://a.test/x"), mint(&a, "spiffe://a.test/x"));
        let mixed = Minted {
            chain_der: one.chain_der,
            key_pkcs8_der: other.key_pkcs8_der,
        };
        let refused = snapshot(&mixed, vec![bundle(&a, "a.test")]).unwrap_err();
        assert!(refused.contains("key is unusable"), "{refused}");
    }

    #[tokio::test]
    async fn the_end_counts_on_either_clock_and_debug_shows_no_key() {
        let folder = tempfile::tempdir().unwrap();
        let a = authority(&folder, "a.test").await;
        let own = mint(&a, "spiffe://a.test/own");
        let snapshot = snapshot(&own, vec![bundle(&a, "a.test")]).unwrap();
        let (wall, now) = (SystemTime::now(), Instant::now());
        let hour = Duration::from_secs(3_600);
        assert!(!snapshot.is_over(wall, now));
        assert!(snapshot.is_over(wall + hour, now));
        assert!(snapshot.is_over(wall - hour, now + hour));
        let shown = format!("{snapshot:?}");
        assert!(
            shown.contains("spiffe://a.test/own") && shown.len() < 300,
            "{shown}"
        );
    }
}

//! Who holds an SVID that is good no longer, or one that never was.

use crate::real_spire::scene::{IO, Io, LASTING, ROBOTICS, Scene, told};
use portarium_identity::authority::{Authority, AuthorityConfig, MintSpec};
use portarium_tests::{Stranger, figure, hints, spiffe_id, until};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::{path::Path, time::SystemTime};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Who all of them say they are.
fn control_plane() -> String {
    spiffe_id(hints::CONTROL_PLANE)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs SPIRE: run by tests/run --spire"]
async fn nobody_gets_in_with_an_svid_that_is_good_no_longer_or_never_was() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::start(dir.path(), LASTING).await;
    let io = Io::federated(&scene).await;
    let own = scene.identities.manager(hints::CONTROL_PLANE).await;
    let before = Stranger::holding(&own.current().unwrap());
    let platform = Stranger::holding(&io.manager().await.current().unwrap());
    let imposter = imposter(dir.path()).await;
    for (what, stranger) in [("our SVID", &before), ("the platform's", &platform)] {
        let enters = async || {
            stranger
                .enter(scene.gateway.ports.grpc)
                .await
                .entered
                .is_ok()
        };
        until(&format!("{what} to be good"), enters).await;
    }

    // The right ID from a CA that is trusted, for another trust domain.
    let forged = forged_by(&io);
    refused(
        &scene,
        "the right ID from the platform's CA",
        &forged,
        Some("UnknownIssuer"),
    )
    .await;
    let unknown = "UnknownIssuer";
    refused(
        &scene,
        "the right ID from a CA of our domain's name",
        &imposter,
        Some(unknown),
    )
    .await;

    scene.identities.spire().part_with(&io.spire).await;
    until("the push", async || scene.authorities() == 1).await;
    let reason = format!("no trust bundle for the peer's trust domain {IO}");
    refused(
        &scene,
        "a trust domain no longer federated",
        &platform,
        Some(&reason),
    )
    .await;
    refused(&scene, "the right ID from its CA", &forged, Some(unknown)).await;

    scene.identities.prepare().await;
    scene.identities.activate().await;
    scene.identities.taint().await;
    refused(&scene, "a tainted authority", &before, None).await;
    scene.identities.revoke().await;
    until("the push", async || scene.authorities() == 1).await;
    refused(&scene, "a revoked authority", &before, Some(unknown)).await;
    scene.caller.robots_reachable(&["g"]).await;
}

/// What comes of the attempt: let in where there is no reason, else refused, with it in the audit.
async fn refused(scene: &Scene, what: &str, stranger: &Stranger, reason: Option<&str>) {
    let seen = scene.audit().len();
    let came = stranger.enter(scene.gateway.ports.grpc).await;
    match reason {
        None => assert!(came.entered.is_ok(), "{what}: {came:?}"),
        Some(reason) => {
            assert!(came.entered.is_err(), "{what} was let in");
            told(scene, seen, "handshake", reason).await;
            figure(
                "attack",
                &format!("{what}: refused, in the audit with {reason:?}"),
            );
        }
    }
}

/// A CA of the same trust domain's name that nobody trusts.
async fn imposter(dir: &Path) -> Stranger {
    let authority = Authority::start(AuthorityConfig {
        trust_domain: ROBOTICS.into(),
        socket: dir.join("imposter.sock"),
        svid_ttl: LASTING,
        entries: Vec::new(),
    });
    let spec = MintSpec::svid(control_plane(), LASTING);
    let minted = authority.await.unwrap().mint(&spec).unwrap();
    let chain = minted.chain_der.into_iter().map(CertificateDer::from);
    let key = PrivatePkcs8KeyDer::from(minted.key_pkcs8_der.to_vec());
    Stranger::showing(chain.collect(), key.into())
}

/// Signed with the key of the other trust domain's server, which itself would not sign this.
fn forged_by(io: &Io) -> Stranger {
    let (authority, key) = io.spire.authority_and_key();
    let (_, authority) = X509Certificate::from_der(&authority).unwrap();
    let signing = KeyPair::try_from(key.as_slice()).unwrap();
    assert_eq!(
        signing.public_key_raw(),
        authority.public_key().subject_public_key.data.as_ref(),
        "the key of this authority"
    );
    let mut ca = CertificateParams::default();
    ca.distinguished_name = subject(&authority);
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let own = KeyPair::generate().unwrap();
    let leaf = leaf().signed_by(&own, &Issuer::new(ca, signing)).unwrap();
    let key = PrivatePkcs8KeyDer::from(own.serialize_der());
    Stranger::showing(vec![leaf.der().clone()], key.into())
}

/// A CA's name as it is written in what it signs.
fn subject(authority: &X509Certificate<'_>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for part in authority.subject().iter_attributes() {
        let kind: Vec<u64> = part.attr_type().iter().unwrap().collect();
        let text = part.as_str().unwrap();
        let text = DnValue::PrintableString(text.try_into().unwrap());
        name.push(DnType::from_oid(&kind), text);
    }
    name
}

/// An SVID of our control plane but for who signs it.
fn leaf() -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = SystemTime::now();
    params.not_before = OffsetDateTime::from(now - LASTING / 60);
    params.not_after = OffsetDateTime::from(now + LASTING / 2);
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(control_plane().try_into().unwrap())];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params
}

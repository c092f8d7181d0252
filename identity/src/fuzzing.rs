//! What fuzz targets call and nothing else can: this module is there under `--cfg fuzzing` alone.

use crate::{
    Snapshot, SpiffeId, TrustDomain,
    authority::proto::X509svidResponse,
    chain,
    token::{KeySet, Thumbprint, TokenRules},
};
use prost::Message as _;
use rustls::pki_types::CertificateDer;
use spiffe::{X509Bundle, X509BundleSet, X509Svid};
use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

/// A Workload API answer from its bytes to a snapshot, for each SVID in it.
pub fn workload_api_answer(bytes: &[u8]) {
    let Ok(answer) = X509svidResponse::decode(bytes) else {
        return;
    };
    for svid in &answer.svids {
        let (chain, key) = (&svid.x509_svid, &svid.x509_svid_key);
        let hint = Some(Arc::from(svid.hint.as_str()));
        let parsed = X509Svid::parse_from_der_with_hint(chain, key, hint);
        let domain = TrustDomain::new(&svid.spiffe_id);
        let bundle = domain.map(|domain| X509Bundle::parse_from_der(domain, &svid.bundle));
        if let (Ok(svid), Ok(Ok(bundle))) = (parsed, bundle) {
            let mut bundles = X509BundleSet::new();
            bundles.add_bundle(bundle);
            let _ = Snapshot::build(1, Arc::new(svid), Arc::new(bundles));
        }
    }
}

/// What a peer shows in its handshake, leaf first; who it is where its form is right.
pub fn peer_chain(certificates: &[&[u8]]) -> Option<SpiffeId> {
    let certificates = certificates.iter().map(|der| CertificateDer::from(*der));
    let certificates: Vec<_> = certificates.collect();
    let (leaf, intermediates) = certificates.split_first()?;
    Some(chain::inspect(leaf, intermediates).ok()?.spiffe_id)
}

/// A key set, and a token that is to be verified with it at one moment of the year 2027.
pub fn access_token(keys: &[u8], token: &str) {
    let Ok(keys) = KeySet::parse(keys) else {
        return;
    };
    assert!((1..=100).contains(&keys.len()));
    let rules = TokenRules {
        issuer: "https://issuer.example".into(),
        audience: "portarium-gateway".into(),
    };
    let connection = Thumbprint::of(&CertificateDer::from(&b"mine"[..]));
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let _ = rules.verify(token, &keys, &connection, now);
}

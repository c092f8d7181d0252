//! Certificates of any form, on a chain to the very authority that everybody trusts.

use portarium_identity::authority::{Authority, MintSpec, Minted};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::time::{Duration, SystemTime};

pub const TRUST_DOMAIN: &str = "portarium.robotics";

/// How long forged certificates are valid.
pub const VALID: Duration = Duration::from_secs(1800);

/// What an attacker shows.
pub struct Shown {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl From<Minted> for Shown {
    fn from(minted: Minted) -> Self {
        let chain = minted.chain_der.iter().cloned().map(CertificateDer::from);
        Self {
            chain: chain.collect(),
            key: private(&minted.key_pkcs8_der),
        }
    }
}

fn private(pkcs8: &[u8]) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(pkcs8.to_vec()).into()
}

/// An SVID with exactly this in its URI SAN, signed by the authority's own CA.
pub fn with_id(authority: &Authority, uri: &str) -> Shown {
    authority.mint(&MintSpec::svid(uri, VALID)).unwrap().into()
}

/// Somebody who can sign: an intermediate CA of the authority, or a workload that plays one.
pub struct Signer {
    issuer: Issuer<'static, KeyPair>,
    chain: Vec<CertificateDer<'static>>,
}

impl Signer {
    /// A CA right below the authority's.
    pub fn intermediate(authority: &Authority) -> Self {
        let spec = MintSpec {
            is_ca: true,
            ..MintSpec::svid(format!("spiffe://{TRUST_DOMAIN}"), VALID)
        };
        Self::playing(authority.mint(&spec).unwrap())
    }

    /// Whoever has this certificate and its key.
    pub fn playing(minted: Minted) -> Self {
        let key = KeyPair::try_from(minted.key_pkcs8_der.as_slice()).unwrap();
        let shown = Shown::from(minted);
        Self {
            issuer: Issuer::new(ca_params(), key),
            chain: shown.chain,
        }
    }

    /// A CA below this one.
    pub fn below(&self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = ca_params();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let mut chain = vec![certificate.der().clone()];
        chain.extend(self.chain.iter().cloned());
        Self {
            issuer: Issuer::new(ca_params(), key),
            chain,
        }
    }

    /// A leaf that is an SVID of this SPIFFE ID but for the change.
    pub fn leaf(&self, uri: &str, change: impl FnOnce(&mut CertificateParams)) -> Shown {
        let key = KeyPair::generate().unwrap();
        let mut params = leaf_params(uri);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let mut chain = vec![certificate.der().clone()];
        chain.extend(self.chain.iter().cloned());
        Shown {
            chain,
            key: private(&key.serialize_der()),
        }
    }
}

fn dates(params: &mut CertificateParams) {
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_secs(10)).into();
    params.not_after = (now + VALID / 2).into();
}

/// With the name that the authority's certificates have.
fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    dates(&mut params);
    let mut name = DistinguishedName::new();
    for (kind, text) in [
        (DnType::CountryName, "US"),
        (DnType::OrganizationName, "SPIRE"),
    ] {
        name.push(kind, DnValue::PrintableString(text.try_into().unwrap()));
    }
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn leaf_params(uri: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    dates(&mut params);
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params
}

//! Certificate authorities in memory, and certificates of exactly SPIRE's shape.
use super::{
    AuthorityError,
    extensions::{About, extensions},
};
use aws_lc_rs::rand;
use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, Issuer, KeyPair, SerialNumber};
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;
use zeroize::Zeroizing;

/// How far back certificates begin, for peers whose clock is slow.
const BACKDATED: Duration = Duration::from_secs(10);

/// What a certificate made by [`super::Authority::mint`] is to be. [`MintSpec::svid`] gives an
/// ordinary SVID to start from.
#[derive(Debug, Clone)]
pub struct MintSpec {
    /// URI SANs; an SVID has exactly one.
    pub uris: Vec<String>,
    /// DNS SANs; the first becomes the CN.
    pub dns_names: Vec<String>,
    /// When it begins.
    pub not_before: SystemTime,
    /// When it ends; never later than the CA.
    pub not_after: SystemTime,
    /// Whether it is a CA certificate, as an SVID never is.
    pub is_ca: bool,
}

impl MintSpec {
    /// An SVID for the SPIFFE ID that is valid from ten seconds ago for `ttl` from now.
    pub fn svid(spiffe_id: impl Into<String>, ttl: Duration) -> Self {
        let now = SystemTime::now();
        Self {
            uris: vec![spiffe_id.into()],
            dns_names: Vec::new(),
            not_before: now - BACKDATED,
            not_after: now + ttl,
            is_ca: false,
        }
    }
}

/// A certificate and its key.
pub struct Minted {
    /// DER, leaf first.
    pub chain_der: Vec<Vec<u8>>,
    /// DER PKCS#8; zeroized on drop.
    pub key_pkcs8_der: Zeroizing<Vec<u8>>,
}

/// One X.509 authority.
pub(super) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    key_id: Vec<u8>,
    pub(super) certificate: Vec<u8>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl Ca {
    pub(super) fn new(
        trust_domain: &str,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate().map_err(sign)?;
        let (serial, number) = (serial()?, serial()?);
        let mut params = CertificateParams::default();
        params.not_before = date(now - BACKDATED);
        params.not_after = date(now + ttl);
        // SPIRE tells its CAs apart by this attribute.
        let number = number
            .iter()
            .fold(0_u128, |n, byte| (n << 8) | u128::from(*byte));
        params.distinguished_name = name(&[
            (DnType::CountryName, "US"),
            (DnType::OrganizationName, "SPIFFE"),
            (DnType::CustomDnType(vec![2, 5, 4, 5]), &number.to_string()),
        ])?;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let key_id = params.key_identifier(&key);
        params.custom_extensions = extensions(&About {
            is_ca: true,
            key: &key_id,
            signer: None,
            dns_names: &[],
            uris: &[format!("spiffe://{trust_domain}")],
        })?;
        let certificate = params.self_signed(&key).map_err(sign)?.der().to_vec();
        Ok(Self {
            issuer: Issuer::new(params, key),
            key_id,
            certificate,
            not_before: now,
            not_after: now + ttl,
        })
    }

    /// The part of the CA's life that has passed, 0..1.
    pub(super) fn age(&self, now: SystemTime) -> f64 {
        let life = self
            .not_after
            .duration_since(self.not_before)
            .unwrap_or_default();
        let passed = now.duration_since(self.not_before).unwrap_or_default();
        passed.as_secs_f64() / life.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    pub(super) fn mint(&self, spec: &MintSpec) -> Result<Minted, AuthorityError> {
        let key = KeyPair::generate().map_err(sign)?;
        let certificate = self
            .params(spec, &key)?
            .signed_by(&key, &self.issuer)
            .map_err(sign)?;
        Ok(Minted {
            chain_der: vec![certificate.der().to_vec()],
            key_pkcs8_der: Zeroizing::new(key.serialize_der()),
        })
    }

    fn params(&self, spec: &MintSpec, key: &KeyPair) -> Result<CertificateParams, AuthorityError> {
        let mut params = CertificateParams::default();
        params.not_before = date(spec.not_before);
        params.not_after = date(spec.not_after.min(self.not_after));
        let mut subject = vec![
            (DnType::CountryName, "US"),
            (DnType::OrganizationName, "SPIRE"),
        ];
        if let Some(first) = spec.dns_names.first() {
            subject.push((DnType::CommonName, first));
        }
        params.distinguished_name = name(&subject)?;
        params.serial_number = Some(SerialNumber::from_slice(&serial()?));
        params.custom_extensions = extensions(&About {
            is_ca: spec.is_ca,
            key: &params.key_identifier(key),
            signer: Some(&self.key_id),
            dns_names: &spec.dns_names,
            uris: &spec.uris,
        })?;
        Ok(params)
    }
}

pub(super) fn sign(error: impl std::fmt::Display) -> AuthorityError {
    AuthorityError::Sign(error.to_string())
}

fn date(time: SystemTime) -> OffsetDateTime {
    OffsetDateTime::from(time)
}

/// 127 random bits: positive, as long as SPIRE's.
fn serial() -> Result<[u8; 16], AuthorityError> {
    let mut serial = [0; 16];
    rand::fill(&mut serial).map_err(sign)?;
    serial[0] = (serial[0] & 0x7f) | 0x01;
    Ok(serial)
}

/// As Go writes names: PrintableString where that will do.
fn name(parts: &[(DnType, &str)]) -> Result<DistinguishedName, AuthorityError> {
    let mut name = DistinguishedName::new();
    for (kind, text) in parts {
        if text.chars().any(char::is_control) {
            return Err(AuthorityError::Config(format!(
                "{text:?} cannot be in a subject"
            )));
        }
        let printable = (*text).try_into().map(DnValue::PrintableString);
        let value = printable.unwrap_or_else(|_| DnValue::Utf8String((*text).to_owned()));
        name.push(kind.clone(), value);
    }
    Ok(name)
}

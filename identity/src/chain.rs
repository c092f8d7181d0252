//! The leaf rules of the X.509-SVID standard, which path validation does not know.
use crate::{SpiffeId, TrustDomain, token::Thumbprint};
use rustls::pki_types::CertificateDer;
use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};
use thiserror::Error;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, KeyUsage},
    parse_x509_certificate,
};

/// The most certificates a peer may send: a leaf and the intermediates of nested authorities.
const MAX_CHAIN: usize = 8;

/// The longest SPIFFE ID, by SPIFFE's own limit.
const MAX_ID_BYTES: usize = 2048;

/// Why a peer is refused although its TLS is in order; found inside the rustls error of a failed
/// handshake.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PeerError {
    /// We have no current SVID, and with it no bundles to verify with.
    #[error("there is no current SVID of our own")]
    NoIdentity,
    /// The certificate is no X.509-SVID.
    #[error("the peer's certificate is no X.509-SVID: {0}")]
    NotAnSvid(String),
    /// No bundle was delivered for the peer's trust domain.
    #[error("there is no trust bundle for the peer's trust domain {0}")]
    NoBundle(TrustDomain),
    /// The peer is who it says, and the policy does not admit it.
    #[error("the policy does not admit {peer}")]
    NotAdmitted {
        /// Who.
        peer: SpiffeId,
        /// The certificate's serial number, lower-case hex.
        serial: String,
    },
}

/// What a chain says of its leaf. Nothing of it is verified but its form.
#[derive(Debug, Clone)]
pub(crate) struct Leaf {
    pub(crate) spiffe_id: SpiffeId,
    /// Lower-case hex.
    pub(crate) serial: String,
    pub(crate) thumbprint: Thumbprint,
    pub(crate) not_before: SystemTime,
    /// The earliest NotAfter of the chain.
    pub(crate) not_after: SystemTime,
}

/// Checks the form of a chain (leaf first) against the X.509-SVID standard.
pub(crate) fn inspect(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<Leaf, PeerError> {
    inspect_chain(leaf, intermediates).map_err(PeerError::NotAnSvid)
}

fn inspect_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<Leaf, String> {
    if intermediates.len() >= MAX_CHAIN {
        return Err(format!("more than {MAX_CHAIN} certificates were sent"));
    }
    let thumbprint = Thumbprint::of(leaf);
    let leaf = parse(leaf)?;
    check_leaf_usage(&leaf)?;
    let mut not_after = leaf.validity().not_after.timestamp();
    for der in intermediates {
        let signer = parse(der)?;
        check_signer_usage(&signer)?;
        not_after = not_after.min(signer.validity().not_after.timestamp());
    }
    Ok(Leaf {
        spiffe_id: single_spiffe_id(&leaf)?,
        serial: serial(leaf.raw_serial()),
        thumbprint,
        not_before: system_time(leaf.validity().not_before.timestamp()),
        not_after: system_time(not_after),
    })
}

pub(crate) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    match parse_x509_certificate(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err("bytes follow the certificate".into()),
        Err(e) => Err(format!("it does not parse: {e}")),
    }
}

/// Exactly one URI SAN, and that a SPIFFE ID with a path.
fn single_spiffe_id(leaf: &X509Certificate<'_>) -> Result<SpiffeId, String> {
    let names = leaf
        .subject_alternative_name()
        .map_err(|e| format!("its subject alternative names do not parse: {e}"))?
        .ok_or("it has no subject alternative name")?;
    let mut uris = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
    let uri = uris.next().ok_or("it has no URI SAN")?;
    if uris.next().is_some() {
        return Err("it has more than one URI SAN".into());
    }
    if uri.len() > MAX_ID_BYTES {
        return Err(format!(
            "its URI SAN is no SPIFFE ID: it is longer than {MAX_ID_BYTES} bytes"
        ));
    }
    let id = SpiffeId::new(uri).map_err(|e| format!("its URI SAN is no SPIFFE ID: {e}"))?;
    if id.path().is_empty() {
        return Err("its SPIFFE ID has no path".into());
    }
    // Upper case in scheme and trust domain is read as lower case; one workload has one spelling.
    if id.to_string() != uri {
        return Err("its SPIFFE ID has upper case in its scheme or trust domain".into());
    }
    Ok(id)
}

/// The DNS names of a certificate that was inspected before; none where it does not parse.
pub(crate) fn dns_names(leaf: &CertificateDer<'_>) -> Vec<String> {
    let Ok(leaf) = parse(leaf) else {
        return Vec::new();
    };
    let Ok(Some(names)) = leaf.subject_alternative_name() else {
        return Vec::new();
    };
    let dns = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(dns) => Some((*dns).to_owned()),
        _ => None,
    };
    names.value.general_names.iter().filter_map(dns).collect()
}

fn check_leaf_usage(leaf: &X509Certificate<'_>) -> Result<(), String> {
    if is_ca(leaf)? {
        return Err("it is a CA certificate".into());
    }
    let usage = key_usage(leaf)?;
    if usage.key_cert_sign() || usage.crl_sign() {
        return Err("its key may sign certificates or CRLs".into());
    }
    if !usage.digital_signature() {
        return Err("its key usage lacks digitalSignature".into());
    }
    Ok(())
}

/// webpki sees to CA:TRUE but not to the key usage of what signs.
fn check_signer_usage(signer: &X509Certificate<'_>) -> Result<(), String> {
    if !is_ca(signer)? {
        return Err("a certificate sent with it is no CA certificate".into());
    }
    if !key_usage(signer)?.key_cert_sign() {
        return Err("the key usage of a certificate sent with it lacks keyCertSign".into());
    }
    Ok(())
}

fn is_ca(certificate: &X509Certificate<'_>) -> Result<bool, String> {
    certificate
        .basic_constraints()
        .map_err(|e| format!("its basic constraints do not parse: {e}"))?
        .map(|constraints| constraints.value.ca)
        .ok_or_else(|| "it has no basic constraints".into())
}

fn key_usage<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a KeyUsage, String> {
    certificate
        .key_usage()
        .map_err(|e| format!("its key usage does not parse: {e}"))?
        .map(|usage| usage.value)
        .ok_or_else(|| "it has no key usage".into())
}

/// Without leading zero bytes, as OpenSSL prints serial numbers (but for the case).
fn serial(serial: &[u8]) -> String {
    let significant = serial.iter().position(|b| *b != 0).unwrap_or(serial.len());
    hex(&serial[significant..])
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn system_time(unix: i64) -> SystemTime {
    let distance = Duration::from_secs(unix.unsigned_abs());
    let time = if unix < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

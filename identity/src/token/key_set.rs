//! The public keys of those who issue tokens.
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use std::collections::HashMap;
use thiserror::Error;

/// The most keys of one set; an issuer has a handful.
const MOST: usize = 100;

/// The shortest RSA modulus, in bytes (RFC 7518, section 3.3: 2048 bits).
const SHORTEST_MODULUS: usize = 256;

/// The use that SPIFFE gives to the keys of a trust domain's JWT authorities.
const JWT_SVID: &str = "jwt-svid";

/// A JSON Web Key Set (RFC 7517), as far as it can be used to verify signatures.
#[derive(Debug, Default)]
pub struct KeySet {
    keys: HashMap<String, Key>,
}

/// Why a key set cannot be used.
#[derive(Debug, Error)]
pub enum KeySetError {
    /// It does not parse.
    #[error("it is no JSON Web Key Set: {0}")]
    Syntax(#[from] serde_json::Error),
    /// It has too many keys.
    #[error("it has {0} keys; at most {MOST} are taken")]
    TooMany(usize),
    /// None of its keys can be used.
    #[error(
        "none of its keys can be used: wanted is one with a kid, of type EC (P-256, P-384), RSA (2048 bits or more) or OKP (Ed25519), for signatures"
    )]
    NoKey,
}

#[derive(Debug)]
pub(super) struct Key {
    pub(super) decoding: DecodingKey,
    /// What a token signed with it may name as its algorithm: never what the token likes.
    pub(super) algorithms: Vec<Algorithm>,
}

#[derive(Deserialize)]
struct RawSet<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

impl KeySet {
    /// Parses a set. Keys that are of no use here are passed over, as RFC 7517 (section 5) says.
    ///
    /// # Errors
    /// Where it is none, has more than a hundred keys, or none that can be used.
    pub fn parse(json: &[u8]) -> Result<Self, KeySetError> {
        let raw: RawSet<'_> = serde_json::from_slice(json)?;
        if raw.keys.len() > MOST {
            return Err(KeySetError::TooMany(raw.keys.len()));
        }
        Self::of(raw.keys.iter().map(|key| key.get().as_bytes()))
    }

    /// The set of these keys, each a JWK.
    pub(super) fn of<'a>(keys: impl Iterator<Item = &'a [u8]>) -> Result<Self, KeySetError> {
        let keys: HashMap<_, _> = keys.filter_map(usable).take(MOST).collect();
        if keys.is_empty() {
            return Err(KeySetError::NoKey);
        }
        Ok(Self { keys })
    }

    /// The number of keys that can be used.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(super) fn get(&self, kid: &str) -> Option<&Key> {
        self.keys.get(kid)
    }
}

/// A key with its id, if it is one that verifies signatures.
fn usable(json: &[u8]) -> Option<(String, Key)> {
    let jwk: Jwk = serde_json::from_slice(json).ok()?;
    let for_signatures = match &jwk.common.public_key_use {
        None | Some(PublicKeyUse::Signature) => true,
        Some(PublicKeyUse::Other(other)) => other == JWT_SVID,
        Some(PublicKeyUse::Encryption) => false,
    };
    let id = jwk.common.key_id.clone().filter(|id| !id.is_empty())?;
    if !for_signatures || is_private(json) {
        return None;
    }
    let decoding = DecodingKey::from_jwk(&jwk).ok()?;
    let mut algorithms = algorithms(&jwk.algorithm, &decoding)?;
    if let Some(only) = jwk.common.key_algorithm {
        algorithms.retain(|algorithm| KeyAlgorithm::from(*algorithm) == only);
    }
    if algorithms.is_empty() {
        return None;
    }
    Some((
        id,
        Key {
            decoding,
            algorithms,
        },
    ))
}

/// A private key in a public place is nobody's any longer.
fn is_private(json: &[u8]) -> bool {
    serde_json::from_slice::<Value>(json).is_ok_and(|key| key.get("d").is_some())
}

fn algorithms(parameters: &AlgorithmParameters, key: &DecodingKey) -> Option<Vec<Algorithm>> {
    match parameters {
        AlgorithmParameters::EllipticCurve(ec) => match ec.curve {
            EllipticCurve::P256 => Some(vec![Algorithm::ES256]),
            EllipticCurve::P384 => Some(vec![Algorithm::ES384]),
            _ => None,
        },
        AlgorithmParameters::RSA(_) => match key.kind() {
            jsonwebtoken::DecodingKeyKind::RsaModulusExponent { n, .. } => {
                let significant = n.iter().skip_while(|byte| **byte == 0).count();
                (significant >= SHORTEST_MODULUS).then(|| {
                    vec![
                        Algorithm::RS256,
                        Algorithm::RS384,
                        Algorithm::RS512,
                        Algorithm::PS256,
                        Algorithm::PS384,
                        Algorithm::PS512,
                    ]
                })
            }
            jsonwebtoken::DecodingKeyKind::SecretOrDer(_) => None,
        },
        AlgorithmParameters::OctetKeyPair(pair) => {
            (pair.curve == EllipticCurve::Ed25519).then(|| vec![Algorithm::EdDSA])
        }
        // A shared secret (`oct`) proves nothing about who signed.
        _ => None,
    }
}

//! For those who issue tokens: binding a token to an SVID, and signing it.
use super::Thumbprint;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair as _, RsaKeyPair,
};
use base64ct::{Base64UrlUnpadded, Encoding as _};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use pkcs8::PrivateKeyInfoRef;
use rustls::pki_types::{PrivateKeyDer, pem::PemObject as _};
use serde_json::{Map, Value, json};
use thiserror::Error;
use zeroize::Zeroizing;

/// Binds a token to the certificate with this thumbprint (RFC 8705, section 3.1): sets
/// `cnf.x5t#S256` among its claims and leaves what else `cnf` confirms.
pub fn bind(claims: &mut Map<String, Value>, to: &Thumbprint) {
    let confirmation = claims.entry("cnf").or_insert_with(|| json!({}));
    if !confirmation.is_object() {
        *confirmation = json!({});
    }
    if let Some(confirmation) = confirmation.as_object_mut() {
        confirmation.insert("x5t#S256".to_owned(), Value::from(to.to_string()));
    }
}

/// The private key of an issuer of tokens.
pub struct SigningKey {
    key: EncodingKey,
    algorithm: Algorithm,
    public: Value,
}

/// Why a key cannot sign tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SigningKeyError {
    /// It is no PEM file with a private key.
    #[error("it is no PEM with a private key in PKCS#8 (BEGIN PRIVATE KEY)")]
    NotPkcs8,
    /// It is of a kind that is not taken.
    #[error("its kind is not taken; wanted is P-256, P-384, Ed25519 or RSA of 2048 bits or more")]
    Kind,
    /// It did not sign.
    #[error("it could not sign")]
    Signing,
}

impl SigningKey {
    /// Reads a private key in PKCS#8, in PEM.
    ///
    /// # Errors
    /// Where it is none, or of another kind than P-256, P-384, Ed25519 and RSA.
    pub fn from_pem(pem: &[u8]) -> Result<Self, SigningKeyError> {
        let Ok(PrivateKeyDer::Pkcs8(key)) = PrivateKeyDer::from_pem_slice(pem) else {
            return Err(SigningKeyError::NotPkcs8);
        };
        let der = Zeroizing::new(key.secret_pkcs8_der().to_vec());
        Self::elliptic(&der)
            .or_else(|| Self::edwards(&der))
            .or_else(|| Self::rsa(&der))
            .ok_or(SigningKeyError::Kind)
    }

    fn elliptic(der: &[u8]) -> Option<Self> {
        let curves = [
            (&ECDSA_P256_SHA256_FIXED_SIGNING, Algorithm::ES256, "P-256"),
            (&ECDSA_P384_SHA384_FIXED_SIGNING, Algorithm::ES384, "P-384"),
        ];
        curves.into_iter().find_map(|(curve, algorithm, name)| {
            let pair = EcdsaKeyPair::from_pkcs8(curve, der).ok()?;
            // 04, x, y
            let point = pair.public_key().as_ref().get(1..)?;
            let (x, y) = point.split_at(point.len() / 2);
            Some(Self {
                key: EncodingKey::from_ec_der(der),
                algorithm,
                public: json!({ "kty": "EC", "crv": name, "x": text(x), "y": text(y) }),
            })
        })
    }

    fn edwards(der: &[u8]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).ok()?;
        let x = text(pair.public_key().as_ref());
        Some(Self {
            key: EncodingKey::from_ed_der(der),
            algorithm: Algorithm::EdDSA,
            public: json!({ "kty": "OKP", "crv": "Ed25519", "x": x }),
        })
    }

    fn rsa(der: &[u8]) -> Option<Self> {
        let pair = RsaKeyPair::from_pkcs8(der).ok()?;
        let public = pair.public_key();
        let n = text(public.modulus().big_endian_without_leading_zero());
        let e = text(public.exponent().big_endian_without_leading_zero());
        Some(Self {
            // The library wants the key without its envelope (RFC 8017, RSAPrivateKey).
            key: EncodingKey::from_rsa_der(
                PrivateKeyInfoRef::try_from(der)
                    .ok()?
                    .private_key
                    .as_bytes(),
            ),
            algorithm: Algorithm::RS256,
            public: json!({ "kty": "RSA", "n": n, "e": e }),
        })
    }

    /// Signs a token with these claims; `kid` names the key to those who verify.
    ///
    /// # Errors
    /// Where signing fails.
    pub fn sign(&self, claims: &Map<String, Value>, kid: &str) -> Result<String, SigningKeyError> {
        let header = Header {
            typ: Some("at+jwt".to_owned()),
            kid: Some(kid.to_owned()),
            ..Header::new(self.algorithm)
        };
        encode(&header, claims, &self.key).map_err(|_| SigningKeyError::Signing)
    }

    /// The public half, as a key set of one (RFC 7517).
    pub fn key_set(&self, kid: &str) -> Value {
        let mut key = self.public.clone();
        if let Some(key) = key.as_object_mut() {
            key.insert("kid".to_owned(), Value::from(kid));
            key.insert("use".to_owned(), Value::from("sig"));
            key.insert("alg".to_owned(), json!(self.algorithm));
        }
        json!({ "keys": [key] })
    }
}

fn text(bytes: &[u8]) -> String {
    Base64UrlUnpadded::encode_string(bytes)
}

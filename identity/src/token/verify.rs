//! Whether a token is good here, now, and from this caller.
use super::{KeySet, Thumbprint};
use jsonwebtoken::{Algorithm, Validation, decode, decode_header, errors::ErrorKind};
use serde::Deserialize;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use thiserror::Error;

/// The longest token that is looked at, in bytes.
const LONGEST: usize = 8 * 1024;

/// How far the clock of an issuer may be ahead of ours. For the end of a token there is no such
/// room: it was given some when it was issued.
const AHEAD: Duration = Duration::from_secs(5);

/// Whose tokens are taken, and which of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRules {
    /// The `iss` of a token.
    pub issuer: String,
    /// One of a token's `aud`.
    pub audience: String,
}

/// What a token that was found good says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer {
    /// `sub`, if there is one.
    pub subject: Option<String>,
    /// `jti`, if there is one.
    pub id: Option<String>,
    /// `exp`.
    pub expires: SystemTime,
}

/// Why a token is not taken. No message has anything of the token in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TokenError {
    /// It is longer than any token should be.
    #[error("it is longer than {LONGEST} bytes")]
    TooLong,
    /// It does not parse.
    #[error("it is no signed JWT with an algorithm that is known")]
    Malformed,
    /// Its header names no key.
    #[error("it does not say which key signed it (kid)")]
    NoKeyId,
    /// Its key is none of the issuer's, as far as is known.
    #[error("no key of the issuer has its kid; they are fetched anew, try again in a moment")]
    UnknownKey,
    /// It names an algorithm that its key is not for.
    #[error("its algorithm is not one of its key")]
    Algorithm,
    /// The signature is not that of the key.
    #[error("its signature does not verify")]
    Signature,
    /// It was issued by someone else.
    #[error("it was issued by another issuer (iss)")]
    Issuer,
    /// It is for someone else.
    #[error("it is meant for another audience (aud)")]
    Audience,
    /// It never ends.
    #[error("it has no expiry (exp)")]
    NoExpiry,
    /// It has ended.
    #[error("it has expired (exp); mint a new one")]
    Expired,
    /// It has not begun.
    #[error("it is not valid yet (nbf, iat); check the clocks")]
    NotYetValid,
    /// It is bound to no certificate, so that whoever has it could use it.
    #[error("it is not bound to a certificate (cnf.x5t#S256)")]
    NotBound,
    /// It is bound to another certificate than that of this connection.
    #[error(
        "it is bound to another certificate than that of this connection; after a rotation mint a new one"
    )]
    BoundToAnother,
}

#[derive(Deserialize)]
struct Claims {
    iss: Option<String>,
    aud: Option<Audience>,
    exp: Option<f64>,
    nbf: Option<f64>,
    iat: Option<f64>,
    sub: Option<String>,
    jti: Option<String>,
    cnf: Option<Confirmation>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

/// RFC 8705, section 3.1.
#[derive(Deserialize)]
struct Confirmation {
    #[serde(rename = "x5t#S256")]
    thumbprint: Option<String>,
}

impl TokenRules {
    /// Verifies a token that came over a connection with this certificate at its other end.
    ///
    /// # Errors
    /// The first thing that is wrong with it: form, key, signature, then its claims.
    pub fn verify(
        &self,
        token: &str,
        keys: &KeySet,
        connection: &Thumbprint,
        now: SystemTime,
    ) -> Result<Bearer, TokenError> {
        let claims = signed(token, keys)?;
        if claims.iss.as_deref() != Some(self.issuer.as_str()) {
            return Err(TokenError::Issuer);
        }
        if !claims.aud.is_some_and(|aud| aud.names(&self.audience)) {
            return Err(TokenError::Audience);
        }
        let expires = claims.exp.and_then(moment).ok_or(TokenError::NoExpiry)?;
        if now >= expires {
            return Err(TokenError::Expired);
        }
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let latest = (now + AHEAD).as_secs_f64();
        if [claims.nbf, claims.iat]
            .into_iter()
            .flatten()
            .any(|from| from > latest)
        {
            return Err(TokenError::NotYetValid);
        }
        let bound = claims.cnf.and_then(|cnf| cnf.thumbprint);
        if bound.ok_or(TokenError::NotBound)? != connection.to_string() {
            return Err(TokenError::BoundToAnother);
        }
        Ok(Bearer {
            subject: claims.sub,
            id: claims.jti,
            expires,
        })
    }
}

/// `None` where no clock will ever be so far.
fn moment(seconds: f64) -> Option<SystemTime> {
    let since = Duration::try_from_secs_f64(seconds.max(0.0)).ok()?;
    UNIX_EPOCH.checked_add(since)
}

impl Audience {
    fn names(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Several(all) => all.iter().any(|one| one == audience),
        }
    }
}

/// What was signed. The claims are looked at by our rules: the library takes the time of day from
/// the system, which may be in doubt.
fn signed(token: &str, keys: &KeySet) -> Result<Claims, TokenError> {
    if token.len() > LONGEST {
        return Err(TokenError::TooLong);
    }
    let header = decode_header(token).map_err(|_| TokenError::Malformed)?;
    let kid = header.kid.ok_or(TokenError::NoKeyId)?;
    let key = keys.get(&kid).ok_or(TokenError::UnknownKey)?;
    // An extension that must be understood, and is not (RFC 7515, section 4.1.11).
    if header.crit.is_some() {
        return Err(TokenError::Malformed);
    }
    let mut validation = Validation::new(Algorithm::ES256);
    validation.algorithms.clone_from(&key.algorithms);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    decode(token, &key.decoding, &validation)
        .map(|data| data.claims)
        .map_err(|error| match error.kind() {
            ErrorKind::InvalidSignature => TokenError::Signature,
            ErrorKind::InvalidAlgorithm => TokenError::Algorithm,
            _ => TokenError::Malformed,
        })
}

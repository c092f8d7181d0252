//! JWT-SVIDs: ES256 tokens and the key set to verify them with.
use super::{AuthorityError, ca::sign};
use crate::SpiffeId;
use aws_lc_rs::{
    digest::{SHA256, digest},
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
        UnparsedPublicKey,
    },
};
use base64ct::{Base64UrlUnpadded, Encoding as _};
use serde_json::{Map, Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long a token is valid: SPIRE's default.
const TTL: Duration = Duration::from_secs(5 * 60);
/// The longest token looked at, in bytes.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// The one JWT authority.
pub(super) struct JwtKey {
    key: EcdsaKeyPair,
    id: String,
}

impl JwtKey {
    pub(super) fn new() -> Result<Self, AuthorityError> {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(sign)?;
        let fingerprint = digest(&SHA256, key.public_key().as_ref());
        let id = Base64UrlUnpadded::encode_string(&fingerprint.as_ref()[..16]);
        Ok(Self { key, id })
    }

    /// The JWK set of the trust domain.
    pub(super) fn jwks(&self) -> Vec<u8> {
        // An uncompressed point: 4, x, y.
        let (x, y) = self.key.public_key().as_ref()[1..].split_at(32);
        let set = json!({"keys": [{
            "kty": "EC",
            "kid": self.id,
            "use": "jwt-svid",
            "crv": "P-256",
            "x": Base64UrlUnpadded::encode_string(x),
            "y": Base64UrlUnpadded::encode_string(y),
        }]});
        set.to_string().into_bytes()
    }

    pub(super) fn token(
        &self,
        subject: &SpiffeId,
        audience: &[String],
        now: SystemTime,
    ) -> Result<String, AuthorityError> {
        let now = unix(now);
        let header = json!({"alg": "ES256", "kid": self.id, "typ": "JWT"});
        let claims = json!({
            "sub": subject.to_string(),
            "aud": audience,
            "iat": now,
            "exp": now + TTL.as_secs(),
        });
        let encode = |part: Value| Base64UrlUnpadded::encode_string(part.to_string().as_bytes());
        let signed = format!("{}.{}", encode(header), encode(claims));
        let signature = self
            .key
            .sign(&SystemRandom::new(), signed.as_bytes())
            .map_err(sign)?;
        Ok(format!(
            "{signed}.{}",
            Base64UrlUnpadded::encode_string(signature.as_ref())
        ))
    }

    /// Verifies a token for an audience: its subject and claims, or what is wrong with it.
    pub(super) fn validate(
        &self,
        token: &str,
        audience: &str,
        now: SystemTime,
    ) -> Result<(SpiffeId, Map<String, Value>), &'static str> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err("the token is too long");
        }
        let (signed, signature) = token.rsplit_once('.').ok_or("it is no JWS")?;
        let (header, claims) = signed.split_once('.').ok_or("it is no JWS")?;
        let header = decode(header)?;
        if header.get("alg").and_then(Value::as_str) != Some("ES256") {
            return Err("its algorithm is not ES256");
        }
        if header.get("kid").and_then(Value::as_str) != Some(&self.id) {
            return Err("no authority has its key id");
        }
        let signature = Base64UrlUnpadded::decode_vec(signature)
            .map_err(|_| "its signature is no base64url")?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key())
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| "its signature does not verify")?;
        let claims = decode(claims)?;
        let subject = check_claims(&claims, audience, now)?;
        Ok((subject, claims))
    }
}

fn check_claims(
    claims: &Map<String, Value>,
    audience: &str,
    now: SystemTime,
) -> Result<SpiffeId, &'static str> {
    let expires = claims.get("exp").and_then(Value::as_u64);
    if expires.ok_or("it has no expiry")? <= unix(now) {
        return Err("it has expired");
    }
    let meant = match claims.get("aud") {
        Some(Value::String(one)) => one == audience,
        Some(Value::Array(all)) => all.iter().any(|a| a.as_str() == Some(audience)),
        _ => false,
    };
    if !meant {
        return Err("it is meant for another audience");
    }
    let subject = claims.get("sub").and_then(Value::as_str);
    SpiffeId::new(subject.ok_or("it has no subject")?).map_err(|_| "its subject is no SPIFFE ID")
}

fn decode(part: &str) -> Result<Map<String, Value>, &'static str> {
    let json = Base64UrlUnpadded::decode_vec(part).map_err(|_| "it is no base64url")?;
    serde_json::from_slice(&json).map_err(|_| "it is no JSON object")
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_token_is_good_for_its_audience_its_time_its_key_and_unchanged() {
        let (key, other) = (JwtKey::new().unwrap(), JwtKey::new().unwrap());
        let id = SpiffeId::new("spiffe://a.b/c").unwrap();
        let now = SystemTime::now();
        let token = key.token(&id, &["x".into(), "y".into()], now).unwrap();
        let (subject, claims) = key.validate(&token, "y", now).unwrap();
        assert_eq!(subject, id);
        assert_eq!(
            claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(),
            300
        );
        assert_eq!(
            key.validate(&token, "z", now).unwrap_err(),
            "it is meant for another audience"
        );
        assert_eq!(
            key.validate(&token, "y", now + TTL).unwrap_err(),
            "it has expired"
        );
        assert!(other.validate(&token, "y", now).is_err());
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let forged = format!("{}.{signature}", signed.replacen('.', ".e30", 1));
        assert_eq!(
            key.validate(&forged, "y", now).unwrap_err(),
            "its signature does not verify"
        );
        for bad in ["", ".", "..", "a.b.c", "e30.e30.", &"x".repeat(20_000)] {
            assert!(key.validate(bad, "y", now).is_err(), "{bad:.20}");
        }
    }
}

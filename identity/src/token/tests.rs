//! Tokens that are good, and all the ways in which they are not.
#![allow(clippy::unwrap_used)]
use super::*;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256,
};
use rustls::pki_types::CertificateDer;
use serde_json::{Map, Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const KID: &str = "2026-11";

struct Issuer {
    pem: String,
    key: SigningKey,
    keys: KeySet,
}

impl Issuer {
    fn new() -> Self {
        Self::of(&PKCS_ECDSA_P256_SHA256)
    }

    fn of(kind: &'static rcgen::SignatureAlgorithm) -> Self {
        let pem = KeyPair::generate_for(kind).unwrap().serialize_pem();
        let key = SigningKey::from_pem(pem.as_bytes()).unwrap();
        let keys = KeySet::parse(key.key_set(KID).to_string().as_bytes()).unwrap();
        Self { pem, key, keys }
    }

    fn sign(&self, claims: &Value) -> String {
        self.key.sign(claims.as_object().unwrap(), KID).unwrap()
    }
}

fn certificate(name: &str) -> Thumbprint {
    Thumbprint::of(&CertificateDer::from(name.as_bytes()))
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// Good for the certificate `mine`, with some claims changed; `null` takes one away.
fn claims(changed: Value) -> Value {
    let mut claims = Map::new();
    claims.extend([
        ("iss".to_owned(), json!("https://issuer.example")),
        ("aud".to_owned(), json!("portarium-gateway")),
        ("sub".to_owned(), json!("planner")),
        ("jti".to_owned(), json!("t-1")),
        ("iat".to_owned(), json!(1_799_999_990)),
        ("exp".to_owned(), json!(1_800_000_300)),
    ]);
    bind(&mut claims, &certificate("mine"));
    for (name, value) in changed.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.remove(name)),
            value => drop(claims.insert(name.clone(), value.clone())),
        }
    }
    Value::Object(claims)
}

fn verify(token: &str, keys: &KeySet, connection: &str) -> Result<Bearer, TokenError> {
    let rules = TokenRules {
        issuer: "https://issuer.example".into(),
        audience: "portarium-gateway".into(),
    };
    rules.verify(token, keys, &certificate(connection), now())
}

#[test]
fn a_token_is_good_over_the_connection_that_it_is_bound_to_and_over_no_other() {
    for kind in [
        &PKCS_ECDSA_P256_SHA256,
        &PKCS_ECDSA_P384_SHA384,
        &PKCS_ED25519,
        &PKCS_RSA_SHA256,
    ] {
        let issuer = Issuer::of(kind);
        let token = issuer.sign(&claims(json!({})));
        let bearer = verify(&token, &issuer.keys, "mine").unwrap();
        assert_eq!(bearer.subject.as_deref(), Some("planner"));
        assert_eq!(bearer.id.as_deref(), Some("t-1"));
        let replayed = verify(&token, &issuer.keys, "another workload's");
        assert_eq!(replayed, Err(TokenError::BoundToAnother));
    }
}

#[test]
fn a_token_with_a_wrong_claim_is_refused_for_that_claim() {
    use TokenError as E;
    let issuer = Issuer::new();
    let forever = 9_999_999_999_u64;
    for (changed, expected) in [
        (json!({"iss": "https://other.example"}), E::Issuer),
        (json!({"iss": null}), E::Issuer),
        (json!({"aud": "other-gateway"}), E::Audience),
        (json!({"aud": []}), E::Audience),
        (json!({"aud": null}), E::Audience),
        (json!({"exp": 1_800_000_000}), E::Expired),
        (json!({"exp": -1}), E::Expired),
        (json!({"exp": null}), E::NoExpiry),
        (json!({"exp": "1800000300"}), E::Malformed),
        (json!({"nbf": 1_800_000_006}), E::NotYetValid),
        (json!({"iat": forever}), E::NotYetValid),
        (json!({"cnf": null}), E::NotBound),
        (json!({"cnf": {}}), E::NotBound),
        (
            json!({"cnf": {"jkt": certificate("mine").to_string()}}),
            E::NotBound,
        ),
        (json!({"cnf": {"x5t#S256": ""}}), E::BoundToAnother),
        (json!({"cnf": {"x5t#S256": 1}}), E::Malformed),
    ] {
        let token = issuer.sign(&claims(changed.clone()));
        assert_eq!(
            verify(&token, &issuer.keys, "mine"),
            Err(expected),
            "{changed}"
        );
    }
    for good in [
        json!({"aud": ["a", "portarium-gateway"]}),
        json!({"exp": 1_800_000_000.5, "nbf": 1_800_000_005}),
        json!({"sub": null, "jti": null, "iat": null}),
    ] {
        let token = issuer.sign(&claims(good.clone()));
        assert!(verify(&token, &issuer.keys, "mine").is_ok(), "{good}");
    }
}

#[test]
fn no_algorithm_but_that_of_the_key_is_taken() {
    let issuer = Issuer::new();
    let good = issuer.sign(&claims(json!({})));
    let (_, rest) = good.split_once('.').unwrap();
    let (payload, _) = rest.split_once('.').unwrap();
    let header = |json: &str| {
        use base64ct::{Base64UrlUnpadded, Encoding as _};
        Base64UrlUnpadded::encode_string(json.as_bytes())
    };
    for none in ["none", "None", "NONE", ""] {
        let head = header(&json!({"alg": none, "kid": KID}).to_string());
        let token = format!("{head}.{payload}.");
        assert_eq!(
            verify(&token, &issuer.keys, "mine"),
            Err(TokenError::Malformed),
            "{none}"
        );
    }
    // The public key, which everyone has, as a shared secret.
    let public = issuer.key.key_set(KID).to_string();
    for secret in [public.as_bytes(), issuer.pem.as_bytes()] {
        let head = Header {
            kid: Some(KID.into()),
            ..Header::new(Algorithm::HS256)
        };
        let token = encode(&head, &claims(json!({})), &EncodingKey::from_secret(secret)).unwrap();
        assert_eq!(
            verify(&token, &issuer.keys, "mine"),
            Err(TokenError::Algorithm)
        );
    }
    let other = Issuer::new().sign(&claims(json!({})));
    assert_eq!(
        verify(&other, &issuer.keys, "mine"),
        Err(TokenError::Signature)
    );
    let other = Issuer::of(&PKCS_ECDSA_P384_SHA384).sign(&claims(json!({})));
    assert_eq!(
        verify(&other, &issuer.keys, "mine"),
        Err(TokenError::Algorithm)
    );
}

#[test]
fn what_is_no_token_of_a_known_key_is_refused() {
    let issuer = Issuer::new();
    let claims = claims(json!({}));
    let unknown = issuer
        .key
        .sign(claims.as_object().unwrap(), "another")
        .unwrap();
    assert_eq!(
        verify(&unknown, &issuer.keys, "mine"),
        Err(TokenError::UnknownKey)
    );
    let sign = |head: Header| {
        let der = KeyPair::from_pem(&issuer.pem).unwrap().serialize_der();
        encode(&head, &claims, &EncodingKey::from_ec_der(&der)).unwrap()
    };
    let nameless = sign(Header::new(Algorithm::ES256));
    assert_eq!(
        verify(&nameless, &issuer.keys, "mine"),
        Err(TokenError::NoKeyId)
    );
    let critical = Header {
        kid: Some(KID.into()),
        crit: Some(vec!["http://example.com/UNDEFINED".into()]),
        ..Header::new(Algorithm::ES256)
    };
    assert_eq!(
        verify(&sign(critical), &issuer.keys, "mine"),
        Err(TokenError::Malformed)
    );
    let good = issuer.sign(&claims);
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let (head, payload) = signed.split_once('.').unwrap();
    for (bad, expected) in [
        (String::new(), TokenError::Malformed),
        ("..".into(), TokenError::Malformed),
        (format!("{signed}."), TokenError::Signature),
        (
            format!("{head}.{payload}e30.{signature}"),
            TokenError::Signature,
        ),
        (format!("{good}.x"), TokenError::Malformed),
        ("x".repeat(9_000), TokenError::TooLong),
    ] {
        assert_eq!(
            verify(&bad, &issuer.keys, "mine"),
            Err(expected),
            "{bad:.40}"
        );
    }
}

#[test]
fn only_public_keys_for_signatures_are_taken_into_a_set() {
    let issuer = Issuer::new();
    let good = issuer.key.key_set(KID)["keys"][0].clone();
    let with = |name: &str, value: Value| {
        let mut key = good.clone();
        key[name] = value;
        key
    };
    for bad in [
        with("kid", json!("")),
        with("kid", Value::Null),
        with("use", json!("enc")),
        with("alg", json!("ES384")),
        with("alg", json!("HS256")),
        with("crv", json!("P-521")),
        with("d", json!("AAAA")),
        json!({"kty": "oct", "kid": KID, "k": "AAAA"}),
        json!({"kty": "RSA", "kid": KID, "n": "AQAB", "e": "AQAB"}),
        json!({"kty": "new", "kid": KID}),
        json!(7),
    ] {
        let set = json!({ "keys": [bad] }).to_string();
        let parsed = KeySet::parse(set.as_bytes());
        assert!(matches!(parsed, Err(KeySetError::NoKey)), "{set}");
        let set = json!({ "keys": [bad, good] }).to_string();
        assert_eq!(KeySet::parse(set.as_bytes()).unwrap().len(), 1, "{set}");
    }
    let many = json!({ "keys": vec![good.clone(); 101] }).to_string();
    assert!(matches!(
        KeySet::parse(many.as_bytes()),
        Err(KeySetError::TooMany(101))
    ));
    for no_set in ["", "{}", "[]", "{\"keys\":{}}", "<html>"] {
        let parsed = KeySet::parse(no_set.as_bytes());
        assert!(matches!(parsed, Err(KeySetError::Syntax(_))), "{no_set}");
    }
    assert!(
        KeySet::parse(
            json!({"keys": [with("use", json!("jwt-svid"))]})
                .to_string()
                .as_bytes()
        )
        .is_ok()
    );
}

#[test]
fn binding_sets_the_thumbprint_and_leaves_what_else_is_confirmed() {
    let mut claims = Map::new();
    claims.insert("cnf".into(), json!({"jkt": "x", "x5t#S256": "old"}));
    bind(&mut claims, &certificate("mine"));
    assert_eq!(claims["cnf"]["jkt"], "x");
    assert_eq!(claims["cnf"]["x5t#S256"], certificate("mine").to_string());
    assert_eq!(certificate("mine").to_string().len(), 43);
}

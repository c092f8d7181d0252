//! Mutual TLS with peers that are not as they should be.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Accepted, Agent, Connected, DOMAIN, anyone, id, name, ready, shake, tcp};
use portarium_identity::{
    ClientTls, ServerTls,
    authority::{Authority, MintSpec, Minted},
};
use rustls::{
    AlertDescription, ClientConfig, HandshakeKind, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
};
use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, TlsConnector};

fn material(minted: &Minted) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = minted
        .chain_der
        .iter()
        .cloned()
        .map(CertificateDer::from)
        .collect();
    let key = PrivatePkcs8KeyDer::from(minted.key_pkcs8_der.to_vec());
    (chain, PrivateKeyDer::Pkcs8(key))
}

fn roots(authority: &Authority) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authority.bundle().into_iter().map(CertificateDer::from));
    Arc::new(roots)
}

/// A stranger's client with a certificate of its own. It trusts the authority, and names: the
/// server it calls has the DNS name of its SVID.
fn stranger(authority: &Authority, minted: Option<&Minted>) -> ClientConfig {
    let config = ClientConfig::builder().with_root_certificates(roots(authority));
    match minted.map(material) {
        Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
        None => config.with_no_client_auth(),
    }
}

/// What our server says to a stranger that calls.
async fn answer(server: &ServerTls, stranger: ClientConfig) -> Accepted {
    let (near, far) = tcp().await;
    let dns_name = ServerName::try_from("server.test").unwrap();
    let connector = TlsConnector::from(Arc::new(stranger));
    let calling = async {
        let mut stream = connector.connect(dns_name, near).await?;
        stream.read(&mut [0]).await
    };
    tokio::select! {
        accepted = server.accept(far) => accepted,
        () = async { let _: io::Result<usize> = calling.await; std::future::pending().await } => unreachable!(),
    }
}

/// What our client says to a stranger that it calls.
async fn call(client: &ClientTls, minted: &Minted) -> Connected {
    let (chain, key) = material(minted);
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let (near, far) = tcp().await;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (connected, _) = tokio::join!(client.connect(name(), near), acceptor.accept(far));
    connected
}

fn svid(name: &str) -> MintSpec {
    MintSpec::svid(id(name), Duration::from_secs(600))
}

#[tokio::test]
async fn only_a_valid_svid_of_our_authority_is_let_in() {
    let agent = Agent::start(&["server"]).await;
    let manager = agent.manager("server");
    ready(&manager).await;
    let server = manager.server_tls(anyone(), &[]);
    let client = manager.client_tls(anyone(), &[]);
    let foreign = Agent::start(&[]).await;
    let now = SystemTime::now();
    let uris = |uris: &[&str]| MintSpec {
        uris: uris.iter().map(|u| (*u).to_owned()).collect(),
        ..svid("x")
    };
    let id = id("x");
    let domain = format!("spiffe://{DOMAIN}");
    let ca = MintSpec {
        is_ca: true,
        ..svid("x")
    };
    let expired = MintSpec {
        not_after: now - Duration::from_secs(1),
        ..svid("x")
    };
    let early = MintSpec {
        not_before: now + Duration::from_secs(60),
        ..svid("x")
    };
    for (what, spec, reason) in [
        ("no URI", uris(&[]), "no X.509-SVID"),
        (
            "two URIs",
            uris(&[&id, "https://x.example"]),
            "more than one URI SAN",
        ),
        ("two SPIFFE IDs", uris(&[&id, &id]), "more than one URI SAN"),
        (
            "no SPIFFE ID",
            uris(&["https://x.example/a"]),
            "no SPIFFE ID",
        ),
        ("no path", uris(&[&domain]), "has no path"),
        (
            "more than 2048 bytes",
            uris(&[&format!("{id}{}", "x".repeat(2048))]),
            "longer than 2048 bytes",
        ),
        (
            "upper case",
            uris(&[&id.replace(DOMAIN, &DOMAIN.to_uppercase())]),
            "has upper case",
        ),
        (
            "another trust domain",
            uris(&["spiffe://other.test/ns/a/sa/b"]),
            "no trust bundle",
        ),
        ("a CA", ca, "is a CA certificate"),
        ("expired", expired, "xpired"),
        ("not yet valid", early, "not valid yet"),
    ] {
        let minted = agent.authority.mint(&spec).unwrap();
        let refused = answer(&server, stranger(&agent.authority, Some(&minted))).await;
        let refused = refused.map(|_| what).unwrap_err().to_string();
        assert!(refused.contains(reason), "{what}: {refused}");
        let refused = call(&client, &minted)
            .await
            .map(|_| what)
            .unwrap_err()
            .to_string();
        assert!(refused.contains(reason), "{what}: {refused}");
    }
    let minted = foreign.authority.mint(&svid("x")).unwrap();
    let refused = answer(&server, stranger(&agent.authority, Some(&minted)))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("UnknownIssuer"), "{refused}");
    assert_eq!(manager.stats().server.untrusted, 12);
    let minted = agent.authority.mint(&svid("x")).unwrap();
    let admitted = answer(&server, stranger(&agent.authority, Some(&minted))).await;
    assert_eq!(admitted.unwrap().1.spiffe_id.to_string(), id);
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let agent = Agent::start(&["server"]).await;
    let manager = agent.manager("server");
    ready(&manager).await;
    let server = manager.server_tls(anyone(), &[]);
    let refused = answer(&server, stranger(&agent.authority, None))
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("peer sent no certificates"),
        "{refused}"
    );
    assert_eq!(manager.stats().server.no_certificate, 1);
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let agent = Agent::start(&["server"]).await;
    let manager = agent.manager("server");
    ready(&manager).await;
    let server = manager.server_tls(anyone(), &[]);
    let (mut near, far) = tcp().await;
    near.write_all(&tls12_hello()).await.unwrap();
    let refused = server.accept(far).await.unwrap_err();
    assert!(
        refused.to_string().contains("peer is incompatible"),
        "{refused}"
    );
    let mut alert = [0; 7];
    near.read_exact(&mut alert).await.unwrap();
    let version = u8::from(AlertDescription::ProtocolVersion);
    assert_eq!((alert[0], alert[5], alert[6]), (21, 2, version));
    assert_eq!(manager.stats().server.protocol, 1);
}

/// A ClientHello of TLS 1.2: X25519, ECDHE-ECDSA with AES-128-GCM.
fn tls12_hello() -> Vec<u8> {
    let extensions = [
        &[0, 10, 0, 4, 0, 2, 0, 29][..], // supported_groups: x25519
        &[0, 11, 0, 2, 1, 0],            // ec_point_formats: uncompressed
        &[0, 13, 0, 4, 0, 2, 4, 3],      // signature_algorithms: ecdsa_secp256r1_sha256
        &[0, 23, 0, 0],                  // extended_master_secret
    ]
    .concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let length = u16::try_from(body.len()).unwrap();
    let mut hello = vec![22, 3, 1];
    hello.extend((length + 4).to_be_bytes());
    hello.extend([1, 0]);
    hello.extend(length.to_be_bytes());
    hello.extend(body);
    hello
}

#[tokio::test]
async fn no_session_is_resumed() {
    let agent = Agent::start(&["server"]).await;
    let manager = agent.manager("server");
    ready(&manager).await;
    let server = manager.server_tls(anyone(), &[]);
    let minted = agent.authority.mint(&svid("x")).unwrap();
    // With a session cache, as rustls has by default.
    let connector = TlsConnector::from(Arc::new(stranger(&agent.authority, Some(&minted))));
    for _ in 0..3 {
        let (near, far) = tcp().await;
        let dns_name = ServerName::try_from("server.test").unwrap();
        let (connected, accepted) =
            tokio::join!(connector.connect(dns_name, near), server.accept(far));
        let (mut near, (mut far, _)) = (connected.unwrap(), accepted.unwrap());
        far.write_all(b"x").await.unwrap();
        near.read_exact(&mut [0]).await.unwrap();
        let session = near.get_ref().1;
        assert_eq!(session.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(session.tls13_tickets_received(), 0);
    }
}

#[tokio::test]
async fn garbage_is_no_handshake_and_harms_nothing() {
    let agent = Agent::start(&["gw"]).await;
    let manager = agent.manager("gw");
    ready(&manager).await;
    let server = manager.server_tls(anyone(), &[]);
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 64],
        &[22, 3, 1, 0xff, 0xff, 1],
        b"",
    ] {
        let (mut near, far) = tcp().await;
        near.write_all(garbage).await.unwrap();
        drop(near);
        assert!(server.accept(far).await.is_err());
    }
    let (connected, accepted) = shake(&manager.client_tls(anyone(), &[]), &server).await;
    assert!(connected.is_ok() && accepted.is_ok());
}

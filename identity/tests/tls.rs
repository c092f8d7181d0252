//! Mutual TLS over sockets, between managers and with peers that are not as they should be.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Agent, DOMAIN, admit, after, anyone, id, ready};
use portarium_identity::{
    ClientTls, IdentityError, IdentityState, Peer, ServerTls, TlsError,
    authority::{Authority, MintSpec, Minted},
};
use rustls::{
    AlertDescription, ClientConfig, HandshakeKind, ProtocolVersion, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
};
use std::{
    collections::HashMap,
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

type Accepted = Result<(server::TlsStream<TcpStream>, Peer), TlsError>;
type Connected = Result<(client::TlsStream<TcpStream>, Peer), TlsError>;

fn name() -> ServerName<'static> {
    "whatever.example".try_into().unwrap()
}

async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// A handshake between two of ours; the server's word is the last one in TLS 1.3.
async fn shake(client: &ClientTls, server: &ServerTls) -> (Connected, Accepted) {
    let (near, far) = tcp().await;
    tokio::join!(client.connect(name(), near), server.accept(far))
}

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
async fn both_sides_know_each_other_and_speak_as_configured() {
    let agent = Agent::start(&["client", "server"]).await;
    let (c, s) = (agent.manager("client"), agent.manager("server"));
    let (own, other) = (ready(&c).await, ready(&s).await);
    let client = c.client_tls(admit(&id("server")), &[b"h2"]);
    let server = s.server_tls(admit(&id("client")), &[b"h2", b"x"]);
    let (connected, accepted) = shake(&client, &server).await;
    let (mut near, there) = connected.unwrap();
    let (mut far, here) = accepted.unwrap();
    assert_eq!(
        (there.spiffe_id.to_string(), &there.serial),
        (id("server"), &other.serial)
    );
    assert_eq!(
        (here.spiffe_id.to_string(), &here.serial),
        (id("client"), &own.serial)
    );
    assert_eq!(
        (there.own_generation, there.own_not_after),
        (own.generation, own.not_after)
    );
    assert_eq!(
        (there.not_after, here.own_not_after),
        (other.not_after, other.not_after)
    );
    let lease = there.lease(SystemTime::now()).ends - tokio::time::Instant::now();
    assert!((3_590..3_600).contains(&lease.as_secs()), "{lease:?}");
    let session = near.get_ref().1;
    assert_eq!(session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
    let group = session.negotiated_key_exchange_group().unwrap();
    assert_eq!(group.name(), rustls::NamedGroup::X25519);
    near.write_all(b"ping").await.unwrap();
    let mut text = [0; 4];
    far.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"ping");
    assert_eq!((c.stats().client.ok, s.stats().server.ok), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_handshake_presents_and_reports_the_same_generation_while_svids_rotate() {
    let agent = Agent::start(&["client", "server"]).await;
    let (c, s) = (agent.manager("client"), agent.manager("server"));
    ready(&c).await;
    ready(&s).await;
    let (client, server) = (c.client_tls(anyone(), &[]), s.server_tls(anyone(), &[]));
    let mut seen = HashMap::new();
    for turn in 0..200 {
        agent.authority.rotate();
        if turn % 10 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let (connected, accepted) = shake(&client, &server).await;
        let (there, here) = (connected.unwrap().1, accepted.unwrap().1);
        for (side, generation, serial) in [
            ("client", there.own_generation, here.serial),
            ("server", here.own_generation, there.serial),
        ] {
            let known = seen
                .entry((side, generation))
                .or_insert_with(|| serial.clone());
            assert_eq!(*known, serial, "one generation, one certificate");
        }
    }
    assert!(seen.len() > 20, "{} generations", seen.len());
}

#[tokio::test]
async fn a_new_generation_is_what_the_next_handshake_presents() {
    let agent = Agent::start(&["client", "server"]).await;
    let (c, s) = (agent.manager("client"), agent.manager("server"));
    let (client, server) = (c.client_tls(anyone(), &[]), s.server_tls(anyone(), &[]));
    let (first, _) = (ready(&c).await, ready(&s).await);
    let (config, seen) = client.config().unwrap();
    for generation in 1..5 {
        let (near, far) = tcp().await;
        let connector = TlsConnector::from(Arc::clone(&config));
        let (connected, accepted) =
            tokio::join!(connector.connect(name(), near), server.accept(far));
        connected.unwrap();
        let (here, there) = (accepted.unwrap().1, seen.borrow().clone().unwrap());
        let (own, other) = (c.current().unwrap(), s.current().unwrap());
        assert_eq!((&here.serial, &there.serial), (&own.serial, &other.serial));
        assert_eq!(
            (there.own_generation, there.own_not_after),
            (generation, own.not_after)
        );
        agent.authority.rotate();
        assert_ne!(after(&c, generation).await.serial, first.serial);
        after(&s, generation).await;
    }
    assert_eq!(c.stats().client.ok, 4);
}

#[tokio::test]
async fn before_the_first_svid_there_is_no_configuration() {
    let agent = Agent::start(&[]).await;
    let manager = agent.manager("gw");
    common::until_state(&manager, &IdentityState::PermissionDenied).await;
    let client = manager.client_tls(anyone(), &[]);
    let denied = |error| {
        matches!(
            error,
            IdentityError::NotReady(IdentityState::PermissionDenied)
        )
    };
    assert!(denied(client.config().err().unwrap()));
    let (near, far) = tcp().await;
    assert!(client.connect(name(), near).await.is_err());
    assert!(manager.server_tls(anyone(), &[]).accept(far).await.is_err());
    assert_eq!(
        (
            manager.stats().client.no_identity,
            manager.stats().server.no_identity
        ),
        (1, 1)
    );
}

#[tokio::test]
async fn who_the_policy_does_not_name_is_refused_on_either_side() {
    let agent = Agent::start(&["client", "server"]).await;
    let (c, s) = (agent.manager("client"), agent.manager("server"));
    ready(&c).await;
    ready(&s).await;
    let nobody = || portarium_identity::PeerPolicy::new([]);
    for policy in [
        admit(&id("robot")),
        admit("spiffe://other.test/ns/test/sa/client"),
        nobody(),
    ] {
        let client = c.client_tls(policy.clone(), &[]);
        let refused = shake(&client, &s.server_tls(anyone(), &[]))
            .await
            .0
            .unwrap_err();
        assert!(refused.to_string().contains("does not admit"), "{refused}");
        let server = s.server_tls(policy, &[]);
        let refused = shake(&c.client_tls(anyone(), &[]), &server)
            .await
            .1
            .unwrap_err();
        assert!(refused.to_string().contains("does not admit"), "{refused}");
    }
    assert_eq!(
        (c.stats().client.not_admitted, s.stats().server.not_admitted),
        (3, 3)
    );
}

#[tokio::test]
async fn a_replaced_policy_holds_for_the_next_handshake_and_for_rechecks() {
    let agent = Agent::start(&["client", "server"]).await;
    let (c, s) = (agent.manager("client"), agent.manager("server"));
    ready(&c).await;
    ready(&s).await;
    let (client, server) = (c.client_tls(anyone(), &[]), s.server_tls(anyone(), &[]));
    let (_near, accepted) = shake(&client, &server).await;
    let (live, _) = accepted.unwrap();
    let chain = live.get_ref().1.peer_certificates().unwrap();
    assert!(server.recheck(chain).is_ok());
    server.replace_policy(admit(&id("robot")));
    assert!(
        server
            .recheck(chain)
            .unwrap_err()
            .to_string()
            .contains("does not admit")
    );
    assert!(shake(&client, &server).await.1.is_err());
    server.replace_policy(admit(&id("client")));
    assert!(server.recheck(chain).is_ok());
    assert!(shake(&client, &server).await.1.is_ok());
}

#[tokio::test]
async fn another_authority_of_the_same_trust_domain_is_no_authority() {
    let (ours, theirs) = (Agent::start(&["gw"]).await, Agent::start(&["gw"]).await);
    let (us, them) = (ours.manager("gw"), theirs.manager("gw"));
    ready(&us).await;
    ready(&them).await;
    let client = us.client_tls(anyone(), &[]);
    let refused = shake(&client, &them.server_tls(anyone(), &[]))
        .await
        .0
        .unwrap_err();
    assert!(refused.to_string().contains("UnknownIssuer"), "{refused}");
    assert_eq!(us.stats().client.untrusted, 1);
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
    assert_eq!(manager.stats().server.untrusted, 10);
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
async fn a_handshake_that_stalls_ends_after_five_seconds() {
    let agent = Agent::start(&["gw"]).await;
    let manager = agent.manager("gw");
    ready(&manager).await;
    let (server, client) = (
        manager.server_tls(anyone(), &[]),
        manager.client_tls(anyone(), &[]),
    );
    let (_silent_client, for_server) = tokio::io::duplex(4_096);
    let (_silent_server, for_client) = tokio::io::duplex(4_096);
    let start = std::time::Instant::now();
    let (accepted, connected) = tokio::join!(
        server.accept(for_server),
        client.connect(name(), for_client)
    );
    assert!(matches!(accepted, Err(TlsError::Timeout(_))));
    assert!(matches!(connected, Err(TlsError::Timeout(_))));
    assert!((5..7).contains(&start.elapsed().as_secs()));
    assert_eq!(
        (
            manager.stats().server.timeout,
            manager.stats().client.timeout
        ),
        (1, 1)
    );
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

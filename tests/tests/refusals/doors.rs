//! Connections that do not come about.

use crate::{
    TTL,
    common::{LIMIT, World, assert_contains, id},
    text,
};
use portarium_gateway::dev::hints;
use portarium_identity::authority::{Authority, AuthorityConfig, Entry, MintSpec, Minted};
use serde_json::Value;
use std::time::{Duration, SystemTime};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

#[tokio::test]
async fn whoever_cannot_show_an_admitted_svid_gets_no_connection_and_is_audited() {
    let world = World::new(TTL).await;
    let _gateway = world.serve().await;
    let mint = |spec: MintSpec| world.stage.authority.mint(&spec).unwrap();
    let control_plane = id(hints::CONTROL_PLANE);
    let short = Duration::from_secs(300);
    let svid = |id: &str| MintSpec::svid(id, short);
    let foreign = foreign("portarium.robotics", &control_plane).await;
    let other_domain = foreign_domain().await;
    let wrong_path = "spiffe://portarium.robotics/ns/portarium/sa/control-plane";
    let longer_path = "spiffe://portarium.robotics/ns/portarium/sa/control-plane/dev/more";
    let stranger = id("stranger");
    let past = SystemTime::now() - Duration::from_secs(60);
    let future = SystemTime::now() + Duration::from_secs(120);

    // What is shown, what the audit says of it, and whom it names where that is proven.
    let cases: Vec<(&str, Option<Minted>, &str, Option<&str>)> = vec![
        ("no certificate", None, "no certificate", None),
        ("a foreign CA", Some(foreign), "UnknownIssuer", None),
        (
            "another trust domain",
            Some(other_domain),
            "other.example",
            None,
        ),
        (
            "an ID that is not admitted",
            Some(mint(svid(&stranger))),
            "TLS handshake: the policy does not admit",
            Some(&stranger),
        ),
        (
            "a part of the path",
            Some(mint(svid(wrong_path))),
            "TLS handshake: the policy does not admit",
            Some(wrong_path),
        ),
        (
            "a longer path",
            Some(mint(svid(longer_path))),
            "TLS handshake: the policy does not admit",
            Some(longer_path),
        ),
        (
            "an expired SVID",
            Some(mint(MintSpec {
                not_before: past - short,
                not_after: past,
                ..svid(&control_plane)
            })),
            "expired",
            None,
        ),
        (
            "an SVID of tomorrow",
            Some(mint(MintSpec {
                not_before: future,
                not_after: future + short,
                ..svid(&control_plane)
            })),
            "not valid yet",
            None,
        ),
        (
            "two IDs",
            Some(mint(MintSpec {
                uris: vec![control_plane.clone(), stranger.clone()],
                ..svid(&control_plane)
            })),
            "more than one URI SAN",
            None,
        ),
        (
            "a CA certificate",
            Some(mint(MintSpec {
                is_ca: true,
                ..svid(&control_plane)
            })),
            "CA certificate",
            None,
        ),
        (
            "no ID at all",
            Some(mint(MintSpec {
                uris: Vec::new(),
                dns_names: vec!["localhost".into()],
                ..svid(&control_plane)
            })),
            "no URI SAN",
            None,
        ),
    ];
    let count = cases.len();
    for (what, shown, reason, caller) in cases {
        let seen = world.audit().len();
        let failed = world.show(shown.as_ref()).await;
        assert!(failed.is_err(), "{what} was let in: {failed:?}");
        let line = handshake(&world, seen, what).await;
        assert_contains(text(&line["reason"]), reason);
        assert_eq!(line["caller"].as_str(), caller, "{what}: {line}");
        println!(
            "{what}: {} / {}",
            failed.unwrap_err(),
            text(&line["reason"])
        );
    }

    // And the door does open.
    let let_in = world.show(Some(&mint(svid(&control_plane)))).await.unwrap();
    assert!(!let_in.is_empty());
    println!("{count} certificates refused and audited");
}

#[tokio::test]
async fn plaintext_gets_no_answer_and_is_audited() {
    let world = World::new(TTL).await;
    let _gateway = world.serve().await;
    let seen = world.audit().len();
    let mut tcp = TcpStream::connect(("127.0.0.1", world.grpc)).await.unwrap();
    tcp.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    // A TLS alert at most, and the end.
    let read = timeout(LIMIT, tcp.read_to_end(&mut answer)).await.unwrap();
    assert!(read.is_err() || answer.len() <= 7, "{answer:?}");
    handshake(&world, seen, "plaintext").await;

    // Who only looks whether the port is open is no refusal.
    let refusals = || {
        let lines = world.audit().into_iter();
        lines.filter(|line| line["decision"] == "refused").count()
    };
    let (seen, before) = (world.audit().len(), refusals());
    drop(TcpStream::connect(("127.0.0.1", world.grpc)).await.unwrap());
    let marker = world.show(None).await;
    assert!(marker.is_err());
    handshake(&world, seen, "the marker").await;
    assert_eq!(refusals(), before + 1, "{:?}", world.audit());
}

async fn handshake(world: &World, seen: usize, what: &str) -> Value {
    let line = world
        .audited(seen, what, |line| {
            line["method"] == "handshake" && line["decision"] == "refused"
        })
        .await;
    assert_contains(text(&line["remote"]), "127.0.0.1:");
    line
}

async fn foreign_domain() -> Minted {
    foreign(
        "other.example",
        "spiffe://other.example/ns/portarium/sa/control-plane/dev",
    )
    .await
}

/// An SVID of an authority that nobody here trusts.
async fn foreign(trust_domain: &str, spiffe_id: &str) -> Minted {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::start(AuthorityConfig {
        trust_domain: trust_domain.into(),
        socket: dir.path().join("agent.sock"),
        svid_ttl: TTL,
        entries: Vec::<Entry>::new(),
    });
    let authority = authority.await.unwrap();
    authority.mint(&MintSpec::svid(spiffe_id, TTL)).unwrap()
}

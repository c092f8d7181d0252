//! Mutual TLS over sockets, between managers.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Agent, admit, after, anyone, entries, id, name, ready, shake, tcp, until};
use portarium_identity::{IdentityError, IdentityState, Peer, SvidManager, TlsError};
use rustls::ProtocolVersion;
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

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
    // One authority signed all of them.
    let authorities: Vec<_> = own.authorities().map(|(_, id)| Arc::clone(id)).collect();
    assert_eq!(authorities.len(), 1);
    assert_eq!(
        (&there.authorities, &here.authorities),
        (&authorities, &authorities)
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
    let (live, peer) = accepted.unwrap();
    let chain = live.get_ref().1.peer_certificates().unwrap();
    assert!(server.recheck(&peer, chain).is_ok());
    server.replace_policy(admit(&id("robot")));
    assert!(
        server
            .recheck(&peer, chain)
            .unwrap_err()
            .to_string()
            .contains("does not admit")
    );
    assert!(shake(&client, &server).await.1.is_err());
    server.replace_policy(admit(&id("client")));
    assert!(server.recheck(&peer, chain).is_ok());
    assert!(shake(&client, &server).await.1.is_ok());
}

#[tokio::test]
async fn a_recheck_looks_at_the_svid_that_was_shown_and_not_at_its_successor() {
    let agent = Agent::start(&["client", "server"]).await;
    let (c, s) = (agent.manager("client"), agent.manager("server"));
    ready(&c).await;
    ready(&s).await;
    let (client, server) = (c.client_tls(anyone(), &[]), s.server_tls(anyone(), &[]));
    let (_near, accepted) = shake(&client, &server).await;
    let (live, peer) = accepted.unwrap();
    let chain = live.get_ref().1.peer_certificates().unwrap();
    let slept_through = Peer {
        own_not_after: SystemTime::now() - Duration::from_secs(1),
        ..peer
    };
    let error = server.recheck(&slept_through, chain).unwrap_err();
    assert!(matches!(error, TlsError::OwnEnded), "{error}");
}

#[tokio::test]
async fn a_peer_rests_on_the_authority_that_signed_its_svid_and_not_on_the_newest() {
    let agent = Agent::start(&["client", "server"]).await;
    let (c, s) = (agent.manager("client"), agent.manager("server"));
    let own = ready(&s).await;
    let first = own.authorities().map(|(_, id)| Arc::clone(id)).next();
    agent.authority.prepare();
    agent.authority.activate();
    let known = |manager: &SvidManager| manager.current().map(|svid| svid.authorities().count());
    until("both to know the second", || {
        [&c, &s].map(known) == [Some(2); 2]
    })
    .await;
    // Both SVIDs are still of the first one.
    let (client, server) = (c.client_tls(anyone(), &[]), s.server_tls(anyone(), &[]));
    let (connected, accepted) = shake(&client, &server).await;
    let (_near, there) = connected.unwrap();
    let (_far, here) = accepted.unwrap();
    let first: Vec<_> = first.into_iter().collect();
    assert_eq!(
        (there.authorities, here.authorities),
        (first.clone(), first)
    );
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

/// Nothing of an SVID that was taken away, or has ended, while the other end let us wait.
#[tokio::test]
async fn an_svid_that_goes_in_the_middle_of_a_handshake_is_not_shown() {
    let agent = Agent::start(&["client", "server"]).await;
    let (c, s) = (agent.manager("client"), agent.manager("server"));
    ready(&c).await;
    ready(&s).await;
    let (client, server) = (c.client_tls(anyone(), &[]), s.server_tls(anyone(), &[]));
    let gone = async |manager: &SvidManager| {
        while manager.current().is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };

    // The server has accepted, and the client says nothing before the server's entry is deleted.
    let (near, far) = tcp().await;
    let accepting = tokio::spawn(async move { server.accept(far).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    agent.authority.set_entries(entries(&["client"]));
    gone(&s).await;
    let connected = client.connect(name(), near).await;
    assert!(connected.is_err(), "the server's SVID was shown");
    let refused = accepting.await.unwrap();
    assert!(
        matches!(refused, Err(TlsError::Identity(IdentityError::NotReady(_)))),
        "{:?}",
        refused.err()
    );
    assert_eq!(s.stats().server.no_identity, 1);

    // The client has spoken, and the server answers once the client's entry is deleted.
    agent.authority.set_entries(entries(&["client", "server"]));
    ready(&s).await;
    let server = s.server_tls(anyone(), &[]);
    let (near, far) = tcp().await;
    let connecting = tokio::spawn(async move { client.connect(name(), near).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    agent.authority.set_entries(entries(&["server"]));
    gone(&c).await;
    assert!(
        server.accept(far).await.is_err(),
        "the client's SVID was shown"
    );
    assert!(connecting.await.unwrap().is_err());
    assert_eq!(c.stats().client.no_identity, 1);
}

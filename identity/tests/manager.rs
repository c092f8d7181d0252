//! The manager against a real Workload API.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Agent, after, entries, follow, id, ready, serve, serve_for, until, until_state};
use portarium_identity::{IdentityError, IdentityState, SvidConfig, SvidManager};
use std::{
    os::unix::net::UnixListener,
    time::{Duration, SystemTime},
};

#[tokio::test]
async fn a_rotation_is_a_new_generation_and_an_equal_update_is_none() {
    let agent = Agent::start(&["gw"]).await;
    let manager = agent.manager("gw");
    let first = ready(&manager).await;
    assert_eq!(
        (first.generation, first.spiffe_id.to_string()),
        (1, id("gw"))
    );
    assert!(first.not_before < SystemTime::now() && SystemTime::now() < first.not_after);
    agent.authority.rotate();
    let second = after(&manager, 1).await;
    assert_eq!(second.generation, 2);
    assert_ne!(first.serial, second.serial);
    assert_ne!(*first.key_pem(), *second.key_pem());
    assert_eq!(first.bundle_pem(), second.bundle_pem());
    assert_eq!(manager.stats().rotations, 1);
}

#[tokio::test]
async fn an_svid_is_chosen_by_its_hint_whatever_the_order() {
    let agent = Agent::start(&["a", "b", "c"]).await;
    let manager = agent.manager("b");
    let mut generation = 0;
    for order in [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]] {
        agent.authority.set_entries(entries(&order));
        let snapshot = after(&manager, generation).await;
        assert_eq!(snapshot.spiffe_id.to_string(), id("b"));
        assert_eq!(snapshot.hint.as_deref(), Some("b"));
        generation = snapshot.generation;
    }
}

#[tokio::test]
async fn an_update_without_our_hint_takes_the_svid_away_and_no_other_takes_its_place() {
    let agent = Agent::start(&["gw", "other"]).await;
    let manager = agent.manager("gw");
    let mut snapshots = manager.snapshots();
    ready(&manager).await;
    snapshots.mark_unchanged();
    agent.authority.set_entries(entries(&["other", "another"]));
    snapshots.wait_for(Option::is_none).await.unwrap();
    assert!(manager.current().is_none());
    let state = IdentityState::NoSuchHint {
        wanted: Some("gw".into()),
        offered: vec!["another".into(), "other".into()],
    };
    assert_eq!(manager.state(), state);
    agent.authority.set_entries(entries(&["another", "gw"]));
    assert_eq!(ready(&manager).await.spiffe_id.to_string(), id("gw"));
    assert_eq!(manager.stats().reconnects, 0);
}

#[tokio::test]
async fn two_svids_with_our_hint_are_none() {
    let agent = Agent::start(&["gw"]).await;
    let mut both = entries(&["gw", "twin"]);
    both[1].hint = "gw".into();
    agent.authority.set_entries(both);
    let manager = agent.manager("gw");
    until("two with the hint", || {
        manager
            .state()
            .to_string()
            .contains("2 SVIDs with the hint")
    })
    .await;
    assert!(manager.current().is_none());
}

#[tokio::test]
async fn without_a_hint_there_must_be_exactly_one_svid() {
    let agent = Agent::start(&["a", "b"]).await;
    let manager = follow(&agent.socket(), None);
    let state = IdentityState::NoSuchHint {
        wanted: None,
        offered: vec!["a".into(), "b".into()],
    };
    until_state(&manager, &state).await;
    assert!(manager.current().is_none());
    agent.authority.set_entries(entries(&["b"]));
    assert_eq!(ready(&manager).await.spiffe_id.to_string(), id("b"));
}

#[tokio::test]
async fn permission_denied_ends_when_an_entry_appears_and_withdraws_when_it_goes() {
    let agent = Agent::start(&[]).await;
    let manager = agent.manager("gw");
    until_state(&manager, &IdentityState::PermissionDenied).await;
    agent.authority.set_entries(entries(&["gw"]));
    let first = ready(&manager).await;
    let mut snapshots = manager.snapshots();
    agent.authority.set_entries(Vec::new());
    snapshots.wait_for(Option::is_none).await.unwrap();
    assert_eq!(manager.state(), IdentityState::PermissionDenied);
    agent.authority.set_entries(entries(&["gw"]));
    assert!(ready(&manager).await.generation > first.generation);
}

#[tokio::test]
async fn no_socket_a_dead_one_and_a_silent_one_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let manager = follow(&socket, Some("gw"));
    until_state(&manager, &IdentityState::NoSocket).await;
    let listener = UnixListener::bind(&socket).unwrap();
    until("silence", || {
        manager.state().to_string().contains("no answer within")
    })
    .await;
    drop(listener);
    until("nobody", || manager.state().to_string().contains("refused")).await;
    assert!(matches!(manager.state(), IdentityState::Refused { .. }));
    let _authority = serve(&socket, &["gw"]).await;
    ready(&manager).await;
    assert_eq!(manager.renewal_problem(), None);
}

#[tokio::test]
async fn an_agent_that_comes_back_with_a_new_socket_serves_again_within_two_seconds() {
    let agent = Agent::start(&["gw"]).await;
    let (socket, manager) = (agent.socket(), agent.manager("gw"));
    let mut generation = ready(&manager).await.generation;
    let _folder = agent.stop();
    let mut longest = Duration::ZERO;
    for away in [0, 100, 700, 1_500, 3_000] {
        until("the loss", || manager.renewal_problem().is_some()).await;
        assert_eq!(manager.state(), IdentityState::Ready);
        tokio::time::sleep(Duration::from_millis(away)).await;
        let authority = serve(&socket, &["gw"]).await;
        let took = until("service", || {
            manager.current().is_some_and(|s| s.generation > generation)
        })
        .await;
        generation = manager.current().unwrap().generation;
        longest = longest.max(took);
        drop(authority);
    }
    println!("served again after at most {longest:?}");
    assert!(longest < Duration::from_secs(2), "{longest:?}");
}

#[tokio::test]
async fn an_agent_that_hangs_and_is_replaced_is_left_for_the_new_one_within_two_seconds() {
    for hangs_from_the_start in [false, true] {
        let old = Agent::start(&["gw"]).await;
        let socket = old.socket();
        if hangs_from_the_start {
            old.authority.pause();
        }
        let manager = old.manager("gw");
        if hangs_from_the_start {
            until("silence", || {
                manager.state().to_string().contains("no answer")
            })
            .await;
        } else {
            ready(&manager).await;
            old.authority.pause();
        }
        let seen = manager.current().map_or(0, |s| s.generation);
        std::fs::remove_file(&socket).unwrap();
        let _new = serve(&socket, &["gw"]).await;
        let took = until("the new agent", || {
            manager.current().is_some_and(|s| s.generation > seen)
        })
        .await;
        println!("the new agent was found after {took:?}");
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
}

#[tokio::test]
async fn an_svid_that_is_not_renewed_stays_until_its_end_and_is_gone_then() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let authority = serve_for(&socket, &["gw"], Duration::from_secs(10)).await;
    let manager = follow(&socket, Some("gw"));
    let snapshot = ready(&manager).await;
    let mut snapshots = manager.snapshots();
    let (client, server) = (
        manager.client_tls(common::anyone(), &[]),
        manager.server_tls(common::anyone(), &[]),
    );
    drop(authority);
    until("the loss", || manager.renewal_problem().is_some()).await;
    assert_eq!(manager.state(), IdentityState::Ready);
    snapshots.wait_for(Option::is_none).await.unwrap();
    let late = SystemTime::now()
        .duration_since(snapshot.not_after)
        .unwrap();
    assert!(late < Duration::from_secs(1), "{late:?}");
    assert_eq!(manager.state(), IdentityState::Expired);
    assert!(manager.current().is_none());
    let (near, far) = tokio::io::duplex(1_024);
    let refused = client
        .connect("x".try_into().unwrap(), near)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("expired"), "{refused}");
    assert!(server.accept(far).await.is_err());
    assert!(matches!(
        client.config(),
        Err(IdentityError::NotReady(IdentityState::Expired))
    ));
    let _authority = serve(&socket, &["gw"]).await;
    assert!(ready(&manager).await.generation > snapshot.generation);
}

#[tokio::test]
async fn svids_of_ten_seconds_are_renewed_before_they_end() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let _authority = serve_for(&socket, &["gw"], Duration::from_secs(10)).await;
    let manager = follow(&socket, Some("gw"));
    let mut snapshot = ready(&manager).await;
    for _ in 0..2 {
        let next = after(&manager, snapshot.generation).await;
        assert!(SystemTime::now() + Duration::from_secs(3) < snapshot.not_after);
        snapshot = next;
    }
}

#[tokio::test]
async fn after_a_shutdown_there_is_no_svid_and_no_task() {
    let agent = Agent::start(&["gw"]).await;
    let manager = agent.manager("gw");
    ready(&manager).await;
    manager.shutdown().await;
    assert!(manager.current().is_none());
    assert!(manager.state().to_string().contains("has stopped"));
    agent.authority.rotate();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(manager.stats().rotations, 0);
}

#[tokio::test]
async fn the_last_clone_takes_the_tasks_with_it() {
    let agent = Agent::start(&["gw"]).await;
    let manager = agent.manager("gw");
    ready(&manager).await;
    let mut snapshots = manager.snapshots();
    let tls = manager.client_tls(common::anyone(), &[]);
    drop(manager);
    agent.authority.rotate();
    let renewed = snapshots.wait_for(|s| s.as_ref().is_some_and(|s| s.generation == 2));
    renewed.await.expect("the TLS side keeps the manager alive");
    drop(tls);
    until("the end", || snapshots.has_changed().is_err()).await;
}

#[test]
fn what_cannot_work_is_refused_at_once() {
    let start = |socket: &str| {
        SvidManager::start(SvidConfig {
            endpoint_socket: Some(socket.into()),
            hint: None,
            ..SvidConfig::default()
        })
        .err()
    };
    assert!(matches!(
        start("/run/agent.sock"),
        Some(IdentityError::Endpoint { .. })
    ));
    assert!(matches!(
        start("unix:///run/agent.sock"),
        Some(IdentityError::NoRuntime)
    ));
}

//! Two trust domains: the gateway and its robots in `portarium.robotics`, a control plane in
//! `portarium.io`. Each has a server of its own, which follow each other's bundle endpoints.

use crate::real_spire::scene::{IO, Io, LASTING, Scene, told};
use portarium_tests::{
    Caller, Entered, Proxy, Registration, Stranger, figure, hints, mission, scaled, spread, until,
};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// What a push may take until the other domain's peers are out, or may come in again.
const WITHIN: Duration = Duration::from_secs(10);

/// How federation ends.
#[derive(Debug, Clone, Copy)]
enum End {
    /// The gateway's entry no longer names the other trust domain.
    Entry,
    /// The server forgets the other trust domain and its bundle.
    Bundle,
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs SPIRE: run by tests/run --spire"]
async fn a_control_plane_of_a_federated_trust_domain_dispatches_and_is_out_when_that_ends() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::start(dir.path(), LASTING).await;
    let io = Io::federated(&scene).await;
    let identity = io.manager().await;
    let between = [scene.own.clone(), identity.clone()];
    let passage = Proxy::start(scene.gateway.ports.grpc, between).await;
    let caller = Caller::of(&identity, passage.port).await;
    succeeds(&scene, &caller, "first").await;

    let (mut cut, mut refused, mut back) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..scaled(2) {
        for end in [End::Entry, End::Bundle] {
            let name = format!("{end:?}-{round}");
            let held = Stranger::holding(&identity.current().unwrap());
            assert!(knock(&scene, &held).await.entered.is_ok(), "{name}");
            let seen = scene.audit().len();
            part(&scene, &io, end).await;
            until("the push", async || !knows_io(&scene)).await;
            let pushed = Instant::now();
            refused.push(shut_since(&scene, &held, pushed).await);
            until("the connection to end", async || {
                passage.links().iter().all(|link| link.closed.is_some())
            })
            .await;
            cut.push(pushed.elapsed());
            assert!(pushed.elapsed() < WITHIN, "{name}");
            assert!(caller.robot("g").await.is_err(), "{name}");
            let no_bundle = format!("no trust bundle for the peer's trust domain {IO}");
            told(&scene, seen, "recheck", &no_bundle).await;
            told(&scene, seen, "handshake", &no_bundle).await;
            // Those of our own trust domain notice nothing.
            assert!(scene.caller.robot("g").await.is_ok(), "{name}");

            join(&scene, &io, end).await;
            until("the push", async || knows_io(&scene)).await;
            let pushed = Instant::now();
            back.push(open_since(&scene, &held, pushed).await);
            caller.robots_reachable(&["g"]).await;
            succeeds(&scene, &caller, &name).await;
        }
    }
    assert_eq!(scene.caller.failed(), 0);
    figure(
        "federation",
        &format!("removed, until the connection was cut: {}", spread(&cut)),
    );
    figure(
        "federation",
        &format!(
            "removed, until a handshake was refused: {}",
            spread(&refused)
        ),
    );
    figure(
        "federation",
        &format!("federated again, until a handshake went: {}", spread(&back)),
    );
}

/// The other trust domain changes its authority; its bundle comes by its endpoint.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs SPIRE: run by tests/run --spire"]
async fn a_federated_trust_domain_changes_its_authority_and_the_revoked_one_is_out() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::start(dir.path(), LASTING).await;
    let io = Io::federated(&scene).await;
    let identity = io.manager().await;
    let caller = Caller::of(&identity, scene.gateway.ports.grpc).await;
    succeeds(&scene, &caller, "first").await;
    let first = identity.current().unwrap();
    let held = Stranger::holding(&first);
    let robotics = scene.identities.spire();

    io.spire.prepare().await;
    robotics.fetch_bundle_of(&io.spire).await;
    until("both authorities to be known", async || {
        scene.authorities() == 3
    })
    .await;
    io.spire.activate().await;
    io.spire.taint().await;
    until("an SVID of the next authority", async || {
        let next = identity
            .current()
            .filter(|svid| svid.serial != first.serial);
        match next.map(|svid| Stranger::holding(&svid)) {
            Some(next) => knock(&scene, &next).await.entered.is_ok(),
            None => false,
        }
    })
    .await;
    assert!(
        knock(&scene, &held).await.entered.is_ok(),
        "not revoked yet"
    );
    let seen = scene.audit().len();
    io.spire.revoke().await;
    robotics.fetch_bundle_of(&io.spire).await;
    until("the push", async || scene.authorities() == 2).await;
    let pushed = Instant::now();
    let took = shut_since(&scene, &held, pushed).await;
    told(&scene, seen, "handshake", "UnknownIssuer").await;
    caller.robots_reachable(&["g"]).await;
    succeeds(&scene, &caller, "next").await;
    figure(
        "federation",
        &format!(
            "the other domain's authority revoked: its SVIDs are refused {took:.1?} after the push"
        ),
    );
}

async fn succeeds(scene: &Scene, caller: &Caller, name: &str) {
    let request = mission("g", name, Duration::from_millis(20));
    caller.accepted(&request).await;
    until("the mission's end", async || {
        let status = caller.status(name).await;
        status.is_ok_and(|status| status.status == "Succeeded")
    })
    .await;
    let line = |line: &serde_json::Value| {
        line["mission_id"] == *name && line["caller"] == *io_control_plane()
    };
    assert!(scene.audit().iter().any(line), "{name} in the audit");
}

fn io_control_plane() -> String {
    format!("spiffe://{IO}/ns/portarium/sa/portarium-control-plane")
}

fn knows_io(scene: &Scene) -> bool {
    let now = scene.own.current();
    now.is_some_and(|now| now.trust_domains().any(|domain| domain.as_str() == IO))
}

async fn part(scene: &Scene, io: &Io, end: End) {
    let robotics = scene.identities.spire();
    match end {
        End::Entry => {
            let alone = scene.identities.registration(hints::GATEWAY);
            robotics.update(&alone).await;
        }
        End::Bundle => robotics.part_with(&io.spire).await,
    }
}

async fn join(scene: &Scene, io: &Io, end: End) {
    let robotics = scene.identities.spire();
    if matches!(end, End::Bundle) {
        robotics.federate(&io.spire).await;
    }
    let federated = Registration {
        federates_with: vec![IO.to_owned()],
        ..scene.identities.registration(hints::GATEWAY)
    };
    robotics.update(&federated).await;
}

async fn knock(scene: &Scene, stranger: &Stranger) -> Entered {
    stranger.enter(scene.gateway.ports.grpc).await
}

/// Knocks until nobody is let in.
async fn shut_since(scene: &Scene, stranger: &Stranger, pushed: Instant) -> Duration {
    while knock(scene, stranger).await.entered.is_ok() {
        assert!(pushed.elapsed() < WITHIN, "still let in");
        sleep(Duration::from_millis(2)).await;
    }
    pushed.elapsed()
}

/// Knocks until let in.
async fn open_since(scene: &Scene, stranger: &Stranger, pushed: Instant) -> Duration {
    while knock(scene, stranger).await.entered.is_err() {
        assert!(pushed.elapsed() < WITHIN, "still shut");
        sleep(Duration::from_millis(2)).await;
    }
    pushed.elapsed()
}

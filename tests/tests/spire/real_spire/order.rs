//! Whoever runs as this user gets every SVID, in the order of the entries' ids: the gateway takes its
//! own by the hint, wherever that stands.

use crate::real_spire::scene::Scene;
use portarium_tests::{Load, Registration, Stranger, figure, hints, scaled, spiffe_id};
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{task::JoinHandle, time::sleep};

/// Renewed all the time, so that every order comes with SVIDs of its own.
const LIFE: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs SPIRE: run by tests/run --spire"]
async fn the_gateway_presents_its_own_svid_wherever_the_agent_puts_it() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::start(dir.path(), LIFE).await;
    let looks = Looks::start(&scene).await;
    let mut load = Load::start(&scene.caller, &["g"], Duration::from_millis(50));
    let spire = scene.identities.spire();
    let usual =
        [hints::GATEWAY, hints::CONTROL_PLANE, "g"].map(|hint| scene.identities.registration(hint));
    let mut places = BTreeSet::new();
    for round in 0..scaled(8) {
        // Others come and go, before and behind it.
        let others = (0..fastrand::usize(..5)).map(|n| other(round, n));
        let entries: Vec<_> = usual.iter().cloned().chain(others).collect();
        let count = entries.len();
        spire.register(entries).await;
        let hints = spire.hints().await.unwrap();
        let place = hints.iter().position(|hint| hint == hints::GATEWAY);
        places.insert((place.unwrap(), count));
        sleep(Duration::from_millis(500)).await;
    }
    let missions = load.finish().await.len();
    let (looked, strange) = looks.end().await;
    figure(
        "order of SVIDs",
        &format!(
            "places (of so many): {places:?}; {looked} handshakes, another's SVID presented in {}; \
             {missions} missions, {} calls failed",
            strange.len(),
            scene.caller.failed()
        ),
    );
    assert!(strange.is_empty(), "{strange:?}");
    assert!(looked > 100 && missions > 20, "{looked}, {missions}");
    let first: BTreeSet<_> = places.iter().map(|(place, _)| place).collect();
    assert!(first.len() > 1, "its place never changed: {places:?}");
    assert_eq!(scene.caller.failed(), 0);
    assert!(scene.caller.robot("g").await.unwrap().reachable);
}

/// An entry of another workload, with a name before or behind the gateway's.
fn other(round: usize, n: usize) -> Registration {
    let letter = if fastrand::bool() { 'a' } else { 'z' };
    let hint = format!("{letter}-{round}-{n}");
    Registration {
        spiffe_id: spiffe_id(&hint),
        dns_names: vec!["localhost".into()],
        ttl: LIFE,
        federates_with: Vec::new(),
        hint,
    }
}

/// Handshakes all the time, and what was presented in them but the gateway's SVID.
struct Looks {
    stop: Arc<AtomicBool>,
    task: JoinHandle<(usize, BTreeSet<String>)>,
}

impl Looks {
    async fn start(scene: &Scene) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, port) = (stop.clone(), scene.gateway.ports.grpc);
        let caller = scene.identities.manager(hints::CONTROL_PLANE).await;
        let task = tokio::spawn(async move {
            let (mut count, mut strange) = (0, BTreeSet::new());
            while !stopped.load(Ordering::Relaxed) {
                let stranger = caller.current().map(|svid| Stranger::holding(&svid));
                if let Some(stranger) = stranger
                    && let Some(shown) = stranger.enter(port).await.shown
                {
                    count += 1;
                    if shown != spiffe_id(hints::GATEWAY) {
                        strange.insert(shown);
                    }
                }
                sleep(Duration::from_millis(10)).await;
            }
            (count, strange)
        });
        Self { stop, task }
    }

    async fn end(self) -> (usize, BTreeSet<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

//! Whatever happens to server, agent and entries, the gateway is back by itself, and soon.

use portarium_tests::{
    Config, GatewayProcess, Identities, Spire, figure, hints, init, metric, scaled, spread,
    status_of, until,
};
use std::{
    path::Path,
    time::{Duration, Instant},
};
use tokio::time::sleep;

/// How long the gateway may take once SPIRE serves.
const SOON: Duration = Duration::from_secs(2);

/// Long enough that nothing is renewed during a test.
const LASTING: Duration = Duration::from_secs(3_600);

async fn identities(dir: &Path) -> Identities {
    init();
    let identities = Identities::living(dir, &[], LASTING).await;
    identities.spire();
    identities
}

/// Waits until the agent serves the gateway's SVID to whoever asks, and then until the condition
/// holds; returns how long that took.
async fn recovery(spire: &Spire, what: &str, mut recovered: impl AsyncFnMut() -> bool) -> Duration {
    let serves = async || {
        let hints = spire.hints().await.unwrap_or_default();
        hints.iter().any(|hint| hint == hints::GATEWAY)
    };
    until("SPIRE to serve", serves).await;
    let served = Instant::now();
    until(what, async || recovered().await).await;
    let took = served.elapsed();
    assert!(took <= SOON, "{what}: {took:?} after SPIRE served");
    took
}

async fn ready(gateway: &GatewayProcess) -> bool {
    status_of(gateway.ports.health).await.0 == 200
}

async fn reconnects(gateway: &GatewayProcess) -> u64 {
    let name = "portarium_gateway_workload_api_reconnects_total";
    metric(gateway.ports.admin, name, "").await as u64
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs SPIRE: run by tests/run --spire"]
async fn a_gateway_that_is_there_before_the_agent_and_before_its_entry_starts_to_work_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let identities = identities(dir.path()).await;
    let spire = identities.spire();
    identities.delete(hints::GATEWAY).await;
    spire.kill_agent();
    std::fs::remove_file(spire.socket()).unwrap();

    let config = Config::new(dir.path(), &identities);
    let gateway = GatewayProcess::launch(dir.path(), &config);
    let says = async |part: &str| status_of(gateway.ports.health).await.1.contains(part);
    until("the missing socket to be told", async || {
        says("socket does not exist").await
    })
    .await;
    spire.start_agent();
    until("the missing entry to be told", async || {
        says("no SVID with the hint \"robotics-gateway\"").await
    })
    .await;
    let (_, took) = tokio::join!(
        identities.restore(),
        recovery(spire, "the gateway to be ready", async || ready(&gateway)
            .await)
    );
    figure(
        "before agent and entry",
        &format!("ready {took:?} after SPIRE served"),
    );

    // And again, with an entry that goes and comes.
    let mut all = Vec::new();
    for _ in 0..scaled(3) {
        identities.delete(hints::GATEWAY).await;
        until("the gateway to be not ready", async || {
            !ready(&gateway).await
        })
        .await;
        assert!(says("no SVID with the hint").await);
        let (_, took) = tokio::join!(
            identities.restore(),
            recovery(spire, "the gateway to be ready", async || ready(&gateway)
                .await)
        );
        all.push(took);
    }
    figure("entry deleted and made again, until ready", &spread(&all));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs SPIRE: run by tests/run --spire"]
async fn an_agent_that_is_killed_and_restarted_is_followed_again_soon() {
    let dir = tempfile::tempdir().unwrap();
    let identities = identities(dir.path()).await;
    let spire = identities.spire();
    let gateway = GatewayProcess::start(dir.path(), &Config::new(dir.path(), &identities)).await;
    let mut all = Vec::new();
    for _ in 0..scaled(4).min(20) {
        let before = reconnects(&gateway).await;
        spire.kill_agent();
        sleep(Duration::from_millis(fastrand::u64(..1_000))).await;
        assert!(ready(&gateway).await, "its SVID is good");
        spire.start_agent();
        let followed = async || reconnects(&gateway).await > before;
        all.push(recovery(spire, "the agent to be followed", followed).await);
        assert!(ready(&gateway).await);
    }
    figure(
        "agent killed and restarted, until followed again",
        &spread(&all),
    );
}

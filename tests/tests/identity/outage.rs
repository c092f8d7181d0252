//! Nobody renews the gateway's SVID.

use portarium_tests::{
    Caller, Config, GatewayProcess, Identities, figure, hints, init, metric, status_of, until,
    until_within,
};
use std::time::{Duration, Instant};

/// The issue that the embedded authority hands out and SPIRE's server signs: 10 s.
const LIFE: Duration = Duration::from_secs(10);

/// Over a whole life: while the SVID is good the gateway serves, and says that this will end; then
/// it is not ready and presents nothing; and it is back by itself.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "on the embedded authority, or on SPIRE: run by tests/run"]
async fn an_svid_that_is_not_renewed_is_told_of_before_its_end_and_never_presented_after_it() {
    init();
    let dir = tempfile::tempdir().unwrap();
    let identities = Identities::living(dir.path(), &[], LIFE).await;
    let gateway = GatewayProcess::start(dir.path(), &Config::new(dir.path(), &identities)).await;
    let ready = async || status_of(gateway.ports.health).await;
    let own = identities.manager(hints::GATEWAY).await;
    let caller = Caller::control_plane(&identities, gateway.ports.grpc).await;
    assert!(caller.robot("nobody").await.is_err(), "no such robot");

    identities.stop_renewing().await;
    let last = own.current().unwrap();
    let end = last.not_after;
    let overdue = async || {
        let (status, body) = ready().await;
        status == 200 && body.contains("degraded: identity: the SVID ends at ")
    };
    until("the alarm", overdue).await;
    let before = end.elapsed().unwrap_err().duration();
    let name = "portarium_gateway_svid_renewal_overdue";
    assert!(metric(gateway.ports.admin, name, "").await > 0.5);
    until("the end", async || ready().await.0 == 503).await;
    let after = end.elapsed().unwrap();
    assert!(
        ready().await.1.contains("the SVID has expired"),
        "{:?}",
        ready().await
    );
    // Who has a good SVID, as nobody does here, would find nobody: there is no handshake.
    let refused = metric(
        gateway.ports.admin,
        "portarium_gateway_handshakes_total",
        "result=\"no_identity\"",
    );
    assert!(refused.await < 0.5 || caller.robot("nobody").await.is_err());

    let since = Instant::now();
    identities.renew_again().await;
    until_within(Duration::from_secs(60), "an SVID for anybody", async || {
        own.current().is_some()
    })
    .await;
    let served = Instant::now();
    until("readiness", async || ready().await.0 == 200).await;
    let took = served.elapsed();
    figure(
        "renewal",
        &format!(
            "told {before:.1?} before the end, not ready {after:.1?} after it; {:.1?} after the \
             authority came back SVIDs were there, and the gateway ready {took:.1?} later",
            served - since
        ),
    );
    assert!(after < Duration::from_secs(2) && took < Duration::from_secs(2));
    let log = gateway.output();
    assert!(
        log.contains("ERROR") && log.contains("no new one has come"),
        "{log}"
    );
}

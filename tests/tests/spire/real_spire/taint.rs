//! What the agent says while an authority is tainted.
//!
//! It drops the SVIDs that the authority signed and has them signed anew, and meanwhile tells who
//! follows it: an update has those alone that are there already, or access is denied where none is.
//! A stream that is opened then is let wait until all are there, and one that is opened when an entry
//! is really gone is told at once.

use futures::StreamExt as _;
use portarium_tests::{Registration, Spire, figure, init, scaled, spiffe_id, spread, until};
use spiffe::{WorkloadApiClient, transport::Endpoint};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

/// One update of a stream; one on which access was denied has no SVIDs.
#[derive(Debug, Clone)]
struct Said {
    at: Instant,
    svids: usize,
    /// What a stream said that was opened then, where some were missing, and after how long.
    fresh: Option<(usize, Duration)>,
}

type AllSaid = Arc<Mutex<Vec<Said>>>;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs SPIRE: run by tests/run --spire"]
async fn a_new_stream_is_whole_while_an_authority_is_tainted_and_an_old_one_is_not() {
    init();
    for entries in [1, 6] {
        let spire = Spire::shared().await;
        spire
            .register((0..entries).map(registration).collect())
            .await;
        let said = AllSaid::default();
        let endpoint = format!("unix://{}", spire.socket().display());
        let following = follow(Endpoint::parse(&endpoint).unwrap(), entries, said.clone());
        let _following = AbortOnDropHandle::new(tokio::spawn(following));
        until("the first update", async || {
            !said.lock().unwrap().is_empty()
        })
        .await;

        let (taints, mut gaps, mut fresh) = (scaled(3), Vec::new(), Vec::new());
        for _ in 0..taints {
            spire.prepare().await;
            spire.activate().await;
            sleep(Duration::from_millis(fastrand::u64(..1_500))).await;
            said.lock().unwrap().clear();
            spire.taint().await;
            sleep(Duration::from_secs(2)).await;
            let all = said.lock().unwrap().clone();
            gaps.extend(gap(&all, entries));
            let asked = all.iter().filter_map(|said| said.fresh);
            assert!(asked.clone().all(|(svids, _)| svids == entries), "{all:?}");
            fresh.extend(asked.map(|(_, took)| took));
            spire.revoke().await;
        }
        said.lock().unwrap().clear();
        spire.register(Vec::new()).await;
        let gone = || said.lock().unwrap().iter().find_map(|said| said.fresh);
        until("a new stream's word", async || gone().is_some()).await;
        let (svids, told) = gone().unwrap();
        assert!(svids < entries, "{svids}");
        figure(
            "taint",
            &format!(
                "{entries} entries, {taints} taints: updates without some in {}, until all were \
                 there {}; all on a new stream after {}; of entries that are gone it tells after \
                 {told:.1?}",
                gaps.len(),
                spread(&gaps),
                spread(&fresh)
            ),
        );
    }
}

fn registration(n: usize) -> Registration {
    let hint = format!("w{n}");
    Registration {
        spiffe_id: spiffe_id(&hint),
        hint,
        dns_names: Vec::new(),
        ttl: Duration::from_secs(3_600),
        federates_with: Vec::new(),
    }
}

/// From the first update without some to the next with all.
fn gap(all: &[Said], entries: usize) -> Option<Duration> {
    let from = all.iter().find(|said| said.svids < entries)?;
    let mut later = all.iter().filter(|said| said.at > from.at);
    let whole = later.find(|said| said.svids == entries)?;
    Some(whole.at - from.at)
}

/// Follows as a workload does, and asks on a new stream whenever some are missing.
async fn follow(endpoint: Endpoint, entries: usize, all: AllSaid) {
    loop {
        let client = WorkloadApiClient::connect(endpoint.clone()).await.unwrap();
        let Ok(mut contexts) = client.stream_x509_contexts().await else {
            continue;
        };
        while let Some(context) = contexts.next().await {
            let at = Instant::now();
            let svids = context.as_ref().map_or(0, |context| context.svids().len());
            let said = Said {
                at,
                svids,
                fresh: None,
            };
            all.lock().unwrap().push(said);
            if svids < entries {
                let asked = on_a_new_stream(endpoint.clone()).await;
                let fresh = Some((asked, at.elapsed()));
                let mut all = all.lock().unwrap();
                if let Some(said) = all.iter_mut().find(|said| said.at == at) {
                    said.fresh = fresh;
                }
            }
            if context.is_err() {
                break;
            }
        }
    }
}

/// How many SVIDs it has.
async fn on_a_new_stream(endpoint: Endpoint) -> usize {
    let asked = async {
        let client = WorkloadApiClient::connect(endpoint).await.ok()?;
        let context = client.fetch_x509_context().await.ok()?;
        Some(context.svids().len())
    };
    let answer = timeout(Duration::from_secs(10), asked).await;
    answer.unwrap().unwrap_or_default()
}

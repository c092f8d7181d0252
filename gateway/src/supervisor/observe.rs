//! From the engine, the service and the journal to the metrics.

use super::adapters::Adapters;
use crate::{
    audit::Audit,
    engine::{Engine, EngineObserver},
    metrics::{EngineSample, IdentitySample, Metrics, Sources},
    north::ServiceObserver,
    peers::{Direction, Side, Standing},
};
use portarium_identity::SvidManager;
use portarium_protocols::{
    adapter::Disbelieved,
    grpc::{Admission, Connections, pb::DispatchStatus},
    mission::MissionStatus,
};
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Hands everything on to the metrics, and what is not believed to the audit.
pub(super) struct Observer {
    pub(super) metrics: Arc<Metrics>,
    pub(super) audit: Audit,
}

impl EngineObserver for Observer {
    fn entered(&self, adapter: &'static str, from: Option<MissionStatus>, to: MissionStatus) {
        self.metrics.mission_changed(adapter, from, to);
    }

    fn recovered(&self, adapter: &'static str, status: MissionStatus) {
        self.metrics.mission_recovered(adapter, status);
    }

    fn forgotten(&self, adapter: &'static str, status: MissionStatus) {
        self.metrics.mission_forgotten(adapter, status);
    }

    fn outcome_unknown(&self, _: bool) {}

    fn stop_sent(&self, after: Duration) {
        self.metrics.stop_sent(after);
    }

    fn committed(&self, took: Duration, appends: usize) {
        self.metrics.journal_committed(took, appends);
    }

    fn disbelieved(&self, said: &Disbelieved) {
        let mission = said.mission.as_ref();
        self.audit.report_refused(
            SystemTime::now(),
            &said.speaker,
            mission.map_or("", |mission| mission.as_str()),
            said.reason,
        );
    }
}

impl ServiceObserver for Observer {
    fn dispatched(&self, status: DispatchStatus, took: Duration) {
        self.metrics.dispatch_answered(status, took);
    }

    fn token_checked(&self, result: &'static str) {
        self.metrics.token_checked(result);
    }
}

/// Writes down what came of a caller at the door.
pub(super) fn admission(audit: &Audit, remote: SocketAddr, admission: &Admission<'_>) {
    let now = SystemTime::now();
    match admission {
        Admission::Admitted(peer) => {
            audit.handshake_admitted(now, remote, (&peer.spiffe_id, &peer.serial));
        }
        Admission::Refused(error) => {
            audit.handshake_refused(now, remote, error.not_admitted(), &error.to_string());
        }
        Admission::TooManyOfOne(peer) => {
            let reason = "this caller has as many connections as one may have";
            let shown = Some((&peer.spiffe_id, peer.serial.as_str()));
            audit.handshake_refused(now, remote, shown, reason);
        }
        Admission::TooMany => {
            let reason = "there are as many connections as there may be";
            audit.handshake_refused(now, remote, None, reason);
        }
        Admission::Withdrawn(peer, error) => {
            let shown = (&peer.spiffe_id, peer.serial.as_str());
            audit.connection_cut(now, remote, shown, "recheck", &error.to_string());
        }
        Admission::Broke(peer, error) => {
            let shown = (&peer.spiffe_id, peer.serial.as_str());
            audit.connection_cut(now, remote, shown, "HTTP/2", &error.to_string());
        }
    }
}

/// How the identity stands, for the metrics.
pub(super) fn identity(manager: &SvidManager) -> IdentitySample {
    IdentitySample {
        state: manager.state(),
        svid: manager
            .current()
            .map(|svid| (svid.generation, svid.not_after)),
        renewal_overdue: manager.renewal_overdue().is_some(),
        stats: manager.stats(),
    }
}

/// Who tells of the connections that stand. It holds on to nothing that has to end.
pub(super) fn standing(
    connections: &Arc<Connections>,
    adapters: &Arc<Adapters>,
    identity: Option<SvidManager>,
) -> impl Fn() -> Standing + Clone + Send + Sync + 'static {
    let connections = connections.clone();
    let adapters = Arc::downgrade(adapters);
    move || {
        let callers = Side {
            direction: Direction::North,
            adapter: "grpc".to_owned(),
            peers: connections.peers(),
        };
        let mut sides = adapters.upgrade().map(|a| a.peers()).unwrap_or_default();
        sides.insert(0, callers);
        Standing::new(sides, identity.as_ref())
    }
}

/// Names whom the metrics ask at each scrape. They hold on to nothing that has to end.
pub(super) fn sources(
    connections: &Arc<Connections>,
    adapters: &Arc<Adapters>,
    engine: &Engine,
    audit: &Audit,
    standing: impl Fn() -> Standing + Send + Sync + 'static,
) -> Sources {
    let connections = connections.clone();
    let adapters = Arc::downgrade(adapters);
    let (probe, audit) = (engine.probe(), audit.clone());
    Sources {
        server: Box::new(move || connections.stats()),
        adapters: Box::new(move || adapters.upgrade().map(|a| a.samples()).unwrap_or_default()),
        engine: Box::new(move || {
            let counts = probe.counts();
            EngineSample {
                open: counts.open as u64,
                queued: counts.queued as u64,
                unknown: counts.unknown as u64,
                journal_queue: counts.journal_backlog as u64,
                robots_reachable: counts.reachable as u64,
                robots_unreachable: counts.unreachable as u64,
            }
        }),
        audit: Box::new(move || audit.counts()),
        standing: Box::new(standing),
    }
}

//! What the gateway counts and measures, in the OpenMetrics text format.
//!
//! What happens is counted where it happens, through the methods of [`Metrics`]. What *is*
//! (identity, connections, queues) is asked for at each scrape, from the [`Sources`].

mod sources;
#[cfg(test)]
mod tests;

pub use sources::{AdapterSample, EngineSample, IdentitySample, Sources};

use portarium_protocols::{grpc::pb::DispatchStatus, mission::MissionStatus};
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};
use sources::{Scrape, Shared};
use std::{sync::Arc, time::Duration};

/// The media type of what [`Metrics::encode`] makes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// In seconds. The contract's budgets are 50 to 1000 ms, ours a tenth of them.
const DISPATCH_BUCKETS: [f64; 13] = [
    0.000_5, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0,
];

const STOP_BUCKETS: [f64; 12] = [
    0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5,
];

const COMMIT_BUCKETS: [f64; 12] = [
    0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0,
];

const EVENTS_BUCKETS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    sources: Arc<Scrape>,
    transitions: Family<MissionLabels, Counter>,
    open: Family<MissionLabels, Gauge>,
    dispatches: Family<StatusLabels, Counter>,
    tokens: Family<ResultLabels, Counter>,
    dispatch_duration: Histogram,
    stop_latency: Histogram,
    commit_duration: Histogram,
    commit_events: Histogram,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MissionLabels {
    adapter: &'static str,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabels {
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

impl Metrics {
    /// Metrics at zero, with the version of this build.
    pub fn new() -> Arc<Self> {
        let mut metrics = Self {
            registry: Registry::with_prefix("portarium_gateway"),
            sources: Arc::default(),
            transitions: Family::default(),
            open: Family::default(),
            dispatches: Family::default(),
            tokens: Family::default(),
            dispatch_duration: Histogram::new(DISPATCH_BUCKETS),
            stop_latency: Histogram::new(STOP_BUCKETS),
            commit_duration: Histogram::new(COMMIT_BUCKETS),
            commit_events: Histogram::new(EVENTS_BUCKETS),
        };
        metrics.register();
        Arc::new(metrics)
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "This build", version);
        registry.register(
            "mission_transitions",
            "Changes of missions to a status",
            self.transitions.clone(),
        );
        registry.register(
            "missions_open",
            "Missions that have not ended",
            self.open.clone(),
        );
        registry.register(
            "dispatches",
            "Answers to DispatchMission by their status",
            self.dispatches.clone(),
        );
        registry.register(
            "access_tokens",
            "Access tokens looked at, by result",
            self.tokens.clone(),
        );
        for (name, help, histogram) in [
            (
                "dispatch_duration",
                "Time to answer DispatchMission",
                &self.dispatch_duration,
            ),
            (
                "stop_latency",
                "Time from the call of a stop to its first byte towards the robot",
                &self.stop_latency,
            ),
            (
                "journal_commit_duration",
                "Time of a commit of the journal",
                &self.commit_duration,
            ),
        ] {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
        registry.register(
            "journal_commit_events",
            "Events that were committed together; its count is that of commits",
            self.commit_events.clone(),
        );
        registry.register_collector(Box::new(Shared(Arc::clone(&self.sources))));
    }

    /// Names whom to ask for the identity at each scrape. Only the first call counts.
    pub fn ask_identity(&self, ask: impl Fn() -> IdentitySample + Send + Sync + 'static) {
        // A second call would be a second composition of one process; so below.
        let _ = self.sources.identity.set(Box::new(ask));
    }

    /// Names whom to ask for everything else. Only the first call counts.
    pub fn ask(&self, sources: Sources) {
        let _ = self.sources.others.set(sources);
    }

    /// Everything, as text.
    pub fn encode(&self) -> String {
        let mut out = String::with_capacity(16 * 1024);
        // Writing to a text cannot fail, unless a source does; then what came before it is there.
        let _ = text::encode(&mut out, &self.registry);
        out
    }

    /// A mission changed its status; `from` is `None` for a new one.
    pub fn mission_changed(
        &self,
        adapter: &'static str,
        from: Option<MissionStatus>,
        to: MissionStatus,
    ) {
        let labels = |status: MissionStatus| MissionLabels {
            adapter,
            status: status.as_str(),
        };
        self.transitions.get_or_create(&labels(to)).inc();
        if let Some(from) = from.filter(|from| !from.is_terminal()) {
            self.open.get_or_create(&labels(from)).dec();
        }
        if !to.is_terminal() {
            self.open.get_or_create(&labels(to)).inc();
        }
    }

    /// An open mission was found in the journal at the start.
    pub fn mission_recovered(&self, adapter: &'static str, status: MissionStatus) {
        if !status.is_terminal() {
            let labels = MissionLabels {
                adapter,
                status: status.as_str(),
            };
            self.open.get_or_create(&labels).inc();
        }
    }

    /// A new mission could not be made durable and is gone.
    pub fn mission_forgotten(&self, adapter: &'static str, status: MissionStatus) {
        let labels = MissionLabels {
            adapter,
            status: status.as_str(),
        };
        self.open.get_or_create(&labels).dec();
    }

    /// `DispatchMission` was answered, after so long.
    pub fn dispatch_answered(&self, status: DispatchStatus, took: Duration) {
        let name = status.as_str_name();
        let status = name.strip_prefix("DISPATCH_STATUS_").unwrap_or(name);
        self.dispatches
            .get_or_create(&StatusLabels { status })
            .inc();
        self.dispatch_duration.observe(took.as_secs_f64());
    }

    /// An access token was looked at.
    pub fn token_checked(&self, result: &'static str) {
        self.tokens.get_or_create(&ResultLabels { result }).inc();
    }

    /// A stop was handed to its robot's connection, so long after its call.
    pub fn stop_sent(&self, took: Duration) {
        self.stop_latency.observe(took.as_secs_f64());
    }

    /// The journal made so many events durable in one commit.
    pub fn journal_committed(&self, took: Duration, events: usize) {
        self.commit_duration.observe(took.as_secs_f64());
        self.commit_events.observe(events as f64);
    }
}

//! What is asked for at each scrape.

use crate::{audit::AuditCounts, peers::Standing};
use portarium_identity::{HandshakeStats, IdentityState, IdentityStats};
use portarium_protocols::grpc::ServerStats;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeGaugeValue, MetricEncoder},
    metrics::{MetricType, exemplar::Exemplar},
    registry::Unit,
};
use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

type Ask<T> = Box<dyn Fn() -> T + Send + Sync>;

/// Whom to ask once the gateway serves. Each answers at once, from memory.
pub struct Sources {
    /// The listener of the control plane.
    pub server: Ask<ServerStats>,
    /// The adapters' connections.
    pub adapters: Ask<Vec<AdapterSample>>,
    /// Missions and robots.
    pub engine: Ask<EngineSample>,
    /// The audit.
    pub audit: Ask<AuditCounts>,
    /// The connections that stand.
    pub standing: Ask<Standing>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sources")
    }
}

/// How the identity stands.
#[derive(Debug, Clone)]
pub struct IdentitySample {
    /// How the manager stands.
    pub state: IdentityState,
    /// Generation and NotAfter of the current SVID.
    pub svid: Option<(u64, SystemTime)>,
    /// Whether its successor should be here by now.
    pub renewal_overdue: bool,
    /// What was counted since the start.
    pub stats: IdentityStats,
}

/// How an adapter's connection stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterSample {
    /// `mqtt.main` or `grpc`, say.
    pub adapter: String,
    /// Whether it is connected; with many connections, whether all are.
    pub connected: bool,
    /// The oldest SVID generation among its connections; `None` where there is none.
    pub svid_generation: Option<u64>,
}

/// How the engine stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineSample {
    /// Missions that have not ended.
    pub open: u64,
    /// Missions that wait for their robot.
    pub queued: u64,
    /// Missions of unknown outcome.
    pub unknown: u64,
    /// Events that wait for the journal's next commit.
    pub journal_queue: u64,
    /// Robots that can be reached as far as is known.
    pub robots_reachable: u64,
    /// Robots that cannot.
    pub robots_unreachable: u64,
}

/// Asks each once it is known: the identity long before all others where an SVID is waited for.
#[derive(Default)]
pub(super) struct Scrape {
    pub(super) identity: OnceLock<Ask<IdentitySample>>,
    pub(super) others: OnceLock<Sources>,
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

#[derive(Debug)]
pub(super) struct Shared(pub(super) Arc<Scrape>);

impl Collector for Shared {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        let identity = self.0.identity.get().map(|ask| ask());
        if let Some(identity) = &identity {
            page.identity(identity)?;
        }
        let Some(sources) = self.0.others.get() else {
            return Ok(());
        };
        page.server((sources.server)())?;
        page.peers(&(sources.standing)())?;
        let generation = identity
            .and_then(|identity| identity.svid)
            .map(|(generation, _)| generation);
        page.adapters(&(sources.adapters)(), generation)?;
        let (engine, audit) = ((sources.engine)(), (sources.audit)());
        page.engine(engine)?;
        page.queues(engine, audit)?;
        page.audit(audit)
    }
}

struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn family<'a>(
        &'a mut self,
        kind: MetricType,
        name: &'a str,
        help: &str,
    ) -> Result<MetricEncoder<'a>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, kind)
    }

    fn gauge(&mut self, name: &str, help: &str, value: &impl EncodeGaugeValue) -> fmt::Result {
        self.family(MetricType::Gauge, name, help)?
            .encode_gauge(value)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        count(&mut self.family(MetricType::Counter, name, help)?, value)
    }

    fn identity(&mut self, identity: &IdentitySample) -> fmt::Result {
        const STATES: [&str; 8] = [
            "starting",
            "no_socket",
            "refused",
            "permission_denied",
            "no_such_hint",
            "ready",
            "expired",
            "clock_in_doubt",
        ];
        let mut states = self.family(
            MetricType::Gauge,
            "identity_state",
            "1 for the state that the identity is in",
        )?;
        for state in STATES {
            let is = u64::from(state == identity.state.as_str());
            states
                .encode_family(&[("state", state)])?
                .encode_gauge(&is)?;
        }
        if let Some((generation, not_after)) = identity.svid {
            self.gauge(
                "svid_generation",
                "Generation of the current SVID",
                &generation,
            )?;
            let left = match not_after.duration_since(SystemTime::now()) {
                Ok(left) => left.as_secs_f64(),
                Err(over) => -over.duration().as_secs_f64(),
            };
            self.0
                .encode_descriptor(
                    "svid_time_to_expiry",
                    "Time until the current SVID ends",
                    Some(&Unit::Seconds),
                    MetricType::Gauge,
                )?
                .encode_gauge(&left)?;
        }
        self.gauge(
            "svid_renewal_overdue",
            "1 while the current SVID ends soon and no new one has come",
            &u64::from(identity.renewal_overdue),
        )?;
        let stats = &identity.stats;
        self.counter(
            "svid_rotations",
            "New SVIDs or bundles after the first",
            stats.rotations,
        )?;
        self.counter(
            "workload_api_reconnects",
            "Workload API streams opened after the first",
            stats.reconnects,
        )?;
        let mut family = self.family(
            MetricType::Counter,
            "handshakes",
            "TLS handshakes by side and result",
        )?;
        for (side, stats) in [("client", &stats.client), ("server", &stats.server)] {
            handshakes(&mut family, side, stats)?;
        }
        Ok(())
    }

    fn server(&mut self, stats: ServerStats) -> fmt::Result {
        self.gauge(
            "grpc_connections",
            "Connections of callers now",
            &stats.open,
        )?;
        self.counter(
            "grpc_connections_accepted",
            "TCP connections accepted",
            stats.accepted,
        )?;
        self.counter(
            "grpc_connections_turned_away",
            "TCP connections closed at once because there were too many",
            stats.turned_away,
        )
    }

    fn peers(&mut self, standing: &Standing) -> fmt::Result {
        let mut family = self.family(
            MetricType::Gauge,
            "peer_connections",
            "Connections by side and by the authority that the peer's certificate rests on",
        )?;
        for ((direction, authority), count) in standing.counts() {
            let labels = [("direction", direction.as_str()), ("authority", authority)];
            family.encode_family(&labels)?.encode_gauge(&count)?;
        }
        Ok(())
    }

    fn adapters(&mut self, adapters: &[AdapterSample], own: Option<u64>) -> fmt::Result {
        let with_generation = || {
            let sample = |a: &AdapterSample| Some((a.adapter.clone(), a.svid_generation?));
            adapters.iter().filter_map(sample).collect::<Vec<_>>()
        };
        let connected = adapters
            .iter()
            .map(|a| (a.adapter.clone(), u64::from(a.connected)));
        let connected: Vec<_> = connected.collect();
        self.by_adapter(
            "adapter_connected",
            "1 while all its connections are up",
            &connected,
        )?;
        self.by_adapter(
            "adapter_svid_generation",
            "The oldest SVID generation that its connections run on",
            &with_generation(),
        )?;
        let Some(own) = own else { return Ok(()) };
        let lag = with_generation()
            .into_iter()
            .map(|(a, g)| (a, own.saturating_sub(g)));
        self.by_adapter(
            "adapter_svid_generation_lag",
            "Generations between the current SVID and the oldest in use",
            &lag.collect::<Vec<_>>(),
        )
    }

    fn by_adapter(&mut self, name: &str, help: &str, values: &[(String, u64)]) -> fmt::Result {
        let mut family = self.family(MetricType::Gauge, name, help)?;
        for (adapter, value) in values {
            family
                .encode_family(&[("adapter", adapter.as_str())])?
                .encode_gauge(value)?;
        }
        Ok(())
    }

    fn engine(&mut self, engine: EngineSample) -> fmt::Result {
        self.gauge(
            "missions_unknown_outcome",
            "Missions whose outcome nothing can tell",
            &engine.unknown,
        )?;
        let mut robots = self.family(
            MetricType::Gauge,
            "robots",
            "Robots by whether they can be reached",
        )?;
        for (reachable, count) in [
            ("true", engine.robots_reachable),
            ("false", engine.robots_unreachable),
        ] {
            robots
                .encode_family(&[("reachable", reachable)])?
                .encode_gauge(&count)?;
        }
        Ok(())
    }

    fn queues(&mut self, engine: EngineSample, audit: AuditCounts) -> fmt::Result {
        let help = "What waits: open missions, missions queued for a robot, audit lines, events for the journal";
        let mut depths = self.family(MetricType::Gauge, "queue_depth", help)?;
        for (queue, depth) in [
            ("open", engine.open),
            ("queued", engine.queued),
            ("audit", audit.queued),
            ("journal", engine.journal_queue),
        ] {
            depths
                .encode_family(&[("queue", queue)])?
                .encode_gauge(&depth)?;
        }
        Ok(())
    }

    fn audit(&mut self, audit: AuditCounts) -> fmt::Result {
        if let Some(head) = audit.head {
            let help = "The hash of the last audit line that is on the disk";
            self.family(MetricType::Info, "audit_head", help)?
                .encode_info(&[("hash", head.to_string())])?;
        }
        self.counter("audit_lines", "Audit lines written", audit.written)?;
        self.counter("audit_lines_dropped", "Audit lines given up", audit.dropped)?;
        self.counter(
            "audit_lines_suppressed",
            "Refused handshakes that the audit told together with others",
            audit.suppressed,
        )?;
        self.counter(
            "audit_write_errors",
            "Writes of the audit that failed",
            audit.write_errors,
        )
    }
}

fn handshakes(family: &mut MetricEncoder<'_>, side: &str, stats: &HandshakeStats) -> fmt::Result {
    for (result, n) in [
        ("ok", stats.ok),
        ("no_identity", stats.no_identity),
        ("timeout", stats.timeout),
        ("untrusted", stats.untrusted),
        ("not_admitted", stats.not_admitted),
        ("no_certificate", stats.no_certificate),
        ("refused_by_peer", stats.refused_by_peer),
        ("protocol", stats.protocol),
        ("io", stats.io),
    ] {
        count(
            &mut family.encode_family(&[("side", side), ("result", result)])?,
            n,
        )?;
    }
    Ok(())
}

fn count(encoder: &mut MetricEncoder<'_>, value: u64) -> fmt::Result {
    let exemplar: Option<&Exemplar<[(&str, &str); 0], f64>> = None;
    encoder.encode_counter(&value, exemplar)
}

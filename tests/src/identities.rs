//! An authority with everybody's entries, and identities from it.

use portarium_identity::{
    PeerPolicy, SpiffeIdPattern, SvidConfig, SvidManager,
    authority::{Authority, AuthorityConfig, Entry},
};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// The hints that every authority has; robots' hints are their names.
pub mod hints {
    /// The gateway.
    pub const GATEWAY: &str = "robotics-gateway";
    /// The broker.
    pub const BROKER: &str = "mqtt-broker";
    /// Who sends missions.
    pub const CONTROL_PLANE: &str = "control-plane";
    /// Who confirms, resolves, holds and releases.
    pub const OPERATOR: &str = "operator";
    /// Known to the authority, and to no policy.
    pub const STRANGER: &str = "stranger";
}

/// The shortest lifetime there is: SVIDs rotate every 5 s.
const TTL: Duration = Duration::from_secs(10);

/// A running authority of the trust domain `portarium.robotics`.
pub struct Identities {
    /// To rotate, pause and re-enter.
    pub authority: Authority,
    socket: PathBuf,
}

/// The SPIFFE ID behind a hint: `spiffe://portarium.robotics/ns/portarium/sa/HINT/test`.
pub fn spiffe_id(hint: &str) -> String {
    format!("spiffe://portarium.robotics/ns/portarium/sa/{hint}/test")
}

/// A policy that admits one of them alone.
pub(crate) fn only(hint: &str) -> PeerPolicy {
    PeerPolicy::new([spiffe_id(hint).parse::<SpiffeIdPattern>().unwrap()])
}

impl Identities {
    /// With SVIDs that live for 10 s, the socket in this folder.
    pub async fn start(dir: &Path, robots: &[&str]) -> Self {
        Self::with(dir, robots, "portarium.robotics", TTL).await
    }

    /// With a trust domain and a lifetime of its own.
    pub async fn with(dir: &Path, robots: &[&str], trust_domain: &str, ttl: Duration) -> Self {
        let socket = dir.join("agent.sock");
        let authority = Authority::start(AuthorityConfig {
            trust_domain: trust_domain.into(),
            socket: socket.clone(),
            svid_ttl: ttl,
            entries: entries(robots, trust_domain),
        })
        .await
        .unwrap();
        Self { authority, socket }
    }

    /// The Workload API as `endpoint_socket` wants it.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// The identity with this hint, ready.
    pub async fn manager(&self, hint: &str) -> SvidManager {
        let manager = SvidManager::start(SvidConfig {
            endpoint_socket: Some(self.endpoint()),
            hint: Some(hint.into()),
        })
        .unwrap();
        crate::soon("an SVID", manager.ready()).await;
        manager
    }
}

/// The first DNS name becomes the CN, by which mosquitto knows a peer: each has its own.
fn entries(robots: &[&str], trust_domain: &str) -> Vec<Entry> {
    let entry = |hint: &str, dns_names: &[&str]| Entry {
        spiffe_id: spiffe_id(hint).replace("portarium.robotics", trust_domain),
        hint: hint.into(),
        dns_names: dns_names.iter().map(|name| (*name).to_owned()).collect(),
    };
    let mut entries = vec![
        entry(
            hints::GATEWAY,
            &["robotics-gateway.portarium.svc", "localhost"],
        ),
        entry(hints::BROKER, &["mosquitto.portarium.svc", "localhost"]),
        entry(hints::CONTROL_PLANE, &["control-plane.portarium.svc"]),
        entry(hints::OPERATOR, &["operator.portarium.svc"]),
        entry(hints::STRANGER, &["stranger.portarium.svc"]),
    ];
    entries.extend(robots.iter().map(|robot| entry(robot, &[robot])));
    entries
}

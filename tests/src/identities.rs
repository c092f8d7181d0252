//! An authority with everybody's entries, and identities from it.

use crate::mosquitto::Files;
use base64ct::{Base64, Encoding as _};
use portarium_identity::{
    PeerPolicy, SpiffeIdPattern, SvidConfig, SvidManager,
    authority::{Authority, AuthorityConfig, Entry, MintSpec},
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
}

const TRUST_DOMAIN: &str = "portarium.robotics";

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
    format!("spiffe://{TRUST_DOMAIN}/ns/portarium/sa/{hint}/test")
}

/// A policy that admits one of them alone.
pub fn only(hint: &str) -> PeerPolicy {
    PeerPolicy::new([spiffe_id(hint).parse::<SpiffeIdPattern>().unwrap()])
}

impl Identities {
    /// With SVIDs that live for 10 s, the socket in this folder.
    pub async fn start(dir: &Path, robots: &[&str]) -> Self {
        Self::living(dir, robots, TTL).await
    }

    /// As [`Self::start`], with SVIDs that live for so long.
    pub async fn living(dir: &Path, robots: &[&str], ttl: Duration) -> Self {
        let socket = dir.join("agent.sock");
        let authority = Authority::start(AuthorityConfig {
            trust_domain: TRUST_DOMAIN.into(),
            socket: socket.clone(),
            svid_ttl: ttl,
            entries: entries(robots),
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

    /// Writes a certificate that is not renewed into a folder: `svid.pem`, `key.pem`, `bundle.pem`.
    pub fn write_lasting(&self, hint: &str, ttl: Duration, dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        self.lasting(hint, ttl).write(dir);
    }

    /// A certificate of this authority that is not renewed, for peers that cannot be told of a new
    /// one.
    pub(crate) fn lasting(&self, hint: &str, ttl: Duration) -> Files {
        let mut known = entries(&[]).into_iter();
        let entry = known.find(|entry| entry.hint == hint).unwrap();
        let minted = self.authority.mint(&MintSpec {
            dns_names: entry.dns_names,
            ..MintSpec::svid(entry.spiffe_id, ttl)
        });
        let minted = minted.unwrap();
        let certificates =
            |all: &[Vec<u8>]| -> String { all.iter().map(|der| pem("CERTIFICATE", der)).collect() };
        Files {
            bundle: certificates(&self.authority.bundle()),
            chain: certificates(&minted.chain_der),
            key: pem("PRIVATE KEY", &minted.key_pkcs8_der),
        }
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let base64 = Base64::encode_string(der);
    let lines: String = base64
        .as_bytes()
        .chunks(64)
        .map(|line| format!("{}\n", String::from_utf8_lossy(line)))
        .collect();
    format!("-----BEGIN {label}-----\n{lines}-----END {label}-----\n")
}

/// The first DNS name becomes the CN, by which mosquitto knows a peer: each has its own.
fn entries(robots: &[&str]) -> Vec<Entry> {
    let entry = |hint: &str, dns_names: &[&str]| Entry {
        spiffe_id: spiffe_id(hint),
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
    ];
    entries.extend(robots.iter().map(|robot| entry(robot, &[robot])));
    entries
}

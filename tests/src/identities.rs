//! An authority with everybody's entries, and identities from it: the embedded one, or real SPIRE.

use crate::{
    mosquitto::Files,
    spire::{Registration, Spire, on_spire},
};
use base64ct::{Base64, Encoding as _};
use portarium_identity::{
    PeerPolicy, SpiffeIdPattern, SvidConfig, SvidManager,
    authority::{Authority, AuthorityConfig, Entry, MintSpec},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use x509_parser::{extensions::ParsedExtension, parse_x509_certificate};

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

/// A running authority of the trust domain `portarium.robotics`: real SPIRE under
/// `tests/run --spire`, else the embedded one.
pub struct Identities {
    source: Source,
    socket: PathBuf,
    entries: Vec<Entry>,
    ttl: Duration,
}

enum Source {
    Embedded(Authority),
    Spire(Arc<Spire>),
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
        let entries = entries(robots);
        let (source, socket) = if on_spire() {
            let spire = Spire::shared().await;
            spire.register(registrations(&entries, ttl)).await;
            let socket = spire.socket();
            (Source::Spire(spire), socket)
        } else {
            let socket = dir.join("agent.sock");
            let authority = Authority::start(AuthorityConfig {
                trust_domain: TRUST_DOMAIN.into(),
                socket: socket.clone(),
                svid_ttl: ttl,
                entries: entries.clone(),
            })
            .await
            .unwrap();
            (Source::Embedded(authority), socket)
        };
        Self {
            source,
            socket,
            entries,
            ttl,
        }
    }

    /// The embedded authority, for what only it does.
    pub fn authority(&self) -> &Authority {
        match &self.source {
            Source::Embedded(authority) => authority,
            Source::Spire(_) => panic!("this test needs the embedded authority"),
        }
    }

    /// Real SPIRE, for what only it does.
    pub fn spire(&self) -> &Spire {
        match &self.source {
            Source::Embedded(_) => {
                panic!("this test needs real SPIRE: run it by tests/run --spire")
            }
            Source::Spire(spire) => spire,
        }
    }

    /// The entry with this hint, as SPIRE has it from the beginning.
    pub fn registration(&self, hint: &str) -> Registration {
        let mut all = registrations(&self.entries, self.ttl).into_iter();
        all.find(|entry| entry.hint == hint).unwrap()
    }

    /// Deletes the entry with this hint. Followers may hear of it a little later.
    pub async fn delete(&self, hint: &str) {
        let mut left = self.entries.clone();
        left.retain(|entry| entry.hint != hint);
        self.have(left).await;
    }

    /// Makes all entries of the beginning, and only those, be there.
    pub async fn restore(&self) {
        self.have(self.entries.clone()).await;
    }

    /// Makes the next authority, and waits until the agent serves it in the bundle.
    pub async fn prepare(&self) {
        match &self.source {
            Source::Embedded(authority) => authority.prepare(),
            Source::Spire(spire) => spire.prepare().await,
        }
    }

    /// Has the prepared authority sign from now on.
    pub async fn activate(&self) {
        match &self.source {
            Source::Embedded(authority) => authority.activate(),
            Source::Spire(spire) => spire.activate().await,
        }
    }

    /// The id of the authority that signs, as SPIRE's server shows it.
    pub async fn signing(&self) -> String {
        match &self.source {
            Source::Embedded(authority) => {
                let signs = authority.bundle().swap_remove(0);
                let (_, signs) = parse_x509_certificate(&signs).unwrap();
                let mut key_ids =
                    signs
                        .iter_extensions()
                        .filter_map(|e| match e.parsed_extension() {
                            ParsedExtension::SubjectKeyIdentifier(key) => Some(format!("{key:x}")),
                            _ => None,
                        });
                key_ids.next().unwrap().replace(':', "")
            }
            Source::Spire(spire) => spire.signing().await,
        }
    }

    /// Has everything that the authority before signed issued anew, and waits until the agent
    /// serves that.
    pub async fn taint(&self) {
        match &self.source {
            Source::Embedded(authority) => authority.taint(),
            Source::Spire(spire) => spire.taint().await,
        }
    }

    /// Takes the authority before out of the bundle. Followers may hear of it a little later.
    pub async fn revoke(&self) {
        match &self.source {
            Source::Embedded(authority) => authority.revoke(),
            Source::Spire(spire) => spire.revoke().await,
        }
    }

    /// Has nobody's SVID renewed from now on: an authority that is silent, a server that is down.
    pub async fn stop_renewing(&self) {
        match &self.source {
            Source::Embedded(authority) => authority.pause(),
            Source::Spire(spire) => spire.kill_server(),
        }
    }

    /// Ends [`Self::stop_renewing`].
    pub async fn renew_again(&self) {
        match &self.source {
            Source::Embedded(authority) => authority.resume(),
            Source::Spire(spire) => spire.start_server().await,
        }
    }

    async fn have(&self, entries: Vec<Entry>) {
        match &self.source {
            Source::Embedded(authority) => authority.set_entries(entries),
            Source::Spire(spire) => spire.register(registrations(&entries, self.ttl)).await,
        }
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
            ..SvidConfig::default()
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
        let mut known = self.entries.iter();
        let entry = known.find(|entry| entry.hint == hint).unwrap();
        match &self.source {
            Source::Embedded(authority) => minted(authority, entry, ttl),
            Source::Spire(spire) => {
                let dir = tempfile::tempdir().unwrap();
                spire.mint(&entry.spiffe_id, &entry.dns_names, ttl, dir.path());
                Files::read(dir.path())
            }
        }
    }
}

fn minted(authority: &Authority, entry: &Entry, ttl: Duration) -> Files {
    let minted = authority.mint(&MintSpec {
        dns_names: entry.dns_names.clone(),
        ..MintSpec::svid(entry.spiffe_id.clone(), ttl)
    });
    let minted = minted.unwrap();
    let certificates =
        |all: &[Vec<u8>]| -> String { all.iter().map(|der| pem("CERTIFICATE", der)).collect() };
    Files {
        bundle: certificates(&authority.bundle()),
        chain: certificates(&minted.chain_der),
        key: pem("PRIVATE KEY", &minted.key_pkcs8_der),
    }
}

fn registrations(entries: &[Entry], ttl: Duration) -> Vec<Registration> {
    let registration = |entry: &Entry| Registration {
        spiffe_id: entry.spiffe_id.clone(),
        hint: entry.hint.clone(),
        dns_names: entry.dns_names.clone(),
        ttl,
        federates_with: Vec::new(),
    };
    entries.iter().map(registration).collect()
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

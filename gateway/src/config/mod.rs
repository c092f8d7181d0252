//! The configuration: one TOML file, and the environment for single keys.
//!
//! `PORTARIUM__GRPC__LISTEN` in the environment stands before `listen` of `[grpc]` in the file.
//! Lists (robots, rules, peers) and `development` stand in the file only. Unknown keys are
//! errors in both. Everything is parsed into types before anything binds; `sample.toml` beside
//! this file shows every key.

mod error;
#[cfg(test)]
mod mistakes;
mod parse;
mod peers;
mod raw;
mod robots;
mod source;
#[cfg(test)]
mod tests;
mod tokens;
mod types;

pub use error::{ConfigError, EXIT_BAD_CONFIG, Place};
pub use types::{BrokerName, Development, HostPort};

use crate::{
    audit::Rotation,
    policy::{MethodSet, Policy},
};
use portarium_identity::{
    PeerPolicy, SpiffeIdPattern, SvidConfig,
    token::{KeysConfig, TokenRules},
};
use portarium_protocols::{
    grpc::Target,
    ids::{FleetId, RobotId, TenantId},
};
use source::Source;
use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    ffi::OsString,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// A configuration with every key shown, which is accepted as it stands.
pub const SAMPLE: &str = include_str!("sample.toml");

/// The whole configuration, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// `development`: plaintext everywhere and a caller without identity. Only in the file, only
    /// outside Kubernetes, only with all listeners on loopback. Default: off.
    pub development: Option<Development>,
    /// `[identity]`: where SVIDs come from. Not used in development.
    pub identity: SvidConfig,
    /// `grpc.listen`: where the control plane calls. Default: `0.0.0.0:50051`; in development
    /// `127.0.0.1:50051`.
    pub grpc_listen: SocketAddr,
    /// `health.listen`: `/livez` and `/readyz`, plain HTTP. Default: `0.0.0.0:9090`; in
    /// development `127.0.0.1:9090`.
    pub health_listen: SocketAddr,
    /// `admin.listen`: `/metrics`, plain HTTP and therefore on loopback always. Default:
    /// `127.0.0.1:9091`.
    pub admin_listen: SocketAddr,
    /// `[journal]`
    pub journal: JournalConfig,
    /// `[audit]`
    pub audit: AuditConfig,
    /// `[engine]`
    pub engine: EngineConfig,
    /// `[log]`
    pub log: LogConfig,
    /// `[tokens]`: the access tokens that callers show. Default: none are asked for.
    pub tokens: Option<TokensConfig>,
    /// `[mqtt.NAME]`: the brokers by name.
    pub brokers: BTreeMap<BrokerName, BrokerConfig>,
    /// What a running gateway can take over from a changed file.
    pub reloadable: Reloadable,
}

/// `[journal]`: where missions are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalConfig {
    /// `path`. Default: `/var/lib/portarium-gateway/journal.sqlite`. Its folder must exist.
    pub path: PathBuf,
    /// `keep_finished_for`: how long finished missions and their keys are kept. Default: `7d`.
    pub keep_finished_for: Duration,
    /// `keep_finished_at_most`: how many of them are kept. Default: 1000000.
    pub keep_finished_at_most: usize,
}

/// `[audit]`: one JSON line per decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditConfig {
    /// `path`. Default: `/var/lib/portarium-gateway/audit.jsonl`. Its folder must exist.
    pub path: PathBuf,
    /// `rotate_bytes` (at least 65536) and `keep`: once the file has so many bytes it is put aside
    /// as `audit.jsonl.1`, and as many are kept. Default: 67108864 and 16.
    pub rotation: Rotation,
}

/// `[engine]`: limits of the mission engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// `shutdown_grace`: how long an ordered end may take. Default: `10s`.
    pub shutdown_grace: Duration,
    /// `open_missions_at_most`: over all robots; more are refused. Default: 10000.
    pub open_missions_at_most: usize,
}

/// `[log]`: what is told on standard error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// `format`: `text` or `json`. Default: `text`.
    pub format: LogFormat,
    /// `filter`: a level for the gateway itself, or `target=level` directives separated by
    /// commas. `RUST_LOG` stands before it. Default: `info`.
    pub filter: String,
}

/// `[tokens]`: access tokens bound to the callers' certificates (RFC 8705).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokensConfig {
    /// `issuer` and `audience`: whose tokens are taken, and which. Required.
    pub rules: TokenRules,
    /// `keys_file`, `keys_url` (with `keys_ca_file`) or `keys_trust_domain`: where the issuer's
    /// public keys come from. One of them is required. `keys_refresh`: how often they are read, 12 h
    /// at most. Default: `5m`.
    pub keys: KeysConfig,
    /// `methods`: which need a token. Required.
    pub methods: MethodSet,
    /// `stops`: whether stops need one as well, so that there is none without the issuer's keys.
    /// Default: false.
    pub stops: bool,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// `[mqtt.NAME]`: a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerConfig {
    /// `address`, HOST:PORT. Required. Who answers there is told by its SPIFFE ID (`peers`), not
    /// by a host name.
    pub address: HostPort,
    /// `peers`: who the broker may be. Required but in development, where nobody is asked.
    pub peers: PeerPolicy,
    /// `shared_status_topic`: robots report on `portarium/TENANT/missions/MISSION/status`, which
    /// does not tell who wrote. Default: true.
    pub shared_status_topic: bool,
}

/// The part of the configuration that a running gateway can take over.
#[derive(Debug, Clone)]
pub struct Reloadable {
    /// `[[robots]]`, in the order of the file; their ids are unique.
    pub robots: Vec<RobotConfig>,
    /// `[[policy]]`: who may do what. At least one rule, but in development.
    pub policy: Policy,
    /// `identity.deny`: with whom there is no connection, in either direction. Default: nobody.
    pub denied: Vec<SpiffeIdPattern>,
}

/// `[[robots]]`: a robot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RobotConfig {
    /// `id`. Required.
    pub id: RobotId,
    /// `fleet`. Default: none.
    pub fleet: Option<FleetId>,
    /// `actions`: the names of what the robot can do. Required, not empty. Stops need no entry.
    pub actions: BTreeSet<String>,
    /// `redelivery`: `never` or `idempotent`. Default: `never`.
    pub redelivery: Redelivery,
    /// `deliver_within`: after this time a mission is stale. More than 0. Default: `60s`.
    pub deliver_within: Duration,
    /// `queue`: how many missions may wait while the robot is busy; 0 refuses them. Default: 16.
    pub queue: usize,
    /// `adapter`: `mqtt` or `grpc`, and that adapter's keys. Required.
    pub adapter: AdapterConfig,
}

/// Whether a mission may be sent a second time after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redelivery {
    /// What may have been sent is never sent again; its outcome is unknown.
    Never,
    /// The robot executes each `idempotency_key` at most once, so it may be sent again.
    Idempotent,
}

/// How a robot is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdapterConfig {
    /// Over a broker, on the control plane's own topics.
    Mqtt {
        /// `broker`: the NAME of a `[mqtt.NAME]`. Required.
        broker: BrokerName,
        /// `tenant`: part of the topics. Required.
        tenant: TenantId,
    },
    /// As a server of the contract.
    Grpc {
        /// `address`, HOST:PORT. Required. Who answers there is told by its SPIFFE ID (`peers`), not
        /// by a host name.
        address: Target,
        /// `peers`: who the robot may be. Required but in development, where nobody is asked.
        peers: PeerPolicy,
        /// `jwt_audience`: the robot asks for a JWT-SVID for this audience beside the certificate.
        /// Default: none is shown.
        jwt_audience: Option<String>,
    },
}

impl AdapterConfig {
    /// The adapter's name, as in the file.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Mqtt { .. } => "mqtt",
            Self::Grpc { .. } => "grpc",
        }
    }
}

impl Config {
    /// Reads the file and this process's environment.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        Self::load_with(file, &env::vars_os().collect::<Vec<_>>())
    }

    /// Reads the file and the given environment.
    pub fn load_with(
        file: &Path,
        environment: &[(OsString, OsString)],
    ) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(file).map_err(|error| ConfigError::read(file, &error))?;
        Self::from_text(file, &text, environment)
    }

    /// Parses a text that stands for the content of `file`, which is named in errors only.
    pub fn from_text(
        file: &Path,
        text: &str,
        environment: &[(OsString, OsString)],
    ) -> Result<Self, ConfigError> {
        let (source, raw) = Source::read(file, text, environment)?;
        parse::config(&source, raw, environment)
    }

    /// Reads the file again for a running gateway. It is refused whole where it is wrong, and
    /// where more than robots and policy changed.
    pub fn reload_from(file: &Path, current: &Self) -> Result<Reloadable, ConfigError> {
        Self::load(file)?.reload_over(file, current)
    }

    fn reload_over(self, file: &Path, current: &Self) -> Result<Reloadable, ConfigError> {
        let keys = self.keys_that_differ(current);
        if keys.is_empty() {
            Ok(self.reloadable)
        } else {
            Err(ConfigError::NeedsRestart {
                file: file.display().to_string(),
                keys,
            })
        }
    }

    /// The keys, other than robots and policy, in which two configurations differ.
    fn keys_that_differ(&self, other: &Self) -> Vec<String> {
        let (a, b) = (self, other);
        let fixed = [
            ("development", a.development != b.development),
            (
                "identity.endpoint_socket",
                a.identity.endpoint_socket != b.identity.endpoint_socket,
            ),
            ("identity.hint", a.identity.hint != b.identity.hint),
            (
                "identity.renew_before",
                a.identity.renew_before != b.identity.renew_before,
            ),
            ("grpc.listen", a.grpc_listen != b.grpc_listen),
            ("health.listen", a.health_listen != b.health_listen),
            ("admin.listen", a.admin_listen != b.admin_listen),
            ("journal.path", a.journal.path != b.journal.path),
            (
                "journal.keep_finished_for",
                a.journal.keep_finished_for != b.journal.keep_finished_for,
            ),
            (
                "journal.keep_finished_at_most",
                a.journal.keep_finished_at_most != b.journal.keep_finished_at_most,
            ),
            ("audit.path", a.audit.path != b.audit.path),
            (
                "audit.rotate_bytes",
                a.audit.rotation.bytes != b.audit.rotation.bytes,
            ),
            ("audit.keep", a.audit.rotation.keep != b.audit.rotation.keep),
            (
                "engine.shutdown_grace",
                a.engine.shutdown_grace != b.engine.shutdown_grace,
            ),
            (
                "engine.open_missions_at_most",
                a.engine.open_missions_at_most != b.engine.open_missions_at_most,
            ),
            ("log.format", a.log.format != b.log.format),
            ("log.filter", a.log.filter != b.log.filter),
            ("tokens", a.tokens != b.tokens),
        ];
        let names: BTreeSet<_> = a.brokers.keys().chain(b.brokers.keys()).collect();
        let brokers = names
            .into_iter()
            .filter(|name| a.brokers.get(*name) != b.brokers.get(*name));
        fixed
            .into_iter()
            .filter(|(_, differs)| *differs)
            .map(|(key, _)| key.to_owned())
            .chain(brokers.map(|name| format!("mqtt.{name}")))
            .collect()
    }
}

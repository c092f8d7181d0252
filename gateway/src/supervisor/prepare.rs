//! All that can be wrong is found before anything is served.

use crate::{
    admin::Readiness,
    audit::Audit,
    clock::SystemClock,
    config::{Config, ConfigError, Place},
    journal::{Journal, Opened, Retention},
    metrics::Metrics,
};
use portarium_identity::{
    SvidManager, error_chain,
    token::{KeySource, KeysError, TokenKeys},
};
use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::Arc,
};

/// Where the gateway listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The mission service.
    pub grpc: SocketAddr,
    /// `/livez` and `/readyz`.
    pub health: SocketAddr,
    /// `/metrics`.
    pub admin: SocketAddr,
}

/// A gateway with its ports bound, its journal read and its identity asked for.
pub struct Gateway {
    pub(super) config: Config,
    pub(super) listeners: Listeners,
    pub(super) journal: Opened,
    pub(super) audit: Audit,
    pub(super) identity: Option<SvidManager>,
    pub(super) token_keys: Option<Arc<TokenKeys>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) readiness: Arc<Readiness>,
}

pub(super) struct Listeners {
    pub(super) grpc: TcpListener,
    pub(super) health: TcpListener,
    pub(super) admin: TcpListener,
}

impl Gateway {
    /// Binds the ports, opens journal and audit and begins to ask for an SVID. `file` is named
    /// in errors.
    ///
    /// # Errors
    /// [`ConfigError`] where the configuration names what cannot be had.
    pub fn prepare(file: &Path, config: Config) -> anyhow::Result<Self> {
        let bind = |key: &str, address: SocketAddr| {
            bind(address).map_err(|error| {
                key_error(
                    file,
                    key,
                    &format!("{address}: {error}; choose another port or end what listens there"),
                )
            })
        };
        let listeners = Listeners {
            grpc: bind("grpc.listen", config.grpc_listen)?,
            health: bind("health.listen", config.health_listen)?,
            admin: bind("admin.listen", config.admin_listen)?,
        };
        let retention = Retention {
            keep_for: config.journal.keep_finished_for,
            at_most: config.journal.keep_finished_at_most,
        };
        let journal = Journal::open(&config.journal.path, retention, &SystemClock)?;
        let audit = Audit::open(&config.audit.path, config.audit.rotation).map_err(|error| {
            let path = config.audit.path.display();
            key_error(
                file,
                "audit.path",
                &format!("{path} cannot be opened for appending: {error}"),
            )
        })?;
        let identity = match config.development {
            Some(_) => None,
            None => {
                let manager = SvidManager::start(config.identity.clone()).map_err(|error| {
                    key_error(file, "identity.endpoint_socket", &error_chain(&error))
                })?;
                manager.deny(config.reloadable.denied.clone());
                Some(manager)
            }
        };
        let token_keys = match &config.tokens {
            None => None,
            Some(tokens) => {
                let keys = TokenKeys::new(tokens.keys.clone());
                Some(Arc::new(
                    keys.map_err(|e| keys_error(file, &tokens.keys.source, &e))?,
                ))
            }
        };
        Ok(Self {
            config,
            listeners,
            journal,
            audit,
            identity,
            token_keys,
            metrics: Metrics::new(),
            readiness: Readiness::new(),
        })
    }

    /// Where it listens; also right where the configuration left the port open.
    ///
    /// # Errors
    /// As the system's.
    pub fn addresses(&self) -> std::io::Result<Addresses> {
        Ok(Addresses {
            grpc: self.listeners.grpc.local_addr()?,
            health: self.listeners.health.local_addr()?,
            admin: self.listeners.admin.local_addr()?,
        })
    }
}

/// Connections that may wait in the kernel's queue; it takes no more than `net.core.somaxconn`, 4096
/// where nobody changed it. The 128 of the standard library are full when a fleet comes back at once,
/// and whoever finds it full tries again after one, three, seven, fifteen seconds, each time by chance:
/// with 1024, strangers by the thousand kept some newcomers out for longer than 20 s.
const BACKLOG: i32 = 4096;

/// Whether the issuer's keys can be had, as far as this machine can tell. A gateway starts without
/// them, so that stops get through.
///
/// # Errors
/// [`ConfigError`] where they cannot.
pub fn check_keys(file: &Path, config: &Config) -> Result<(), ConfigError> {
    let Some(tokens) = &config.tokens else {
        return Ok(());
    };
    let checked = tokens.keys.check();
    checked.map_err(|error| keys_error(file, &tokens.keys.source, &error))
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    rustix::net::listen(&listener, BACKLOG)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn keys_error(file: &Path, from: &KeySource, error: &KeysError) -> ConfigError {
    let key = match from {
        KeySource::File(_) => "tokens.keys_file",
        KeySource::Url { .. } => "tokens.keys_url",
        KeySource::WorkloadApi { .. } => "tokens.keys_trust_domain",
    };
    key_error(file, key, &error_chain(error))
}

fn key_error(file: &Path, key: &str, problem: &str) -> ConfigError {
    ConfigError::Key {
        place: Place::File {
            file: file.display().to_string(),
            key: key.to_owned(),
        },
        problem: problem.to_owned(),
    }
}

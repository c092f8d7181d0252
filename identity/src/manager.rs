//! The SVID manager.
use crate::{ClientTls, IdentityError, PeerPolicy, ServerTls, Snapshot};
use std::{fmt, sync::Arc};
use tokio::sync::watch;

/// Where SVIDs come from and which one is ours.
#[derive(Debug, Clone)]
pub struct SvidConfig {
    /// `unix:///path`; `None`: from `SPIFFE_ENDPOINT_SOCKET`.
    pub endpoint_socket: Option<String>,
    /// The hint of the wanted SVID. `None`: there must be exactly one SVID.
    pub hint: Option<String>,
}

/// How the manager stands with the Workload API, told apart for people, metrics and readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityState {
    /// Not connected yet.
    Starting,
    /// The socket file is not there.
    NoSocket,
    /// The socket is there but nobody listens, or the call fails.
    Refused {
        /// What the transport said.
        reason: String,
    },
    /// The agent knows no entry for this workload (yet).
    PermissionDenied,
    /// SVIDs arrive, but none with the wanted hint.
    NoSuchHint {
        /// The hint wanted, if any.
        wanted: Option<String>,
        /// The hints offered.
        offered: Vec<String>,
    },
    /// A current SVID is there.
    Ready,
    /// The last good SVID has expired.
    Expired,
}

impl fmt::Display for IdentityState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// The one source of identity. Cheap to clone; all clones share one Workload API stream.
#[derive(Clone)]
pub struct SvidManager {}

impl SvidManager {
    /// Starts following the Workload API in the background; never waits.
    pub fn start(config: SvidConfig) -> Result<Self, IdentityError> {
        todo!("{config:?}")
    }
    /// The last good snapshot, also while renewal fails; `None` before the first and once it has
    /// expired or was withdrawn.
    pub fn current(&self) -> Option<Arc<Snapshot>> {
        todo!()
    }
    /// How things stand.
    pub fn state(&self) -> IdentityState {
        todo!()
    }
    /// Level-triggered: the value changes with each new snapshot, and to `None` on withdrawal.
    pub fn snapshots(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        todo!()
    }
    /// Waits until an SVID is there.
    pub async fn ready(&self) -> Arc<Snapshot> {
        todo!()
    }
    /// The client's side of mutual TLS towards peers that the policy admits.
    pub fn client_tls(&self, policy: PeerPolicy, alpn: &[&[u8]]) -> ClientTls {
        todo!("{policy:?} {alpn:?}")
    }
    /// The server's side of mutual TLS for peers that the policy admits.
    pub fn server_tls(&self, policy: PeerPolicy, alpn: &[&[u8]]) -> ServerTls {
        todo!("{policy:?} {alpn:?}")
    }
}

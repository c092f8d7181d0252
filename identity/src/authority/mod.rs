//! The embedded authority: a real Workload API on a Unix socket, with a CA of its own.
use std::{path::PathBuf, time::Duration};

/// One SVID that the authority hands out.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The full SPIFFE ID.
    pub spiffe_id: String,
    /// The hint.
    pub hint: String,
    /// DNS names; the first becomes the CN, as SPIRE does.
    pub dns_names: Vec<String>,
}

/// What the authority is to be.
#[derive(Debug, Clone)]
pub struct AuthorityConfig {
    /// For example `portarium.robotics`.
    pub trust_domain: String,
    /// Where the socket is made.
    pub socket: PathBuf,
    /// X.509-SVID lifetime, 10 s or more; renewed at half of it.
    pub svid_ttl: Duration,
    /// All are handed to every caller of the authority's own user.
    pub entries: Vec<Entry>,
}

/// A running authority. Dropping it closes the socket.
pub struct Authority {}

impl Authority {
    /// Binds the socket (0600) and serves.
    pub async fn start(config: AuthorityConfig) -> Result<Self, AuthorityError> {
        todo!("{config:?}")
    }
    /// Issues new SVIDs to all followers now.
    pub fn rotate(&self) {
        todo!()
    }
    /// Replaces the entries; followers hear of it at once. Empty: PermissionDenied.
    pub fn set_entries(&self, entries: Vec<Entry>) {
        todo!("{entries:?}")
    }
}

/// Why the authority cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The socket cannot be made.
    #[error("cannot serve the Workload API at {path}: {source}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The CA cannot sign.
    #[error("cannot sign: {0}")]
    Sign(String),
}

//! Workload identity: one SVID manager that all protocols share.
//!
//! Workload API stream → immutable [`Snapshot`]s → TLS configurations that are views of it. Who
//! may be on the other end of a connection is always written down ([`PeerPolicy`]; it has no
//! default), and every connection has an end ([`Peer::lease`]).
//!
//! The Workload API is spoken, and its answers are parsed, by the `spiffe` crate. Its `X509Source`
//! is not used: it does not tell a missing socket from a missing entry, and waits for ever on an
//! agent that hangs. The TLS side is rustls' own path validation over the bundles of a snapshot,
//! with the leaf rules of the X.509-SVID standard on top ([`PeerError`]). The builders of
//! `spiffe-rustls` are not used either: their material lags behind its source by a task's wake-up
//! and refuses handshakes meanwhile, the verifier in them cannot be wrapped to learn the peer's
//! certificate, and they leave the TLS version to what other crates switched on in rustls.

pub use spiffe::{SpiffeId, TrustDomain};

#[cfg(feature = "authority")]
pub mod authority;
mod chain;
mod config;
mod error;
mod follow;
mod manager;
mod peer;
mod policy;
mod shared;
mod snapshot;
mod state;
mod stats;
mod tls;

pub use chain::PeerError;
pub use error::IdentityError;
pub use manager::{SvidConfig, SvidManager};
pub use peer::{Lease, Peer};
pub use policy::{PatternError, PeerPolicy, SpiffeIdPattern};
pub use snapshot::Snapshot;
pub use state::IdentityState;
pub use stats::{HandshakeStats, IdentityStats};
pub use tls::{ClientTls, ServerTls, TlsError};

/// Installs the process's one rustls provider (aws-lc-rs, X25519 first). Idempotent; `main` calls
/// it first.
pub fn install_crypto_provider() {
    // An error means that it is installed already.
    let _ = config::provider().as_ref().clone().install_default();
}

//! Workload identity: one SVID manager that all protocols share.
//!
//! Workload API stream → immutable [`Snapshot`]s → TLS configurations that are views of it. Who
//! may be on the other end of a connection is always written down ([`PeerPolicy`]; it has no
//! default), and every connection has an end ([`Peer::not_after`]).

pub use spiffe::{SpiffeId, TrustDomain};

#[cfg(feature = "authority")]
pub mod authority;
mod error;
mod manager;
mod peer;
mod policy;
mod snapshot;
mod tls;

pub use error::IdentityError;
pub use manager::{IdentityState, SvidConfig, SvidManager};
pub use peer::{Lease, Peer};
pub use policy::{PatternError, PeerPolicy, SpiffeIdPattern};
pub use snapshot::Snapshot;
pub use tls::{ClientTls, ServerTls, TlsError};

/// Installs the process's one rustls provider (aws-lc-rs). Idempotent; `main` calls it first.
pub fn install_crypto_provider() {
    // An error means that it is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

//! Workload identity: one SVID manager that all protocols share.
//!
//! Workload API stream → immutable [`Snapshot`]s → TLS configurations that are views of it. Who
//! may be on the other end of a connection is always written down ([`PeerPolicy`]; it has no
//! default), and every connection has an end ([`Peer::lease`]).
//!
//! The Workload API is spoken, and its answers are parsed, by the `spiffe` crate. Its `X509Source`
//! is not used: by default it waits for ever on an agent that hangs, and with a time limit it does
//! not say whether the socket, the agent or the entry was missing.
//!
//! The TLS side is rustls' own path validation over the bundles of a snapshot, with the leaf rules
//! of the X.509-SVID standard on top ([`PeerError`]). `spiffe-rustls` 0.11 is not used either. Its
//! material lags behind its source by a task's wake-up and handshakes fail meanwhile, some with an
//! alert that names no cause: 787 of 247,193 were lost with rotations every 20 ms, 2 of 27,465
//! with rotations every 5 s on a busy machine, and none of 447,493 here under the same loads. Its
//! verifier is private, so that the serial and NotAfter of the peer, by which connections end,
//! cannot be had where a library hides the stream; and its builders take whatever TLS versions
//! other crates switched on in rustls.

pub use spiffe::{SpiffeId, TrustDomain};

#[cfg(feature = "authority")]
pub mod authority;
mod chain;
mod clock;
mod config;
mod error;
mod follow;
#[cfg(all(fuzzing, feature = "authority"))]
pub mod fuzzing;
mod issuer;
mod jwt_svid;
mod manager;
mod peer;
mod policy;
mod shared;
#[cfg(test)]
mod simulator;
mod snapshot;
mod state;
mod stats;
mod tls;
pub mod token;

pub use chain::PeerError;
pub use clock::Doubt;
pub use error::{IdentityError, error_chain};
pub use jwt_svid::{JwtSvid, JwtSvidSource, JwtSvids};
pub use manager::{SvidConfig, SvidManager};
pub use peer::{Lease, Peer};
pub use policy::{PatternError, PeerPolicy, SpiffeIdPattern};
pub use snapshot::Snapshot;
pub use state::{IdentityState, RenewalOverdue};
pub use stats::{HandshakeStats, IdentityStats};
pub use tls::{ClientTls, ServerTls, TlsError};

/// Installs the process's one rustls provider (aws-lc-rs, X25519 first). Idempotent; `main` calls
/// it first.
pub fn install_crypto_provider() {
    // An error means that it is installed already.
    let _ = config::provider().as_ref().clone().install_default();
}

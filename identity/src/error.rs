//! What can fail in this crate.
use thiserror::Error;

/// What can fail in this crate.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// No SVID yet; the state says why.
    #[error("no SVID to make a connection with: {0}")]
    NotReady(crate::IdentityState),
    /// The endpoint socket is no valid SPIFFE endpoint.
    #[error("endpoint socket {socket:?}: {reason}")]
    Endpoint {
        /// As configured.
        socket: String,
        /// What is wrong.
        reason: String,
    },
    /// The Workload API gives no JWT-SVID.
    #[error("no JWT-SVID for {audience:?}: {reason}")]
    JwtSvid {
        /// For whom.
        audience: String,
        /// Why.
        reason: String,
    },
    /// rustls refused the material.
    #[error("cannot build a TLS configuration: {0}")]
    Tls(String),
    /// [`crate::SvidManager::start`] was called outside a tokio runtime.
    #[error("the SVID manager must be started inside a tokio runtime")]
    NoRuntime,
}

/// An error and what is behind it, on one line.
pub fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

//! Health and metrics over plain HTTP, on listeners of their own.
//!
//! Health (`/livez`, `/readyz`) is safe to open to a kubelet; metrics (`/metrics`) stay on
//! loopback, which the configuration sees to.

mod http;
mod readiness;
#[cfg(test)]
mod tests;

pub use readiness::{Component, Readiness};

use crate::metrics::{self, Metrics};
use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    routing::get,
};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves `/livez` and `/readyz` until `shutdown`.
///
/// `/livez` answers 200 as long as anything does. `/readyz` answers 200 `ready`, with one line per
/// component that will not be for long, or 503 with one line per component that is not, and why.
pub async fn serve_health(
    listener: TcpListener,
    readiness: Arc<Readiness>,
    shutdown: CancellationToken,
) {
    let readyz = move || {
        let (reasons, warnings) = (readiness.reasons(), readiness.warnings());
        async move {
            let line = |(name, reason): &(String, String)| format!("{name}: {reason}\n");
            if reasons.is_empty() {
                let warnings = warnings.iter().map(|w| format!("degraded: {}", line(w)));
                return (
                    StatusCode::OK,
                    "ready\n".to_owned() + &warnings.collect::<String>(),
                );
            }
            let lines = reasons.iter().map(line).collect();
            (StatusCode::SERVICE_UNAVAILABLE, lines)
        }
    };
    let livez = || async { "alive\n" };
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz));
    http::serve(listener, router, shutdown).await;
}

/// Serves `/metrics` until `shutdown`.
pub async fn serve_admin(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
) {
    let page = move || {
        let text = metrics.encode();
        async move { ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text) }
    };
    http::serve(
        listener,
        Router::new().route("/metrics", get(page)),
        shutdown,
    )
    .await;
}

//! A small HTTP/1.1 server that strangers cannot tie up.

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Connections at a time; one more is closed at once.
const MAX_CONNECTIONS: usize = 32;

/// How long a request may take to arrive.
const HEADER_LIMIT: Duration = Duration::from_secs(5);

/// How long a connection may live, whatever is on it.
const CONNECTION_LIMIT: Duration = Duration::from_secs(60);

/// Requests here have no body, and short headers.
const MAX_BUFFER: usize = 16 * 1024;

/// The pause after a failed `accept`: out of file descriptors, it fails again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown`; what is under way then is cut.
pub(super) async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    let accepting = async {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&free).try_acquire_owned() else {
                continue;
            };
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_LIMIT)
                .max_buf_size(MAX_BUFFER)
                .serve_connection(
                    TokioIo::new(stream),
                    TowerToHyperService::new(router.clone()),
                );
            let ended = shutdown.clone().cancelled_owned();
            connections.spawn(async move {
                tokio::select! {
                    // How it ended matters to its client alone.
                    _ = timeout(CONNECTION_LIMIT, connection) => {}
                    () = ended => {}
                }
                drop(permit);
            });
        }
    };
    tokio::select! {
        () = accepting => {}
        () = shutdown.cancelled() => {}
    }
    connections.close();
    connections.wait().await;
}

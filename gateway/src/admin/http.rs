//! A small HTTP/1.1 server that strangers cannot tie up.

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{collections::VecDeque, time::Duration};
use tokio::{
    net::TcpListener,
    task::AbortHandle,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Connections at a time; for one more the oldest is cut. Turned away at the door, a kubelet
/// would take whoever holds all places for a gateway that is dead, and end it.
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
    let connections = TaskTracker::new();
    let mut open = VecDeque::with_capacity(MAX_CONNECTIONS);
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
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_LIMIT)
                .max_buf_size(MAX_BUFFER)
                .serve_connection(
                    TokioIo::new(stream),
                    TowerToHyperService::new(router.clone()),
                );
            let ended = shutdown.clone().cancelled_owned();
            let task = connections.spawn(async move {
                tokio::select! {
                    // How it ended matters to its client alone.
                    _ = timeout(CONNECTION_LIMIT, connection) => {}
                    () = ended => {}
                }
            });
            open.retain(|connection: &AbortHandle| !connection.is_finished());
            if open.len() == MAX_CONNECTIONS
                && let Some(oldest) = open.pop_front()
            {
                oldest.abort();
            }
            open.push_back(task.abort_handle());
        }
    };
    tokio::select! {
        () = accepting => {}
        () = shutdown.cancelled() => {}
    }
    connections.close();
    connections.wait().await;
}

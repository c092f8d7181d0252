//! A small MQTT 5 broker for `portarium-gateway dev` and for tests without a broker installed.
//!
//! Brokers that can be embedded read certificate files once; this one resolves the current SVID
//! at each handshake, and knows its clients by their SPIFFE IDs. QoS 0 and 1; retained messages,
//! wills, sessions that outlive connections, message expiry. All in memory: a restarted broker has
//! forgotten everything.

mod admission;
mod connection;
mod conversation;
mod router;
mod session;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls_tests;
mod topic;
mod wire;

use portarium_identity::{ServerTls, SpiffeId, SpiffeIdPattern};
use router::Router;
use session::QueueLimits;
use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Who may connect, and what each may do.
#[derive(Clone)]
pub enum Access {
    /// Anyone, in plaintext, everything: for development on a loopback address.
    Open,
    /// Those whom the TLS policy admits, each by its own identity.
    Identities {
        /// The broker's side of mutual TLS.
        tls: ServerTls,
        /// All rules that match a client's SPIFFE ID count together; what none allows is refused.
        rules: Vec<AclRule>,
    },
}

/// What the clients of some identities may do.
#[derive(Debug, Clone)]
pub struct AclRule {
    /// Whose rule it is.
    pub who: SpiffeIdPattern,
    /// Filters of the topics that they may publish to.
    pub publish: Vec<String>,
    /// Filters that they may subscribe to, or to anything narrower.
    pub subscribe: Vec<String>,
}

/// What bounds the broker.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time, those in their handshake included.
    pub connections: usize,
    /// Sessions, those without a connection included.
    pub sessions: usize,
    /// Subscriptions of one client.
    pub subscriptions: usize,
    /// Retained messages.
    pub retained: usize,
    /// Bytes of retained messages.
    pub retained_bytes: usize,
    /// Messages that may wait for one client; when it is full the newest is dropped.
    pub queued_messages: usize,
    /// Bytes that may wait for one client.
    pub queued_bytes: usize,
    /// QoS 1 messages in flight to one client, whatever receive maximum it names.
    pub in_flight: usize,
    /// The largest packet, in bytes.
    pub packet_bytes: u32,
    /// The longest that a session may outlive its connection.
    pub session_expiry: Duration,
    /// The longest keep-alive; clients that want a longer one or none get this one.
    pub keep_alive: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 2_000,
            sessions: 4_000,
            subscriptions: 4_000,
            retained: 100_000,
            retained_bytes: 64 * 1024 * 1024,
            queued_messages: 10_000,
            queued_bytes: 16 * 1024 * 1024,
            in_flight: 100,
            packet_bytes: 256 * 1024,
            session_expiry: Duration::from_secs(24 * 3600),
            keep_alive: Duration::from_secs(300),
        }
    }
}

impl Limits {
    fn queue(&self) -> QueueLimits {
        QueueLimits {
            messages: self.queued_messages,
            bytes: self.queued_bytes,
        }
    }
}

/// What the client ID of a workload begins with, so that no other workload can take its session
/// over: `spiffe://portarium.robotics/ns/portarium/sa/robot/dev` →
/// `portarium.robotics:ns:portarium:sa:robot:dev`. What follows it, if anything, begins with a
/// character that no SPIFFE ID has: anything but letters, digits, `.`, `-`, `_`, `:`.
pub fn client_id_prefix(id: &SpiffeId) -> String {
    format!("{}{}", id.trust_domain(), id.path()).replace('/', ":")
}

/// A running broker. Dropping it ends it and all connections.
pub struct Broker {
    local_addr: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// What all connections share.
struct Shared {
    access: Access,
    limits: Limits,
    router: Mutex<Router>,
    stop: CancellationToken,
}

impl Shared {
    fn router(&self) -> MutexGuard<'_, Router> {
        self.router.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Broker {
    /// Serves on a listener, in the background.
    ///
    /// # Errors
    /// When the listener has no address, or [`Access::Open`] is to serve more than a loopback
    /// address.
    pub fn start(listener: TcpListener, access: Access, limits: Limits) -> io::Result<Self> {
        let local_addr = listener.local_addr()?;
        if matches!(access, Access::Open) && !local_addr.ip().is_loopback() {
            let reason = format!("{local_addr} is no loopback address: a broker there needs TLS");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let shared = Arc::new(Shared {
            access,
            limits,
            router: Mutex::new(Router::new(limits)),
            stop: stop.clone(),
        });
        tasks.spawn(sweep(Arc::clone(&shared)));
        tasks.spawn(accept(listener, shared, tasks.clone()));
        tasks.close();
        Ok(Self {
            local_addr,
            stop,
            tasks,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Ends it: clients are told, the port is free when this returns. No wills are published.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, tasks: TaskTracker) {
    let slots = Arc::new(Semaphore::new(shared.limits.connections));
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: the next one may succeed.
                tracing::warn!(%error, "cannot accept an MQTT connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            tracing::warn!(%from, "MQTT connection refused: too many");
            continue;
        };
        let shared = Arc::clone(&shared);
        tasks.spawn(async move {
            if let Err(error) = connection::serve(stream, &shared).await {
                tracing::info!(%from, %error, "MQTT connection ended");
            }
            drop(slot);
        });
    }
}

async fn sweep(shared: Arc<Shared>) {
    let mut period = interval(Duration::from_millis(250));
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            _ = period.tick() => shared.router().sweep(Instant::now()),
        }
    }
}

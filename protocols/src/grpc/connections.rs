//! The live connections of one listener: counted, and closed by predicate.

use super::error::GrpcError;
use futures::task::AtomicWaker;
use portarium_identity::{Peer, TlsError};
use std::{
    collections::HashMap,
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    task::Poll,
};

/// The connections of one listener: what happened at its door, and who is in.
#[derive(Debug, Default)]
pub struct Connections {
    open: Mutex<HashMap<u64, Entry>>,
    accepted: AtomicU64,
    turned_away: AtomicU64,
    established: AtomicU64,
    failed_identity: AtomicU64,
    failed_handshake: AtomicU64,
    failed_timeout: AtomicU64,
    failed_peer: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    peer: Option<Arc<Peer>>,
    order: Arc<Order>,
}

/// What happened at the door since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerStats {
    /// TCP connections accepted.
    pub accepted: u64,
    /// Closed at once, because `max_connections` were there.
    pub turned_away: u64,
    /// Handshakes that succeeded (without TLS: connections).
    pub established: u64,
    /// Handshakes that failed because we have no SVID.
    pub failed_identity: u64,
    /// Handshakes that failed, for example because the policy does not admit the peer.
    pub failed_handshake: u64,
    /// Handshakes that took too long.
    pub failed_timeout: u64,
    /// Peers whose certificate is no X.509-SVID.
    pub failed_peer: u64,
    /// Authenticated connections open now.
    pub open: u64,
}

impl Connections {
    /// None yet. One for each listener.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The counters now.
    pub fn stats(&self) -> ServerStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ServerStats {
            accepted: get(&self.accepted),
            turned_away: get(&self.turned_away),
            established: get(&self.established),
            failed_identity: get(&self.failed_identity),
            failed_handshake: get(&self.failed_handshake),
            failed_timeout: get(&self.failed_timeout),
            failed_peer: get(&self.failed_peer),
            open: self.open().len() as u64,
        }
    }

    /// Cuts the connections of all peers that `unwanted` names, with whatever is on them: after
    /// a change of policy those that it no longer admits. Returns how many. Connections without
    /// TLS have no peer and stay.
    pub fn close_where(&self, unwanted: impl Fn(&Peer) -> bool) -> usize {
        let open = self.open();
        let cut = open
            .values()
            .filter(|entry| entry.peer.as_deref().is_some_and(&unwanted));
        cut.map(|entry| entry.order.give(CUT)).count()
    }

    /// Asks all connections to finish.
    pub(super) fn drain(&self) {
        self.open()
            .values()
            .for_each(|entry| entry.order.give(DRAIN));
    }

    pub(super) fn count_accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_turned_away(&self) {
        self.turned_away.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_failure(&self, error: &GrpcError) {
        let counter = match error {
            GrpcError::Tls(TlsError::Identity(_)) => &self.failed_identity,
            GrpcError::Tls(TlsError::Timeout(_)) | GrpcError::ConnectTimeout(_) => {
                &self.failed_timeout
            }
            GrpcError::Tls(TlsError::Peer(_)) => &self.failed_peer,
            _ => &self.failed_handshake,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn register(self: &Arc<Self>, peer: Option<Arc<Peer>>) -> Registered {
        let id = self.established.fetch_add(1, Ordering::Relaxed);
        let order = Arc::new(Order::default());
        let entry = Entry {
            peer,
            order: order.clone(),
        };
        self.open().insert(id, entry);
        Registered {
            connections: self.clone(),
            id,
            order,
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Entry>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place among the live ones; dropping it leaves.
pub(super) struct Registered {
    connections: Arc<Connections>,
    id: u64,
    order: Arc<Order>,
}

impl Registered {
    /// Waits until the connection is to finish or to go.
    pub(super) async fn drained(&self) {
        self.order.reaches(DRAIN).await;
    }

    /// Waits until the connection is to go at once.
    pub(super) async fn cut(&self) {
        self.order.reaches(CUT).await;
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.connections.open().remove(&self.id);
    }
}

const DRAIN: u8 = 1;
const CUT: u8 = 2;

/// An order to one connection's task. Polled with every turn of that task, so it is an atomic and
/// not a channel.
#[derive(Debug, Default)]
struct Order {
    level: AtomicU8,
    waker: AtomicWaker,
}

impl Order {
    fn give(&self, level: u8) {
        self.level.fetch_max(level, Ordering::AcqRel);
        self.waker.wake();
    }

    /// Both waits of a connection run in its one task, so one waker is enough.
    async fn reaches(&self, level: u8) {
        poll_fn(|cx| {
            self.waker.register(cx.waker());
            if self.level.load(Ordering::Acquire) >= level {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

//! What others may read of a connection while its task has it.

use crate::{copies::OnItsWay, peers::ConnectedPeer};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

/// Both connections' counters, since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) reports: AtomicU64,
    pub(crate) invalid: AtomicU64,
    pub(crate) uncleared: AtomicU64,
}

#[derive(Debug)]
struct Standing {
    /// `None` while connected.
    down: Option<Arc<str>>,
    generation: Option<u64>,
}

/// One connection as its users see it.
#[derive(Debug)]
pub(crate) struct LaneState {
    standing: Mutex<Standing>,
    published: AtomicU64,
    reconnects: AtomicU64,
    renewals: AtomicU64,
    /// What a connection had on its way when it ended, by client id.
    left: Mutex<HashMap<String, Vec<OnItsWay>>>,
    /// The broker at the other end of each connection that stands; one is made before the last goes.
    peers: Mutex<Vec<Weak<ConnectedPeer>>>,
}

/// One connection, for metrics and the status page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneStats {
    /// Messages can be sent.
    pub connected: bool,
    /// The generation of the SVID in use; `None` in plaintext or while not connected.
    pub generation: Option<u64>,
    /// Messages sent since the start, whatever became of them.
    pub published: u64,
    /// Connections made after one was lost.
    pub reconnects: u64,
    /// Connections that followed one whose certificates neared their end.
    pub renewals: u64,
}

impl LaneState {
    pub(crate) fn new() -> Self {
        let down = Some(Arc::from("the broker is not connected yet"));
        Self {
            standing: Mutex::new(Standing {
                down,
                generation: None,
            }),
            published: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            renewals: AtomicU64::new(0),
            left: Mutex::default(),
            peers: Mutex::default(),
        }
    }

    fn set(&self, down: Option<Arc<str>>, generation: Option<u64>) {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) =
            Standing { down, generation };
    }

    pub(crate) fn up(&self, generation: Option<u64>) {
        self.set(None, generation);
    }

    pub(crate) fn down(&self, reason: &str) {
        self.set(Some(Arc::from(reason)), None);
    }

    /// Why nothing can be sent; `None` while connected.
    pub(crate) fn obstacle(&self) -> Option<Arc<str>> {
        self.standing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .down
            .clone()
    }

    /// A connection has ended, and this may arrive all the same.
    pub(crate) fn left_on_its_way(&self, client_id: &str, copies: Vec<OnItsWay>) {
        if !copies.is_empty() {
            let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
            left.entry(client_id.to_owned()).or_default().extend(copies);
        }
    }

    /// The broker has taken a connection under this client id. That ends the one before it, and what
    /// has not arrived by then never will.
    pub(crate) fn taken_over(&self, client_id: &str) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.remove(client_id);
    }

    /// A connection stands for as long as this lives.
    pub(crate) fn stands(&self, peer: &Arc<ConnectedPeer>) {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.retain(|peer| peer.strong_count() > 0);
        peers.push(Arc::downgrade(peer));
    }

    pub(crate) fn peers(&self) -> Vec<ConnectedPeer> {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let standing = peers.iter().filter_map(Weak::upgrade);
        standing.map(|peer| (*peer).clone()).collect()
    }

    pub(crate) fn count_published(&self) {
        self.published.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_reconnect(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_renewal(&self) {
        self.renewals.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self) -> LaneStats {
        let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        LaneStats {
            connected: standing.down.is_none(),
            generation: standing.generation,
            published: self.published.load(Ordering::Relaxed),
            reconnects: self.reconnects.load(Ordering::Relaxed),
            renewals: self.renewals.load(Ordering::Relaxed),
        }
    }
}

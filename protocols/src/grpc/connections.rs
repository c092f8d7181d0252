//! The live connections of one listener: counted, and closed by predicate.

use super::{error::GrpcError, share::Share, stream::Cut};
use crate::peers::ConnectedPeer;
use futures::task::AtomicWaker;
use portarium_identity::{Peer, ServerTls, TlsError};
use rustls::pki_types::CertificateDer;
use std::{
    collections::HashMap,
    error::Error,
    fmt,
    future::poll_fn,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

/// The connections of one listener: what happened at its door, and who is in.
#[derive(Debug, Default)]
pub struct Connections {
    open: Mutex<HashMap<u64, Entry>>,
    told: Option<Told>,
    rechecks: AtomicU64,
    accepted: AtomicU64,
    turned_away: AtomicU64,
    established: AtomicU64,
    failed_identity: AtomicU64,
    failed_handshake: AtomicU64,
    failed_timeout: AtomicU64,
    failed_peer: AtomicU64,
}

/// Who is let in and who is not.
#[derive(Debug)]
pub enum Admission<'a> {
    /// It is in.
    Admitted(&'a Peer),
    /// It failed its handshake.
    Refused(&'a TlsError),
    /// It is who it says, and has as many connections as one may have.
    TooManyOfOne(&'a Peer),
    /// There are as many connections as there may be; it was not asked who it is.
    TooMany,
    /// It was in, would not be admitted now, and is cut.
    Withdrawn(&'a Peer, &'a TlsError),
    /// It was in, broke a rule or a bound of HTTP/2 or did not begin to speak it, and is cut.
    Broke(&'a Peer, &'a dyn Error),
}

/// Who hears of them.
struct Told(Box<OnAdmission>);

/// Hears where a connection came from and what came of it.
type OnAdmission = dyn Fn(SocketAddr, Admission<'_>) + Send + Sync;

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Told")
    }
}

#[derive(Debug)]
struct Entry {
    peer: Option<Authenticated>,
    drain: Arc<Drain>,
    cut: Arc<Cut>,
    share: Arc<Share>,
}

/// Who is on the other end of a connection, and the chain that proved it, leaf first.
#[derive(Debug, Clone)]
pub(super) struct Authenticated {
    pub(super) who: ConnectedPeer,
    pub(super) chain: Arc<[CertificateDer<'static>]>,
}

/// What happened at the door since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerStats {
    /// TCP connections accepted.
    pub accepted: u64,
    /// Closed at once, because `max_connections` were there, or `max_per_peer` of its peer.
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

    /// None yet, and `told` hears where each came from and what came of it. Peers that went away
    /// amid their handshake are not told, nor those without TLS. It must not block.
    pub fn telling(
        told: impl for<'a> Fn(SocketAddr, Admission<'a>) + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            told: Some(Told(Box::new(told))),
            ..Self::default()
        })
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

    /// Who is in.
    pub fn peers(&self) -> Vec<ConnectedPeer> {
        let open = self.open();
        let peers = open.values().filter_map(|entry| entry.peer.as_ref());
        peers.map(|peer| peer.who.clone()).collect()
    }

    /// Cuts the connections of all peers that would not be accepted now, with whatever is on
    /// them: after a change of policy, a bundle that was removed, an authority that was revoked,
    /// or the end of our own identity. Returns how many. Verifies a signature or two for each
    /// connection, about 0.1 ms.
    pub fn recheck(&self, tls: &ServerTls) -> usize {
        self.rechecks.fetch_add(1, Ordering::AcqRel);
        let open = self.open();
        let with_peer = open
            .values()
            .filter_map(|entry| Some((entry.peer.clone()?, entry.cut.clone())));
        let with_peer: Vec<_> = with_peer.collect();
        // The lock is not held while signatures are verified.
        drop(open);
        let unwanted = with_peer.iter().filter_map(|(authenticated, cut)| {
            let Authenticated { who, chain } = authenticated;
            let error = tls.recheck(&who.peer, chain).err()?;
            cut.cut();
            self.tell(who.remote, Admission::Withdrawn(&who.peer, &error));
            Some(())
        });
        unwanted.count()
    }

    /// How often [`recheck`](Self::recheck) was called: whose handshake was under way meanwhile
    /// has to check again.
    pub(super) fn rechecks(&self) -> u64 {
        self.rechecks.load(Ordering::Acquire)
    }

    /// Asks all connections to finish.
    pub(super) fn drain(&self) {
        self.open().values().for_each(|entry| entry.drain.ask());
    }

    pub(super) fn count_accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn turned_away(&self, from: SocketAddr, peer: Option<&Peer>) {
        self.turned_away.fetch_add(1, Ordering::Relaxed);
        self.tell(
            from,
            peer.map_or(Admission::TooMany, Admission::TooManyOfOne),
        );
    }

    pub(super) fn admitted(&self, from: SocketAddr, peer: &Peer) {
        self.tell(from, Admission::Admitted(peer));
    }

    pub(super) fn broke(&self, from: SocketAddr, peer: &Peer, error: &dyn Error) {
        self.tell(from, Admission::Broke(peer, error));
    }

    fn tell(&self, from: SocketAddr, admission: Admission<'_>) {
        if let Some(told) = &self.told {
            (told.0)(from, admission);
        }
    }

    pub(super) fn failed(&self, from: SocketAddr, error: &GrpcError) {
        if let GrpcError::Tls(error) = error
            && !error.is_broken_connection()
        {
            self.tell(from, Admission::Refused(error));
        }
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

    /// A connection without a certificate.
    pub(super) fn register(self: &Arc<Self>) -> Registered {
        let mut open = self.open();
        let share = open.values().next().map(|entry| entry.share.clone());
        self.enter(&mut open, None, share.unwrap_or_default())
    }

    /// A connection of this peer, unless it has so many.
    pub(super) fn admit(
        self: &Arc<Self>,
        peer: Authenticated,
        at_most: usize,
    ) -> Option<Registered> {
        let mut open = self.open();
        let theirs = open.values().filter(|entry| {
            let other = entry.peer.as_ref();
            other.is_some_and(|other| other.who.peer.spiffe_id == peer.who.peer.spiffe_id)
        });
        let (count, share) = theirs.fold((0, None), |(count, _), entry| {
            (count + 1, Some(entry.share.clone()))
        });
        if count >= at_most {
            return None;
        }
        Some(self.enter(&mut open, Some(peer), share.unwrap_or_default()))
    }

    fn enter(
        self: &Arc<Self>,
        open: &mut HashMap<u64, Entry>,
        peer: Option<Authenticated>,
        share: Arc<Share>,
    ) -> Registered {
        let registered = Registered {
            connections: self.clone(),
            id: self.established.fetch_add(1, Ordering::Relaxed),
            drain: Arc::default(),
            cut: Arc::default(),
            share,
        };
        let entry = Entry {
            peer,
            drain: registered.drain.clone(),
            cut: registered.cut.clone(),
            share: registered.share.clone(),
        };
        open.insert(registered.id, entry);
        registered
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Entry>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place among the live ones; dropping it leaves.
pub(super) struct Registered {
    connections: Arc<Connections>,
    id: u64,
    drain: Arc<Drain>,
    pub(super) cut: Arc<Cut>,
    /// What its caller has under way, over all of its connections.
    pub(super) share: Arc<Share>,
}

impl Registered {
    /// Waits until the connection is asked to finish.
    pub(super) async fn drained(&self) {
        poll_fn(|cx| self.drain.poll_asked(cx)).await;
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.connections.open().remove(&self.id);
    }
}

/// Asks one connection's task to finish. It is polled with every turn of that task, so it is an
/// atomic and not a channel.
#[derive(Debug, Default)]
struct Drain {
    asked: AtomicBool,
    waker: AtomicWaker,
}

impl Drain {
    fn ask(&self) {
        self.asked.store(true, Ordering::Release);
        self.waker.wake();
    }

    fn poll_asked(&self, cx: &Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        if self.asked.load(Ordering::Acquire) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

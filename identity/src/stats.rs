//! What the crate counts, for metrics.
use crate::PeerError;
use std::{
    io,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// What a manager has counted since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IdentityStats {
    /// New generations after the first.
    pub rotations: u64,
    /// Workload API streams opened after the first.
    pub reconnects: u64,
    /// How often the task that follows the Workload API ended and was started again.
    pub restarts: u64,
    /// Handshakes in which we are the client.
    pub client: HandshakeStats,
    /// Handshakes in which we are the server.
    pub server: HandshakeStats,
}

/// Handshakes of one side, by outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HandshakeStats {
    /// Ended well. (A TLS 1.3 client is done before the server has looked at its certificate.)
    pub ok: u64,
    /// We had no current SVID.
    pub no_identity: u64,
    /// Took too long.
    pub timeout: u64,
    /// The peer's certificate does not verify, or is no X.509-SVID.
    pub untrusted: u64,
    /// The peer is who it says, but the policy does not admit it.
    pub not_admitted: u64,
    /// The peer sent no certificate.
    pub no_certificate: u64,
    /// The peer sent a TLS alert.
    pub refused_by_peer: u64,
    /// No common TLS version, ALPN and so on, or no TLS at all.
    pub protocol: u64,
    /// The connection broke.
    pub io: u64,
}

/// How a handshake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ok,
    NoIdentity,
    Timeout,
    Untrusted,
    NotAdmitted,
    NoCertificate,
    RefusedByPeer,
    Protocol,
    Io,
}

const OUTCOMES: usize = Outcome::Io as usize + 1;

impl Outcome {
    pub(crate) fn of_io(error: &io::Error) -> Self {
        error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
            .map_or(Self::Io, Self::of_tls)
    }

    pub(crate) fn of_tls(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::Other(other) => match other.0.downcast_ref::<PeerError>() {
                Some(PeerError::NoIdentity) => Self::NoIdentity,
                Some(PeerError::NotAdmitted { .. }) => Self::NotAdmitted,
                _ => Self::Untrusted,
            },
            rustls::Error::InvalidCertificate(_) => Self::Untrusted,
            rustls::Error::NoCertificatesPresented => Self::NoCertificate,
            rustls::Error::AlertReceived(_) => Self::RefusedByPeer,
            _ => Self::Protocol,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Handshakes([AtomicU64; OUTCOMES]);

impl Handshakes {
    pub(crate) fn count(&self, outcome: Outcome) {
        self.0[outcome as usize].fetch_add(1, Relaxed);
    }

    fn read(&self) -> HandshakeStats {
        let of = |outcome: Outcome| self.0[outcome as usize].load(Relaxed);
        HandshakeStats {
            ok: of(Outcome::Ok),
            no_identity: of(Outcome::NoIdentity),
            timeout: of(Outcome::Timeout),
            untrusted: of(Outcome::Untrusted),
            not_admitted: of(Outcome::NotAdmitted),
            no_certificate: of(Outcome::NoCertificate),
            refused_by_peer: of(Outcome::RefusedByPeer),
            protocol: of(Outcome::Protocol),
            io: of(Outcome::Io),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Snapshots made, streams opened, follower tasks started; the first of each is no repeat.
    pub(crate) generations: AtomicU64,
    pub(crate) streams: AtomicU64,
    pub(crate) tasks: AtomicU64,
    pub(crate) client: Handshakes,
    pub(crate) server: Handshakes,
}

impl Counters {
    pub(crate) fn read(&self) -> IdentityStats {
        let after_first = |counter: &AtomicU64| counter.load(Relaxed).saturating_sub(1);
        IdentityStats {
            rotations: after_first(&self.generations),
            reconnects: after_first(&self.streams),
            restarts: after_first(&self.tasks),
            client: self.client.read(),
            server: self.server.read(),
        }
    }
}

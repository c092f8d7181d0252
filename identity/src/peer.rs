//! Who is on the other end, and until when.
use crate::SpiffeId;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// The authenticated other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who.
    pub spiffe_id: SpiffeId,
    /// The certificate's serial number, lower-case hex.
    pub serial: String,
    /// The certificate's end.
    pub not_after: SystemTime,
    /// The SVID generation that we presented.
    pub own_generation: u64,
    /// The end of the SVID that we presented.
    pub own_not_after: SystemTime,
}

impl Peer {
    /// When this connection must be over: min(own, peer) NotAfter, on a clock that is not stepped.
    pub fn lease(&self, now: SystemTime) -> Lease {
        todo!("{now:?}")
    }
}

/// The time that a connection may live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Close it before this.
    pub ends: Instant,
    /// Make the next one from here on (jittered).
    pub renew: Instant,
}

impl Lease {
    /// A lease of the given length, for connections without certificates (`development`).
    pub fn of(length: Duration) -> Self {
        todo!("{length:?}")
    }
}

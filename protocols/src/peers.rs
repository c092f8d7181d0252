//! Who is connected.

use portarium_identity::Peer;
use std::{net::SocketAddr, sync::Arc, time::SystemTime};

/// The other end of a connection that stands, which has shown who it is.
#[derive(Debug, Clone)]
pub struct ConnectedPeer {
    /// Who, and what that rests on.
    pub peer: Arc<Peer>,
    /// Where it is.
    pub remote: SocketAddr,
    /// When it had shown who it is.
    pub since: SystemTime,
}

impl ConnectedPeer {
    /// It has just shown who it is.
    pub(crate) fn now(peer: Peer, remote: SocketAddr) -> Self {
        Self {
            peer: Arc::new(peer),
            remote,
            since: SystemTime::now(),
        }
    }
}

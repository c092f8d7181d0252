//! Who is on the other end of a request.

use crate::config::Development;
use portarium_identity::{Peer, SpiffeId};
use std::{fmt, sync::Arc};

/// Who makes a request, authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// A workload, by the SVID it showed.
    Spiffe {
        /// Its whole SPIFFE ID.
        id: SpiffeId,
        /// Its certificate's serial number, lower-case hex.
        serial: Arc<str>,
    },
    /// Whoever calls a development gateway over plaintext; it may do everything. The proof makes
    /// sure that it exists nowhere else.
    Development(Development),
}

impl Principal {
    /// The scope of this principal's keys.
    pub fn caller(&self) -> Caller {
        match self {
            Self::Spiffe { id, .. } => Caller::of(id),
            Self::Development(_) => Caller(Arc::from("development")),
        }
    }

    /// The serial number of the certificate shown; `None` in development.
    pub fn serial(&self) -> Option<&str> {
        match self {
            Self::Spiffe { serial, .. } => Some(serial),
            Self::Development(_) => None,
        }
    }
}

impl From<&Peer> for Principal {
    fn from(peer: &Peer) -> Self {
        Self::Spiffe {
            id: peer.spiffe_id.clone(),
            serial: Arc::from(peer.serial.as_str()),
        }
    }
}

/// The SPIFFE ID, or `development`.
impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spiffe { id, .. } => fmt::Display::fmt(id, f),
            Self::Development(_) => f.write_str("development"),
        }
    }
}

/// A caller across its pods: the SPIFFE ID up to `…/ns/N/sa/S`, whole where it has another shape,
/// and `development` in development. Keys are scoped by it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Caller(Arc<str>);

impl Caller {
    fn of(id: &SpiffeId) -> Self {
        let whole = id.to_string();
        let path = id.path();
        let mut segments = path.split('/').skip(1);
        let shape = [
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
        ];
        let pod = match shape {
            [Some("ns"), Some(namespace), Some("sa"), Some(account)] => {
                path.len() - "/ns//sa/".len() - namespace.len() - account.len()
            }
            _ => 0,
        };
        Self(Arc::from(&whole[..whole.len() - pod]))
    }
}

impl From<Caller> for Arc<str> {
    fn from(caller: Caller) -> Self {
        caller.0
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

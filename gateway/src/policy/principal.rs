//! Who is on the other end of a request.

use crate::config::Development;
use portarium_identity::{Peer, SpiffeId, token::Bearer};
use std::{fmt, sync::Arc};

/// Who makes a request, authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// A workload, by the SVID that it showed on its connection, and what the access token says that
    /// was asked for and found good.
    Spiffe(Arc<Peer>, Option<Arc<Bearer>>),
    /// Whoever calls a development gateway over plaintext; it may do everything. The proof makes
    /// sure that it exists nowhere else.
    Development(Development),
}

impl Principal {
    /// The scope of this principal's keys.
    pub fn caller(&self) -> Caller {
        match self {
            Self::Spiffe(peer, _) => Caller::of(&peer.spiffe_id),
            Self::Development(_) => Caller(Arc::from("development")),
        }
    }

    /// The serial number of the certificate shown; `None` in development.
    pub fn serial(&self) -> Option<&str> {
        match self {
            Self::Spiffe(peer, _) => Some(&peer.serial),
            Self::Development(_) => None,
        }
    }

    /// What its access token says, if one was asked for.
    pub fn token(&self) -> Option<&Bearer> {
        match self {
            Self::Spiffe(_, token) => token.as_deref(),
            Self::Development(_) => None,
        }
    }

    /// The same, with this token.
    pub(crate) fn showing(self, token: Option<Bearer>) -> Self {
        match self {
            Self::Spiffe(peer, _) => Self::Spiffe(peer, token.map(Arc::new)),
            development @ Self::Development(_) => development,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
impl Principal {
    /// Whoever has this SPIFFE ID, with a certificate of the serial number 01.
    pub(crate) fn workload(id: &str) -> Self {
        let now = std::time::SystemTime::now();
        Self::Spiffe(
            Arc::new(Peer {
                spiffe_id: SpiffeId::new(id).unwrap(),
                serial: "01".into(),
                thumbprint: portarium_identity::token::Thumbprint::of(&[].as_slice().into()),
                not_after: now,
                authorities: Vec::new(),
                own_generation: 1,
                own_not_after: now,
                own_deadline: tokio::time::Instant::now(),
            }),
            None,
        )
    }
}

/// The SPIFFE ID, or `development`.
impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spiffe(peer, _) => fmt::Display::fmt(&peer.spiffe_id, f),
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

//! Whose connections stand, and what they rest on: for operators and for the metrics.

use portarium_identity::{SvidManager, TrustDomain};
use portarium_protocols::ConnectedPeer;
use std::{collections::BTreeMap, sync::Arc};

/// What connections are counted under whose authority no bundle holds, or cannot be told.
const OTHER: &str = "other";

/// Which side of the gateway a connection is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// A caller's.
    North,
    /// To a broker or robot.
    South,
}

impl Direction {
    /// As labels and answers have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::North => "north",
            Self::South => "south",
        }
    }
}

/// The connections of one adapter, or of all callers.
#[derive(Debug, Clone)]
pub struct Side {
    /// Which side that is.
    pub direction: Direction,
    /// `mqtt.main` or `grpc`, say.
    pub adapter: String,
    /// Who is on the other end of each.
    pub peers: Vec<ConnectedPeer>,
}

/// The connections as they stand, and the authorities as they are.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// The connections.
    pub sides: Vec<Side>,
    /// The authorities of all bundles, by trust domain and id.
    pub authorities: Vec<(TrustDomain, Arc<str>)>,
}

impl Standing {
    /// These connections, beside the bundles of now.
    pub fn new(sides: Vec<Side>, identity: Option<&SvidManager>) -> Self {
        let snapshot = identity.and_then(SvidManager::current);
        let authorities = snapshot.iter().flat_map(|snapshot| snapshot.authorities());
        Self {
            sides,
            authorities: authorities
                .map(|(domain, id)| (domain.clone(), Arc::clone(id)))
                .collect(),
        }
    }

    /// The authority that a peer rests on, where the bundle of its trust domain holds it.
    pub fn bundled<'a>(&self, connected: &'a ConnectedPeer) -> Option<&'a str> {
        let id = connected.peer.authorities.first()?;
        let domain = connected.peer.spiffe_id.trust_domain();
        let held = self.authorities.iter().any(|(d, a)| d == domain && a == id);
        held.then_some(id.as_ref())
    }

    /// How many connections rest on each authority, on either side: on all that the bundles hold,
    /// also where there are none, and on whatever else together. So a page of metrics has as many
    /// lines as there are authorities, whoever connects.
    pub fn counts(&self) -> BTreeMap<(Direction, &str), u64> {
        let ids = || self.authorities.iter().map(|(_, id)| id.as_ref());
        let mut counts: BTreeMap<_, _> = [Direction::North, Direction::South]
            .into_iter()
            .flat_map(|direction| ids().chain([OTHER]).map(move |id| ((direction, id), 0)))
            .collect();
        for side in &self.sides {
            for connected in &side.peers {
                let id = self.bundled(connected).unwrap_or(OTHER);
                *counts.entry((side.direction, id)).or_default() += 1;
            }
        }
        counts
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::policy::Principal;
    use std::time::SystemTime;

    /// A peer with this SPIFFE ID that rests on these authorities.
    pub(crate) fn resting(id: &str, authorities: &[&str]) -> ConnectedPeer {
        let Principal::Spiffe(peer, _) = Principal::workload(id) else {
            panic!("it has a SPIFFE ID");
        };
        let mut peer = Arc::unwrap_or_clone(peer);
        peer.authorities = authorities.iter().map(|id| Arc::from(*id)).collect();
        ConnectedPeer {
            peer: Arc::new(peer),
            remote: "192.0.2.7:50051".parse().unwrap(),
            since: SystemTime::UNIX_EPOCH,
        }
    }

    /// Callers of two authorities and of one that no bundle holds, and a broker.
    pub(crate) fn standing() -> Standing {
        let side = |direction, adapter: &str, peers| Side {
            direction,
            adapter: adapter.to_owned(),
            peers,
        };
        let authority = |domain: &str, id: &str| (TrustDomain::new(domain).unwrap(), id.into());
        Standing {
            sides: vec![
                side(
                    Direction::North,
                    "grpc",
                    vec![
                        resting("spiffe://a.b/one", &["0a"]),
                        resting("spiffe://a.b/two", &["0b", "1b"]),
                        resting("spiffe://a.b/three", &["0b"]),
                        resting("spiffe://a.b/four", &["0d"]),
                        // That of another trust domain is none of its own.
                        resting("spiffe://a.b/five", &["0c"]),
                        resting("spiffe://a.b/six", &[]),
                    ],
                ),
                side(
                    Direction::South,
                    "mqtt.main",
                    vec![resting("spiffe://c.d/broker", &["0c"])],
                ),
            ],
            authorities: vec![
                authority("a.b", "0a"),
                authority("a.b", "0b"),
                authority("c.d", "0c"),
            ],
        }
    }

    #[test]
    fn connections_are_counted_by_the_authorities_that_bundles_hold_and_all_others_together() {
        let standing = standing();
        let told = |direction| {
            let counts = standing.counts();
            let of_side = counts.iter().filter(|((d, _), _)| *d == direction);
            of_side
                .map(|((_, id), n)| format!("{id} {n}"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        assert_eq!(told(Direction::North), "0a 1, 0b 2, 0c 0, other 3");
        assert_eq!(told(Direction::South), "0a 0, 0b 0, 0c 1, other 0");
    }
}
